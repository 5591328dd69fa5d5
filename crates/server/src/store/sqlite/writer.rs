//! The only writer: it takes all that waits, commits it together, notes how far it came, and only then answers.

use std::collections::HashMap;
use std::fs::File;
use std::io::ErrorKind;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use rusqlite::Connection;

use super::backup;
use super::courier::Answered;
use super::folder::Payloads;
use super::group::{Failure, Group, Ledger};
use super::queue::{Job, Next, Queue, Work};
use super::reserve::Reserve;
use super::rows::{Encoded, encode, is_large};
use super::schema::WAL_BYTES;
use super::side::Side;
use super::{Durability, Retention};
use crate::audit::Audit;
use crate::session::TaskId;
use crate::store::{Batch, StoreError};

/// Bytes that are written before the database's log is copied into the database.
const CHECKPOINT_BYTES: usize = 8 * 1024 * 1024;

/// About what a group adds to the log beside its jobs: whole pages are written, of each table and index one at least.
const GROUP_BYTES: usize = 24 * 1024;

/// About what a job adds to the log beside its own bytes.
const JOB_BYTES: usize = 1024;

/// How long to wait before the side file is tried again.
const RETRY_SIDE: Duration = Duration::from_millis(100);

/// How often it is tried when the store is to close.
const SIDE_TRIES: u32 = 50;

/// Free pages that may stay in the database.
const FREE_PAGES: i64 = 4096;

/// Free pages that are given back at a time.
const VACUUM_PAGES: i64 = 1024;

/// Why the store cannot take new tasks, if it cannot. Cheap to clone; all clones are the same.
#[derive(Clone, Default)]
pub(super) struct Trouble(Arc<Mutex<Option<String>>>);

impl Trouble {
    pub(super) fn why(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, why: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }
}

/// The writer, beside its connection.
pub(super) struct Writer {
    pub(super) queue: Arc<Queue>,
    pub(super) ledger: Ledger,
    pub(super) side: Side,
    pub(super) payloads: Payloads,
    pub(super) reserve: Reserve,
    pub(super) retention: Retention,
    pub(super) trouble: Trouble,
    /// Where it is written down which tasks were accepted.
    pub(super) audit: Arc<OnceLock<Audit>>,
    pub(super) deletions: Deletions,
    /// What was written since the last checkpoint, about, in bytes.
    pub(super) unchecked: usize,
}

/// Files that no row names any more. While a copy is being made they stay.
#[derive(Clone, Default)]
pub(super) struct Deletions(Arc<Mutex<Doomed>>);

#[derive(Default)]
struct Doomed {
    names: Vec<String>,
    copies: usize,
}

impl Deletions {
    /// A copy is being made: nothing is deleted until [`Self::release`].
    pub(super) fn hold(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).copies += 1;
    }

    pub(super) fn release(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).copies -= 1;
    }

    fn add(&self, mut names: Vec<String>, payloads: &Payloads) {
        let mut doomed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        doomed.names.append(&mut names);
        if doomed.copies == 0 {
            doomed.names.drain(..).for_each(|name| payloads.delete(&name));
        }
    }
}

impl Writer {
    /// Writes until the queue is closed and empty.
    pub(super) fn run(mut self, connection: &Connection) -> Result<Side, StoreError> {
        loop {
            match self.queue.next(true) {
                Next::Group(jobs) => self.commit_all(connection, jobs),
                Next::Tidy(now) => self.tidy(connection, now),
                Next::Backup(folder, answer) => {
                    backup::make(&mut self, connection, &folder, answer);
                }
                Next::Nothing => {}
                Next::End => break,
            }
        }
        sync(connection).map_err(|failure| StoreError::Failed(failure.to_string()))?;
        Ok(self.side)
    }

    /// Does what waits, without waiting for more. `false` when nothing more will come.
    pub(super) fn serve(&mut self, connection: &Connection) -> bool {
        loop {
            match self.queue.next(false) {
                Next::Group(jobs) => self.commit_all(connection, jobs),
                Next::End => return false,
                _ => return true,
            }
        }
    }

    /// Commits jobs together; if that fails, one by one, the smallest first, so that as many as possible are in.
    fn commit_all(&mut self, connection: &Connection, jobs: Vec<Job>) {
        let (jobs, refused) = match self.reserve.is_given_up() {
            true => jobs.into_iter().partition(|job| !accepts(job)),
            false => (jobs, Vec::new()),
        };
        let bytes: usize = jobs.iter().chain(&refused).map(Job::bytes).sum();
        self.unchecked += GROUP_BYTES + bytes + JOB_BYTES * jobs.len();
        let refused = refused.into_iter().map(|job| self.answered(job, Err(full())));
        let mut answers: Vec<_> = refused.flatten().collect();
        match self.commit(connection, &jobs) {
            Ok(()) => answers.extend(jobs.into_iter().filter_map(|job| job.answered(Ok(())))),
            Err(failure) => {
                tracing::debug!(%failure, jobs = jobs.len(), "a group of commits failed");
                answers.extend(self.commit_singly(connection, jobs));
            }
        }
        self.queue.done(bytes, answers);
        // On a full disk it would take the room that was given up for outcomes.
        if self.unchecked >= CHECKPOINT_BYTES && !self.reserve.is_given_up() {
            self.checkpoint(connection);
        }
    }

    fn commit_singly(&mut self, connection: &Connection, mut jobs: Vec<Job>) -> Vec<Answered> {
        // Batches of one task have the same place, and so stay in order; changes come after all batches.
        let mut sizes: HashMap<TaskId, usize> = HashMap::new();
        for job in &jobs {
            if let Some(task) = job.work.task() {
                *sizes.entry(task).or_default() += job.bytes();
            }
        }
        jobs.sort_by_key(|job| match job.work.task() {
            Some(task) => (sizes.get(&task).copied().unwrap_or(0), task),
            None => (usize::MAX, TaskId::from_bytes([0xff; 16])),
        });
        let mut failed: Vec<(TaskId, StoreError)> = Vec::new();
        let mut answers = Vec::new();
        for job in jobs {
            let task = job.work.task();
            let before = failed.iter().find(|(other, _)| Some(*other) == task);
            let result = match before {
                Some((_, error)) => Err(error.clone()),
                None => self.commit_one(connection, &job),
            };
            if let (Err(error), Some(task)) = (&result, task) {
                failed.push((task, error.clone()));
            }
            answers.extend(self.answered(job, result));
        }
        answers
    }

    /// What a job's waiter is told. What it had in files goes if it is not in.
    fn answered(&self, job: Job, result: Result<(), StoreError>) -> Option<Answered> {
        if let (Err(_), Work::Encoded(_, encoded)) = (&result, &job.work) {
            encoded.files.iter().for_each(|(file, _)| self.payloads.delete(&file.name));
        }
        job.answered(result)
    }

    fn commit_one(&mut self, connection: &Connection, job: &Job) -> Result<(), StoreError> {
        if self.reserve.is_given_up() && accepts(job) {
            return Err(full());
        }
        let Err(failure) = self.commit(connection, std::slice::from_ref(job)) else {
            return Ok(());
        };
        if !failure.is_full() || !self.note_full() || accepts(job) {
            return Err(StoreError::Failed(failure.to_string()));
        }
        let again = self.commit(connection, std::slice::from_ref(job));
        again.map_err(|failure| StoreError::Failed(failure.to_string()))
    }

    /// The disk is full. `true` if it was not before, so that there is room now.
    fn note_full(&self) -> bool {
        self.trouble.set(Some(full().to_string()));
        self.reserve.give_up()
    }

    /// Commits jobs in one transaction, or none of them. On return it is written down which tasks were accepted.
    fn commit(&mut self, connection: &Connection, jobs: &[Job]) -> Result<(), Failure> {
        self.transact(connection, |group| jobs.iter().try_for_each(|job| group.apply(&job.work)))?;
        let mut accepted = jobs.iter().filter_map(|job| job.work.accepted()).peekable();
        if let Some(audit) = self.audit.get()
            && accepted.peek().is_some()
        {
            audit.write_accepted(accepted.map(|task| &**task));
        }
        Ok(())
    }

    pub(super) fn transact<T>(
        &mut self,
        connection: &Connection,
        change: impl FnOnce(&mut Group<'_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let written = Group::begin(connection, &mut self.ledger).and_then(|mut group| {
            let changed = change(&mut group)?;
            Ok((changed, group.commit()?))
        });
        match written {
            Ok((changed, sequence)) => {
                self.note(sequence)?;
                if !self.reserve.is_given_up() {
                    self.trouble.set(None);
                }
                Ok(changed)
            }
            Err(failure) => {
                // Some errors end the transaction by themselves: what came next would be committed row by row.
                if !connection.is_autocommit()
                    && let Err(error) = connection.execute_batch("ROLLBACK")
                {
                    tracing::error!(%error, "a transaction could not be taken back");
                }
                self.trouble.set(Some(failure.to_string()));
                Err(failure)
            }
        }
    }

    /// Notes how far the store came, before anybody is told. Tries until it succeeds, or the store is to close.
    fn note(&mut self, sequence: i64) -> Result<(), Failure> {
        let mut tries = 0;
        while let Err(error) = self.side.note(sequence) {
            let failure = Failure::Side(error);
            if tries >= SIDE_TRIES && self.queue.is_closed() {
                return Err(failure);
            }
            if tries == 0 {
                tracing::error!(%failure, "nobody is told of commits until it can be");
                self.trouble.set(Some(failure.to_string()));
            }
            tries += 1;
            std::thread::sleep(RETRY_SIDE);
        }
        Ok(())
    }

    pub(super) fn tidy(&mut self, connection: &Connection, now: Timestamp) {
        loop {
            let lazy = self.queue.lazy();
            if lazy.is_empty() {
                break;
            }
            self.commit_all(connection, lazy);
        }
        self.recover_room(connection);
        if let Err(failure) = self.let_go(connection, now) {
            tracing::debug!(%failure, "history could not be let go of");
        }
    }

    /// Looks whether a store that could not write can again.
    fn recover_room(&mut self, connection: &Connection) {
        if self.reserve.is_given_up() && !self.reserve.restore() {
            return self.trouble.set(Some(full().to_string()));
        }
        if self.trouble.why().is_some() {
            let _it_is_still_in_trouble = self.commit(connection, &[]);
        }
    }

    /// Lets go of what is over the bounds, in bites, between which others are served.
    fn let_go(&mut self, connection: &Connection, now: Timestamp) -> Result<(), Failure> {
        if is_any(connection, "SELECT 1 FROM tasks WHERE undelivered_until <= ?1 LIMIT 1", now)? {
            while self.transact(connection, |group| group.expire(now))? && self.serve(connection) {}
        }
        while self.has_too_much(connection, now)? {
            let retention = self.retention;
            let (files, has_more) =
                self.transact(connection, |group| group.retain(now, &retention))?;
            self.deletions.add(files, &self.payloads);
            if !has_more || !self.serve(connection) {
                break;
            }
        }
        self.deletions.add(Vec::new(), &self.payloads);
        let free: i64 = connection.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
        if free > FREE_PAGES {
            connection.pragma(None, "incremental_vacuum", VACUUM_PAGES, |_| Ok(()))?;
        }
        Ok(())
    }

    fn has_too_much(&self, connection: &Connection, now: Timestamp) -> Result<bool, Failure> {
        let Retention { age, tasks, bytes } = self.retention;
        let totals = self.ledger.totals;
        let over = |is: i64, may_be: usize| usize::try_from(is).unwrap_or(0) > may_be;
        if over(totals.ended, tasks) || over(totals.ended_bytes, bytes) {
            return Ok(true);
        }
        let oldest = now.checked_sub(age).unwrap_or(Timestamp::MIN);
        let sql = "SELECT 1 FROM (SELECT ended_at FROM tasks WHERE ended_at IS NOT NULL \
            AND undelivered_until IS NULL ORDER BY num LIMIT 1) WHERE ended_at < ?1";
        Ok(is_any(connection, sql, oldest)?)
    }

    /// Copies the log into the database; a large one is cut.
    fn checkpoint(&mut self, connection: &Connection) {
        self.unchecked = 0;
        let checked = checkpoint(connection, "PASSIVE").and_then(|pages| {
            let bytes = pages * page_bytes(connection)?;
            if bytes > WAL_BYTES { checkpoint(connection, "TRUNCATE") } else { Ok(pages) }
        });
        if let Err(error) = checked {
            tracing::debug!(%error, "the database's log could not be copied");
        }
    }
}

/// Sees to it that everything is on the disk.
fn sync(connection: &Connection) -> Result<(), Failure> {
    let Err(error) = checkpoint(connection, "TRUNCATE") else { return Ok(()) };
    let failure = Failure::from(error);
    if !failure.is_full() {
        return Err(failure);
    }
    // The log cannot be copied into a database that cannot grow, so it stays. Nobody locks it, unlike the
    // database.
    let log = connection.path().map(|path| format!("{path}-wal"));
    let synced = log.map_or(Ok(()), |log| File::open(log)?.sync_all());
    synced.map_err(|_| failure)
}

/// Copies the log into the database. Returns how many pages it has.
fn checkpoint(connection: &Connection, how: &str) -> rusqlite::Result<u64> {
    let sql = format!("PRAGMA wal_checkpoint({how})");
    let pages: i64 = connection.query_row(&sql, [], |row| row.get(1))?;
    Ok(u64::try_from(pages).unwrap_or(0))
}

fn page_bytes(connection: &Connection) -> rusqlite::Result<u64> {
    let bytes: i64 = connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
    Ok(u64::try_from(bytes).unwrap_or(0))
}

fn is_any(connection: &Connection, sql: &str, at: Timestamp) -> rusqlite::Result<bool> {
    connection.prepare_cached(sql)?.exists([at.as_microsecond()])
}

/// Whether a job accepts a task.
fn accepts(job: &Job) -> bool {
    job.work.accepted().is_some()
}

fn full() -> StoreError {
    StoreError::Failed("the disk is full".to_owned())
}

/// Writes large payloads into their files, until the queue is closed.
pub(super) fn write_files(
    queue: &Queue,
    payloads: &Payloads,
    reserve: &Reserve,
    durability: Durability,
) {
    while let Some(job) = queue.next_large() {
        let written = match &job.work {
            Work::Append(batch) if is_large(batch) => {
                let may_take_reserve = !accepts(&job);
                write_beside(batch, payloads, durability, || may_take_reserve && reserve.give_up())
            }
            _ => Ok(None),
        };
        queue.forward(job, written);
    }
}

/// Writes a batch's large payloads into files; once more, if the disk is full and `make_room` makes room.
fn write_beside(
    batch: &Batch,
    payloads: &Payloads,
    durability: Durability,
    make_room: impl FnOnce() -> bool,
) -> Result<Option<Box<Encoded>>, StoreError> {
    let failed = |error: &dyn std::fmt::Display| StoreError::Failed(error.to_string());
    let mut encoded = encode(batch).map_err(|error| failed(&error))?;
    let synced = durability == Durability::Power;
    let mut written = payloads.write(&encoded.files, synced);
    if written.as_ref().is_err_and(|error| error.kind() == ErrorKind::StorageFull) && make_room() {
        written = payloads.write(&encoded.files, synced);
    }
    if let Err(error) = written {
        encoded.files.iter().for_each(|(file, _)| payloads.delete(&file.name));
        return Err(failed(&error));
    }
    for (_, content) in &mut encoded.files {
        *content = Bytes::new();
    }
    Ok(Some(Box::new(encoded)))
}

/// Sees to it that nobody waits for a writer that has ended, for whatever reason.
pub(super) struct Ending {
    pub(super) queue: Arc<Queue>,
    pub(super) trouble: Trouble,
}

impl Drop for Ending {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.trouble.set(Some("its writer panicked; see the log".to_owned()));
        }
        self.queue.abandon();
    }
}
