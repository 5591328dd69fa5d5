//! What every route has: its methods, its errors, its headers.

use serde_json::{Value, json};

use crate::client::Api;
use crate::common::Server;

#[tokio::test]
async fn what_there_is_not_is_told_in_the_form_of_its_neighbours() {
    let server = Server::start().await;
    let api = Api::of(&server);
    for path in [
        "/api/v1",
        "/api/v1/",
        "/api/v1/nope",
        "/api/v1/tasks/",
        "/api/v1/devices/d/",
        "/api/v1/devices/d/facts",
        "/api/v1/%74asks",
        "/api/v1//tasks",
        "/api/v1/tasks/x/wait/",
    ] {
        let answer = api.get(path).await;
        assert!(answer.problem(404, "no_such_route").contains("/api/docs"), "{path}");
    }
    for path in ["/", "/nope", "/api", "/api/clients/", "/API/v1/tasks", "/healthz/"] {
        assert_eq!(api.get(path).await.ok(404), json!({"detail": "Not Found"}), "{path}");
    }
}

#[tokio::test]
async fn the_wrong_method_is_told_which_ones_there_are() {
    let server = Server::start().await;
    let api = Api::of(&server);
    for (method, path, allowed) in [
        ("DELETE", "/api/v1/tasks", "GET,HEAD,POST"),
        ("PUT", "/api/v1/tasks/x", "GET,HEAD"),
        ("GET", "/api/v1/tasks/x/cancel", "POST"),
        ("POST", "/api/v1/tasks/x/wait", "GET,HEAD"),
        ("POST", "/api/v1/devices", "GET,HEAD"),
        ("PATCH", "/api/v1/server", "GET,HEAD"),
        ("OPTIONS", "/api/v1/tasks", "GET,HEAD,POST"),
    ] {
        let answer = api.send(api.request(method, path)).await;
        answer.problem(405, "method_not_allowed");
        assert_eq!(answer.header("allow"), allowed, "{method} {path}");
    }
    for (method, path, allowed) in [
        ("POST", "/api/clients", "GET,HEAD"),
        ("GET", "/api/dispatch", "POST"),
        ("POST", "/metrics", "GET,HEAD"),
        ("POST", "/healthz", "GET,HEAD"),
        ("POST", "/ws", "GET,HEAD"),
    ] {
        let answer = api.send(api.request(method, path)).await;
        assert_eq!(answer.ok(405), json!({"detail": "Method Not Allowed"}), "{method} {path}");
        assert_eq!(answer.header("allow"), allowed, "{method} {path}");
    }
}

#[tokio::test]
async fn a_head_is_a_get_without_its_body() {
    let server = Server::start().await;
    let (api, mut device) = (Api::of(&server), server.raw_device("d").await);
    let task = api.submit_plan("d").await;
    device.expect("command").await;
    for path in [
        "/api/v1/tasks",
        &format!("/api/v1/tasks/{task}"),
        &format!("/api/v1/tasks/{task}/wait?timeout_s=0"),
        "/api/v1/tasks/nope",
        "/healthz",
        "/api/clients",
        "/api/openapi.json",
        "/api/docs/",
    ] {
        let (get, head) = (api.get(path).await, api.send(api.request("HEAD", path)).await);
        assert_eq!((head.status, &*head.text), (get.status, ""), "{path}");
        for header in ["content-type", "content-length", "cache-control"] {
            assert_eq!(head.header(header), get.header(header), "{path}: {header}");
        }
    }
}

#[tokio::test]
async fn no_answer_is_kept_by_anybody_or_taken_for_something_else() {
    let server = Server::start().await;
    let api = Api::of(&server);
    let wrong = Api::with_key(&server, "wrong");
    let strange = api.request("GET", "/api/v1/tasks").header("Origin", "http://elsewhere.example");
    let answers = [
        api.get("/api/v1/tasks").await,
        api.get("/api/v1/nope").await,
        api.get("/nope").await,
        api.get("/healthz").await,
        api.get("/metrics").await,
        api.get("/api/clients").await,
        api.get("/api/task_result/x").await,
        api.post("/api/v1/tasks", "{").await,
        api.send(api.request("DELETE", "/api/v1/tasks")).await,
        wrong.get("/api/v1/tasks").await,
        wrong.get("/api/clients").await,
        wrong.get("/ws").await,
        api.send(strange).await,
    ];
    for answer in answers {
        assert_eq!(answer.header("cache-control"), "no-store", "{answer:?}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{answer:?}");
    }
}

#[tokio::test]
async fn every_route_that_is_described_is_there_and_wants_a_key_if_it_says_so() {
    let server = Server::start().await;
    let (api, nobody) = (Api::of(&server), Api::with_key(&server, "wrong"));
    let description: Value =
        serde_json::from_str(&api.get("/api/openapi.json").await.text).unwrap();
    let committed: Value =
        serde_json::from_str(include_str!("../../../../docs/openapi.json")).unwrap();
    assert!(description == committed, "what is served is not what is in the docs");
    for (path, item) in description["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let filled = path.replace("{id}", "x").replace("{task_name}", "x");
            let method = method.to_uppercase();
            let refused = nobody.send(nobody.request(&method, &filled)).await.status;
            let is_open = operation["security"] == json!([{}]);
            assert_eq!(refused == 401, !is_open, "{method} {path}: {refused}");
            let answer = api.send(api.request(&method, &filled)).await;
            let status = answer.status.to_string();
            let described = &operation["responses"][&status]["content"];
            if described.is_null() && status == "204" {
                assert_eq!(answer.text, "", "{method} {path}: it has no body");
                continue;
            }
            let kind = answer.header("content-type");
            assert!(
                described.get(kind).or_else(|| described.get(kind.split(';').next()?)).is_some(),
                "{method} {path}: {answer:?}"
            );
        }
    }
}
