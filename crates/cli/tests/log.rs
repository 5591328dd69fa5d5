//! The log of a server on standard error: its forms, and a reader that does not read.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::process::{ExitStatus, Stdio};

use common::process::{Home, state_dir};
use common::{Peer, Server, http_client, within};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStderr};

/// Every line of a log, as the object that it must be.
fn objects(log: &str) -> Vec<Value> {
    let object = |line: &str| match serde_json::from_str::<Value>(line) {
        Ok(object @ Value::Object(_)) => object,
        _ => panic!("no object: {line}"),
    };
    log.lines().map(object).collect()
}

fn find<'a>(objects: &'a [Value], message: &str) -> &'a Value {
    let is_it = |object: &&Value| object["message"].as_str().unwrap().contains(message);
    objects.iter().find(is_it).unwrap_or_else(|| panic!("no {message:?} in {objects:?}"))
}

#[tokio::test]
async fn with_json_each_line_is_an_object_whatever_it_says() {
    let server = Server::start_with(&["--log-format", "json"]).await;
    let _device = server.device("d", &[]).await;
    let done = server.run(&["exec", "--on", "d", "--", "pwd"]).await;
    assert_eq!(done.code, 0, "{done:?}");
    server.process.signal(Signal::TERM);
    let done = server.process.done().await;
    let lines = objects(&done.stderr);
    for line in &lines {
        let timestamp = line["timestamp"].as_str().unwrap();
        assert!(timestamp.parse::<jiff::Timestamp>().is_ok() && timestamp.ends_with('Z'), "{line}");
        assert!(line["level"].is_string() && line["target"].is_string(), "{line}");
    }
    let ended = find(&lines, "task ended");
    assert_eq!((&ended["level"], &ended["status"]), (&"INFO".into(), &"completed".into()));
    assert!(ended["target"].as_str().unwrap().starts_with("server::"), "{ended}");
    let task = &ended["spans"][0];
    assert_eq!(task["name"], "task", "{ended}");
    assert!(task["task"].is_string() && task["session"].is_string(), "{ended}");
    let connection = &find(&lines, "connected")["spans"][0];
    assert_eq!((&connection["name"], &connection["client"]), (&"connection".into(), &"d".into()));
    assert!(connection["connection"].is_string() && connection["address"].is_string());
    assert!(find(&lines, "listens on ws://127.0.0.1:")["message"].is_string());
    assert_eq!(find(&lines, "Stopping")["target"], "flightdeck");
}

#[tokio::test]
async fn with_json_the_reason_of_a_failure_is_an_object_too() {
    let home = Home::new();
    let mut command = home.command(&["serve", "--tls-cert", "x"]);
    command.env("FLIGHTDECK_LOG_FORMAT", "json").stderr(Stdio::piped());
    let done = within("its end", command.output()).await.unwrap();
    assert_eq!(done.status.code(), Some(2));
    let lines = objects(std::str::from_utf8(&done.stderr).unwrap());
    assert_eq!(find(&lines, "--tls-key")["level"], "ERROR");
}

/// What a line has at least, in bytes.
const LINE: usize = 8 * 1024;

/// More than wait in the pipe, in the queue, and on their way between the two.
const FULL: usize = 3 * 1024 * 1024;

/// A server whose standard error is read as far as a test wants.
struct Unread {
    child: Child,
    stderr: BufReader<ChildStderr>,
    port: u16,
    key: String,
    _home: Home,
}

impl Unread {
    async fn start() -> Self {
        let home = Home::new();
        let state = state_dir(&home);
        let args = ["serve", "--port", "0", "--state-dir", &state, "--log", "debug"];
        let mut child = home.command(&args).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("Other machines") {
            assert_ne!(within("a line", stderr.read_line(&mut said)).await.unwrap(), 0, "{said}");
        }
        let address = said.split("://127.0.0.1:").nth(1).unwrap().split('/').next().unwrap();
        let key = std::fs::read_to_string(home.path().join("state/key")).unwrap();
        let (port, key) = (address.parse().unwrap(), key.trim().to_owned());
        Self { child, stderr, port, key, _home: home }
    }

    /// Asks with wrong keys, each of which is a long line of the log, for more than there is room for.
    async fn fill(&self) {
        let path = "x".repeat(LINE);
        let url = format!("http://127.0.0.1:{}/api/v1/tasks/{path}", self.port);
        let client = http_client();
        for _ in 0..FULL / LINE {
            let asking = client.get(&url).header("X-API-Key", "wrong").send();
            assert_eq!(within("an answer", asking).await.unwrap().status(), 401);
        }
    }

    fn terminate(&self) {
        let id = i32::try_from(self.child.id().unwrap()).unwrap();
        kill_process(Pid::from_raw(id).unwrap(), Signal::TERM).unwrap();
    }

    async fn end(&mut self) -> ExitStatus {
        within("its end", self.child.wait()).await.unwrap()
    }
}

#[tokio::test]
async fn a_log_that_is_not_read_stops_no_server_and_says_what_it_lost() {
    let mut server = Unread::start().await;
    server.fill().await;
    let mut device = Peer::connect(server.port, &server.key).await.unwrap();
    device.register_device("d").await;
    let mut log = String::new();
    while !log.contains("log lines lost: ") {
        assert_ne!(within("a line", server.stderr.read_line(&mut log)).await.unwrap(), 0);
    }
    server.terminate();
    within("the rest of the log", server.stderr.read_to_string(&mut log)).await.unwrap();
    assert!(log.contains("Stopping: "), "the last words");
    assert_eq!(server.end().await.code(), Some(0));
}

#[tokio::test]
async fn a_server_whose_log_is_not_read_stops_when_it_is_told_to() {
    let mut server = Unread::start().await;
    server.fill().await;
    server.terminate();
    assert_eq!(server.end().await.code(), Some(0));
}
