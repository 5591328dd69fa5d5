//! Journals in SQLite: what is committed survives the death of the server, and if wanted that of the machine.
//!
//! One thread writes. It takes all that waits and commits it together, notes the number of the commit in a side file,
//! and only then answers. Two threads read. A third writes large payloads into files of their own.
//!
//! SQLite does not notice when commits are missing at the end, as after a power loss, a copy that was put back, or a
//! flipped bit in its log. The side file does: see `side`.

mod backup;
mod courier;
mod folder;
mod group;
mod queue;
mod read;
mod reader;
mod recover;
mod reserve;
mod rows;
mod schema;
mod side;
#[cfg(test)]
mod tests;
mod writer;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode};
use serde::{Deserialize, Serialize};

use self::courier::Courier;
use self::folder::{Folder, Payloads};
use self::group::OpenTable;
use self::queue::Queue;
use self::reader::Readers;
use self::recover::{Loaded, Meta};
use self::reserve::Reserve;
use self::side::{Mark, Side, Verdict};
use self::writer::{Deletions, Ending, Trouble, Writer, write_files};
use super::{
    Batch, Change, Commit, Health, Query, Reading, Record, Recovered, Store, StoreError, Summary,
};
use crate::audit::Audit;
use crate::session::TaskId;

/// What commits survive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// Any death of the server's process. A power loss may cost the last ones.
    #[default]
    Process,
    /// Also a power loss.
    Power,
}

/// How long ended tasks are remembered. What nobody acknowledged is not within these bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// For how long after their end.
    pub age: Duration,
    /// How many.
    pub tasks: usize,
    /// How many bytes of them, about.
    pub bytes: usize,
}

/// How a store in SQLite is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqliteSettings {
    /// Its folder, which is made if there is none.
    pub folder: PathBuf,
    /// What commits survive.
    pub durability: Durability,
    /// Whether a store that has lost commits is opened all the same.
    pub accept_loss: bool,
    /// How long ended tasks are remembered.
    pub retention: Retention,
    /// Most bytes that may wait to be written, beside one batch of any size.
    pub queue_bytes: usize,
    /// The room that is given up when the disk is full, in bytes.
    pub reserve_bytes: usize,
}

impl SqliteSettings {
    /// The defaults, in a folder.
    #[must_use]
    pub const fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            durability: Durability::Process,
            accept_loss: false,
            retention: Retention {
                age: Duration::from_secs(30 * 24 * 60 * 60),
                tasks: 1_000_000,
                bytes: 4 * 1024 * 1024 * 1024,
            },
            queue_bytes: 256 * 1024 * 1024,
            reserve_bytes: 16 * 1024 * 1024,
        }
    }
}

/// Why a store was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("another server uses {}", folder.display())]
    InUse {
        /// The store's folder.
        folder: PathBuf,
    },
    /// A copy was being made there, and was cut off.
    #[error(
        "{} is an incomplete copy: `flightdeck backup` was cut off; delete it, and make another one",
        folder.display()
    )]
    Incomplete {
        /// The folder of the copy.
        folder: PathBuf,
    },
    /// A network file system keeps no locks that could be trusted.
    #[error("{} is on a network file system ({kind}); a store needs a local disk", folder.display())]
    Network {
        /// The store's folder.
        folder: PathBuf,
        /// What kind of file system it is.
        kind: &'static str,
    },
    /// It has lost commits that somebody may have been told of.
    #[error(
        "the store has lost commits: it has come to number {found}, and had come to {committed}; \
         was it put back from a copy? With `--accept-loss` it starts all the same, and the \
         outcome of every open task is unknown then"
    )]
    Behind {
        /// The number of its last commit.
        found: i64,
        /// The number that it had come to.
        committed: i64,
    },
    /// A newer version made it.
    #[error("the database has version {found}, and this program knows versions up to {known}")]
    Newer {
        /// Its version.
        found: usize,
        /// The newest that is known.
        known: usize,
    },
    /// The database calls itself damaged.
    #[error("the database is damaged: {0}; put back a copy made by `flightdeck backup`")]
    Damaged(#[source] rusqlite::Error),
    /// The database would not, for another reason.
    #[error("the database cannot be opened: {0}")]
    Database(#[source] rusqlite::Error),
    /// The database is not what it has to be.
    #[error("{0}")]
    Refused(String),
    /// The disk would not.
    #[error("the store's folder cannot be used: {0}")]
    Io(#[from] io::Error),
}

impl From<rusqlite::Error> for OpenError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged(error),
            _ => Self::Database(error),
        }
    }
}

/// Keeps journals in SQLite. When it is dropped, what waits is still written; only [`Store::close`] says that nothing
/// is missing.
pub struct SqliteStore {
    queue: Arc<Queue>,
    courier: Option<tokio::task::JoinHandle<()>>,
    readers: Readers,
    payloads: Payloads,
    open: OpenTable,
    trouble: Trouble,
    has_lost: bool,
    audit: Arc<OnceLock<Audit>>,
    /// Until it is asked for.
    recovered: Mutex<Option<Recovered>>,
    threads: Mutex<Threads>,
    _folder: Folder,
}

#[derive(Default)]
struct Threads {
    /// Ends with the side file, to which the clean mark goes.
    writer: Option<JoinHandle<Result<Side, StoreError>>>,
    others: Vec<JoinHandle<()>>,
}

impl SqliteStore {
    /// Opens a store, or makes it. Reads what a server needs to go on, so it blocks for a while.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(settings: &SqliteSettings) -> Result<Self, OpenError> {
        let folder = Folder::take(&settings.folder)?;
        let connection = schema::open_writer(&folder.database(), settings.durability)?;
        let (meta, is_new) = identify(&connection, &folder, settings.accept_loss)?;
        let mark = Mark {
            sequence: meta.sequence,
            is_clean: false,
            boot: side::boot_id(),
            durability: settings.durability,
            store: meta.stores.first().cloned().unwrap_or_default(),
        };
        let side = Side::begin(&folder.side(), mark)?;
        let payloads = folder.payloads();
        let now = Timestamp::now();
        let loaded = recover::load(&connection, &payloads, &meta, now)?;
        let Loaded { ledger, mut recovered, unreadable } = loaded;
        recovered.has_lost |= is_new && meta.stores.len() > 1;
        delete_orphans(&connection, &payloads)?;
        let courier = Courier::here();
        let queue = Arc::new(Queue::new(settings.queue_bytes, courier.clone()));
        let (open, trouble) = (ledger.open.clone(), Trouble::default());
        let audit = Arc::new(OnceLock::new());
        let reserve = Reserve::make(&folder.reserve(), settings.reserve_bytes);
        let mut writer = Writer {
            queue: queue.clone(),
            ledger,
            side,
            payloads: payloads.clone(),
            reserve: reserve.clone(),
            retention: settings.retention,
            trouble: trouble.clone(),
            audit: audit.clone(),
            deletions: Deletions::default(),
            unchecked: 0,
        };
        if !unreadable.is_empty() {
            let ended = writer.transact(&connection, |group| {
                unreadable.iter().try_for_each(|num| group.end_unreadable(*num, now))
            });
            ended.map_err(|failure| OpenError::Refused(failure.to_string()))?;
        }
        let path = folder.database();
        let connections = [schema::open_reader(&path)?, schema::open_reader(&path)?];
        let (readers, mut others) = Readers::start(connections)?;
        let files = {
            let (queue, payloads) = (queue.clone(), payloads.clone());
            let durability = settings.durability;
            spawn("store-files", move || write_files(&queue, &payloads, &reserve, durability))?
        };
        others.push(files);
        let ending = Ending { queue: queue.clone(), trouble: trouble.clone() };
        let writer = spawn("store-writer", move || {
            let _ending = ending;
            writer.run(&connection)
        })?;
        let courier = courier.start(&queue);
        Ok(Self {
            queue,
            courier,
            readers,
            payloads,
            open,
            trouble,
            has_lost: recovered.has_lost,
            audit,
            recovered: Mutex::new(Some(recovered)),
            threads: Mutex::new(Threads { writer: Some(writer), others }),
            _folder: folder,
        })
    }

    /// Ends the threads; what waits is written before. Returns the side file, if nothing went wrong.
    fn end(&self) -> Result<Option<Side>, StoreError> {
        self.queue.close();
        self.readers.close();
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.others.drain(..) {
            // It says so itself when it panics.
            let _has_panicked = thread.join();
        }
        let ended = threads.writer.take().map(JoinHandle::join);
        self.queue.flush_answers();
        match ended {
            None => Ok(None),
            Some(Ok(ended)) => ended.map(Some),
            Some(Err(_)) => Err(StoreError::Failed("its writer panicked; see the log".to_owned())),
        }
    }
}

/// Decides whether a store that comes back is the one that it was. Returns whether it has a new id.
fn identify(
    connection: &Connection,
    folder: &Folder,
    accept_loss: bool,
) -> Result<(Meta, bool), OpenError> {
    let mark = Side::read(&folder.side())?;
    let meta = Meta::read(connection)?;
    let verdict = side::judge(mark.as_ref(), meta.sequence, &side::boot_id());
    let committed = mark.as_ref().map_or(0, |mark| mark.sequence);
    if verdict == Verdict::Behind && !accept_loss {
        return Err(OpenError::Behind { found: meta.sequence, committed });
    }
    let stranger = mark.map(|mark| mark.store).filter(|id| !meta.stores.contains(id));
    if verdict == Verdict::Same && stranger.is_none() {
        return Ok((meta, false));
    }
    let id = uuid::Uuid::new_v4().to_string();
    if !meta.stores.is_empty() || stranger.is_some() {
        tracing::warn!(
            "the store may have lost commits: it has a new id, and the outcome of every open task \
             is unknown"
        );
    }
    // Behind what anybody may have been told of, whatever number the database has come to.
    Meta::rename(connection, &id, stranger.as_deref())?;
    Ok((Meta::read(connection)?, true))
}

/// Deletes files that no row names: the server was killed before their commit, or before they were deleted.
fn delete_orphans(connection: &Connection, payloads: &Payloads) -> Result<(), OpenError> {
    let names = payloads.names()?;
    if names.is_empty() {
        return Ok(());
    }
    let mut statement = connection.prepare("SELECT name FROM files")?;
    let known = statement.query_map([], |row| row.get(0))?;
    let known: std::collections::HashSet<String> = known.collect::<Result<_, _>>()?;
    names.iter().filter(|name| !known.contains(*name)).for_each(|name| payloads.delete(name));
    Ok(())
}

fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    thread::Builder::new().name(name.to_owned()).spawn(work)
}

impl Store for SqliteStore {
    fn is_durable(&self) -> bool {
        true
    }

    fn append(&self, batch: &Arc<Batch>) -> Commit {
        self.queue.append(batch)
    }

    fn keep(&self, change: Change) -> Commit {
        self.queue.keep(change)
    }

    fn recover(&self) -> Result<Recovered, StoreError> {
        let recovered = self.recovered.lock().unwrap_or_else(PoisonError::into_inner).take();
        recovered.ok_or_else(|| StoreError::Failed("what it knew was asked for before".to_owned()))
    }

    fn set_audit(&self, audit: Audit) {
        // There is but one server for a store.
        let _is_set_already = self.audit.set(audit);
    }

    fn journal(&self, task: TaskId) -> Reading<Option<Vec<Record>>> {
        let (readers, payloads) = (self.readers.clone(), self.payloads.clone());
        Box::pin(async move {
            let read = move |connection: &Connection| read::journal(connection, &payloads, task);
            Ok(readers.ask(read).await?.map(|read| read.records))
        })
    }

    fn tasks(&self, query: Query) -> Reading<Vec<Summary>> {
        let (readers, open) = (self.readers.clone(), self.open.clone());
        Box::pin(async move {
            let query = Arc::new(query);
            let (mut found, mut before) = (Vec::new(), query.before);
            loop {
                let (asked, open) = (query.clone(), open.clone());
                let limit = query.limit.saturating_sub(found.len());
                let look = move |connection: &Connection| {
                    read::look(connection, &open, &asked, before, limit)
                };
                let stretch = readers.ask(look).await?;
                found.extend(stretch.found);
                before = stretch.next;
                if before.is_none() || found.len() >= query.limit {
                    return Ok(found);
                }
            }
        })
    }

    fn tidy(&self, now: Timestamp) {
        self.queue.tidy(now);
    }

    fn health(&self) -> Health {
        Health { trouble: self.trouble.why(), has_lost: self.has_lost }
    }

    fn backup(&self, folder: &Path) -> Reading<u64> {
        let copy = self.queue.backup(folder.to_owned());
        Box::pin(async move { copy.await.unwrap_or(Err(StoreError::Closed)) })
    }

    fn close(&self) -> Result<(), StoreError> {
        let Some(side) = self.end()? else { return Ok(()) };
        side.close().map_err(|error| StoreError::Failed(error.to_string()))
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(%error, "the store did not end well");
        }
        if let Some(courier) = &self.courier {
            courier.abort();
        }
    }
}
