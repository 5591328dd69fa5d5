//! What the store keeps of a task: records of its own, neither wire messages nor what the server runs on.

use std::sync::Arc;

use aip::message::JournalId;
use aip::{Payload, RequestId, ResponseId};
use jiff::Timestamp;

use crate::agent::Usage;
use crate::session::{
    Call, CallResult, Finish, IdentityRecord, Incarnation, RequestHash, Task, TaskId,
};

/// What a record costs beside its payloads, about, in bytes.
const RECORD_BYTES: usize = 512;

/// Something that happened to a task. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
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
        /// Which device it goes to.
        device: Incarnation,
        /// The journal of that device; one without `resume` has none.
        journal: Option<JournalId>,
    },
    /// What was decided and not sent yet goes to another journal, since its device came back with that one.
    Readdressed {
        /// The COMMAND's id, *R*.
        response_id: ResponseId,
        /// Which device it goes to.
        device: Incarnation,
        /// The journal that it goes to now.
        journal: Option<JournalId>,
    },
    /// It is to be cancelled; no further step is decided.
    Cancelling {
        /// When.
        at: Timestamp,
        /// The name of the key or the id of the client that cancelled it; none when its requester stayed away.
        by: Option<Arc<str>>,
        /// Why, as its outcome says it.
        why: Arc<str>,
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
    /// Until when it is kept whole for its requester, whatever the bounds of the history, unless the requester
    /// acknowledges it before.
    pub undelivered_until: Option<Timestamp>,
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
    /// The device that a COMMAND is committed to be sent to, and its id, if that is what happened.
    pub(super) const fn sent(&self) -> Option<(Incarnation, &ResponseId)> {
        match self {
            Self::Decided { device, response_id, .. }
            | Self::Readdressed { device, response_id, .. } => Some((*device, response_id)),
            _ => None,
        }
    }

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
            Self::Readdressed { .. } => 0,
            Self::Cancelling { why, .. } => why.len(),
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

/// Something to be kept beside the journals.
#[derive(Debug, Clone)]
pub enum Change {
    /// An identity, as it is now.
    Identity(Arc<IdentityRecord>),
    /// An identity that is not needed any more.
    Forget(Incarnation),
    /// The outcome of this task was acknowledged. Nobody waits for this one.
    Delivered(TaskId),
}

/// What a store remembers when a server starts with it.
#[derive(Debug, Clone)]
pub struct Recovered {
    /// Names the store. Another one than before when commits were lost.
    pub store: String,
    /// What it was called before, newest first.
    pub former: Vec<String>,
    /// Whether the id is new since commits may be lost: then the outcome of every open task is unknown.
    pub has_lost: bool,
    /// The identities.
    pub identities: Vec<IdentityRecord>,
    /// The journals of the tasks that are not over, oldest first. Of one that is damaged what can be read of its
    /// acceptance is there alone: its outcome is unknown.
    pub open: Vec<OpenJournal>,
    /// Outcomes that were not acknowledged.
    pub undelivered: Vec<Undelivered>,
    /// What was submitted with a request id within the last day, or is not over or not delivered: over HTTP, and by these
    /// identities.
    pub requests: Vec<KnownRequest>,
    /// The greatest number of an identity that asked for a task with a request id, also of one that is forgotten.
    pub last_owner: Incarnation,
    /// The greatest id of a task.
    pub newest_task: Option<TaskId>,
}

impl Recovered {
    /// The greatest id of a task or a command that is known: what is made from now on is above it.
    pub(crate) fn newest_id(&self) -> uuid::Uuid {
        let open = self.open.iter().flat_map(|journal| &journal.records);
        let of_open = open.filter_map(|record| match record {
            Record::Created(task) => Some(task.id.uuid()),
            Record::Decided { response_id, .. } => response_id.as_str().parse().ok(),
            _ => None,
        });
        let sent =
            self.identities.iter().filter_map(|one| one.newest.as_ref()?.as_str().parse().ok());
        let newest = self.newest_task.map(|task| task.uuid());
        of_open.chain(sent).chain(newest).max().unwrap_or_default()
    }
}

/// The journal of a task that is not over.
#[derive(Debug, Clone)]
pub struct OpenJournal {
    /// Its records; the first is [`Record::Created`].
    pub records: Vec<Record>,
    /// Whether some are missing or cannot be read.
    pub is_damaged: bool,
}

/// An outcome that its requester has not acknowledged.
#[derive(Debug, Clone)]
pub struct Undelivered {
    /// Of which task.
    pub task: TaskId,
    /// Whose it is.
    pub owner: Incarnation,
    /// The public id or, of the shared key, the label of the key that the task was submitted with.
    pub key: Arc<str>,
    /// What it takes, about, in bytes.
    pub bytes: usize,
    /// Until when it is kept.
    pub until: Timestamp,
}

/// A request id that names a task.
#[derive(Debug, Clone)]
pub struct KnownRequest {
    /// Whose it is; over HTTP the key's alone.
    pub owner: Option<Incarnation>,
    /// The public id or, of the shared key, the label of the key that the task was submitted with.
    pub key: Arc<str>,
    /// The request.
    pub request_id: RequestId,
    /// What was asked for.
    pub hash: RequestHash,
    /// The task that it names.
    pub task: TaskId,
    /// When it was accepted.
    pub created_at: Timestamp,
}

impl KnownRequest {
    /// What is known of a task that was submitted with a request id.
    pub(super) fn of(task: &Task) -> Option<Self> {
        Some(Self {
            owner: task.terms.requester,
            key: task.key.public().clone(),
            request_id: task.terms.request_id.clone()?,
            hash: task.terms.request_hash.unwrap_or(RequestHash::NONE),
            task: task.id,
            created_at: task.created_at,
        })
    }
}
