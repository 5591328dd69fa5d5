//! What the store keeps of a task: records of its own, neither wire messages nor what the server runs on.

use std::sync::Arc;

use aip::{Payload, ResponseId};
use jiff::Timestamp;

use crate::agent::Usage;
use crate::session::{Call, CallResult, Finish, Task, TaskId};

/// What a record costs beside its payloads, about, in bytes.
const RECORD_BYTES: usize = 512;

/// Something that happened to a task. Cheap to clone.
#[derive(Debug, Clone)]
pub enum Record {
    /// It was accepted.
    Created(Arc<Task>),
    /// Its agent had something to say beside its decision.
    Noted {
        /// When.
        at: Timestamp,
        /// What, as the agent wrote it.
        notes: Arc<[Payload]>,
        /// What its model took.
        usage: Usage,
    },
    /// Its agent decided, and this is being sent.
    Decided {
        /// When.
        at: Timestamp,
        /// The COMMAND's id, *R*.
        response_id: ResponseId,
        /// The COMMAND's actions.
        calls: Arc<[Call]>,
        /// Whether it only asks for the device's tools.
        is_discovery: bool,
    },
    /// Its device answered, or its command was settled without an answer.
    Answered {
        /// When.
        at: Timestamp,
        /// One result for each call.
        results: Arc<[CallResult]>,
    },
    /// It is over.
    Ended(Arc<Ended>),
}

/// How a task is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// When.
    pub at: Timestamp,
    /// How.
    pub ending: Ending,
    /// Why it failed.
    pub error: Option<Arc<str>>,
    /// What it returned.
    pub finish: Finish,
    /// Whether the requester has still to fetch the results, because no message carried them whole: they
    /// were too large for one, or the task came in over HTTP.
    pub is_unfetched: bool,
}

/// Whether a task did what it was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It did.
    Completed,
    /// It did not.
    Failed,
    /// It did not, because a request over HTTP cancelled it.
    Cancelled,
}

impl Record {
    /// What it takes of memory, about, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let payloads = match self {
            Self::Created(task) => task.request.len(),
            Self::Noted { notes, .. } => notes.iter().map(Payload::len).sum(),
            Self::Decided { calls, .. } => {
                calls.iter().filter_map(|call| call.parameters.as_ref()).map(Payload::len).sum()
            }
            Self::Answered { results, .. } => results.iter().map(CallResult::bytes).sum(),
            Self::Ended(ended) => ended.bytes(),
        };
        RECORD_BYTES + payloads
    }
}

impl Ended {
    fn bytes(&self) -> usize {
        let value = match &self.finish {
            Finish::Value(value) => value.len(),
            Finish::Results => 0,
        };
        value + self.error.as_ref().map_or(0, |error| error.len())
    }
}

/// Records of one task that are kept together or not at all.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Whose they are.
    pub task: TaskId,
    /// In the order in which they happened.
    pub records: Vec<Record>,
}

impl Batch {
    /// What it takes of memory, about, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.records.iter().map(Record::bytes).sum()
    }
}
