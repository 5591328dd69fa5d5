//! What is pulled out from under them, and what they return too much of.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::common::within;
use crate::machine::{Fast, Machine, fast_over_stdio};

/// More than any message may have, and less than one line or event of an MCP server.
const TOO_LONG: usize = 105 << 20;

/// Calls until it works.
async fn works_again(machine: &Machine) {
    within("a call that works", async {
        while machine.call("zero", json!({})).await["status"] != "success" {}
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "installs MCP servers from npm and PyPI"]
async fn a_server_that_is_killed_in_a_call_fails_it_and_is_started_again() {
    let mut machine = Machine::with(json!({"fast": fast_over_stdio()})).await;
    let id = async || machine.value("process", json!({})).await["id"].clone();
    let first = id().await;
    let mut task = machine.start("slow", &json!({"folder": "/"}));
    task.says("1 of 3: half asleep").await;
    let number = i32::try_from(first.as_i64().unwrap()).unwrap();
    kill_process(Pid::from_raw(number).unwrap(), Signal::KILL).unwrap();
    let done = task.done().await;
    assert_eq!(done.code, 1, "{done:?}");
    let told = format!("{}{}", done.stdout, done.stderr);
    assert!(told.contains("'fast' was lost in the middle of the call"), "{told}");
    works_again(&machine).await;
    assert_ne!(id().await, first);
    machine.device.says("signal: 9").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "installs MCP servers from npm and PyPI"]
async fn a_server_that_is_stopped_and_started_again_is_found_again() {
    let mut fast = Fast::start().await;
    let machine = Machine::with(json!({"fast": fast.entry()})).await;
    assert_eq!(machine.value("zero", json!({})).await, 0);
    fast.process.kill().await;
    for _ in 0..3 {
        let error = machine.failure("zero", json!({})).await;
        assert!(error.contains("The MCP server 'fast' is not connected"), "{error}");
        assert!(error.contains("connection refused; the tool did not run"), "{error}");
    }
    let _again = Fast::start_at(fast.port).await;
    assert_eq!(machine.value("zero", json!({})).await, 0, "at once");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "installs MCP servers from npm and PyPI"]
async fn a_server_that_is_exchanged_between_two_calls_is_none_the_wiser() {
    let mut fast = Fast::start().await;
    let machine = Machine::with(json!({"fast": fast.entry()})).await;
    assert_eq!(machine.value("zero", json!({})).await, 0);
    fast.process.kill().await;
    let _again = Fast::start_at(fast.port).await;
    works_again(&machine).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "installs MCP servers from npm and PyPI"]
async fn a_result_that_fits_no_message_is_a_failure_that_names_its_size() {
    let fast = Fast::start().await;
    let servers = json!({"http": fast.entry(), "stdio": fast_over_stdio()});
    let machine = Machine::with(servers).await;
    let fits_nothing = format!("The result of {} bytes does not fit into a message", TOO_LONG + 2);
    for (namespace, length, why) in [
        ("stdio", TOO_LONG, fits_nothing.as_str()),
        ("http", TOO_LONG, fits_nothing.as_str()),
        // What is too long to be taken from the server.
        ("stdio", 3 * TOO_LONG, "it wrote a message of more than 256 MiB"),
        ("http", 3 * TOO_LONG, "or was longer than 256 MiB"),
    ] {
        let parameters = json!({"length": length});
        let error = machine.failure(&format!("{namespace}::huge"), parameters).await;
        assert!(error.contains(why), "{namespace} {length}: {error}");
        within("a call that works", async {
            while machine.call(&format!("{namespace}::zero"), json!({})).await["result"] != 0 {}
        })
        .await;
    }
}
