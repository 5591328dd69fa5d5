//! What each key opens over HTTP.

use serde_json::json;

use crate::client::Api;
use crate::common::{Server, within};

/// Creates a key that the server takes.
async fn key(server: &Server, args: &[&str]) -> Api {
    let done = server.run(&[&["key", "create"], args].concat()).await;
    assert_eq!(done.code, 0, "{}", done.stderr);
    let api = Api::with_key(server, done.stdout.trim());
    let taken = async { while api.get("/api/v1/tasks").await.status == 401 {} };
    within("the new key", taken).await;
    api
}

#[tokio::test]
async fn each_key_sees_its_own_tasks_and_devices_and_an_operator_sees_all() {
    let server = Server::start().await;
    let operator = key(&server, &["--name", "ops", "--role", "operator"]).await;
    let one = key(&server, &["--name", "one", "--role", "constellation", "--target", "a*"]).await;
    let two = key(&server, &["--name", "two", "--role", "constellation"]).await;
    let _devices = (server.raw_device("a1").await, server.raw_device("b1").await);
    let mine = one.submit_plan("a1").await;
    let yours = two.submit_plan("b1").await;
    let plan = json!({"device": "b1", "request": "?"}).to_string();
    one.post("/api/v1/tasks", plan).await.problem(403, "not_allowed");

    let list = async |api: &Api, what: &str| {
        let list = api.get(&format!("/api/v1/{what}")).await.ok(200);
        let ids = list[what].as_array().unwrap().iter().map(crate::client::id);
        ids.collect::<Vec<_>>()
    };
    assert_eq!(list(&one, "tasks").await, [&*mine]);
    assert_eq!(list(&two, "tasks").await, [&*yours]);
    assert_eq!(list(&operator, "tasks").await, [&*yours, &*mine]);
    assert_eq!(list(&one, "devices").await, ["a1"]);
    assert_eq!(list(&two, "devices").await, ["a1", "b1"]);
    one.get("/api/v1/devices/b1").await.problem(404, "device_not_online");

    let path = format!("/api/v1/tasks/{yours}");
    one.get(&path).await.problem(404, "task_not_found");
    one.get(&format!("{path}/wait")).await.problem(404, "task_not_found");
    one.cancel(&yours).await.problem(404, "task_not_found");
    assert_eq!(two.task(&yours).await["state"], "running");
    for path in ["/api/v1/server", "/metrics"] {
        one.get(path).await.problem(403, "not_allowed");
        assert_eq!(operator.get(path).await.status, 200, "{path}");
    }
    operator.cancel(&yours).await.ok(202);
    assert_eq!(two.end_of(&yours).await["error"], "Task was cancelled by 'ops': not_confirmed");
}

#[tokio::test]
async fn a_devices_key_opens_no_route_and_a_key_in_the_address_opens_all() {
    let server = Server::start().await;
    let done = server.run(&["key", "create", "--name", "d", "--role", "device"]).await;
    let device = Api::with_key(&server, done.stdout.trim());
    let taken = async { while device.get("/api/v1/tasks").await.status == 401 {} };
    within("the new key", taken).await;
    for path in ["/api/v1/tasks", "/api/v1/devices", "/api/v1/server", "/metrics"] {
        device.get(path).await.problem(403, "not_allowed");
    }
    assert!(device.get("/api/clients").await.ok(403)["detail"].is_string());

    let (api, nobody) = (Api::of(&server), Api::with_key(&server, "wrong"));
    let (_device, key) = (server.raw_device("d").await, server.key());
    let task = api.submit_plan("d").await;
    for path in [
        "/api/v1/tasks?",
        "/api/v1/tasks?limit=1&",
        &format!("/api/v1/tasks/{task}?"),
        &format!("/api/v1/tasks/{task}/wait?timeout_s=0&"),
        "/api/v1/devices?",
        "/api/v1/server?",
    ] {
        nobody.get(&format!("{path}token={key}")).await.ok(200);
        nobody.get(&format!("{path}token=wrong")).await.problem(401, "invalid_key");
    }
}
