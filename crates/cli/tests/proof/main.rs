//! The promise, tried on real processes: a server, three devices and two requesters, of which one is killed twice a second
//! while they work. Every accepted task has one outcome, every line of a completed task stands exactly once, and every
//! requester learns what became of its tasks.
//!
//! `FLIGHTDECK_PROOF_SECONDS` says how long somebody is killed (20 by default), `FLIGHTDECK_PROOF_TASKS` how many tasks
//! there are (500), and `FLIGHTDECK_PROOF_SEED` who is killed when. Longer by hand:
//!
//! ```text
//! FLIGHTDECK_PROOF_SECONDS=3600 FLIGHTDECK_PROOF_TASKS=60000 cargo test -p flightdeck --test proof -- --nocapture
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod requester;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Process, Server, http_client};
use serde_json::Value;

const DEVICES: [&str; 3] = ["one", "two", "three"];
const REQUESTERS: usize = 2;

/// Time between two kills.
const KILL_EVERY: Duration = Duration::from_millis(500);

/// How long all may take to come to rest once nobody is killed any more.
const REST: Duration = Duration::from_secs(180);

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().map_or(default, |text| text.parse().unwrap())
}

/// Everything that runs.
struct Field {
    server: Server,
    devices: Vec<Process>,
    requesters: Vec<Process>,
    folder: PathBuf,
    tasks: u64,
}

impl Field {
    async fn start(tasks: u64) -> Self {
        let server = Server::start_with(&SERVER).await;
        let folder = server.state_file("proof");
        fs::create_dir_all(&folder).unwrap();
        let mut field = Self { server, devices: Vec::new(), requesters: Vec::new(), folder, tasks };
        for n in 0..DEVICES.len() {
            let device = field.start_device(n);
            field.devices.push(device);
        }
        for n in 0..REQUESTERS {
            let requester = field.start_requester(n);
            field.requesters.push(requester);
        }
        field
    }

    fn start_device(&self, n: usize) -> Process {
        let url = self.server.url();
        let args = ["device", "--id", DEVICES[n], "--server", &url, "--exec", "shell"];
        let mut command = self.server.command(&args);
        command.args(DEVICE).env("FLIGHTDECK_TOKEN", self.server.key());
        Process::start(&mut command)
    }

    fn start_requester(&self, n: usize) -> Process {
        let share = self.tasks / REQUESTERS as u64;
        let first = share * n as u64;
        requester::start(&self.server, &self.folder, n, first..first + share)
    }

    /// Kills somebody, and starts that one again.
    async fn kill(&mut self, chance: &mut fastrand::Rng) -> &'static str {
        match chance.usize(..1 + DEVICES.len() + REQUESTERS) {
            0 => {
                self.server.process.kill().await;
                let again = self.server.start_again_with(&SERVER).await;
                self.server = again;
                "server"
            }
            n if n <= DEVICES.len() => {
                self.devices[n - 1].kill().await;
                self.devices[n - 1] = self.start_device(n - 1);
                "device"
            }
            n => {
                let n = n - 1 - DEVICES.len();
                self.requesters[n].kill().await;
                self.requesters[n] = self.start_requester(n);
                "requester"
            }
        }
    }

    /// Whether every requester knows what became of all its tasks.
    fn is_done(&self) -> bool {
        self.known().len() as u64 == self.tasks
    }

    /// What the requesters have written down: the ending of each task.
    fn known(&self) -> BTreeMap<u64, String> {
        (0..REQUESTERS).flat_map(|n| requester::endings(&self.folder, n)).collect()
    }

    /// How often each task's line stands on its device.
    fn lines(&self) -> BTreeMap<u64, u64> {
        let mut lines = BTreeMap::new();
        for device in DEVICES {
            let file = requester::lines_of(&self.folder, device);
            for line in fs::read_to_string(file).unwrap_or_default().lines() {
                *lines.entry(line.parse().unwrap()).or_default() += 1;
            }
        }
        lines
    }

    /// What the server says of each task.
    async fn outcomes(&self) -> BTreeMap<u64, Vec<String>> {
        let mut found: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        let mut before = String::new();
        loop {
            let page = list(&self.server, &before).await;
            for task in page["tasks"].as_array().unwrap() {
                let n = task["task_name"].as_str().unwrap().trim_start_matches("t-");
                let state = task["state"].as_str().unwrap().to_owned();
                found.entry(n.parse().unwrap()).or_default().push(state);
            }
            match page["next"].as_str() {
                Some(next) => before = format!("&before={next}"),
                None => return found,
            }
        }
    }
}

/// Devices are waited for as long as they may take.
const SERVER: [&str; 2] = ["--resume-window", "60"];

/// A device comes back soon.
const DEVICE: [&str; 2] = ["--reconnect-first-wait", "0.05"];

async fn list(server: &Server, before: &str) -> Value {
    let url = format!("http://127.0.0.1:{}/api/v1/tasks?limit=500{before}", server.port);
    let response = http_client().get(url).bearer_auth(server.key()).send().await.unwrap();
    response.json().await.unwrap()
}

#[tokio::test]
async fn nothing_is_lost_and_nothing_is_doubled_whoever_is_killed() {
    let seed = number("FLIGHTDECK_PROOF_SEED", 1);
    let time = Duration::from_secs(number("FLIGHTDECK_PROOF_SECONDS", 20));
    let mut field = Field::start(number("FLIGHTDECK_PROOF_TASKS", 500)).await;
    let (mut chance, start) = (fastrand::Rng::with_seed(seed), Instant::now());
    let mut kills: BTreeMap<&str, u64> = BTreeMap::new();
    let mut pace = tokio::time::interval(KILL_EVERY);
    while start.elapsed() < time {
        pace.tick().await;
        *kills.entry(field.kill(&mut chance).await).or_default() += 1;
    }
    let (calm, worked) = (Instant::now(), field.known().len());
    while !field.is_done() && calm.elapsed() < REST {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (known, lines) = (field.known(), field.lines());
    let outcomes = field.outcomes().await;
    let completed = known.values().filter(|ending| *ending == "completed").count();
    println!(
        "seed {seed}: {} tasks, {worked} known when the last was killed, {completed} completed, \
         {} failed; killed {kills:?} in {time:?}; at rest after {:?}",
        known.len(),
        known.len() - completed,
        calm.elapsed(),
    );
    check(&field, &known, &lines, &outcomes);
}

fn check(
    field: &Field,
    known: &BTreeMap<u64, String>,
    lines: &BTreeMap<u64, u64>,
    outcomes: &BTreeMap<u64, Vec<String>>,
) {
    let mut wrong = Vec::new();
    for task in 0..field.tasks {
        let (known, outcome) = (known.get(&task), outcomes.get(&task));
        let stands = lines.get(&task).copied().unwrap_or(0);
        match (known.map(String::as_str), outcome.map(Vec::as_slice)) {
            (Some(known), Some([outcome])) if known == outcome => {}
            (known, outcome) => {
                wrong
                    .push(format!("{task}: its requester knows {known:?}, the server {outcome:?}"));
            }
        }
        let is_right = match known.map(String::as_str) {
            Some("completed") => stands == 1,
            _ => stands <= 1,
        };
        if !is_right {
            wrong.push(format!("{task}: {known:?}, and its line stands {stands} times"));
        }
    }
    let logs = || requester_logs(&field.folder);
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), logs());
}

/// What the requesters wrote down last.
fn requester_logs(folder: &Path) -> String {
    let logs = (0..REQUESTERS).map(|n| {
        let text = fs::read_to_string(requester::log_of(folder, n)).unwrap_or_default();
        let last: Vec<&str> = text.lines().rev().take(20).collect();
        last.join("\n")
    });
    logs.collect::<Vec<_>>().join("\n\n")
}
