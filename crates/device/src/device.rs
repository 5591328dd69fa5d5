//! A device's connection to its server: registers with the facts, hands commands to the executor.

use std::sync::Arc;
use std::time::Duration;

use aip::codec::{About, Wire};
use aip::message::{Confirmed, DeviceMetadata, Extension, Feature, SystemInfo, VERSION};
use aip::{
    ActionResult, ClientId, ClientMessage, ClientMessageType, ClientType, DecodeError, Payload,
    RequestId, ServerMessage, ServerMessageType, SessionId, Status,
};
use link::client::error_report;
use link::connection::timestamp;
use link::{Client, ClientSettings, Exit, Outbox, Role};
use tokio_util::sync::CancellationToken;

use crate::confine::SandboxError;
use crate::executor::Executor;
use crate::info::{self, Offers};
use crate::tools::mcp::{self, ServerEvent};
use crate::tools::{ToolSettings, Toolbox};
use crate::watchdog::Watchdog;

/// Longest wait, at the end, for the commands that were told to stop.
const STOP_TIME: Duration = Duration::from_secs(4);

/// What a device is and may do.
#[derive(Clone)]
pub struct DeviceSettings {
    /// How to reach the server.
    pub client: ClientSettings,
    /// Who this device says it is.
    pub id: ClientId,
    /// `windows`, `linux` or `mobile`.
    pub platform: String,
    /// The owner's limits on the tools.
    pub tools: ToolSettings,
    /// COMMANDs that run at the same time.
    pub parallel_commands: usize,
    /// COMMANDs that may run or wait.
    pub max_commands: usize,
    /// A task to submit for this device itself, once it is connected.
    pub request: Option<String>,
    /// The label of that task.
    pub task_name: Option<String>,
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
        confinement.missing().iter().for_each(|what| tracing::warn!("{what}"));
        let on_event: Arc<dyn Fn(DeviceEvent) + Send + Sync> = Arc::new(on_event);
        let tell = on_event.clone();
        let on_server: mcp::OnEvent = Arc::new(move |event| tell(DeviceEvent::McpServer(event)));
        let tools = Toolbox::start(&settings.tools, &confinement, watchdog, &on_server);
        let offers = tools.offers();
        let executor = Executor::new(
            settings.id.clone(),
            tools,
            settings.parallel_commands,
            settings.max_commands,
        );
        let role = DeviceRole {
            id: settings.id,
            platform: settings.platform,
            offers,
            executor,
            outbox: None,
            tells_progress: false,
            own_task: None,
            request: settings.request,
            task_name: settings.task_name,
            on_event,
        };
        Ok(Self { settings: settings.client, role })
    }

    /// Runs until it is told to stop or the server will not have it. Whatever it runs then is stopped.
    pub async fn run(self, stop: CancellationToken) -> Exit {
        let executor = self.role.executor.clone();
        let exit = Client::new(self.settings, self.role).run(stop).await;
        executor.stop_all();
        // What was started is ended before we are; a program stuck in the kernel does not hold us.
        let _ended = tokio::time::timeout(STOP_TIME, executor.finished()).await;
        executor.stop_tools().await;
        exit
    }
}

/// The task that this device submitted for itself.
struct OwnTask {
    session_id: SessionId,
    is_accepted: bool,
}

struct DeviceRole {
    id: ClientId,
    platform: String,
    offers: Offers,
    executor: Executor,
    outbox: Option<Arc<Outbox>>,
    /// Whether this server wants to hear what tools tell while they run.
    tells_progress: bool,
    /// One at a time.
    own_task: Option<OwnTask>,
    request: Option<String>,
    task_name: Option<String>,
    on_event: Arc<dyn Fn(DeviceEvent) + Send + Sync>,
}

impl Role for DeviceRole {
    fn identity(&self) -> (&ClientId, ClientType) {
        (&self.id, ClientType::Device)
    }

    fn register(&mut self) -> ClientMessage {
        let metadata = DeviceMetadata {
            platform: self.platform.clone(),
            system_info: self.facts(),
            registration_time: timestamp(),
            flightdeck: Extension { version: VERSION, features: vec![Feature::Progress] },
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
        (self.on_event)(DeviceEvent::Connected);
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
        self.send(&error_report(&self.id, ClientType::Device, error.to_string()));
        // A COMMAND is answered also when it cannot be read: its server waits for that.
        if about.is("command") && about.response_id.is_some() {
            self.send(&ClientMessage {
                status: Status::Continue,
                session_id: about.session_id.clone(),
                prev_response_id: about.response_id.clone(),
                action_results: Some(vec![ActionResult::failure(None, error.to_string())]),
                ..self.message(ClientMessageType::CommandResults)
            });
        }
    }

    fn handle_disconnected(&mut self, why: &str, retry: Option<Duration>) {
        // Without a way to deliver results, going on would only keep the machine busy.
        self.executor.stop_all();
        self.outbox = None;
        if let Some(own_task) = self.own_task.take() {
            let error = format!("the connection was lost, so the outcome is unknown: {why}");
            let lost = ServerMessage::task_failed(error, own_task.session_id);
            (self.on_event)(DeviceEvent::TaskEnded(Box::new(lost)));
        }
        (self.on_event)(DeviceEvent::Disconnected { why: why.to_owned(), retry });
    }
}

impl DeviceRole {
    fn message(&self, kind: ClientMessageType) -> ClientMessage {
        ClientMessage {
            client_id: Some(self.id.clone()),
            timestamp: Some(timestamp()),
            ..ClientMessage::new(kind, ClientType::Device)
        }
    }

    fn facts(&self) -> SystemInfo {
        info::collect(self.id.as_str(), &self.platform, self.offers)
    }

    /// Queues a message. When the queue overflows, the connection is cut, and we are told.
    fn send(&self, message: &ClientMessage) {
        if let Some(outbox) = &self.outbox {
            let _cut_if_it_overflows = outbox.push(message.encode());
        }
    }

    fn handle_command(&mut self, command: ServerMessage) {
        let Some(outbox) = &self.outbox else { return };
        let ends_task = matches!(command.status, Status::Completed | Status::Failed);
        let (session_id, status) = (command.session_id.clone(), command.status);
        self.executor.start(command, outbox, self.tells_progress);
        if let Some(session_id) = session_id.filter(|_| ends_task) {
            self.end_own_task(ServerMessage {
                session_id: Some(session_id),
                ..ServerMessage::new(ServerMessageType::TaskEnd, status)
            });
        }
    }

    /// A Python server pushes tasks, which the device then submits as its own: one at a time.
    fn handle_pushed_task(&mut self, task: ServerMessage) {
        let Some(request) = task.user_request else {
            return self.refuse("TASK without user_request".to_owned());
        };
        if self.own_task.is_some() {
            return self.refuse("A task of this device is running already".to_owned());
        }
        self.submit(request, task.task_name);
    }

    fn refuse(&self, text: String) {
        self.send(&error_report(&self.id, ClientType::Device, text));
    }

    fn submit(&mut self, request: String, task_name: Option<String>) {
        // A UUID is always a good id.
        let Ok(session_id) = SessionId::new(&uuid::Uuid::new_v4().to_string()) else { return };
        self.own_task = Some(OwnTask { session_id: session_id.clone(), is_accepted: false });
        self.send(&ClientMessage {
            status: Status::Continue,
            session_id: Some(session_id),
            request: Some(request),
            task_name,
            request_id: RequestId::new(&uuid::Uuid::new_v4().to_string()).ok(),
            ..self.message(ClientMessageType::Task)
        });
    }

    /// The ACK of our own task names its session, which counts whatever we asked for. Any other `ok`
    /// is the answer to a heartbeat and names none.
    fn handle_heartbeat(&mut self, message: ServerMessage) {
        let unaccepted = self.own_task.as_mut().filter(|task| !task.is_accepted);
        let named = message.session_id.filter(|_| message.status == Status::Ok);
        if let (Some(own_task), Some(session_id)) = (unaccepted, named) {
            *own_task = OwnTask { session_id: session_id.clone(), is_accepted: true };
            (self.on_event)(DeviceEvent::TaskAccepted(session_id));
        }
    }

    /// A Python server refuses a task with an ERROR that names no session, and nothing else.
    fn handle_error(&mut self, message: ServerMessage) {
        let text = message.error.unwrap_or_else(|| "Unknown error".to_owned());
        let names_none = message.session_id.is_none();
        let refused = self.own_task.take_if(|task| !task.is_accepted && names_none);
        (self.on_event)(match refused {
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
        self.end_own_task(end);
    }

    fn end_own_task(&mut self, end: ServerMessage) {
        let is_own = |task: &mut OwnTask| end.session_id.as_ref() == Some(&task.session_id);
        if self.own_task.take_if(is_own).is_some() {
            (self.on_event)(DeviceEvent::TaskEnded(Box::new(end)));
        }
    }

    fn send_facts(&self, request: &ServerMessage) {
        self.send(&ClientMessage {
            metadata: Payload::from_value(&self.facts()).ok(),
            prev_response_id: request.response_id.clone(),
            ..self.message(ClientMessageType::DeviceInfoResponse)
        });
    }
}
