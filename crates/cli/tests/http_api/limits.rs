//! Requests that are too large, too slow or never read, and what HTTP/1.1 allows beside.

use serde_json::json;

use crate::client::{Api, Raw, TOO_LARGE};
use crate::common::{Server, plan, until};

const TASKS: &str = "POST /api/v1/tasks";

#[tokio::test]
async fn several_requests_in_one_go_are_answered_in_their_order() {
    let server = Server::start().await;
    let mut raw = Raw::connect(&server).await;
    for _ in 0..2 {
        let requests = ["GET /healthz", "GET /api/v1/tasks", "GET /nope", "GET /readyz"];
        let requests: String = requests.iter().map(|line| raw.head(line, &[])).collect();
        raw.write(requests).await;
        assert_eq!(raw.answer().await, (200, "ok".to_owned()));
        assert_eq!(raw.answer().await, (200, r#"{"tasks":[]}"#.to_owned()));
        assert_eq!(raw.answer().await, (404, r#"{"detail":"Not Found"}"#.to_owned()));
        assert_eq!(raw.answer().await, (200, "ready".to_owned()));
    }
}

#[tokio::test]
async fn a_body_is_asked_for_before_it_is_sent_and_may_come_in_pieces() {
    let server = Server::start().await;
    let (_device, mut raw) = (server.raw_device("d").await, Raw::connect(&server).await);
    let body = json!({"device": "d", "request": plan("pwd")}).to_string();
    let length = format!("Content-Length: {}", body.len());
    let head = raw.head(TASKS, &["Expect: 100-continue", &length]);
    raw.write(head).await;
    assert_eq!(raw.answer().await, (100, String::new()));
    raw.write(&body).await;
    assert_eq!(raw.answer().await.0, 201);

    let head = raw.head(TASKS, &["Transfer-Encoding: chunked"]);
    raw.write(head).await;
    for piece in body.as_bytes().chunks(7) {
        let piece = std::str::from_utf8(piece).unwrap();
        raw.write(format!("{:x}\r\n{piece}\r\n", piece.len())).await;
    }
    raw.write("0\r\n\r\n").await;
    assert_eq!(raw.answer().await.0, 201);
}

#[tokio::test]
async fn a_body_that_nobody_is_allowed_to_send_is_not_asked_for() {
    let server = Server::start().await;
    let mut raw = Raw::connect(&server).await;
    let head = raw.head(TASKS, &["Expect: 100-continue", "Content-Length: 1000"]);
    raw.write(head.replace(&server.key(), "wrong")).await;
    assert_eq!(raw.answer().await.0, 401);
}

#[tokio::test]
async fn what_is_too_large_is_refused() {
    let server = Server::start_with(&["--max-request-bytes", "1000"]).await;
    let _device = server.raw_device("d").await;
    let mut raw = Raw::connect(&server).await;
    let head = raw.head(TASKS, &["Content-Length: 100000000"]);
    raw.write(head + &"x".repeat(TOO_LARGE)).await;
    let (status, told) = raw.answer().await;
    assert!(status == 413 && told.contains("body_too_large"), "{status} {told}");

    let mut raw = Raw::connect(&server).await;
    let head = raw.head(TASKS, &["Transfer-Encoding: chunked"]);
    raw.write(format!("{head}{TOO_LARGE:x}\r\n{}", "x".repeat(TOO_LARGE))).await;
    assert_eq!(raw.answer().await.0, 413);

    let mut raw = Raw::connect(&server).await;
    let head = raw.head(TASKS, &["Transfer-Encoding: chunked"]);
    raw.write(format!("{head}this is no length\r\n")).await;
    let (status, told) = raw.answer().await;
    assert!(status == 400 && told.contains("body_unreadable"), "{status} {told}");

    for long in [format!("X-Long: {}", "x".repeat(20_000)), "X: y\r\n".repeat(200)] {
        let mut raw = Raw::connect(&server).await;
        let head = raw.head("GET /healthz", &[&long]);
        raw.write(head).await;
        assert_eq!(raw.answer().await.0, 431);
        raw.end().await;
    }
    let mut raw = Raw::connect(&server).await;
    let head = raw.head(&format!("GET /{}", "x".repeat(20_000)), &[]);
    raw.write(head).await;
    assert!([414, 431].contains(&raw.answer().await.0));
}

#[tokio::test]
async fn what_is_too_slow_is_cut() {
    let server = Server::start_with(&["--body-timeout", "0.1", "--header-timeout", "0.1"]).await;
    let mut raw = Raw::connect(&server).await;
    let head = raw.head(TASKS, &["Content-Length: 1000"]);
    raw.write(head + "{").await;
    let (status, told) = raw.answer().await;
    assert!(status == 408 && told.contains("body_too_slow"), "{status} {told}");
    raw.end().await;

    let mut raw = Raw::connect(&server).await;
    let head = raw.head("GET /healthz", &[]);
    raw.write(&head[..20]).await;
    assert_eq!(raw.end().await, 0, "half a head has no answer");
    let mut silent = Raw::connect(&server).await;
    assert_eq!(silent.end().await, 0, "nor has silence");
}

#[tokio::test]
async fn who_does_not_read_a_large_answer_is_cut_and_its_memory_comes_back() {
    const BYTES: usize = 30 << 20;
    const READERS: usize = 6;
    let args = ["--write-timeout", "0.2", "--log", "server::front=debug"];
    let mut server = Server::start_with(&args).await;
    let (api, mut device) = (Api::of(&server), server.raw_device("d").await);
    let task = api.submit_plan("d").await;
    let command = device.expect("command").await;
    let result = json!({"status": "success", "result": "x".repeat(BYTES),
        "call_id": command["actions"][0]["call_id"]});
    device.answer(&command, json!([result])).await;
    device.expect("task_end").await;
    api.end_of(&task).await;

    let before = server.memory();
    let mut deaf = Vec::new();
    for _ in 0..READERS {
        let mut raw = Raw::connect(&server).await;
        let head = raw.head(&format!("GET /api/v1/tasks/{task}"), &[]);
        raw.write(head).await;
        deaf.push(raw);
    }
    server.process.says_times("an HTTP connection ended early", READERS).await;
    let bound = before + 2 * BYTES as u64;
    until("the memory back", || server.memory() < bound).await;
    for raw in &mut deaf {
        let read = raw.end().await;
        assert!(read < BYTES, "{read} bytes came");
    }
    assert_eq!(api.task(&task).await["state"], "completed", "who reads is served");
}
