//! What waits to be written, and the thread that writes it.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::file::LogFile;
use super::{Entry, Event, Line, QUEUE_ENTRIES};
use crate::store::{Commit, StoreError};

/// After the first entry, how long to gather more of them: in a storm this makes one write, and one
/// wake-up of the thread, of hundreds.
const GATHER: Duration = Duration::from_millis(10);

/// While the disk refuses, the time between two tries.
const RETRY: Duration = Duration::from_secs(1);

/// Lines that wait for a disk that refuses them: those of the queue, and as many again that were to be written at once.
const MAX_BATCH: usize = 2 * QUEUE_ENTRIES;

/// Where it is said that a line is in the file.
type Asker = oneshot::Sender<Result<(), StoreError>>;

/// What the thread and those who record something look at. The file is locked before the queue.
pub(super) struct Shared {
    queue: Mutex<Queue>,
    /// Rung when there is something to do.
    bell: Condvar,
    out: Mutex<Out>,
    lost: AtomicU64,
    path: PathBuf,
}

#[derive(Default)]
struct Queue {
    /// [`QUEUE_ENTRIES`] at most.
    lines: VecDeque<Line>,
    /// Who waits until these are written.
    askers: Vec<Asker>,
    /// Whether the disk has refused lines that are to be tried again.
    is_behind: bool,
    is_closing: bool,
}

/// The file, and what goes there next: [`MAX_BATCH`] at most.
struct Out {
    file: LogFile,
    batch: VecDeque<Line>,
    /// How many lost entries the log knows of.
    told: u64,
    /// Whether the last try failed.
    is_refused: bool,
}

impl Shared {
    pub(super) fn new(file: LogFile) -> Self {
        let path = file.path().to_owned();
        let out = Out { file, batch: VecDeque::new(), told: 0, is_refused: false };
        Self {
            queue: Mutex::default(),
            bell: Condvar::new(),
            out: Mutex::new(out),
            lost: AtomicU64::new(0),
            path,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Queues a line. One for which there is no place is lost.
    pub(super) fn push(&self, line: Line) {
        let mut queue = self.queue();
        if self.is_taken(&mut queue, line) && queue.lines.len() == 1 {
            self.bell.notify_one();
        }
    }

    /// The same, to be told when it is written: the thread gathers no longer then.
    pub(super) fn push_and_ask(&self, line: Line) -> Commit {
        let mut queue = self.queue();
        if !self.is_taken(&mut queue, line) {
            return Commit::Known(Ok(()));
        }
        let (asker, written) = oneshot::channel();
        queue.askers.push(asker);
        self.bell.notify_one();
        Commit::Pending(written)
    }

    fn is_taken(&self, queue: &mut Queue, line: Line) -> bool {
        let has_room = !queue.is_closing && queue.lines.len() < QUEUE_ENTRIES;
        if has_room {
            queue.lines.push_back(line);
        } else {
            self.note_lost(1);
        }
        has_room
    }

    /// Writes lines, behind those that were queued before. What the disk refuses waits for the thread.
    pub(super) fn write_through(&self, lines: impl Iterator<Item = Line>) {
        let mut out = self.out();
        let askers = self.take(&mut out);
        let mut lost = 0;
        for line in lines {
            if out.batch.len() < MAX_BATCH {
                out.batch.push_back(line);
            } else {
                lost += 1;
            }
        }
        let is_written = out.write();
        drop(out);
        answer(askers);
        if lost > 0 {
            self.note_lost(lost);
        }
        if !is_written {
            self.queue().is_behind = true;
            self.bell.notify_one();
        }
    }

    /// Writes until it is closed.
    pub(super) fn run(&self) {
        while self.wait() {
            if !self.write_queued() {
                self.pause();
            }
        }
        if !self.write_queued() {
            let left = self.out().batch.drain(..).count() + self.queue().lines.drain(..).count();
            self.note_lost(left as u64);
        }
    }

    /// The thread writes what is queued, and ends.
    pub(super) fn close(&self) {
        self.queue().is_closing = true;
        self.bell.notify_one();
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Waits until there is something to write, and gathers. `false` when nothing more will come.
    fn wait(&self) -> bool {
        let has_nothing =
            |queue: &mut Queue| queue.lines.is_empty() && !queue.is_behind && !queue.is_pressing();
        let queue = self.bell.wait_while(self.queue(), has_nothing);
        let queue = queue.unwrap_or_else(PoisonError::into_inner);
        let gathering = self.bell.wait_timeout_while(queue, GATHER, |queue| !queue.is_pressing());
        let (queue, _) = gathering.unwrap_or_else(PoisonError::into_inner);
        !queue.is_closing
    }

    /// After the disk refused: waits until it is tried again.
    fn pause(&self) {
        let mut queue = self.queue();
        queue.is_behind = true;
        let pausing = self.bell.wait_timeout_while(queue, RETRY, |queue| !queue.is_pressing());
        drop(pausing);
    }

    /// Writes what is queued, and how much is missing. Whether all is in the file.
    fn write_queued(&self) -> bool {
        let mut out = self.out();
        let askers = self.take(&mut out);
        let is_written = out.write() && out.tell_loss(self.lost());
        drop(out);
        answer(askers);
        is_written
    }

    /// Takes out of the queue what there is room for.
    fn take(&self, out: &mut Out) -> Vec<Asker> {
        let mut queue = self.queue();
        let room = QUEUE_ENTRIES.saturating_sub(out.batch.len());
        let count = room.min(queue.lines.len());
        out.batch.extend(queue.lines.drain(..count));
        queue.is_behind = !queue.lines.is_empty();
        std::mem::take(&mut queue.askers)
    }

    fn note_lost(&self, entries: u64) {
        if self.lost.fetch_add(entries, Ordering::Relaxed) == 0 {
            tracing::warn!(
                "the audit log cannot keep up or cannot be written: entries are lost; it says how many"
            );
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn out(&self) -> MutexGuard<'_, Out> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// Whether somebody waits for what is to be written.
    fn is_pressing(&self) -> bool {
        self.is_closing || !self.askers.is_empty()
    }
}

impl Out {
    /// Writes the batch. Whether all of it is in the file; what is not stays.
    fn write(&mut self) -> bool {
        match self.file.append(&mut self.batch) {
            Ok(()) if std::mem::take(&mut self.is_refused) => {
                tracing::info!("the audit log is written again");
                true
            }
            Ok(()) => true,
            Err(error) => {
                if !std::mem::replace(&mut self.is_refused, true) {
                    tracing::error!(%error, "the audit log cannot be written; trying again and again");
                }
                false
            }
        }
    }

    /// Adds a line about the entries that were lost since the last such line. Whether the log knows of all.
    fn tell_loss(&mut self, lost: u64) -> bool {
        if lost == self.told {
            return true;
        }
        let entry = Entry { count: Some(lost - self.told), ..Entry::new(Event::Lost) };
        self.batch.push_back(entry.line());
        let is_written = self.write();
        if is_written {
            self.told = lost;
        }
        self.batch.clear();
        is_written
    }
}

/// Says that what was waited for is written. While the disk refuses nobody waits for it.
fn answer(askers: Vec<Asker>) {
    for asker in askers {
        // Whoever asked may be gone.
        let _is_gone = asker.send(Ok(()));
    }
}
