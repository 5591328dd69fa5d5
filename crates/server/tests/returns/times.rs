//! How long a task may take, and what is said when that is over.

use std::time::Duration;

use serde_json::{Value, json};
use server::Config;

use crate::rig::{Client, Rig, command_task, complete, send_results, submit, taken};

/// A task that wants no time limit.
fn endless(request_id: &str) -> Value {
    let mut task = command_task(request_id);
    task["metadata"] = json!({"flightdeck": {"no_time_limit": true}});
    task
}

#[tokio::test(start_paused = true)]
async fn a_task_that_wants_no_limit_has_none_also_after_a_restart() {
    let mut rig = Rig::new().await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    submit(&mut requester, &endless("1")).await;
    let command = device.expect("command").await;
    d.note(&command, "running");
    requester.expect_silence(Duration::from_secs(20 * 3600)).await;
    rig.restart().await;
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    requester.expect_silence(Duration::from_secs(20 * 3600)).await;
    send_results(&mut device, &command, "success");
    assert_eq!(taken(&mut device).await, "accepted");
    complete(&mut requester).await;
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_somebody_has_set_stands_and_is_named() {
    let limit = Some(Duration::from_secs(40));
    let command = Config { command_timeout: limit, ..Config::default() };
    let most = Config { max_command_timeout: limit, ..Config::default() };
    let session = Config { session_timeout: limit, ..Config::default() };
    for (config, error) in [
        (command, "Step 1 (execute_command) timed out after 40 s (the server's command_timeout)"),
        (most, "Step 1 (execute_command) timed out after 40 s (the server's max_command_timeout)"),
        (session, "Task did not end within 40 s (the server's session_timeout)"),
    ] {
        let rig = Rig::with(config).await;
        let (mut d, mut q) = (Client::device(), Client::requester());
        let (mut device, _) = d.come(&rig).await;
        let (mut requester, _) = q.come(&rig).await;
        submit(&mut requester, &endless("1")).await;
        device.expect("command").await;
        requester.expect_silence(Duration::from_secs(39)).await;
        assert_eq!(requester.expect("task_end").await["error"], error);
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_that_says_nothing_has_the_usual_limits() {
    let rig = Rig::new().await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    submit(&mut requester, &command_task("1")).await;
    device.expect("command").await;
    requester.expect_silence(Duration::from_secs(299)).await;
    let error = requester.expect("task_end").await["error"].clone();
    assert_eq!(
        error,
        "Step 1 (execute_command) timed out after 300 s (the server's command_timeout)"
    );
}

#[tokio::test(start_paused = true)]
async fn a_device_that_hangs_is_noticed_however_long_its_command_may_take() {
    let rig = Rig::new().await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    submit(&mut requester, &endless("1")).await;
    device.expect("command").await;
    device.switch.swallow();
    let end = requester.expect("task_end").await;
    assert!(end["error"].as_str().unwrap().contains("target device disconnected"), "{end}");
}
