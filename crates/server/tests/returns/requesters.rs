//! A requester that is lost and comes back.

use std::time::Duration;

use serde_json::json;
use server::Config;

use crate::party::Party;
use crate::rig::{
    Client, Rig, accepted, acknowledge, cancel, complete, say_stopped, send_results, settle,
    submit, taken, task, task_that,
};

#[tokio::test(start_paused = true)]
async fn an_outcome_is_delivered_until_it_is_acknowledged_and_never_again() {
    let rig = Rig::new().await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, granted) = q.come(&rig).await;
    assert_eq!(granted["features"], json!(["ack", "request_id", "cancel", "detach"]));
    assert_eq!(granted["resumed"], false);
    let id = submit(&mut requester, &task_that("1", &json!("continue"))).await;
    let command = device.expect("command").await;
    requester.switch.cut();
    settle().await;
    send_results(&mut device, &command, "success");
    assert_eq!(taken(&mut device).await, "accepted");
    device.expect("task_end").await;
    for _ in 0..2 {
        let (mut requester, granted) = q.come(&rig).await;
        assert_eq!(granted["resumed"], true);
        let end = requester.expect("task_end").await;
        assert_eq!(
            (end["response_id"].as_str(), &end["status"]),
            (Some(&*id), &json!("completed"))
        );
        assert_eq!(end["result"][0]["result"][0][0]["result"], "done");
        requester.switch.cut();
        settle().await;
    }
    let (mut requester, _) = q.come(&rig).await;
    let end = requester.expect("task_end").await;
    acknowledge(&mut requester, &end);
    settle().await;
    requester.switch.cut();
    settle().await;
    let (mut requester, _) = q.come(&rig).await;
    requester.expect_silence(Duration::from_secs(5)).await;
    rig.assert_quiet();
}

#[tokio::test(start_paused = true)]
async fn a_requester_that_lost_its_connection_asks_after_its_task_and_gets_it_once() {
    let rig = Rig::new().await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    let id = submit(&mut requester, &task_that("1", &json!("continue"))).await;
    let command = device.expect("command").await;
    requester.switch.cut();
    settle().await;
    let (mut requester, _) = q.come(&rig).await;
    requester.say(json!({"type": "task", "session_id": "S-1", "target_id": "d", "request_id": "1",
        "metadata": {"flightdeck": {"task": id}}}));
    assert_eq!(accepted(&mut requester).await, id);
    send_results(&mut device, &command, "success");
    complete(&mut requester).await;
    requester.expect_silence(Duration::from_secs(5)).await;
    requester.say(json!({"type": "task", "session_id": "S-9", "target_id": "d", "request_id": "9",
        "metadata": {"flightdeck": {"task": "0190a0a0-0000-7000-8000-000000000000"}}}));
    let lost = requester.expect("error").await;
    assert_eq!(lost["result"]["flightdeck"], json!({"request_id": "9", "refused": "lost"}));
    assert!(lost["error"].as_str().unwrap().ends_with("its outcome is unknown"), "{lost}");
}

#[tokio::test(start_paused = true)]
async fn the_same_task_sent_again_is_the_same_and_another_one_with_its_id_is_refused() {
    let rig = Rig::new().await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    let id = submit(&mut requester, &task("1")).await;
    let command = device.expect("command").await;
    assert_eq!(submit(&mut requester, &task("1")).await, id);
    let mut other = task("1");
    other["request"] = json!(r#"{"commands":[{"tool_name":"u"}]}"#);
    requester.say(other);
    let refused = requester.expect("error").await;
    assert_eq!(refused["error"], "request_id '1' was used for another task");
    assert_eq!(refused["result"]["flightdeck"], json!({"request_id": "1", "refused": "final"}));
    send_results(&mut device, &command, "success");
    complete(&mut requester).await;
    assert_eq!(submit(&mut requester, &task("1")).await, id, "also when it is over");
    let end = complete(&mut requester).await;
    assert_eq!(end["response_id"].as_str(), Some(&*id));
    device.expect("heartbeat").await;
    device.expect("task_end").await;
    device.expect_silence(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_task_whose_requester_stays_away_goes_on_or_is_cancelled_as_it_said() {
    let rig = Rig::new().await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    submit(&mut requester, &task_that("1", &json!({"cancel_after_s": 60}))).await;
    let command = device.expect("command").await;
    requester.switch.cut();
    device.expect_silence(Duration::from_secs(59)).await;
    let told = device.expect("task_end").await;
    assert_eq!((&told["status"], &told["session_id"]), (&json!("failed"), &json!("S-1")));
    say_stopped(&mut device, &command, "stopped");
    send_results(&mut device, &command, "failure");
    assert_eq!(taken(&mut device).await, "accepted");
    let (mut requester, _) = q.come(&rig).await;
    let end = requester.expect("task_end").await;
    assert_eq!(end["error"], "Task was cancelled due to client disconnection: stopped");
    acknowledge(&mut requester, &end);

    submit(&mut requester, &task_that("2", &json!({"cancel_after_s": 60}))).await;
    let command = device.expect("command").await;
    requester.switch.cut();
    device.expect_silence(Duration::from_secs(50)).await;
    let (mut requester, _) = q.come(&rig).await;
    device.expect_silence(Duration::from_secs(50)).await;
    send_results(&mut device, &command, "success");
    complete(&mut requester).await;
}

#[tokio::test(start_paused = true)]
async fn a_cancel_is_confirmed_by_the_device_before_its_requester_is_told() {
    let rig = Rig::new().await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    for (n, word) in ["stopped", "finished", "could_not_stop"].into_iter().enumerate() {
        let id = submit(&mut requester, &task(&n.to_string())).await;
        let command = device.expect("command").await;
        cancel(&mut requester, &format!("S-{n}"), &id);
        cancel(&mut requester, &format!("S-{n}"), &id);
        assert_eq!(device.expect("task_end").await["status"], "failed");
        requester.expect_silence(Duration::from_secs(5)).await;
        send_results(&mut device, &command, "failure");
        say_stopped(&mut device, &command, word);
        let end = requester.expect("task_end").await;
        assert_eq!(end["error"], format!("Task was cancelled by 'q': {word}"));
        assert_eq!(end["messages"], json!([end["error"]]));
        acknowledge(&mut requester, &end);
        assert_eq!(taken(&mut device).await, "accepted");
    }
    let id = submit(&mut requester, &task("9")).await;
    let command = device.expect("command").await;
    cancel(&mut requester, "S-9", &id);
    device.expect("task_end").await;
    requester.expect_silence(Duration::from_secs(9)).await;
    let end = requester.expect("task_end").await;
    assert_eq!(end["error"], "Task was cancelled by 'q': not_confirmed");
    let result = &end["result"][0]["result"][0][0];
    assert_eq!(result["error"], "Stopped; its outcome is unknown");
    acknowledge(&mut requester, &end);
    send_results(&mut device, &command, "success");
    assert_eq!(taken(&mut device).await, "late");
    settle().await;
    rig.assert_quiet();
}

#[tokio::test(start_paused = true)]
async fn a_stranger_with_the_requesters_id_gets_nothing_of_its_tasks() {
    let rig = Rig::new().await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    let id = submit(&mut requester, &task_that("1", &json!("continue"))).await;
    let command = device.expect("command").await;
    requester.switch.cut();
    settle().await;
    let mut other = Client { file: "another".to_owned(), ..Client::requester() };
    let (mut stranger, granted) = other.come(&rig).await;
    assert_eq!(granted["resumed"], false);
    stranger.say(task_that("1", &json!("continue")));
    let refused = stranger.expect("error").await;
    assert_eq!(refused["error"], "session_id 'S-1' is owned by another client");
    cancel(&mut stranger, "S-1", &id);
    device.expect_silence(Duration::from_secs(5)).await;
    let (_refused, answer) = q.try_come(&rig).await;
    assert_eq!(answer["error"], "client_id 'q' is in use by another client");
    stranger.leave().await;
    send_results(&mut device, &command, "success");
    settle().await;
    let (mut requester, granted) = q.come(&rig).await;
    assert_eq!(granted["resumed"], true);
    assert_eq!(complete(&mut requester).await["response_id"].as_str(), Some(&*id));
}

#[tokio::test(start_paused = true)]
async fn who_has_outcomes_to_fetch_may_come_although_its_target_is_away() {
    let rig = Rig::new().await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    submit(&mut requester, &task_that("1", &json!("continue"))).await;
    let command = device.expect("command").await;
    requester.switch.cut();
    settle().await;
    send_results(&mut device, &command, "success");
    taken(&mut device).await;
    device.leave().await;
    settle().await;
    let (mut requester, answer) = q.try_come_for(&rig, "d").await;
    assert_eq!(answer["status"], "ok", "{answer}");
    complete(&mut requester).await;
    requester.say(task("2"));
    let refused = requester.expect("error").await;
    assert_eq!(refused["error"], "Target device 'd' is not connected");
}

#[tokio::test(start_paused = true)]
async fn a_task_that_was_accepted_is_answered_again_whatever_would_refuse_a_new_one() {
    let config = Config { queue_per_device: 1, undelivered_bytes: 100, ..Config::default() };
    let rig = Rig::with(config).await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    let first = submit(&mut requester, &task_that("1", &json!("continue"))).await;
    let command = device.expect("command").await;
    let second = submit(&mut requester, &task_that("2", &json!("continue"))).await;
    requester.say(task("3"));
    let full = requester.expect("error").await;
    assert!(full["error"].as_str().unwrap().contains("tasks waiting already"), "{full}");
    let again = |n| task_that(n, &json!("continue"));
    assert_eq!(submit(&mut requester, &again("2")).await, second, "the queue is full");
    send_results(&mut device, &command, "success");
    let end = requester.expect("task_end").await;
    assert_eq!(end["response_id"].as_str(), Some(&*first));
    requester.say(task("4"));
    let much = requester.expect("error").await;
    assert!(much["error"].as_str().unwrap().contains("bytes of outcomes"), "{much}");
    assert_eq!(much["result"]["flightdeck"]["refused"], "retry");
    assert_eq!(submit(&mut requester, &again("1")).await, first, "too much is not fetched");
    assert_eq!(requester.expect("task_end").await["response_id"].as_str(), Some(&*first));
    device.expect("heartbeat").await;
    device.expect("task_end").await;
    device.expect("command").await;
    device.switch.cut();
    assert_eq!(requester.expect("task_end").await["response_id"].as_str(), Some(&*second));
    for id in [("1", &first), ("2", &second)] {
        assert_eq!(submit(&mut requester, &again(id.0)).await, *id.1, "the device is gone");
        assert_eq!(requester.expect("task_end").await["response_id"].as_str(), Some(&**id.1));
    }
    requester.switch.cut();
    settle().await;
    let (mut requester, answer) = q.try_come_for(&rig, "elsewhere").await;
    assert_eq!(answer["status"], "ok", "{answer}");
    for id in [&first, &second] {
        assert_eq!(requester.expect("task_end").await["response_id"].as_str(), Some(&**id));
    }
    assert_eq!(submit(&mut requester, &again("1")).await, first, "it has another target now");
    complete(&mut requester).await;
    requester.say(task("5"));
    let other = requester.expect("error").await;
    assert_eq!(other["error"], "Not authorized to run tasks on this device");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_names_its_request_also_when_the_session_is_taken() {
    let rig = Rig::new().await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (_device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    submit(&mut requester, &task("1")).await;
    let mut other = task("2");
    other["session_id"] = json!("S-1");
    requester.say(other);
    let refused = requester.expect("error").await;
    assert_eq!(refused["error"], "session_id 'S-1' is already running");
    assert_eq!(refused["result"]["flightdeck"], json!({"request_id": "2", "refused": "final"}));
}

#[tokio::test(start_paused = true)]
async fn a_task_is_the_same_only_if_it_was_written_the_same() {
    let rig = Rig::new().await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (_device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    let with = |settings: serde_json::Value, name: Option<&str>| {
        let mut task = task("1");
        task["metadata"] = json!({"flightdeck": settings});
        task["task_name"] = json!(name);
        task
    };
    let store = q.store.clone();
    let id = submit(&mut requester, &with(json!({"store": store}), Some("a b"))).await;
    let same = with(json!({"store": store, "on_disconnect": null}), Some("a b"));
    assert_eq!(submit(&mut requester, &same).await, id);
    for other in [
        with(json!({"store": store, "on_disconnect": "cancel"}), Some("a b")),
        with(json!({"store": store, "streams": {}}), Some("a b")),
        with(json!({"store": store}), Some("a_b")),
        with(json!({"store": store}), Some("")),
        with(json!({"store": store}), None),
    ] {
        requester.say(other);
        let refused = requester.expect("error").await;
        assert_eq!(refused["error"], "request_id '1' was used for another task");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_device_that_cannot_say_so_did_of_a_cancelled_command_is_not_confirmed() {
    let rig = Rig::new().await;
    let mut q = Client::requester();
    let mut device = Party::join(&rig.server, "d", "device").await;
    let (mut requester, _) = q.come(&rig).await;
    let id = submit(&mut requester, &task("1")).await;
    let command = device.expect("command").await;
    cancel(&mut requester, "S-1", &id);
    let end = requester.expect("task_end").await;
    assert_eq!(end["error"], "Task was cancelled by 'q': not_confirmed");
    assert_eq!(end["messages"], json!([end["error"]]));
    let result = &end["result"][0]["result"][0][0];
    assert_eq!(result["error"], "Stopped; its outcome is unknown");
    acknowledge(&mut requester, &end);
    assert_eq!(device.expect("task_end").await["status"], "failed");

    send_results(&mut device, &command, "success");
    device.expect("error").await;
    submit(&mut requester, &task_that("2", &json!({"cancel_after_s": 60}))).await;
    device.expect("command").await;
    requester.switch.cut();
    assert_eq!(device.expect("task_end").await["status"], "failed");
    let (mut requester, _) = q.come(&rig).await;
    let end = requester.expect("task_end").await;
    assert_eq!(end["error"], "Task was cancelled due to client disconnection: not_confirmed");
}
