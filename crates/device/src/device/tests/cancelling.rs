//! Cancels: what the server is told, and when.

use std::time::Duration;

use aip::message::{HeldState, Instruction};
use serde_json::json;

use super::bench::{Bench, r, seconds, word};

const S: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_cancelled_command_is_stopped_and_one_that_waits_is_taken_out() {
    let mut bench = Bench::new().await;
    let mut wire = bench.connect().await;
    wire.command(&r(1), "s", json!({"line": "runs", "seconds": 100_000}));
    wire.command(&r(2), "t", json!({"line": "waits"}));
    wire.idle(S).await;
    wire.end("t");
    let told = wire.cancelled(&r(2)).await;
    assert_eq!(
        told,
        ("stopped".to_owned(), "stopped, since its task has ended: it did not run".to_owned())
    );
    wire.end("s");
    let told = wire.cancelled(&r(1)).await;
    assert_eq!(
        told,
        ("stopped".to_owned(), "stopped, since its task has ended: stopped".to_owned())
    );
    assert_eq!(bench.lines(), ["runs"]);
}

#[tokio::test(start_paused = true)]
async fn a_command_that_had_finished_or_cannot_be_stopped_is_told_as_such_in_time() {
    let mut bench = Bench::new().await;
    let mut wire = bench.connect().await;
    wire.command(&r(1), "s", json!({}));
    assert_eq!(wire.error(&r(1)).await, "");
    wire.end("s");
    assert_eq!(word(&wire.next().await), "finished");

    wire.command(&r(2), "t", json!({"seconds": 60, "is_stubborn": true}));
    wire.idle(S).await;
    let start = tokio::time::Instant::now();
    wire.end("t");
    assert_eq!(word(&wire.next().await), "could_not_stop");
    assert!(start.elapsed() < 10 * S);
    // Its results come all the same.
    assert_eq!(wire.error(&r(2)).await, "");
    wire.end("t");
    assert_eq!(word(&wire.next().await), "finished");
}

#[tokio::test(start_paused = true)]
async fn a_cancel_that_comes_right_behind_the_confirmation_stops_the_command() {
    let mut bench = Bench::new().await;
    let mut wire = bench.connect().await;
    wire.command(&r(1), "s", seconds(100_000));
    wire.cut().await;
    let mut wire = bench.accept().await;
    wire.confirm(&[(&r(1), Instruction::Continue)]);
    wire.end("s");
    assert_eq!(wire.cancelled(&r(1)).await.0, "stopped");
    // The word is lost with the link: the server asks again.
    wire.cut().await;
    let mut wire = bench.accept().await;
    assert_eq!(wire.listed(), [(r(1), HeldState::Done)]);
    wire.confirm(&[(&r(1), Instruction::Send)]);
    wire.end("s");
    assert_eq!(wire.cancelled(&r(1)).await.0, "stopped");
}

#[tokio::test(start_paused = true)]
async fn a_received_command_that_was_cancelled_while_the_device_was_dead_is_not_started() {
    let mut bench = Bench::new().await;
    let mut wire = bench.connect().await;
    wire.command(&r(1), "s", json!({"line": "runs", "seconds": 5}));
    wire.command(&r(2), "t", json!({"line": "waits"}));
    wire.idle(S).await;
    bench.restart().await;
    let mut wire = bench.accept().await;
    wire.confirm(&[]);
    wire.end("t");
    assert_eq!(wire.cancelled(&r(2)).await.0, "stopped");
    assert_eq!(bench.lines(), ["runs"]);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_ends_well_is_not_confirmed() {
    let mut bench = Bench::new().await;
    let mut wire = bench.connect().await;
    wire.command(&r(1), "s", json!({}));
    wire.error(&r(1)).await;
    wire.send(&aip::ServerMessage {
        session_id: Some("s".parse().unwrap()),
        ..aip::ServerMessage::new(aip::ServerMessageType::TaskEnd, aip::Status::Completed)
    });
    wire.idle(20 * S).await;
}
