//! Tasks that are sent again with an `Idempotency-Key`.

use serde_json::{Value, json};

use crate::client::{Answer, Api, id};
use crate::common::{Server, plan};

fn body(text: &str) -> String {
    json!({"device": "d", "request": plan(text)}).to_string()
}

async fn submit(api: &Api, key: &str, text: &str) -> Answer {
    let request = api.request("POST", "/api/v1/tasks").header("Idempotency-Key", key);
    api.send(request.body(body(text))).await
}

async fn count(api: &Api) -> usize {
    api.get("/api/v1/tasks").await.ok(200)["tasks"].as_array().unwrap().len()
}

#[tokio::test]
async fn a_task_that_is_sent_again_is_the_same_also_after_a_restart() {
    let mut server = Server::start().await;
    let (api, mut device) = (Api::of(&server), server.raw_device("d").await);
    let first = submit(&api, "order-1", "echo a").await;
    let task = first.ok(201);
    let again = submit(&api, "order-1", "echo a").await;
    assert_eq!(again.ok(201)["id"], task["id"], "while it runs");
    assert_eq!(again.header("location"), first.header("location"));
    let command = device.expect("command").await;
    device.answer_well(&command).await;
    device.expect("task_end").await;
    let over = submit(&api, "order-1", "echo a").await.ok(201);
    assert_eq!((&over["id"], &over["state"]), (&task["id"], &json!("completed")));
    let other = submit(&api, "order-1", "echo b").await.problem(422, "idempotency_key_used");
    assert!(other.contains("'order-1' was used for another task"), "{other}");

    server.process.kill().await;
    let server = server.start_again().await;
    let api = Api::of(&server);
    // Nobody is there to run it, and nobody has to be.
    let known = submit(&api, "order-1", "echo a").await.ok(201);
    assert_eq!((&known["id"], &known["state"]), (&task["id"], &json!("completed")));
    submit(&api, "order-1", "echo b").await.problem(422, "idempotency_key_used");
    submit(&api, "order-2", "echo a").await.problem(404, "device_not_online");
    assert_eq!(count(&api).await, 1);
}

#[tokio::test]
async fn of_many_that_are_sent_at_once_one_runs() {
    let server = Server::start().await;
    let (api, mut device) = (Api::of(&server), server.raw_device("d").await);
    let sent = (0..8).map(|_| submit(&api, "once", "echo"));
    let ids: Vec<Value> = futures_util::future::join_all(sent)
        .await
        .iter()
        .map(|sent| sent.ok(201)["id"].clone())
        .collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let command = device.expect("command").await;
    device.answer_well(&command).await;
    device.expect("task_end").await;
    device.beat().await;
    assert_eq!(count(&api).await, 1);
}

#[tokio::test]
async fn each_key_has_its_own_names_for_its_tasks() {
    let mut server = Server::start().await;
    let _device = server.raw_device("d").await;
    let mut ids = Vec::new();
    for name in ["one", "two"] {
        let made = server.run(&["key", "create", "--name", name, "--role", "constellation"]).await;
        server.process.says_times("the created keys have changed", ids.len() + 1).await;
        let api = Api::with_key(&server, made.stdout.trim());
        let task = id(&submit(&api, "same", name).await.ok(201));
        assert_eq!(id(&submit(&api, "same", name).await.ok(201)), task);
        ids.push(task);
    }
    assert_ne!(ids[0], ids[1]);
}

#[tokio::test]
async fn a_name_that_is_none_is_refused_and_so_are_two() {
    let server = Server::start().await;
    let (api, _device) = (Api::of(&server), server.raw_device("d").await);
    for bad in ["", "tab\there", &"x".repeat(257)] {
        let why = submit(&api, bad, "echo").await.problem(400, "bad_task");
        assert!(why.starts_with("Idempotency-Key: "), "{bad:?}: {why}");
    }
    let two = api.request("POST", "/api/v1/tasks").header("Idempotency-Key", "a");
    let two = api.send(two.header("Idempotency-Key", "b").body(body("echo"))).await;
    two.problem(400, "bad_task");
    assert_eq!(count(&api).await, 0);
    submit(&api, &"x".repeat(256), "echo").await.ok(201);
}

#[tokio::test]
async fn a_task_that_was_refused_leaves_its_name_free() {
    let server = Server::start().await;
    let api = Api::of(&server);
    submit(&api, "later", "echo").await.problem(404, "device_not_online");
    let _device = server.raw_device("d").await;
    submit(&api, "later", "echo").await.ok(201);
}
