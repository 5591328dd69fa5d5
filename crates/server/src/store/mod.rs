//! Where the journal of each task goes: the list of what happened to it.
//!
//! Writes go in batches, each kept whole or not at all, and those of one task in the order of their calls.
//! The store answers with a [`Commit`] to wait for, so that it can commit many batches at once. What waits for
//! a commit is decided by the server's hub: what others see of a record waits, the rest does not.

mod memory;
mod record;
mod sqlite;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use aip::ClientId;
use jiff::Timestamp;
use tokio::sync::oneshot;

pub use memory::{HistoryLimits, MemoryStore};
pub use record::{
    Batch, Change, Ended, Ending, KnownRequest, OpenJournal, Record, Recovered, Undelivered,
};
pub use sqlite::{Durability, OpenError, Retention, SqliteSettings, SqliteStore};

use crate::audit::Audit;
use crate::session::{Task, TaskId};

/// Most batches that a store commits together, of which a server that is killed then has written down none.
pub(crate) const MAX_GROUP: usize = 1024;

/// How long a request id names its task after its acceptance.
pub const REQUESTS_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// Why a batch was not kept, or a journal could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// As much waits to be written as may.
    #[error("the store has {bytes} bytes to write already, which is as many as may wait")]
    Full {
        /// What waits, in bytes.
        bytes: usize,
    },
    /// The disk or the database would not.
    #[error("the store failed: {0}")]
    Failed(String),
    /// There is no copy.
    #[error("no copy was made: {0}")]
    NotCopied(String),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

/// A batch on its way into the store.
#[must_use = "an effect must wait for its batch"]
pub enum Commit {
    /// It is known already whether it is in.
    Known(Result<(), StoreError>),
    /// The sender says so.
    Pending(oneshot::Receiver<Result<(), StoreError>>),
}

impl Commit {
    /// Waits until the batch is in.
    ///
    /// # Errors
    /// When it could not be kept.
    pub async fn wait(self) -> Result<(), StoreError> {
        match self {
            Self::Known(known) => known,
            Self::Pending(receiver) => receiver.await.unwrap_or(Err(StoreError::Closed)),
        }
    }
}

/// An answer of the store on its way.
pub type Reading<T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send>>;

/// Keeps journals.
pub trait Store: Send + Sync + 'static {
    /// Appends a batch to its task's journal. Never waits; what waits to be written is bounded in bytes, and
    /// a batch beyond it is refused with [`StoreError::Full`]. A refused batch may be appended again.
    fn append(&self, batch: &Arc<Batch>) -> Commit;

    /// Keeps something beside the journals, in the order of the calls, those of [`Self::append`] included: once it is
    /// in, everything before it is in or was refused.
    fn keep(&self, change: Change) -> Commit;

    /// What is known from before: asked once, before anything is appended.
    ///
    /// # Errors
    /// When it cannot be read.
    fn recover(&self) -> Result<Recovered, StoreError>;

    /// Writes down in this log, from now on, which tasks it has accepted: a batch that accepts one is answered when the
    /// line is in the file ([`Audit::write_accepted`], [`Audit::queue_accepted`]); one that is refused leaves none.
    /// Asked once, before anything is appended.
    fn set_audit(&self, audit: Audit);

    /// Whether what it keeps outlives the process.
    fn is_durable(&self) -> bool {
        false
    }

    /// A task's journal, if it is still known.
    fn journal(&self, task: TaskId) -> Reading<Option<Vec<Record>>>;

    /// The tasks that a query asks for, newest first. Where a journal would have to be read for them, what the agent
    /// returned is left out, and of a long request all but its beginning.
    fn tasks(&self, query: Query) -> Reading<Vec<Summary>>;

    /// Lets go of what has had its time; called every second or so.
    fn tidy(&self, now: Timestamp);

    /// Whether it can write, and whether it has lost something.
    fn health(&self) -> Health {
        Health::default()
    }

    /// Copies everything into an empty folder, while the store goes on. Returns the bytes that it took.
    fn backup(&self, _folder: &Path) -> Reading<u64> {
        let error = "it keeps nothing that could be copied".to_owned();
        Box::pin(std::future::ready(Err(StoreError::Failed(error))))
    }

    /// Writes what waits and says that nothing is missing; refuses everything from then on. May take a while, and
    /// blocks meanwhile. A store that is only dropped counts as one whose server was killed.
    ///
    /// # Errors
    /// When something could not be written.
    fn close(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// How a store is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Why it cannot take new tasks, if it cannot.
    pub trouble: Option<String>,
    /// Whether commits may have been lost before it was opened: see [`Recovered::has_lost`].
    pub has_lost: bool,
}

/// Which tasks a caller asks for.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// Only tasks that are older than this one.
    pub before: Option<TaskId>,
    /// Only tasks for this device.
    pub device: Option<ClientId>,
    /// Only tasks of this name.
    pub task_name: Option<String>,
    /// Only tasks that were submitted with this created key: its public id.
    pub key: Option<String>,
    /// Only tasks that are over, or only tasks that are not.
    pub is_over: Option<bool>,
    /// At most this many.
    pub limit: usize,
}

impl Query {
    /// Whether it asks for this one, its place and the limit aside.
    fn wants(&self, found: &Summary) -> bool {
        let task = &found.task;
        self.device.as_ref().is_none_or(|device| *device == task.device)
            && self.task_name.as_ref().is_none_or(|name| name.as_str() == task.task_name.as_str())
            && self.key.as_deref().is_none_or(|key| task.key.id.as_deref() == Some(key))
            && self.is_over.is_none_or(|is_over| is_over == found.ended.is_some())
    }
}

/// A task without what was done for it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Summary {
    /// The task.
    pub task: Arc<Task>,
    /// How many steps were decided.
    pub steps: usize,
    /// How it ended, when it is over.
    pub ended: Option<Arc<Ended>>,
}

impl Summary {
    /// Of a task of which nothing else is known yet.
    #[must_use]
    pub const fn new(task: Arc<Task>) -> Self {
        Self { task, steps: 0, ended: None }
    }

    /// Of a journal, if it is one.
    #[must_use]
    pub fn of(journal: &[Record]) -> Option<Self> {
        let Some(Record::Created(task)) = journal.first() else { return None };
        let mut summary = Self::new(task.clone());
        journal.iter().for_each(|record| summary.note(record));
        Some(summary)
    }

    /// Notes one more record.
    pub fn note(&mut self, record: &Record) {
        match record {
            Record::Decided { .. } => self.steps += 1,
            Record::Ended(ended) => self.ended = Some(ended.clone()),
            Record::Created(_)
            | Record::Noted { .. }
            | Record::Answered { .. }
            | Record::Readdressed { .. }
            | Record::Cancelling { .. } => {}
        }
    }
}
