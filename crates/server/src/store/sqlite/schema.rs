//! The database: its tables, how it is opened, and how one of an older version becomes one of this.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::{Durability, OpenError};

/// Each brings a database from the version of its place to the next. One that was released is never changed again.
///
/// A task's batches are numbered from 0: the first stands in its row of `tasks`, each other one in a row of
/// `records`, whose key is the task's number shifted left by [`BATCH_BITS`], plus the batch's. So both tables grow at
/// their ends only, and a task of one command takes two rows.
const MIGRATIONS: [&str; 1] = ["
    CREATE TABLE meta (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        sequence INTEGER NOT NULL,
        ended INTEGER NOT NULL,
        ended_bytes INTEGER NOT NULL,
        lost_to INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE stores (n INTEGER PRIMARY KEY, id TEXT NOT NULL) STRICT;
    CREATE TABLE tasks (
        num INTEGER PRIMARY KEY,
        id BLOB NOT NULL,
        created_at INTEGER NOT NULL,
        device TEXT NOT NULL,
        task_name TEXT NOT NULL,
        key TEXT NOT NULL,
        is_shared INTEGER NOT NULL,
        owner INTEGER,
        request_id TEXT,
        hash TEXT,
        steps INTEGER,
        ended_at INTEGER,
        ending INTEGER,
        error TEXT,
        bytes INTEGER,
        undelivered_until INTEGER,
        crc INTEGER NOT NULL,
        task BLOB NOT NULL,
        request TEXT NOT NULL,
        body BLOB NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX tasks_by_id ON tasks (id);
    CREATE INDEX open_tasks ON tasks (ended_at) WHERE ended_at IS NULL;
    CREATE INDEX undelivered ON tasks (undelivered_until) WHERE undelivered_until IS NOT NULL;
    CREATE INDEX requests ON tasks (created_at, id, owner, key, request_id, hash)
        WHERE request_id IS NOT NULL;
    CREATE TABLE records (
        at INTEGER PRIMARY KEY,
        crc INTEGER NOT NULL,
        body BLOB NOT NULL
    ) STRICT;
    CREATE TABLE files (
        task INTEGER NOT NULL,
        name TEXT NOT NULL,
        PRIMARY KEY (task, name)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE identities (
        id INTEGER PRIMARY KEY,
        crc INTEGER NOT NULL,
        body BLOB NOT NULL
    ) STRICT;
    CREATE TABLE newest (id INTEGER PRIMARY KEY, response_id TEXT NOT NULL) STRICT;
    INSERT INTO meta VALUES (1, 0, 0, 0, 0);
"];

/// How many batches a task may have, as a power of two.
pub(super) const BATCH_BITS: u32 = 20;

/// The database is cut to this size again after it was larger, and so is its log, in bytes.
pub(super) const WAL_BYTES: u64 = 64 * 1024 * 1024;

/// How long a statement may wait for a lock: nobody but this process has any, and each of its own is short.
const BUSY: Duration = Duration::from_secs(1);

/// Statements that are kept prepared for each connection.
const STATEMENTS: usize = 64;

/// The writer's cache, in KiB.
const CACHE_KIB: i64 = 16 * 1024;

/// Opens the database for its only writer, and makes it what it has to be.
pub(super) fn open_writer(path: &Path, durability: Durability) -> Result<Connection, OpenError> {
    let connection = Connection::open(path)?;
    prepare(&connection)?;
    // Works only before there are tables, and before the log.
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    let mode: String =
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if mode != "wal" {
        return Err(OpenError::Refused(format!("the database keeps no log but `{mode}`")));
    }
    let synchronous = match durability {
        Durability::Process => "NORMAL",
        Durability::Power => "FULL",
    };
    connection.pragma_update(None, "synchronous", synchronous)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    // The writer does it between its groups.
    connection.pragma_update_and_check(None, "wal_autocheckpoint", 0, |_| Ok(()))?;
    connection.pragma_update_and_check(
        None,
        "journal_size_limit",
        WAL_BYTES.cast_signed(),
        |_| Ok(()),
    )?;
    migrate(&connection)?;
    Ok(connection)
}

/// Opens the database for reading.
pub(super) fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    prepare(&connection)?;
    Ok(connection)
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.pragma_update(None, "temp_store", "MEMORY")
}

fn migrate(connection: &Connection) -> Result<(), OpenError> {
    let version = usize::try_from(version(connection)?).unwrap_or(usize::MAX);
    let known = MIGRATIONS.len();
    if version > known {
        return Err(OpenError::Newer { found: version, known });
    }
    for (migration, reached) in MIGRATIONS.iter().zip(1_i64..).skip(version) {
        let transaction = connection.unchecked_transaction()?;
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "user_version", reached)?;
        transaction.commit()?;
    }
    // Setting it says nothing when it fails.
    let reached = self::version(connection)?;
    if usize::try_from(reached) != Ok(known) {
        return Err(OpenError::Refused(format!("the database stays at version {reached}")));
    }
    Ok(())
}

fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}
