//! The one thread that looks for what has left its session and ends it: that takes hundreds of system
//! calls, sometimes a second, for which no thread of the runtime may be held up.
//!
//! It must not know of calls: it takes groups, and something to keep until a group's end.
//!
//! Hunts that take long take turns, so that none holds up the others. The thread is started with the
//! first child and kept. Where there is none, or too much waits for it already, each does its own
//! hunting: late is better than never.

use std::collections::VecDeque;
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::group::{Cgroup, Chase, Group, left_over};
use crate::watchdog::Guarded;

/// How long one hunt goes on while others wait.
const TURN: Duration = Duration::from_millis(50);

/// How often it is tried to remove a cgroup whose processes were killed.
const REMOVE_TRIES: usize = 100;

/// How long to wait between two tries, unless there is something to do.
const REMOVE_PAUSE: Duration = Duration::from_millis(10);

/// How many errands wait for the thread at most.
const MAX_WAITING: usize = 64;

/// What the thread is asked to do.
enum Errand {
    /// Those that have left this group are asked to end.
    Ask(Group),
    /// All in a group are killed, and all that earlier groups have left over.
    Kill(Hunt),
    /// All that was ever left over is looked for once more. What is sent is dropped at the end.
    Rest(oneshot::Sender<()>),
}

/// A search for all that have left a group, and what is dropped when it is over.
struct Hunt {
    chase: Chase,
    cgroup: Option<Cgroup>,
    _guarded: Option<Guarded>,
    _done: Option<oneshot::Sender<()>>,
}

impl Hunt {
    fn of(chase: Chase) -> Self {
        Self { chase, cgroup: None, _guarded: None, _done: None }
    }
}

/// Starts the thread, if that has not been done yet. To be called while threads can surely be had:
/// before a child that might take them all.
pub(super) fn be_ready() {
    thread();
}

/// Asks those to end (SIGTERM) that have left `group`. Doesn't wait for it.
pub(super) fn ask(group: Group) {
    give(Errand::Ask(group));
}

/// Kills all in `cgroup` and all that have left `group`, and then drops `guarded`. That is done whether
/// or not the answer is waited for, which takes little more than a second at most.
pub(super) fn kill(
    group: Group,
    cgroup: Option<Cgroup>,
    guarded: Option<Guarded>,
) -> impl Future<Output = ()> {
    let (done, is_done) = oneshot::channel();
    let (chase, _guarded, _done) = (group.chase(), guarded, Some(done));
    give(Errand::Kill(Hunt { chase, cgroup, _guarded, _done }));
    async {
        // It is never sent, only dropped.
        let _ = is_done.await;
    }
}

/// Waits until every hunt is over, one for what earlier ones have left over among them, and every cgroup
/// removed: little more than two seconds at most.
pub(crate) async fn rest() {
    let (done, is_done) = oneshot::channel();
    give(Errand::Rest(done));
    let _ = is_done.await;
}

/// Hands an errand to the thread, or does it in place.
fn give(errand: Errand) {
    let refused = match thread() {
        Some(thread) => thread.try_send(errand).err().map(|error| match error {
            TrySendError::Full(errand) | TrySendError::Disconnected(errand) => errand,
        }),
        None => Some(errand),
    };
    refused.into_iter().for_each(do_in_place);
}

fn do_in_place(errand: Errand) {
    let mut hunter = Hunter::default();
    hunter.take(errand);
    while hunter.has_hunted() {}
}

/// The way to the thread; `None` if it could not be started.
fn thread() -> Option<&'static SyncSender<Errand>> {
    static THREAD: OnceLock<Option<SyncSender<Errand>>> = OnceLock::new();
    THREAD.get_or_init(start).as_ref()
}

fn start() -> Option<SyncSender<Errand>> {
    let (sender, errands) = sync_channel(MAX_WAITING);
    let work = move || Hunter::default().work(&errands);
    match thread::Builder::new().name("hunter".to_owned()).spawn(work) {
        Ok(_) => Some(sender),
        Err(error) => {
            tracing::warn!(%error, "no thread to end commands on: their ends may hold up others");
            None
        }
    }
}

/// What the thread has in hand.
#[derive(Default)]
struct Hunter {
    hunts: VecDeque<Hunt>,
    /// Cgroups whose last processes are dying, and how often each was tried to be removed.
    dying: Vec<(Cgroup, usize)>,
    /// Dropped when there are neither hunts nor cgroups any more.
    resting: Vec<oneshot::Sender<()>>,
}

impl Hunter {
    fn work(mut self, errands: &Receiver<Errand>) {
        while let Some(errand) = self.next(errands) {
            errand.into_iter().for_each(|errand| self.take(errand));
            while self.has_hunted() {
                errands.try_iter().for_each(|errand| self.take(errand));
            }
            self.remove_dying();
        }
    }

    /// The next errand, or none yet if there are cgroups to be removed; `None` if there will be none.
    fn next(&self, errands: &Receiver<Errand>) -> Option<Option<Errand>> {
        if self.dying.is_empty() {
            return errands.recv().ok().map(Some);
        }
        match errands.recv_timeout(REMOVE_PAUSE) {
            Ok(errand) => Some(Some(errand)),
            Err(RecvTimeoutError::Timeout) => Some(None),
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }

    fn take(&mut self, errand: Errand) {
        match errand {
            Errand::Ask(group) => return group.ask_strays(),
            Errand::Kill(hunt) => {
                hunt.cgroup.iter().for_each(Cgroup::kill);
                self.hunts.push_back(hunt);
            }
            Errand::Rest(done) => self.resting.push(done),
        }
        let left_over = left_over().into_iter();
        self.hunts.extend(left_over.map(Hunt::of));
    }

    /// Gives one hunt its turn; false if there is none.
    fn has_hunted(&mut self) -> bool {
        let Some(mut hunt) = self.hunts.pop_front() else { return false };
        if hunt.chase.go_on(Some(Instant::now() + TURN)) {
            self.dying.extend(hunt.cgroup.take().map(|cgroup| (cgroup, 0)));
        } else {
            self.hunts.push_back(hunt);
        }
        true
    }

    /// Removes the cgroups that are empty by now, and forgets those that never will be.
    fn remove_dying(&mut self) {
        self.dying.iter_mut().for_each(|(_, tries)| *tries += 1);
        self.dying.retain(|(cgroup, tries)| !cgroup.is_removed() && *tries < REMOVE_TRIES);
        if self.dying.is_empty() {
            self.resting.clear();
        }
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use crate::confine::Confinement;
    use crate::group::{Tie, enter, set_apart, testing};

    /// A child without end, and its group.
    fn start(cgroup: Option<&Cgroup>) -> (std::process::Child, Group) {
        let mut command = std::process::Command::new("sleep");
        cgroup.into_iter().for_each(|cgroup| enter(&mut command, cgroup));
        set_apart(command.arg("1000"), Tie::DiesWithDevice, &Confinement::default(), None);
        let child = command.spawn().unwrap();
        let group = Group::of_new(child.id()).unwrap();
        (child, group)
    }

    #[test]
    fn an_errand_that_finds_no_thread_is_done_in_place() {
        let (mut child, group) = start(None);
        let (done, mut is_done) = oneshot::channel();
        group.kill_members();
        let errand = Errand::Kill(Hunt { _done: Some(done), ..Hunt::of(group.chase()) });
        do_in_place(errand);
        assert!(is_done.try_recv().is_err(), "it is dropped");
        child.wait().unwrap();
        testing::all_gone(&[child.id()]);
    }

    #[tokio::test]
    async fn a_cgroup_is_killed_and_removed() {
        let Some(cgroup) = Cgroup::slow() else { return };
        let (mut child, group) = start(Some(&cgroup));
        let place = cgroup.path().to_owned();
        assert_ne!(std::fs::read_to_string(place.join("cgroup.procs")).unwrap(), "");
        // The group isn't killed: what kills is the cgroup.
        kill(group, Some(cgroup), None).await;
        child.wait().unwrap();
        testing::until("it is removed", || (!place.exists()).then_some(()));
    }
}
