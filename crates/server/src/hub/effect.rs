//! What the hub wants done outside: everything that may take a while, or that needs the store or the agent.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::commands::Settlement;
use super::outcomes::Asked;
use super::parties::Via;
use super::session::Session;
use crate::agent::Question;
use crate::session::{Call, Outcome, Step, Task, TaskId};
use crate::store::{Batch, Change, StoreError};

/// Something to be done once the hub is unlocked. What is about one task comes in order.
pub(crate) enum Effect {
    /// Ask the agent, and hand in its answer: [`super::Hub::handle_answer`].
    Ask(Box<Question>),
    /// Write the TASK_END, and hand it in: [`super::Hub::handle_goodbyes`].
    Write(Box<Writing>),
    /// Store a batch, and say what became of it: [`super::Hub::handle_committed`].
    Commit(Arc<Task>, Arc<Batch>),
    /// Keep something beside the journals; through a connection that waits for that, say what became of it:
    /// [`super::Hub::handle_kept`].
    Keep(Change, Option<Via>),
    /// Send a requester outcomes that it has not acknowledged, from their journals.
    Deliver(Via, Vec<TaskId>),
    /// Answer a requester that sends a task again or asks after it, from its journal.
    Repeat(Box<Asked>),
    /// Note that a task was accepted.
    Accepted(Arc<Task>),
    /// Note that a step of a task is sent: its number, and what it calls.
    Stepped(Arc<Task>, u32, Arc<[Call]>),
    /// Note that a command was settled.
    Settled(Settlement, Duration),
    /// Note that a session is over, and drop it.
    Over(Box<Over>),
    /// Note that a task was not accepted after all.
    NotStored(Box<Session>, StoreError),
    /// Wake those who wait until clients leave or sessions end.
    Moved,
    /// Say that the store takes nothing of a task, or that it does again.
    StoreFails(Arc<Task>, Option<StoreError>),
}

impl Effect {
    /// The task that it is about, if it is about one that the log should name.
    pub(crate) fn task(&self) -> Option<&Task> {
        match self {
            Self::Ask(question) => Some(&question.task),
            Self::Write(writing) => Some(&writing.task),
            Self::Commit(task, _) | Self::Accepted(task) | Self::StoreFails(task, _) => Some(task),
            Self::Stepped(task, ..) => Some(task),
            Self::Over(over) => Some(&over.session.task),
            Self::NotStored(session, _) => Some(&session.task),
            Self::Settled(..)
            | Self::Moved
            | Self::Keep(..)
            | Self::Deliver(..)
            | Self::Repeat(_) => None,
        }
    }
}

/// An outcome that is to be written.
pub(crate) struct Writing {
    pub(crate) task: Arc<Task>,
    pub(crate) outcome: Outcome,
    pub(crate) history: Arc<Vec<Step>>,
    /// Whether its requester is sent it.
    pub(crate) for_requester: bool,
    /// What its device is sent of it.
    pub(crate) for_device: DeviceGoodbye,
}

/// What a device is sent at the end of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeviceGoodbye {
    /// Nothing: it is gone, or the task is its own.
    Nothing,
    /// How it ended.
    WithoutResult,
    /// The same as the requester, as a legacy device knows it.
    Whole,
}

/// A session that is over.
pub(crate) struct Over {
    pub(crate) session: Box<Session>,
    pub(crate) outcome: Outcome,
    pub(crate) ended: Instant,
}
