//! One submitted task, from its submitter's side: a [`Task`], its events and its [`Outcome`].

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aip::message::{Downstream, OnDisconnect, Passed, Refused, Step, Streams, Upstream};
use aip::{ClientId, Payload, RequestId, ServerMessage, SessionId, Status};
use link::connection::now;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::client::{RequestError, Shared};
use crate::streams::{Feeding, Output, Reading};

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
    /// The streams that are wanted of its commands. Any wants a server that [may
    /// stream](crate::Constellation::may_stream); output that the device cannot give comes with the outcome, and input
    /// that it cannot take refuses the task.
    pub streams: Streams,
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
            streams: Streams::default(),
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
    /// A command of it wrote something, or closed a stream. It counts as dealt with once the next event is asked for.
    Output(Output),
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

    /// Where its standard input goes.
    #[must_use]
    pub fn input(&self) -> TaskInput {
        let (request_id, inbox) = (self.request_id.clone(), self.inbox.clone());
        TaskInput { request_id, inbox, shared: self.shared.clone() }
    }

    /// Waits for the next event. After [`TaskEvent::Ended`] it waits for ever. A server without *ack* that does not
    /// even acknowledge the task ends it as lost.
    pub async fn next_event(&mut self) -> TaskEvent {
        if let Some(said) = self.inbox.dealt_with() {
            self.shared.say(&self.request_id, &said);
        }
        loop {
            if let Some(event) = self.inbox.take() {
                self.ack_deadline = None;
                if matches!(event, TaskEvent::Ended(_)) {
                    self.shared.handle_taken(&self.request_id);
                }
                return event;
            }
            let (said, repeat_at) = self.inbox.repeat_due();
            said.iter().for_each(|said| self.shared.say(&self.request_id, said));
            let Some(deadline) = repeat_at.into_iter().chain(self.ack_deadline).min() else {
                self.inbox.filled.notified().await;
                continue;
            };
            let filled = tokio::time::timeout_at(deadline, self.inbox.filled.notified()).await;
            if filled.is_err() && self.ack_deadline.is_some_and(|at| at <= deadline) {
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
        let said = self.inbox.leave();
        said.iter().for_each(|said| self.shared.say(&self.request_id, said));
        self.shared.handle_taken(&self.request_id);
    }
}

/// The standard input of a task's command.
pub struct TaskInput {
    request_id: RequestId,
    inbox: Arc<Inbox>,
    shared: Arc<Shared>,
}

impl TaskInput {
    /// Waits until some more may be sent, and says how many bytes; `None` once nobody reads it any more. Until the
    /// command runs, nobody does yet.
    pub async fn room(&self) -> Option<usize> {
        loop {
            let moved = self.inbox.moved.notified();
            {
                let kept = self.inbox.lock();
                if kept.feeding.as_ref().is_some_and(Feeding::is_closed) || kept.is_over {
                    return None;
                }
                let room = kept.feeding.as_ref().map_or(0, Feeding::room);
                if room > 0 {
                    return Some(room);
                }
            }
            moved.await;
        }
    }

    /// Sends some bytes, as many as there is [room](Self::room) for.
    pub fn send(&self, bytes: &[u8]) {
        self.push(bytes, false);
    }

    /// Says that nothing follows.
    pub fn end(&self) {
        self.push(&[], true);
    }

    fn push(&self, bytes: &[u8], end: bool) {
        let said = self.inbox.lock().feeding.as_mut().and_then(|own| own.push(bytes, end, now()));
        if let Some(said) = said {
            self.shared.say(&self.request_id, &said);
            // Whoever waits for events is to say it again, should it be lost.
            self.inbox.filled.notify_one();
        }
    }
}

/// Where the connection puts a task's events. Bounded: what happens on the way gives way, the outcome never does.
#[derive(Default)]
pub(crate) struct Inbox {
    kept: Mutex<Events>,
    filled: Notify,
    /// Input may have room.
    moved: Notify,
}

#[derive(Default)]
pub(crate) struct Events {
    waiting: VecDeque<TaskEvent>,
    /// The server's id of the task.
    task: Option<String>,
    /// What it gets of streams.
    streams: Streams,
    reading: Option<Reading>,
    feeding: Option<Feeding>,
    /// The output that was handed out last, until it is dealt with.
    out: Option<Output>,
    is_over: bool,
    /// Whether nobody looks at it any more.
    is_left: bool,
}

impl Inbox {
    pub(crate) fn put(&self, event: TaskEvent) {
        let mut kept = self.lock();
        match &event {
            TaskEvent::Accepted { task } => kept.task.clone_from(task),
            TaskEvent::Ended(_) => {
                kept.is_over = true;
                self.moved.notify_waiters();
            }
            _ => {}
        }
        let gives_way = |event: &TaskEvent| {
            use TaskEvent::{Accepted, Ended, Output};
            !matches!(event, Accepted { .. } | Ended(_) | Output(_))
        };
        if kept.waiting.len() >= MAX_WAITING_EVENTS
            && let Some(oldest) = kept.waiting.iter().position(gives_way)
        {
            kept.waiting.remove(oldest);
        }
        kept.waiting.push_back(event);
        self.filled.notify_one();
    }

    fn take(&self) -> Option<TaskEvent> {
        let mut kept = self.lock();
        let event = kept.waiting.pop_front()?;
        if let TaskEvent::Output(output) = &event {
            kept.out = Some(output.position());
        }
        Some(event)
    }

    /// What was handed out last is dealt with. Returns what is to be said of it.
    fn dealt_with(&self) -> Option<Downstream> {
        let mut kept = self.lock();
        let output = kept.out.take()?;
        let next = kept.waiting.front();
        let follows = matches!(next, Some(TaskEvent::Output(next)) if next.is_end_of(output.step));
        kept.reading.as_mut()?.done(&output, follows)
    }

    /// Nobody looks at the task any more: its output does not wait for that. Returns what is to be said.
    fn leave(&self) -> Option<Downstream> {
        let mut kept = self.lock();
        kept.is_left = true;
        let kept = &mut *kept;
        let waiting = kept.waiting.iter().filter_map(|event| match event {
            TaskEvent::Output(output) => Some(output),
            _ => None,
        });
        let reading = kept.reading.as_mut()?;
        kept.out.iter().chain(waiting).filter_map(|output| reading.done(output, false)).last()
    }

    /// The task gets these streams.
    pub(crate) fn granted(&self, streams: Streams) {
        let mut kept = self.lock();
        if kept.streams == streams {
            return;
        }
        kept.streams = streams;
        kept.reading = streams.output.then(|| Reading::new(streams));
        kept.feeding = streams.input.then(|| Feeding::new(streams));
    }

    /// Takes in what the device says of streams. Returns what is said in answer.
    pub(crate) fn take_passed(&self, passed: Passed) -> Vec<Downstream> {
        let mut kept = self.lock();
        let kept = &mut *kept;
        let mut answers = Vec::new();
        match passed.upstream {
            Upstream::Taken(taken) => {
                if let Some(feeding) = &mut kept.feeding {
                    answers = feeding.taken(passed.step, &taken, now());
                }
                self.moved.notify_waiters();
            }
            Upstream::Chunks(chunks) => {
                let Some(reading) = &mut kept.reading else { return answers };
                for chunk in &chunks {
                    let has_room = kept.waiting.len() < MAX_WAITING_EVENTS;
                    let (output, answer) = reading.take(passed.step, chunk, has_room);
                    answers.extend(answer);
                    if kept.is_left {
                        answers.extend(output.and_then(|output| reading.done(&output, false)));
                        continue;
                    }
                    let output = match (kept.waiting.back_mut(), output) {
                        (Some(TaskEvent::Output(last)), Some(output)) => last.join(output),
                        (_, output) => output,
                    };
                    kept.waiting.extend(output.map(TaskEvent::Output));
                }
                self.filled.notify_one();
            }
        }
        answers
    }

    /// Input that is said again unasked, and when there may be some next.
    fn repeat_due(&self) -> (Vec<Downstream>, Option<Instant>) {
        let mut kept = self.lock();
        let Some(feeding) = &mut kept.feeding else { return Default::default() };
        let due = feeding.repeat_due(now());
        (due, feeding.repeat_at().map(Instant::from_std))
    }

    /// What is said of streams after a loss.
    pub(crate) fn repeat_streams(&self) -> Vec<Downstream> {
        let mut kept = self.lock();
        let taken = kept.reading.as_mut().and_then(Reading::again);
        let input = kept.feeding.as_ref().map(Feeding::repeat).unwrap_or_default();
        taken.into_iter().chain(input).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Events> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
