//! Peers that send garbage, too much, too slowly or nothing at all: the server goes on serving
//! everybody else, and says what was wrong.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{PATIENCE, Peer, Server, plan, unique, until, within};
use fastrand::Rng;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_websockets::{Config, Message};

const FRAMES: usize = 10_000;

/// Each so-many-th frame is the first one of a connection.
const FRESH: usize = 20;

/// Frames between two looks at whether the server still answers, one of each peer: behind such a frame as is no
/// [`FRESH`] one. Who never reads its answers is not read for ever either.
const MARK: usize = 100;

const MAX_MESSAGE: usize = 100 * 1024 * 1024;

/// Every frame that a Python client sent, as recorded.
fn golden_frames() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../aip/tests/golden");
    let mut files: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort_unstable();
    let lines = files.iter().flat_map(|file| {
        let text = std::fs::read_to_string(file).unwrap();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    });
    let events = lines.map(|line| serde_json::from_str::<Value>(&line).unwrap());
    let sent = events.filter(|event| event["dir"] == "c2s");
    sent.filter_map(|event| event["frame"].as_str().map(str::to_owned)).collect()
}

/// The frame, as `peer` would say it: so it is not refused for its name alone.
fn in_the_name_of(peer: &Peer, frame: &str, rng: &mut Rng) -> String {
    let Ok(Value::Object(mut fields)) = serde_json::from_str(frame) else {
        return frame.to_owned();
    };
    fields.insert("client_id".to_owned(), json!(peer.id));
    fields.insert("client_type".to_owned(), json!(peer.role));
    if fields.get("type") == Some(&json!("task")) {
        fields.insert("target_id".to_owned(), json!("fuzz-device"));
        if rng.bool() {
            fields.insert("request".to_owned(), json!(plan("pwd")));
        }
    }
    Value::Object(fields).to_string()
}

/// Values that are seldom expected.
fn odd_value(rng: &mut Rng) -> String {
    let nested =
        |open: &str, close: &str, depth: usize| open.repeat(depth) + "1" + &close.repeat(depth);
    match rng.u8(..14) {
        0 => "null".to_owned(),
        1 => "-0".to_owned(),
        2 => "1e99999".to_owned(),
        3 => "9".repeat(rng.usize(1..5000)),
        4 => r#""\ud800""#.to_owned(),
        5 => r#""\u0000\u202e\ufeff""#.to_owned(),
        6 => format!("\"{}\"", "🏴‍☠️".repeat(rng.usize(1..2000))),
        7 => nested("[", "]", rng.usize(1..100_000)),
        8 => nested("{\"a\":", "}", rng.usize(1..400)),
        9 => "[{}]".to_owned(),
        10 => "{}".to_owned(),
        11 => "true".to_owned(),
        12 => "\"\"".to_owned(),
        _ => rng.u64(..).to_string(),
    }
}

/// A frame with something wrong in it.
fn mutated(frame: &str, rng: &mut Rng) -> Vec<u8> {
    let mut bytes = frame.as_bytes().to_vec();
    let at = |rng: &mut Rng, bytes: &[u8]| rng.usize(..=bytes.len());
    match rng.u8(..8) {
        0 => {
            for _ in 0..rng.usize(1..8) {
                let at = at(rng, &bytes);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << rng.u8(..8);
                }
            }
        }
        1 => bytes.truncate(at(rng, frame.as_bytes())),
        2 => bytes.extend_from_within(at(rng, frame.as_bytes())..),
        3 => {
            let end = at(rng, &bytes);
            let piece = bytes[rng.usize(..=end)..end].to_vec();
            let at = at(rng, &bytes);
            bytes.splice(at..at, piece);
        }
        // Another value, of another type, for one of its fields.
        4..=6 => bytes = with_odd_field(frame, rng).into_bytes(),
        _ => {
            let (at, odd) = (at(rng, &bytes), odd_value(rng).into_bytes());
            bytes.splice(at..at, odd);
        }
    }
    // What is no UTF-8 ends the connection, so it is the exception.
    if rng.u8(..50) == 0 { bytes } else { String::from_utf8_lossy(&bytes).into_owned().into() }
}

fn with_odd_field(frame: &str, rng: &mut Rng) -> String {
    let Ok(Value::Object(fields)) = serde_json::from_str::<Value>(frame) else {
        return odd_value(rng);
    };
    let chosen = rng.usize(..fields.len().max(1));
    let members = fields.iter().enumerate().map(|(n, (key, value))| {
        let value = if n == chosen { odd_value(rng) } else { value.to_string() };
        format!("{}:{value}", json!(key))
    });
    format!("{{{}}}", members.collect::<Vec<_>>().join(","))
}

/// Reads on until the server has answered everything that was sent before. `false` when it hung up.
async fn caught_up(peer: &mut Peer) -> bool {
    let mark = unique("mark");
    let report = peer.message("error", &json!({"status": "error", "error": mark}));
    if peer.socket.send(Message::text(report)).await.is_err() {
        return false;
    }
    loop {
        // As text: numbers that are only carried may be larger than a reader of values takes.
        match within("an answer", peer.socket.next()).await {
            Some(Ok(message)) if message.as_text().is_some_and(|text| text.contains(&mark)) => {
                return true;
            }
            Some(Ok(message)) if !message.is_close() => {}
            _ => return false,
        }
    }
}

/// A connection that is registered, again and again.
async fn registered(server: &Server, role: &'static str) -> Peer {
    if role == "device" {
        let mut peer = server.peer().await;
        // The server may not have seen yet that the last one hung up.
        loop {
            peer.say_device("fuzz-device").await;
            match peer.next().await {
                Ok(message) if message["type"] == "heartbeat" => return peer,
                _ => peer = server.peer().await,
            }
        }
    }
    server.raw_constellation(&unique("fuzz")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_broken_frames_disturb_nobody() {
    let seed =
        std::env::var("SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let (server, golden) = (Server::start().await, golden_frames());
    let mut bystander = server.raw_device("bystander").await;
    let mut peers =
        [registered(&server, "device").await, registered(&server, "constellation").await];
    let mut hung_up = 0;
    for n in 1..=FRAMES {
        let frame = rng.choice(&golden).unwrap();
        if n % FRESH == 0 {
            let mut fresh = server.peer().await;
            let frame = mutated(frame, &mut rng);
            within("sending", fresh.socket.send(Message::text(frame))).await.unwrap();
            // Registered after all, or told why not; what is no UTF-8 or too large breaks the
            // WebSocket itself.
            let answer = fresh.next().await;
            let is_answered = matches!(&answer, Ok(_) | Err((1007 | 1009, _)));
            assert!(is_answered, "SEED={seed}: {answer:?}");
            continue;
        }
        let peer = &mut peers[n % 2];
        let frame = in_the_name_of(peer, frame, &mut rng);
        let sent = peer.socket.send(Message::text(mutated(&frame, &mut rng)));
        let is_up = within("sending", sent).await.is_ok();
        if !is_up || ((1..=2).contains(&(n % MARK)) && !caught_up(peer).await) {
            hung_up += 1;
            let role = peer.role;
            *peer = registered(&server, role).await;
        }
        if n % MARK == 0 {
            bystander.beat().await;
        }
    }
    println!("{hung_up} connections were closed by the server");

    bystander.beat().await;
    let mut galaxy = server.raw_constellation("galaxy").await;
    let session = galaxy.submit("bystander", &plan("pwd")).await;
    galaxy.expect_ack(&session).await;
    let command = bystander.expect("command").await;
    bystander.answer_well(&command).await;
    galaxy.expect_end(&session, "completed").await;
    let log = server.process.stderr();
    assert!(!log.contains("panicked"), "SEED={seed}: {log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_the_limit_is_closed_with_1009_and_the_close_is_seen() {
    let server = Server::start().await;
    let text = Bytes::from(" ".repeat(MAX_MESSAGE + 1));
    for frame_size in [usize::MAX, 4 * 1024 * 1024] {
        let id = unique("large");
        let mut peer = server.raw_device(&id).await;
        peer.socket = with_frames_of(peer.socket, frame_size);
        // The peer only writes until it is done, as simple ones do, and reads then.
        peer.send(text.clone()).await;
        let (code, reason) = peer.expect_close().await;
        assert_eq!(code, 1009, "frames of {frame_size}: {reason}");
        assert!(reason.contains("104857600"), "{reason}");
    }
    // Right at the limit it is only nonsense.
    let mut peer = server.raw_device("fits").await;
    peer.send(text.slice(1..)).await;
    peer.expect_error().await;
    peer.beat().await;
}

/// The same connection with another size of its frames.
fn with_frames_of(
    socket: tokio_websockets::WebSocketStream<TcpStream>,
    size: usize,
) -> tokio_websockets::WebSocketStream<TcpStream> {
    let config = Config::default().frame_size(size);
    tokio_websockets::ClientBuilder::new().config(config).take_over(socket.into_inner())
}

/// A peer that has said a REGISTER with so many bytes of facts.
async fn wordy(server: &Server, bytes: usize) -> Peer {
    let mut peer = server.peer().await;
    (peer.id, peer.role) = (unique("wordy"), "device");
    let metadata = json!({"platform": "linux", "system_info": {"x": "y".repeat(bytes)}});
    peer.say("register", json!({"metadata": metadata})).await;
    peer
}

#[tokio::test]
async fn a_large_first_message_is_refused() {
    let server = Server::start().await;
    wordy(&server, 60 * 1024).await.expect("heartbeat").await;
    for bytes in [70 * 1024, 10 * 1024 * 1024] {
        let (mut peer, mut told) = (wordy(&server, bytes).await, Vec::new());
        let (code, reason) = loop {
            match peer.next().await {
                Ok(message) => told.push(message),
                Err(closed) => break closed,
            }
        };
        assert_eq!(code, 1009, "{bytes} bytes: {reason}");
        assert!(reason.contains("65536"), "{reason}");
        assert!(told.iter().all(|message| message["type"] == "error"), "{told:?}");
    }
}

#[tokio::test]
async fn a_large_first_message_is_told_why_it_is_refused() {
    let server = Server::start().await;
    let mut peer = wordy(&server, 70 * 1024).await;
    let error = peer.expect_error().await;
    assert!(error.contains("65536"), "{error}");
    assert_eq!(peer.expect_close().await.0, 1009);
}

#[tokio::test]
async fn who_connects_and_says_nothing_is_refused() {
    let server = Server::start_with(&["--registration-timeout", "1"]).await;
    let started = Instant::now();
    let (mut silent, mut pinging) = (server.peer().await, server.peer().await);
    let ping = Message::ping(Bytes::new());
    pinging.socket.send(ping).await.unwrap();
    for peer in [&mut silent, &mut pinging] {
        assert_eq!(peer.expect_error().await, "No registration within 1 s");
        assert_eq!(peer.expect_close().await.0, 4002);
    }
    assert!(started.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_binary_frame_is_answered_and_the_connection_stays() {
    let server = Server::start().await;
    let mut device = server.raw_device("d").await;
    for payload in [&b"\xff\xfe"[..], b"", br#"{"type":"heartbeat"}"#] {
        device.socket.send(Message::binary(Bytes::from_static(payload))).await.unwrap();
        assert!(device.expect_error().await.contains("binary"));
        device.beat().await;
    }
    let mut stranger = server.peer().await;
    stranger.socket.send(Message::binary(Bytes::from_static(b"x"))).await.unwrap();
    stranger.expect_error().await;
    assert_eq!(stranger.expect_close().await.0, 1008);
}

/// Asks so many times without reading an answer, and reads then. Returns how much the server's memory
/// grew meanwhile, in bytes.
async fn memory_for_the_deaf(server: &Server, role: &str, question: Question, times: usize) -> u64 {
    let socket = TcpSocket::new_v4().unwrap();
    // The network holds little, so that what is not read stays with the server.
    socket.set_recv_buffer_size(4096).unwrap();
    let mut peer = Peer::connect_with(socket, server.port, &server.key()).await.unwrap();
    match role {
        "device" => peer.register_device("deaf").await,
        _ => peer.register_constellation("deaf", Value::Null).await,
    }
    let question = Bytes::from(peer.message(question.0, &question.1));
    let before = server.memory();

    let (mut writer, mut reader) = peer.socket.split();
    let (count, sent) = tokio::sync::watch::channel(0);
    let writing = tokio::spawn(async move {
        for n in 1..=times {
            writer.send(Message::text(question.clone())).await?;
            count.send_replace(n);
        }
        Ok::<_, tokio_websockets::Error>(writer)
    });
    // Until nothing changes any more: the server reads no further, or has read all.
    let (mut most, mut written, mut last) = (before, 0, Instant::now());
    until("the server to be done with reading", || {
        let (memory, now) = (server.memory(), *sent.borrow());
        if memory > most || now > written {
            (most, written, last) = (most.max(memory), now, Instant::now());
        }
        last.elapsed() > Duration::from_millis(500)
    })
    .await;
    println!("{written} of {times} questions written: {} KiB more", (most - before) / 1024);

    let reading = async {
        for answers in 0..times {
            match reader.next().await {
                Some(Ok(frame)) if frame.is_close() => return false,
                Some(Ok(_)) => {}
                other => panic!("neither answers nor a close after {answers}: {other:?}"),
            }
        }
        true
    };
    if within("the answers", reading).await {
        let _writer = writing.await.unwrap().unwrap();
    }
    most - before
}

type Question = (&'static str, Value);

/// How much a peer that does not read may cost, in bytes.
const MOST: u64 = 30 * 1024 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_without_reading_does_not_fill_the_servers_memory() {
    let server = Server::start().await;
    // So many that the network cannot hold their answers.
    let grown = memory_for_the_deaf(&server, "device", ("heartbeat", json!({})), 60_000).await;
    assert!(grown < MOST, "{grown} bytes");
    server.raw_device("bystander").await.beat().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_much_without_reading_does_not_fill_the_servers_memory() {
    let server = Server::start().await;
    let mut device = server.raw_device("wordy").await;
    let facts = json!({"metadata": {"x": "y".repeat(60 * 1024)}});
    device.say("device_info_response", facts).await;
    device.beat().await;
    let ask = ("device_info_request", json!({"target_id": "wordy"}));
    let grown = memory_for_the_deaf(&server, "constellation", ask, 2000).await;
    assert!(grown < MOST, "{grown} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reports_long_errors_without_reading_does_not_fill_the_servers_memory() {
    let server = Server::start().await;
    let report = ("error", json!({"error": "x".repeat(1024 * 1024)}));
    let grown = memory_for_the_deaf(&server, "device", report, 120).await;
    assert!(grown < MOST, "{grown} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_its_outcomes_is_cut_and_nobody_else() {
    let server = Server::start_with(&["--slow-after", "1"]).await;
    let mut device = server.raw_device("d").await;
    let mut deaf = server.raw_constellation("deaf").await;
    for _ in 0..60 {
        deaf.submit("d", &plan("pwd")).await;
    }
    let large = json!([{"status": "success", "result": "x".repeat(1024 * 1024)}]);
    let mut answered = 0;
    let gone = loop {
        let message = device.next().await.unwrap();
        match message["type"].as_str().unwrap() {
            // The last one runs until its requester is gone.
            "command" if answered < 59 => device.answer(&message, large.clone()).await,
            "command" => {}
            "task_end" if message["status"] == "completed" => answered += 1,
            _ => break message,
        }
    };
    assert!((15..60).contains(&answered), "{answered} outcomes waited");
    assert_eq!(gone["error"], "Task was cancelled due to client disconnection");
    let (code, reason) = loop {
        if let Err(closed) = deaf.next().await {
            break closed;
        }
    };
    assert_eq!(code, 4003, "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_behind_with_reading_for_a_while_gets_all_its_outcomes() {
    let server = Server::start().await;
    let mut device = server.raw_device("d").await;
    let mut galaxy = server.raw_constellation("g").await;
    for _ in 0..20 {
        galaxy.submit("d", &plan("pwd")).await;
    }
    let large = json!([{"status": "success", "result": "x".repeat(3 * 1024 * 1024)}]);
    for _ in 0..20 {
        let command = device.expect("command").await;
        device.answer(&command, large.clone()).await;
        device.expect("task_end").await;
    }
    let mut ended = 0;
    while ended < 20 {
        let message = galaxy.next().await.unwrap();
        if message["type"] == "task_end" {
            assert_eq!(message["status"], "completed");
            ended += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_slowly_without_a_pause_is_not_cut() {
    const SIZE: usize = 2 * 1024 * 1024;
    // More than the system's buffers hold.
    const TASKS: usize = 6;
    let server = Server::start_with(&["--slow-after", "2", "--outbox-bytes", "1000000"]).await;
    let mut device = server.raw_device("d").await;
    let narrow = TcpSocket::new_v4().unwrap();
    narrow.set_recv_buffer_size(64 * 1024).unwrap();
    let mut slow = Peer::connect_with(narrow, server.port, &server.key()).await.unwrap();
    slow.register_constellation("slow", Value::Null).await;
    for _ in 0..TASKS {
        slow.submit("d", &plan("pwd")).await;
    }
    let large = json!([{"status": "success", "result": "x".repeat(SIZE)}]);
    for _ in 0..TASKS {
        let command = device.expect("command").await;
        device.answer(&command, large.clone()).await;
        device.expect("task_end").await;
    }
    let (stream, mut piece, mut came) = (slow.socket.get_mut(), vec![0; 16 * 1024], 0);
    let started = Instant::now();
    while came < SIZE * TASKS {
        within("more", stream.read_exact(&mut piece)).await.expect("it is not cut");
        came += piece.len();
        // 400 KB a second at first, for longer than it may take nothing.
        if started.elapsed() < Duration::from_secs(6) {
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_messages_at_once_wait_until_there_is_room_for_them() {
    const SIZE: usize = 30_000_000;
    let server = Server::start_with(&["--max-bytes-in-flight", "20000000"]).await;
    let before = server.memory();
    let mut sending = tokio::task::JoinSet::new();
    for n in 0..5 {
        let mut device = server.raw_device(&format!("d{n}")).await;
        sending.spawn(async move {
            let results = json!([{"status": "success", "result": "x".repeat(SIZE)}]);
            let fields = json!({"session_id": "none", "action_results": results});
            let message = device.message("command_results", &fields);
            device.send(message).await;
            device.expect("error").await;
        });
    }
    let mut small = server.raw_device("small").await;
    let (mut most, mut through) = (before, 0);
    while through < 5 {
        small.beat().await;
        most = most.max(server.memory());
        while let Some(sent) = sending.try_join_next() {
            sent.unwrap();
            through += 1;
        }
    }
    let grown = most - before;
    assert!(grown < 4 * SIZE as u64, "{grown} bytes");
}

#[tokio::test]
async fn a_request_that_never_ends_is_cut() {
    let server = Server::start_with(&["--header-timeout", "1"]).await;
    for drip in ["", "X: y\r\n"] {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
        stream.write_all(b"GET /ws HTTP/1.1\r\nHost: h\r\n").await.unwrap();
        let (mut read, mut write) = stream.split();
        let mut said = Vec::new();
        let dripping = async {
            // Whoever was cut cannot write any more.
            while write.write_all(drip.as_bytes()).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            tokio::time::sleep(PATIENCE).await;
        };
        tokio::select! {
            // The end, or a reset since something was on its way.
            _cut = within("the cut", read.read_to_end(&mut said)) => {}
            () = dripping => panic!("dripped on for ever"),
        }
        let said = String::from_utf8(said).unwrap();
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 408"), "{said}");
    }
    let huge = format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "y".repeat(64 * 1024));
    let mut stream = TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
    // The server may cut before all is written.
    let _written = stream.write_all(huge.as_bytes()).await;
    let mut said = Vec::new();
    let _cut = within("the cut", stream.read_to_end(&mut said)).await;
    let said = String::from_utf8(said).unwrap();
    assert!(said.is_empty() || said.starts_with("HTTP/1.1 431"), "{said}");
    server.raw_device("d").await.beat().await;
}
