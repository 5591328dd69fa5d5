//! A device that is lost and comes back.

use std::time::Duration;

use serde_json::json;
use server::Config;

use crate::party::Party;
use crate::rig::{
    Client, Mood, Rig, accepted, cancel, complete, say_stopped, send_results, settle, submit,
    taken, task,
};

#[tokio::test(start_paused = true)]
async fn a_command_that_its_device_never_read_is_sent_again_under_the_same_id() {
    let rig = Rig::new().await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (mut device, granted) = d.come(&rig).await;
    assert_eq!(granted["features"], json!(["ack", "cancel", "resume"]));
    assert_eq!(granted["resume_window_s"], 120.0);
    let (mut requester, _) = q.come(&rig).await;
    submit(&mut requester, &task("1")).await;
    let command = device.expect("command").await;
    device.switch.cut();
    settle().await;
    let (mut device, _) = d.come(&rig).await;
    let again = device.expect("command").await;
    assert_eq!(again["response_id"], command["response_id"]);
    assert_eq!(again["actions"], command["actions"]);
    send_results(&mut device, &again, "success");
    assert_eq!(taken(&mut device).await, "accepted");
    complete(&mut requester).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_device_has_goes_on_is_sent_or_is_forgotten_as_the_server_knows() {
    let rig = Rig::with(Config { sessions_per_device: 3, ..Config::default() }).await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    let mut commands = Vec::new();
    for n in ["1", "2"] {
        submit(&mut requester, &task(n)).await;
        commands.push(device.expect("command").await);
    }
    device.switch.cut();
    settle().await;
    d.note(&commands[0], "running");
    d.note(&commands[1], "done");
    d.held.push(("0190a0a0-0000-7000-8000-000000000000".to_owned(), "done"));
    let (mut device, granted) = d.come(&rig).await;
    let told = &granted["commands"];
    assert_eq!(told[commands[0]["response_id"].as_str().unwrap()], "continue");
    assert_eq!(told[commands[1]["response_id"].as_str().unwrap()], "send");
    assert_eq!(told["0190a0a0-0000-7000-8000-000000000000"], "discard");
    for command in &commands {
        send_results(&mut device, command, "success");
        assert_eq!(taken(&mut device).await, "accepted");
        complete(&mut requester).await;
        device.expect("task_end").await;
    }
    send_results(&mut device, &commands[0], "success");
    assert_eq!(taken(&mut device).await, "unknown");
    rig.assert_quiet();
}

#[tokio::test(start_paused = true)]
async fn a_commands_time_stands_still_while_its_device_is_away() {
    let config = Config { command_timeout: Some(Duration::from_secs(10)), ..Config::default() };
    let rig = Rig::with(config).await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    submit(&mut requester, &task("1")).await;
    let command = device.expect("command").await;
    d.note(&command, "running");
    device.switch.cut();
    requester.expect_silence(Duration::from_secs(60)).await;
    let (mut device, _) = d.come(&rig).await;
    requester.expect_silence(Duration::from_secs(9)).await;
    send_results(&mut device, &command, "success");
    complete(&mut requester).await;
}

#[tokio::test(start_paused = true)]
async fn a_command_over_its_time_is_told_to_stop_and_its_results_are_late() {
    let config = Config { command_timeout: Some(Duration::from_secs(10)), ..Config::default() };
    let rig = Rig::with(config).await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    submit(&mut requester, &task("1")).await;
    let command = device.expect("command").await;
    // Its link answers the ping by itself.
    let (end, told) = tokio::join!(requester.expect("task_end"), device.expect("task_end"));
    assert_eq!(end["error"], "Step 1 (t) timed out after 10 s (the server's command_timeout)");
    assert_eq!(told["status"], "failed");
    send_results(&mut device, &command, "success");
    assert_eq!(taken(&mut device).await, "late");
    settle().await;
    rig.assert_quiet();
}

#[tokio::test(start_paused = true)]
async fn a_device_that_stays_away_is_gone_after_the_window() {
    let rig = Rig::new().await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    submit(&mut requester, &task("1")).await;
    let command = device.expect("command").await;
    d.note(&command, "running");
    device.switch.cut();
    settle().await;
    requester.say(task("2"));
    let refused = requester.expect("error").await;
    assert_eq!(refused["error"], "Target device 'd' is away and expected back; try again later");
    assert_eq!(refused["result"]["flightdeck"]["refused"], "retry");
    requester.expect_silence(Duration::from_secs(119)).await;
    let end = requester.expect("task_end").await;
    let error = "Task was cancelled because target device disconnected ('d')";
    assert_eq!(end["error"], error);
    let result = &end["result"][0]["result"][0][0];
    assert_eq!(result["error"], "The device disconnected; its outcome is unknown");
    let (_device, granted) = d.come(&rig).await;
    assert_eq!(granted["commands"][command["response_id"].as_str().unwrap()], "discard");
    rig.assert_quiet();
}

#[tokio::test(start_paused = true)]
async fn a_device_without_its_journal_runs_nothing_twice() {
    let rig = Rig::new().await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    submit(&mut requester, &task("1")).await;
    submit(&mut requester, &task("2")).await;
    let first = device.expect("command").await;
    device.switch.cut();
    settle().await;
    let mut wiped = Client { file: "fresh".to_owned(), ..Client::device() };
    let (mut device, granted) = wiped.come(&rig).await;
    assert_eq!(granted["resumed"], false);
    let end = requester.expect("task_end").await;
    assert_eq!(end["session_id"], "S-1");
    assert!(end["error"].as_str().unwrap().ends_with("the outcome is unknown"), "{end}");
    assert_eq!(device.expect("task_end").await["session_id"], "S-1");
    let second = device.expect("command").await;
    assert_eq!(second["session_id"], "S-2");
    assert_ne!(second["response_id"], first["response_id"]);
    send_results(&mut device, &second, "success");
    requester.expect("task_end").await;
}

#[tokio::test(start_paused = true)]
async fn a_device_that_lost_power_gets_no_command_of_the_boot_before() {
    let rig = Rig::new().await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    submit(&mut requester, &task("1")).await;
    device.expect("command").await;
    device.switch.cut();
    settle().await;
    d.boot = "another".to_owned();
    let (mut device, granted) = d.come(&rig).await;
    assert_eq!(granted["resumed"], true);
    let end = requester.expect("task_end").await;
    assert!(end["error"].as_str().unwrap().ends_with("the outcome is unknown"), "{end}");
    device.expect("task_end").await;
    device.expect_silence(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_command_that_was_not_sent_goes_to_the_journal_that_its_device_comes_with() {
    let rig = Rig::new().await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    submit(&mut requester, &task("1")).await;
    let first = device.expect("command").await;
    submit(&mut requester, &task("2")).await;
    d.note(&first, "running");
    device.switch.cut();
    settle().await;
    d.boot = "another".to_owned();
    d.note(&first, "done");
    let (mut device, granted) = d.come(&rig).await;
    assert_eq!(granted["commands"][first["response_id"].as_str().unwrap()], "send");
    send_results(&mut device, &first, "failure");
    assert_eq!(taken(&mut device).await, "accepted");
    device.expect("task_end").await;
    requester.expect("task_end").await;
    let second = device.expect("command").await;
    send_results(&mut device, &second, "success");
    complete(&mut requester).await;
}

#[tokio::test(start_paused = true)]
async fn a_cancel_that_finds_its_device_away_is_told_when_it_is_back() {
    let rig = Rig::new().await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    let id = submit(&mut requester, &task("1")).await;
    let command = device.expect("command").await;
    d.note(&command, "running");
    device.switch.cut();
    settle().await;
    cancel(&mut requester, "S-1", &id);
    settle().await;
    let (mut device, granted) = d.come(&rig).await;
    assert_eq!(granted["commands"][command["response_id"].as_str().unwrap()], "continue");
    assert_eq!(device.expect("task_end").await["session_id"], "S-1");
    say_stopped(&mut device, &command, "stopped");
    send_results(&mut device, &command, "failure");
    let end = requester.expect("task_end").await;
    assert_eq!(end["error"], "Task was cancelled by 'q': stopped");
}

#[tokio::test(start_paused = true)]
async fn a_device_forgets_no_results_whose_settlement_is_not_stored() {
    let rig = Rig::new().await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    let id = submit(&mut requester, &task("1")).await;
    let command = device.expect("command").await;
    device.switch.cut();
    d.note(&command, "done");
    cancel(&mut requester, "S-1", &id);
    settle().await;
    // While it waits for its confirmation, the wait for its word on the cancel ends.
    rig.disk.set(Mood::Swallows);
    let start = tokio::time::Instant::now();
    let later = async {
        settle().await;
        rig.disk.set(Mood::Full);
        tokio::time::sleep(Duration::from_secs(12)).await;
        rig.disk.answer();
        tokio::time::sleep(Duration::from_secs(8)).await;
        rig.disk.set(Mood::Works);
    };
    let coming = async { (d.come(&rig).await, start.elapsed()) };
    let (((_device, granted), took), ()) = tokio::join!(coming, later);
    assert!(took >= Duration::from_secs(20), "{took:?}");
    assert_eq!(granted["commands"][command["response_id"].as_str().unwrap()], "discard");
    requester.expect("task_end").await;
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_command_that_its_device_never_read_is_not_sent() {
    let rig = Rig::new().await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    let id = submit(&mut requester, &task("1")).await;
    device.expect("command").await;
    device.switch.cut();
    settle().await;
    cancel(&mut requester, "S-1", &id);
    settle().await;
    let (mut device, _) = d.come(&rig).await;
    let end = requester.expect("task_end").await;
    assert_eq!(end["error"], "Task was cancelled by 'q': never_sent");
    assert_eq!(end["result"][0]["result"][0][0]["error"], "Stopped; it was never sent");
    device.expect("task_end").await;
    device.expect_silence(Duration::from_secs(5)).await;
    rig.assert_quiet();
}

#[tokio::test(start_paused = true)]
async fn a_device_with_a_receipt_that_the_store_does_not_know_says_that_commits_were_lost() {
    let rig = Rig::new().await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    submit(&mut requester, &task("1")).await;
    let command = device.expect("command").await;
    d.note(&command, "running");
    device.switch.cut();
    settle().await;
    // Of the same millisecond, and above it.
    let made_at = &command["response_id"].as_str().unwrap()[..15];
    let ahead = format!("{made_at}fff-bfff-ffffffffffff");
    d.held.push((ahead.clone(), "done"));
    d.newest = Some(ahead.clone());
    let (_device, granted) = d.come(&rig).await;
    let told = json!({command["response_id"].as_str().unwrap(): "discard", ahead: "discard"});
    assert_eq!(granted["commands"], told);
    let end = requester.expect("task_end").await;
    assert!(end["error"].as_str().unwrap().ends_with("the outcome is unknown"));
}

#[tokio::test(start_paused = true)]
async fn a_device_that_was_there_until_the_server_died_was_seen_then() {
    let short = Config { device_time: Duration::from_secs(100), ..Config::default() };
    let mut rig = Rig::with(short).await;
    let mut d = Client::device();
    let (_device, _) = d.come(&rig).await;
    tokio::time::sleep(Duration::from_secs(1000)).await;
    rig.restart().await;
    tokio::time::sleep(Duration::from_secs(50)).await;
    let (_device, granted) = d.come(&rig).await;
    assert_eq!(granted["resumed"], true);
}

#[tokio::test(start_paused = true)]
async fn a_receipt_that_no_store_can_have_given_is_refused_or_means_nothing() {
    let mut rig = Rig::new().await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let far = "ffffffff-ffff-7fff-bfff-ffffffffffff".to_owned();
    d.newest = Some(far.clone());
    let (_refused, answer) = d.try_come(&rig).await;
    let error = "Invalid message: metadata.flightdeck.resume.newest lies in the future";
    assert_eq!(answer["error"], error);
    // Who names no store, or keeps no journal, says nothing by it.
    d.newest = Some("00000000-0001-7fff-bfff-ffffffffffff".to_owned());
    d.come(&rig).await;
    q.newest = Some(far);
    q.come(&rig).await;
    rig.restart().await;
    d.newest = None;
    let (mut device, _) = d.come(&rig).await;
    q.newest = None;
    let (mut requester, _) = q.come(&rig).await;
    submit(&mut requester, &task("1")).await;
    let command = device.expect("command").await;
    let id = command["response_id"].as_str().unwrap();
    assert!(id.starts_with("00000000-"), "{id} is not of these days");
}

#[tokio::test(start_paused = true)]
async fn a_legacy_device_that_is_lost_ends_its_tasks_at_once() {
    let rig = Rig::new().await;
    let mut q = Client::requester();
    let mut device = Party::join(&rig.server, "d", "device").await;
    let (mut requester, _) = q.come(&rig).await;
    for n in ["1", "2"] {
        requester.say(task(n));
        accepted(&mut requester).await;
    }
    device.expect("command").await;
    device.switch.cut();
    for _ in 0..2 {
        let end = requester.expect("task_end").await;
        let error = "Task was cancelled because target device disconnected ('d')";
        assert_eq!(end["error"], error);
    }
    rig.assert_quiet();
}
