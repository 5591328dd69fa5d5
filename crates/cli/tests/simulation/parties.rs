//! The parties: real devices and constellations, with tools that take as long as their caller says.

use std::sync::Arc;
use std::time::Duration;

use aip::message::SystemInfo;
use aip::{ClientId, Payload, ToolInfo, ToolType};
use constellation::Constellation;
use device::progress::Progress;
use device::tools::{EmbeddedTool, Running};
use device::{Capacity, Device, DeviceSettings, Features, JournalSettings};
use jiff::Timestamp;
use link::connection::Watch;
use link::{Ambient, ClientSettings, Direction, ServerUrl};
use serde::Deserialize;
use serde_json::json;
use server::Server;
use tokio_util::sync::CancellationToken;

use crate::history::{History, What, said};
use crate::network::Network;

/// How soon both ends notice that a wire is dead.
pub(crate) const WATCH: Watch =
    Watch { ping_every: Duration::from_secs(7), timeout: Duration::from_secs(20) };

/// The least silence after which a wire is given up: of devices that resume it is two pings.
pub(crate) const SILENCE: Duration = Duration::from_secs(14);

/// A tool that takes a while, and fails if it is told to.
struct Work;

#[derive(Deserialize)]
struct Order {
    millis: u64,
    fails: bool,
}

impl EmbeddedTool for Work {
    fn info(&self) -> ToolInfo {
        ToolInfo {
            tool_key: String::new(),
            tool_name: "work".to_owned(),
            namespace: "Simulated".to_owned(),
            tool_type: ToolType::Action,
            title: None,
            description: None,
            input_schema: None,
            output_schema: None,
            meta: None,
            annotations: None,
        }
    }

    fn call(&self, order: Option<Payload>, stop: CancellationToken, progress: Progress) -> Running {
        Box::pin(async move {
            let order: Order =
                order.ok_or("no order")?.parse().map_err(|error| format!("{error}"))?;
            progress.tell("at work");
            tokio::select! {
                biased;
                () = stop.cancelled() => return Err("stopped".to_owned()),
                () = tokio::time::sleep(Duration::from_millis(order.millis)) => {}
            }
            if order.fails {
                Err("as told".to_owned())
            } else {
                Payload::from_text("true").map_err(|e| e.to_string())
            }
        })
    }
}

/// A device that runs.
pub(crate) struct Worker {
    pub(crate) id: String,
    ambient: Ambient,
    stop: CancellationToken,
}

/// What all parties share.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) server: Server,
    pub(crate) network: Network,
    pub(crate) history: History,
    pub(crate) epoch: Timestamp,
}

impl World {
    fn settings(&self, party: &str, ambient: &Ambient, base: ClientSettings) -> ClientSettings {
        ClientSettings {
            watch: WATCH,
            resume_watch: WATCH,
            heartbeat_interval: Duration::from_secs(11),
            connector: Some(self.network.connector(party, &self.server)),
            ambient: ambient.clone(),
            ..base
        }
    }

    /// Starts a device.
    pub(crate) fn device(&self, id: &str, seed: u64) -> Worker {
        let ambient = Ambient::simulated(seed, self.epoch);
        let mut client = self.settings(id, &ambient, ClientSettings::device(ServerUrl::default()));
        let (history, device) = (self.history.clone(), id.to_owned());
        client.tap = Some(Arc::new(move |direction, frame| {
            let frame = link::Frame::Text(frame.clone());
            if direction == Direction::In
                && let Some(said) = said(false, &frame).filter(|said| said.kind == "command")
            {
                let command = said.command.unwrap_or_default();
                history.push(What::Received { device: device.clone(), command });
            }
        }));
        let settings = DeviceSettings {
            client,
            id: ClientId::new(id).unwrap(),
            platform: "linux".to_owned(),
            features: Features::Auto,
            tools: device::tools::ToolSettings {
                embedded: vec![Arc::new(Work)],
                ..Default::default()
            },
            commands: Capacity { commands: 64, bytes: 1 << 20 },
            journal: JournalSettings::default(),
            finish_time: Duration::from_secs(2),
            request: None,
            task_name: None,
            facts: Some(facts(id)),
        };
        let stop = CancellationToken::new();
        let device = Device::new(settings, None, |_| ()).unwrap();
        ambient.spawn(device.run(stop.clone()));
        self.history.note(format!("{id} starts"));
        Worker { id: id.to_owned(), ambient, stop }
    }

    /// Connects a constellation, if it can.
    pub(crate) async fn constellation(&self, id: &str, ambient: &Ambient) -> Option<Constellation> {
        let base = ClientSettings::constellation(ServerUrl::default());
        let settings = self.settings(id, ambient, base);
        Constellation::connect(settings, ClientId::new(id).unwrap()).await.ok()
    }
}

impl Worker {
    /// Ends it where it stands. Of its program the server hears the end, of its machine it does not.
    pub(crate) fn crash(&self, world: &World, with_machine: bool) {
        world.history.note(format!("{} crashes", self.id));
        world.network.crash(&self.id, with_machine);
        self.ambient.crash();
    }

    /// Tells it to leave.
    pub(crate) fn leave(&self, world: &World) {
        world.history.note(format!("{} is told to leave", self.id));
        self.stop.cancel();
    }
}

fn facts(id: &str) -> SystemInfo {
    SystemInfo {
        device_id: id.to_owned(),
        platform: "linux".to_owned(),
        os_version: "simulated".to_owned(),
        cpu_count: 1,
        memory_total_gb: 1.0,
        hostname: "simulated".to_owned(),
        ip_address: "127.0.0.1".to_owned(),
        supported_features: Vec::new(),
        platform_type: "computer".to_owned(),
        schema_version: "1.0".to_owned(),
        custom_metadata: Default::default(),
    }
}

/// A plan of so many commands.
pub(crate) fn plan(chance: &mut fastrand::Rng) -> String {
    let commands: Vec<_> = (0..chance.usize(1..4))
        .map(|_| {
            let millis = if chance.u8(..10) == 0 { 40_000 } else { chance.u64(..3000) };
            let order = json!({"millis": millis, "fails": chance.u8(..10) == 0});
            json!({"tool_name": "work", "parameters": order})
        })
        .collect();
    json!({"commands": commands, "keep_going": chance.bool()}).to_string()
}
