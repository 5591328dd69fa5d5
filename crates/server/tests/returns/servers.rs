//! A server that is killed or stopped, and started again.

use std::time::Duration;

use serde_json::json;

use crate::party::Party;
use crate::rig::{
    Client, Mood, Rig, acknowledge, cancel, complete, legacy_task, say_stopped, send_results,
    settle, submit, taken, task, task_that,
};

#[tokio::test(start_paused = true)]
async fn a_task_that_was_not_kept_runs_once_when_it_is_sent_again() {
    for mood in [Mood::Loses, Mood::Swallows] {
        let mut rig = Rig::new().await;
        let (mut d, mut q) = (Client::device(), Client::requester());
        let (_device, _) = d.come(&rig).await;
        let (mut requester, _) = q.come(&rig).await;
        rig.disk.set(mood);
        requester.say(task("1"));
        settle().await;
        rig.restart().await;
        let (mut device, _) = d.come(&rig).await;
        let (mut requester, granted) = q.come(&rig).await;
        assert_eq!(granted["resumed"], true);
        submit(&mut requester, &task("1")).await;
        let command = device.expect("command").await;
        send_results(&mut device, &command, "success");
        complete(&mut requester).await;
        taken(&mut device).await;
        device.expect("task_end").await;
        device.expect_silence(Duration::from_secs(5)).await;
        rig.assert_quiet();
    }
}

#[tokio::test(start_paused = true)]
async fn a_step_goes_on_wherever_the_server_dies() {
    for (mood, is_kept) in [(Mood::Loses, false), (Mood::Swallows, true)] {
        let mut rig = Rig::new().await;
        let (mut d, mut q) = (Client::device(), Client::requester());
        let (mut device, _) = d.come(&rig).await;
        let (mut requester, _) = q.come(&rig).await;
        let id = submit(&mut requester, &task("1")).await;
        let command = device.expect("command").await;
        d.note(&command, "running");
        rig.disk.set(mood);
        send_results(&mut device, &command, "success");
        d.note(&command, "done");
        device.expect_silence(Duration::from_secs(1)).await;
        rig.restart().await;
        let (mut device, granted) = d.come(&rig).await;
        let told = &granted["commands"][command["response_id"].as_str().unwrap()];
        assert_eq!(told, if is_kept { "discard" } else { "send" });
        if !is_kept {
            send_results(&mut device, &command, "success");
            assert_eq!(taken(&mut device).await, "accepted");
        }
        let (mut requester, _) = q.come(&rig).await;
        assert_eq!(complete(&mut requester).await["response_id"].as_str(), Some(&*id));
        settle().await;
        rig.assert_quiet();
    }
}

#[tokio::test(start_paused = true)]
async fn a_command_that_was_committed_is_sent_again_under_the_same_id_after_a_restart() {
    let mut rig = Rig::new().await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    submit(&mut requester, &task("1")).await;
    let command = device.expect("command").await;
    rig.restart().await;
    let (mut device, _) = d.come(&rig).await;
    let again = device.expect("command").await;
    assert_eq!(again["response_id"], command["response_id"]);
    assert_eq!(again["actions"], command["actions"]);
    send_results(&mut device, &again, "success");
    assert_eq!(taken(&mut device).await, "accepted");
    let (mut requester, _) = q.come(&rig).await;
    complete(&mut requester).await;
}

#[tokio::test(start_paused = true)]
async fn a_queue_keeps_its_order_over_a_restart() {
    let mut rig = Rig::new().await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    for n in ["1", "2", "3", "4"] {
        submit(&mut requester, &task_that(n, &json!("continue"))).await;
    }
    let first = device.expect("command").await;
    d.note(&first, "running");
    rig.restart().await;
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    send_results(&mut device, &first, "success");
    taken(&mut device).await;
    device.expect("task_end").await;
    complete(&mut requester).await;
    for n in ["2", "3", "4"] {
        let command = device.expect("command").await;
        assert_eq!(command["session_id"], format!("S-{n}"));
        assert!(command["response_id"].as_str() > first["response_id"].as_str());
        send_results(&mut device, &command, "success");
        taken(&mut device).await;
        device.expect("task_end").await;
        complete(&mut requester).await;
    }
    rig.assert_quiet();
}

#[tokio::test(start_paused = true)]
async fn an_outcome_survives_the_server_and_is_delivered_until_acknowledged() {
    let mut rig = Rig::new().await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    let id = submit(&mut requester, &task("1")).await;
    let command = device.expect("command").await;
    send_results(&mut device, &command, "success");
    requester.expect("task_end").await;
    rig.restart().await;
    rig.assert_quiet();
    let (mut requester, _) = q.come(&rig).await;
    let end = requester.expect("task_end").await;
    assert_eq!(end["response_id"].as_str(), Some(&*id));
    acknowledge(&mut requester, &end);
    settle().await;
    rig.restart().await;
    let (mut requester, _) = q.come(&rig).await;
    requester.expect_silence(Duration::from_secs(5)).await;
    assert_eq!(submit(&mut requester, &task("1")).await, id);
    complete(&mut requester).await;
}

#[tokio::test(start_paused = true)]
async fn a_cancel_survives_the_server() {
    let mut rig = Rig::new().await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    let id = submit(&mut requester, &task("1")).await;
    let command = device.expect("command").await;
    d.note(&command, "running");
    rig.disk.set(Mood::Swallows);
    cancel(&mut requester, "S-1", &id);
    device.expect_silence(Duration::from_secs(1)).await;
    rig.restart().await;
    let (mut device, _) = d.come(&rig).await;
    assert_eq!(device.expect("task_end").await["status"], "failed");
    say_stopped(&mut device, &command, "stopped");
    send_results(&mut device, &command, "failure");
    let (mut requester, _) = q.come(&rig).await;
    let end = requester.expect("task_end").await;
    assert_eq!(end["error"], "Task was cancelled by 'q': stopped");
}

#[tokio::test(start_paused = true)]
async fn a_time_limit_that_was_not_committed_is_forgotten() {
    let config = server::Config {
        command_timeout: Some(Duration::from_secs(10)),
        ..server::Config::default()
    };
    let mut rig = Rig::with(config).await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    submit(&mut requester, &task("1")).await;
    let command = device.expect("command").await;
    d.note(&command, "running");
    rig.disk.set(Mood::Loses);
    device.expect_silence(Duration::from_secs(15)).await;
    d.note(&command, "done");
    send_results(&mut device, &command, "success");
    device.expect_silence(Duration::from_secs(1)).await;
    rig.restart().await;
    let (mut device, _) = d.come(&rig).await;
    send_results(&mut device, &command, "success");
    assert_eq!(taken(&mut device).await, "accepted");
    let (mut requester, _) = q.come(&rig).await;
    complete(&mut requester).await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_stored_is_told_to_nobody_and_goes_on_when_there_is_room() {
    let rig = Rig::new().await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    submit(&mut requester, &task("1")).await;
    let command = device.expect("command").await;
    d.note(&command, "running");
    rig.disk.set(Mood::Full);
    send_results(&mut device, &command, "success");
    device.expect_silence(Duration::from_secs(30)).await;
    requester.say(task("2"));
    let refused = requester.expect("error").await;
    assert_eq!(refused["result"]["flightdeck"]["refused"], "retry");
    requester.expect_silence(Duration::from_secs(30)).await;
    rig.disk.set(Mood::Works);
    assert_eq!(taken(&mut device).await, "accepted");
    complete(&mut requester).await;
    settle().await;
    rig.assert_quiet();
}

#[tokio::test(start_paused = true)]
async fn a_legacy_requesters_task_ends_at_a_restart_and_its_device_is_told() {
    let mut rig = Rig::new().await;
    let mut d = Client::device();
    let (mut device, _) = d.come(&rig).await;
    let mut legacy = Party::join(&rig.server, "g", "constellation").await;
    legacy.say(legacy_task("S"));
    legacy.expect("heartbeat").await;
    let command = device.expect("command").await;
    d.note(&command, "running");
    rig.restart().await;
    rig.assert_quiet_but_for_commands();
    let (_device, granted) = d.come(&rig).await;
    assert_eq!(granted["commands"][command["response_id"].as_str().unwrap()], "discard");
    rig.assert_quiet();
}

#[tokio::test(start_paused = true)]
async fn a_legacy_device_has_nothing_sent_twice_and_what_waits_waits_for_it() {
    let mut rig = Rig::new().await;
    let mut q = Client::requester();
    let mut device = Party::join(&rig.server, "d", "device").await;
    let (mut requester, _) = q.come(&rig).await;
    for n in ["1", "2"] {
        submit(&mut requester, &task_that(n, &json!("continue"))).await;
    }
    device.expect("command").await;
    rig.restart().await;
    let (mut requester, _) = q.come(&rig).await;
    let end = requester.expect("task_end").await;
    assert_eq!(end["session_id"], "S-1");
    assert!(end["error"].as_str().unwrap().ends_with("the outcome is unknown"), "{end}");
    acknowledge(&mut requester, &end);
    requester.expect_silence(Duration::from_secs(60)).await;
    let mut device = Party::join(&rig.server, "d", "device").await;
    let command = device.expect("command").await;
    assert_eq!(command["session_id"], "S-2");
    send_results(&mut device, &command, "success");
    complete(&mut requester).await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_suspends_what_goes_on_and_ends_the_rest() {
    let mut rig = Rig::new().await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    let mut legacy = Party::join(&rig.server, "g", "constellation").await;
    for n in ["1", "2", "3"] {
        submit(&mut requester, &task_that(n, &json!("continue"))).await;
    }
    legacy.say(legacy_task("L"));
    legacy.expect("heartbeat").await;
    let first = device.expect("command").await;
    d.note(&first, "running");
    let stopping = rig.server.clone();
    let stop = tokio::spawn(async move { stopping.shut_down().await });
    let end = legacy.expect("task_end").await;
    assert_eq!(end["error"], "Task was cancelled because the server is shutting down");
    assert_eq!(device.expect("task_end").await["session_id"], "L");
    settle().await;
    requester.say(task("4"));
    let refused = requester.expect("error").await;
    assert_eq!(refused["result"]["flightdeck"]["refused"], "retry");
    assert_eq!(submit(&mut requester, &task_that("1", &json!("continue"))).await.len(), 36);
    assert_eq!(device.closed().await.code.0, 1001);
    assert_eq!(requester.closed().await.code.0, 1001);
    drop((device, requester, legacy));
    stop.await.unwrap();
    rig.restart().await;
    assert_eq!(rig.open(), 3);
    let (mut device, granted) = d.come(&rig).await;
    assert_eq!(granted["commands"][first["response_id"].as_str().unwrap()], "continue");
    let (mut requester, _) = q.come(&rig).await;
    let mut command = first;
    for n in ["1", "2", "3"] {
        assert_eq!(command["session_id"], format!("S-{n}"));
        send_results(&mut device, &command, "success");
        taken(&mut device).await;
        device.expect("task_end").await;
        complete(&mut requester).await;
        if n != "3" {
            command = device.expect("command").await;
        }
    }
    rig.assert_quiet();
}

#[tokio::test(start_paused = true)]
async fn a_command_that_ends_while_the_server_stops_counts() {
    let mut rig = Rig::new().await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    submit(&mut requester, &task_that("1", &json!("continue"))).await;
    let command = device.expect("command").await;
    let stopping = rig.server.clone();
    let stop = tokio::spawn(async move { stopping.shut_down().await });
    settle().await;
    send_results(&mut device, &command, "success");
    assert_eq!(taken(&mut device).await, "accepted");
    requester.expect("task_end").await;
    drop((device, requester));
    stop.await.unwrap();
    rig.restart().await;
    rig.assert_quiet();
    let (mut requester, _) = q.come(&rig).await;
    complete(&mut requester).await;
}

#[tokio::test(start_paused = true)]
async fn a_requester_that_does_not_come_back_after_a_restart_is_waited_for() {
    let mut rig = Rig::new().await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    submit(&mut requester, &task("1")).await;
    let command = device.expect("command").await;
    d.note(&command, "running");
    rig.restart().await;
    let (mut device, _) = d.come(&rig).await;
    device.expect_silence(Duration::from_secs(118)).await;
    assert_eq!(device.expect("task_end").await["session_id"], "S-1");
}
