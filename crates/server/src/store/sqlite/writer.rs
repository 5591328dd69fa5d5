//! The only writer: it takes all that waits, commits it together, notes how far it came, and only then answers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::Connection;

use super::backup;
use super::folder::Payloads;
use super::group::{Failure, Group, Ledger};
use super::queue::{Job, Next, Queue, Work};
use super::reserve::Reserve;
use super::schema::WAL_BYTES;
use super::side::Side;
use super::{Durability, Retention};
use crate::session::TaskId;
use crate::store::{Record, StoreError};

/// Bytes that are written before the database's log is copied into the database.
const CHECKPOINT_BYTES: usize = 8 * 1024 * 1024;

/// About what a job adds to the log beside its own bytes: whole pages are written.
const JOB_BYTES: usize = 4 * 1024;

/// How long to wait before the side file is tried again.
const RETRY_SIDE: Duration = Duration::from_millis(100);

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
        // Everything is synced then.
        checkpoint(connection, "TRUNCATE")
            .map_err(|error| StoreError::Failed(error.to_string()))?;
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
        self.unchecked += bytes + JOB_BYTES * jobs.len();
        for job in refused {
            job.answer(Err(full()));
        }
        match self.commit(connection, &jobs) {
            Ok(()) => jobs.into_iter().for_each(|job| job.answer(Ok(()))),
            Err(failure) => {
                tracing::debug!(%failure, jobs = jobs.len(), "a group of commits failed");
                self.commit_singly(connection, jobs);
            }
        }
        self.queue.done(bytes);
        if self.unchecked >= CHECKPOINT_BYTES {
            self.checkpoint(connection);
        }
    }

    fn commit_singly(&mut self, connection: &Connection, mut jobs: Vec<Job>) {
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
            job.answer(result);
        }
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
    fn note_full(&mut self) -> bool {
        let is_new = self.reserve.give_up();
        if is_new {
            tracing::error!("the disk is full: no new tasks are taken until there is room");
        }
        self.trouble.set(Some(full().to_string()));
        is_new
    }

    /// Commits jobs in one transaction, or none of them.
    fn commit(&mut self, connection: &Connection, jobs: &[Job]) -> Result<(), Failure> {
        self.transact(connection, |group| jobs.iter().try_for_each(|job| group.apply(&job.work)))
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
                self.note(sequence);
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

    /// Notes how far the store came, before anybody is told.
    fn note(&mut self, sequence: i64) {
        let mut has_failed = false;
        while let Err(error) = self.side.note(sequence) {
            if !std::mem::replace(&mut has_failed, true) {
                tracing::error!(%error, "the store's side file cannot be written; commits wait for it");
            }
            std::thread::sleep(RETRY_SIDE);
        }
    }

    fn tidy(&mut self, connection: &Connection, now: Timestamp) {
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
        if self.reserve.is_given_up() {
            self.checkpoint(connection);
            if self.reserve.restore() {
                tracing::info!("there is room on the disk: new tasks are taken again");
            }
        }
        if self.trouble.why().is_some() && !self.reserve.is_given_up() {
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
    match &job.work {
        Work::Append(batch) | Work::Encoded(batch, _) => {
            matches!(batch.records.first(), Some(Record::Created(_)))
        }
        Work::Keep(_) => false,
    }
}

fn full() -> StoreError {
    StoreError::Failed("the disk is full".to_owned())
}

/// Writes large payloads into their files, until the queue is closed.
pub(super) fn write_files(queue: &Queue, payloads: &Payloads, durability: Durability) {
    while let Some(job) = queue.next_large() {
        let written = match &job.work {
            Work::Append(batch) => write_beside(batch, payloads, durability),
            _ => Ok(None),
        };
        queue.forward(job, written);
    }
}

fn write_beside(
    batch: &crate::store::Batch,
    payloads: &Payloads,
    durability: Durability,
) -> Result<Option<Box<super::rows::Encoded>>, StoreError> {
    let failed = |error: &dyn std::fmt::Display| StoreError::Failed(error.to_string());
    let mut encoded = super::rows::encode(batch).map_err(|error| failed(&error))?;
    let synced = durability == Durability::Power;
    if let Err(error) = payloads.write(&encoded.files, synced) {
        encoded.files.iter().for_each(|(file, _)| payloads.delete(&file.name));
        return Err(failed(&error));
    }
    for (_, content) in &mut encoded.files {
        *content = bytes::Bytes::new();
    }
    Ok(Some(Box::new(encoded)))
}
