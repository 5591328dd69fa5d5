//! What Linux lists of its processes under `/proc`.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use rustix::process::Pid;

/// The number after which processes are numbered from the bottom again; 0 if that isn't known.
pub(crate) fn highest_number() -> i32 {
    static FOUND: OnceLock<i32> = OnceLock::new();
    let find = || std::fs::read_to_string("/proc/sys/kernel/pid_max").ok()?.trim().parse().ok();
    *FOUND.get_or_init(|| find().unwrap_or(0))
}

/// The number that was handed out last, to a process or a thread. `None` where the kernel doesn't tell.
/// (Who is in a container is told of its own numbers here; `/proc/loadavg` may be somebody else's.)
pub(crate) fn latest_number() -> Option<i32> {
    // Asked at the end of every command: it is opened once.
    static FILE: OnceLock<Option<File>> = OnceLock::new();
    let file = FILE.get_or_init(|| File::open("/proc/sys/kernel/ns_last_pid").ok()).as_ref()?;
    let mut text = [0; 16];
    let length = file.read_at(&mut text, 0).ok()?;
    str::from_utf8(text.get(..length)?).ok()?.trim().parse().ok()
}

/// The numbers of all processes.
pub(crate) fn numbers() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// What the kernel's own listing says of a process. (The calls `getpgid` and `getsid` answer 0 for
/// the kernel's threads, which rustix takes for impossible.)
pub(crate) struct Status {
    pub(crate) group: i32,
    pub(crate) session: i32,
    /// In ticks since boot.
    pub(crate) started: u64,
}

impl Status {
    pub(crate) fn of(process: Pid) -> Option<Self> {
        let status = of(process.as_raw_pid(), "stat")?;
        // The program's name may hold anything, even parentheses and spaces; then come the state,
        // the parent, the group and the session, and the start as the sixteenth after those.
        let name_end = status.iter().rposition(|byte| *byte == b')')?;
        let mut fields = str::from_utf8(&status[name_end + 1..]).ok()?.split_ascii_whitespace();
        let group = fields.nth(2)?.parse().ok()?;
        let session = fields.next()?.parse().ok()?;
        Some(Self { group, session, started: fields.nth(15)?.parse().ok()? })
    }
}

/// What the kernel lists of a process under `/proc`, in one go: its listings for one process are
/// shorter than a page. `None` if there is no such process, or none that may be looked at.
pub(crate) fn of(id: i32, name: &str) -> Option<Vec<u8>> {
    let mut listed = vec![0; 4096];
    let mut file = File::open(format!("/proc/{id}/{name}")).ok()?;
    let length = file.read(&mut listed).ok()?;
    listed.truncate(length);
    Some(listed)
}
