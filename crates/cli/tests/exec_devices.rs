//! On which devices `exec` runs a command, in which order, and what it says of each, with real processes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use common::process::Home;
use common::{Done, Process, Server};
use serde_json::{Value, json};

const SHELL: &[&str] = &["--exec", "shell"];

/// The last line on standard error.
fn recap(done: &Done) -> &str {
    done.stderr.lines().last().unwrap_or_default()
}

/// The lines of standard output in some order that does not depend on whose was first.
fn sorted(done: &Done) -> Vec<&str> {
    let mut lines: Vec<_> = done.stdout.lines().collect();
    lines.sort_unstable();
    lines
}

/// Ends a device, and waits until its server knows.
async fn take_away(server: &Server, id: &str, mut device: Process) {
    device.kill().await;
    drop(device);
    let away = async {
        loop {
            let listed = server.run(&["devices"]).await.stdout;
            let line = listed.lines().find(|line| line.starts_with(&format!("{id} ")));
            if line.is_some_and(|line| line.contains("away")) {
                return;
            }
        }
    };
    common::within(&format!("{id} to be away"), away).await;
}

#[tokio::test]
async fn devices_are_chosen_by_patterns_tags_or_all_and_those_that_are_away_are_named() {
    let home = Arc::new(Home::new());
    let settings = "[devices.\"db\"]\ntags = [\"gpu\"]\n";
    let file = home.path().join("config.toml");
    fs::write(&file, settings).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let server = Server::start_in(home, 0, &["--config", file.to_str().unwrap()]).await;
    let tagged = [SHELL, &["--tag", "gpu,eu"]].concat();
    let _one = server.device("web-1", &tagged).await;
    let two = server.device("web-2", SHELL).await;
    let _db = server.device("db", SHELL).await;
    let listed = server.run(&["devices"]).await.stdout;
    let line = |id: &str| listed.lines().find(|line| line.starts_with(id)).unwrap();
    assert!(line("web-1").contains("tag:gpu tag:eu") && line("db").contains("tag:gpu"), "{listed}");

    let run = async |on: &[&str]| {
        let on = on.iter().flat_map(|on| ["--on", on]).collect::<Vec<_>>();
        server.run(&[&["exec"], &on[..], &["--", "echo hi"]].concat()).await
    };
    let both = run(&["web-*"]).await;
    assert_eq!((both.code, sorted(&both)), (0, vec!["[web-1] hi", "[web-2] hi"]), "{both:?}");
    assert!(recap(&both).starts_with("ok: web-"), "{both:?}");
    let tag = run(&["tag:gpu"]).await;
    assert_eq!((tag.code, sorted(&tag)), (0, vec!["[db] hi", "[web-1] hi"]), "{tag:?}");
    let twice = run(&["web-1", "tag:eu"]).await;
    assert_eq!((twice.code, twice.stdout.as_str(), twice.stderr.as_str()), (0, "hi\n", ""));

    let none = run(&["web-1", "mail-*"]).await;
    let there = "no device fits --on 'mail-*'; there are: db, web-1, web-2";
    assert!(none.code == 123 && none.stdout.is_empty(), "{none:?}");
    assert!(none.stderr.contains(there), "{none:?}");
    let none = run(&["tag:arm"]).await;
    assert!(none.code == 123 && none.stderr.contains("the tags are: eu, gpu"), "{none:?}");

    take_away(&server, "web-2", two).await;
    for on in [&["--all"][..], &["--on", "*"]] {
        let all = server.run(&[&["exec"], on, &["--", "echo hi"]].concat()).await;
        assert_eq!((all.code, sorted(&all)), (123, vec!["[db] hi", "[web-1] hi"]), "{all:?}");
        assert!(all.stderr.contains("web-2: the device is away"), "{all:?}");
        assert!(recap(&all).ends_with("; unreachable: web-2"), "{all:?}");
    }
    let all = server.run(&["exec", "--all", "--json", "--", "echo hi"]).await;
    let told: Vec<Value> =
        all.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let away = told.iter().find(|told| told["device"] == "web-2").expect("its object");
    assert_eq!((told.len(), &away["known"]), (3, &json!("never_sent")), "{all:?}");
    let told: Value = serde_json::from_str(recap(&all)).unwrap();
    assert_eq!((&told["event"], &told["unreachable"]), (&json!("recap"), &json!(["web-2"])));
}

#[tokio::test]
async fn input_that_goes_to_nobody_is_said() {
    let server = Server::start().await;
    let _devices = [server.device("a", SHELL).await, server.device("b", SHELL).await];
    for (args, is_said) in [(&[][..], true), (&["-n"][..], false)] {
        let exec = [&["exec", "--all"], args, &["--", "sleep 0.5; cat"]].concat();
        let mut command = server.command(&exec);
        let mut running = Process::start(command.stdin(std::process::Stdio::piped()));
        running.feed("something").await;
        let done = running.done().await;
        assert_eq!((done.code, done.stderr.contains("not passed on")), (0, is_said), "{done:?}");
    }
}

#[tokio::test]
async fn so_many_run_at_once_and_no_more_begin_after_so_many_failures() {
    let server = Server::start().await;
    let mut devices = Vec::new();
    for id in ["a", "b", "c", "d"] {
        devices.push(server.device(id, SHELL).await);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("running").display().to_string();
    // It fails where another one runs at the same time.
    let alone = format!("mkdir {path} && sleep 0.2 && rmdir {path}");
    let one = server.run(&["exec", "--all", "--at-once", "1", "--", &alone]).await;
    assert_eq!((one.code, recap(&one)), (0, "ok: a, b, c, d"), "{one:?}");

    // Each waits for the other.
    let pair = format!("mkdir -p {path}/$$ && until [ $(ls {path} | wc -l) = 2 ]; do :; done");
    let two = server.run(&["exec", "--on", "[ab]", "--at-once", "2", "--", &pair]).await;
    assert_eq!(two.code, 0, "{two:?}");

    let args = ["exec", "--all", "--at-once", "1", "--stop-after-failures", "2", "--"];
    let failing = [&args[..], &["exit 7"]].concat();
    let stopped = server.run(&failing).await;
    let expected = "failed: a (exit 7), b (exit 7); not started: c, d";
    assert_eq!((stopped.code, recap(&stopped)), (7, expected), "{stopped:?}");
    let told = server.run(&[&["exec", "--json"], &failing[1..]].concat()).await;
    let told: Vec<Value> =
        told.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let why = "not started, since it failed on 2 before";
    assert_eq!((told.len(), &told[3]["error"]), (4, &json!(why)), "{told:?}");
}

#[tokio::test]
async fn variables_are_set_for_the_command_alone_and_refused_where_they_are_not_known() {
    let server = Server::start().await;
    let _device = server.device("box", SHELL).await;
    let _observing = server.device("careful", &[]).await;
    let args = ["exec", "--on", "box", "--env", "A=x y$B", "--env", "LANG=C", "--"];
    let set = server.run(&[&args[..], &["echo \"$A,$LANG\""]].concat()).await;
    assert_eq!((set.code, set.stdout.as_str()), (0, "x y$B,C\n"), "{set:?}");
    let args = ["exec", "--on", "box", "--", "echo \"$A\""];
    assert_eq!(server.run(&args).await.stdout, "\n");

    let refused = server.run(&["exec", "--on", "careful", "--env", "A=1", "--", "uname"]).await;
    assert!(refused.code == 125 && refused.stderr.contains("--exec shell"), "{refused:?}");
    for bad in ["A", "=x", "1A=x", "A-B=x"] {
        let wrong = server.run(&["exec", "--on", "box", "--env", bad, "--", "uname"]).await;
        assert!(wrong.code == 2 && wrong.stderr.contains("--env"), "{wrong:?}");
    }
    // A device of UFO's would run the command without them.
    let _ufo = server.raw_device("ufo").await;
    let unknown = server.run(&["exec", "--on", "ufo", "--env", "A=1", "--", "uname"]).await;
    assert!(unknown.code == 125 && unknown.stderr.contains("does not know --env"), "{unknown:?}");
}

#[tokio::test]
async fn the_tool_of_the_device_itself_runs_whatever_an_mcp_server_calls_its_own() {
    let server = Server::start().await;
    let home = Home::new();
    let script = home.path().join("server.py");
    fs::write(&script, STRANGER).unwrap();
    let list = json!({"mcpServers": {"a": {"command": "python3", "args": [script]}}});
    let file = home.path().join("mcp.json");
    fs::write(&file, list.to_string()).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let mut device = server.device_at(&home, "box", &["--mcp", file.to_str().unwrap()]).await;
    device.says("MCP server 'a' runs").await;
    let ran = server.run(&["exec", "--on", "box", "--", "uname", "-s"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "Linux\n"), "{ran:?}");

    // A device of UFO's is told the plain name, as ever: it knows no namespaces.
    let mut ufo = server.raw_device("ufo").await;
    let running = server.start_command(&["exec", "--on", "ufo", "--", "pwd"]);
    let command = ufo.expect("command").await;
    assert_eq!(command["actions"][0]["tool_name"], "execute_command", "{command}");
    drop(running);
}

/// A server with one tool, which has the name of ours.
const STRANGER: &str = r#"
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    if "id" not in asked: continue
    result = {
        "initialize": {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}},
                       "serverInfo": {"name": "stranger", "version": "1"}},
        "tools/list": {"tools": [{"name": "execute_command", "inputSchema": {"type": "object"}}]},
    }.get(asked["method"], {"content": [{"type": "text", "text": "not this one"}]})
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)
"#;

#[tokio::test]
async fn a_step_whose_command_exits_with_another_code_than_0_is_marked_and_may_end_the_plan() {
    let server = Server::start().await;
    let _device = server.device("box", SHELL).await;
    let command =
        |line: &str| json!({"tool_name": "execute_command", "parameters": {"command": line}});
    let plan = json!({"commands": [command("exit 3"), command("true")]});
    let ran = server.run(&["run", "--on", "box", &plan.to_string()]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stderr.contains("exit 3 1 exit 3 (") && ran.stderr.contains("✓ 2 true"), "{ran:?}");
    let json = server.run(&["run", "--json", "--on", "box", &plan.to_string()]).await;
    assert!(json.stderr.contains(r#""exit_code":3"#), "{json:?}");

    let mut strict = plan;
    strict["stop_on_nonzero"] = json!(true);
    let failed = server.run(&["run", "--on", "box", &strict.to_string()]).await;
    assert_eq!(failed.code, 1, "{failed:?}");
    let why = "Step 1 failed: execute_command: exit 3 (stop_on_nonzero)";
    assert!(failed.stderr.contains(why) && !failed.stderr.contains("true"), "{failed:?}");
}

#[tokio::test]
async fn at_a_terminal_an_error_takes_the_place_of_the_line_that_says_who_is_waited_for() {
    let server = Server::start().await;
    let _runs = server.device("runs", SHELL).await;
    let _looks = server.device("looks", &[]).await;
    // It is refused at once by the one, and says nothing on the other meanwhile.
    let mut command = server.command(&["exec", "--all", "-n", "--", "sleep 2 | cat"]);
    command.env("TERM", "xterm");
    let (mut exec, _typing) = Process::start_at_terminal(command);
    exec.says("failed\u{1b}[0m: looks").await;
    let said = exec.stderr();
    let (before, _) = said.split_once("\u{1b}[31mlooks\u{1b}[0m: ").expect(&said);
    assert!(before.contains("waiting for 2 devices"), "{said:?}");
    assert!(before.ends_with("\r\u{1b}[2K") || before.ends_with('\n'), "{said:?}");
}
