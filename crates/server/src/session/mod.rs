//! Where each task is: its life from TASK to TASK_END, and its journal.

mod lane;
mod outcome;
mod progress;
mod run;
mod table;

use std::fmt;
use std::sync::{Arc, OnceLock};

use aip::machine::TaskRequest;
use aip::{ActionResult, ClientId, Command, SessionId, TaskName};
use jiff::Timestamp;
use tokio::sync::Notify;
use uuid::Uuid;

pub(crate) use outcome::Outcome;
pub(crate) use run::submit;
pub(crate) use table::{Busy, SessionState, Sessions};

use crate::agent::Plan;
use crate::registry::Client;

/// Our own id of a task, unique for ever: the journal knows it by this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(Uuid);

impl TaskId {
    pub(crate) fn fresh() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A task, as it was accepted. It never changes.
#[derive(Debug)]
pub struct Task {
    /// Our own id.
    pub id: TaskId,
    /// The wire's name for this run.
    pub session_id: SessionId,
    /// The label for people.
    pub task_name: TaskName,
    /// What to do.
    pub request: String,
    /// Who wants it.
    pub requester: ClientId,
    /// Who shall do it.
    pub device: ClientId,
    /// Which section of a Python device's `mcp.yaml` its commands are for.
    pub agent_name: String,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// The request read as a plan, once somebody asked: see [`Plan::of`].
    pub(crate) plan: OnceLock<Result<Option<Plan>, String>>,
}

/// One step of a task that is over: what was asked of the device, and what became of it.
#[derive(Debug, Clone)]
pub struct Step {
    /// The actions of the COMMAND.
    pub commands: Arc<[Command]>,
    /// One result for each, in the same order.
    pub results: Arc<[ActionResult]>,
}

/// Why a session is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    DeviceGone,
    RequesterGone,
    Shutdown,
}

/// A task that is not over, as everybody but the one who runs it sees it.
pub(crate) struct Session {
    pub(crate) task: Arc<Task>,
    pub(crate) requester: Arc<Client>,
    pub(crate) device: Arc<Client>,
    /// The first cause counts.
    stop: OnceLock<Cause>,
    stopped: Notify,
    /// Its place on the device is free.
    turn: Notify,
}

impl Session {
    fn new(
        wanted: TaskRequest,
        requester: &Arc<Client>,
        device: &Arc<Client>,
        agent_name: &str,
    ) -> Self {
        let task = Task {
            id: TaskId::fresh(),
            session_id: wanted.session_id.unwrap_or_else(fresh_session_id),
            task_name: wanted.task_name.unwrap_or_else(fresh_task_name),
            request: wanted.request,
            requester: requester.id().clone(),
            device: device.id().clone(),
            agent_name: agent_name.to_owned(),
            created_at: Timestamp::now(),
            plan: OnceLock::new(),
        };
        Self {
            task: Arc::new(task),
            requester: requester.clone(),
            device: device.clone(),
            stop: OnceLock::new(),
            stopped: Notify::new(),
            turn: Notify::new(),
        }
    }

    /// Tells the session to stop. It ends with an outcome of its own accord.
    pub(crate) fn stop(&self, cause: Cause) {
        if self.stop.set(cause).is_ok() {
            self.stopped.notify_one();
        }
    }

    /// Waits until it is told to stop.
    async fn stopped(&self) -> Cause {
        loop {
            if let Some(cause) = self.stop.get() {
                return *cause;
            }
            self.stopped.notified().await;
        }
    }
}

macro_rules! fresh {
    ($($(#[$doc:meta])* $name:ident -> $id:ty;)*) => {$(
        $(#[$doc])*
        pub(crate) fn $name() -> $id {
            let mut buffer = Uuid::encode_buffer();
            loop {
                let text = Uuid::new_v4().hyphenated().encode_lower(&mut buffer);
                // A UUID is always a good id.
                if let Ok(id) = <$id>::new(text) {
                    return id;
                }
            }
        }
    )*};
}

fresh! {
    fresh_session_id -> SessionId;
    fresh_response_id -> aip::ResponseId;
    fresh_call_id -> aip::CallId;
}

fn fresh_task_name() -> TaskName {
    loop {
        if let Some(name) = TaskName::sanitize(&Uuid::new_v4().to_string()) {
            return name;
        }
    }
}
