//! `server-everything` and `server-filesystem`, over stdio.

use std::fs;

use serde_json::{Value, json};

use crate::common::Home;
use crate::machine::{Machine, everything, filesystem};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "installs MCP servers from npm and PyPI"]
async fn everything_that_server_everything_returns_arrives() {
    let machine = Machine::with(json!({"everything": everything()})).await;
    let echoed = machine.value("echo", json!({"message": "hello"})).await;
    assert_eq!(echoed, "Echo: hello");
    let weather = machine.value("get-structured-content", json!({"location": "New York"})).await;
    assert_eq!(weather["conditions"], "Cloudy", "{weather}");

    let blocks = machine.value("get-tiny-image", json!({})).await;
    let picture = blocks.as_array().unwrap().iter().find(|block| block["type"] == "image");
    let picture = picture.unwrap();
    assert_eq!(picture["mimeType"], "image/png");
    assert!(picture["data"].as_str().unwrap().starts_with("iVBORw0KGgo"), "base64 of a PNG");

    let error = machine.failure("get-sum", json!({"a": "one", "b": 2})).await;
    assert!(error.contains("get-sum") && error.contains("number"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "installs MCP servers from npm and PyPI"]
async fn a_server_gets_its_variables_and_nothing_else_of_the_devices() {
    let servers = json!({"everything": {"command": everything()["command"],
        "env": {"API_KEY": "${MY_KEY}", "REGION": "${MY_REGION:-north}"}}});
    let env = [("MY_KEY", "5ecret"), ("OTHER_SECRET", "hunter2")];
    let machine = Machine::with_env(servers, &env).await;
    let said = machine.value("get-env", json!({})).await;
    let env: Value = serde_json::from_str(said.as_str().unwrap()).unwrap();
    assert_eq!((&env["API_KEY"], &env["REGION"]), (&json!("5ecret"), &json!("north")));
    for name in ["MY_KEY", "OTHER_SECRET", "FLIGHTDECK_TOKEN"] {
        assert!(env[name].is_null(), "{name}: {env}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "installs MCP servers from npm and PyPI"]
async fn what_a_server_tells_on_the_way_reaches_whoever_waits() {
    let machine = Machine::with(json!({"everything": everything()})).await;
    let parameters = json!({"duration": 1, "steps": 2});
    let done = machine.start("trigger-long-running-operation", &parameters).done().await;
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stderr.contains("1 of 2"), "{done:?}");
    assert!(done.stdout.contains("completed"), "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "installs MCP servers from npm and PyPI"]
async fn server_filesystem_reads_and_writes_in_its_folder_alone() {
    let folder = Home::new();
    let machine = Machine::with(json!({"fs": filesystem(folder.path())})).await;
    let file = folder.path().join("note");
    machine.value("fs::write_file", json!({"path": file, "content": "two\nlines"})).await;
    assert_eq!(fs::read_to_string(&file).unwrap(), "two\nlines");
    let read = machine.value("read_text_file", json!({"path": file})).await;
    assert_eq!(read["content"], "two\nlines");
    let error = machine.failure("read_text_file", json!({"path": "/etc/hostname"})).await;
    assert!(error.contains("outside allowed directories"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "installs MCP servers from npm and PyPI"]
async fn a_server_that_is_not_trusted_is_not_called_where_nobody_can_be_asked() {
    let folder = Home::new();
    let mut server = filesystem(folder.path());
    server["trusted"] = json!(false);
    let machine = Machine::with(json!({"fs": server})).await;
    let file = folder.path().join("note");
    let error = machine.failure("fs::write_file", json!({"path": file, "content": ""})).await;
    for part in ["fs.write_file needs the owner's yes", "nobody is there to ask", "(rule: default)"]
    {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(!file.exists());
}
