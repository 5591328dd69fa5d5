//! Where each task is: its life from TASK to TASK_END, and its journal.

mod lane;
mod outcome;
mod progress;
mod run;
mod submit;
mod table;

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use aip::machine::TaskRequest;
use aip::{ActionResult, ClientId, Command, SessionId, TaskName};
use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::{Notify, oneshot};
use uuid::Uuid;

pub(crate) use outcome::{Outcome, write_whole_result};
pub(crate) use progress::told;
pub(crate) use submit::{SubmitError, entry, submit, submit_for};
pub(crate) use table::{Refused, SessionState, Sessions};

use crate::agent::Plan;
use crate::auth::Principal;
use crate::registry::Client;

/// Our own id of a task, unique for ever: the journal and the HTTP API know it by this one. Of two
/// tasks of one server the later one has the greater id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(Uuid);

impl TaskId {
    pub(crate) fn fresh() -> Self {
        Self(Uuid::now_v7())
    }
}

impl FromStr for TaskId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        Uuid::from_str(text).map(Self)
    }
}

/// Who wants a task.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Requester {
    /// A connected client.
    Client(ClientId),
    /// Whoever uses the HTTP API with the key of this name.
    Http(Arc<str>),
}

impl fmt::Display for Requester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(id) => id.fmt(f),
            Self::Http(key) => write!(f, "HTTP, key {key}"),
        }
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
    pub requester: Requester,
    /// Who shall do it.
    pub device: ClientId,
    /// Which section of a Python device's `mcp.yaml` its commands are for.
    pub agent_name: String,
    /// Longest time for one of its commands.
    pub command_timeout: Duration,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// Whose key it was submitted with.
    pub(crate) holder: Arc<Principal>,
    /// The request read as a plan, once somebody asked: see [`Plan::of`].
    pub(crate) plan: OnceLock<Result<Option<Plan>, String>>,
}

impl Task {
    /// The same without its request read as a plan, which may take several times the request's room: for
    /// whoever keeps tasks that are over.
    pub(crate) fn without_plan(self: &Arc<Self>) -> Arc<Self> {
        if self.plan.get().is_none() {
            return self.clone();
        }
        Arc::new(Self {
            id: self.id,
            session_id: self.session_id.clone(),
            task_name: self.task_name.clone(),
            request: self.request.clone(),
            requester: self.requester.clone(),
            device: self.device.clone(),
            agent_name: self.agent_name.clone(),
            command_timeout: self.command_timeout,
            created_at: self.created_at,
            holder: self.holder.clone(),
            plan: OnceLock::new(),
        })
    }
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cause {
    DeviceGone,
    RequesterGone,
    Shutdown,
    /// The key that it was submitted with opens no more.
    KeyGone,
    /// Somebody cancelled it: the name of the key.
    Cancelled(Arc<str>),
}

/// Where a task comes from, and where its messages go.
pub(crate) enum Origin {
    /// A connection.
    Client(Arc<Client>),
    /// The HTTP API, which waits until the task is stored and then looks where it stands.
    Http { stored: Mutex<Option<oneshot::Sender<()>>>, address: Option<SocketAddr> },
}

/// A task that is not over, as everybody but the one who runs it sees it.
pub(crate) struct Session {
    pub(crate) task: Arc<Task>,
    pub(crate) origin: Origin,
    pub(crate) device: Arc<Client>,
    /// The first cause counts.
    stop: OnceLock<Cause>,
    stopped: Notify,
    /// Its place on the device is free.
    turn: Notify,
    /// It is over.
    over: Notify,
}

/// A task that is wanted, and by whom.
pub(crate) struct Wanted {
    pub(crate) request: TaskRequest,
    pub(crate) requester: Requester,
    pub(crate) holder: Arc<Principal>,
}

impl Session {
    fn new(
        wanted: Wanted,
        origin: Origin,
        device: &Arc<Client>,
        agent_name: &str,
        command_timeout: Duration,
    ) -> Self {
        let Wanted { request, requester, holder } = wanted;
        let task = Task {
            id: TaskId::fresh(),
            session_id: request.session_id.unwrap_or_else(fresh_session_id),
            task_name: request.task_name.unwrap_or_else(fresh_task_name),
            request: request.request,
            requester,
            device: device.id().clone(),
            agent_name: agent_name.to_owned(),
            command_timeout,
            created_at: Timestamp::now(),
            holder,
            plan: OnceLock::new(),
        };
        Self {
            task: Arc::new(task),
            origin,
            device: device.clone(),
            stop: OnceLock::new(),
            stopped: Notify::new(),
            turn: Notify::new(),
            over: Notify::new(),
        }
    }

    /// The connection that its messages go to, if there is one.
    pub(crate) fn requester(&self) -> Option<&Arc<Client>> {
        match &self.origin {
            Origin::Client(client) => Some(client),
            Origin::Http { .. } => None,
        }
    }

    /// The connection that wants to see each step, if there is one.
    fn watcher(&self) -> Option<&Arc<Client>> {
        self.requester().filter(|client| client.wants_progress)
    }

    /// Sends its requester a message.
    fn tell(&self, frame: Bytes) {
        if let Some(client) = self.requester() {
            let _cut_if_it_overflows = client.outbox.push(frame);
        }
    }

    /// Tells who waits for it over HTTP that the task is stored.
    fn note_stored(&self) {
        if let Origin::Http { stored, .. } = &self.origin
            && let Some(stored) = stored.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            // Whoever asked may be gone; the task runs all the same.
            let _asker_is_gone = stored.send(());
        }
    }

    /// Tells the session to stop. It ends with an outcome of its own accord.
    pub(crate) fn stop(&self, cause: Cause) {
        if self.stop.set(cause).is_ok() {
            self.stopped.notify_one();
        }
    }

    /// Stops the session because somebody wants it so.
    pub(crate) fn cancel(&self, by: &str) {
        self.stop(Cause::Cancelled(by.into()));
    }

    /// Waits until it is told to stop.
    async fn stopped(&self) -> Cause {
        loop {
            if let Some(cause) = self.stop.get() {
                return cause.clone();
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

pub(crate) fn fresh_task_name() -> TaskName {
    loop {
        if let Some(name) = TaskName::sanitize(&Uuid::new_v4().to_string()) {
            return name;
        }
    }
}
