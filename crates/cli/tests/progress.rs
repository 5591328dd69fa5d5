//! What a tool tells while it runs reaches whoever follows the task.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;

use common::{Server, plan};
use serde_json::{Value, json};

#[tokio::test]
async fn what_a_command_writes_is_shown_while_it_runs() {
    let server = Server::start().await;
    let _device = server.device("box", &["--exec", "shell"]).await;
    let folder = tempfile::tempdir().unwrap();
    let go_on = folder.path().join("go-on");
    // It ends only once what it wrote was seen.
    let command =
        format!("echo halfway; until test -e {}; do sleep 0.05; done; echo done", go_on.display());
    let mut following = server.start_command(&["run", "--json", "--on", "box", &plan(&command)]);
    following.says("\"line\":\"halfway\"").await;
    fs::write(&go_on, "").unwrap();
    let ended = following.done().await;
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stdout.contains("halfway\\ndone"), "{ended:?}");
}

#[tokio::test]
async fn only_the_device_that_runs_a_command_and_asked_for_progress_is_heard() {
    let server = Server::start().await;
    let mut device = server.peer().await;
    device.register_for_progress("d", "device").await;
    let mut requester = server.peer().await;
    requester.register_for_progress("g", "constellation").await;
    let session = requester.submit("d", &plan("uname")).await;
    let command = device.expect("command").await;

    let mut stranger = server.raw_device("other").await;
    let tells = |response_id: &Value, line: &str| {
        json!({"status": "continue", "session_id": session, "prev_response_id": response_id,
               "metadata": {"flightdeck": {"output": {"lines": [line, "more"]}}}})
    };
    stranger.say("heartbeat", tells(&command["response_id"], "forged")).await;
    stranger.beat().await;
    device.say("heartbeat", tells(&json!("no such command"), "lost")).await;
    device.say("heartbeat", tells(&command["response_id"], "halfway")).await;
    device.answer_well(&command).await;

    let mut told = Vec::new();
    loop {
        let message = requester.next().await.unwrap();
        if message["type"] == "task_end" {
            break;
        }
        told.extend(message["messages"].as_array().into_iter().flatten().cloned());
    }
    assert!(told.contains(&json!("halfway")) && told.contains(&json!("more")), "{told:?}");
    assert!(!told.contains(&json!("forged")) && !told.contains(&json!("lost")), "{told:?}");
}
