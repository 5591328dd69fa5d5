//! The life of tasks, seen from both ends of in-memory links with paused time: timeouts, queues,
//! losses, shutdown. Nothing here waits for real.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "common/peer.rs"]
#[allow(dead_code, reason = "other tests need the rest")]
mod peer;
#[path = "common/unsteady.rs"]
mod unsteady;

use std::sync::Arc;
use std::time::Duration;

use aip::CloseCode;
use bytes::Bytes;
use link::Ambient;
use link::connection::now;
use peer::{Peer, at_rest, begin, device_and_requester};
use serde_json::{Value, json};
use server::{Config, Keys, Server, Services, Snapshot};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use unsteady::{Moods, UnsteadyStore};

const PLAN: &str = r#"{"commands":[{"tool_name":"t"}]}"#;
const TWO_STEPS: &str = r#"{"commands":[{"tool_name":"t"},{"tool_name":"u"}]}"#;

/// Where the journals are kept.
#[derive(Debug, Clone, Copy)]
enum Kept {
    InMemory,
    /// In a store that takes its time, fails, and lets commits overtake those of other tasks.
    Unsteadily,
}

fn server(kept: Kept, config: Config) -> Server {
    let mut services = Services::in_memory(&config);
    if matches!(kept, Kept::Unsteadily) {
        let moods = Moods { longest: Duration::from_millis(20), failing: 20, refuses: false };
        let ambient = Ambient::simulated(7, jiff::Timestamp::UNIX_EPOCH);
        services.store = Arc::new(UnsteadyStore::new(config.history(), moods, ambient));
    }
    Server::with(config, Keys::local("key".to_owned().into()), services)
}

/// How long a store may hold up what is due, in seconds: it fails several times in a row.
const STORE_SECONDS: f64 = 8.0;

/// That something took so long, and what the store takes.
fn assert_lasted(start: std::time::Instant, seconds: f64) {
    let lasted = (now() - start).as_secs_f64();
    assert!((seconds - 0.01..seconds + STORE_SECONDS).contains(&lasted), "{lasted} s");
}

/// Runs each test with each kind of store.
macro_rules! with_each_store {
    ($($name:ident,)*) => {$(
        mod $name {
            use super::Kept;

            #[tokio::test(start_paused = true)]
            async fn in_memory() {
                super::$name(Kept::InMemory).await;
            }

            #[tokio::test(start_paused = true)]
            async fn unsteadily() {
                super::$name(Kept::Unsteadily).await;
            }
        }
    )*};
}

with_each_store! {
    a_command_without_an_answer_times_out_and_its_place_is_kept_until_the_device_answers,
    a_device_that_never_confirms_a_stop_gets_its_next_task_after_the_grace,
    a_full_queue_is_told_at_once,
    an_open_session_is_not_ended_by_somebody_who_uses_its_id_again,
    a_device_that_vanishes_in_silence_is_given_up_and_its_requester_told,
    results_that_arrived_count_although_the_device_is_gone,
    nobody_else_can_answer_a_command,
    a_task_that_takes_too_long_ends_with_what_is_known,
    shutdown_lets_a_running_command_finish_and_ends_the_rest_with_an_outcome,
    shutdown_ends_a_command_that_outlasts_the_grace,
    a_task_text_over_the_limit_is_refused,
    nothing_is_left_behind_when_everybody_is_gone,
    results_that_cannot_be_read_are_a_failure_at_once,
    a_newcomer_replaces_a_dead_connection_and_its_task_is_told,
    a_live_connection_stays_and_its_bookkeeping_is_whole,
    results_that_come_after_the_grace_are_late_and_not_invented,
    a_task_may_ask_for_another_time_for_its_commands_up_to_a_maximum,
}

async fn a_command_without_an_answer_times_out_and_its_place_is_kept_until_the_device_answers(
    kept: Kept,
) {
    let server = server(kept, Config::default());
    let (mut device, mut requester) = device_and_requester(&server).await;
    requester.submit("S1", "d", PLAN);
    requester.submit("S2", "d", PLAN);
    let mut acknowledged = Vec::new();
    for _ in 0..2 {
        acknowledged.push(requester.expect("heartbeat").await["session_id"].clone());
    }
    acknowledged.sort_by_key(Value::to_string);
    assert_eq!(acknowledged, ["S1", "S2"]);
    let late = device.expect("command").await;
    let start = now();
    let (end, told) = tokio::join!(requester.expect("task_end"), device.expect("task_end"));
    assert_lasted(start, 300.0);
    assert_eq!(told["session_id"], "S1");
    assert_eq!(end["status"], "failed");
    assert_eq!(end["error"], "Step 1 (t) timed out after 300 s (the server's command_timeout)");
    let known = &end["result"][0]["result"][0][0];
    assert_eq!(
        known["error"],
        "No answer within 300 s (the server's command_timeout); its outcome is unknown"
    );

    // Its stop is not confirmed, so S2 waits; the late answer confirms it, and is told to be late.
    device.expect_silence(Duration::from_secs(30)).await;
    device.answer(&late, "late");
    let (mut next, mut errors) = (Value::Null, 0);
    for _ in 0..3 {
        let message = device.hear().await;
        match message["type"].as_str() {
            Some("command") => next = message,
            Some("error") => errors += 1,
            _ => assert_eq!(message["type"], "heartbeat"),
        }
    }
    assert_eq!((&next["session_id"], errors), (&json!("S2"), 1));
    device.answer_and_flush(&next, "done").await;
    assert_eq!(requester.expect("task_end").await["status"], "completed");
}

async fn a_device_that_never_confirms_a_stop_gets_its_next_task_after_the_grace(kept: Kept) {
    let server = server(kept, Config::default());
    let (mut device, mut requester) = device_and_requester(&server).await;
    begin(&mut requester, &mut device, "S1", PLAN).await;
    let start = now();
    requester.leave().await;
    assert_eq!(device.expect("task_end").await["status"], "failed");
    let mut other = Peer::join(&server, "h", "constellation").await;
    other.submit("S2", "d", PLAN);
    other.expect("heartbeat").await;
    let next = device.expect("command").await;
    assert_eq!(next["session_id"], "S2");
    assert_lasted(start, 60.0);
}

async fn a_full_queue_is_told_at_once(kept: Kept) {
    let server = server(kept, Config { queue_per_device: 1, ..Config::default() });
    let (mut device, mut requester) = device_and_requester(&server).await;
    for session in ["S1", "S2", "S3"] {
        requester.submit(session, "d", PLAN);
    }
    let mut answers = Vec::new();
    for _ in 0..4 {
        let message = requester.hear().await;
        let text = |key: &str| message[key].as_str().unwrap_or_default().to_owned();
        answers.push((text("type"), text("session_id"), text("error")));
    }
    let full = "Device 'd' has 1 tasks waiting already, which is as many as may; try again later";
    let expected = [
        ("heartbeat", "S1", ""),
        ("heartbeat", "S2", ""),
        ("error", "S3", full),
        ("task_end", "S3", full),
    ];
    let expected = expected.map(|(a, b, c)| (a.to_owned(), b.to_owned(), c.to_owned()));
    // The store may commit in another order.
    answers.sort_by_key(|(kind, session, _)| (session.clone(), kind.clone()));
    assert_eq!(answers, expected);
    device.expect("command").await;
}

async fn an_open_session_is_not_ended_by_somebody_who_uses_its_id_again(kept: Kept) {
    let server = server(kept, Config::default());
    let (mut device, mut owner) = device_and_requester(&server).await;
    let mut thief = Peer::join(&server, "h", "constellation").await;
    owner.submit("S", "d", PLAN);
    owner.expect("heartbeat").await;
    let command = device.expect("command").await;
    owner.submit("S", "d", PLAN);
    thief.submit("S", "d", PLAN);
    thief.submit("S", "nobody", PLAN);
    assert_eq!(owner.expect("error").await["error"], "session_id 'S' is already running");
    assert_eq!(thief.expect("error").await["error"], "session_id 'S' is owned by another client");
    assert_eq!(thief.expect("error").await["error"], "Target device 'nobody' is not connected");
    thief.expect_silence(Duration::from_secs(5)).await;
    device.answer_and_flush(&command, "mine").await;
    let end = owner.expect("task_end").await;
    assert_eq!(end["result"][0]["result"][0][0]["result"], "mine");
    owner.submit("S", "d", PLAN);
    assert_eq!(owner.expect("heartbeat").await["session_id"], "S", "the id is free again");
}

async fn a_device_that_vanishes_in_silence_is_given_up_and_its_requester_told(kept: Kept) {
    let server = server(kept, Config::default());
    let (mut device, mut requester) = device_and_requester(&server).await;
    begin(&mut requester, &mut device, "S", PLAN).await;
    device.switch.swallow();
    let start = now();
    let end = requester.expect("task_end").await;
    assert_eq!(end["error"], "Task was cancelled because target device disconnected ('d')");
    let known = &end["result"][0]["result"][0][0];
    assert_eq!(known["error"], "The device disconnected; its outcome is unknown");
    assert!((80..=90).contains(&(now() - start).as_secs()), "{:?}", now() - start);
}

async fn results_that_arrived_count_although_the_device_is_gone(kept: Kept) {
    let server = server(kept, Config::default());
    let (mut device, mut requester) = device_and_requester(&server).await;
    let command = begin(&mut requester, &mut device, "S", PLAN).await;
    device.answer(&command, "in time");
    device.leave().await;
    let end = requester.expect("task_end").await;
    assert_eq!(end["status"], "completed");
    assert_eq!(end["result"][0]["result"][0][0]["result"], "in time");
}

async fn nobody_else_can_answer_a_command(kept: Kept) {
    let server = server(kept, Config::default());
    let (mut device, mut requester) = device_and_requester(&server).await;
    let mut other = Peer::join(&server, "e", "device").await;
    let command = begin(&mut requester, &mut device, "S", PLAN).await;
    other.answer(&command, "forged");
    let refused = other.hear().await;
    let refused = if refused["type"] == "error" { refused } else { other.hear().await };
    assert_eq!(refused["session_id"], "S");
    assert_eq!(refused["error"], "These results answer no command of yours in this session");
    let mut elsewhere = command.clone();
    elsewhere["session_id"] = json!("T");
    device.answer(&elsewhere, "of another session");
    device.expect("heartbeat").await;
    assert_eq!(device.expect("error").await["session_id"], "T");
    device.answer_and_flush(&command, "mine").await;
    let end = requester.expect("task_end").await;
    assert_eq!(end["result"][0]["result"][0][0]["result"], "mine");
    assert_eq!(server.snapshot().dropped_results, 2);
}

async fn a_task_that_takes_too_long_ends_with_what_is_known(kept: Kept) {
    let timeout = Duration::from_secs(100);
    let server = server(kept, Config { session_timeout: Some(timeout), ..Config::default() });
    let (mut device, mut requester) = device_and_requester(&server).await;
    let first = begin(&mut requester, &mut device, "S", TWO_STEPS).await;
    device.answer_and_flush(&first, "one").await;
    device.expect("command").await;
    let end = tokio::join!(requester.expect("task_end"), device.expect("task_end")).0;
    assert_eq!(end["error"], "Task did not end within 100 s (the server's session_timeout)");
    let steps = &end["result"][0]["result"];
    assert_eq!(steps[0][0]["result"], "one");
    assert_eq!(steps[1][0]["error"], "Stopped; its outcome is unknown");
}

async fn shutdown_lets_a_running_command_finish_and_ends_the_rest_with_an_outcome(kept: Kept) {
    let server = server(kept, Config::default());
    let (mut device, mut requester) = device_and_requester(&server).await;
    requester.submit("S1", "d", PLAN);
    requester.submit("S2", "d", PLAN);
    for _ in 0..2 {
        requester.expect("heartbeat").await;
    }
    let command = device.expect("command").await;
    let stopping = tokio::spawn({
        let server = server.clone();
        async move { server.shut_down().await }
    });
    let cancelled = requester.expect("task_end").await;
    assert_eq!(cancelled["session_id"], "S2");
    assert_eq!(cancelled["error"], "Task was cancelled because the server is shutting down");
    requester.submit("S3", "d", PLAN);
    let refused = requester.expect("error").await;
    assert_eq!(refused["error"], "The server is shutting down; try again later");
    assert_eq!(requester.expect("task_end").await["session_id"], "S3");
    assert_eq!(device.expect("task_end").await["session_id"], "S2");
    device.answer_and_flush(&command, "finished").await;
    let finished = requester.expect("task_end").await;
    assert_eq!((&finished["session_id"], &finished["status"]), (&json!("S1"), &json!("completed")));
    let (closed, _end) = tokio::join!(requester.closed(), device.expect("task_end"));
    assert_eq!(closed.code, CloseCode::GOING_AWAY);
    assert_eq!(device.closed().await.code, CloseCode::GOING_AWAY);
    for peer in [device, requester] {
        peer.leave().await;
    }
    stopping.await.unwrap();
    at_rest(&server).await;
}

async fn shutdown_ends_a_command_that_outlasts_the_grace(kept: Kept) {
    let server = server(kept, Config::default());
    let (mut device, mut requester) = device_and_requester(&server).await;
    begin(&mut requester, &mut device, "S", PLAN).await;
    let start = now();
    tokio::spawn({
        let server = server.clone();
        async move { server.shut_down().await }
    });
    let (end, told) = tokio::join!(requester.expect("task_end"), device.expect("task_end"));
    assert_eq!(end["error"], "Task was cancelled because the server is shutting down");
    assert_eq!(told["status"], "failed");
    assert_eq!((now() - start).as_secs(), 10);
}

async fn a_task_text_over_the_limit_is_refused(kept: Kept) {
    let server = server(kept, Config { max_request_bytes: 100, ..Config::default() });
    let (_device, mut requester) = device_and_requester(&server).await;
    requester.submit("S", "d", &"x".repeat(101));
    let error = "Task content of 101 bytes is over the limit of 100 bytes";
    assert_eq!(requester.expect("error").await["error"], error);
    assert_eq!(requester.expect("task_end").await["error"], error);
}

async fn nothing_is_left_behind_when_everybody_is_gone(kept: Kept) {
    let server = server(kept, Config::default());
    let (mut device, mut requester) = device_and_requester(&server).await;
    for session in ["S1", "S2", "S3"] {
        requester.submit(session, "d", PLAN);
        requester.expect("heartbeat").await;
    }
    device.expect("command").await;
    device.switch.cut();
    requester.leave().await;
    let snapshot = at_rest(&server).await;
    assert_eq!(
        snapshot,
        Snapshot { dropped_results: snapshot.dropped_results, ..Snapshot::default() }
    );
}

async fn results_that_cannot_be_read_are_a_failure_at_once(kept: Kept) {
    let server = server(kept, Config::default());
    let (mut device, mut requester) = device_and_requester(&server).await;
    let command = begin(&mut requester, &mut device, "S", PLAN).await;
    let start = now();
    let odd = json!({
        "type": "command_results",
        "session_id": "S",
        "prev_response_id": command["response_id"],
        "action_results": [{"status": "weird"}],
    });
    device.connection.outbox().push(Bytes::from(odd.to_string())).unwrap();
    let told = device.expect("error").await;
    assert_eq!(told["session_id"], "S");
    let end = requester.expect("task_end").await;
    assert_eq!(end["status"], "failed");
    assert_lasted(start, 0.0);
    let error = end["error"].as_str().unwrap();
    assert!(error.contains("The device's results could not be read"), "{error}");
}

async fn a_newcomer_replaces_a_dead_connection_and_its_task_is_told(kept: Kept) {
    let server = server(kept, Config::default());
    let (mut device, mut requester) = device_and_requester(&server).await;
    begin(&mut requester, &mut device, "S", PLAN).await;
    device.switch.swallow();
    requester.expect_silence(Duration::from_secs(5)).await;
    let start = now();
    let (mut newcomer, answer) = Peer::come(&server, "d", "device").await;
    assert_eq!((now() - start).as_secs(), 2);
    assert_eq!(answer["status"], "ok");
    let end = requester.expect("task_end").await;
    let text = "Task was cancelled because target device disconnected ('d')";
    assert_eq!(end["error"], text);

    // The old one changes nothing any more, and the new one works at once.
    requester.submit("S2", "d", PLAN);
    requester.expect("heartbeat").await;
    let command = newcomer.expect("command").await;
    newcomer.answer_and_flush(&command, "new").await;
    assert_eq!(requester.expect("task_end").await["status"], "completed");
    newcomer.leave().await;
    requester.leave().await;
    assert_eq!(at_rest(&server).await.commands, 0);
}

async fn a_live_connection_stays_and_its_bookkeeping_is_whole(kept: Kept) {
    let server = server(kept, Config::default());
    let (mut device, mut requester) = device_and_requester(&server).await;
    let command = begin(&mut requester, &mut device, "S", PLAN).await;
    let thief = async {
        let (_thief, answer) = Peer::come(&server, "d", "device").await;
        answer
    };
    // It says nothing, but its program answers pings.
    let (answer, ()) = tokio::join!(thief, device.expect_silence(Duration::from_secs(5)));
    let text = "client_id 'd' is already registered; duplicate registrations are not allowed";
    assert_eq!((&answer["type"], &answer["error"]), (&json!("error"), &json!(text)));
    device.answer_and_flush(&command, "mine").await;
    let end = requester.expect("task_end").await;
    assert_eq!(end["result"][0]["result"][0][0]["result"], "mine");
}

async fn results_that_come_after_the_grace_are_late_and_not_invented(kept: Kept) {
    let server = server(kept, Config::default());
    let (mut device, mut requester) = device_and_requester(&server).await;
    let command = begin(&mut requester, &mut device, "S", PLAN).await;
    let (_end, _told) = tokio::join!(requester.expect("task_end"), device.expect("task_end"));
    device.expect_silence(Duration::from_secs(120)).await;
    device.answer(&command, "late");
    let mut other = command;
    other["response_id"] = json!("invented");
    device.answer(&other, "x");
    let mut errors = Vec::new();
    for _ in 0..4 {
        let answer = device.hear().await;
        errors.extend(answer["error"].as_str().map(str::to_owned));
    }
    assert_eq!(errors[0], "These results came too late: their command was settled without them");
    assert_eq!(errors[1], "These results answer no command of yours in this session");
}

async fn a_task_may_ask_for_another_time_for_its_commands_up_to_a_maximum(kept: Kept) {
    let most = Some(Duration::from_secs(3600));
    let server = server(kept, Config { max_command_timeout: most, ..Config::default() });
    let (mut device, mut requester) = device_and_requester(&server).await;
    let submit = |requester: &mut Peer, session: &str, seconds: f64| {
        let metadata = json!({"flightdeck": {"command_timeout_s": seconds}});
        requester.say(json!({"type": "task", "session_id": session, "target_id": "d",
            "request": PLAN, "metadata": metadata}));
    };
    for seconds in [5.0, 3500.0] {
        submit(&mut requester, "S", seconds);
        requester.expect("heartbeat").await;
        let command = device.expect("command").await;
        let start = now();
        let (end, told) = tokio::join!(requester.expect("task_end"), device.expect("task_end"));
        assert_lasted(start, seconds);
        let error = format!("Step 1 (t) timed out after {seconds} s");
        assert_eq!((&end["error"], &told["status"]), (&json!(error), &json!("failed")));
        // The device has stopped; its place is free.
        device.answer(&command, "stopped");
        let answers = [device.hear().await, device.hear().await];
        assert!(answers.iter().any(|answer| answer["type"] == "error"), "too late");
    }
    for seconds in [3601.0, 0.0] {
        submit(&mut requester, "S", seconds);
        let text = "command_timeout_s must be more than 0 and at most 3600";
        assert_eq!(requester.expect("error").await["error"], text);
        assert_eq!(requester.expect("task_end").await["error"], text);
    }
}

/// A configuration in which every wait is this long.
fn waiting(time: Duration) -> Config {
    Config {
        command_timeout: Some(time),
        max_command_timeout: Some(time),
        session_timeout: Some(time),
        stop_grace: time,
        registration_timeout: time,
        liveness_timeout: time,
        ping_interval: time,
        header_timeout: time,
        body_timeout: time,
        write_timeout: time,
        shutdown_grace: time,
        unfetched_time: time,
        ..Config::default()
    }
}

/// Longer than any clock goes.
const ABSURD: [Duration; 3] =
    [Duration::MAX, Duration::from_secs(u64::MAX / 2), Duration::from_secs(i64::MAX as u64)];

#[tokio::test(start_paused = true)]
async fn no_wait_is_too_long_for_a_task_and_its_stop() {
    for time in ABSURD {
        let server = server(Kept::InMemory, waiting(time));
        let (mut device, mut requester) = device_and_requester(&server).await;
        let command = begin(&mut requester, &mut device, "S1", PLAN).await;
        device.answer_and_flush(&command, "done").await;
        assert_eq!(requester.expect("task_end").await["status"], "completed");
        assert_eq!(device.expect("task_end").await["status"], "completed");

        begin(&mut requester, &mut device, "S2", PLAN).await;
        requester.leave().await;
        assert_eq!(device.expect("task_end").await["status"], "failed");
        let (_, closed) = tokio::join!(server.shut_down(), device.closed());
        assert_eq!(closed.code, CloseCode::GOING_AWAY);
    }
}

#[tokio::test]
async fn no_wait_is_too_long_for_a_request() {
    for time in ABSURD {
        let server = server(Kept::InMemory, waiting(time));
        let listener = server::listen(([127, 0, 0, 1], 0).into()).unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let port = stream.peer_addr().unwrap().port();
        let stop = CancellationToken::new();
        let serving = tokio::spawn({
            let stop = stop.clone();
            async move { server.serve(listener, stop).await }
        });
        let head =
            format!("GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("ok"), "{answer}");
        stop.cancel();
        serving.await.unwrap();
    }
}
