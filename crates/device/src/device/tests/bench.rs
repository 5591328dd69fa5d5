//! The device under test, its machine, and the far ends of its wires.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aip::machine::confirm;
use aip::message::{
    Extension, Feature, HeldState, Instruction, Mismatch, ResultAck, Resume, ResumeRefused,
    Resumed, Taken,
};
use aip::{
    ActionResult, ClientMessage, ClientMessageType, CloseCode, Command, Payload, ResponseId,
    ServerMessage, ServerMessageType, Status, ToolInfo, ToolType,
};
use jiff::Timestamp;
use link::connection::Watch;
use link::memory::{KillSwitch, pair};
use link::outbox::OutboxLimits;
use link::{Ambient, ClientSettings, Connection, Event, Outbox, ServerUrl, Socket};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::device::{Device, DeviceError, DeviceSettings};
use crate::journal::JournalSettings;
use crate::progress::Progress;
use crate::tools::{EmbeddedTool, Output, Running, ToolSettings};
use crate::{Capacity, Features};

/// The longest wait for anything, in the clock of the test.
const PATIENCE: Duration = Duration::from_secs(1000);

/// How long the scripted server waits for its device.
pub(super) const WINDOW: Duration = Duration::from_secs(120);

/// Everything that a device can be granted.
pub(super) const ALL: &[Feature] = &super::super::FEATURES;

/// Notes that it ran, and takes as long as it is told to.
#[derive(Clone, Default)]
struct Work(Arc<Mutex<Vec<String>>>);

#[derive(Deserialize)]
#[serde(default)]
struct Order {
    line: String,
    seconds: u64,
    bytes: usize,
    /// Does not stop before it is done.
    is_stubborn: bool,
}

impl Default for Order {
    fn default() -> Self {
        Self { line: "x".to_owned(), seconds: 0, bytes: 2, is_stubborn: false }
    }
}

impl EmbeddedTool for Work {
    fn info(&self) -> ToolInfo {
        ToolInfo {
            tool_key: String::new(),
            tool_name: "work".to_owned(),
            namespace: "Test".to_owned(),
            tool_type: ToolType::Action,
            title: None,
            description: None,
            input_schema: None,
            output_schema: None,
            meta: None,
            annotations: None,
        }
    }

    fn call(
        &self,
        order: Option<Payload>,
        stop: CancellationToken,
        _: Progress,
        _: Output,
    ) -> Running {
        let lines = self.0.clone();
        Box::pin(async move {
            let order: Order = order.ok_or("no order")?.parse().map_err(|e| format!("{e}"))?;
            lines.lock().unwrap().push(order.line);
            let working = tokio::time::sleep(Duration::from_secs(order.seconds));
            tokio::select! {
                biased;
                () = stop.cancelled(), if !order.is_stubborn => return Err("stopped".to_owned()),
                () = working => {}
            }
            Ok(Payload::string(&"r".repeat(order.bytes)))
        })
    }
}

/// A machine with a device, and what it connects to.
pub(super) struct Bench {
    pub(super) folder: tempfile::TempDir,
    pub(super) journal: JournalSettings,
    pub(super) commands: Capacity,
    work: Work,
    boot: u32,
    starts: u64,
    ambient: Option<Ambient>,
    stop: CancellationToken,
    dialled: mpsc::UnboundedSender<(Socket, KillSwitch)>,
    accepted: mpsc::UnboundedReceiver<(Socket, KillSwitch)>,
}

impl Bench {
    /// A machine whose device runs.
    pub(super) async fn new() -> Self {
        let mut bench = Self::off();
        bench.start().await;
        bench
    }

    /// One whose device does not run yet.
    pub(super) fn off() -> Self {
        let (dialled, accepted) = mpsc::unbounded_channel();
        let folder = tempfile::tempdir().unwrap();
        let journal = JournalSettings {
            folder: Some(folder.path().to_owned()),
            ..JournalSettings::default()
        };
        Self {
            folder,
            journal,
            commands: Capacity { commands: 64, bytes: 1 << 20 },
            work: Work::default(),
            boot: 0,
            starts: 0,
            ambient: None,
            stop: CancellationToken::new(),
            dialled,
            accepted,
        }
    }

    pub(super) async fn start(&mut self) {
        self.starts += 1;
        let boot = format!("boot-{}", self.boot);
        let ambient = Ambient::simulated(self.starts, Timestamp::UNIX_EPOCH).in_boot(&boot);
        let device = self.device(&ambient).unwrap();
        self.stop = CancellationToken::new();
        ambient.spawn(device.run(self.stop.clone()));
        self.ambient = Some(ambient);
    }

    pub(super) fn device(&self, ambient: &Ambient) -> Result<Device, DeviceError> {
        let dialled = self.dialled.clone();
        let client = ClientSettings {
            ambient: ambient.clone(),
            connector: Some(Arc::new(move || {
                let (near, far, switch) = pair();
                dialled.send((far, switch)).unwrap();
                Box::pin(std::future::ready(Ok(near)))
            })),
            ..ClientSettings::device(ServerUrl::default())
        };
        let settings = DeviceSettings {
            client,
            id: "d".parse().unwrap(),
            platform: "linux".to_owned(),
            features: Features::Auto,
            tags: Vec::new(),
            tools: ToolSettings {
                embedded: vec![Arc::new(self.work.clone())],
                parallel_commands: 1,
                ..ToolSettings::default()
            },
            commands: self.commands,
            journal: self.journal.clone(),
            spool: crate::SpoolSettings::default(),
            finish_time: Duration::from_secs(2),
            request: None,
            task_name: None,
            facts: Some(facts()),
        };
        Device::new(settings, None, |_| ())
    }

    /// Ends the device where it stands.
    pub(super) async fn kill(&mut self) {
        self.ambient.take().unwrap().crash();
        // Until its tasks are dropped, and the lock with them.
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        while self.accepted.try_recv().is_ok() {}
    }

    /// Kills the device and starts it again.
    pub(super) async fn restart(&mut self) {
        self.kill().await;
        self.start().await;
    }

    /// The same after a loss of power.
    pub(super) async fn lose_power(&mut self) {
        self.kill().await;
        self.boot += 1;
        self.start().await;
    }

    /// Tells the device to leave.
    pub(super) fn leave(&self) {
        self.stop.cancel();
    }

    /// What the tool wrote.
    pub(super) fn lines(&self) -> Vec<String> {
        self.work.0.lock().unwrap().clone()
    }

    /// Lets time pass, in which nobody is there for the device.
    pub(super) async fn ignore(&mut self, time: Duration) {
        tokio::time::sleep(time).await;
        while self.accepted.try_recv().is_ok() {}
    }

    /// The next REGISTER.
    pub(super) async fn accept(&mut self) -> Wire {
        let (far, switch) =
            tokio::time::timeout(PATIENCE, self.accepted.recv()).await.unwrap().unwrap();
        let outbox = Arc::new(Outbox::new(OutboxLimits::default()));
        let watch = Watch { ping_every: PATIENCE, timeout: PATIENCE * 2 };
        let mut connection = Connection::<ClientMessage>::new(far, outbox, watch, None);
        let Event::Message(register) = connection.next_event(None).await else { panic!() };
        let extension = Extension::of(register.metadata.as_ref()).unwrap().unwrap();
        assert_eq!(extension.features, ALL);
        Wire { connection, switch, resume: extension.resume.unwrap() }
    }

    /// The next REGISTER, confirmed with everything and without a word on what it lists.
    pub(super) async fn connect(&mut self) -> Wire {
        let mut wire = self.accept().await;
        wire.confirm(&[]);
        wire
    }
}

/// The far end of a connection.
pub(super) struct Wire {
    connection: Connection<ClientMessage>,
    pub(super) switch: KillSwitch,
    /// What REGISTER said.
    pub(super) resume: Resume,
}

impl Wire {
    /// What REGISTER listed.
    pub(super) fn listed(&self) -> Vec<(ResponseId, HeldState)> {
        let held = self.resume.commands.iter();
        held.map(|held| (held.response_id.clone(), held.state)).collect()
    }

    pub(super) fn confirm(&mut self, commands: &[(&ResponseId, Instruction)]) {
        self.confirm_as(ALL, "S", false, commands);
    }

    pub(super) fn confirm_as(
        &mut self,
        features: &[Feature],
        store: &str,
        former: bool,
        commands: &[(&ResponseId, Instruction)],
    ) {
        let commands: BTreeMap<_, _> =
            commands.iter().map(|(id, instruction)| ((*id).clone(), *instruction)).collect();
        let resumed = Resumed {
            store: store.to_owned(),
            former,
            resumed: true,
            resume_key: format!("key-{}", self.resume.n),
            resume_window_s: Some(WINDOW.as_secs_f64()),
            commands,
        };
        let granted = aip::message::Confirmed {
            version: 1,
            features: features.to_vec(),
            server: "test".to_owned(),
            connection: "c".to_owned(),
            next_key: None,
            resumed: features.contains(&Feature::Ack).then_some(resumed),
        };
        self.send(&confirm(ResponseId::new("r").unwrap(), "t".to_owned(), Some(&granted)));
    }

    /// Refuses the REGISTER.
    pub(super) async fn refuse(mut self, mismatch: Mismatch, code: CloseCode) {
        self.send(&ServerMessage {
            error: Some("refused".to_owned()),
            result: ResumeRefused { resume: mismatch }.to_result(),
            ..ServerMessage::new(ServerMessageType::Error, Status::Error)
        });
        self.connection.close(code, "refused").await;
    }

    pub(super) fn send(&mut self, message: &ServerMessage) {
        self.connection.reply(message);
    }

    /// Sends a COMMAND of one action in a session.
    pub(super) fn command(&mut self, id: &ResponseId, session: &str, order: Value) {
        self.send(&command(id, session, &[order]));
    }

    /// The next message but heartbeats.
    pub(super) async fn next(&mut self) -> ClientMessage {
        let next = async {
            loop {
                match self.connection.next_event(None).await {
                    Event::Message(message) if message.kind == ClientMessageType::Heartbeat => {}
                    Event::Message(message) => return message,
                    other => panic!("{other:?}"),
                }
            }
        };
        tokio::time::timeout(PATIENCE, next).await.expect("nothing came")
    }

    /// The next message, which must be the results of this COMMAND.
    pub(super) async fn results(&mut self, id: &ResponseId) -> Vec<ActionResult> {
        let message = self.next().await;
        assert_eq!(message.kind, ClientMessageType::CommandResults, "{message:?}");
        assert_eq!(message.prev_response_id.as_ref(), Some(id));
        message.action_results.unwrap()
    }

    /// The error of a COMMAND's only action; empty when it went well.
    pub(super) async fn error(&mut self, id: &ResponseId) -> String {
        let mut results = self.results(id).await;
        assert_eq!(results.len(), 1);
        results.remove(0).error.unwrap_or_default()
    }

    /// What the device says of a cancelled COMMAND, and the error of its results, in whichever order they come.
    pub(super) async fn cancelled(&mut self, id: &ResponseId) -> (String, String) {
        let (mut word, mut error) = (None, None);
        while word.is_none() || error.is_none() {
            let message = self.next().await;
            assert_eq!(message.prev_response_id.as_ref(), Some(id), "{message:?}");
            match message.kind {
                ClientMessageType::TaskEnd => word = Some(self::word(&message)),
                ClientMessageType::CommandResults => {
                    let result = message.action_results.unwrap().remove(0);
                    error = Some(result.error.unwrap_or_default());
                }
                other => panic!("{other:?}"),
            }
        }
        (word.unwrap(), error.unwrap())
    }

    /// Says what became of results.
    pub(super) fn acknowledge(&mut self, id: &ResponseId, result: Taken) {
        self.send(&ServerMessage {
            session_id: Some("s".parse().unwrap()),
            response_id: Some(id.clone()),
            result: ResultAck { result }.to_payload(),
            ..ServerMessage::new(ServerMessageType::Heartbeat, Status::Ok)
        });
    }

    /// Tells the end of a session.
    pub(super) fn end(&mut self, session: &str) {
        self.send(&ServerMessage::task_failed("cancelled".to_owned(), session.parse().unwrap()));
    }

    /// Lets time pass, in which nothing may come but heartbeats.
    pub(super) async fn idle(&mut self, time: Duration) {
        let came = tokio::time::timeout(time, async {
            loop {
                match self.connection.next_event(None).await {
                    Event::Message(message) if message.kind == ClientMessageType::Heartbeat => {}
                    other => return other,
                }
            }
        });
        let came = came.await;
        assert!(came.is_err(), "{came:?}");
    }

    /// Cuts the wire, once all that the device has been sent is there.
    pub(super) async fn cut(mut self) {
        self.idle(Duration::from_millis(10)).await;
        self.switch.cut();
    }

    /// Cuts it, whatever is on its way.
    pub(super) async fn drop_now(self) {
        self.switch.cut();
    }
}

pub(super) fn command(id: &ResponseId, session: &str, orders: &[Value]) -> ServerMessage {
    let action = |order: &Value| Command {
        tool_name: "work".to_owned(),
        parameters: Some(Payload::from_value(order).unwrap()),
        tool_type: ToolType::Action,
        call_id: Some("C".parse().unwrap()),
    };
    ServerMessage {
        session_id: Some(session.parse().unwrap()),
        response_id: Some(id.clone()),
        actions: Some(orders.iter().map(action).collect()),
        ..ServerMessage::new(ServerMessageType::Command, Status::Continue)
    }
}

pub(super) fn word(message: &ClientMessage) -> String {
    assert_eq!(message.kind, ClientMessageType::TaskEnd, "{message:?}");
    let cancel = aip::message::Cancel::of(message.metadata.as_ref()).unwrap();
    cancel.cancel.as_str().to_owned()
}

/// The n-th id of a COMMAND.
pub(super) fn r(n: u128) -> ResponseId {
    ResponseId::new(&Uuid::from_u128((7 << 76) | (2 << 62) | (n << 80)).to_string()).unwrap()
}

/// Work that takes so long.
pub(super) fn seconds(seconds: u64) -> Value {
    json!({"seconds": seconds})
}

fn facts() -> aip::message::SystemInfo {
    aip::message::SystemInfo {
        device_id: "d".to_owned(),
        platform: "linux".to_owned(),
        os_version: "test".to_owned(),
        cpu_count: 1,
        memory_total_gb: 1.0,
        hostname: "test".to_owned(),
        ip_address: "127.0.0.1".to_owned(),
        supported_features: Vec::new(),
        platform_type: "computer".to_owned(),
        schema_version: "1.0".to_owned(),
        custom_metadata: Default::default(),
    }
}
