//! A FastMCP server, over HTTP and over stdio.

use rustix::process::Signal;
use serde_json::json;

use crate::common::until;
use crate::machine::{Fast, Machine, action, fast_over_stdio};

/// Calls each tool of the server.
async fn every_kind_of_result_arrives_as_it_is(machine: &Machine) {
    for (tool, parameters, value) in [
        ("integer", json!({}), json!(7)),
        ("no", json!({}), json!(false)),
        ("zero", json!({}), json!(0)),
        ("empty", json!({}), json!("")),
        ("no_items", json!({}), json!([])),
        ("table", json!({}), json!({"result": 1, "falsy": [false, 0, "", null]})),
        ("none", json!({}), json!([])),
        ("text", json!({}), json!("two\nlines")),
        ("untyped", json!({"kind": "table"}), json!({"a": 1})),
        ("untyped", json!({"kind": "none"}), json!([])),
    ] {
        let result = machine.call(tool, parameters.clone()).await;
        assert_eq!(result["status"], "success", "{tool}: {result}");
        assert_eq!(result["result"], value, "{tool} {parameters}");
        assert_eq!(result["namespace"], "fast");
    }
    let picture = machine.value("picture", json!({})).await;
    assert_eq!(
        (&picture[0]["type"], &picture[0]["mimeType"]),
        (&json!("image"), &json!("image/png"))
    );
    assert!(picture[0]["data"].as_str().unwrap().starts_with("iVBORw0KGgo"), "{picture}");
    let error = machine.failure("fails", json!({})).await;
    assert!(error.contains("no such row"), "{error}");
    let error = machine.failure("untyped", json!({})).await;
    assert!(error.contains("kind"), "it says what is missing: {error}");
}

/// A task that is cancelled while its tool tells how far it is.
async fn a_cancelled_call_is_cancelled_in_the_tool(machine: &Machine) {
    let folder = machine.home.path();
    let mut task = machine.start("slow", &json!({"folder": folder}));
    task.says("1 of 3: half asleep").await;
    task.signal(Signal::INT);
    assert_eq!(task.done().await.code, 3);
    let file = folder.join("cancelled");
    until("the end of the tool", || file.exists()).await;
    assert_eq!(machine.value("zero", json!({})).await, 0, "it goes on");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "installs MCP servers from npm and PyPI"]
async fn every_kind_of_result_arrives_as_it_is_over_http() {
    let fast = Fast::start().await;
    let machine = Machine::with(json!({"fast": fast.entry()})).await;
    every_kind_of_result_arrives_as_it_is(&machine).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "installs MCP servers from npm and PyPI"]
async fn every_kind_of_result_arrives_as_it_is_over_stdio() {
    let machine = Machine::with(json!({"fast": fast_over_stdio()})).await;
    every_kind_of_result_arrives_as_it_is(&machine).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "installs MCP servers from npm and PyPI"]
async fn a_cancelled_task_ends_its_tool_over_http() {
    let fast = Fast::start().await;
    let machine = Machine::with(json!({"fast": fast.entry()})).await;
    a_cancelled_call_is_cancelled_in_the_tool(&machine).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "installs MCP servers from npm and PyPI"]
async fn a_cancelled_task_ends_its_tool_over_stdio() {
    let machine = Machine::with(json!({"fast": fast_over_stdio()})).await;
    a_cancelled_call_is_cancelled_in_the_tool(&machine).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "installs MCP servers from npm and PyPI"]
async fn one_server_serves_all_tasks() {
    let fast = Fast::start().await;
    let servers = json!({"http": fast.entry(), "stdio": fast_over_stdio()});
    let machine = Machine::with(servers).await;
    let both = json!([action("http::process", &json!({})), action("stdio::process", &json!({}))]);
    let first = machine.values(&both).await;
    assert!(first.iter().all(|process| process["listed"] == 1), "{first:?}");
    assert_ne!(first[0]["id"], first[1]["id"]);
    assert_eq!(machine.values(&both).await, first);
}
