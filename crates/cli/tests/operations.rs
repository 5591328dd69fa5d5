//! What an operator sees: the health routes, the metrics, and the log when a peer is cut.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{Peer, Server, http_client, plan, within};
use futures_util::SinkExt;
use rustix::process::Signal;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_websockets::Message;

const OPERATIONS: &str = include_str!("../../../docs/operations.md");

/// What `/metrics` said at one moment.
struct Scrape {
    content_type: String,
    text: String,
}

impl Scrape {
    async fn of(server: &Server) -> Self {
        let url = format!("http://127.0.0.1:{}/metrics", server.port);
        let request = http_client().get(url).bearer_auth(server.key()).send();
        let response = within("an answer", request).await.unwrap();
        assert_eq!(response.status(), 200);
        let content_type = response.headers()["content-type"].to_str().unwrap().to_owned();
        Self { content_type, text: within("the metrics", response.text()).await.unwrap() }
    }

    /// The value of a series, which is named without the prefix.
    fn value(&self, series: &str) -> f64 {
        let start = format!("flightdeck_{series} ");
        let line = self.text.lines().find_map(|line| line.strip_prefix(&start));
        line.unwrap_or_else(|| panic!("no {series} in {}", self.text)).parse().unwrap()
    }

    /// Name and type of each metric, under the name that a query uses.
    fn metrics(&self) -> BTreeMap<String, String> {
        let types = self.text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let named = types.map(|line| {
            let (name, kind) = line.split_once(' ').unwrap();
            let end = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            (format!("{name}{end}"), kind.to_owned())
        });
        named.collect()
    }

    /// The labels of a metric, with the values of each.
    fn labels(&self, metric: &str) -> Labels {
        let mut labels = Labels::new();
        let start = format!("{metric}{{");
        for pairs in self.text.lines().filter_map(|line| line.strip_prefix(&start)) {
            for pair in pairs.split_once('}').unwrap().0.split(',') {
                let (name, value) = pair.split_once('=').unwrap();
                let values = labels.entry(name.to_owned()).or_default();
                values.insert(value.trim_matches('"').to_owned());
            }
        }
        labels
    }
}

type Labels = BTreeMap<String, BTreeSet<String>>;

/// The rows of the document's table of metrics: name, type, labels.
fn documented() -> Vec<(String, String, Labels)> {
    let rows = OPERATIONS.lines().filter(|line| line.starts_with("| `flightdeck_"));
    let cells = rows.map(|row| row.split('|').map(str::trim).collect::<Vec<_>>());
    cells
        .map(|cells| {
            let name = cells[1].trim_matches('`').to_owned();
            (name, cells[2].to_owned(), labels_of(cells[3]))
        })
        .collect()
}

/// Labels as the document has them: each in backticks, then its values.
fn labels_of(cell: &str) -> Labels {
    let words = |label: &str| label.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    let labels = cell.split(';').map(words).filter(|words: &Vec<_>| !words.is_empty());
    labels.map(|words| (words[0].clone(), words[1..].iter().cloned().collect())).collect()
}

#[tokio::test]
async fn the_metrics_in_the_docs_are_those_that_the_server_has() {
    let server = Server::start().await;
    let scrape = Scrape::of(&server).await;
    assert!(scrape.content_type.starts_with("application/openmetrics-text; version=1.0.0"));
    let documented = documented();
    let names: BTreeMap<_, _> =
        documented.iter().map(|(name, kind, _)| (name.clone(), kind.clone())).collect();
    assert_eq!(names, scrape.metrics());
    assert_eq!(names.len(), documented.len(), "a metric is there twice");
    for (name, _, labels) in documented {
        let mut exposed = scrape.labels(&name);
        if name == "flightdeck_build_info" {
            exposed.get_mut("version").unwrap().clear();
        }
        assert_eq!(labels, exposed, "the labels of {name}");
    }
}

#[tokio::test]
async fn the_alert_rules_ask_for_metrics_that_are_there() {
    let server = Server::start().await;
    let known = Scrape::of(&server).await.metrics();
    let rules = OPERATIONS.split("## Alerts").nth(1).unwrap().split("```").nth(1).unwrap();
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = rules.split(|c: char| !is_word(c));
    let asked: BTreeSet<_> = words.filter(|word| word.starts_with("flightdeck_")).collect();
    assert!(asked.len() > 5, "{asked:?}");
    for name in asked {
        let name = name.strip_suffix("_bucket").unwrap_or(name);
        assert!(known.contains_key(name), "no metric {name}");
    }
    let handled = OPERATIONS.split("| alert |").nth(1).unwrap();
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(handled.contains(&format!("\n| {alert} |")), "nothing says what to do at {alert}");
    }
}

#[tokio::test]
async fn a_task_is_counted_from_its_registration_to_its_outcome() {
    let server = Server::start().await;
    let _device = server.device("d", &[]).await;
    let done = server.run(&["exec", "--on", "d", "--", "pwd"]).await;
    assert_eq!(done.code, 0, "{}", done.stderr);
    let scrape = Scrape::of(&server).await;
    for (series, value) in [
        (r#"connections{role="device"}"#, 1.0),
        (r#"registrations_total{role="device"}"#, 1.0),
        (r#"registrations_total{role="constellation"}"#, 1.0),
        (r#"messages_received_total{type="register"}"#, 2.0),
        (r#"messages_received_total{type="task"}"#, 1.0),
        (r#"messages_received_total{type="command_results"}"#, 1.0),
        (r#"messages_sent_total{type="command"}"#, 1.0),
        (r#"commands_total{settlement="answered"}"#, 1.0),
        ("command_duration_seconds_count", 1.0),
        (r#"tasks_ended_total{status="completed"}"#, 1.0),
        (r#"tasks_ended_total{status="failed"}"#, 0.0),
        ("task_duration_seconds_count", 1.0),
        (r#"sessions{state="running"}"#, 0.0),
    ] {
        assert_eq!(scrape.value(series), value, "{series}");
    }
    for series in ["received_bytes_total", "sent_bytes_total", "task_duration_seconds_sum"] {
        assert!(scrape.value(series) > 0.0, "{series}");
    }
}

#[tokio::test]
async fn what_is_refused_is_counted_by_its_reason() {
    let server = Server::start().await;
    let mut first = server.raw_device("d").await;
    let mut second = server.peer().await;
    second.say_device("d").await;
    first.alive_while(second.expect_error()).await;
    assert_eq!(second.expect_close().await.0, 1008);
    assert_eq!(Peer::connect(server.port, "wrong").await.err(), Some(403));
    let url = format!("http://127.0.0.1:{}/metrics", server.port);
    let response = within("an answer", http_client().get(url).send()).await.unwrap();
    assert_eq!(response.status(), 401, "metrics are for who has the key");
    let scrape = Scrape::of(&server).await;
    assert_eq!(scrape.value(r#"refusals_total{reason="already_registered"}"#), 1.0);
    assert_eq!(scrape.value(r#"refusals_total{reason="wrong_key"}"#), 2.0);
    assert_eq!(scrape.value(r#"messages_sent_total{type="error"}"#), 1.0);
    assert_eq!(scrape.value(r#"registrations_total{role="device"}"#), 1.0);
}

#[tokio::test]
async fn results_that_nobody_waits_for_are_counted_by_their_reason() {
    let server = Server::start().await;
    let (mut device, mut galaxy) =
        (server.raw_device("d").await, server.raw_constellation("g").await);
    let session = galaxy.submit("d", &plan("pwd")).await;
    galaxy.expect_ack(&session).await;
    let command = device.expect("command").await;
    galaxy.close().await;
    device.expect_end(&session, "failed").await;
    device.answer_well(&command).await;
    assert!(device.expect_error().await.contains("too late"));
    device.answer_well(&command).await;
    assert!(device.expect_error().await.contains("no command of yours"));
    let scrape = Scrape::of(&server).await;
    assert_eq!(scrape.value(r#"commands_total{settlement="stopped"}"#), 1.0);
    assert_eq!(scrape.value(r#"tasks_ended_total{status="failed"}"#), 1.0);
    assert_eq!(scrape.value(r#"disconnects_total{by="peer",code="1000"}"#), 1.0);
    for reason in ["late", "unknown"] {
        let series = format!(r#"dropped_results_total{{reason="{reason}"}}"#);
        assert_eq!(scrape.value(&series), 1.0, "{reason}");
    }
}

#[tokio::test]
async fn messages_that_say_nothing_are_counted_and_so_is_what_waits() {
    let server = Server::start().await;
    let (mut device, mut galaxy) =
        (server.raw_device("d").await, server.raw_constellation("g").await);
    for session in 0..3 {
        let session = format!("S{session}");
        let task = json!({"session_id": session, "target_id": "d", "request": plan("pwd")});
        galaxy.say("task", task).await;
        galaxy.expect_ack(&session).await;
    }
    device.expect("command").await;
    for text in ["{", r#"{"type":"teleport"}"#] {
        device.send(text).await;
        device.expect_error().await;
    }
    let scrape = Scrape::of(&server).await;
    for (series, value) in [
        (r#"messages_received_total{type="unreadable"}"#, 1.0),
        (r#"messages_received_total{type="unknown"}"#, 1.0),
        (r#"sessions{state="running"}"#, 1.0),
        (r#"sessions{state="queued"}"#, 2.0),
        ("longest_queue", 2.0),
        ("queue_limit", 100.0),
        ("websockets", 2.0),
        ("websockets_limit", 20_000.0),
    ] {
        assert_eq!(scrape.value(series), value, "{series}");
    }
}

/// A device that works for itself, wants progress, and whose network holds little of it. Nobody else is
/// told how its tasks end.
async fn deaf_requester(server: &Server) -> Peer {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut peer = Peer::connect_with(socket, server.port, &server.key()).await.unwrap();
    (peer.id, peer.role) = ("deaf".to_owned(), "device");
    let extension = json!({"version": 1, "features": ["progress"]});
    let metadata = json!({"platform": "linux", "flightdeck": extension});
    peer.say("register", json!({"metadata": metadata})).await;
    peer.expect("heartbeat").await;
    peer
}

/// Tasks that are sent before it is seen whether the server has read them.
const LOT: usize = 50;

/// Submits tasks without reading an answer, until the server has cut the connection. Each task but the
/// first waits: it is acknowledged, and its place in the queue is progress.
async fn ask_until_cut(server: &Server, deaf: &mut Peer) {
    let padding = "s".repeat(200);
    let mut sent = 0;
    while !server.process.stderr().contains("reads too slowly") {
        for n in sent..sent + LOT {
            let task = json!({"session_id": format!("{padding}{n}"), "task_name": padding,
                "request": plan("pwd")});
            let message = Message::text(deaf.message("task", &task));
            if within("sending", deaf.socket.send(message)).await.is_err() {
                return;
            }
        }
        sent += LOT;
        let is_read = async {
            loop {
                let scrape = Scrape::of(server).await;
                let is_cut = scrape.value("slow_consumer_closes_total") > 0.0;
                let read = scrape.value(r#"messages_received_total{type="task"}"#);
                if is_cut || read >= sent as f64 {
                    return;
                }
            }
        };
        within("the reading of the tasks", is_read).await;
    }
}

#[tokio::test]
async fn a_slow_consumer_is_cut_counted_and_named_in_the_log() {
    let mut server = Server::start_with(&[
        "--outbox-messages",
        "1000",
        "--queue-per-device",
        "1000000",
        "--slow-after",
        "1",
    ])
    .await;
    let mut deaf = deaf_requester(&server).await;
    ask_until_cut(&server, &mut deaf).await;
    server.process.says("reads too slowly").await;
    let log = server.process.stderr();
    let line = log.lines().find(|line| line.contains("reads too slowly")).unwrap();
    for part in ["WARN", "client=deaf", "queued_messages=1", "queued_bytes=", "limit=1000"] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    assert!(line.contains(r#"setting="outbox_messages""#), "{line}");
    let scrape = Scrape::of(&server).await;
    assert_eq!(scrape.value("slow_consumer_closes_total"), 1.0);
    assert_eq!(scrape.value(r#"disconnects_total{by="server",code="4003"}"#), 1.0);
    assert!(scrape.value("dropped_progress_messages_total") > 0.0, "progress goes first");
}

/// Asks on a connection that stays open. Returns the answer.
async fn ask(stream: &mut TcpStream, route: &str) -> String {
    let port = stream.peer_addr().unwrap().port();
    let head = format!("GET {route} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n");
    within("asking", stream.write_all(head.as_bytes())).await.unwrap();
    let (mut answer, mut piece) = (String::new(), [0; 4096]);
    // Both bodies end with a word of theirs, and neither is in any head.
    while !["ok", "ready", "stopping"].iter().any(|word| answer.ends_with(word)) {
        let n = within("an answer", stream.read(&mut piece)).await.unwrap();
        assert_ne!(n, 0, "closed after {answer:?}");
        answer.push_str(std::str::from_utf8(&piece[..n]).unwrap());
    }
    answer
}

#[tokio::test]
async fn the_health_routes_need_no_key_and_tell_when_the_server_stops() {
    let mut server = Server::start().await;
    let (mut device, mut galaxy) =
        (server.raw_device("d").await, server.raw_constellation("g").await);
    let session = galaxy.submit("d", &plan("pwd")).await;
    galaxy.expect_ack(&session).await;
    // A command that runs keeps the server from leaving.
    device.expect("command").await;
    let mut stream = TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
    assert!(ask(&mut stream, "/healthz").await.starts_with("HTTP/1.1 200 OK"));
    assert!(ask(&mut stream, "/readyz").await.ends_with("\r\n\r\nready"));
    server.process.signal(Signal::TERM);
    server.process.says("Stopping").await;
    let stopping = async {
        loop {
            let answer = ask(&mut stream, "/readyz").await;
            if answer.ends_with("stopping") {
                return answer;
            }
        }
    };
    let answer = within("the news of the shutdown", stopping).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(ask(&mut stream, "/healthz").await.ends_with("\r\n\r\nok"));
}

#[tokio::test]
async fn a_peer_that_is_cut_for_slowness_and_reads_after_all_hears_why() {
    let mut server = Server::start_with(&["--outbox-bytes", "2000", "--slow-after", "1"]).await;
    let mut galaxy = server.raw_constellation("g").await;
    let report = json!({"session_id": "S", "error": "x".repeat(1024 * 1024)});
    let report = Message::text(galaxy.message("error", &report));
    // The answers are as long, and the network holds only so many of them.
    for _ in 0..40 {
        let sending = galaxy.socket.send(report.clone());
        if tokio::time::timeout(std::time::Duration::from_millis(500), sending).await.is_err() {
            break;
        }
    }
    server.process.says("reads too slowly").await;
    loop {
        match galaxy.next().await {
            Ok(message) => assert_eq!(message["type"], "error"),
            Err((code, reason)) => {
                assert_eq!(code, 4003, "{reason}");
                return;
            }
        }
    }
}
