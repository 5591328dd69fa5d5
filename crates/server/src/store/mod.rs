//! Where the journal of each task goes: the list of what happened to it.
//!
//! An entry is appended before its effect becomes visible to anybody. The store answers with a
//! [`Commit`] to wait for, so that an implementation can commit many entries at once.

mod memory;

use std::sync::Arc;

use aip::{ActionResult, ClientId, Command, ResponseId, Status};
use jiff::Timestamp;
use tokio::sync::oneshot;

pub use memory::{HistoryLimits, MemoryStore};

use crate::agent::Finish;
use crate::session::{Task, TaskId};

/// Something that happened to a task.
#[derive(Debug, Clone)]
pub enum Entry {
    /// It was accepted.
    Created(Arc<Task>),
    /// Its agent decided, and this is being sent.
    Decided {
        /// When.
        at: Timestamp,
        /// The COMMAND's id, *R*.
        response_id: ResponseId,
        /// The COMMAND's actions.
        commands: Arc<[Command]>,
    },
    /// Its device answered.
    Answered {
        /// When.
        at: Timestamp,
        /// One result for each action.
        results: Arc<[ActionResult]>,
    },
    /// It is over.
    Ended {
        /// When.
        at: Timestamp,
        /// `completed` or `failed`.
        status: Status,
        /// Why it failed.
        error: Option<Arc<str>>,
        /// What it returned.
        finish: Finish,
        /// Whether it failed because somebody cancelled it.
        is_cancelled: bool,
        /// Whether somebody has still to fetch the results, because no message carried them whole: they
        /// were too large for one, or the task came in over HTTP.
        is_unfetched: bool,
    },
}

/// Why an entry could not be kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the store cannot write: {0}")]
pub struct StoreError(pub String);

/// An entry on its way into the store.
#[must_use = "an effect must wait for its entry"]
pub struct Commit(Option<oneshot::Receiver<Result<(), StoreError>>>);

impl Commit {
    /// It is in already.
    pub const fn done() -> Self {
        Self(None)
    }

    /// It is in when the sender says so.
    pub const fn pending(receiver: oneshot::Receiver<Result<(), StoreError>>) -> Self {
        Self(Some(receiver))
    }

    /// Whether it is in already.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        self.0.is_none()
    }

    /// Waits until the entry is in.
    ///
    /// # Errors
    /// When it could not be kept.
    pub async fn wait(self) -> Result<(), StoreError> {
        match self.0 {
            None => Ok(()),
            Some(receiver) => {
                receiver.await.unwrap_or_else(|_| Err(StoreError("the store is closed".to_owned())))
            }
        }
    }
}

/// Keeps journals.
pub trait Store: Send + Sync + 'static {
    /// Appends an entry to a task's journal. Entries of one task are kept in the order of the calls.
    fn append(&self, task: TaskId, entry: Entry) -> Commit;

    /// A task's journal, if it is still known.
    fn journal(&self, task: TaskId) -> Option<Vec<Entry>>;

    /// The tasks that a query asks for, newest first.
    fn tasks(&self, query: &Query) -> Vec<Summary>;

    /// Is called every second or so: whatever has its time may go.
    fn tidy(&self, now: Timestamp);
}

/// Which tasks somebody wants to see.
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
            && self
                .task_name
                .as_ref()
                .is_none_or(|name| name.as_str() == &*task.task_name.to_string())
            && self.key.as_deref().is_none_or(|key| task.holder.key_id() == Some(key))
            && self.is_over.is_none_or(|is_over| is_over == found.ended.is_some())
    }
}

/// A task and, when it is over, its [`Entry::Ended`].
#[derive(Debug, Clone)]
pub struct Summary {
    /// The task.
    pub task: Arc<Task>,
    /// How many steps were decided.
    pub steps: usize,
    /// How it ended.
    pub ended: Option<Entry>,
}

impl Summary {
    /// Of a task with this journal.
    #[must_use]
    pub fn new(task: Arc<Task>, journal: &[Entry]) -> Self {
        let steps = journal.iter().filter(|entry| matches!(entry, Entry::Decided { .. })).count();
        let ended = journal.last().filter(|entry| matches!(entry, Entry::Ended { .. })).cloned();
        Self { task, steps, ended }
    }
}
