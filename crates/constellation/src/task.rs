//! One submitted task, from its submitter's side: a [`Task`], its events and its [`Outcome`].

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aip::message::Step;
use aip::{ClientId, Payload, ServerMessage, SessionId, Status};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Progress that waits to be looked at; older lines go when there is more.
const MAX_WAITING_PROGRESS: usize = 1024;

/// A task to submit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTask {
    /// The device that shall do it.
    pub target: ClientId,
    /// What to do: text, or a plan.
    pub request: String,
    /// A label for people.
    pub task_name: Option<String>,
    /// Longest time for one of its commands, if it shall be another than the server's default. A
    /// Python server does not know it.
    pub command_timeout: Option<Duration>,
}

impl NewTask {
    /// A task without a label.
    pub fn new(target: ClientId, request: impl Into<String>) -> Self {
        Self { target, request: request.into(), task_name: None, command_timeout: None }
    }
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Whether it completed.
    pub completed: bool,
    /// Why it failed.
    pub error: Option<String>,
    /// `[{"request": TEXT, "result": …}]` from the server, as it came.
    pub result: Option<Payload>,
    /// Whether the connection was lost before the server could say: the task's fate is unknown.
    pub is_lost: bool,
}

impl Outcome {
    pub(crate) fn of(end: ServerMessage) -> Self {
        Self {
            completed: end.status == Status::Completed,
            error: end.error,
            result: end.result,
            is_lost: false,
        }
    }

    pub(crate) fn failed(error: &str) -> Self {
        Self { completed: false, error: Some(error.to_owned()), result: None, is_lost: false }
    }

    pub(crate) fn lost(why: &str) -> Self {
        Self { is_lost: true, ..Self::failed(why) }
    }
}

/// What happens to a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskEvent {
    /// The server has it.
    Accepted,
    /// A step began or ended; only from a Flightdeck server.
    Progress {
        /// One line for people.
        line: String,
        /// The same for programs.
        step: Option<Box<Step>>,
    },
    /// It is over; nothing follows.
    Ended(Outcome),
}

/// A submitted task: its events, in order.
pub struct Task {
    pub(crate) session_id: SessionId,
    pub(crate) inbox: Arc<Inbox>,
    /// When the server must have acknowledged it; `None` once something came.
    pub(crate) ack_deadline: Option<Instant>,
}

impl Task {
    /// The wire's name of this run.
    #[must_use]
    pub fn session_id(&self) -> &SessionId {
        &self.session_id
    }

    /// Waits for the next event. After [`TaskEvent::Ended`] it waits for ever. A server that does not
    /// even acknowledge the task ends it as lost.
    pub async fn next_event(&mut self) -> TaskEvent {
        loop {
            if let Some(event) = self.inbox.take() {
                self.ack_deadline = None;
                return event;
            }
            let Some(deadline) = self.ack_deadline else {
                self.inbox.filled.notified().await;
                continue;
            };
            if tokio::time::timeout_at(deadline, self.inbox.filled.notified()).await.is_err() {
                self.ack_deadline = None;
                return TaskEvent::Ended(Outcome::lost("the server did not acknowledge the task"));
            }
        }
    }

    /// Waits for the outcome, dropping everything before it.
    pub async fn outcome(mut self) -> Outcome {
        loop {
            if let TaskEvent::Ended(outcome) = self.next_event().await {
                return outcome;
            }
        }
    }
}

/// Where the connection puts a task's events. Bounded: progress gives way, the outcome never does.
#[derive(Default)]
pub(crate) struct Inbox {
    events: Mutex<VecDeque<TaskEvent>>,
    filled: Notify,
}

impl Inbox {
    pub(crate) fn put(&self, event: TaskEvent) {
        let mut events = self.lock();
        if events.len() >= MAX_WAITING_PROGRESS
            && let Some(oldest) =
                events.iter().position(|e| matches!(e, TaskEvent::Progress { .. }))
        {
            events.remove(oldest);
        }
        events.push_back(event);
        self.filled.notify_one();
    }

    fn take(&self) -> Option<TaskEvent> {
        self.lock().pop_front()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<TaskEvent>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
