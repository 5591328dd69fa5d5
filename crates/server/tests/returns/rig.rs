//! A server that can be killed and started again on the same store, and clients that come back, as raw peers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use link::Ambient;
use serde_json::{Value, json};
use server::store::{
    Batch, Change, Commit, MemoryStore, Query, Reading, Record, Recovered, Store, StoreError,
    Summary,
};
use server::{Audit, Config, Keys, Server, Services, TaskId};
use tokio::sync::oneshot;

use crate::party::Party;
use crate::peer::Peer;

/// How a store works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    /// At once.
    Works,
    /// What comes is never kept: the server dies before.
    Loses,
    /// What comes is kept, and the server dies before it hears of that.
    Swallows,
    /// The disk is full.
    Full,
}

/// Where a store says whether something is in.
type Answer = oneshot::Sender<Result<(), StoreError>>;

/// A store that outlives the server. It keeps in memory what a real one would have on its disk.
#[derive(Clone)]
pub(crate) struct Disk {
    inner: MemoryStore,
    mood: Arc<Mutex<Mood>>,
    /// Those whose answer never comes.
    unanswered: Arc<Mutex<Vec<Answer>>>,
}

impl Disk {
    fn new(config: &Config) -> Self {
        let inner = MemoryStore::new(config.history());
        Self { inner, mood: Arc::new(Mutex::new(Mood::Works)), unanswered: Arc::default() }
    }

    pub(crate) fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap_or_else(PoisonError::into_inner) = mood;
    }

    /// Says after all that what was kept without a word is in.
    pub(crate) fn answer(&self) {
        let mut unanswered = self.unanswered.lock().unwrap_or_else(PoisonError::into_inner);
        for answer in unanswered.drain(..) {
            let _the_server_is_gone = answer.send(Ok(()));
        }
    }

    /// The same disk for a server that is started on it; the one before keeps nothing more.
    fn pass_on(&self) -> Self {
        self.set(Mood::Loses);
        Self { inner: self.inner.clone(), mood: Arc::new(Mutex::new(Mood::Works)), ..self.clone() }
    }

    fn take(&self, keep: impl FnOnce() -> Commit) -> Commit {
        let mood = *self.mood.lock().unwrap_or_else(PoisonError::into_inner);
        match mood {
            Mood::Works => return keep(),
            Mood::Full => return Commit::Known(Err(StoreError::Failed("disk full".to_owned()))),
            Mood::Swallows => {
                let _never_told = keep();
            }
            Mood::Loses => {}
        }
        let (answer, commit) = oneshot::channel();
        self.unanswered.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
        Commit::Pending(commit)
    }
}

impl Store for Disk {
    fn append(&self, batch: &Arc<Batch>) -> Commit {
        self.take(|| self.inner.append(batch))
    }

    fn keep(&self, change: Change) -> Commit {
        self.take(|| self.inner.keep(change))
    }

    fn set_audit(&self, audit: Audit) {
        self.inner.set_audit(audit);
    }

    fn recover(&self) -> Result<Recovered, StoreError> {
        self.inner.recover()
    }

    fn is_durable(&self) -> bool {
        true
    }

    fn journal(&self, task: TaskId) -> Reading<Option<Vec<Record>>> {
        self.inner.journal(task)
    }

    fn tasks(&self, query: Query) -> Reading<Vec<Summary>> {
        self.inner.tasks(query)
    }

    fn tidy(&self, now: Timestamp) {
        self.inner.tidy(now);
    }
}

/// A server on its disk.
pub(crate) struct Rig {
    pub(crate) server: Server,
    pub(crate) disk: Disk,
    config: Config,
    ambient: Ambient,
    keys: Vec<server::KeyRecord>,
}

impl Rig {
    pub(crate) async fn new() -> Self {
        Self::with(Config::default()).await
    }

    pub(crate) async fn with(config: Config) -> Self {
        let disk = Disk::new(&config);
        let ambient = Ambient::simulated(1, Timestamp::UNIX_EPOCH);
        let server = start(&config, &disk, &ambient, &[]).await;
        Self { server, disk, config, ambient, keys: Vec::new() }
    }

    /// The server is killed; what its store has not kept is lost. It is not started again yet.
    pub(crate) fn kill(&mut self) {
        self.disk = self.disk.pass_on();
        self.ambient.crash();
    }

    /// The server is started again.
    pub(crate) async fn start(&mut self) {
        let now = self.ambient.timestamp();
        self.ambient = Ambient::simulated(2, now);
        self.server = start(&self.config, &self.disk, &self.ambient, &self.keys).await;
    }

    pub(crate) async fn restart(&mut self) {
        self.kill();
        self.start().await;
    }

    /// What is open.
    pub(crate) fn open(&self) -> usize {
        self.server.snapshot().sessions
    }

    /// No task is left, but commands that have still to stop may be.
    pub(crate) fn assert_quiet_but_for_commands(&self) {
        assert_eq!(self.server.snapshot().sessions, 0);
    }

    /// Nothing is left but identities.
    pub(crate) fn assert_quiet(&self) {
        let left = self.server.snapshot();
        assert_eq!((left.sessions, left.commands, left.lanes), (0, 0, 0), "{left:?}");
    }
}

async fn start(
    config: &Config,
    disk: &Disk,
    ambient: &Ambient,
    created: &[server::KeyRecord],
) -> Server {
    let services = Services {
        store: Arc::new(disk.clone()),
        ambient: ambient.clone(),
        ..Services::in_memory(config)
    };
    let keys = Keys { created: created.to_vec(), ..Keys::local("key".to_owned().into()) };
    let server = Server::with(config.clone(), keys, services);
    server.recover().await.unwrap();
    server
}

/// What a client keeps in its file.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) id: &'static str,
    pub(crate) role: &'static str,
    pub(crate) features: Vec<&'static str>,
    /// How many tasks that go together a device says it takes.
    pub(crate) at_once: Option<u32>,
    pub(crate) file: String,
    pub(crate) boot: String,
    pub(crate) store: Option<Value>,
    pub(crate) key: Option<Value>,
    pub(crate) n: u64,
    /// A device's journal: commands and how far they came.
    pub(crate) held: Vec<(String, &'static str)>,
    pub(crate) newest: Option<String>,
}

impl Client {
    pub(crate) fn requester() -> Self {
        Self::new("q", "constellation", &["ack", "request_id", "cancel", "detach"])
    }

    pub(crate) fn device() -> Self {
        Self::new("d", "device", &["ack", "cancel", "resume"])
    }

    pub(crate) fn new(id: &'static str, role: &'static str, features: &[&'static str]) -> Self {
        Self {
            id,
            role,
            features: features.to_vec(),
            at_once: None,
            file: format!("file-{id}"),
            boot: "boot".to_owned(),
            store: None,
            key: None,
            n: 0,
            held: Vec::new(),
            newest: None,
        }
    }

    /// REGISTER's `metadata`, of the next connection.
    pub(crate) fn metadata(&mut self) -> Value {
        self.n += 1;
        let mut resume = json!({"journal": format!("{}.{}", self.file, self.boot), "n": self.n});
        if let (Some(store), Some(key)) = (&self.store, &self.key) {
            resume["store"] = store.clone();
            resume["key"] = key.clone();
        }
        if self.role == "device" {
            let held = self.held.iter().map(|(r, state)| json!({"R": r, "state": state}));
            resume["commands"] = held.collect();
            if let Some(newest) = &self.newest {
                resume["newest"] = json!(newest);
            }
        }
        json!({"platform": "linux", "flightdeck": {"version": 1, "features": self.features,
            "at_once": self.at_once, "resume": resume}})
    }

    /// Comes, and is taken in. Returns what the confirmation says of the extension.
    pub(crate) async fn come(&mut self, rig: &Rig) -> (Party, Value) {
        let (peer, answer) = self.try_come(rig).await;
        assert_eq!(answer["status"], "ok", "{answer}");
        let granted = answer["result"]["flightdeck"].clone();
        self.store = Some(granted["store"].clone());
        self.key = Some(granted["resume_key"].clone());
        (peer, granted)
    }

    /// Comes, and keeps nothing of the answer.
    pub(crate) async fn try_come(&mut self, rig: &Rig) -> (Party, Value) {
        let metadata = self.metadata();
        let (peer, answer) = Peer::come_with(&rig.server, self.id, self.role, metadata).await;
        (peer.into(), answer)
    }

    /// The same, with a target that it declares.
    pub(crate) async fn try_come_for(&mut self, rig: &Rig, target: &str) -> (Party, Value) {
        let metadata = self.metadata();
        let come = Peer::come_for(&rig.server, self.id, self.role, metadata, Some(target));
        let (peer, answer) = come.await;
        (peer.into(), answer)
    }

    /// Notes in its journal how far a command came.
    pub(crate) fn note(&mut self, command: &Value, state: &'static str) {
        let id = command["response_id"].as_str().unwrap().to_owned();
        self.held.retain(|(known, _)| *known != id);
        self.newest = self.newest.take().max(Some(id.clone()));
        self.held.push((id, state));
    }
}

/// A task of one command, with the requester's id of it.
pub(crate) fn task(request_id: &str) -> Value {
    json!({
        "type": "task",
        "session_id": format!("S-{request_id}"),
        "target_id": "d",
        "request": r#"{"commands":[{"tool_name":"t"}]}"#,
        "request_id": request_id,
    })
}

/// The same, of a command: it goes together with its like.
pub(crate) fn command_task(request_id: &str) -> Value {
    let mut task = task(request_id);
    task["request"] = json!(r#"{"commands":[{"tool_name":"execute_command"}]}"#);
    task
}

/// The same with what becomes of it when its requester is gone.
pub(crate) fn task_that(request_id: &str, on_disconnect: &Value) -> Value {
    let mut task = task(request_id);
    task["metadata"] = json!({"flightdeck": {"on_disconnect": on_disconnect}});
    task
}

/// The task of a requester that does not speak the extension.
pub(crate) fn legacy_task(session: &str) -> Value {
    let request = r#"{"commands":[{"tool_name":"t"}]}"#;
    json!({"type": "task", "session_id": session, "target_id": "d", "request": request})
}

/// Submits a task and takes its ACK. Returns its id, *T*.
pub(crate) async fn submit(requester: &mut Party, task: &Value) -> String {
    requester.say(task.clone());
    accepted(requester).await
}

/// Takes an ACK. Returns the id of its task.
pub(crate) async fn accepted(requester: &mut Party) -> String {
    let ack = requester.expect("heartbeat").await;
    ack["result"]["flightdeck"]["task"].as_str().unwrap().to_owned()
}

/// Says that an outcome was taken.
pub(crate) fn acknowledge(requester: &mut Party, end: &Value) {
    requester.say(json!({
        "type": "task_end",
        "status": "ok",
        "session_id": end["session_id"],
        "prev_response_id": end["response_id"],
    }));
}

/// Cancels a task.
pub(crate) fn cancel(requester: &mut Party, session: &str, task: &str) {
    requester.say(json!({
        "type": "task_end",
        "status": "failed",
        "session_id": session,
        "prev_response_id": task,
        "metadata": {"flightdeck": {"cancel": "request"}},
    }));
}

/// A device's word on a command that it was told to stop.
pub(crate) fn say_stopped(device: &mut Party, command: &Value, word: &str) {
    device.say(json!({
        "type": "task_end",
        "status": "ok",
        "session_id": command["session_id"],
        "prev_response_id": command["response_id"],
        "metadata": {"flightdeck": {"cancel": word}},
    }));
}

/// Sends the results of a command.
pub(crate) fn send_results(device: &mut Party, command: &Value, status: &str) {
    let call_id = &command["actions"][0]["call_id"];
    device.say(json!({
        "type": "command_results",
        "session_id": command["session_id"],
        "prev_response_id": command["response_id"],
        "action_results": [{"status": status, "result": "done", "call_id": call_id}],
    }));
}

/// Takes what the server says of results.
pub(crate) async fn taken(device: &mut Party) -> String {
    let answer = device.expect("heartbeat").await;
    answer["result"]["flightdeck"]["result"].as_str().unwrap().to_owned()
}

/// Takes a completed outcome and acknowledges it.
pub(crate) async fn complete(requester: &mut Party) -> Value {
    let end = requester.expect("task_end").await;
    assert_eq!(end["status"], "completed", "{end}");
    acknowledge(requester, &end);
    end
}

/// Lets everything that is on its way arrive.
pub(crate) async fn settle() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}
