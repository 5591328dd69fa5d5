//! One submitted task, from its submitter's side: a [`Task`], its events and its [`Outcome`].

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aip::message::{OnDisconnect, Refused, Step};
use aip::{ClientId, Payload, RequestId, ServerMessage, SessionId, Status};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::client::{RequestError, Shared};

/// Events that wait to be looked at; older ones go when there are more, the first and the last excepted.
const MAX_WAITING_EVENTS: usize = 1024;

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
    /// Whether it wants no time limit but that, and those that the server's owner has set. A Python server does not know
    /// it.
    pub no_time_limit: bool,
    /// What becomes of it when our connection is lost and does not come back. Anything but
    /// [`OnDisconnect::Cancel`] wants a server that [may detach](crate::Constellation::may_detach).
    pub on_disconnect: OnDisconnect,
}

impl NewTask {
    /// A task without a label, which is cancelled when our connection is lost for good.
    pub fn new(target: ClientId, request: impl Into<String>) -> Self {
        Self {
            target,
            request: request.into(),
            task_name: None,
            command_timeout: None,
            no_time_limit: false,
            on_disconnect: OnDisconnect::Cancel,
        }
    }
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Whether it completed.
    pub completed: bool,
    /// Why it failed.
    #[serde(default)]
    pub error: Option<String>,
    /// `[{"request": TEXT, "result": …}]` from the server, as it came.
    #[serde(default)]
    pub result: Option<Payload>,
    /// Whether nobody can say any more: the connection was lost for good, or the server has lost the task. Its fate is
    /// unknown.
    #[serde(default)]
    pub is_lost: bool,
    /// Whether it was not accepted, and then whether it may be accepted later: nothing of it was done.
    #[serde(default)]
    pub refused: Option<Refused>,
}

impl Outcome {
    pub(crate) fn of(end: ServerMessage) -> Self {
        Self {
            completed: end.status == Status::Completed,
            error: end.error,
            result: end.result,
            is_lost: false,
            refused: None,
        }
    }

    pub(crate) fn failed(error: &str) -> Self {
        let error = Some(error.to_owned());
        Self { completed: false, error, result: None, is_lost: false, refused: None }
    }

    pub(crate) fn lost(why: &str) -> Self {
        Self { is_lost: true, ..Self::failed(why) }
    }

    pub(crate) fn refused(how: Refused, why: &str) -> Self {
        match how {
            Refused::Lost => Self::lost(why),
            Refused::Final | Refused::Retry => Self { refused: Some(how), ..Self::failed(why) },
        }
    }
}

/// What happens to a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskEvent {
    /// The server has it.
    Accepted {
        /// The server's id of it, by which its HTTP API knows it too; `None` from a server without *ack*.
        task: Option<String>,
    },
    /// A step began or ended; only from a Flightdeck server.
    Progress {
        /// One line for people.
        line: String,
        /// The same for programs.
        step: Option<Box<Step>>,
    },
    /// The connection was lost, and is being made again. The task goes on meanwhile.
    Disconnected {
        /// Why.
        why: String,
    },
    /// The connection is back.
    Reconnected,
    /// It is over; nothing follows.
    Ended(Outcome),
}

/// A submitted task: its events, in order. Dropped while the connection is there, it is still done; its outcome is
/// acknowledged then, and forgotten.
pub struct Task {
    pub(crate) request_id: RequestId,
    pub(crate) session_id: SessionId,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) shared: Arc<Shared>,
    /// By when a server without *ack* must have acknowledged it; `None` once something came. One with *ack* answers
    /// once the task is stored, however long that takes.
    pub(crate) ack_deadline: Option<Instant>,
}

impl Task {
    /// The wire's name of this run.
    #[must_use]
    pub const fn session_id(&self) -> &SessionId {
        &self.session_id
    }

    /// Our own id of this request, by which a server with *request_id* knows it again.
    #[must_use]
    pub const fn request_id(&self) -> &RequestId {
        &self.request_id
    }

    /// The server's id of the task, once it is accepted by a server with *ack*.
    #[must_use]
    pub fn id(&self) -> Option<String> {
        self.inbox.lock().task.clone()
    }

    /// Tells the server to cancel the task, again whenever the connection comes back. Whether and how it was cancelled
    /// is said by its outcome; a task that has ended is not touched.
    ///
    /// # Errors
    /// When the server cannot cancel: there only the end of the connection does.
    pub fn cancel(&self) -> Result<(), RequestError> {
        self.shared.cancel(&self.request_id)
    }

    /// Waits for the next event. After [`TaskEvent::Ended`] it waits for ever. A server without *ack* that does not
    /// even acknowledge the task ends it as lost.
    pub async fn next_event(&mut self) -> TaskEvent {
        loop {
            if let Some(event) = self.inbox.take() {
                self.ack_deadline = None;
                if matches!(event, TaskEvent::Ended(_)) {
                    self.shared.handle_taken(&self.request_id);
                }
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

impl Drop for Task {
    fn drop(&mut self) {
        self.shared.handle_taken(&self.request_id);
    }
}

/// Where the connection puts a task's events. Bounded: what happens on the way gives way, the outcome never does.
#[derive(Default)]
pub(crate) struct Inbox {
    kept: Mutex<Events>,
    filled: Notify,
}

#[derive(Default)]
pub(crate) struct Events {
    waiting: VecDeque<TaskEvent>,
    /// The server's id of the task.
    task: Option<String>,
}

impl Inbox {
    pub(crate) fn put(&self, event: TaskEvent) {
        let mut kept = self.lock();
        if let TaskEvent::Accepted { task } = &event {
            kept.task.clone_from(task);
        }
        let gives_way =
            |event: &TaskEvent| !matches!(event, TaskEvent::Accepted { .. } | TaskEvent::Ended(_));
        if kept.waiting.len() >= MAX_WAITING_EVENTS
            && let Some(oldest) = kept.waiting.iter().position(gives_way)
        {
            kept.waiting.remove(oldest);
        }
        kept.waiting.push_back(event);
        self.filled.notify_one();
    }

    fn take(&self) -> Option<TaskEvent> {
        self.lock().waiting.pop_front()
    }

    fn lock(&self) -> MutexGuard<'_, Events> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
