//! What a store that comes back knows: read once, before anything is written.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::{Connection, Row, params};

use super::folder::Payloads;
use super::group::{Ledger, Open, Totals, seal_identity};
use super::read::{self, Read, time};
use crate::session::{IdentityRecord, Incarnation, RequestHash, TaskId};
use crate::store::{
    KnownRequest, OpenJournal, REQUESTS_KEPT, Record, Recovered, Summary, Undelivered,
};

/// What is kept beside the tasks.
pub(super) struct Meta {
    /// The number of the last commit.
    pub(super) sequence: i64,
    /// Tasks up to this number were accepted under a former id: if one is open, its outcome is unknown.
    pub(super) lost_to: i64,
    totals: Totals,
    /// The store's ids, newest first.
    pub(super) stores: Vec<String>,
}

impl Meta {
    pub(super) fn read(connection: &Connection) -> rusqlite::Result<Self> {
        let last: Option<i64> =
            connection.query_row("SELECT max(num) FROM tasks", [], |row| row.get(0))?;
        let sql = "SELECT sequence, ended, ended_bytes, lost_to FROM meta";
        let (totals, lost_to) = connection.query_row(sql, [], |row| {
            let lost_to = row.get(3)?;
            let next_num = last.unwrap_or(0).max(lost_to) + 1;
            let (sequence, ended, ended_bytes) = (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok((Totals { sequence, next_num, ended, ended_bytes }, lost_to))
        })?;
        let mut statement = connection.prepare("SELECT id FROM stores ORDER BY n DESC")?;
        let stores = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        Ok(Self { sequence: totals.sequence, lost_to, totals, stores })
    }

    /// Gives the store another id. What is open is lost, if it was in use before.
    pub(super) fn rename(
        connection: &Connection,
        id: &str,
        before: Option<&str>,
    ) -> rusqlite::Result<()> {
        let transaction = connection.unchecked_transaction()?;
        for id in before.into_iter().chain([id]) {
            transaction.execute("INSERT INTO stores (id) VALUES (?1)", [id])?;
        }
        transaction.execute(
            "UPDATE meta SET sequence = sequence + 1, \
             lost_to = max(lost_to, (SELECT coalesce(max(num), 0) FROM tasks))",
            [],
        )?;
        transaction.commit()
    }
}

/// What there is.
pub(super) struct Loaded {
    pub(super) ledger: Ledger,
    pub(super) recovered: Recovered,
    /// The numbers of open tasks of whose acceptance nothing can be read.
    pub(super) unreadable: Vec<i64>,
}

/// Reads everything that a server needs to go on.
pub(super) fn load(
    connection: &Connection,
    payloads: &Payloads,
    meta: &Meta,
    now: Timestamp,
) -> rusqlite::Result<Loaded> {
    let mut ledger = Ledger { totals: meta.totals, ..Ledger::default() };
    let identities = identities(connection)?;
    ledger.identities = identities.iter().map(|identity| identity.id).collect();
    let (mut open, mut unreadable, mut has_lost) = (Vec::new(), Vec::new(), false);
    for task in open_tasks(connection)? {
        let Some(read) = read::journal(connection, payloads, task)? else { continue };
        if read.is_made_up {
            tracing::error!(%task, "a task's acceptance is damaged; it ends with an unknown outcome");
            unreadable.push(read.num);
            continue;
        }
        has_lost |= read.num <= meta.lost_to;
        ledger.open.insert(task, open_task(&read));
        open.push(open_journal(task, read));
    }
    let mut stores = meta.stores.iter().cloned();
    let (requests, last_owner) = requests(connection, &ledger.identities, now)?;
    let recovered = Recovered {
        store: stores.next().unwrap_or_default(),
        former: stores.collect(),
        has_lost,
        identities,
        open,
        undelivered: undelivered(connection)?,
        requests,
        last_owner,
        newest_task: newest_task(connection)?,
    };
    Ok(Loaded { ledger, recovered, unreadable })
}

fn newest_task(connection: &Connection) -> rusqlite::Result<Option<TaskId>> {
    let sql = "SELECT max(id) FROM tasks";
    let newest = connection.query_row(sql, [], |row| row.get::<_, Option<[u8; 16]>>(0))?;
    Ok(newest.map(TaskId::from_bytes))
}

fn open_tasks(connection: &Connection) -> rusqlite::Result<Vec<TaskId>> {
    let sql = "SELECT id FROM tasks WHERE ended_at IS NULL ORDER BY id";
    let mut statement = connection.prepare(sql)?;
    statement.query_map([], |row| row.get(0).map(TaskId::from_bytes))?.collect()
}

fn open_task(read: &Read) -> Open {
    let summary = Summary::of(&read.records);
    Open {
        num: read.num,
        next: read.batches,
        steps: summary.map_or(0, |summary| summary.steps),
        bytes: read.records.iter().map(Record::bytes).sum(),
    }
}

fn open_journal(task: TaskId, mut read: Read) -> OpenJournal {
    if read.is_damaged {
        tracing::error!(%task, "a task's journal is damaged; its outcome is unknown");
        read.records.truncate(1);
    }
    OpenJournal { records: read.records, is_damaged: read.is_damaged }
}

fn identities(connection: &Connection) -> rusqlite::Result<Vec<IdentityRecord>> {
    let sql = "SELECT id, crc, body, response_id FROM identities LEFT JOIN newest USING (id)";
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([])?;
    let mut identities = Vec::new();
    while let Some(row) = rows.next()? {
        match identity(row)? {
            Some(identity) => identities.push(identity),
            None => {
                let id = row.get::<_, i64>(0)?;
                tracing::error!(id, "an identity is damaged, and forgotten");
            }
        }
    }
    Ok(identities)
}

fn identity(row: &Row<'_>) -> rusqlite::Result<Option<IdentityRecord>> {
    let (id, crc, body) = (row.get(0)?, row.get::<_, u32>(1)?, row.get::<_, Vec<u8>>(2)?);
    let newest = row.get::<_, Option<String>>(3)?;
    let read = serde_json::from_slice::<IdentityRecord>(&body).ok();
    let whole = read.filter(|_| seal_identity(id, &body) == crc);
    let newest = newest.and_then(|newest| newest.parse().ok());
    Ok(whole
        .map(|identity| IdentityRecord { newest: newest.or(identity.newest.clone()), ..identity }))
}

fn undelivered(connection: &Connection) -> rusqlite::Result<Vec<Undelivered>> {
    let sql = "SELECT id, owner, key, bytes, undelivered_until FROM tasks INDEXED BY undelivered \
        WHERE undelivered_until IS NOT NULL AND owner IS NOT NULL ORDER BY undelivered_until";
    let mut statement = connection.prepare(sql)?;
    let found = statement.query_map([], |row| {
        Ok(Undelivered {
            task: TaskId::from_bytes(row.get(0)?),
            owner: incarnation(row.get(1)?),
            key: row.get(2)?,
            bytes: usize::try_from(row.get::<_, i64>(3)?).unwrap_or(0),
            until: time(row.get(4)?),
        })
    })?;
    found.collect()
}

/// Those of the last day, which the index holds whole, and the older ones that are still needed; not those of identities
/// that are forgotten, as nobody comes back as one. Also the greatest number of any identity among them.
fn requests(
    connection: &Connection,
    identities: &HashSet<Incarnation>,
    now: Timestamp,
) -> rusqlite::Result<(Vec<KnownRequest>, Incarnation)> {
    let since = now.checked_sub(REQUESTS_KEPT).unwrap_or(Timestamp::MIN).as_microsecond();
    let (mut requests, mut last_owner) = (Vec::<KnownRequest>::new(), Incarnation::default());
    for which in [
        "INDEXED BY requests WHERE request_id IS NOT NULL AND created_at >= ?1",
        "INDEXED BY open_tasks WHERE ended_at IS NULL AND request_id IS NOT NULL AND created_at < ?1",
        "INDEXED BY undelivered WHERE undelivered_until IS NOT NULL AND request_id IS NOT NULL \
         AND created_at < ?1",
    ] {
        let sql = format!("SELECT id, owner, key, request_id, hash, created_at FROM tasks {which}");
        let mut statement = connection.prepare(&sql)?;
        let mut rows = statement.query(params![since])?;
        while let Some(row) = rows.next()? {
            let owner = row.get::<_, Option<i64>>(1)?.map(incarnation);
            last_owner = last_owner.max(owner.unwrap_or_default());
            if owner.is_some_and(|owner| !identities.contains(&owner)) {
                continue;
            }
            // There can be a million of them, mostly with few keys.
            let key = row.get_ref(2)?.as_str()?;
            let before =
                requests.last().map(|before| &before.key).filter(|before| ***before == *key);
            let key = before.cloned().unwrap_or_else(|| key.into());
            requests.extend(request(row, owner, key)?);
        }
    }
    Ok((requests, last_owner))
}

fn request(
    row: &Row<'_>,
    owner: Option<Incarnation>,
    key: Arc<str>,
) -> rusqlite::Result<Option<KnownRequest>> {
    let Ok(request_id) = row.get_ref(3)?.as_str()?.parse() else { return Ok(None) };
    Ok(Some(KnownRequest {
        owner,
        key,
        request_id,
        hash: row
            .get_ref(4)?
            .as_str_or_null()?
            .and_then(RequestHash::of_text)
            .unwrap_or(RequestHash::NONE),
        task: TaskId::from_bytes(row.get(0)?),
        created_at: time(row.get(5)?),
    }))
}

const fn incarnation(number: i64) -> Incarnation {
    Incarnation(number.cast_unsigned())
}
