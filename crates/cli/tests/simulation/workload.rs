//! What happens in a simulation: tasks are submitted and cancelled, parties crash, leave and come back, wires die.

use std::time::Duration;

use aip::ClientId;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use constellation::{NewTask, TaskEvent};
use link::Ambient;
use serde_json::{Value, json};
use tower_service::Service;

use crate::KEY;
use crate::parties::{Worker, World, plan};
use crate::stutterer::stutter;

pub(crate) const DEVICES: [&str; 3] = ["d1", "d2", "d3"];
const REQUESTERS: [&str; 3] = ["g1", "g2", "g3"];

/// Tasks of a requester; one more comes over HTTP for each of them.
const TASKS: usize = 5;

/// How long the parties and wires have trouble.
const TROUBLE: Duration = Duration::from_secs(60);

/// By when everything must be over.
const PATIENCE: Duration = Duration::from_secs(1800);

/// Runs everything, and waits until it is quiet.
///
/// # Errors
/// What never ended.
pub(crate) async fn run(world: &World, seed: u64) -> Result<(), String> {
    let mut chance = fastrand::Rng::with_seed(seed);
    let requesters: Vec<_> = REQUESTERS
        .map(|id| tokio::spawn(requester(world.clone(), id, chance.u64(..))))
        .into_iter()
        .chain([
            tokio::spawn(over_http(world.clone(), chance.u64(..))),
            tokio::spawn(stutter(world.clone(), chance.u64(..))),
        ])
        .collect();
    let workers = trouble(world, chance).await;
    world.network.calm();
    world.history.note("from here on there is no trouble");
    for requester in requesters {
        let over = tokio::time::timeout(PATIENCE, requester).await;
        over.map_err(|_| "a requester waits for ever".to_owned())?
            .map_err(|error| format!("a requester failed: {error}"))?;
    }
    quiet(world, "tasks are over", |left| left.sessions == 0 && left.commands == 0).await?;
    let there = DEVICES.len();
    quiet(world, "devices are there", |left| left.clients == there).await?;
    workers.iter().for_each(|worker| worker.leave(world));
    // Who may come back is known for a while.
    let nothing = |left: &server::Snapshot| {
        let (dropped_results, identities) = (left.dropped_results, left.identities);
        *left == server::Snapshot { dropped_results, identities, ..Default::default() }
    };
    quiet(world, "tables are empty", nothing).await
}

async fn quiet(
    world: &World,
    what: &str,
    is_quiet: impl Fn(&server::Snapshot) -> bool,
) -> Result<(), String> {
    for _ in 0..PATIENCE.as_secs() {
        if is_quiet(&world.server.snapshot()) {
            world.history.note(format!("the {what}"));
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Err(format!("it never came to be that the {what}: {:?}", world.server.snapshot()))
}

/// Gives the devices and wires trouble. Returns the devices that are there at the end.
async fn trouble(world: &World, mut chance: fastrand::Rng) -> Vec<Worker> {
    let mut workers: Vec<Worker> =
        DEVICES.iter().map(|id| world.device(id, chance.u64(..))).collect();
    let end = tokio::time::Instant::now() + TROUBLE;
    while tokio::time::Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(chance.u64(..6000))).await;
        let at = chance.usize(..DEVICES.len());
        let party = chance.choice([DEVICES, REQUESTERS].as_flattened()).copied().unwrap_or("d1");
        match chance.u8(..6) {
            0 => world.network.cut(party),
            1 => world.network.swallow(party),
            2 => workers[at] = come_back(world, &workers[at], &mut chance).await,
            3 => {
                workers[at].leave(world);
                tokio::time::sleep(Duration::from_millis(chance.u64(..8000))).await;
                workers[at].crash(world, false);
                workers[at] = world.device(DEVICES[at], chance.u64(..));
            }
            _ => {}
        }
    }
    workers
}

/// A device crashes, and comes back after a while.
async fn come_back(world: &World, worker: &Worker, chance: &mut fastrand::Rng) -> Worker {
    worker.crash(world, chance.bool());
    let away = if chance.bool() { 500 } else { 10_000 };
    tokio::time::sleep(Duration::from_millis(chance.u64(..away))).await;
    world.device(&worker.id, chance.u64(..))
}

/// Submits tasks over connections that break now and then, and waits for each outcome.
async fn requester(world: World, id: &'static str, seed: u64) {
    let mut chance = fastrand::Rng::with_seed(seed);
    let mut left = TASKS;
    while left > 0 {
        let ambient = Ambient::simulated(chance.u64(..), world.epoch);
        let connected = world.constellation(id, &ambient).await;
        let Some(constellation) = connected else {
            tokio::time::sleep(Duration::from_millis(chance.u64(..3000))).await;
            continue;
        };
        let at_once = chance.usize(1..=left);
        let mut tasks = Vec::new();
        for _ in 0..at_once {
            tokio::time::sleep(Duration::from_millis(chance.u64(..4000))).await;
            let device = ClientId::new(DEVICES[chance.usize(..DEVICES.len())]).unwrap();
            tasks.extend(constellation.submit(NewTask::new(device, plan(&mut chance))).ok());
            left -= 1;
        }
        if chance.u8(..6) == 0 {
            world.history.note(format!("{id} crashes"));
            world.network.crash(id, chance.bool());
            ambient.crash();
            continue;
        }
        for mut task in tasks {
            let outcome = loop {
                if let TaskEvent::Ended(outcome) = task.next_event().await {
                    break outcome;
                }
            };
            let session = crate::history::short(task.session_id().as_str()).to_owned();
            world.history.note(format!("{id} knows how S={session} ended: {:?}", outcome.error));
        }
        constellation.close().await;
    }
}

/// Submits tasks over HTTP, cancels some of whoever's they are, and waits for each.
async fn over_http(world: World, seed: u64) {
    let mut chance = fastrand::Rng::with_seed(seed);
    let mut routes = world.server.router();
    let mut own = Vec::new();
    for _ in 0..TASKS {
        tokio::time::sleep(Duration::from_millis(chance.u64(..12_000))).await;
        let request: Value = serde_json::from_str(&plan(&mut chance)).unwrap();
        let new = json!({"device": DEVICES[chance.usize(..DEVICES.len())], "request": request});
        let made = ask(&mut routes, "POST", "/api/v1/tasks", Some(&new)).await;
        own.extend(made["id"].as_str().map(str::to_owned));
        let list = ask(&mut routes, "GET", "/api/v1/tasks?state=running", None).await;
        let running = list["tasks"].as_array().cloned().unwrap_or_default();
        if let Some(victim) = chance.choice(running) {
            let path = format!("/api/v1/tasks/{}/cancel", victim["id"].as_str().unwrap());
            ask(&mut routes, "POST", &path, None).await;
            world.history.note(format!("{} is cancelled", victim["session_id"]));
        }
    }
    for id in own {
        while ask(&mut routes, "GET", &format!("/api/v1/tasks/{id}/wait"), None).await["ended_at"]
            .is_null()
        {}
    }
}

async fn ask(routes: &mut Router, method: &str, path: &str, body: Option<&Value>) -> Value {
    let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
    let request = Request::builder().method(method).uri(path).header("X-API-Key", KEY);
    let request = request.header("content-type", "application/json").body(body).unwrap();
    let response = routes.call(request).await.unwrap();
    let bytes = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    serde_json::from_slice(&bytes).unwrap_or_default()
}
