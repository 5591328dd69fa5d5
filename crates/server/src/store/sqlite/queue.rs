//! What waits for the writer, bounded in bytes.
//!
//! What has large payloads goes by another thread first, which writes them into files of their own, so that the small
//! ones need not wait. What must not overtake it goes the same way.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::oneshot;

use super::courier::{Answered, Courier};
use super::rows::{Encoded, is_large};
use crate::session::{Task, TaskId};
use crate::store::{Batch, Change, Commit, MAX_GROUP, StoreError};

/// What a change takes of the queue, about, in bytes.
const CHANGE_BYTES: usize = 1024;

/// Most bytes that are committed together, beside one job of any size.
const GROUP_BYTES: usize = 8 * 1024 * 1024;

/// Where the answer to something that waits goes.
pub(super) type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// Something to be written.
pub(super) struct Job {
    pub(super) work: Work,
    bytes: usize,
    /// Nobody waits for some.
    answer: Option<Answer<()>>,
}

/// What is to be written.
pub(super) enum Work {
    Append(Arc<Batch>),
    /// The same, with its files written already.
    Encoded(Arc<Batch>, Box<Encoded>),
    Keep(Change),
}

impl Work {
    /// The task that it accepts, if it does.
    pub(super) fn accepted(&self) -> Option<&Arc<Task>> {
        match self {
            Self::Append(batch) | Self::Encoded(batch, _) => batch.accepted(),
            Self::Keep(_) => None,
        }
    }

    /// Whose journal it is about.
    pub(super) fn task(&self) -> Option<TaskId> {
        match self {
            Self::Append(batch) | Self::Encoded(batch, _) => Some(batch.task),
            Self::Keep(_) => None,
        }
    }
}

impl Job {
    fn with(self, encoded: Option<Box<Encoded>>) -> Self {
        let work = match (self.work, encoded) {
            (Work::Append(batch), Some(encoded)) => Work::Encoded(batch, encoded),
            (work, _) => work,
        };
        Self { work, bytes: self.bytes, answer: self.answer }
    }

    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Its answer, if anybody waits for one.
    pub(super) fn answered(self, result: Result<(), StoreError>) -> Option<Answered> {
        Some((self.answer?, result))
    }
}

/// What the writer does next.
pub(super) enum Next {
    /// These are to be committed.
    Group(Vec<Job>),
    /// It is time to let go of what has had its time.
    Tidy(Timestamp),
    /// A copy is to be made.
    Backup(PathBuf, Answer<u64>),
    /// Nothing waits, and something else is to go on.
    Nothing,
    /// Nothing waits, and nothing will come.
    End,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    /// What goes by the files.
    beside: VecDeque<Job>,
    /// What is in the hands of the thread that writes files, or waits for it.
    detained: Vec<Option<TaskId>>,
    bytes: usize,
    tidy: Option<Timestamp>,
    backups: VecDeque<(PathBuf, Answer<u64>)>,
    is_closed: bool,
    is_writer_idle: bool,
}

/// The queue. Never waits, but for its lock.
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    for_writer: Condvar,
    for_files: Condvar,
    courier: Courier,
    max_bytes: usize,
}

impl Queue {
    pub(super) fn new(max_bytes: usize, courier: Courier) -> Self {
        Self {
            waiting: Mutex::default(),
            for_writer: Condvar::new(),
            for_files: Condvar::new(),
            courier,
            max_bytes,
        }
    }

    pub(super) fn append(&self, batch: &Arc<Batch>) -> Commit {
        let bytes = batch.bytes();
        self.push(Work::Append(batch.clone()), bytes, true)
    }

    pub(super) fn keep(&self, change: Change) -> Commit {
        let is_awaited = !matches!(change, Change::Delivered(_));
        self.push(Work::Keep(change), CHANGE_BYTES, is_awaited)
    }

    fn push(&self, work: Work, bytes: usize, is_awaited: bool) -> Commit {
        let is_large = matches!(&work, Work::Append(batch) if is_large(batch));
        let mut waiting = self.lock();
        if waiting.is_closed {
            return Commit::Known(Err(StoreError::Closed));
        }
        if waiting.bytes > 0 && waiting.bytes + bytes > self.max_bytes {
            return Commit::Known(Err(StoreError::Full { bytes: waiting.bytes }));
        }
        waiting.bytes += bytes;
        let (answer, commit) = match is_awaited {
            true => {
                let (answer, receiver) = oneshot::channel();
                (Some(answer), Commit::Pending(receiver))
            }
            false => (None, Commit::Known(Ok(()))),
        };
        let job = Job { work, bytes, answer };
        if is_large || waiting.must_not_overtake(&job.work) {
            waiting.detained.push(job.work.task());
            waiting.beside.push_back(job);
            self.for_files.notify_one();
        } else {
            waiting.jobs.push_back(job);
            if is_awaited {
                self.wake_writer_soon(&mut waiting);
            }
        }
        commit
    }

    /// Asks the writer to let go of what has had its time, and to write what nobody waits for.
    pub(super) fn tidy(&self, now: Timestamp) {
        let mut waiting = self.lock();
        waiting.tidy = Some(now);
        drop(waiting);
        self.wake_writer();
    }

    /// Whether it is still to tidy.
    #[cfg(test)]
    pub(super) fn has_tick(&self) -> bool {
        self.lock().tidy.is_some()
    }

    /// Whether the writer waits for something to do.
    #[cfg(test)]
    pub(super) fn has_idle_writer(&self) -> bool {
        self.lock().is_writer_idle
    }

    /// Asks the writer for a copy.
    pub(super) fn backup(&self, folder: PathBuf) -> oneshot::Receiver<Result<u64, StoreError>> {
        let (answer, receiver) = oneshot::channel();
        let mut waiting = self.lock();
        if !waiting.is_closed {
            waiting.backups.push_back((folder, answer));
            self.wake_writer();
        }
        receiver
    }

    /// Takes nothing more. What waits is still written.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.for_files.notify_all();
        self.for_writer.notify_all();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// Takes nothing more, and lets go of what waits: there is no writer any more.
    pub(super) fn abandon(&self) {
        let mut waiting = self.lock();
        waiting.is_closed = true;
        waiting.jobs.clear();
        waiting.beside.clear();
        waiting.backups.clear();
        self.for_files.notify_all();
    }

    /// The writer has written so much, and these wait to know it.
    pub(super) fn done(&self, bytes: usize, answers: Vec<Answered>) {
        self.lock().bytes -= bytes;
        self.courier.tell(answers);
    }

    /// Tells now what there is to tell.
    pub(super) fn flush_answers(&self) {
        self.courier.flush();
    }

    /// What the writer does next; waits for it if there is `patience`.
    pub(super) fn next(&self, patience: bool) -> Next {
        let mut waiting = self.lock();
        loop {
            if waiting.jobs.iter().any(|job| job.answer.is_some()) || waiting.is_closed {
                let group = waiting.group();
                if !group.is_empty() {
                    return Next::Group(group);
                }
            }
            if !patience && !waiting.is_closed {
                return Next::Nothing;
            }
            if patience && let Some(now) = waiting.tidy.take() {
                return Next::Tidy(now);
            }
            if waiting.is_closed && waiting.detained.is_empty() {
                return Next::End;
            }
            if !patience {
                return Next::Nothing;
            }
            if let Some((folder, answer)) = waiting.backups.pop_front() {
                return Next::Backup(folder, answer);
            }
            waiting.is_writer_idle = true;
            waiting = self.for_writer.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            waiting.is_writer_idle = false;
        }
    }

    /// What waits though nobody waits for it.
    pub(super) fn lazy(&self) -> Vec<Job> {
        self.lock().group()
    }

    /// What is to go by the files next; `None` at the end.
    pub(super) fn next_large(&self) -> Option<Job> {
        let mut waiting = self.lock();
        loop {
            if let Some(job) = waiting.beside.pop_front() {
                return Some(job);
            }
            if waiting.is_closed {
                return None;
            }
            waiting = self.for_files.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Hands on what went by the files: with what was written, if it had any.
    pub(super) fn forward(&self, job: Job, written: Result<Option<Box<Encoded>>, StoreError>) {
        let mut waiting = self.lock();
        // They come in order.
        if !waiting.detained.is_empty() {
            waiting.detained.remove(0);
        }
        match written {
            Ok(encoded) => waiting.jobs.push_back(job.with(encoded)),
            Err(error) => {
                waiting.bytes -= job.bytes;
                self.courier.tell(job.answered(Err(error)).into_iter().collect());
            }
        }
        drop(waiting);
        self.wake_writer();
    }

    /// Once what else is ready has had its turn, which may have more to write.
    fn wake_writer_soon(&self, waiting: &mut Waiting) {
        if std::mem::take(&mut waiting.is_writer_idle) && !self.courier.wake_writer_soon() {
            self.wake_writer();
        }
    }

    pub(super) fn wake_writer(&self) {
        self.for_writer.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// A task's batches stay in order, and a change comes after everything before it.
    fn must_not_overtake(&self, work: &Work) -> bool {
        match work.task() {
            Some(task) => self.detained.contains(&Some(task)),
            None => !self.detained.is_empty(),
        }
    }

    /// What is committed together.
    fn group(&mut self) -> Vec<Job> {
        let mut bytes = 0;
        let mut fits = |job: &Job| {
            bytes += job.bytes;
            bytes <= GROUP_BYTES
        };
        let jobs = self.jobs.iter().take(MAX_GROUP).map_while(|job| fits(job).then_some(()));
        let count = jobs.count().max(1).min(self.jobs.len());
        self.jobs.drain(..count).collect()
    }
}
