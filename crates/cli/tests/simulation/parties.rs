//! The parties: real devices and constellations, with tools that take as long as their caller says.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aip::codec::Wire;
use aip::message::{Channel, SystemInfo};
use aip::{ClientId, Payload, ServerMessage, ServerMessageType, ToolInfo, ToolType};
use constellation::{Constellation, Keep};
use device::progress::Progress;
use device::tools::{EmbeddedTool, Output, Running};
use device::{Capacity, Device, DeviceSettings, Features, JournalSettings};
use jiff::Timestamp;
use link::connection::Watch;
use link::{Ambient, ClientSettings, Direction, ServerUrl};
use serde::Deserialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::history::{History, What};
use crate::home::Home;
use crate::network::Network;
use crate::site::Site;

/// How soon both ends notice that a wire is dead.
pub(crate) const WATCH: Watch =
    Watch { ping_every: Duration::from_secs(7), timeout: Duration::from_secs(20) };

/// The least silence after which a wire is given up: of devices that resume it is two pings.
pub(crate) const SILENCE: Duration = Duration::from_secs(14);

/// A tool that takes a while, and fails if it is told to.
struct Work {
    device: String,
    history: History,
}

#[derive(Deserialize)]
struct Order {
    /// Tells it from all others.
    name: String,
    millis: u64,
    fails: bool,
    /// How many bytes it writes.
    writes: u64,
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

    fn call(
        &self,
        order: Option<Payload>,
        stop: CancellationToken,
        progress: Progress,
        output: Output,
    ) -> Running {
        let (device, history) = (self.device.clone(), self.history.clone());
        Box::pin(async move {
            let order: Order =
                order.ok_or("no order")?.parse().map_err(|error| format!("{error}"))?;
            history.push(What::Ran { device, order: order.name.clone() });
            progress.tell("at work");
            tokio::select! {
                biased;
                () = stop.cancelled() => return Err("stopped".to_owned()),
                () = work(&order, &output) => {}
            }
            if order.fails {
                Err("as told".to_owned())
            } else {
                Payload::from_text("true").map_err(|e| e.to_string())
            }
        })
    }
}

/// Takes as long as it is told to, and writes what it is told to meanwhile.
async fn work(order: &Order, output: &Output) {
    /// How much is written at once, in bytes.
    const PART: u64 = 700;

    let parts = order.writes.div_ceil(PART);
    let pause = Duration::from_millis(order.millis) / u32::try_from(parts + 1).unwrap();
    for part in 0..parts {
        tokio::time::sleep(pause).await;
        let end = order.writes.min((part + 1) * PART);
        let bytes: Vec<u8> = (part * PART..end).map(byte_at).collect();
        output.write(Channel::Stdout, &bytes).await;
    }
    tokio::time::sleep(pause).await;
}

/// What stands at an offset of what is written.
pub(crate) fn byte_at(offset: u64) -> u8 {
    u8::try_from(offset % 251).unwrap()
}

/// What all parties share.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) site: Site,
    pub(crate) network: Network,
    pub(crate) history: History,
    /// Where the clocks start.
    pub(crate) epoch: Timestamp,
    /// Where the parties have their files.
    pub(crate) folder: PathBuf,
}

impl World {
    /// Surroundings for one life of a party.
    pub(crate) fn ambient(&self, seed: u64) -> Ambient {
        Ambient::simulated(seed, self.epoch + self.history.now())
    }

    fn settings(&self, party: &str, ambient: &Ambient, base: ClientSettings) -> ClientSettings {
        ClientSettings {
            watch: WATCH,
            resume_watch: WATCH,
            heartbeat_interval: Duration::from_secs(11),
            connector: Some(self.network.connector(party, &self.site)),
            ambient: ambient.clone(),
            ..base
        }
    }

    fn device(&self, id: &str, ambient: &Ambient, folder: PathBuf) -> Device {
        let mut client = self.settings(id, ambient, ClientSettings::device(ServerUrl::default()));
        let (history, device) = (self.history.clone(), id.to_owned());
        client.tap = Some(Arc::new(move |direction, frame| {
            if direction == Direction::In
                && let Ok(message) = ServerMessage::decode(frame)
                && let Some(command) = message.response_id
                && message.kind == ServerMessageType::Command
            {
                let command = command.to_string();
                history.push(What::Received { device: device.clone(), command });
            }
        }));
        let work = Work { device: id.to_owned(), history: self.history.clone() };
        let settings = DeviceSettings {
            client,
            id: ClientId::new(id).unwrap(),
            platform: "linux".to_owned(),
            features: Features::Auto,
            tags: Vec::new(),
            tools: device::tools::ToolSettings {
                embedded: vec![Arc::new(work)],
                ..Default::default()
            },
            commands: Capacity { commands: 64, bytes: 1 << 20 },
            journal: JournalSettings { folder: Some(folder), ..JournalSettings::default() },
            spool: device::SpoolSettings::default(),
            finish_time: Duration::from_secs(2),
            request: None,
            task_name: None,
            facts: Some(facts(id)),
        };
        Device::new(settings, None, |_| ()).unwrap()
    }

    /// Connects a constellation, if it can. Without a folder it keeps nothing.
    pub(crate) async fn constellation(
        &self,
        id: &str,
        ambient: &Ambient,
        home: Option<PathBuf>,
    ) -> Option<Constellation> {
        let base = ClientSettings::constellation(ServerUrl::default());
        let settings = self.settings(id, ambient, base);
        let keep = match home {
            Some(home) => Keep::open(&home.join("me.json"), ambient).unwrap(),
            None => Keep::in_memory(ambient),
        };
        Constellation::connect_keeping(settings, ClientId::new(id).unwrap(), keep).await.ok()
    }
}

/// A device and its machine.
pub(crate) struct Worker {
    pub(crate) id: &'static str,
    /// The folders that it has had, the present one last.
    homes: Vec<Home>,
    boot: usize,
    ambient: Ambient,
    stop: CancellationToken,
}

impl Worker {
    /// Starts a device on a machine of its own.
    pub(crate) fn new(world: &World, id: &'static str, seed: u64) -> Self {
        let home = Home::new(world.folder.join(id));
        let (ambient, stop) = (world.ambient(seed), CancellationToken::new());
        let mut worker = Self { id, homes: vec![home], boot: 0, ambient, stop };
        worker.start(world, seed);
        worker
    }

    /// Starts its program.
    pub(crate) fn start(&mut self, world: &World, seed: u64) {
        let boot = format!("{}-{}", self.id, self.boot);
        self.ambient = world.ambient(seed).in_boot(&boot);
        self.stop = CancellationToken::new();
        let Some(home) = self.homes.last() else { return };
        let device = world.device(self.id, &self.ambient, home.path());
        self.ambient.spawn(device.run(self.stop.clone()));
        world.history.note(format!("{} starts", self.id));
    }

    /// Ends its program where it stands. The server hears of that.
    pub(crate) fn crash(&mut self, world: &World) {
        self.end(world, false);
    }

    /// Ends it with its machine, which the server does not hear of. What the journal got last is lost.
    pub(crate) fn lose_power(&mut self, world: &World, chance: &mut fastrand::Rng) {
        self.end(world, true);
        self.boot += 1;
        self.homes.iter().for_each(|home| home.tear_journals(chance));
    }

    fn end(&mut self, world: &World, with_machine: bool) {
        world.history.push(What::Crashed { device: self.id.to_owned() });
        world.network.crash(self.id, with_machine);
        self.homes.last_mut().into_iter().for_each(Home::pass_on);
        self.ambient.crash();
    }

    /// Has it come back with another folder: a new one, or the one that it had before.
    pub(crate) fn move_house(&mut self, world: &World, chance: &mut fastrand::Rng) {
        world.history.note(format!("{} comes back with another folder", self.id));
        if self.homes.len() > 1 && chance.bool() {
            let home = self.homes.remove(0);
            return self.homes.push(home);
        }
        let name = format!("{}-{}", self.id, self.homes.len());
        self.homes.push(Home::new(world.folder.join(name)));
    }

    /// Tells it to leave.
    pub(crate) fn leave(&self, world: &World) {
        world.history.push(What::Leaving { device: self.id.to_owned() });
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

/// A plan of a few commands.
pub(crate) fn plan(chance: &mut fastrand::Rng) -> String {
    let commands: Vec<_> = (0..chance.usize(1..4))
        .map(|_| {
            let millis = if chance.u8(..10) == 0 { 40_000 } else { chance.u64(..3000) };
            let name = format!("{:016x}", chance.u64(..));
            let writes = if chance.bool() { 0 } else { chance.u64(..20_000) };
            let fails = chance.u8(..10) == 0;
            let order = json!({"name": name, "millis": millis, "fails": fails, "writes": writes});
            json!({"tool_name": "work", "parameters": order})
        })
        .collect();
    json!({"commands": commands, "keep_going": chance.bool()}).to_string()
}
