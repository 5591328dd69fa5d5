//! One transaction: what is committed together, and what the writer knows once it is.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};

use super::Retention;
use super::queue::Work;
use super::rows::{Encoded, EncodedTask, encode};
use super::schema::BATCH_BITS;
use crate::session::{IdentityRecord, Incarnation, LowHalf, TaskId};
use crate::store::{Batch, Change, Ended, Ending, KnownRequest, Record};

/// Tasks that are let go of in one transaction.
const BITE: usize = 64;

/// Why something was not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{0}")]
    Database(#[from] rusqlite::Error),
    #[error("{0}")]
    Encoding(#[from] serde_json::Error),
    #[error("its journal has as many batches as fit")]
    TooLong,
    #[error("how far the store came could not be noted: {0}")]
    Side(std::io::Error),
}

impl Failure {
    /// Whether the disk is full.
    pub(super) fn is_full(&self) -> bool {
        let Self::Database(error) = self else { return false };
        error.sqlite_error_code() == Some(ErrorCode::DiskFull)
            || error.sqlite_extended_error_code() == Some(rusqlite::ffi::SQLITE_IOERR_SHMSIZE)
    }
}

/// What is known of an open task, so that nothing has to be read to go on with it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Open {
    /// Its number.
    pub(super) num: i64,
    /// The number of its next batch.
    pub(super) next: i64,
    /// How many steps were decided.
    pub(super) steps: usize,
    /// What its records take, about, in bytes.
    pub(super) bytes: usize,
}

type OpenTasks = HashMap<TaskId, Open, BuildHasherDefault<LowHalf>>;

/// The open tasks, as committed. Cheap to clone; all clones are the same.
#[derive(Clone, Default)]
pub(super) struct OpenTable(Arc<Mutex<OpenTasks>>);

impl OpenTable {
    pub(super) fn find(&self, task: TaskId) -> Option<Open> {
        self.lock().get(&task).copied()
    }

    pub(super) fn insert(&self, task: TaskId, open: Open) {
        self.lock().insert(task, open);
    }

    fn lock(&self) -> MutexGuard<'_, OpenTasks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Numbers that change with each transaction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// Of the last commit.
    pub(super) sequence: i64,
    /// Of the next task.
    pub(super) next_num: i64,
    /// Ended tasks that are history: those that wait for their acknowledgement are not.
    pub(super) ended: i64,
    /// What they take, about, in bytes.
    pub(super) ended_bytes: i64,
}

/// What the writer knows without looking.
#[derive(Default)]
pub(super) struct Ledger {
    pub(super) totals: Totals,
    pub(super) open: OpenTable,
    /// The identities that are kept: of others the newest COMMAND is not.
    pub(super) identities: std::collections::HashSet<Incarnation>,
}

/// A transaction that has begun.
pub(super) struct Group<'a> {
    connection: &'a Connection,
    ledger: &'a mut Ledger,
    totals: Totals,
    /// Tasks that it changed; `None` is over.
    changed: HashMap<TaskId, Option<Open>, BuildHasherDefault<LowHalf>>,
    newest: HashMap<Incarnation, String>,
}

impl<'a> Group<'a> {
    /// Begins one.
    pub(super) fn begin(
        connection: &'a Connection,
        ledger: &'a mut Ledger,
    ) -> Result<Self, Failure> {
        connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let totals = ledger.totals;
        Ok(Self { connection, ledger, totals, changed: HashMap::default(), newest: HashMap::new() })
    }

    /// Commits it. Returns its number.
    pub(super) fn commit(mut self) -> Result<i64, Failure> {
        for (device, response_id) in &self.newest {
            self.run(RAISE_NEWEST, params![number(*device), response_id])?;
        }
        self.totals.sequence += 1;
        let Totals { sequence, ended, ended_bytes, .. } = self.totals;
        self.run(NOTE_TOTALS, params![sequence, ended, ended_bytes])?;
        self.run("COMMIT", [])?;
        self.ledger.totals = self.totals;
        let mut open = self.ledger.open.lock();
        for (task, changed) in self.changed.drain() {
            match changed {
                Some(changed) => open.insert(task, changed),
                None => open.remove(&task),
            };
        }
        Ok(sequence)
    }

    pub(super) fn apply(&mut self, work: &Work) -> Result<(), Failure> {
        match work {
            Work::Append(batch) => self.append(batch, &encode(batch)?),
            Work::Encoded(batch, encoded) => self.append(batch, encoded),
            Work::Keep(Change::Identity(identity)) => self.keep(identity),
            Work::Keep(Change::Forget(identity)) => self.forget(*identity),
            Work::Keep(Change::Delivered(task)) => self.deliver(*task),
        }
    }

    fn append(&mut self, batch: &Batch, encoded: &Encoded) -> Result<(), Failure> {
        let Some(mut open) = self.append_rows(batch.task, encoded)? else { return Ok(()) };
        for (file, _) in &encoded.files {
            self.run(
                "INSERT INTO files (task, name) VALUES (?1, ?2)",
                params![open.num, file.name],
            )?;
        }
        open.bytes += batch.bytes();
        for record in &batch.records {
            open.steps += usize::from(matches!(record, Record::Decided { .. }));
            self.note_sent(record);
        }
        let is_over = match batch.records.last() {
            Some(Record::Ended(ended)) => {
                self.end(open, ended)?;
                true
            }
            _ => false,
        };
        self.changed.insert(batch.task, (!is_over).then_some(open));
        Ok(())
    }

    /// `None` when nothing is known of the task any more: then it is dropped.
    fn append_rows(&mut self, task: TaskId, encoded: &Encoded) -> Result<Option<Open>, Failure> {
        if let Some(created) = &encoded.created {
            return self.create(created, &encoded.body).map(Some);
        }
        let known = self.changed.get(&task).copied();
        let Some(mut open) = known.unwrap_or_else(|| self.ledger.open.find(task)) else {
            return Ok(None);
        };
        if open.next >= 1 << BATCH_BITS {
            return Err(Failure::TooLong);
        }
        let crc = seal(task, open.next, &[&encoded.body]);
        self.run(INSERT_RECORD, params![key(open.num, open.next), crc, encoded.body])?;
        open.next += 1;
        Ok(Some(open))
    }

    fn create(&mut self, created: &EncodedTask, body: &[u8]) -> Result<Open, Failure> {
        let EncodedTask { task, json, .. } = created;
        let num = self.totals.next_num;
        let known = KnownRequest::of(task);
        let request = created.request();
        self.run(
            INSERT_TASK,
            params![
                num,
                &task.id.as_bytes()[..],
                task.created_at.as_microsecond(),
                task.device.as_str(),
                task.task_name.as_str(),
                &**task.key.public(),
                task.key.id.is_none(),
                task.terms.requester.map(number),
                known.as_ref().map(|known| known.request_id.as_str()),
                known.as_ref().map(|known| known.hash.to_string()),
                seal(task.id, 0, &[json, request.as_bytes(), body]),
                json,
                request,
                body,
            ],
        )?;
        self.totals.next_num += 1;
        Ok(Open { num, next: 1, steps: 0, bytes: 0 })
    }

    fn end(&mut self, open: Open, ended: &Ended) -> Result<(), Failure> {
        let bytes = i64::try_from(open.bytes).unwrap_or(i64::MAX);
        self.run(
            END_TASK,
            params![
                open.num,
                i64::try_from(open.steps).unwrap_or(i64::MAX),
                ended.at.as_microsecond(),
                ending_number(ended.ending),
                ended.error.as_deref(),
                bytes,
                ended.undelivered_until.map(Timestamp::as_microsecond),
            ],
        )?;
        if ended.undelivered_until.is_none() {
            self.totals.ended += 1;
            self.totals.ended_bytes += bytes;
        }
        Ok(())
    }

    /// Ends a task of whose acceptance nothing can be read.
    pub(super) fn end_unreadable(&mut self, num: i64, at: Timestamp) -> Result<(), Failure> {
        let error = "Its record in the store is damaged; its outcome is unknown";
        let at = at.as_microsecond();
        self.run(
            END_TASK,
            params![num, 0, at, ending_number(Ending::Failed), error, 0, None::<i64>],
        )?;
        self.totals.ended += 1;
        Ok(())
    }

    fn note_sent(&mut self, record: &Record) {
        let Some((device, response_id)) = record.sent() else { return };
        if !self.ledger.identities.contains(&device) {
            return;
        }
        let newest = self.newest.entry(device).or_default();
        if newest.as_str() < response_id.as_str() {
            response_id.as_str().clone_into(newest);
        }
    }

    fn keep(&mut self, identity: &IdentityRecord) -> Result<(), Failure> {
        let body = serde_json::to_vec(identity)?;
        let id = number(identity.id);
        self.run(KEEP_IDENTITY, params![id, seal_identity(id, &body), body])?;
        if let Some(newest) = &identity.newest {
            self.run(RAISE_NEWEST, params![id, newest.as_str()])?;
        }
        // Were this not committed, a COMMAND would be noted of an identity that is not kept: no harm.
        self.ledger.identities.insert(identity.id);
        Ok(())
    }

    fn forget(&mut self, identity: Incarnation) -> Result<(), Failure> {
        self.newest.remove(&identity);
        let id = number(identity);
        self.run("DELETE FROM identities WHERE id = ?1", [id])?;
        self.run("DELETE FROM newest WHERE id = ?1", [id])?;
        self.ledger.identities.remove(&identity);
        Ok(())
    }

    /// An outcome that was acknowledged is history.
    fn deliver(&mut self, task: TaskId) -> Result<(), Failure> {
        let mut statement = self.connection.prepare_cached(DELIVER)?;
        let id = &task.as_bytes()[..];
        let bytes = statement.query_row([id], |row| row.get::<_, i64>(0)).optional()?;
        self.add_history(bytes.into_iter());
        Ok(())
    }

    /// So are some of those that nobody acknowledged in time. `true` when there may be more.
    pub(super) fn expire(&mut self, now: Timestamp) -> Result<bool, Failure> {
        let mut statement = self.connection.prepare_cached(EXPIRE)?;
        let limit = i64::try_from(BITE).unwrap_or(i64::MAX);
        let expired =
            statement.query_map(params![now.as_microsecond(), limit], |row| row.get(0))?;
        let expired: Vec<i64> = expired.collect::<Result<_, _>>()?;
        let is_whole_bite = expired.len() == BITE;
        self.add_history(expired.into_iter());
        Ok(is_whole_bite)
    }

    fn add_history(&mut self, bytes: impl Iterator<Item = i64>) {
        for bytes in bytes {
            self.totals.ended += 1;
            self.totals.ended_bytes += bytes;
        }
    }

    /// Lets go of some of the oldest tasks that are over the bounds. Returns the names of their files, and whether
    /// there may be more to let go.
    pub(super) fn retain(
        &mut self,
        now: Timestamp,
        retention: &Retention,
    ) -> Result<(Vec<String>, bool), Failure> {
        let oldest = now.checked_sub(retention.age).unwrap_or(Timestamp::MIN).as_microsecond();
        let mut statement = self.connection.prepare_cached(OLDEST)?;
        let limit = i64::try_from(BITE).unwrap_or(i64::MAX);
        let found = statement
            .query_map([limit], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
            .collect::<Result<Vec<(i64, i64, i64)>, _>>()?;
        let mut files = Vec::new();
        for (num, ended_at, bytes) in &found {
            if ended_at >= &oldest && !self.is_too_much(retention) {
                return Ok((files, false));
            }
            files.append(&mut self.delete(*num)?);
            self.totals.ended -= 1;
            self.totals.ended_bytes -= bytes;
        }
        Ok((files, found.len() == BITE))
    }

    fn is_too_much(&self, retention: &Retention) -> bool {
        let over = |is: i64, may_be: usize| usize::try_from(is).unwrap_or(0) > may_be;
        over(self.totals.ended, retention.tasks) || over(self.totals.ended_bytes, retention.bytes)
    }

    /// Deletes a task. Returns the names of its files.
    fn delete(&mut self, num: i64) -> Result<Vec<String>, Failure> {
        let mut statement =
            self.connection.prepare_cached("DELETE FROM files WHERE task = ?1 RETURNING name")?;
        let files = statement.query_map([num], |row| row.get(0))?.collect::<Result<_, _>>()?;
        self.run("DELETE FROM records WHERE at BETWEEN ?1 AND ?2", [key(num, 0), last_key(num)])?;
        self.run("DELETE FROM tasks WHERE num = ?1", [num])?;
        Ok(files)
    }

    fn run(&self, sql: &str, params: impl rusqlite::Params) -> Result<(), rusqlite::Error> {
        self.connection.prepare_cached(sql)?.execute(params).map(drop)
    }
}

const INSERT_TASK: &str = "INSERT INTO tasks (num, id, created_at, device, task_name, key, is_shared, owner, \
    request_id, hash, crc, task, request, body) \
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)";

const INSERT_RECORD: &str = "INSERT INTO records (at, crc, body) VALUES (?1, ?2, ?3)";

const END_TASK: &str = "UPDATE tasks SET steps = ?2, ended_at = ?3, ending = ?4, error = ?5, bytes = ?6, \
    undelivered_until = ?7 WHERE num = ?1";

const NOTE_TOTALS: &str = "UPDATE meta SET sequence = ?1, ended = ?2, ended_bytes = ?3";

const KEEP_IDENTITY: &str = "INSERT OR REPLACE INTO identities (id, crc, body) VALUES (?1, ?2, ?3)";

/// A later one never lowers it.
const RAISE_NEWEST: &str = "INSERT INTO newest (id, response_id) VALUES (?1, ?2) ON CONFLICT (id) \
    DO UPDATE SET response_id = excluded.response_id WHERE excluded.response_id > response_id";

const DELIVER: &str = "UPDATE tasks SET undelivered_until = NULL \
    WHERE id = ?1 AND undelivered_until IS NOT NULL RETURNING bytes";

const EXPIRE: &str = "UPDATE tasks SET undelivered_until = NULL WHERE num IN \
    (SELECT num FROM tasks WHERE undelivered_until IS NOT NULL AND undelivered_until <= ?1 LIMIT ?2) \
    RETURNING bytes";

const OLDEST: &str = "SELECT num, ended_at, bytes FROM tasks \
    WHERE ended_at IS NOT NULL AND undelivered_until IS NULL ORDER BY num LIMIT ?1";

/// The number of an identity, as the database has it.
pub(super) const fn number(identity: Incarnation) -> i64 {
    identity.0.cast_signed()
}

/// The key of a batch's row.
pub(super) const fn key(num: i64, n: i64) -> i64 {
    (num << BATCH_BITS) + n
}

/// The greatest key of a task's rows.
pub(super) const fn last_key(num: i64) -> i64 {
    key(num + 1, 0) - 1
}

/// The checksum over what stands in a row, and where it belongs.
pub(super) fn seal(task: TaskId, n: i64, parts: &[&[u8]]) -> u32 {
    let crc = crc32c::crc32c_append(crc32c::crc32c(task.as_bytes()), &n.to_le_bytes());
    parts.iter().fold(crc, |crc, part| crc32c::crc32c_append(crc, part))
}

/// The checksum over the row of an identity.
pub(super) fn seal_identity(id: i64, body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&id.to_le_bytes()), body)
}

/// How a task ended, as the database has it.
pub(super) const fn ending_number(ending: Ending) -> i64 {
    match ending {
        Ending::Completed => 0,
        Ending::Failed => 1,
        Ending::Cancelled => 2,
    }
}

/// The same, read again.
pub(super) const fn ending_of(number: i64) -> Ending {
    match number {
        0 => Ending::Completed,
        2 => Ending::Cancelled,
        _ => Ending::Failed,
    }
}
