//! The results of tasks that are not over take room, over in-memory links with paused time.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "common/peer.rs"]
#[allow(dead_code, reason = "other tests need the rest")]
mod peer;

use peer::{Peer, at_rest, begin, device_and_requester};
use server::{Config, Keys, Server};

const ROOM: usize = 1024 * 1024;
const PLAN: &str = r#"{"commands":[{"tool_name":"t"}]}"#;
const TWO_STEPS: &str = r#"{"commands":[{"tool_name":"t"},{"tool_name":"u"}]}"#;

fn server() -> Server {
    let config = Config { max_bytes_in_flight: ROOM, sessions_per_device: 2, ..Config::default() };
    Server::new(config, Keys::local("key".to_owned().into()))
}

async fn task_end(requester: &mut Peer, session: &str) -> String {
    let end = requester.expect("task_end").await;
    assert_eq!(end["session_id"], session, "{end}");
    end["error"].as_str().unwrap_or("completed").to_owned()
}

#[tokio::test(start_paused = true)]
async fn a_task_goes_no_further_when_those_that_go_on_have_more_results_than_there_is_room_for() {
    let server = server();
    let (mut device, mut requester) = device_and_requester(&server).await;
    let large = "x".repeat(ROOM * 2 / 3);
    let first = begin(&mut requester, &mut device, "S1", TWO_STEPS).await;
    let second = begin(&mut requester, &mut device, "S2", TWO_STEPS).await;
    device.answer_and_flush(&first, &large).await;
    let last = device.expect("command").await;
    assert!(server.snapshot().bytes_in_flight >= large.len(), "they take room");
    device.answer_and_flush(&second, &large).await;
    let end = task_end(&mut requester, "S2").await;
    assert_eq!(end, format!("Tasks that go on have more than {ROOM} bytes of results"));
    device.expect("task_end").await;
    // What was its last step ends a task as ever.
    let third = begin(&mut requester, &mut device, "S3", PLAN).await;
    device.answer_and_flush(&third, &large).await;
    assert_eq!(task_end(&mut requester, "S3").await, "completed");
    device.expect("task_end").await;
    device.answer_and_flush(&last, "done").await;
    assert_eq!(task_end(&mut requester, "S1").await, "completed");
    device.leave().await;
    requester.leave().await;
    assert_eq!(at_rest(&server).await.bytes_in_flight, 0);
}
