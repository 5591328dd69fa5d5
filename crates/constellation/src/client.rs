//! The connection of an orchestrator: what it asked for, and who waits for which answer.
//!
//! Where the server grants *ack*, it comes back by itself after a loss, and its tasks go on meanwhile: what was not
//! acknowledged is sent again, what was is asked after. At any other server its tasks then end as *lost*; so does a
//! task that such a server does not even acknowledge in time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aip::codec::{MAX_MESSAGE_BYTES, Wire};
use aip::machine::Pending;
use aip::message::{Downstream, Feature, Features, OnDisconnect, Streams, TaskSettings};
use aip::{
    ClientId, ClientMessage, ClientMessageType, ClientType, Payload, RequestId, SessionId, Status,
};
use bytes::Bytes;
use link::connection::now;
use link::{Ambient, Client, ClientSettings, Exit, Identity, NotQueued, Outbox};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::keep::Keep;
use crate::ledger::{Entry, Ledger, MAX_TASKS};
use crate::orchestrator::Orchestrator;
use crate::task::{Inbox, NewTask, Task};

/// Longest wait for a device's facts.
const INFO_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest wait for the ACK of a task, which a server without *ack* sends at once.
const ACK_TIMEOUT: Duration = Duration::from_secs(30);

/// Questions for facts that may wait for their answer.
const MAX_PENDING_INFO: usize = 1024;

/// Tasks that are said again after a loss at the same time; the next one goes when one of them is answered.
const REPEATED_AT_ONCE: usize = 64;

/// The most bytes that they have together, unless it is a single one.
const REPEATED_BYTES: usize = 4 * 1024 * 1024;

/// Why a request could not be made or was not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// There is no connection.
    #[error("not connected: {0}")]
    NotConnected(String),
    /// Too many requests wait already, or too much waits to be sent.
    #[error("too many requests wait for their answer already")]
    TooMany,
    /// It is longer than a message may be.
    #[error("the request is longer than the {MAX_MESSAGE_BYTES} bytes of a message")]
    TooLong,
    /// The server does not have what it takes.
    #[error("this server cannot {0}")]
    NotGranted(&'static str),
    /// It could not be written down before it was sent.
    #[error("the task could not be written to the file of tasks")]
    NotKept,
    /// The server said no.
    #[error("{0}")]
    Refused(String),
    /// No answer in time.
    #[error("no answer within {} s", INFO_TIMEOUT.as_secs())]
    TimedOut,
}

/// A connected orchestrator. Dropping it ends the connection, and with it those of its tasks that shall end then.
pub struct Constellation {
    shared: Arc<Shared>,
    held: Mutex<Vec<(RequestId, SessionId, Arc<Inbox>)>>,
    stop: CancellationToken,
    runner: JoinHandle<Exit>,
}

impl Constellation {
    /// Connects and registers as `id`, without a declared target.
    ///
    /// # Errors
    /// Why the server cannot be reached or will not have us.
    pub async fn connect(settings: ClientSettings, id: ClientId) -> Result<Self, Exit> {
        let keep = Keep::in_memory(&settings.ambient);
        Self::connect_keeping(settings, id, keep).await
    }

    /// The same as whoever used these files before: tasks that were not over then go on, see [`Self::held`].
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn connect_keeping(
        settings: ClientSettings,
        id: ClientId,
        keep: Keep,
    ) -> Result<Self, Exit> {
        let ambient = settings.ambient.clone();
        let Keep { identity, file, records } = keep;
        let ledger = Ledger::of(records, file);
        let held = Mutex::new(ledger.held());
        let shared = Arc::new(Shared::new(id, ambient.clone(), identity, ledger));
        let (stop, role) = (CancellationToken::new(), Orchestrator::new(shared.clone()));
        let running = Client::new(settings, role).run(stop.clone());
        let mut constellation = Self { runner: ambient.spawn(running), shared, held, stop };
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
        self.shared.lock().is_flightdeck
    }

    /// Whether a task may go on without our connection, for a while or for good.
    #[must_use]
    pub fn may_detach(&self) -> bool {
        self.shared.lock().granted.has(Feature::Detach)
    }

    /// Whether a task's output comes as it is written, where its device can send it.
    #[must_use]
    pub fn may_stream(&self) -> bool {
        self.shared.lock().granted.has(Feature::Output)
    }

    /// Whether a task may have standard input, where its device takes some.
    #[must_use]
    pub fn may_send_input(&self) -> bool {
        self.shared.lock().granted.has(Feature::Input)
    }

    /// Whether a task can be cancelled other than by the end of the connection.
    #[must_use]
    pub fn may_cancel(&self) -> bool {
        self.shared.lock().granted.has(Feature::Cancel)
    }

    /// The tasks that were submitted before our own last end, and whose outcome nobody took then: each once, oldest
    /// first. Those that wait for another server than this one get no event until it is back.
    #[must_use]
    pub fn held(&self) -> Vec<Task> {
        let held = std::mem::take(&mut *self.held.lock().unwrap_or_else(PoisonError::into_inner));
        let task = |(request_id, session_id, inbox)| Task {
            request_id,
            session_id,
            inbox,
            shared: self.shared.clone(),
            ack_deadline: None,
        };
        held.into_iter().map(task).collect()
    }

    /// Submits a task. While the connection is being made again, it is refused. A task that the server
    /// refuses for now (`refused` of its outcome) is the caller's to submit again.
    ///
    /// # Errors
    /// When there is no connection, or the task cannot be sent.
    pub fn submit(&self, task: NewTask) -> Result<Task, RequestError> {
        let shared = &self.shared;
        let session_id = fresh(&shared.ambient, SessionId::new);
        let request_id = fresh(&shared.ambient, RequestId::new);
        let mut state = shared.lock();
        let store = state.store();
        let message = ClientMessage {
            status: Status::Continue,
            session_id: Some(session_id.clone()),
            metadata: state.settings(&task, store.clone())?,
            task_name: task.task_name,
            target_id: Some(task.target),
            request: Some(task.request),
            request_id: Some(request_id.clone()),
            ..shared.message(ClientMessageType::Task)
        };
        let frame = message.encode();
        if frame.len() > MAX_MESSAGE_BYTES {
            return Err(RequestError::TooLong);
        }
        if state.ledger.len() >= MAX_TASKS {
            return Err(RequestError::TooMany);
        }
        let has_ack = store.is_some();
        let entry = Entry::new(session_id.clone(), store, has_ack.then(|| frame.clone()));
        let inbox = entry.inbox.clone();
        if state.outbox.is_some() && !state.ledger.add(request_id.clone(), entry) {
            return Err(RequestError::NotKept);
        }
        if let Err(error) = state.push(frame) {
            state.ledger.forget(&request_id);
            return Err(error);
        }
        drop(state);
        let ack_deadline = (!has_ack).then(|| tokio::time::Instant::now() + ACK_TIMEOUT);
        Ok(Task { request_id, session_id, inbox, shared: shared.clone(), ack_deadline })
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

    /// Says goodbye and waits until it is said. The server does with tasks that are not over what
    /// [`NewTask::on_disconnect`] says.
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
pub(crate) struct Shared {
    pub(crate) id: ClientId,
    pub(crate) ambient: Ambient,
    state: Mutex<State>,
    pub(crate) connected: watch::Sender<bool>,
}

/// Who waits for the facts of a device.
pub(crate) type Asker = oneshot::Sender<Result<Option<Payload>, RequestError>>;

pub(crate) struct State {
    pub(crate) identity: Identity,
    pub(crate) ledger: Ledger,
    pub(crate) outbox: Option<Arc<Outbox>>,
    pub(crate) is_flightdeck: bool,
    /// What the last confirmation granted.
    pub(crate) granted: Features,
    /// Why there is no connection.
    pub(crate) why: String,
    pub(crate) infos: Pending<RequestId, Asker>,
    repeats: Repeats,
}

/// What is said again after a loss.
#[derive(Default)]
struct Repeats {
    next: VecDeque<RequestId>,
    /// Those that are not answered yet, with their bytes.
    open: BTreeMap<RequestId, usize>,
}

impl State {
    /// The store that a task is submitted to; `None` at a server without *ack*.
    fn store(&self) -> Option<String> {
        let has_ack = self.granted.has(Feature::Ack);
        self.identity.store().filter(|_| has_ack).map(str::to_owned)
    }

    /// The settings of a TASK.
    fn settings(
        &self,
        task: &NewTask,
        store: Option<String>,
    ) -> Result<Option<Payload>, RequestError> {
        let is_plain = task.on_disconnect == OnDisconnect::Cancel;
        if !is_plain && !self.granted.has(Feature::Detach) {
            return Err(RequestError::NotGranted("let a task go on without its requester"));
        }
        let (output, input) = (task.streams.output, task.streams.input);
        if output && !self.granted.has(Feature::Output)
            || input && !self.granted.has(Feature::Input)
        {
            return Err(RequestError::NotGranted("pass on streams"));
        }
        let settings = TaskSettings {
            no_time_limit: task.no_time_limit.then_some(true),
            command_timeout_s: task.command_timeout.map(|timeout| timeout.as_secs_f64()),
            on_disconnect: (!is_plain).then_some(task.on_disconnect),
            streams: Some(task.streams).filter(Streams::is_any),
            store,
            task: None,
        };
        let is_set = settings != TaskSettings::default();
        Ok(is_set.then(|| settings.to_metadata()).flatten())
    }

    fn push(&self, frame: Bytes) -> Result<(), RequestError> {
        let outbox =
            self.outbox.as_ref().ok_or_else(|| RequestError::NotConnected(self.why.clone()))?;
        match outbox.push(frame) {
            Ok(_) => Ok(()),
            Err(NotQueued::Closed) => Err(RequestError::NotConnected("it is closing".to_owned())),
            Err(NotQueued::Full(_)) => Err(RequestError::TooMany),
        }
    }

    /// Sends what is said again if it gets lost.
    pub(crate) fn push_or_repeat(&self, message: &ClientMessage) {
        if let Err(error) = self.push(message.encode()) {
            tracing::debug!(%error, "it will be said again");
        }
    }

    /// Says these tasks again, as many at once as may be.
    pub(crate) fn start_repeats(&mut self, tasks: VecDeque<RequestId>, base: &ClientMessage) {
        self.repeats = Repeats { next: tasks, open: BTreeMap::new() };
        self.go_on_repeating(base);
    }

    /// The server has answered for a task.
    pub(crate) fn handle_answered(&mut self, request_id: &RequestId, base: &ClientMessage) {
        if self.repeats.open.remove(request_id).is_some() {
            self.go_on_repeating(base);
        }
    }

    fn go_on_repeating(&mut self, base: &ClientMessage) {
        while let Some(request_id) = self.repeats.next.pop_front() {
            let frames = self.ledger.repeat(&request_id, base);
            let bytes: usize = frames.iter().map(Bytes::len).sum();
            let open = self.repeats.open.values().sum::<usize>();
            let is_full = self.repeats.open.len() >= REPEATED_AT_ONCE
                || open > 0 && open + bytes > REPEATED_BYTES;
            if is_full {
                return self.repeats.next.push_front(request_id);
            }
            if frames.is_empty() {
                continue;
            }
            self.repeats.open.insert(request_id, bytes);
            if frames.into_iter().any(|frame| self.push(frame).is_err()) {
                // The connection is closing; the next one begins anew.
                return self.repeats = Repeats::default();
            }
        }
    }
}

impl Shared {
    fn new(id: ClientId, ambient: Ambient, identity: Identity, ledger: Ledger) -> Self {
        let state = State {
            identity,
            ledger,
            outbox: None,
            is_flightdeck: false,
            granted: Features::default(),
            why: "never connected".to_owned(),
            infos: Pending::new(MAX_PENDING_INFO),
            repeats: Repeats::default(),
        };
        Self { id, ambient, state: Mutex::new(state), connected: watch::Sender::new(false) }
    }

    pub(crate) fn message(&self, kind: ClientMessageType) -> ClientMessage {
        ClientMessage {
            client_id: Some(self.id.clone()),
            timestamp: Some(self.ambient.time_text()),
            ..ClientMessage::new(kind, ClientType::Constellation)
        }
    }

    /// What the messages about a task have in common.
    pub(crate) fn base(&self) -> ClientMessage {
        self.message(ClientMessageType::Task)
    }

    pub(crate) fn send(&self, message: &ClientMessage) -> Result<(), RequestError> {
        self.lock().push(message.encode())
    }

    /// Says something of a task's streams; what gets lost is said again after the loss.
    pub(crate) fn say(&self, request_id: &RequestId, downstream: &Downstream) {
        let state = self.lock();
        if let Some(message) = state.ledger.stream_message(request_id, downstream, &self.base()) {
            state.push_or_repeat(&message);
        }
    }

    pub(crate) fn cancel(&self, request_id: &RequestId) -> Result<(), RequestError> {
        let mut state = self.lock();
        if !state.granted.has(Feature::Cancel) {
            return Err(RequestError::NotGranted("cancel a task"));
        }
        if let Some(cancel) = state.ledger.cancel(request_id, &self.base()) {
            state.push_or_repeat(&cancel);
        }
        Ok(())
    }

    /// Whoever submitted a task has its outcome, or wants none.
    pub(crate) fn handle_taken(&self, request_id: &RequestId) {
        self.lock().ledger.take(request_id);
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
