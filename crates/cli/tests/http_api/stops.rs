//! Tasks that are cancelled, queues that are full, and a server that stops.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::client::{Api, Raw, id};
use crate::common::process::until_running;
use crate::common::{Server, long_sleep, plan, within};

fn states(device: &Value) -> Vec<(&str, &str)> {
    let tasks = device["tasks"].as_array().unwrap().iter();
    tasks.map(|task| (task["task"].as_str().unwrap(), task["state"].as_str().unwrap())).collect()
}

#[tokio::test]
async fn a_waiting_task_is_cancelled_at_once() {
    let server = Server::start().await;
    let (api, mut device) = (Api::of(&server), server.raw_device("d").await);
    let first = api.submit_plan("d").await;
    let command = device.expect("command").await;
    let second = api.submit(&json!({"device": "d", "request": "r", "session_id": "S2"})).await;
    assert_eq!((&second["state"], &second["ahead"]), (&json!("queued"), &json!(1)));
    api.cancel(&id(&second)).await.ok(202);
    let end = device.expect_end("S2", "failed").await;
    assert_eq!(end["error"], "Task was cancelled by 'local'");
    let ended = api.end_of(&id(&second)).await;
    assert_eq!((&ended["state"], &ended["step_count"]), (&json!("cancelled"), &json!(0)));
    assert_eq!(ended["error"], "Task was cancelled by 'local'");
    device.answer_well(&command).await;
    assert_eq!(api.end_of(&first).await["state"], "completed");
}

#[tokio::test]
async fn a_running_task_is_cancelled_and_its_place_is_kept_until_the_device_confirms() {
    let server = Server::start().await;
    let (api, mut device) = (Api::of(&server), server.raw_device("d").await);
    let first = api.submit_plan("d").await;
    let command = device.expect("command").await;
    let second = api.submit_plan("d").await;
    api.cancel(&first).await.ok(202);
    let session = command["session_id"].as_str().unwrap();
    device.expect_end(session, "failed").await;
    let cancelled = api.end_of(&first).await;
    assert_eq!(cancelled["state"], "cancelled");
    let error = cancelled["steps"][0]["actions"][0]["error"].as_str().unwrap();
    assert!(error.contains("its outcome is unknown"), "{error}");

    let shown = api.get("/api/v1/devices/d").await.ok(200);
    assert_eq!(states(&shown), [(&*first, "stopping"), (&*second, "queued")]);
    device.beat().await;
    device.answer_well(&command).await;
    assert!(device.expect_error().await.contains("too late"));
    let command = device.expect("command").await;
    let shown = api.get("/api/v1/devices/d").await.ok(200);
    assert_eq!(states(&shown), [(&*second, "running")]);
    assert_eq!(api.task(&first).await["state"], "cancelled", "what came late changes nothing");
    device.answer_well(&command).await;
    assert_eq!(api.end_of(&second).await["state"], "completed");
}

#[tokio::test]
async fn to_cancel_again_changes_nothing_and_what_ended_otherwise_is_not_cancelled() {
    let server = Server::start().await;
    let (api, mut device) = (Api::of(&server), server.raw_device("d").await);
    let done = api.submit_plan("d").await;
    let command = device.expect("command").await;
    device.answer_well(&command).await;
    api.end_of(&done).await;
    api.cancel(&done).await.problem(409, "task_over");
    assert_eq!(api.task(&done).await["state"], "completed");

    let task = api.submit_plan("d").await;
    api.cancel(&task).await.ok(202);
    api.end_of(&task).await;
    for _ in 0..2 {
        assert_eq!(api.cancel(&task).await.ok(202)["state"], "cancelled");
    }
}

#[tokio::test]
async fn a_full_queue_refuses_and_says_when_to_come_back() {
    let server = Server::start_with(&["--queue-per-device", "1"]).await;
    let api = Api::of(&server);
    let (mut device, _other) = (server.raw_device("d").await, server.raw_device("other").await);
    let tasks = [api.submit_plan("d").await, api.submit_plan("d").await];
    let task = json!({"device": "d", "request": {"commands": [{"tool_name": "t"}]}});
    let full = api.post("/api/v1/tasks", task.to_string()).await;
    assert!(full.problem(503, "queue_full").contains("'d'"));
    assert_eq!(full.header("retry-after"), "5");
    api.submit_plan("other").await;
    for task in tasks {
        let command = device.expect("command").await;
        device.answer_well(&command).await;
        device.expect("task_end").await;
        assert_eq!(api.end_of(&task).await["state"], "completed");
    }
    api.submit_plan("d").await;
}

#[tokio::test]
async fn who_waits_while_the_server_stops_is_answered_and_new_tasks_are_refused() {
    let mut server = Server::start().await;
    let (api, mut device) = (Api::of(&server), server.raw_device("d").await);
    let task = api.submit_plan("d").await;
    let command = device.expect("command").await;
    let (mut late, mut waiting) = (Raw::connect(&server).await, Raw::connect(&server).await);
    let alive = late.head("GET /readyz", &[]);
    late.write(&alive).await;
    assert_eq!(late.answer().await, (200, "ready".to_owned()));
    let wait = format!("GET /api/v1/tasks/{task}/wait");
    let both = waiting.head("GET /readyz", &[]) + &waiting.head(&wait, &[]);
    waiting.write(both).await;
    assert_eq!(waiting.answer().await.0, 200);

    server.process.signal(Signal::TERM);
    server.process.says("Stopping").await;
    let stops = async {
        loop {
            late.write(&alive).await;
            if late.answer().await == (503, "stopping".to_owned()) {
                break;
            }
        }
    };
    within("the stop", stops).await;
    let body = r#"{"device":"d","request":"r"}"#;
    let length = format!("Content-Length: {}", body.len());
    let submit = late.head("POST /api/v1/tasks", &[&length]) + body;
    late.write(submit).await;
    let (status, refused) = late.answer().await;
    assert!(status == 503 && refused.contains("shutting_down"), "{status} {refused}");

    device.answer_well(&command).await;
    let (status, ended) = waiting.answer().await;
    assert!(status == 200 && ended.contains(r#""state":"completed""#), "{status} {ended}");
    for connection in [&mut late, &mut waiting] {
        assert_eq!(connection.end().await, 0, "an idle connection is closed without a word");
    }
    assert_eq!(server.process.done().await.code, 0);
}

#[tokio::test]
async fn who_waits_for_a_task_that_goes_on_after_the_stop_is_told_how_it_stands() {
    let server = Server::start_with(&["--shutdown-grace", "1"]).await;
    let _device = server.device("box", &["--exec", "shell"]).await;
    let (api, slow) = (Api::of(&server), long_sleep());
    let task = api.submit(&json!({"device": "box", "request": plan(&slow)})).await;
    until_running(&slow).await;
    let mut waiting = Raw::connect(&server).await;
    let wait = format!("GET /api/v1/tasks/{}/wait?timeout_s=60", id(&task));
    let both = waiting.head("GET /readyz", &[]) + &waiting.head(&wait, &[]);
    waiting.write(both).await;
    assert_eq!(waiting.answer().await.0, 200);
    server.process.signal(Signal::TERM);
    let (status, stands) = waiting.answer().await;
    let stands: Value = serde_json::from_str(&stands).unwrap();
    assert_eq!((status, &stands["state"]), (200, &json!("running")));
    assert_eq!(within("the stop", server.process.done()).await.code, 0);
}

#[tokio::test]
async fn who_waits_for_a_task_that_the_stop_ends_is_told_so() {
    let server = Server::start_with(&["--shutdown-grace", "0"]).await;
    let (api, mut device) = (Api::of(&server), server.raw_device("d").await);
    let task = api.submit_plan("d").await;
    device.expect("command").await;
    let mut waiting = Raw::connect(&server).await;
    let wait = format!("GET /api/v1/tasks/{task}/wait");
    let both = waiting.head("GET /readyz", &[]) + &waiting.head(&wait, &[]);
    waiting.write(both).await;
    assert_eq!(waiting.answer().await.0, 200);
    server.process.signal(Signal::TERM);
    let (status, ended) = waiting.answer().await;
    let ended: Value = serde_json::from_str(&ended).unwrap();
    assert_eq!((status, &ended["state"]), (200, &json!("failed")));
    assert_eq!(ended["error"], "The server stopped; the outcome is unknown");
}
