//! What the API tells of devices and of the server.

use std::fs;

use serde_json::{Value, json};

use crate::client::Api;
use crate::common::{Home, Peer, Server};

/// Connects as a device with these facts.
async fn device_with(server: &Server, id: &str, facts: &str) -> Peer {
    let mut device = server.peer().await;
    (device.id, device.role) = (id.to_owned(), "device");
    let metadata = json!({"platform": "linux", "system_info": "HERE"});
    let register = device.message("register", &json!({"metadata": metadata}));
    device.send(register.replace("\"HERE\"", facts)).await;
    device.expect("heartbeat").await;
    device
}

#[tokio::test]
async fn a_device_is_shown_with_its_facts_and_what_the_server_adds() {
    let home = Home::new();
    let config = home.path().join("config.toml");
    let added = r#"additional_features = ["gpu", "cli"]
        room = "2.14"
        tags = ["lab"]"#;
    fs::write(&config, format!("[devices.\"d\"]\n{added}\n")).unwrap();
    let server = Server::start_with(&["--config", config.to_str().unwrap()]).await;
    let api = Api::of(&server);
    let facts = r#"{"hostname":"h","memory_total_gb":15.50,"big":123456789012345678901234567890,
        "supported_features":["cli","gui"]}"#;
    let _device = device_with(&server, "d", facts).await;
    let _plain = server.raw_device("plain").await;
    let _galaxy = server.raw_constellation("g").await;

    let shown = api.get("/api/v1/devices/d").await;
    let device = shown.ok(200);
    for (field, value) in [
        ("id", json!("d")),
        ("platform", json!("linux")),
        ("features", json!(["cli", "gui", "gpu"])),
        ("key", json!("local")),
        ("tasks", json!([])),
    ] {
        assert_eq!(device[field], value, "{field}");
    }
    assert!(device["connected_since"].is_string(), "{device}");
    assert!(device["address"].as_str().unwrap().starts_with("127.0.0.1:"), "{device}");
    let facts = &device["facts"];
    assert_eq!(facts["custom_metadata"]["room"], "2.14");
    assert_eq!(facts["tags"], json!(["lab"]));
    for exact in [r#""memory_total_gb":15.50"#, r#""big":123456789012345678901234567890"#] {
        assert!(shown.text.contains(exact), "{}", shown.text);
    }

    let list = api.get("/api/v1/devices").await.ok(200);
    let devices = list["devices"].as_array().unwrap();
    let ids: Vec<_> = devices.iter().map(|device| device["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["d", "plain"], "devices only, by id");
    assert!(devices.iter().all(|device| device["facts"].is_null()), "a list is short");
    for id in ["g", "nobody", "%FF", ""] {
        let answer = api.get(&format!("/api/v1/devices/{id}")).await;
        let code = if id.is_empty() { "no_such_route" } else { "device_not_online" };
        answer.problem(404, code);
    }
}

#[tokio::test]
async fn a_device_of_any_name_can_be_asked_for() {
    let server = Server::start().await;
    let api = Api::of(&server);
    let _device = server.raw_device("Büro 1/PC%2").await;
    let shown = api.get("/api/v1/devices/B%C3%BCro%201%2FPC%252").await.ok(200);
    assert_eq!(shown["id"], "Büro 1/PC%2");
    let tasks = api.get("/api/v1/tasks?device=B%C3%BCro+1%2FPC%252").await.ok(200);
    assert_eq!(tasks, json!({"tasks": []}));
}

#[tokio::test]
async fn a_device_shows_when_it_was_last_heard_and_an_hour_without_a_byte_would_show() {
    let server = Server::start().await;
    let api = Api::of(&server);
    let mut device = server.raw_device("d").await;
    let liveness = async || api.get("/api/v1/devices/d").await.ok(200)["liveness"].clone();
    let before = liveness().await;
    assert!(before["silent_ms"].is_u64() && before["heartbeat_ms"].is_null(), "{before}");
    device.beat().await;
    let after = liveness().await;
    let (silent, heartbeat) = (after["silent_ms"].as_u64(), after["heartbeat_ms"].as_u64());
    assert!(silent.is_some() && silent <= heartbeat, "a heartbeat is a sign of life: {after}");
    // Time passes by itself: the ages grow until the next byte.
    while liveness().await["silent_ms"].as_u64() <= silent {}
}

#[tokio::test]
async fn a_device_shows_its_tasks_in_the_order_of_their_turns() {
    let server = Server::start().await;
    let api = Api::of(&server);
    let mut device = server.raw_device("d").await;
    let mut galaxy = server.raw_constellation("g").await;
    let plan = r#"{"commands":[{"tool_name":"t"}]}"#;
    for name in ["h1", "h2", "h3"] {
        api.submit(&json!({"device": "d", "request": plan, "task_name": name})).await;
    }
    for name in ["g1", "g2"] {
        let task =
            json!({"session_id": name, "task_name": name, "target_id": "d", "request": plan});
        galaxy.say("task", task).await;
        galaxy.expect_ack(name).await;
    }
    let shown = api.get("/api/v1/devices/d").await.ok(200);
    let tasks = shown["tasks"].as_array().unwrap().iter();
    let field = |task: &Value, name: &str| task[name].as_str().unwrap().to_owned();
    let turns: Vec<_> = tasks
        .map(|task| ["task_name", "state", "requester"].map(|name| field(task, name)))
        .collect();
    assert_eq!(
        turns,
        [
            ["h1", "running", "HTTP, key local"],
            ["h2", "queued", "HTTP, key local"],
            ["g1", "queued", "g"],
            ["h3", "queued", "HTTP, key local"],
            ["g2", "queued", "g"],
        ]
    );
    let ahead = async |name: &str| {
        let tasks = api.get(&format!("/api/v1/tasks?task_name={name}")).await.ok(200);
        tasks["tasks"][0]["ahead"].clone()
    };
    let mut places = Vec::new();
    for name in ["h1", "h2", "g1", "h3", "g2"] {
        places.push(ahead(name).await);
    }
    assert_eq!(json!(places), json!([null, 1, 2, 3, 4]));
    for name in ["h1", "h2", "g1", "h3", "g2"] {
        let command = device.expect("command").await;
        assert_eq!(command["task_name"], name);
        device.answer_well(&command).await;
        device.expect("task_end").await;
    }
}

#[tokio::test]
async fn the_server_says_what_it_is_how_much_there_is_and_its_limits() {
    let server = Server::start_with(&["--queue-per-device", "7", "--stop-grace", "1.5"]).await;
    let api = Api::of(&server);
    let (_device, _galaxy) = (server.raw_device("d").await, server.raw_constellation("g").await);
    let _silent = server.peer().await;
    for _ in 0..3 {
        api.submit_plan("d").await;
    }
    let about = api.get("/api/v1/server").await.ok(200);
    assert_eq!(about["version"], env!("CARGO_PKG_VERSION"));
    assert!(about["uptime_s"].is_u64() && about["started_at"].is_string(), "{about}");
    assert_eq!(about["keys"], json!({"shared": "local", "created": 0}));
    let counts = &about["counts"];
    for (count, value) in [
        ("devices", 1),
        ("constellations", 1),
        ("sockets", 3),
        ("tasks_running", 1),
        ("tasks_queued", 2),
    ] {
        assert_eq!(counts[count], value, "{count}: {about}");
    }
    for (limit, value) in [
        ("sessions_per_device", json!(1)),
        ("queue_per_device", json!(7)),
        ("command_timeout_s", json!(300.0)),
        ("stop_grace_s", json!(1.5)),
        ("max_message_bytes", json!(104_857_600)),
    ] {
        assert_eq!(about["limits"][limit], value, "{limit}");
    }
    let legacy = Server::start_with(&["--api-key", "given"]).await;
    let about = Api::with_key(&legacy, "given").get("/api/v1/server").await.ok(200);
    assert_eq!(about["keys"]["shared"], "legacy");
}
