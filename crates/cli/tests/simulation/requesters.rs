//! The requesters: over connections that break, with files that outlive them and without, and over HTTP.

use std::path::PathBuf;
use std::time::Duration;

use aip::ClientId;
use axum::http::StatusCode;
use constellation::{
    Channel, Constellation, NewTask, OnDisconnect, Outcome, Streams, Task, TaskEvent,
};
use link::Ambient;
use serde_json::{Value, json};

use crate::history::{End, What};
use crate::home::Home;
use crate::parties::{World, byte_at, plan};
use crate::workload::{DEVICES, pause};

/// Tasks of a requester; as many come over HTTP.
const TASKS: usize = 3;

/// Longer than any life, in milliseconds.
const LONG: u64 = 10_000_000;

/// What a requester does, in whichever life.
struct Requester {
    world: World,
    id: &'static str,
    chance: fastrand::Rng,
    /// Tasks that it has still to submit.
    left: usize,
}

/// Submits tasks, dies now and then, and waits for the outcome of each task that it has in its files.
pub(crate) async fn requester(world: World, id: &'static str, seed: u64) {
    let mut home = Home::new(world.folder.join(id));
    let chance = fastrand::Rng::with_seed(seed);
    let mut requester = Requester { world, id, chance, left: TASKS };
    // The last life is one that ends well.
    while !requester.live(&mut home).await {}
}

impl Requester {
    /// Lives once. `true` when nothing is left to be done.
    async fn live(&mut self, home: &mut Home) -> bool {
        // Somebody with the same name, who has none of its files and whom nobody knows again.
        let is_stranger = self.left > 0 && self.chance.u8(..6) == 0;
        let dies = self.left > 0 && self.chance.u8(..3) == 0;
        let longest = if dies { 20_000 } else { LONG };
        let (lives, with_machine) = (self.chance.u64(1000..=longest), self.chance.bool());
        let (world, id) = (self.world.clone(), self.id);
        let ambient = world.ambient(self.chance.u64(..));
        let mut living = Box::pin(self.connect_and_work(&ambient, home.path(), is_stranger));
        let lives = Duration::from_millis(if dies { lives } else { LONG });
        let done = tokio::time::timeout(lives, &mut living).await;
        if done.is_err() {
            world.history.note(format!("{id} crashes"));
            world.network.crash(id, with_machine);
        }
        // What stands there now is what the next life finds, whatever is done when this one is taken apart.
        if !is_stranger {
            home.pass_on();
        }
        ambient.crash();
        drop(living);
        if done != Ok(true) {
            pause(&mut self.chance, 6000).await;
        }
        self.left == 0 && done == Ok(true) && !is_stranger
    }

    /// `false` when there is no connection to be had.
    async fn connect_and_work(
        &mut self,
        ambient: &Ambient,
        home: PathBuf,
        is_stranger: bool,
    ) -> bool {
        let home = Some(home).filter(|_| !is_stranger);
        let connected = self.world.constellation(self.id, ambient, home).await;
        let Some(constellation) = connected else { return false };
        self.work(&constellation, is_stranger).await;
        constellation.close().await;
        true
    }

    async fn work(&mut self, constellation: &Constellation, is_stranger: bool) {
        let mut tasks = constellation.held();
        for _ in 0..self.chance.usize(0..=self.left) {
            pause(&mut self.chance, 4000).await;
            let device = ClientId::new(DEVICES[self.chance.usize(..DEVICES.len())]).unwrap();
            let on_disconnect = match self.chance.u8(..3) {
                _ if !constellation.may_detach() => OnDisconnect::Cancel,
                0 => OnDisconnect::Cancel,
                1 => OnDisconnect::after(self.chance.u32(1..30)),
                _ => OnDisconnect::Continue,
            };
            let output = constellation.may_stream() && self.chance.bool();
            let window = Some(self.chance.u32(4096..10_000)).filter(|_| output);
            let streams = Streams { output, window, ..Streams::default() };
            let new =
                NewTask { on_disconnect, streams, ..NewTask::new(device, plan(&mut self.chance)) };
            let Ok(task) = constellation.submit(new) else { continue };
            self.left -= 1;
            if constellation.may_detach() && !is_stranger {
                let (party, session) = (self.id.to_owned(), task.session_id().to_string());
                self.world.history.push(What::Submitted { party, session });
            }
            tasks.push(task);
        }
        for task in tasks {
            if self.chance.u8(..8) == 0 {
                pause(&mut self.chance, 3000).await;
                let _not_at_every_server = task.cancel();
            }
            self.wait(task).await;
        }
    }

    async fn wait(&self, mut task: Task) {
        let (party, session) = (self.id.to_owned(), task.session_id().to_string());
        let (mut step, mut at) = (0, 0);
        loop {
            match task.next_event().await {
                TaskEvent::Ended(outcome) => {
                    self.world.history.push(What::Learned { party, session, end: end(outcome) });
                    return;
                }
                TaskEvent::Output(output) if output.channel == Channel::Stdout => {
                    if output.step != step {
                        (step, at) = (output.step, 0);
                    }
                    at += output.lost;
                    let expected = (at..).map(byte_at);
                    if !output.bytes.iter().copied().eq(expected.take(output.bytes.len())) {
                        self.world.history.push(What::Garbled { party, session });
                        return;
                    }
                    at += output.bytes.len() as u64;
                }
                _ => {}
            }
        }
    }
}

fn end(outcome: Outcome) -> End {
    let why = outcome.error.unwrap_or_default();
    match (outcome.completed, outcome.is_lost, outcome.refused) {
        (true, ..) => End::Completed,
        (_, true, _) => End::Lost(why),
        (_, _, Some(_)) => End::Refused(why),
        _ => End::Failed(why),
    }
}

/// Submits tasks over HTTP, cancels some of whoever's they are, and waits for each.
pub(crate) async fn over_http(world: World, seed: u64) {
    let mut chance = fastrand::Rng::with_seed(seed);
    let mut own = Vec::new();
    for _ in 0..TASKS {
        pause(&mut chance, 12_000).await;
        own.extend(submit(&world, &mut chance).await);
        cancel_any(&world, &mut chance).await;
    }
    for task in own {
        let (session, end) = (task["session_id"].as_str().unwrap(), outcome(&world, &task).await);
        let (party, session) = ("http".to_owned(), session.to_owned());
        world.history.push(What::Learned { party, session, end });
    }
}

/// Submits a task until it has an answer. Returns the task, if it was accepted.
async fn submit(world: &World, chance: &mut fastrand::Rng) -> Option<Value> {
    let request: Value = serde_json::from_str(&plan(chance)).unwrap();
    let new = json!({"device": DEVICES[chance.usize(..DEVICES.len())], "request": request});
    let key = format!("{:016x}", chance.u64(..));
    // Who asks over HTTP does not know under which store it asked first.
    let losses = world.site.losses();
    while world.site.losses() == losses {
        let answer = world.site.ask("POST", "/api/v1/tasks", Some((&key, &new))).await;
        match answer {
            Some((StatusCode::CREATED, task)) => {
                let (party, session) =
                    ("http".to_owned(), task["session_id"].as_str().unwrap().to_owned());
                world.history.push(What::Submitted { party, session });
                return Some(task);
            }
            Some(_) => return None,
            None => tokio::time::sleep(Duration::from_millis(700)).await,
        }
    }
    None
}

async fn cancel_any(world: &World, chance: &mut fastrand::Rng) {
    let listed = world.site.ask("GET", "/api/v1/tasks?state=running", None).await;
    let running = listed.and_then(|(_, list)| list["tasks"].as_array().cloned());
    if let Some(victim) = chance.choice(running.unwrap_or_default()).filter(|_| chance.bool()) {
        let path = format!("/api/v1/tasks/{}/cancel", victim["id"].as_str().unwrap());
        let _the_server_may_die = world.site.ask("POST", &path, None).await;
        world.history.note(format!("{} is cancelled", victim["session_id"]));
    }
}

/// Waits until a task is over.
async fn outcome(world: &World, task: &Value) -> End {
    let path = format!("/api/v1/tasks/{}/wait", task["id"].as_str().unwrap());
    loop {
        match world.site.ask("GET", &path, None).await {
            Some((StatusCode::OK, task)) if !task["ended_at"].is_null() => {
                let error = task["error"].as_str().unwrap_or_default().to_owned();
                let is_completed = task["state"] == "completed";
                return if is_completed { End::Completed } else { End::Failed(error) };
            }
            Some((StatusCode::NOT_FOUND, _)) => return End::Lost("it is not known".to_owned()),
            Some(_) => {}
            None => tokio::time::sleep(Duration::from_millis(700)).await,
        }
    }
}
