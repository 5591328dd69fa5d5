//! What a line of the log says of the connection or the task that it is about.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aip::codec::Wire;
use aip::{ClientMessage, CloseCode, ServerMessage};
use bytes::Bytes;
use link::connection::{OFFLOAD_BYTES, Watch, now};
use link::memory::pair;
use link::{Connection, Event, Outbox, OutboxLimits};
use serde_json::{Value, json};
use server::agent::{Agent, Decision, Question, Thinking};
use server::{Config, Keys, Server, Services};
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::EnvFilter;

/// Longer than any wait of these tests.
const NEVER: Duration = Duration::from_secs(24 * 3600);

const ADDRESS: &str = "192.0.2.7:1";

const PLAN: &str = r#"{"commands":[{"tool_name":"t"}]}"#;

/// What this thread logs. The tests run on one thread each.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn text(filter: &str) -> (Self, DefaultGuard) {
        let log = Self::default();
        let (written, filter) = (log.clone(), EnvFilter::new(filter));
        let lines = tracing_subscriber::fmt().with_ansi(false).with_env_filter(filter);
        let lines = lines.with_writer(move || written.clone()).finish();
        (log, tracing::subscriber::set_default(lines))
    }

    fn json(filter: &str) -> (Self, DefaultGuard) {
        let log = Self::default();
        let (written, filter) = (log.clone(), EnvFilter::new(filter));
        let lines = tracing_subscriber::fmt().json().flatten_event(true).with_current_span(false);
        let lines = lines.with_env_filter(filter).with_writer(move || written.clone()).finish();
        (log, tracing::subscriber::set_default(lines))
    }

    fn lines(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    fn objects(&self) -> Vec<Value> {
        self.lines().iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The objects with this message.
    fn saying(&self, message: &str) -> Vec<Value> {
        let found: Vec<_> =
            self.objects().into_iter().filter(|line| line["message"] == message).collect();
        assert!(!found.is_empty(), "no {message:?} in {:?}", self.lines());
        found
    }
}

/// A raw peer on its end of a link.
struct Peer {
    id: &'static str,
    role: &'static str,
    connection: Connection<ServerMessage>,
}

impl Peer {
    async fn join(server: &Server, id: &'static str, role: &'static str) -> Self {
        let (theirs, ours, _switch) = pair();
        let outbox = Arc::new(Outbox::new(OutboxLimits::default()));
        let watch = Watch { ping_every: Duration::from_secs(20), timeout: NEVER };
        let connection = Connection::new(ours, outbox, watch, None);
        let mut peer = Self { id, role, connection };
        peer.say(json!({"type": "register", "metadata": {"platform": "linux"}}));
        let accepting = server.accept(theirs, Some(ADDRESS.parse().unwrap()));
        let ((), _confirmation) = tokio::join!(accepting, peer.hear());
        peer
    }

    fn say(&mut self, mut message: Value) {
        message["client_id"] = json!(self.id);
        message["client_type"] = json!(self.role);
        let text = Bytes::from(message.to_string());
        self.connection.reply(&ClientMessage::decode(&text).unwrap());
    }

    async fn hear(&mut self) -> Value {
        match self.connection.next_event(Some(now() + NEVER)).await {
            Event::Message(message) => serde_json::from_slice(&message.encode()).unwrap(),
            event => panic!("{}: {event:?}", self.id),
        }
    }

    async fn expect(&mut self, kind: &str) -> Value {
        let message = self.hear().await;
        assert_eq!(message["type"], kind, "{}: {message}", self.id);
        message
    }

    /// Says something so large that `link` logs it.
    async fn say_much(&mut self) {
        let text = "x".repeat(OFFLOAD_BYTES);
        self.say(json!({"type": "heartbeat", "error": text}));
        self.expect("heartbeat").await;
    }

    async fn leave(self) {
        self.connection.close(CloseCode::NORMAL, "").await;
    }
}

/// Runs a task of one step, and something beside it on both connections.
async fn work(server: &Server) {
    let mut device = Peer::join(server, "d", "device").await;
    let mut galaxy = Peer::join(server, "g", "constellation").await;
    device.say_much().await;
    galaxy.say_much().await;
    let task = json!({"type": "task", "session_id": "S1", "target_id": "d", "request": PLAN});
    galaxy.say(task);
    galaxy.expect("heartbeat").await;
    let command = device.expect("command").await;
    let results = [json!({"status": "success", "call_id": command["actions"][0]["call_id"]})];
    device.say(json!({
        "type": "command_results",
        "session_id": command["session_id"],
        "prev_response_id": command["response_id"],
        "action_results": results,
    }));
    device.expect("task_end").await;
    galaxy.expect("task_end").await;
    galaxy.leave().await;
    device.leave().await;
    server.shut_down().await;
}

fn server() -> Server {
    Server::new(Config::default(), Keys::local("key".to_owned().into()))
}

fn connection(number: u32, client: &str) -> Value {
    json!({"name": "connection", "connection": format!("c{number}"), "address": ADDRESS, "client": client})
}

#[tokio::test]
async fn a_line_of_link_says_whose_connection_it_is_about() {
    for filter in ["debug", "info,link=debug"] {
        let (log, _guard) = Log::json(filter);
        work(&server()).await;
        let lines = log.saying("a large message is read on a thread of its own");
        let spans: Vec<_> = lines.iter().map(|line| line["spans"].clone()).collect();
        assert_eq!(spans, [json!([connection(1, "d")]), json!([connection(2, "g")])]);
    }
}

#[tokio::test]
async fn a_connection_is_named_from_its_first_to_its_last_line_whatever_the_filter() {
    for filter in ["info", "debug", "off,server=info"] {
        let (log, _guard) = Log::json(filter);
        work(&server()).await;
        for message in ["connected", "disconnected"] {
            for line in log.saying(message) {
                let is_device = line["spans"][0]["client"] == "d";
                let named = if is_device { connection(1, "d") } else { connection(2, "g") };
                assert_eq!(line["spans"], json!([named]), "{line}");
            }
        }
    }
}

#[tokio::test]
async fn a_line_about_a_task_says_which_and_names_no_connection() {
    let (log, _guard) = Log::json("debug");
    work(&server()).await;
    let named = log.saying("task ended")[0]["spans"].clone();
    let id = named[0]["task"].as_str().unwrap();
    assert_eq!(named, json!([{"name": "task", "task": id, "session": "S1"}]));
    assert_eq!(log.saying("task accepted")[0]["spans"], named);
}

/// The ids that each line of `work` has, which no line may have twice.
const IDS: [&str; 4] = ["connection", "client", "task", "session"];

#[tokio::test]
async fn no_line_says_an_id_twice() {
    for filter in ["info", "trace"] {
        let (log, guard) = Log::json(filter);
        work(&server()).await;
        for line in log.objects() {
            let spans = line["spans"].as_array().map(Vec::as_slice).unwrap_or_default();
            for id in IDS {
                let said = spans.iter().chain([&line]).filter(|part| part.get(id).is_some());
                assert!(said.count() <= 1, "{id} in {line}");
            }
        }
        drop(guard);
        let (log, _guard) = Log::text(filter);
        work(&server()).await;
        for line in log.lines() {
            for id in IDS {
                assert!(line.matches(&format!("{id}=")).count() <= 1, "{id} in {line}");
            }
        }
    }
}

/// An agent that logs at once and later, and gives up.
struct Loud;

impl Agent for Loud {
    fn next(&self, _: Question) -> Thinking {
        tracing::warn!("asked");
        Thinking::Later(Box::pin(async {
            tokio::task::yield_now().await;
            tracing::warn!("has thought");
            Decision::Fail("no".to_owned()).into()
        }))
    }
}

#[tokio::test]
async fn what_an_agent_logs_says_for_which_task() {
    let (log, _guard) = Log::json("warn");
    let config = Config::default();
    let services = Services { agent: Arc::new(Loud), ..Services::in_memory(&config) };
    let server = Server::with(config, Keys::local("key".to_owned().into()), services);
    let _device = Peer::join(&server, "d", "device").await;
    let mut galaxy = Peer::join(&server, "g", "constellation").await;
    galaxy.say(json!({"type": "task", "session_id": "S1", "target_id": "d", "request": "hello"}));
    galaxy.expect("heartbeat").await;
    galaxy.expect("task_end").await;
    for message in ["asked", "has thought"] {
        let spans = &log.saying(message)[0]["spans"];
        assert_eq!((spans.as_array().unwrap().len(), &spans[0]["session"]), (1, &json!("S1")));
    }
}
