//! Ten minutes of everything that peers do, right and wrong, in an order that a seed decides. Every task
//! of a constellation that stays ends exactly once, nobody who behaves is cut, and when all have left
//! nothing is left of them: no entry in any table, no memory.
//!
//! It is run by `cargo test -- --ignored soak`. `FLIGHTDECK_SOAK_SEED` repeats the order of a run, though
//! not its timing; `FLIGHTDECK_SOAK_SECONDS` makes it shorter or longer.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod account;
#[path = "../common/mod.rs"]
mod common;
mod garbage;
mod member;
mod strangers;

use std::time::{Duration, Instant};

use account::{Ends, SHARED};
use common::{Process, Server, plan, plan_of, unique};
use fastrand::Rng;
use member::{Member, Order, Role};
use rustix::process::Signal;
use serde_json::{Value, json};
use strangers::{Visitor, come_and_go};
use tokio::task::JoinSet;

const DEVICES: usize = 30;
const CONSTELLATIONS: usize = 30;
const PROCESSES: usize = 8;
const STRANGERS: usize = 16;

/// Everything runs into its limit of time now and then.
///
/// What is remembered of ended tasks is full long before the first minute is over, so that it does not
/// count as growth; and it is small beside the 10 % that memory may differ by.
const SETTINGS: [&str; 27] = [
    "--command-timeout",
    "2",
    "--session-timeout",
    "6",
    "--stop-grace",
    "1",
    "--registration-timeout",
    "3",
    "--liveness-timeout",
    "10",
    "--ping-interval",
    "3",
    "--header-timeout",
    "2",
    "--queue-per-device",
    "8",
    "--max-request-bytes",
    "65536",
    "--memory",
    "--history-tasks",
    "100",
    "--history-bytes",
    "1048576",
    "--unfetched-time",
    "1",
    "--shutdown-grace",
    "2",
];

/// Tasks that the store remembers, as set above.
const HISTORY_TASKS: usize = 100;

/// The longest wait until nothing is left, and until memory is given back: the allocator does so over
/// tens of seconds.
const SETTLE: Duration = Duration::from_secs(60);

/// Time between two looks at what nobody tells about.
const LOOK: Duration = Duration::from_millis(250);

struct Soak {
    rng: Rng,
    server: Server,
    key: String,
    visitor: Visitor,
    members: Vec<Member>,
    /// Real devices, with their ids.
    processes: Vec<(String, Process)>,
    strangers: JoinSet<()>,
    ends: Ends,
    actions: u64,
}

impl Soak {
    async fn start(seed: u64) -> Self {
        let server = Server::start_with(&SETTINGS).await;
        let key = server.key();
        let visitor = Visitor::new(server.port, key.clone());
        Self {
            rng: Rng::with_seed(seed),
            server,
            key,
            visitor,
            members: Vec::new(),
            processes: Vec::new(),
            strangers: JoinSet::new(),
            ends: Ends::default(),
            actions: 0,
        }
    }

    async fn run_for(&mut self, duration: Duration) {
        let end = Instant::now() + duration;
        while Instant::now() < end {
            self.act().await;
            self.actions += 1;
            self.reap().await;
            tokio::time::sleep(Duration::from_millis(self.rng.u64(..20))).await;
        }
    }

    async fn act(&mut self) {
        match self.rng.u16(..1000) {
            0..90 => self.join(Role::Device, DEVICES),
            90..180 => self.join(Role::Constellation, CONSTELLATIONS),
            180..230 => self.let_in_a_stranger(),
            230..300 => self.let_in_a_visitor(),
            300..310 => self.start_process().await,
            310..318 => self.end_process().await,
            318..350 => self.tell(None, Order::Leave),
            350..380 => self.tell(None, Order::Cut),
            380..390 => {
                let duration = Duration::from_millis(self.rng.u64(..15_000));
                self.tell(None, Order::FallSilent(duration));
            }
            390..410 => self.tell(None, Order::Break),
            410..420 => {
                let bytes = vec![0; self.rng.usize(..1000)];
                self.tell(None, Order::Binary(bytes));
            }
            420..520 => self.tell(None, Order::Babble),
            520..600 => self.tell(None, Order::Say("heartbeat", json!({}))),
            600..620 => {
                let ask = json!({"target_id": self.some_id(), "request_id": "r"});
                self.tell(Some(Role::Constellation), Order::Say("device_info_request", ask));
            }
            620..640 => {
                let own = json!({"request": self.some_request(), "session_id": unique("own")});
                self.tell(Some(Role::Device), Order::Say("task", own));
            }
            _ => self.submit(),
        }
    }

    fn join(&mut self, role: Role, most: usize) {
        if self.members.iter().filter(|member| member.role == role).count() >= most {
            return;
        }
        // The id of somebody who is there, now and then.
        let (letter, most) = if role == Role::Device { ('d', most) } else { ('g', most) };
        let id = format!("{letter}{}", self.rng.usize(..most));
        let member = Member::join(self.server.port, &self.key, role, id, self.rng.fork());
        self.members.push(member);
    }

    fn let_in_a_stranger(&mut self) {
        if self.strangers.len() < STRANGERS {
            let (key, rng) = (self.key.clone(), self.rng.fork());
            self.strangers.spawn(come_and_go(self.server.port, key, rng));
        }
    }

    fn let_in_a_visitor(&mut self) {
        if self.strangers.len() < STRANGERS {
            let (device, request) = (self.some_id(), self.some_request());
            self.strangers.spawn(self.visitor.clone().visit(self.rng.fork(), device, request));
        }
    }

    async fn start_process(&mut self) {
        if self.processes.len() < PROCESSES {
            let id = unique("p");
            let process = self.server.device(&id, &["--exec", "shell"]).await;
            self.processes.push((id, process));
        }
    }

    async fn end_process(&mut self) {
        if self.processes.is_empty() {
            return;
        }
        let (_, mut process) = self.processes.swap_remove(self.rng.usize(..self.processes.len()));
        if self.rng.u8(..4) == 0 {
            process.signal(Signal::TERM);
            process.done().await;
        } else {
            process.kill().await;
        }
    }

    /// Tells one member of a role, or of any.
    fn tell(&mut self, role: Option<Role>, order: Order) {
        let fit = self.members.iter().filter(|member| role.is_none_or(|role| role == member.role));
        if let Some(member) = self.rng.choice(fit.collect::<Vec<_>>()) {
            // One that is silent takes only so many orders.
            let _taken = member.tell(order);
        }
    }

    fn submit(&mut self) {
        let session = match self.rng.u8(..10) {
            0 => format!("{SHARED}-{}", self.rng.u8(..20)),
            _ => unique("s"),
        };
        let (target, request) = (self.some_id(), self.some_request());
        self.tell(Some(Role::Constellation), Order::Submit { session, target, request });
    }

    /// Mostly of a device that is there.
    fn some_id(&mut self) -> String {
        let devices = self.members.iter().filter(|member| member.role == Role::Device);
        let raw: Vec<&str> = devices.map(|member| member.id.as_str()).collect();
        let real: Vec<&str> = self.processes.iter().map(|(id, _)| id.as_str()).collect();
        let id = match self.rng.u8(..10) {
            0 => None,
            1..4 => self.rng.choice(real),
            _ => self.rng.choice(raw),
        };
        match id {
            Some(id) => id.to_owned(),
            None if self.rng.bool() => format!("g{}", self.rng.usize(..CONSTELLATIONS)),
            None => format!("d{}", self.rng.usize(..DEVICES)),
        }
    }

    fn some_request(&mut self) -> String {
        match self.rng.u8(..20) {
            0 => "make me a sandwich".to_owned(),
            1 => r#"{"commands":[]}"#.to_owned(),
            2 => "x".repeat(self.rng.usize(60_000..70_000)),
            3 => json!({"commands": [{"tool_name": "no_such_tool"}]}).to_string(),
            4 => plan("sleep 60"),
            5 => plan("head -c 700000 /dev/zero | base64"),
            6..9 => plan_of(&["echo one", "sleep 0.2", "echo three"]),
            9 => plan("exit 3"),
            _ => plan("echo done"),
        }
    }

    /// Takes out who is gone. Whatever went wrong in a life goes wrong here.
    async fn reap(&mut self) {
        while let Some(stranger) = self.strangers.try_join_next() {
            stranger.unwrap();
        }
        let mut here = Vec::new();
        for member in std::mem::take(&mut self.members) {
            if member.life.is_finished() {
                self.ends += member.life.await.unwrap();
            } else {
                here.push(member);
            }
        }
        self.members = here;
    }

    /// Lets everybody leave once the tasks are over, and checks that nothing is left.
    async fn rest(&mut self) {
        let members = std::mem::take(&mut self.members);
        let (devices, constellations): (Vec<_>, Vec<_>) =
            members.into_iter().partition(|member| member.role == Role::Device);
        let waiting = constellations.into_iter().map(|member| member.end(Order::Finish));
        for ends in futures_util::future::join_all(waiting).await {
            self.ends += ends;
        }
        for device in devices {
            let order = if self.rng.bool() { Order::Leave } else { Order::Cut };
            device.end(order).await;
        }
        while !self.processes.is_empty() {
            self.end_process().await;
        }
        while let Some(stranger) = self.strangers.join_next().await {
            stranger.unwrap();
        }
        self.until_nothing_is_left().await;
        let said = self.server.process.stderr();
        assert!(!said.contains("panicked at"), "{said}");
    }

    async fn until_nothing_is_left(&self) {
        let start = Instant::now();
        loop {
            let left = self.left().await;
            if left.is_empty() {
                return;
            }
            assert!(start.elapsed() < SETTLE, "left behind: {left:?}");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What the server still has of anybody.
    async fn left(&self) -> Vec<String> {
        const GAUGES: [&str; 5] =
            ["connections", "websockets", "outbox_messages", "sessions", "longest_queue"];
        let about: Value =
            serde_json::from_str(&self.visitor.read("/api/v1/server").await).unwrap();
        let counts = about["counts"].as_object().unwrap().iter();
        let mut left: Vec<_> = counts
            .filter(|(_, count)| **count != 0)
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        let metrics = self.visitor.read("/metrics").await;
        let gauges = metrics.lines().filter(|line| {
            let name = line.strip_prefix("flightdeck_").unwrap_or_default();
            GAUGES.contains(&name.split(['{', ' ']).next().unwrap())
        });
        left.extend(gauges.filter(|line| !line.ends_with(" 0")).map(str::to_owned));
        let known: Value =
            serde_json::from_str(&self.visitor.read("/api/v1/tasks?limit=500").await).unwrap();
        let known = known["tasks"].as_array().unwrap();
        let is_open = |task: &&Value| task["ended_at"].is_null();
        left.extend(known.iter().filter(is_open).map(Value::to_string));
        assert!(known.len() <= HISTORY_TASKS, "{} tasks are remembered", known.len());
        left
    }

    /// The least memory that the server holds within a while, in bytes.
    async fn least_memory(&self, enough: u64) -> u64 {
        let start = Instant::now();
        let mut least = u64::MAX;
        while start.elapsed() < SETTLE && least > enough {
            least = least.min(self.server.memory());
            tokio::time::sleep(LOOK).await;
        }
        least
    }

    fn tell_figures(&self, when: &str, memory: u64) {
        let Ends { acked, refused, completed, failed } = self.ends;
        eprintln!(
            "{when}: {} actions, {acked} tasks accepted, {refused} refused, {completed} completed, \
             {failed} failed; {} KiB of memory",
            self.actions,
            memory / 1024
        );
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes ten minutes"]
async fn after_a_soak_of_joins_leaves_kills_tasks_and_garbage_nothing_is_left() {
    let seed = setting("FLIGHTDECK_SOAK_SEED").unwrap_or_else(|| fastrand::u64(..));
    let seconds = setting("FLIGHTDECK_SOAK_SECONDS").unwrap_or(600);
    eprintln!("FLIGHTDECK_SOAK_SEED={seed} FLIGHTDECK_SOAK_SECONDS={seconds}");
    let mut soak = Soak::start(seed).await;
    let first = 60.min(seconds / 2);

    soak.run_for(Duration::from_secs(first)).await;
    soak.rest().await;
    let before = soak.least_memory(0).await;
    soak.tell_figures("after the first minute", before);

    soak.run_for(Duration::from_secs(seconds - first)).await;
    soak.rest().await;
    let allowed = before + before / 10;
    let after = soak.least_memory(allowed).await;
    soak.tell_figures("at the end", after);
    let Ends { refused, completed, failed, .. } = soak.ends;
    assert!(refused > 0 && completed > 0 && failed > 0, "hardly anything happened");
    assert!(after <= allowed, "memory grew from {before} to {after} bytes");
}
