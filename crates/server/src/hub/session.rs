//! One task that is not over, as a state machine.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use aip::message::{JournalId, Taken};
use aip::{Payload, ResponseId};
use bytes::Bytes;
use link::Kept;
use tokio::sync::oneshot;
use tokio_util::sync::DropGuard;

use super::timers::TimerKey;
use crate::agent::Memo;
use crate::auth::Principal;
use crate::session::{Call, Cause, Incarnation, Outcome, Step, Task};
use crate::store::{Batch, Ending, Record, StoreError};

/// A decided step that waits for its commit.
pub(crate) struct Prepared {
    pub(crate) response_id: ResponseId,
    pub(crate) calls: Arc<[Call]>,
    pub(crate) is_discovery: bool,
    /// The COMMAND.
    pub(crate) frame: Bytes,
    /// The journal that it goes to, as the store has it.
    pub(crate) journal: Option<JournalId>,
}

/// A step whose COMMAND was sent, or was meant to be.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    pub(super) response_id: ResponseId,
    pub(super) calls: Arc<[Call]>,
    pub(super) is_discovery: bool,
    pub(super) at: Instant,
    /// The journal that it goes to.
    pub(super) journal: Option<JournalId>,
}

/// The TASK_END of a task, as the parties get it.
pub(crate) struct Goodbyes {
    /// For the requester, when it has a connection.
    pub(crate) requester: Option<Bytes>,
    /// For the device, when it gets one.
    pub(crate) device: Option<Bytes>,
    /// Whether the requester's carries all results whole.
    pub(crate) is_whole: bool,
}

impl Goodbyes {
    /// What they take, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let frames = [&self.requester, &self.device];
        frames.into_iter().flatten().map(Bytes::len).max().unwrap_or(0)
    }
}

/// How a task ends, on its way into the store and out to the parties.
pub(super) struct Farewell {
    pub(super) outcome: Outcome,
    /// Written, and noted in the journal, once they are there.
    pub(super) goodbyes: Option<Goodbyes>,
}

/// Where a session stands:
///
/// queued → thinking → prepared → running → thinking → … → ending; from each of them it may go to ending.
pub(super) enum Phase {
    /// It waits for its turn on the device.
    Queued,
    /// It has its place, and its agent is not asked: its device is away, its device has still to say what became of
    /// a cancel, or the server stops and goes on with it when it is back.
    Resting,
    /// Its agent is asked. The guard cancels a thought that takes a while.
    Thinking(Option<DropGuard>),
    /// Its next step is decided, and waits for its commit.
    Prepared(Prepared),
    /// Its command was sent.
    Running(Sent),
    /// Its outcome is known, and not sent yet.
    Ending(Box<Farewell>),
}

/// What a session has to store. One batch is on its way at a time, so that records stay in order.
#[derive(Default)]
pub(super) struct Journal {
    waiting: Vec<Record>,
    is_on_its_way: bool,
    /// When the store is tried again.
    pub(super) retry: Option<TimerKey>,
    /// Whether the last try failed.
    pub(super) is_failing: bool,
}

impl Journal {
    pub(super) fn push(&mut self, record: Record) {
        self.waiting.push(record);
    }

    /// Takes what waits, if it may go.
    pub(super) fn take(&mut self) -> Option<Vec<Record>> {
        if self.is_on_its_way || self.retry.is_some() || self.waiting.is_empty() {
            return None;
        }
        self.is_on_its_way = true;
        Some(std::mem::take(&mut self.waiting))
    }

    /// The batch on its way arrived. `true` when the one before had failed.
    pub(super) fn arrived(&mut self) -> bool {
        self.is_on_its_way = false;
        std::mem::take(&mut self.is_failing)
    }

    /// The batch on its way did not, and goes again, together with what waits behind it. `true` when the one before
    /// had not failed.
    pub(super) fn failed(&mut self, batch: &Batch, retry: TimerKey) -> bool {
        self.is_on_its_way = false;
        self.waiting.splice(0..0, batch.records.iter().cloned());
        self.retry = Some(retry);
        !std::mem::replace(&mut self.is_failing, true)
    }

    /// Whether everything is in the store.
    pub(super) fn is_stored(&self) -> bool {
        self.waiting.is_empty() && !self.is_on_its_way
    }
}

/// A task that is to be cancelled, and waits until its device says what became of its command.
pub(super) struct Cancelling {
    pub(super) cause: Cause,
    /// Whether the store has it: only then the device is told.
    pub(super) is_committed: bool,
    /// Whether the device was told, on its present connection.
    pub(super) is_told: bool,
    /// What the device says of it.
    pub(super) word: Option<&'static str>,
    /// When the wait is over.
    pub(super) timer: Option<TimerKey>,
}

/// A message for the requester that waits behind the ACK.
pub(super) struct Held {
    pub(super) frame: Bytes,
    pub(super) is_progress: bool,
}

/// A task that is not over.
pub(crate) struct Session {
    pub(super) task: Arc<Task>,
    pub(super) holder: Arc<Principal>,
    pub(super) device: Incarnation,
    pub(super) phase: Phase,
    pub(super) journal: Journal,
    /// Whether its acceptance is stored, and acknowledged.
    pub(super) is_accepted: bool,
    /// What waits behind the ACK.
    pub(super) held: VecDeque<Held>,
    pub(super) history: Arc<Vec<Step>>,
    pub(super) tools: Option<Payload>,
    pub(super) memo: Memo,
    /// Bytes of results so far.
    pub(super) bytes: usize,
    /// The room that they take, and its TASK_END.
    pub(super) kept: Kept,
    pub(super) accepted_at: Instant,
    /// By when it must end, once it has its turn.
    pub(super) deadline: Option<(Instant, TimerKey)>,
    /// Whether its device is gone, so that nothing is sent there.
    pub(super) is_device_gone: bool,
    /// Whether it was taken over from before a restart: it is out of time only once its device is back or given up.
    pub(super) is_recovered: bool,
    pub(super) cancel: Option<Cancelling>,
    /// The command that was sent last.
    pub(super) last_command: Option<ResponseId>,
    /// When it is cancelled unless its requester is back.
    pub(super) leave: Option<TimerKey>,
    /// For each settlement that is not stored yet: the command whose results its device is told of then.
    pub(super) settling: VecDeque<Option<ResponseId>>,
    /// Commands whose results settled nothing, of which their device is told once all is stored.
    pub(super) late: Vec<(ResponseId, Taken)>,
    /// Where an HTTP request waits until it is stored.
    pub(super) stored: Vec<oneshot::Sender<Result<(), StoreError>>>,
    /// Where HTTP requests wait until it is over: dropping these ends the wait.
    pub(super) waiters: Vec<oneshot::Sender<()>>,
}

/// Why a session goes no further.
#[derive(Debug, Clone)]
pub(super) enum Halt {
    Stopped(Cause),
    OutOfTime,
    /// The store has lost commits, so that what became of it is unknown.
    Lost,
    /// Something failed inside the server.
    Broken,
}

/// Why a step was the last.
pub(super) enum Broken {
    Stopped(Cause),
    Failed(String),
    Ended(Outcome),
}

impl Session {
    /// Whether its outcome is not known yet, or is that it was cancelled.
    pub(super) fn may_be_cancelled(&self) -> bool {
        match &self.phase {
            Phase::Ending(farewell) => farewell.outcome.ending == Ending::Cancelled,
            _ => true,
        }
    }

    /// Whether nothing of it is on its way into the store: of one that ends, its outcome is until it is gone.
    pub(super) fn is_settled_in_store(&self) -> bool {
        self.journal.is_stored() && !matches!(self.phase, Phase::Ending(_))
    }

    /// Whether it goes on after a restart of a server with a durable store.
    pub(super) fn outlives_the_server(&self) -> bool {
        self.task.terms.requester.is_none() || self.task.terms.is_acknowledged()
    }

    /// The number of the step that comes next, from 1.
    pub(super) fn step_number(&self) -> u32 {
        u32::try_from(self.history.len() + 1).unwrap_or(u32::MAX)
    }

    /// Whether the device asked for the task itself.
    pub(super) fn is_own_task(&self) -> bool {
        self.task.terms.requester == Some(self.device)
    }
}
