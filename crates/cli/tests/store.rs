//! What becomes of tasks when their server stops, dies or is copied, as its users see it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Done, Server, http_client, plan, within};
use rustix::process::Signal;
use serde_json::{Value, json};

async fn get(server: &Server, path: &str) -> (u16, String) {
    let url = format!("http://127.0.0.1:{}{path}", server.port);
    let request = http_client().get(url).bearer_auth(server.key()).send();
    let response = within("an answer", request).await.unwrap();
    (response.status().as_u16(), within("its body", response.text()).await.unwrap())
}

async fn post(server: &Server, path: &str, body: Value) -> (u16, Value) {
    let url = format!("http://127.0.0.1:{}{path}", server.port);
    let request = http_client().post(url).bearer_auth(server.key()).json(&body).send();
    let response = within("an answer", request).await.unwrap();
    let status = response.status().as_u16();
    (status, within("its body", response.json()).await.unwrap())
}

/// Has a device complete a task, and returns its id.
async fn complete_a_task(server: &Server) -> String {
    let mut device = server.raw_device("d").await;
    let task = json!({"device": "d", "task_name": "kept", "request": plan("echo")});
    let (status, task) = post(server, "/api/v1/tasks", task).await;
    assert_eq!(status, 201, "{task}");
    let command = device.expect("command").await;
    device.answer_well(&command).await;
    device.expect("task_end").await;
    task["id"].as_str().unwrap().to_owned()
}

async fn shows(server: &Server, id: &str) {
    let (status, text) = get(server, &format!("/api/v1/tasks/{id}")).await;
    assert_eq!(status, 200, "{text}");
    let task: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&task["state"], &task["task_name"]), (&json!("completed"), &json!("kept")));
    assert_eq!(task["steps"][0]["actions"][0]["result"]["stdout"], "ok");
    let (_, result) = get(server, "/api/task_result/kept").await;
    assert!(result.starts_with(r#"{"status":"done","result":[{"request":"#), "{result}");
}

async fn stop(server: Server) -> Done {
    server.process.signal(Signal::TERM);
    server.process.done().await
}

#[tokio::test]
async fn a_task_is_known_after_its_server_stopped_or_was_killed() {
    let mut server = Server::start().await;
    let id = complete_a_task(&server).await;
    server.process.kill().await;
    let mut again = server.start_again().await;
    shows(&again, &id).await;
    again.process.signal(Signal::TERM);
    again.process.ended().await;
    let third = again.start_again().await;
    shows(&third, &id).await;
    assert_eq!(get(&third, "/readyz").await, (200, "ready".to_owned()));
}

#[tokio::test]
async fn a_second_server_on_the_same_state_folder_is_refused_with_the_remedy() {
    let server = Server::start().await;
    // Also where the tasks are kept elsewhere: the keys and the audit log are the folder's.
    for tasks in [&[][..], &["--memory"], &["--data", "elsewhere"]] {
        let done = server.run(&[&["serve", "--port", "0"], tasks].concat()).await;
        assert_eq!(done.code, 2, "{done:?}");
        assert!(done.stderr.contains("another server uses"), "{done:?}");
        assert!(done.stderr.contains("--state-dir"), "{done:?}");
    }
}

#[tokio::test]
async fn with_memory_nothing_is_left_on_the_disk() {
    let server = Server::start_with(&["--memory"]).await;
    complete_a_task(&server).await;
    assert!(!server.state_file("data").exists());
    let done = server.run(&["backup", "copy"]).await;
    assert_eq!(done.code, 4, "{done:?}");
    assert!(done.stderr.contains("keeps nothing that could be copied"), "{done:?}");
    assert_eq!(stop(server).await.code, 0);
}

#[tokio::test]
async fn a_backup_can_be_started_with() {
    let server = Server::start().await;
    let id = complete_a_task(&server).await;
    let mut device = server.raw_device("busy").await;
    let open = json!({"device": "busy", "request": plan("echo")});
    let (_, open) = post(&server, "/api/v1/tasks", open).await;
    device.expect("command").await;
    let done = server.run(&["backup", "copy", "--json"]).await;
    assert_eq!(done.code, 0, "{done:?}");
    let made: Value = serde_json::from_str(&done.stdout).unwrap();
    assert!(made["bytes"].as_u64().unwrap() > 0, "{made}");
    let folder = made["folder"].as_str().unwrap();
    let again = server.run(&["backup", "copy"]).await;
    assert_eq!(again.code, 4, "{again:?}");
    assert!(again.stderr.contains("is not empty"), "{again:?}");

    let restored = Server::start_with(&["--data", folder]).await;
    shows(&restored, &id).await;
    let (status, text) = get(&restored, "/readyz").await;
    assert_eq!(status, 200);
    assert!(text.contains("may have lost"), "{text}");
    // What was open when the copy was made may have ended since.
    let open = open["id"].as_str().unwrap();
    let (_, text) = get(&restored, &format!("/api/v1/tasks/{open}")).await;
    let task: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(task["state"], "failed", "{task}");
    assert!(task["error"].as_str().unwrap().ends_with("the outcome is unknown"), "{task}");
    // It goes on as any other.
    complete_a_task(&restored).await;
}

#[tokio::test]
async fn a_result_that_is_damaged_is_not_shown_as_if_it_were_fine() {
    let mut server = Server::start().await;
    let mut device = server.raw_device("d").await;
    let task = json!({"device": "d", "request": plan("echo")});
    let (_, task) = post(&server, "/api/v1/tasks", task).await;
    let command = device.expect("command").await;
    let mut result = common::good_result(&command["actions"][0]["call_id"]);
    result["result"]["stdout"] = json!("x".repeat(300_000));
    device.answer(&command, json!([result])).await;
    device.expect("task_end").await;
    let id = task["id"].as_str().unwrap();
    let fine = server.run(&["task", "result", id]).await;
    assert!(fine.code == 0 && !fine.stderr.contains("damaged"), "{}", fine.stderr);
    server.process.kill().await;
    for file in std::fs::read_dir(server.state_file("data").join("payloads")).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    let server = server.start_again().await;
    for args in [&["result"][..], &["result", "--json"], &["show"], &["show", "--json"]] {
        let done = server.run(&[&["task"], args, &[id]].concat()).await;
        assert_eq!(done.code, 1, "{done:?}");
        assert!(done.stderr.contains("has lost some of what this task returned"), "{done:?}");
        assert!(done.stdout.contains("damaged"), "{done:?}");
    }
}

#[tokio::test]
async fn a_copy_that_no_server_makes_is_given_up_and_one_that_was_cut_off_is_no_store() {
    let server = Server::start().await;
    let copy = server.state_file("copy");
    let done = server.run(&["backup", copy.to_str().unwrap()]).await;
    assert_eq!(done.code, 0, "{done:?}");
    std::fs::rename(copy.join("flightdeck.db"), copy.join("flightdeck.partial")).unwrap();
    let other = Server::start().await;
    let other_folder = other.state_file("other");
    let args = ["serve", "--port", "0", "--state-dir", other_folder.to_str().unwrap()];
    let data = ["--data", copy.to_str().unwrap()];
    let done = other.run(&[&args[..], &data].concat()).await;
    assert!(done.code != 0 && done.stderr.contains("is an incomplete copy"), "{done:?}");

    server.process.signal(Signal::STOP);
    let began = std::time::Instant::now();
    let done = server.run(&["backup", "another"]).await;
    server.process.signal(Signal::CONT);
    assert_eq!(done.code, 4, "{done:?}");
    assert!(began.elapsed() < std::time::Duration::from_secs(25), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_backup_wants_an_operators_key_and_an_absolute_folder() {
    let server = Server::start().await;
    let created = server.run(&["key", "create", "--name", "g", "--role", "constellation"]).await;
    let mut command = server.command(&["backup", "copy"]);
    command.env("FLIGHTDECK_TOKEN", created.stdout.trim());
    let refused = common::Process::start(&mut command).done().await;
    assert_eq!(refused.code, 4, "{refused:?}");
    let (status, problem) = post(&server, "/api/v1/backup", json!({"folder": "copy"})).await;
    assert_eq!((status, &problem["code"]), (400, &json!("bad_folder")));
}
