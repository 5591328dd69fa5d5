//! UFO's routes, beyond what the table in `conformance` says of them.

use serde_json::json;

use crate::client::{Api, TOO_LARGE};
use crate::common::{Server, plan};

#[tokio::test]
async fn a_result_can_be_had_long_after_until_its_task_is_forgotten() {
    let server =
        Server::start_with(&["--memory", "--history-tasks", "20", "--unfetched-bytes", "0"]).await;
    let (api, mut device) = (Api::of(&server), server.raw_device("d").await);
    let dispatch = json!({"client_id": "d", "request": plan("pwd"), "task_name": "first"});
    let dispatched = api.post("/api/dispatch", dispatch.to_string()).await.ok(200);
    let command = device.expect("command").await;
    assert_eq!(command["session_id"], dispatched["session_id"]);
    device.answer_well(&command).await;
    device.expect("task_end").await;
    let first = || api.get("/api/task_result/first");
    let result = first().await.ok(200);
    assert_eq!(result["status"], "done");
    assert_eq!(result["result"][0]["result"][0][0]["result"]["stdout"], "ok");

    device.close().await;
    let mut other = server.raw_device("other").await;
    for n in 0..20 {
        assert_eq!(first().await.ok(200), result, "after {n} others");
        let failing = json!({"device": "other", "request": "?", "task_name": "second"});
        let task = crate::client::id(&api.submit(&failing).await);
        other.expect("task_end").await;
        api.end_of(&task).await;
    }
    assert_eq!(first().await.ok(200), json!({"status": "pending"}), "it was forgotten");
    let failed = api.get("/api/task_result/second").await.ok(200);
    assert_eq!(failed, json!({"status": "done", "result": [{"request": "?", "result": []}]}));
}

#[tokio::test]
async fn a_dispatch_that_no_queue_takes_or_nobody_can_read_is_told_so_as_ufo_does() {
    let server =
        Server::start_with(&["--queue-per-device", "0", "--max-request-bytes", "1000"]).await;
    let (api, _device) = (Api::of(&server), server.raw_device("d").await);
    let dispatch = |request: &str| json!({"client_id": "d", "request": request}).to_string();
    api.post("/api/dispatch", dispatch(&plan("pwd"))).await.ok(200);
    for (body, status) in [
        (dispatch(&plan("pwd")), 503),
        (dispatch(&"x".repeat(1001)), 413),
        ("x".repeat(TOO_LARGE), 413),
    ] {
        let told = api.post("/api/dispatch", body).await.ok(status);
        assert!(told["detail"].is_string(), "{told}");
    }
    for body in ["", "{oops", "[1]", r#"{"client_id":"d","request":1e999}"#] {
        let told = api.post("/api/dispatch", body).await.ok(422);
        assert_eq!(told["detail"][0]["loc"], json!(["body"]), "{told}");
    }
    assert_eq!(api.get("/api/task_result/%FF").await.ok(200), json!({"status": "pending"}));
}
