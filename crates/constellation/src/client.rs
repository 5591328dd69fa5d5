//! The connection of an orchestrator: what it asked for, and who waits for which answer.
//!
//! It does not come back by itself after a loss: its tasks then end as *lost*. So does a task that the server does
//! not even acknowledge in time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aip::codec::{About, Wire};
use aip::machine::Pending;
use aip::message::{
    Confirmed, ConstellationMetadata, Extension, Feature, Step, TaskSettings, VERSION,
};
use aip::{
    ClientId, ClientMessage, ClientMessageType, ClientType, DecodeError, Payload, RequestId,
    ServerMessage, ServerMessageType, SessionId, Status,
};
use link::client::error_report;
use link::connection::now;
use link::{Ambient, Client, ClientSettings, Exit, NotQueued, Outbox, Role};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::task::{Inbox, NewTask, Outcome, Task, TaskEvent};

/// Longest wait for a device's facts.
const INFO_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest wait for the ACK of a task, which a server sends at once.
const ACK_TIMEOUT: Duration = Duration::from_secs(30);

/// Questions for facts that may wait for their answer.
const MAX_PENDING_INFO: usize = 1024;

/// Why a request could not be made or was not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// There is no connection.
    #[error("not connected: {0}")]
    NotConnected(String),
    /// Too many requests wait already, or too much waits to be sent.
    #[error("too many requests wait for their answer already")]
    TooMany,
    /// The server said no.
    #[error("{0}")]
    Refused(String),
    /// No answer in time.
    #[error("no answer within {} s", INFO_TIMEOUT.as_secs())]
    TimedOut,
}

/// A connected orchestrator. Dropping it ends the connection, and with it its tasks.
pub struct Constellation {
    shared: Arc<Shared>,
    stop: CancellationToken,
    runner: JoinHandle<Exit>,
}

impl Constellation {
    /// Connects and registers as `id`, without a declared target.
    ///
    /// # Errors
    /// Why the server cannot be reached or will not have us.
    pub async fn connect(settings: ClientSettings, id: ClientId) -> Result<Self, Exit> {
        let ambient = settings.ambient.clone();
        let shared = Arc::new(Shared::new(id, ambient.clone()));
        let (stop, role) = (CancellationToken::new(), Orchestrator { shared: shared.clone() });
        let running = Client::new(settings, role).run(stop.clone());
        let mut constellation = Self { runner: ambient.spawn(running), shared, stop };
        let mut connected = constellation.shared.connected.subscribe();
        tokio::select! {
            biased;
            _ = connected.wait_for(|connected| *connected) => Ok(constellation),
            exit = &mut constellation.runner => Err(exit.unwrap_or(Exit::Stopped)),
        }
    }

    /// Whether the server speaks the extension: only then it runs plans and shows progress.
    #[must_use]
    pub fn is_flightdeck(&self) -> bool {
        self.shared.lock().granted.is_some()
    }

    /// Submits a task.
    ///
    /// # Errors
    /// When there is no connection.
    pub fn submit(&self, task: NewTask) -> Result<Task, RequestError> {
        let ambient = &self.shared.ambient;
        let session_id = fresh(ambient, SessionId::new);
        let message = ClientMessage {
            status: Status::Continue,
            session_id: Some(session_id.clone()),
            task_name: task.task_name,
            target_id: Some(task.target),
            request: Some(task.request),
            metadata: task.command_timeout.and_then(|timeout| {
                let command_timeout_s = Some(timeout.as_secs_f64());
                TaskSettings { command_timeout_s, ..TaskSettings::default() }.to_metadata()
            }),
            request_id: Some(fresh(ambient, RequestId::new)),
            ..self.shared.message(ClientMessageType::Task)
        };
        let inbox = Arc::new(Inbox::default());
        let waiting = Waiting { inbox: inbox.clone(), is_accepted: false, number: 0 };
        self.shared.lock().add_task(session_id.clone(), waiting);
        if let Err(error) = self.shared.send(&message) {
            self.shared.lock().tasks.remove(&session_id);
            return Err(error);
        }
        let ack_deadline = Some(tokio::time::Instant::now() + ACK_TIMEOUT);
        Ok(Task { session_id, inbox, ack_deadline })
    }

    /// Asks for what the server knows of a device: a JSON object.
    ///
    /// # Errors
    /// When there is no connection, the server refuses, or does not answer.
    pub async fn device_info(&self, device: ClientId) -> Result<Option<Payload>, RequestError> {
        let request_id = fresh(&self.shared.ambient, RequestId::new);
        let (answer, answered) = oneshot::channel();
        let expected = {
            let mut state = self.shared.lock();
            state.infos.take_expired(now());
            state.infos.insert(request_id.clone(), answer, now() + INFO_TIMEOUT)
        };
        expected.map_err(|_| RequestError::TooMany)?;
        self.shared.send(&ClientMessage {
            target_id: Some(device),
            request_id: Some(request_id.clone()),
            ..self.shared.message(ClientMessageType::DeviceInfoRequest)
        })?;
        match tokio::time::timeout(INFO_TIMEOUT, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(RequestError::NotConnected("the connection was lost".to_owned())),
            Err(_) => {
                self.shared.lock().infos.take(&request_id);
                Err(RequestError::TimedOut)
            }
        }
    }

    /// Says goodbye and waits until it is said. Tasks that are not over are cancelled by the server.
    pub async fn close(mut self) {
        self.stop.cancel();
        // The runner gives its reason to nobody here: we asked for the end.
        let _exit = (&mut self.runner).await;
    }
}

impl Drop for Constellation {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What the connection and its users share.
struct Shared {
    id: ClientId,
    ambient: Ambient,
    state: Mutex<State>,
    connected: watch::Sender<bool>,
}

struct State {
    outbox: Option<Arc<Outbox>>,
    granted: Option<Confirmed>,
    /// Why there is no connection.
    why: String,
    tasks: BTreeMap<SessionId, Waiting>,
    submitted: u64,
    infos: Pending<RequestId, oneshot::Sender<Result<Option<Payload>, RequestError>>>,
}

/// A task that is not over.
struct Waiting {
    inbox: Arc<Inbox>,
    is_accepted: bool,
    /// Its place in the order of submission.
    number: u64,
}

impl State {
    fn add_task(&mut self, session_id: SessionId, waiting: Waiting) {
        self.submitted += 1;
        self.tasks.insert(session_id, Waiting { number: self.submitted, ..waiting });
    }

    /// The oldest task that the server has not acknowledged: a Python server's ERROR names no session.
    fn oldest_unaccepted(&self) -> Option<SessionId> {
        let unaccepted = self.tasks.iter().filter(|(_, waiting)| !waiting.is_accepted);
        unaccepted.min_by_key(|(_, waiting)| waiting.number).map(|(id, _)| id.clone())
    }
}

impl Shared {
    fn new(id: ClientId, ambient: Ambient) -> Self {
        let state = State {
            outbox: None,
            granted: None,
            why: "never connected".to_owned(),
            tasks: BTreeMap::new(),
            submitted: 0,
            infos: Pending::new(MAX_PENDING_INFO),
        };
        Self { id, ambient, state: Mutex::new(state), connected: watch::Sender::new(false) }
    }

    fn message(&self, kind: ClientMessageType) -> ClientMessage {
        ClientMessage {
            client_id: Some(self.id.clone()),
            timestamp: Some(self.ambient.time_text()),
            ..ClientMessage::new(kind, ClientType::Constellation)
        }
    }

    fn send(&self, message: &ClientMessage) -> Result<(), RequestError> {
        let state = self.lock();
        let outbox =
            state.outbox.as_ref().ok_or_else(|| RequestError::NotConnected(state.why.clone()))?;
        match outbox.push(message.encode()) {
            Ok(_) => Ok(()),
            Err(NotQueued::Closed) => Err(RequestError::NotConnected("it is closing".to_owned())),
            Err(NotQueued::Full(_)) => Err(RequestError::TooMany),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The role of a constellation on its link.
struct Orchestrator {
    shared: Arc<Shared>,
}

impl Role for Orchestrator {
    fn identity(&self) -> (&ClientId, ClientType) {
        (&self.shared.id, ClientType::Constellation)
    }

    fn register(&mut self) -> ClientMessage {
        let metadata = ConstellationMetadata {
            kind: "constellation_client",
            registration_time: self.shared.ambient.time_text(),
            flightdeck: Extension {
                version: VERSION,
                features: vec![Feature::Progress],
                resume: None,
            },
        };
        ClientMessage {
            metadata: Payload::from_value(&metadata).ok(),
            ..self.shared.message(ClientMessageType::Register)
        }
    }

    fn handle_connected(&mut self, outbox: &Arc<Outbox>, granted: Option<&Confirmed>) {
        {
            let mut state = self.shared.lock();
            state.outbox = Some(outbox.clone());
            state.granted = granted.cloned();
        }
        self.shared.connected.send_replace(true);
    }

    fn handle_message(&mut self, message: ServerMessage) {
        match message.kind {
            ServerMessageType::Heartbeat => self.handle_heartbeat(message),
            ServerMessageType::TaskEnd => self.handle_task_end(message),
            ServerMessageType::Error => self.handle_error(message),
            ServerMessageType::DeviceInfoResponse => self.handle_info(message),
            // A Python server's dispatch may push these to anybody; they are not for us.
            ServerMessageType::Task
            | ServerMessageType::Command
            | ServerMessageType::DeviceInfoRequest => {
                tracing::debug!(kind = %message.kind, "not for a constellation");
            }
        }
    }

    fn handle_unreadable(&mut self, error: &DecodeError, about: &About) {
        if about.is("task_end") {
            self.fail(
                about.session_id.as_ref(),
                &format!("the outcome could not be read: {error}"),
            );
        }
        let at = self.shared.ambient.time_text();
        let report =
            error_report(&self.shared.id, ClientType::Constellation, error.to_string(), at);
        if let Err(error) = self.shared.send(&report) {
            tracing::debug!(%error, "failed to report an unreadable message");
        }
    }

    fn handle_disconnected(&mut self, why: &str, _retry: Option<Duration>) {
        let mut state = self.shared.lock();
        state.outbox = None;
        why.clone_into(&mut state.why);
        for waiting in std::mem::take(&mut state.tasks).into_values() {
            waiting.inbox.put(TaskEvent::Ended(Outcome::lost(why)));
        }
        // Whoever waits for facts learns it from the dropped sender.
        drop(state.infos.take_all().collect::<Vec<_>>());
        drop(state);
        self.shared.connected.send_replace(false);
    }
}

impl Orchestrator {
    /// An ACK or progress of a task, or the answer to our own heartbeat.
    fn handle_heartbeat(&self, message: ServerMessage) {
        let mut state = self.shared.lock();
        let Some(waiting) = message.session_id.as_ref().and_then(|id| state.tasks.get_mut(id))
        else {
            return;
        };
        if message.status == Status::Continue {
            let step = Step::of(message.result.as_ref()).map(Box::new);
            let line = message.messages.unwrap_or_default().join("\n");
            waiting.inbox.put(TaskEvent::Progress { line, step });
        } else if !waiting.is_accepted {
            waiting.is_accepted = true;
            waiting.inbox.put(TaskEvent::Accepted);
        }
    }

    /// Ends a task whose outcome will not come.
    fn fail(&self, session_id: Option<&SessionId>, error: &str) {
        if let Some(waiting) = session_id.and_then(|id| self.shared.lock().tasks.remove(id)) {
            waiting.inbox.put(TaskEvent::Ended(Outcome::failed(error)));
        }
    }

    fn handle_task_end(&self, message: ServerMessage) {
        let waiting =
            message.session_id.as_ref().and_then(|id| self.shared.lock().tasks.remove(id));
        if let Some(waiting) = waiting {
            waiting.inbox.put(TaskEvent::Ended(Outcome::of(message)));
        }
    }

    /// A refused task: our server follows up with a TASK_END, a Python server with nothing.
    fn handle_error(&self, message: ServerMessage) {
        let text = message.error.unwrap_or_else(|| "Unknown error".to_owned());
        let mut state = self.shared.lock();
        let is_python = state.granted.is_none();
        let oldest = || if is_python { state.oldest_unaccepted() } else { None };
        let refused = message.session_id.or_else(oldest);
        match refused.and_then(|id| state.tasks.remove(&id)) {
            Some(waiting) => waiting.inbox.put(TaskEvent::Ended(Outcome::failed(&text))),
            // An ERROR names no request either; one question at a time is the only safe guess.
            None if state.infos.len() == 1 => {
                let asked = state.infos.take_all().next();
                let refused = Err(RequestError::Refused(text));
                let _nobody_waits = asked.map(|(_, answer)| answer.send(refused));
            }
            None => tracing::warn!(error = ?text, "the server reports an error"),
        }
    }

    fn handle_info(&self, message: ServerMessage) {
        let answer = message.response_id.and_then(|id| self.shared.lock().infos.take(id.as_str()));
        if let Some(answer) = answer {
            let _nobody_waits = answer.send(Ok(message.result));
        }
    }
}

/// A fresh id: a UUID is always a good one.
fn fresh<T, E>(ambient: &Ambient, id: impl Fn(&str) -> Result<T, E>) -> T {
    loop {
        if let Ok(id) = id(&ambient.uuid().to_string()) {
            return id;
        }
    }
}
