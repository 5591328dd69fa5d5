//! A device's connection to its server: registers with the facts, hands commands to the executor.
//!
//! It also submits the device's own task (`own`).

mod own;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use aip::codec::{About, Wire};
use aip::message::{
    Confirmed, DeviceMetadata, Extension, Feature, Resume, ResumeRefused, SystemInfo, VERSION,
};
use aip::{
    ClientId, ClientMessage, ClientMessageType, ClientType, CloseCode, DecodeError, KEY_GONE,
    Payload, ServerMessage, ServerMessageType, SessionId, Status,
};
use link::client::error_report;
use link::{Ambient, Client, ClientSettings, Exit, Identity, IdentityError, Outbox, Role};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::own::Own;
use crate::confine::SandboxError;
use crate::executor::{Capacity, Executor, FORBIDDEN, LEAVING, Line, interrupted};
use crate::info::{Facts, Features, Subject};
use crate::journal::{JournalSettings, Journals};
use crate::spool::{SpoolSettings, Spools};
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
    /// Words by which it can be chosen among others.
    pub tags: Vec<String>,
    /// The owner's limits on the tools.
    pub tools: ToolSettings,
    /// COMMANDs that it may hold.
    pub commands: Capacity,
    /// What it keeps of them, so that a lost connection or its own death does nothing twice.
    pub journal: JournalSettings,
    /// How much is kept beside it of what commands write whose requesters do not wait for it.
    pub spool: SpoolSettings,
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

/// Why there can be no such device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The sandbox that is asked for cannot be had.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// Another device has the folder of its journal.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// What a device asks its server for.
const FEATURES: [Feature; 7] = [
    Feature::Progress,
    Feature::Ack,
    Feature::Cancel,
    Feature::Resume,
    Feature::Output,
    Feature::Input,
    Feature::Env,
];

/// The file in the folder of a journal that says who its device is.
const IDENTITY_FILE: &str = "identity.json";

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
    /// When the sandbox that is asked for cannot be had, or another device has the folder of its journal. A folder that
    /// cannot be used otherwise is logged as a warning, and the journal is in memory.
    pub fn new(
        settings: DeviceSettings,
        watchdog: Option<Arc<Watchdog>>,
        on_event: impl Fn(DeviceEvent) + Send + Sync + 'static,
    ) -> Result<Self, DeviceError> {
        let confinement = settings.tools.confinement()?;
        let (identity, journals) =
            remembered(&settings.journal, &settings.id, &settings.client.ambient)?;
        crate::group::Cgroup::find_out();
        confinement.missing().iter().for_each(|what| tracing::warn!("{what}"));
        let state = Arc::new(StateKeeper::new());
        let own = Arc::new(Own::new(on_event));
        let at_once = u32::try_from(settings.tools.parallel_commands).unwrap_or(u32::MAX);
        let on_server = on_server(state.clone(), own.clone());
        let tools = Toolbox::start(&settings.tools, &confinement, watchdog, &on_server);
        let ambient = settings.client.ambient.clone();
        let executor = Executor::new(
            settings.id.clone(),
            tools,
            settings.commands,
            journals,
            Spools::new(settings.journal.folder.as_deref(), settings.spool),
            state.clone(),
            ambient.clone(),
        );
        let subject = Subject {
            device_id: settings.id.as_str().to_owned(),
            platform: settings.platform.clone(),
            features: settings.features,
            tags: settings.tags,
        };
        let asked = executor.clone();
        let facts = match settings.facts {
            Some(given) => Facts::given(given),
            None => Facts::new(&subject, move || asked.offers()),
        };
        let role = DeviceRole {
            id: settings.id,
            platform: settings.platform,
            at_once,
            known: facts.known(),
            facts: Arc::new(tokio::sync::Mutex::new(facts)),
            telling: None,
            ambient,
            executor,
            state,
            outbox: None,
            identity,
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

/// Whether a COMMAND with this status is the last of its task.
fn ends_task(status: Option<Status>) -> bool {
    matches!(status, Some(Status::Completed | Status::Failed))
}

/// Who the device is and what it did, out of its folder; new where that cannot be used.
fn remembered(
    settings: &JournalSettings,
    id: &ClientId,
    ambient: &Ambient,
) -> Result<(Identity, Journals), DeviceError> {
    let interrupt = |command, results| interrupted(id, &ambient.time_text(), command, results);
    let open = |folder: &std::path::Path| {
        let mut identity =
            Identity::open(&folder.join(IDENTITY_FILE), settings.retention, ambient)?;
        let opened = Journals::open(settings.clone(), ambient.boot(), &interrupt);
        let (journals, is_damaged) = opened.map_err(|source| IdentityError::File {
            what: "read",
            path: folder.to_owned(),
            source,
        })?;
        if is_damaged {
            identity.renew_journal();
        }
        Ok((identity, journals))
    };
    match settings.folder.as_deref().map(open) {
        Some(Ok(remembered)) => return Ok(remembered),
        Some(Err(error @ IdentityError::InUse { .. })) => return Err(error.into()),
        Some(Err(error)) => tracing::warn!(%error, "there is no journal that outlives this device"),
        None => {}
    }
    Ok((Identity::in_memory(ambient), Journals::in_memory(settings, ambient.boot())))
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
    /// How many tasks of its own tools for commands and files it takes at the same time.
    at_once: u32,
    facts: Arc<tokio::sync::Mutex<Facts>>,
    /// The facts as they were when it connected.
    known: SystemInfo,
    /// What looks for the facts to answer a DEVICE_INFO_REQUEST.
    telling: Option<JoinHandle<()>>,
    ambient: Ambient,
    executor: Executor,
    state: Arc<StateKeeper>,
    outbox: Option<Arc<Outbox>>,
    identity: Identity,
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
        let (newest, commands) = self.executor.list(self.identity.store());
        let resume = Resume { newest, commands, ..self.identity.present() };
        let metadata = DeviceMetadata {
            platform: self.platform.clone(),
            system_info: self.known.clone(),
            registration_time: self.ambient.time_text(),
            flightdeck: Extension {
                version: VERSION,
                features: FEATURES.to_vec(),
                at_once: Some(self.at_once),
                resume: Some(resume),
            },
        };
        ClientMessage {
            metadata: Payload::from_value(&metadata).ok(),
            ..self.message(ClientMessageType::Register)
        }
    }

    fn handle_refused(&mut self, refusal: &ServerMessage) -> bool {
        ResumeRefused::of(refusal.result.as_ref())
            .is_some_and(|refused| self.identity.handle_refused(&refused.resume))
    }

    fn has_work(&self) -> bool {
        self.executor.is_busy() || !self.executor.list(self.identity.store()).1.is_empty()
    }

    fn handle_connected(&mut self, outbox: &Arc<Outbox>, granted: Option<&Confirmed>) {
        self.outbox = Some(outbox.clone());
        self.open_line(outbox, granted);
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
        self.executor.handle_disconnected();
        if why.contains(KEY_GONE) {
            self.executor.stop_all(FORBIDDEN);
        }
        // Nobody shall wait for room in it.
        if let Some(outbox) = self.outbox.take() {
            outbox.abort(CloseCode::NORMAL, why);
        }
        self.own.lose(why);
        self.state.disconnected(why, retry);
        self.own.tell(DeviceEvent::Disconnected { why: why.to_owned(), retry });
    }
}

impl DeviceRole {
    /// Hands the connection to the executor, with what the server says about the commands of before.
    fn open_line(&mut self, outbox: &Arc<Outbox>, granted: Option<&Confirmed>) {
        let has = |feature| granted.is_some_and(|granted| granted.features.contains(&feature));
        let line = Line {
            outbox: outbox.clone(),
            tells: has(Feature::Progress),
            confirms: has(Feature::Cancel),
            journal: None,
        };
        let resumed = granted.and_then(|granted| granted.resumed.as_ref());
        let former = resumed.and_then(|resumed| self.identity.handle_confirmed(resumed));
        match resumed.filter(|_| has(Feature::Resume)) {
            Some(resumed) => {
                let others: Vec<_> = self.identity.other_stores().collect();
                let keeps = |store: &str| others.contains(&store);
                self.executor.handle_resumed(line, resumed, former.as_deref(), keeps);
            }
            None => self.executor.handle_connected(line),
        }
    }

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
        let ends_task = ends_task(Some(command.status));
        let (own, executor) = (self.own.clone(), self.executor.clone());
        let end =
            command.session_id.clone().filter(|_| ends_task).map(|session_id| ServerMessage {
                session_id: Some(session_id),
                ..ServerMessage::new(ServerMessageType::TaskEnd, command.status)
            });
        self.executor.start(command, move || {
            if let Some(end) = end {
                end.session_id.iter().for_each(|session_id| executor.stop_session(session_id));
                own.end(end);
            }
        });
    }

    fn handle_task_end(&mut self, end: ServerMessage) {
        let Some(session_id) = &end.session_id else { return };
        // Nothing of an ended session may go on, however it ended.
        self.executor.end_session(session_id, end.status == Status::Failed);
        self.acknowledge_outcome(&end);
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
