//! What is read of tasks: a journal, or a page of a list, for which no journal is read.

use std::sync::Arc;
use std::time::Duration;

use aip::message::OnDisconnect;
use aip::{ClientId, SessionId, TaskName};
use jiff::Timestamp;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row, named_params, params};

use super::folder::Payloads;
use super::group::{OpenTable, ending_of, key, last_key, seal};
use super::rows::{Decoder, damaged};
use crate::session::{CallResult, Finish, KeyName, Requester, Task, TaskId, Terms};
use crate::store::{Ended, Query, Record, Summary};

/// Tasks that one statement looks at; a query of more is several.
const LOOK_AT: usize = 4096;

/// A journal as it was read.
pub(super) struct Read {
    /// The task's number.
    pub(super) num: i64,
    /// How many batches there are.
    pub(super) batches: i64,
    pub(super) records: Vec<Record>,
    /// Whether some are missing or damaged.
    pub(super) is_damaged: bool,
    /// Whether the acceptance is one of them.
    pub(super) is_made_up: bool,
}

/// Reads a task's journal. One of which not even the acceptance can be read is made up of its columns.
pub(super) fn journal(
    connection: &Connection,
    payloads: &Payloads,
    task: TaskId,
) -> rusqlite::Result<Option<Read>> {
    // Both tables as of the same moment.
    let transaction = connection.unchecked_transaction()?;
    let mut statement = transaction.prepare_cached(TASK)?;
    let found = statement.query_row([&task.as_bytes()[..]], |row| first(row, payloads, task));
    let Some((mut read, ended)) = found.optional()? else { return Ok(None) };
    let mut statement = transaction.prepare_cached(RECORDS)?;
    let mut rows = statement.query([key(read.num, 0), last_key(read.num)])?;
    while let Some(row) = rows.next()? {
        read.add(row, payloads, task)?;
    }
    let has_end = matches!(read.records.last(), Some(Record::Ended(_)));
    if let Some(ended) = ended.filter(|_| !has_end) {
        read.is_damaged = true;
        read.records.push(Record::Ended(Arc::new(ended)));
    }
    Ok(Some(read))
}

/// Reads a task's own row: its acceptance with what followed at once, and how it ended.
fn first(
    row: &Row<'_>,
    payloads: &Payloads,
    id: TaskId,
) -> rusqlite::Result<(Read, Option<Ended>)> {
    let ended = ended(row)?;
    let (json, request, body) = (bytes(row, "task")?, bytes(row, "request")?, bytes(row, "body")?);
    let is_sealed = seal(id, 0, &[json, request, body]) == row.get::<_, u32>("crc")?;
    let file = |file: &_| payloads.read(file);
    let mut decoder = Decoder { file: &file, is_damaged: !is_sealed, has_found_damage: !is_sealed };
    let request = String::from_utf8_lossy(request);
    let task = decoder.task(id, json, Some(&request));
    let is_made_up = task.is_err();
    let task = task.or_else(|_| placeholder(row, id))?;
    let mut records = vec![Record::Created(Arc::new(task))];
    match decoder.records(body) {
        Ok(more) => records.extend(more),
        Err(_) => decoder.has_found_damage = true,
    }
    let is_damaged = decoder.has_found_damage || is_made_up;
    Ok((Read { num: row.get("num")?, batches: 1, records, is_damaged, is_made_up }, ended))
}

impl Read {
    /// Adds another batch.
    fn add(&mut self, row: &Row<'_>, payloads: &Payloads, id: TaskId) -> rusqlite::Result<()> {
        let n = row.get::<_, i64>("at")? - key(self.num, 0);
        let body = bytes(row, "body")?;
        let is_sealed = seal(id, n, &[body]) == row.get::<_, u32>("crc")?;
        let file = |file: &_| payloads.read(file);
        let is_missing = n != self.batches;
        let has_found_damage = !is_sealed || is_missing;
        let mut decoder = Decoder { file: &file, is_damaged: !is_sealed, has_found_damage };
        if is_missing {
            self.records.push(unreadable(&self.records));
        }
        match decoder.records(body) {
            Ok(records) => self.records.extend(records),
            Err(_) => {
                decoder.has_found_damage = true;
                self.records.push(unreadable(&self.records));
            }
        }
        self.is_damaged |= decoder.has_found_damage;
        self.batches = n + 1;
        Ok(())
    }
}

/// Stands in a journal where a batch is missing or cannot be read.
fn unreadable(before: &[Record]) -> Record {
    let at = before.iter().rev().find_map(|record| match record {
        Record::Created(task) => Some(task.created_at),
        Record::Noted { at, .. }
        | Record::Decided { at, .. }
        | Record::Cancelling { at, .. }
        | Record::Answered { at, .. } => Some(*at),
        Record::Readdressed { .. } | Record::Ended(_) => None,
    });
    let mut result = CallResult::failure(None, "This part of the journal is damaged");
    result.result = Some(damaged(None));
    Record::Answered { at: at.unwrap_or_default(), results: Arc::new([result]) }
}

/// A task as far as its columns tell, where its row is damaged.
fn placeholder(row: &Row<'_>, id: TaskId) -> rusqlite::Result<Task> {
    const DAMAGED: &str = "damaged";
    let text = |name| row.get::<_, String>(name).unwrap_or_default();
    let wrong = |_| rusqlite::Error::InvalidQuery;
    let key: Arc<str> = text("key").into();
    let is_shared = row.get("is_shared").unwrap_or(true);
    Ok(Task {
        id,
        session_id: SessionId::new(&id.to_string()).map_err(wrong)?,
        task_name: TaskName::sanitize(&text("task_name"))
            .or_else(|| TaskName::sanitize(DAMAGED))
            .ok_or(rusqlite::Error::InvalidQuery)?,
        request: DAMAGED.to_owned(),
        requester: Requester::Http(DAMAGED.into()),
        device: ClientId::new(&text("device"))
            .or_else(|_| ClientId::new(DAMAGED))
            .map_err(wrong)?,
        agent_name: String::new(),
        command_timeout: Duration::ZERO,
        created_at: time(row.get("created_at").unwrap_or_default()),
        key: KeyName { name: key.clone(), id: (!is_shared).then_some(key) },
        terms: Terms { on_disconnect: OnDisconnect::Continue, ..Terms::default() },
    })
}

/// How a task ended, as its columns tell: without what it returned.
fn ended(row: &Row<'_>) -> rusqlite::Result<Option<Ended>> {
    let Some(at) = row.get::<_, Option<i64>>("ended_at")? else { return Ok(None) };
    let error = row.get::<_, Option<String>>("error")?;
    Ok(Some(Ended {
        at: time(at),
        ending: ending_of(row.get("ending")?),
        error: error.map(|error| error.as_str().into()),
        finish: Finish::Results,
        is_unfetched: false,
        undelivered_until: row.get::<_, Option<i64>>("undelivered_until")?.map(time),
    }))
}

/// A stretch of a list.
pub(super) struct Stretch {
    pub(super) found: Vec<Summary>,
    /// Where to go on, if there is more.
    pub(super) next: Option<TaskId>,
}

/// Looks at a stretch of tasks, newest first.
pub(super) fn look(
    connection: &Connection,
    open: &OpenTable,
    query: &Query,
    before: Option<TaskId>,
    limit: usize,
) -> rusqlite::Result<Stretch> {
    let before = before.map_or([0xff; 16], |task| *task.as_bytes());
    let stretch = i64::try_from(LOOK_AT).unwrap_or(i64::MAX);
    let is_open = query.is_over == Some(false);
    let last: Option<[u8; 16]> = match is_open {
        true => None,
        false => connection
            .prepare_cached(END_OF_STRETCH)?
            .query_row(params![&before[..], stretch], |row| row.get(0))
            .optional()?,
    };
    let sql = if is_open { OPEN_PAGE } else { PAGE };
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(named_params! {
        ":before": &before[..],
        ":from": last.as_ref().map_or(&[][..], |last| &last[..]),
        ":device": query.device.as_ref().map(ClientId::as_str),
        ":name": query.task_name.as_deref(),
        ":key": query.key.as_deref(),
        ":is_over": query.is_over,
        ":limit": i64::try_from(limit).unwrap_or(i64::MAX),
    })?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(summary(connection, row, open)?);
    }
    Ok(Stretch { found, next: last.map(TaskId::from_bytes) })
}

fn summary(connection: &Connection, row: &Row<'_>, open: &OpenTable) -> rusqlite::Result<Summary> {
    let id = TaskId::from_bytes(row.get("id")?);
    let mut decoder = Decoder { file: &|_| None, is_damaged: false, has_found_damage: false };
    // One that stands in a file is left out.
    let head = row.get_ref("head")?.as_str().ok().filter(|head| !head.is_empty());
    let task = decoder.task(id, bytes(row, "task")?, head).or_else(|_| placeholder(row, id))?;
    let task = Arc::new(task);
    let (mut ended, mut steps) = (ended(row)?, steps(row)?);
    if ended.is_none() {
        match open.find(id) {
            Some(open) => steps = open.steps,
            // It ended since the row was read.
            None => {
                let again = |row: &Row<'_>| Ok((self::ended(row)?, self::steps(row)?));
                let num = row.get::<_, i64>("num")?;
                let found = connection.prepare_cached(AGAIN)?.query_row([num], again).optional()?;
                (ended, steps) = found.unwrap_or_default();
            }
        }
    }
    Ok(Summary { task, steps, ended: ended.map(Arc::new) })
}

fn steps(row: &Row<'_>) -> rusqlite::Result<usize> {
    let steps = row.get::<_, Option<i64>>("steps")?.unwrap_or(0);
    Ok(usize::try_from(steps).unwrap_or(0))
}

/// A column's bytes, text or not.
fn bytes<'a>(row: &'a Row<'_>, name: &str) -> rusqlite::Result<&'a [u8]> {
    Ok(match row.get_ref(name)? {
        ValueRef::Blob(bytes) | ValueRef::Text(bytes) => bytes,
        _ => &[],
    })
}

/// A time, as the database has it.
pub(super) fn time(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(micros).unwrap_or_default()
}

const TASK: &str = "SELECT * FROM tasks WHERE id = ?1";

const RECORDS: &str = "SELECT at, crc, body FROM records WHERE at BETWEEN ?1 AND ?2 ORDER BY at";

const AGAIN: &str =
    "SELECT steps, ended_at, ending, error, undelivered_until FROM tasks WHERE num = ?1";

/// The oldest task that one statement looks at, unless there are fewer.
const END_OF_STRETCH: &str =
    "SELECT id FROM tasks WHERE id < ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2 - 1";

const PAGE: &str = "SELECT num, id, created_at, device, task_name, key, is_shared, steps, ended_at, ending, error, \
    undelivered_until, task, \
    CASE WHEN octet_length(request) <= 16384 THEN request ELSE substr(request, 1, 1000) END AS head \
    FROM tasks INDEXED BY tasks_by_id \
    WHERE id < :before AND id >= :from \
    AND (:device IS NULL OR device = :device) AND (:name IS NULL OR task_name = :name) \
    AND (:key IS NULL OR (key = :key AND is_shared = 0)) \
    AND (:is_over IS NULL OR (ended_at IS NOT NULL) = :is_over) \
    ORDER BY id DESC LIMIT :limit";

const OPEN_PAGE: &str = "SELECT num, id, created_at, device, task_name, key, is_shared, steps, ended_at, ending, error, \
    undelivered_until, task, \
    CASE WHEN octet_length(request) <= 16384 THEN request ELSE substr(request, 1, 1000) END AS head \
    FROM tasks INDEXED BY open_tasks \
    WHERE ended_at IS NULL AND id < :before AND id >= :from \
    AND (:device IS NULL OR device = :device) AND (:name IS NULL OR task_name = :name) \
    AND (:key IS NULL OR (key = :key AND is_shared = 0)) \
    AND :is_over = 0 \
    ORDER BY id DESC LIMIT :limit";
