//! A device's connection to its server: registers with the facts, hands commands to the executor.
//!
//! It also submits the device's own task: one that its owner gives with `--request`, or that a Python server pushes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aip::codec::{About, Wire};
use aip::message::{Confirmed, DeviceMetadata, Extension, Feature, SystemInfo, VERSION};
use aip::{
    ClientId, ClientMessage, ClientMessageType, ClientType, CloseCode, DecodeError, Payload,
    RequestId, ServerMessage, ServerMessageType, SessionId, Status,
};
use link::client::error_report;
use link::{Ambient, Client, ClientSettings, Exit, Outbox, Role};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::confine::SandboxError;
use crate::executor::{Capacity, Executor, LEAVING, LOST};
use crate::info::{Facts, Features, Subject};
use crate::state::{DeviceState, StateKeeper};
use crate::tools::mcp::{self, ServerEvent};
use crate::tools::{ToolSettings, Toolbox};
use crate::watchdog::Watchdog;

/// Longest wait, at the end, for the commands that were told to stop: somewhat longer than an MCP server may
/// take to hear of it.
const STOP_TIME: Duration = Duration::from_secs(6);

/// Longest wait, at the end, for the server's goodbye after ours.
const GOODBYE_TIME: Duration = Duration::from_secs(3);

/// What a device is and may do.
#[derive(Clone)]
pub struct DeviceSettings {
    /// How to reach the server.
    pub client: ClientSettings,
    /// Who this device says it is.
    pub id: ClientId,
    /// `windows`, `linux` or `mobile`.
    pub platform: String,
    /// Which features it tells.
    pub features: Features,
    /// The owner's limits on the tools.
    pub tools: ToolSettings,
    /// COMMANDs that it may hold.
    pub commands: Capacity,
    /// When it is told to stop, how long running COMMANDs may take to finish.
    pub finish_time: Duration,
    /// A task to submit for this device itself, once it is connected.
    pub request: Option<String>,
    /// The label of that task.
    pub task_name: Option<String>,
    /// What it tells of itself; what is found out about this machine, if none.
    pub facts: Option<SystemInfo>,
}

/// What happens to a device, for whoever shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceEvent {
    /// The server took it.
    Connected,
    /// The connection is gone, or could not be made.
    Disconnected {
        /// Why.
        why: String,
        /// When the next try comes, if any.
        retry: Option<Duration>,
    },
    /// Its own task was accepted.
    TaskAccepted(SessionId),
    /// Its own task is over.
    TaskEnded(Box<ServerMessage>),
    /// The server reports an error.
    ServerError(String),
    /// An MCP server has started, died or been stopped.
    McpServer(ServerEvent),
}

/// A device that is not connected yet.
pub struct Device {
    settings: ClientSettings,
    finish_time: Duration,
    role: DeviceRole,
}

impl Device {
    /// A device, whose MCP servers are started at once; `on_event` is told what happens to it. `watchdog`
    /// outlives it and cleans up after it. What this system cannot enforce of the owner's limits is logged
    /// as a warning. Must be called in a runtime.
    ///
    /// # Errors
    /// When the sandbox that is asked for cannot be had.
    pub fn new(
        settings: DeviceSettings,
        watchdog: Option<Arc<Watchdog>>,
        on_event: impl Fn(DeviceEvent) + Send + Sync + 'static,
    ) -> Result<Self, SandboxError> {
        let confinement = settings.tools.confinement()?;
        crate::group::Cgroup::find_out();
        confinement.missing().iter().for_each(|what| tracing::warn!("{what}"));
        let state = Arc::new(StateKeeper::new());
        let own = Arc::new(Own { task: Mutex::default(), on_event: Box::new(on_event) });
        let on_server = on_server(state.clone(), own.clone());
        let tools = Toolbox::start(&settings.tools, &confinement, watchdog, &on_server);
        let ambient = settings.client.ambient.clone();
        let executor = Executor::new(
            settings.id.clone(),
            tools,
            settings.commands,
            state.clone(),
            ambient.clone(),
        );
        let subject = Subject {
            device_id: settings.id.as_str().to_owned(),
            platform: settings.platform.clone(),
            features: settings.features,
        };
        let asked = executor.clone();
        let facts = match settings.facts {
            Some(given) => Facts::given(given),
            None => Facts::new(&subject, move || asked.offers()),
        };
        let role = DeviceRole {
            id: settings.id,
            platform: settings.platform,
            known: facts.known(),
            facts: Arc::new(tokio::sync::Mutex::new(facts)),
            telling: None,
            ambient,
            executor,
            state,
            outbox: None,
            tells_progress: false,
            own,
            request: settings.request,
            task_name: settings.task_name,
        };
        Ok(Self { settings: settings.client, finish_time: settings.finish_time, role })
    }

    /// How it is doing, from now on.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<DeviceState> {
        self.role.state.watch()
    }

    /// Runs until it is told to stop or the server will not have it. When it is told to, what runs may
    /// finish for a while and is stopped then; the server gets all results before the goodbye.
    pub async fn run(self, stop: CancellationToken) -> Exit {
        let (executor, leave) = (self.role.executor.clone(), CancellationToken::new());
        let client = Client::new(self.settings, self.role).run(leave.clone());
        let winding_down = async {
            stop.cancelled().await;
            executor.wind_down(self.finish_time, STOP_TIME).await;
            leave.cancel();
            tokio::time::sleep(GOODBYE_TIME).await;
            Exit::Stopped
        };
        let exit = tokio::select! {
            biased;
            exit = client => exit,
            stopped = winding_down => stopped,
        };
        executor.stop_all(LEAVING);
        // What was started is ended before we are; a program stuck in the kernel does not hold us.
        let _ended = tokio::time::timeout(STOP_TIME, executor.finished()).await;
        executor.stop_tools().await;
        let _rested = tokio::time::timeout(STOP_TIME, crate::process::hunter::rest()).await;
        exit
    }
}

/// The task that this device submitted for itself.
struct OwnTask {
    session_id: SessionId,
    is_accepted: bool,
}

/// What the connection shares with the COMMANDs that may end its own task.
struct Own {
    /// One at a time.
    task: Mutex<Option<OwnTask>>,
    on_event: Box<dyn Fn(DeviceEvent) + Send + Sync>,
}

impl Own {
    fn task(&self) -> MutexGuard<'_, Option<OwnTask>> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the task that an outcome is about, if it is ours.
    fn end(&self, end: ServerMessage) {
        let is_own = |task: &mut OwnTask| end.session_id.as_ref() == Some(&task.session_id);
        let ended = self.task().take_if(is_own);
        if ended.is_some() {
            self.tell(DeviceEvent::TaskEnded(Box::new(end)));
        }
    }

    fn tell(&self, event: DeviceEvent) {
        (self.on_event)(event);
    }
}

/// Whether a COMMAND with this status is the last of its task.
fn ends_task(status: Option<Status>) -> bool {
    matches!(status, Some(Status::Completed | Status::Failed))
}

/// Passes on what happens to the MCP servers.
fn on_server(state: Arc<StateKeeper>, own: Arc<Own>) -> mcp::OnEvent {
    Arc::new(move |event: ServerEvent| {
        state.mcp_server(&event.namespace, event.to_string());
        own.tell(DeviceEvent::McpServer(event));
    })
}

struct DeviceRole {
    id: ClientId,
    platform: String,
    facts: Arc<tokio::sync::Mutex<Facts>>,
    /// The facts as they were when it connected.
    known: SystemInfo,
    /// What looks for the facts to answer a DEVICE_INFO_REQUEST.
    telling: Option<JoinHandle<()>>,
    ambient: Ambient,
    executor: Executor,
    state: Arc<StateKeeper>,
    outbox: Option<Arc<Outbox>>,
    /// Whether this server wants to hear what tools tell while they run.
    tells_progress: bool,
    own: Arc<Own>,
    request: Option<String>,
    task_name: Option<String>,
}

impl Role for DeviceRole {
    fn identity(&self) -> (&ClientId, ClientType) {
        (&self.id, ClientType::Device)
    }

    async fn prepare(&mut self) {
        let mut facts = self.facts.lock().await;
        facts.refresh().await;
        self.known = facts.known();
    }

    fn register(&mut self) -> ClientMessage {
        let metadata = DeviceMetadata {
            platform: self.platform.clone(),
            system_info: self.known.clone(),
            registration_time: self.ambient.time_text(),
            flightdeck: Extension {
                version: VERSION,
                features: vec![Feature::Progress],
                resume: None,
            },
        };
        ClientMessage {
            metadata: Payload::from_value(&metadata).ok(),
            ..self.message(ClientMessageType::Register)
        }
    }

    fn handle_connected(&mut self, outbox: &Arc<Outbox>, granted: Option<&Confirmed>) {
        self.outbox = Some(outbox.clone());
        self.tells_progress =
            granted.is_some_and(|granted| granted.features.contains(&Feature::Progress));
        self.state.connected();
        self.own.tell(DeviceEvent::Connected);
        if let Some(request) = self.request.take() {
            let task_name = self.task_name.take();
            self.submit(request, task_name);
        }
    }

    fn handle_message(&mut self, message: ServerMessage) {
        match message.kind {
            ServerMessageType::Command => self.handle_command(message),
            ServerMessageType::Task => self.handle_pushed_task(message),
            ServerMessageType::TaskEnd => self.handle_task_end(message),
            ServerMessageType::Heartbeat => self.handle_heartbeat(message),
            ServerMessageType::Error => self.handle_error(message),
            ServerMessageType::DeviceInfoRequest => self.send_facts(&message),
            ServerMessageType::DeviceInfoResponse => {}
        }
    }

    fn handle_unreadable(&mut self, error: &DecodeError, about: &About) {
        let text = error.to_string();
        self.send(&self.error_report(text.clone()));
        let is_command = about.is("command");
        if let Some(outbox) = self.outbox.as_ref().filter(|_| is_command) {
            // It is answered also when it cannot be read: its server waits for that.
            self.state.answered(true);
            let at = self.ambient.time_text();
            let _cut_if_it_overflows = outbox.push(about.refusal(&self.id, &at, &text));
        }
        if about.is("task_end") || is_command && ends_task(about.status) {
            let session_id = about.session_id.clone();
            let end = session_id.map(|session_id| ServerMessage::task_failed(text, session_id));
            end.into_iter().for_each(|end| self.handle_task_end(end));
        }
    }

    fn handle_disconnected(&mut self, why: &str, retry: Option<Duration>) {
        // Without a way to deliver results, going on would only keep the machine busy.
        self.executor.stop_all(LOST);
        // Nobody shall wait for room in it.
        if let Some(outbox) = self.outbox.take() {
            outbox.abort(CloseCode::NORMAL, why);
        }
        let own_task = self.own.task().take();
        if let Some(own_task) = own_task {
            // It is not submitted again: this server may be at work on it, and would do it twice.
            let error = match own_task.is_accepted {
                true => format!("the connection was lost, so the outcome is unknown: {why}"),
                false => format!(
                    "the connection was lost before the server accepted the task, so it may run or \
                     not; submit it again if it may be done twice: {why}"
                ),
            };
            let lost = ServerMessage::task_failed(error, own_task.session_id);
            self.own.tell(DeviceEvent::TaskEnded(Box::new(lost)));
        }
        self.state.disconnected(why, retry);
        self.own.tell(DeviceEvent::Disconnected { why: why.to_owned(), retry });
    }
}

impl DeviceRole {
    fn error_report(&self, text: String) -> ClientMessage {
        error_report(&self.id, ClientType::Device, text, self.ambient.time_text())
    }

    fn message(&self, kind: ClientMessageType) -> ClientMessage {
        ClientMessage {
            client_id: Some(self.id.clone()),
            timestamp: Some(self.ambient.time_text()),
            ..ClientMessage::new(kind, ClientType::Device)
        }
    }

    /// Queues a message. When the queue overflows, the connection is cut, and we are told.
    fn send(&self, message: &ClientMessage) {
        if let Some(outbox) = &self.outbox {
            let _cut_if_it_overflows = outbox.push(message.encode());
        }
    }

    /// A COMMAND that is itself `completed` or `failed` is executed and answered, and ends its task then.
    fn handle_command(&mut self, command: ServerMessage) {
        let Some(outbox) = &self.outbox else { return };
        let ends_task = ends_task(Some(command.status));
        let (own, executor) = (self.own.clone(), self.executor.clone());
        let end =
            command.session_id.clone().filter(|_| ends_task).map(|session_id| ServerMessage {
                session_id: Some(session_id),
                ..ServerMessage::new(ServerMessageType::TaskEnd, command.status)
            });
        self.executor.start(command, outbox, self.tells_progress, move || {
            if let Some(end) = end {
                end.session_id.iter().for_each(|session_id| executor.stop_session(session_id));
                own.end(end);
            }
        });
    }

    /// A Python server pushes tasks, which the device then submits as its own: one at a time.
    fn handle_pushed_task(&mut self, task: ServerMessage) {
        let Some(request) = task.user_request else {
            return self.refuse("TASK without user_request".to_owned());
        };
        if self.own.task().is_some() {
            return self.refuse("A task of this device is running already".to_owned());
        }
        self.submit(request, task.task_name);
    }

    fn refuse(&self, text: String) {
        self.send(&self.error_report(text));
    }

    fn submit(&mut self, request: String, task_name: Option<String>) {
        // A UUID is always a good id.
        let Ok(session_id) = SessionId::new(&self.ambient.uuid().to_string()) else { return };
        let own_task = OwnTask { session_id: session_id.clone(), is_accepted: false };
        *self.own.task() = Some(own_task);
        self.send(&ClientMessage {
            status: Status::Continue,
            session_id: Some(session_id),
            request: Some(request),
            task_name,
            request_id: RequestId::new(&self.ambient.uuid().to_string()).ok(),
            // Without it a Python server takes the device for one with Windows.
            metadata: Payload::from_value(&json!({"platform": self.platform})).ok(),
            ..self.message(ClientMessageType::Task)
        });
    }

    /// The ACK of our own task names its session, which counts whatever we asked for. Any other `ok`
    /// is the answer to a heartbeat and names none.
    fn handle_heartbeat(&mut self, message: ServerMessage) {
        let Some(session_id) = message.session_id.filter(|_| message.status == Status::Ok) else {
            return;
        };
        let mut task = self.own.task();
        if let Some(own_task) = task.as_mut().filter(|task| !task.is_accepted) {
            *own_task = OwnTask { session_id: session_id.clone(), is_accepted: true };
            drop(task);
            self.own.tell(DeviceEvent::TaskAccepted(session_id));
        }
    }

    /// A Python server refuses a task with an ERROR that names no session, and nothing else.
    fn handle_error(&mut self, message: ServerMessage) {
        let text = message.error.unwrap_or_else(|| "Unknown error".to_owned());
        let names_none = message.session_id.is_none();
        let refused = self.own.task().take_if(|task| !task.is_accepted && names_none);
        self.own.tell(match refused {
            Some(task) => {
                DeviceEvent::TaskEnded(Box::new(ServerMessage::task_failed(text, task.session_id)))
            }
            None => DeviceEvent::ServerError(text),
        });
    }

    fn handle_task_end(&mut self, end: ServerMessage) {
        let Some(session_id) = &end.session_id else { return };
        // Nothing of an ended session may go on, however it ended.
        self.executor.stop_session(session_id);
        self.own.end(end);
    }

    /// Looks at this machine anew, and tells what it finds. Who asks again meanwhile is told what was
    /// known before.
    fn send_facts(&mut self, request: &ServerMessage) {
        let response = ClientMessage {
            prev_response_id: request.response_id.clone(),
            ..self.message(ClientMessageType::DeviceInfoResponse)
        };
        if self.telling.as_ref().is_some_and(|telling| !telling.is_finished()) {
            let metadata = Payload::from_value(&self.known).ok();
            return self.send(&ClientMessage { metadata, ..response });
        }
        let Some(outbox) = self.outbox.clone() else { return };
        let facts = self.facts.clone();
        self.telling = Some(self.ambient.spawn(async move {
            let mut facts = facts.lock().await;
            facts.refresh().await;
            let metadata = Payload::from_value(&facts.known()).ok();
            let _cut_if_it_overflows = outbox.push(ClientMessage { metadata, ..response }.encode());
        }));
    }
}
