//! What the tests of this and the neighbouring modules share.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// How long a test waits for something that should come at once.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `check` gives something, and fails the test if it never does.
pub(crate) fn until<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Waits for the process ids in a file: one to a line, the last line being complete.
pub(crate) fn ids_in(file: &Path, count: usize) -> Vec<u32> {
    until("the process ids are written", || {
        let text = fs::read_to_string(file).ok().filter(|text| text.ends_with('\n'))?;
        let ids: Vec<u32> = text.lines().map(|line| line.parse().unwrap()).collect();
        (ids.len() == count).then_some(ids)
    })
}

/// Whether a process runs. One that is dead and waits for its parent to notice doesn't.
pub(crate) fn runs(id: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    let state = status.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

/// Waits until none of these processes runs.
pub(crate) fn all_gone(ids: &[u32]) {
    until(&format!("{ids:?} are gone"), || ids.iter().all(|id| !runs(*id)).then_some(()));
}

/// How often the calling thread has read from a file, a pipe or a socket so far.
pub(crate) fn reads_of_this_thread() -> u64 {
    told_of_this_thread("io", "syscr:")
}

/// How often the calling thread has waited for something so far.
pub(crate) fn waits_of_this_thread() -> u64 {
    told_of_this_thread("status", "voluntary_ctxt_switches:")
}

fn told_of_this_thread(listing: &str, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/thread-self/{listing}")).unwrap();
    let told = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    told.trim().parse().unwrap()
}
