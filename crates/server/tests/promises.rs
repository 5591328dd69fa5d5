//! What the server promises when something inside it goes wrong: a store that cannot write, an agent that panics,
//! a connection that is replaced, a program that mounts the routes itself. Time is paused.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "common/peer.rs"]
#[allow(dead_code, reason = "other tests need the rest")]
mod peer;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use link::connection::now;
use peer::{Peer, at_rest, begin, device_and_requester};
use serde_json::{Value, json};
use server::agent::{Agent, Answer, Auto, Decision, Question, Thinking, Usage};
use server::store::{
    Batch, Change, Commit, MemoryStore, Query, Reading, Record, Recovered, Store, StoreError,
    Summary,
};
use server::{Audit, Config, Finish, Keys, Server, Services, TaskId};

const PLAN: &str = r#"{"commands":[{"tool_name":"t"}]}"#;

/// A store that works while it may.
struct Switched {
    inner: MemoryStore,
    works: Arc<AtomicBool>,
}

impl Store for Switched {
    fn append(&self, batch: &Arc<Batch>) -> Commit {
        if self.works.load(Ordering::Relaxed) {
            return self.inner.append(batch);
        }
        Commit::Known(Err(StoreError::Full { bytes: 7 }))
    }

    fn keep(&self, change: Change) -> Commit {
        self.inner.keep(change)
    }

    fn set_audit(&self, audit: Audit) {
        self.inner.set_audit(audit);
    }

    fn recover(&self) -> Result<Recovered, StoreError> {
        self.inner.recover()
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

fn keys() -> Keys {
    Keys::local("key".to_owned().into())
}

/// A server whose store works while the switch says so.
fn switched() -> (Server, Arc<AtomicBool>) {
    let (config, works) = (Config::default(), Arc::new(AtomicBool::new(true)));
    let store = Switched { inner: MemoryStore::new(config.history()), works: works.clone() };
    let services = Services { store: Arc::new(store), ..Services::in_memory(&config) };
    (Server::with(config, keys(), services), works)
}

fn with_agent(agent: impl Agent) -> Server {
    let config = Config::default();
    let services = Services { agent: Arc::new(agent), ..Services::in_memory(&config) };
    Server::with(config, keys(), services)
}

#[tokio::test(start_paused = true)]
async fn a_task_that_cannot_be_stored_is_refused() {
    let (server, works) = switched();
    let (mut device, mut requester) = device_and_requester(&server).await;
    works.store(false, Ordering::Relaxed);
    requester.submit("S", "d", PLAN);
    let text = "The task could not be stored: the store has 7 bytes to write already, which is as many as may \
        wait; try again later";
    assert_eq!(requester.expect("error").await["error"], text);
    assert_eq!(requester.expect("task_end").await["error"], text);
    device.expect_silence(Duration::from_secs(5)).await;
    works.store(true, Ordering::Relaxed);
    begin(&mut requester, &mut device, "S", PLAN).await;
}

#[tokio::test(start_paused = true)]
async fn no_outcome_is_sent_that_is_not_stored() {
    let (server, works) = switched();
    let (mut device, mut requester) = device_and_requester(&server).await;
    let command = begin(&mut requester, &mut device, "S", PLAN).await;
    works.store(false, Ordering::Relaxed);
    device.answer_and_flush(&command, "done").await;
    requester.expect_silence(Duration::from_secs(600)).await;
    assert_eq!(server.snapshot().sessions, 1, "the task stays open");
    works.store(true, Ordering::Relaxed);
    let start = now();
    let end = requester.expect("task_end").await;
    assert_eq!(end["status"], "completed");
    assert_eq!(end["result"][0]["result"][0][0]["result"], "done");
    assert!((now() - start).as_secs() <= 1, "the store is tried again every second");
}

/// An agent that panics at once, or after a while.
struct Panics {
    later: bool,
}

impl Agent for Panics {
    fn next(&self, _: Question) -> Thinking {
        if self.later {
            return Thinking::Later(Box::pin(async { panic!("as the test wants it") }));
        }
        panic!("as the test wants it")
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_ends_its_task_by_the_same_road_and_no_other() {
    for later in [false, true] {
        let server = with_agent(Panics { later });
        let (device, mut requester) = device_and_requester(&server).await;
        for session in ["S1", "S2"] {
            requester.submit(session, "d", "do something");
            requester.expect("heartbeat").await;
            let end = requester.expect("task_end").await;
            assert_eq!(end["error"], "The server failed inside; see its log");
        }
        device.leave().await;
        requester.leave().await;
        at_rest(&server).await;
    }
}

/// An agent that looks at the tools first, takes its time, and says what it took.
struct Thinks;

impl Agent for Thinks {
    fn next(&self, question: Question) -> Thinking {
        Thinking::Later(Box::pin(async move {
            tokio::time::sleep(Duration::from_secs(3)).await;
            let Some(tools) = question.tools else { return Decision::Discover.into() };
            let usage = Usage { input_tokens: 7, output_tokens: 1 };
            let decision = Decision::Finish(Finish::Value(tools.clone()));
            Answer { usage, notes: vec![tools], ..decision.into() }
        }))
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_can_ask_for_the_tools_and_is_acknowledged_before_it_has_thought() {
    let server = with_agent(Thinks);
    let (mut device, mut requester) = device_and_requester(&server).await;
    let start = now();
    requester.submit("S", "d", "what is there?");
    requester.expect("heartbeat").await;
    assert_eq!((now() - start).as_secs(), 0);
    let command = device.expect("command").await;
    assert_eq!((now() - start).as_secs(), 3);
    assert_eq!(command["actions"][0]["tool_name"], "list_tools");
    device.answer_and_flush(&command, "tools").await;
    let end = requester.expect("task_end").await;
    assert_eq!(end["result"][0]["result"], "tools");
}

#[tokio::test(start_paused = true)]
async fn a_thought_ends_with_its_task() {
    let server = with_agent(Thinks);
    let (mut device, mut requester) = device_and_requester(&server).await;
    requester.submit("S", "d", "what is there?");
    requester.expect("heartbeat").await;
    requester.leave().await;
    let told = device.expect("task_end").await;
    assert_eq!(told["error"], "Task was cancelled due to client disconnection");
    device.expect_silence(Duration::from_secs(60)).await;
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_waits_no_longer_than_the_old_connection_lives() {
    let server = Server::new(Config::default(), keys());
    let (device, _requester) = device_and_requester(&server).await;
    device.switch.swallow();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let start = now();
    let newcomer = Peer::come(&server, "d", "device");
    let cut = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        device.switch.cut();
    };
    let ((_newcomer, answer), ()) = tokio::join!(newcomer, cut);
    assert_eq!((&answer["status"], (now() - start).as_millis()), (&json!("ok"), 500));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_was_replaced_starts_no_task() {
    let server = Server::new(Config::default(), keys());
    let (_device, mut requester) = device_and_requester(&server).await;
    // What it sends still arrives; what it is asked does not.
    requester.switch.swallow_to(1);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (mut newcomer, answer) = Peer::come(&server, "g", "constellation").await;
    assert_eq!(answer["status"], "ok");
    requester.submit("S", "d", PLAN);
    requester.say(json!({"type": "heartbeat"}));
    requester.expect_silence_or_end(Duration::from_secs(5)).await;
    newcomer.expect_silence(Duration::from_secs(5)).await;
    assert_eq!(server.snapshot().sessions, 0);
}

/// Where nothing can be logged of one client's error.
struct NoLog;

impl io::Write for NoLog {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        assert!(!text.contains("a client reports an error"), "as told");
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn an_actor_that_panics_leaves_no_ghost() {
    let lines = tracing_subscriber::fmt().with_writer(|| NoLog).finish();
    let _logging = tracing::subscriber::set_default(lines);
    let server = Server::new(Config::default(), keys());
    let (mut device, mut requester) = device_and_requester(&server).await;
    begin(&mut requester, &mut device, "S", PLAN).await;
    device.say(json!({"type": "error", "error": "any"}));
    let end = requester.expect("task_end").await;
    assert!(end["error"].as_str().unwrap().contains("disconnected"), "{end}");
    assert_eq!(server.snapshot().clients, 1);
    // Its id is free.
    let again = Peer::join(&server, "d", "device").await;
    again.leave().await;
    requester.leave().await;
    at_rest(&server).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_mounted_elsewhere_keeps_its_own_times() {
    let config = Config { command_timeout: Some(Duration::from_secs(9)), ..Config::default() };
    let server = Server::new(config, keys());
    let _mounted = server.router();
    let (mut device, mut requester) = device_and_requester(&server).await;
    let start = now();
    begin(&mut requester, &mut device, "S", PLAN).await;
    let end = requester.expect("task_end").await;
    assert_eq!((now() - start).as_secs(), 9);
    assert_eq!(end["status"], "failed");
}

/// A store that notes how often it is tidied.
struct Tidied(MemoryStore, Arc<std::sync::atomic::AtomicUsize>);

impl Store for Tidied {
    fn append(&self, batch: &Arc<Batch>) -> Commit {
        self.0.append(batch)
    }

    fn keep(&self, change: Change) -> Commit {
        self.0.keep(change)
    }

    fn set_audit(&self, audit: Audit) {
        self.0.set_audit(audit);
    }

    fn recover(&self) -> Result<Recovered, StoreError> {
        self.0.recover()
    }

    fn journal(&self, task: TaskId) -> Reading<Option<Vec<Record>>> {
        self.0.journal(task)
    }

    fn tasks(&self, query: Query) -> Reading<Vec<Summary>> {
        self.0.tasks(query)
    }

    fn tidy(&self, _: Timestamp) {
        self.1.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_mounted_elsewhere_tidies_and_ends_with_its_last_clone() {
    let (config, tidied) = (Config::default(), Arc::default());
    let store = Tidied(MemoryStore::new(config.history()), Arc::clone(&tidied));
    let services = Services { store: Arc::new(store), ..Services::in_memory(&config) };
    let server = Server::with(config, keys(), services);
    let device = Peer::join(&server, "d", "device").await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let before = tidied.load(Ordering::Relaxed);
    assert!((9..=11).contains(&before), "{before}");
    device.leave().await;
    at_rest(&server).await;
    drop(server);
    tokio::time::sleep(Duration::from_secs(10)).await;
    let after = tidied.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(tidied.load(Ordering::Relaxed), after, "nothing keeps it alive");
}

/// What [`Auto`] says to a task in words.
#[tokio::test(start_paused = true)]
async fn a_task_in_words_without_a_model_fails_at_once_and_says_what_to_do() {
    let server = with_agent(Auto);
    let (_device, mut requester) = device_and_requester(&server).await;
    requester.submit("S", "d", "tidy up");
    requester.expect("heartbeat").await;
    let end: Value = requester.expect("task_end").await;
    assert!(end["error"].as_str().unwrap().contains("has no model"), "{end}");
}
