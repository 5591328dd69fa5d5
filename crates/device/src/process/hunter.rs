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
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::group::{Chase, Group, left_over};
use crate::watchdog::Guarded;

/// How long one hunt goes on while others wait.
const TURN: Duration = Duration::from_millis(50);

/// How many errands wait for the thread at most.
const MAX_WAITING: usize = 256;

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
    _guarded: Option<Guarded>,
    _done: Option<oneshot::Sender<()>>,
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

/// Kills all that have left `group`, and then drops `guarded`. That is done whether or not the answer
/// is waited for, which takes little more than a second at most.
pub(super) fn kill(group: Group, guarded: Option<Guarded>) -> impl Future<Output = ()> {
    let (done, is_done) = oneshot::channel();
    give(Errand::Kill(Hunt { chase: group.chase(), _guarded: guarded, _done: Some(done) }));
    async {
        // It is never sent, only dropped.
        let _ = is_done.await;
    }
}

/// Waits until every hunt is over, one for what earlier ones have left over among them: little more
/// than a second at most.
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
    if let Some(errand) = refused {
        let mut hunter = Hunter::default();
        hunter.take(errand);
        while hunter.has_hunted() {}
    }
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
    /// Dropped when there are no hunts any more.
    resting: Vec<oneshot::Sender<()>>,
}

impl Hunter {
    fn work(mut self, errands: &Receiver<Errand>) {
        while let Ok(errand) = errands.recv() {
            self.take(errand);
            while self.has_hunted() {
                errands.try_iter().for_each(|errand| self.take(errand));
            }
        }
    }

    fn take(&mut self, errand: Errand) {
        match errand {
            Errand::Ask(group) => return group.ask_strays(),
            Errand::Kill(hunt) => self.hunts.push_back(hunt),
            Errand::Rest(done) => self.resting.push(done),
        }
        let left_over = left_over().into_iter();
        self.hunts.extend(left_over.map(|chase| Hunt { chase, _guarded: None, _done: None }));
    }

    /// Gives one hunt its turn; false if there is none.
    fn has_hunted(&mut self) -> bool {
        let Some(mut hunt) = self.hunts.pop_front() else {
            self.resting.clear();
            return false;
        };
        if !hunt.chase.go_on(Some(Instant::now() + TURN)) {
            self.hunts.push_back(hunt);
        }
        true
    }
}
