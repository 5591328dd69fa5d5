//! The tools: an MCP server is killed or hangs, a command takes too long, ten thousand in a row.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::common::process::{until_gone, until_running};
use super::common::{Home, long_sleep, until};
use super::{Connected, error_of, mcp_server};

/// The process of the MCP server that answers.
async fn pid(at: &mut Connected) -> Pid {
    let result = at.until_good("pid", &json!({})).await;
    Pid::from_raw(i32::try_from(result["pid"].as_i64().unwrap()).unwrap()).unwrap()
}

/// Stops a process. Its threads stand still one after the other.
async fn stop(process: Pid) {
    kill_process(process, Signal::STOP).unwrap();
    let threads = format!("/proc/{}/task", process.as_raw_nonzero());
    let stands = |thread: std::io::Result<std::fs::DirEntry>| {
        let status = std::fs::read_to_string(thread.unwrap().path().join("status"));
        status.unwrap().contains("\nState:\tT")
    };
    until("the stop", || std::fs::read_dir(&threads).unwrap().all(stands)).await;
}

#[tokio::test]
async fn a_killed_mcp_server_fails_its_call_at_once_and_comes_back() {
    let home = Home::new();
    let mut at = Connected::start(&home, &["--mcp", &mcp_server::list(&home)]).await;
    let first = pid(&mut at).await;
    at.ask("hang", json!({})).await;
    at.ask("execute_command", json!({"command": "echo meanwhile"})).await;
    assert_eq!(at.result().await["result"]["stdout"], "meanwhile\n");
    kill_process(first, Signal::KILL).unwrap();
    let failed = at.result().await;
    assert!(error_of(&failed).contains("odd"), "it is named: {failed}");
    assert_ne!(pid(&mut at).await, first);
    assert_eq!(at.device.stderr().matches("connected to").count(), 1);
}

#[tokio::test]
async fn an_mcp_server_that_hangs_fails_its_calls_in_time_and_nothing_else() {
    let home = Home::new();
    let args = ["--mcp", &mcp_server::list(&home), "--mcp-call-timeout", "1"];
    let mut at = Connected::start(&home, &args).await;
    let server = pid(&mut at).await;
    stop(server).await;
    let failed = at.call("pid", json!({})).await;
    assert!(error_of(&failed).contains("1 s"), "{failed}");
    assert_eq!(at.prints("echo fine").await, "fine\n");
    kill_process(server, Signal::CONT).unwrap();
    pid(&mut at).await;
}

#[tokio::test]
async fn calls_that_hang_at_an_mcp_server_hold_up_no_other_tool() {
    let home = Home::new();
    let args = ["--mcp", &mcp_server::list(&home), "--parallel-commands", "2"];
    let mut at = Connected::start(&home, &args).await;
    pid(&mut at).await;
    for _ in 0..5 {
        at.ask("hang", json!({})).await;
    }
    for tool in ["list_tools", "get_system_info"] {
        assert_eq!(at.call(tool, json!({})).await["status"], "success", "{tool}");
    }
    assert_eq!(at.prints("echo fine").await, "fine\n");
}

#[tokio::test]
async fn a_command_that_takes_too_long_is_killed_with_all_it_started() {
    let home = Home::new();
    let mut at = Connected::start(&home, &["--max-command-time", "2"]).await;
    let (child, daemon) = (long_sleep(), long_sleep());
    let line = format!("echo begun; setsid {daemon} & {child}");
    at.ask("execute_command", json!({"command": line, "timeout": 3600})).await;
    until_running(&daemon).await;
    let failed = at.result().await;
    assert!(
        error_of(&failed)
            .starts_with("Timed out after 2 s (this device's max_command_time) and was stopped"),
        "{failed}"
    );
    assert!(error_of(&failed).contains("begun"), "{failed}");
    until_gone(&child).await;
    until_gone(&daemon).await;
    assert_eq!(at.prints("echo fine").await, "fine\n");
}

/// Commands in a row.
const MANY: usize = 10_000;

/// Commands after which a device has all the memory that it will need.
const WARM: usize = 1_000;

/// What the allocator may keep more at one moment than at another, in bytes.
const NOISE: u64 = 1024 * 1024;

/// One of each kind of tool, in turn.
fn nth(n: usize, file: &str) -> (&'static str, Value) {
    match n % 4 {
        0 => ("execute_command", json!({"command": format!("echo {n}")})),
        1 => ("get_system_info", json!({})),
        2 => ("read_file", json!({"path": file})),
        _ => ("say", json!({"text": format!("number {n}")})),
    }
}

#[tokio::test]
async fn ten_thousand_commands_in_a_row_take_no_more_memory_than_one_thousand() {
    let (home, root) = (Home::new(), Home::new());
    std::fs::write(root.path().join("file"), "x".repeat(10_000)).unwrap();
    let args = ["--mcp", &mcp_server::list(&home), "--root", root.path().to_str().unwrap()];
    let mut at = Connected::start(&home, &args).await;
    pid(&mut at).await;
    let mut warm = 0;
    for n in 0..MANY {
        let (tool, parameters) = nth(n, "file");
        let result = at.call(tool, parameters).await;
        assert_eq!(result["status"], "success", "{tool}: {result}");
        if n == WARM {
            warm = at.device.memory("RssAnon");
        }
    }
    let (end, all) = (at.device.memory("RssAnon"), at.device.memory("VmRSS"));
    println!("{WARM}: {warm} bytes, {MANY}: {end} bytes, with files {all} bytes");
    assert!(end <= warm + NOISE, "{warm} bytes after {WARM} commands, {end} after {MANY}");
}
