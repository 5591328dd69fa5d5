//! The owner's say, with real processes: rules in a file, and a person at a terminal.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use common::process::Typing;
use common::{Done, Home, Peer, Process, PythonServer, Server, unique, until, within};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Asks before each command.
const ASKS: &str =
    "[[rule]]\nname = \"ask me\"\ntool = \"*.execute_command\"\ndecision = \"ask\"\n";

/// The end of a line that waits for an answer.
const WAITS: &str = "until the device stops: ";

/// A home with a policy in its usual place.
fn home_with(policy: &str) -> Home {
    let home = Home::new();
    let folder = home.path().join(".config/flightdeck");
    fs::create_dir_all(&folder).unwrap();
    fs::set_permissions(&folder, Permissions::from_mode(0o700)).unwrap();
    let file = folder.join("policy.toml");
    fs::write(&file, policy).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    home
}

fn echo(server: &Server, word: &str) -> Process {
    server.start_command(&["exec", "--on", "box", "--", "echo", word])
}

fn was_refused(done: &Done, why: &str) {
    assert!(done.code != 0 && done.stdout.is_empty(), "{done:?}");
    let text = format!("BashExecutor.execute_command needs the owner's yes, {why} (rule: ask me)");
    assert!(done.stderr.contains(&text), "{done:?}");
}

#[tokio::test]
async fn the_owner_at_the_terminal_allows_and_refuses_each_call() {
    let (server, home) = (Server::start().await, home_with(ASKS));
    let (mut device, mut typing) = server.device_at_terminal(&home, "box", &[]).await;
    for (times, (answer, is_allowed)) in
        [("y\n", true), ("n\n", false), ("what?\nYes\n", true)].into_iter().enumerate()
    {
        let asked = echo(&server, "hello");
        device.says_times("May BashExecutor.execute_command run?", times + 1).await;
        device.says_times(WAITS, times + 1).await;
        typing.write(answer).await;
        let done = asked.done().await;
        match is_allowed {
            true => assert_eq!((done.code, done.stdout.as_str()), (0, "hello\n"), "{done:?}"),
            false => was_refused(&done, "who said no"),
        }
    }
    let said = device.stderr();
    assert!(
        said.contains("(rule: ask me; task: ") && said.contains("policy: 1 rule of "),
        "{said}"
    );
    assert!(said.contains(r#""command": "echo hello""#), "{said}");
}

#[tokio::test]
async fn always_holds_for_the_tool_until_the_device_stops() {
    let (server, home) = (Server::start().await, home_with(ASKS));
    let (mut device, mut typing) = server.device_at_terminal(&home, "box", &[]).await;
    let asked = echo(&server, "first");
    device.says(WAITS).await;
    typing.write("a\n").await;
    assert_eq!(asked.done().await.stdout, "first\n");
    assert_eq!(echo(&server, "second").done().await.stdout, "second\n");
    assert_eq!(device.stderr().matches(WAITS).count(), 1, "{}", device.stderr());
}

#[tokio::test]
async fn only_what_is_typed_at_a_question_answers_it() {
    let (server, home) = (Server::start().await, home_with(ASKS));
    let (mut device, mut typing) =
        server.device_at_terminal(&home, "box", &["--ask-timeout", "2"]).await;
    typing.write("y\ny").await;
    let asked = echo(&server, "early");
    device.says(WAITS).await;
    was_refused(&asked.done().await, "who did not answer within 2 s");
    device.says("taken back").await;

    // Meant for the one before, and too late.
    typing.write("y\n").await;
    let asked = echo(&server, "late");
    device.says_times(WAITS, 2).await;
    typing.write("n\n").await;
    was_refused(&asked.done().await, "who said no");
}

#[tokio::test]
async fn without_a_terminal_what_needs_a_yes_is_refused_at_once() {
    let (server, home) = (Server::start().await, home_with(ASKS));
    let _device = server.device_at(&home, "box", &["--ask-timeout", "1h"]).await;
    was_refused(&echo(&server, "hello").done().await, "and nobody is there to ask");
}

#[tokio::test]
async fn the_end_of_input_refuses_one_call_and_the_next_is_asked_again() {
    let (server, home) = (Server::start().await, home_with(ASKS));
    let (mut device, mut typing) = server.device_at_terminal(&home, "box", &[]).await;
    let asked = echo(&server, "hello");
    device.says(WAITS).await;
    typing.write("\x04").await;
    was_refused(&asked.done().await, "and nobody is there to ask");
    let asked = echo(&server, "again");
    device.says_times(WAITS, 2).await;
    typing.write("y\n").await;
    assert_eq!(asked.done().await.stdout, "again\n");
}

#[tokio::test]
async fn ctrl_c_at_a_question_stops_the_device() {
    let (server, home) = (Server::start().await, home_with(ASKS));
    let (mut device, mut typing) = server.device_at_terminal(&home, "box", &[]).await;
    let asked = echo(&server, "hello");
    device.says(WAITS).await;
    typing.write("\x03").await;
    let stopped = device.done().await;
    assert!(stopped.code == 0 && stopped.stderr.contains("Stopping."), "{stopped:?}");
    let done = asked.done().await;
    assert!(done.code != 0 && done.stdout.is_empty(), "{done:?}");
}

#[tokio::test]
async fn a_task_that_is_cancelled_takes_its_question_back() {
    let (server, home) = (Server::start().await, home_with(ASKS));
    let (mut device, mut typing) = server.device_at_terminal(&home, "box", &[]).await;
    let asked = echo(&server, "cancelled");
    device.says(WAITS).await;
    asked.signal(Signal::INT);
    device.says("taken back").await;
    assert_eq!(asked.done().await.code, 120);
    let asked = echo(&server, "next");
    device.says_times(WAITS, 2).await;
    typing.write("y\n").await;
    assert_eq!(asked.done().await.stdout, "next\n");
}

/// What a device that was told nothing else says of itself.
fn status(home: &Home) -> Value {
    let file = home.path().join(".local/state/flightdeck/device-box.json");
    let text = fs::read(&file).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// A device whose owner is asked one question, while a second one waits for its turn.
struct Two {
    device: Process,
    typing: Typing,
    first: Process,
    second: Process,
    _server: Server,
    home: Home,
}

impl Two {
    async fn questions() -> Self {
        let server = Server::start_with(&["--sessions-per-device", "2"]).await;
        let home = home_with(ASKS);
        let (mut device, typing) = server.device_at_terminal(&home, "box", &[]).await;
        let first = echo(&server, "first");
        device.says(WAITS).await;
        let second = echo(&server, "second");
        until("the second question to wait", || status(&home)["waiting"] == 2).await;
        Self { device, typing, first, second, _server: server, home }
    }
}

#[tokio::test]
async fn an_answer_that_comes_too_late_is_not_given_to_the_next_question() {
    let Two { mut device, mut typing, first, second, _server, home: _home } =
        Two::questions().await;
    first.signal(Signal::INT);
    device.says("taken back").await;
    typing.write("y\n").await;
    device.says_times(WAITS, 2).await;
    typing.write("n\n").await;
    was_refused(&second.done().await, "who said no");
}

#[tokio::test]
async fn a_second_yes_is_not_given_to_a_question_that_nobody_has_seen() {
    for pause in [0, 50, 200, 400] {
        let Two { mut device, mut typing, first, second, _server, home: _home } =
            Two::questions().await;
        typing.write("y\n").await;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        typing.write("y\n").await;
        assert_eq!(first.done().await.stdout, "first\n");
        device.says_times(WAITS, 2).await;
        typing.write("n\n").await;
        was_refused(&second.done().await, "who said no");
    }
}

#[tokio::test]
async fn a_call_that_is_stopped_before_its_turn_disturbs_no_other() {
    let Two { mut device, mut typing, first, second, _server, home } = Two::questions().await;
    second.signal(Signal::INT);
    assert_eq!(second.done().await.code, 120);
    until("the answer to the second", || status(&home)["counts"]["commands"] == 1).await;
    typing.write("y\n").await;
    assert_eq!(first.done().await.stdout, "first\n");
    device.says("refused without asking: BashExecutor.execute_command").await;
    assert_eq!(device.stderr().matches(WAITS).count(), 1, "{}", device.stderr());
}

#[tokio::test]
async fn questions_wait_for_each_other() {
    let server = Server::start_with(&["--sessions-per-device", "3"]).await;
    let home = home_with(ASKS);
    let (mut device, mut typing) = server.device_at_terminal(&home, "box", &[]).await;
    let asked = ["one", "two", "three"].map(|word| echo(&server, word));
    for times in 1..=3 {
        device.says_times(WAITS, times).await;
        assert_eq!(device.stderr().matches("run?").count(), times, "one at a time");
        typing.write("y\n").await;
    }
    for (asked, word) in asked.into_iter().zip(["one\n", "two\n", "three\n"]) {
        assert_eq!(asked.done().await.stdout, word);
    }
}

/// A device at a terminal, on a server that can say anything, with a question open.
struct Asked {
    device: Process,
    typing: Typing,
    link: Peer,
    _python: PythonServer,
    _home: Home,
}

impl Asked {
    async fn start() -> Self {
        let (python, home) = (PythonServer::start().await, home_with(ASKS));
        let mut command = home.command(&["--log", "debug", "device", "--id", "d"]);
        command.env("FLIGHTDECK_SERVER", python.url());
        let (mut device, typing) = Process::start_at_terminal(command);
        let (mut link, _) = python.accept().await;
        let action = json!({"tool_name": "execute_command", "parameters": {"command": "echo hello"},
            "tool_type": "action", "call_id": "C"});
        let command = json!({"agent_name": "LinuxAgent", "actions": [action], "session_id": "S",
            "response_id": unique("R")});
        link.say_as_server("command", "continue", command).await;
        device.says(WAITS).await;
        Self { device, typing, link, _python: python, _home: home }
    }

    /// Has the device say so many lines, and waits until it has them behind it.
    async fn trouble(&mut self, lines: usize, text: &str) {
        for line in 0..lines {
            let error = json!({"error": format!("trouble {line} {text}")});
            self.link.say_as_server("error", "error", error).await;
        }
        self.link.say_as_server("device_info_request", "ok", json!({"response_id": "I"})).await;
        self.link.expect("device_info_response").await;
    }
}

#[tokio::test]
async fn what_else_is_said_waits_until_the_question_is_over() {
    let mut at = Asked::start().await;
    let before = at.device.stderr();
    at.trouble(20, "").await;
    assert_eq!(at.device.stderr(), before, "the question stands as it was");
    at.typing.write("y\n").await;
    at.device.says("trouble 19").await;
    let said = at.device.stderr().split_off(before.len());
    let lines: Vec<_> = said.lines().filter(|line| line.contains("trouble")).collect();
    assert!(lines.len() >= 20 && lines[0].contains("trouble 0"), "{said}");
    assert!(!said.contains(WAITS) && !said.contains("left out"), "{said}");
}

#[tokio::test]
async fn of_what_waits_behind_a_question_the_oldest_is_left_out_and_counted() {
    let mut at = Asked::start().await;
    at.trouble(400, &"x".repeat(200)).await;
    at.typing.write("n\n").await;
    at.device.says("trouble 399 ").await;
    let said = at.device.stderr();
    assert!(said.contains(" lines were left out"), "{said}");
    assert!(said.contains("trouble 390 ") && !said.contains("trouble 9 "), "{said}");
}

#[tokio::test]
async fn what_the_server_sends_cannot_hide_from_the_owner() {
    let (server, home) = (Server::start().await, home_with(ASKS));
    let (mut device, mut typing) = server.device_at_terminal(&home, "box", &[]).await;
    let padding = "x".repeat(5000);
    let command = format!("echo \u{1b}[2J\u{202e}; {padding} rm -rf /");
    let asked = server.start_command(&["exec", "--on", "box", "--", &command]);
    device.says("not all is shown, [v]iew it").await;
    let said = device.stderr();
    assert!(said.contains(r"echo \u001b[2J\u{202e}; xxx") && !said.contains("rm -rf"), "{said}");
    assert!(said.contains("more bytes]"), "{said}");
    typing.write("v\n").await;
    device.says("rm -rf /").await;
    device.says(WAITS).await;
    typing.write("n\n").await;
    was_refused(&asked.done().await, "who said no");
}

#[tokio::test]
async fn what_is_never_allowed_is_not_offered_and_refused_with_the_rule() {
    let policy = "[[rule]]\nname = \"no commands\"\ntool = \"BashExecutor.exec*\"\ndecision = \"deny\"\n\
                  [[rule]]\ntool = \"*\"\ndecision = \"allow\"\n";
    let (server, home) = (Server::start().await, home_with(policy));
    let _device = server.device_at(&home, "box", &["--exec", "shell"]).await;
    let run = async |command: Value| {
        let plan = json!({ "commands": [command] }).to_string();
        server.run(&["run", "--on", "box", &plan]).await
    };
    let listed = run(json!({"tool_name": "list_tools"})).await;
    assert!(listed.stdout.contains("get_system_info"), "{listed:?}");
    assert!(!listed.stdout.contains("execute_command"), "{listed:?}");
    let parameters = json!({"command": "echo hello"});
    let denied = run(json!({"tool_name": "execute_command", "parameters": parameters})).await;
    let why = "Denied by this device's policy: BashExecutor.execute_command (rule: no commands)";
    assert!(denied.code == 1 && format!("{denied:?}").contains(why), "{denied:?}");
}

#[tokio::test]
async fn a_dry_run_shows_each_tool_and_what_the_policy_says_of_it() {
    let policy = "[[rule]]\nname = \"no rm\"\ntool = \"*.execute_command\"\narguments = { command = \"*rm*\" }\n\
                  decision = \"deny\"\n[[rule]]\ntool = \"Fils.*\"\ndecision = \"ask\"\n";
    let home = home_with(policy);
    let args = ["device", "--dry-run", "--disable", "get_system_info,Nothing"];
    let done = home.start(&args).done().await;
    assert_eq!(done.code, 0, "{done:?}");
    let row = |name: &str| done.stdout.lines().find(|line| line.contains(name)).unwrap().to_owned();
    let command = row("execute_command");
    assert!(command.starts_with("BashExecutor") && command.contains("action"), "{command}");
    let says = "allow (default); where the arguments fit: deny (no rm)";
    assert!(command.ends_with(says), "{command}");
    assert!(row("get_system_info").ends_with("disabled"), "{done:?}");
    for line in [
        "exec    observe",
        "roots   the home folder",
        "policy  2 rules of ",
        "sandbox off: ",
        "grep -r",
        "kept    ",
        ".config/flightdeck\n",
        "what looks like a private key\n",
    ] {
        assert!(done.stdout.contains(line), "{line}: {done:?}");
    }
    assert!(done.stderr.contains("policy: rule 2: no tool here is \"Fils.*\""), "{done:?}");
    assert!(done.stderr.contains("disable: no tool here is \"Nothing\""), "{done:?}");

    let json = home.start(&["device", "--dry-run", "--json"]).done().await;
    let tools: Vec<Value> =
        json.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let tool = tools.iter().find(|tool| tool["tool_name"] == "execute_command").unwrap();
    assert_eq!(tool["unless"], json!([{"decision": "deny", "rule": "no rm"}]));
    assert_eq!((&tool["decision"], &tool["rule"]), (&json!("allow"), &json!("default")));
}

/// An MCP server with one tool, which it says only observes.
const STRANGER: &str = r#"while read -r line; do
    id=$(printf %s "$line" | sed -n 's/.*"id":\([0-9]*\).*/\1/p')
    case $line in
    *'"initialize"'*) result='{"protocolVersion":"2025-06-18","capabilities":{"tools":{}},
        "serverInfo":{"name":"s","version":"1"}}' ;;
    *tools/list*) result='{"tools":[{"name":"look","inputSchema":{"type":"object"},
        "annotations":{"readOnlyHint":true}}]}' ;;
    *) continue ;;
    esac
    printf '{"jsonrpc":"2.0","id":%s,"result":%s}' "$id" "$result" | tr -d '\n'
    echo
done"#;

#[tokio::test]
async fn a_dry_run_shows_what_the_policy_believes_and_not_only_what_a_server_says() {
    let rule = "[[rule]]\ntool = \"s.*\"\ntool_type = \"data_collection\"\ndecision = \"deny\"\n";
    let home = home_with(rule);
    let list = home.path().join("mcp.json");
    let server = json!({"command": "sh", "args": ["-c", STRANGER], "trusted": false});
    fs::write(&list, json!({"mcpServers": {"s": server}}).to_string()).unwrap();
    let args = ["device", "--dry-run", "--mcp", list.to_str().unwrap()];
    let done = home.start(&args).done().await;
    let row = done.stdout.lines().find(|line| line.contains("look")).unwrap_or_default();
    assert!(row.contains("action (it says data_collection)"), "{done:?}");
    assert!(row.ends_with("ask (default)"), "{done:?}");
    let idle = "rule 1: no tool here is \"s.*\" of type data_collection";
    assert!(done.stderr.contains(idle), "{done:?}");

    let done = home.start(&[&args[..], &["--json"]].concat()).done().await;
    let row = done.stdout.lines().find(|line| line.contains("look")).unwrap_or_default();
    let tool: Value = serde_json::from_str(row).unwrap();
    let types = (&tool["tool_type"], &tool["believed_type"]);
    assert_eq!(types, (&json!("data_collection"), &json!("action")));
}

#[tokio::test]
async fn what_this_machine_lacks_may_be_switched_off_and_ruled_out() {
    let rule = "[[rule]]\ntool = \"Screen.*\"\ndecision = \"deny\"\n";
    let home = home_with(rule);
    let disable = "Screen,Screen.screenshot,screenshot,execute_command,Scren";
    let args = ["device", "--dry-run", "--exec", "off", "--disable", disable];
    let done = home.start(&args).done().await;
    let warnings: Vec<_> = done.stderr.lines().collect();
    assert_eq!(warnings, ["warning: disable: no tool here is \"Scren\""], "{done:?}");
}

#[tokio::test]
async fn a_device_does_not_start_with_a_policy_that_is_not_valid() {
    let home = home_with("[[rule]]\ntool = \"*\"\ndecision = \"alow\"\n");
    for args in [&["device"][..], &["device", "--dry-run"]] {
        let done = within("a refusal", home.start(args).done()).await;
        assert_eq!(done.code, 2, "{done:?}");
        for told in ["policy.toml is not valid", "line 3", "did you mean `allow`?"] {
            assert!(done.stderr.contains(told), "{told}: {done:?}");
        }
    }
    let missing = home.start(&["device", "--policy", "nowhere.toml"]).done().await;
    assert!(missing.code == 2 && missing.stderr.contains("nowhere.toml"), "{missing:?}");
}

#[tokio::test]
async fn a_dry_run_wants_the_certificates_that_the_device_would_want() {
    let done = Home::new().start(&["device", "--dry-run", "--ca-file", "none.pem"]).done().await;
    assert!(done.code == 2 && done.stderr.contains("--ca-file none.pem"), "{done:?}");
}

#[tokio::test]
async fn a_rule_on_a_path_is_about_the_file_that_the_path_means() {
    let home = Home::new();
    let root = home.path().canonicalize().unwrap();
    for folder in ["in", "out"] {
        fs::create_dir(root.join(folder)).unwrap();
    }
    fs::write(root.join("in/k.pem"), "secret").unwrap();
    fs::write(root.join("out/old"), "old").unwrap();
    std::os::unix::fs::symlink("../out/old", root.join("in/link")).unwrap();
    std::os::unix::fs::symlink("k.pem", root.join("in/key")).unwrap();
    let rules = format!(
        "[[rule]]\nname = \"in\"\ntool = \"Files.write_file\"\narguments = {{ path = \"{0}/in/*\" }}\n\
         decision = \"allow\"\n\
         [[rule]]\nname = \"no keys\"\ntool = \"Files.read_file\"\narguments = {{ path = \"*.pem\" }}\n\
         decision = \"deny\"\n",
        root.display()
    );
    let policy = root.join("policy.toml");
    fs::write(&policy, rules).unwrap();
    fs::set_permissions(&policy, Permissions::from_mode(0o600)).unwrap();
    let python = PythonServer::start().await;
    let (policy, folder) = (policy.to_str().unwrap(), root.to_str().unwrap());
    let url = python.url();
    let args = ["device", "--id", "d", "--server", &url, "--policy", policy, "--root", folder];
    let _device = home.start(&args);
    let (mut link, _register) = python.accept().await;
    let under = |path: &str| format!("{folder}/{path}");
    for (tool, path, rule) in [
        ("write_file", under("in/new"), None),
        ("write_file", "in/newer".to_owned(), None),
        ("write_file", "out/../in/newest".to_owned(), None),
        ("write_file", under("in/../out/new"), Some("default")),
        ("write_file", under("in/../out/../in/../new"), Some("default")),
        ("write_file", under("in/link"), Some("default")),
        ("read_file", "in/k.pem".to_owned(), Some("no keys")),
        ("read_file", "in/k.pem/".to_owned(), Some("no keys")),
        ("read_file", "in/./k.pem/.".to_owned(), Some("no keys")),
        ("read_file", "in/key".to_owned(), Some("no keys")),
        ("read_file", "out/old".to_owned(), None),
    ] {
        let parameters = json!({"path": path, "content": "x"});
        let action = json!({"tool_name": tool, "tool_type": "action", "parameters": parameters});
        let command = json!({"actions": [action], "session_id": "S", "response_id": unique("R")});
        link.say_as_server("command", "continue", command).await;
        let result = link.expect("command_results").await["action_results"][0].clone();
        let error = result["error"].as_str().unwrap_or_default();
        let told = rule.is_none_or(|rule| error.contains(&format!("(rule: {rule})")));
        assert!(told && error.is_empty() == rule.is_none(), "{tool} {path}: {result}");
    }
    assert_eq!(fs::read_to_string(root.join("out/old")).unwrap(), "old");
}

/// A device whose own files lie below its root, as when its owner follows the first steps of the docs there.
async fn among_its_own_files(server: &Server, home: &Home, args: &[&str]) -> Process {
    let at = |name: &str| home.path().join(name);
    let private = |name: &str, text: &str| {
        fs::write(at(name), text).unwrap();
        fs::set_permissions(at(name), Permissions::from_mode(0o600)).unwrap();
    };
    private("device.key", &server.key());
    private("mcp.json", r#"{"mcpServers": {"s": {"command": "no-such", "env": {"T": "SECRET"}}}}"#);
    private("key.pem", "-----BEGIN PRIVATE KEY-----\nSECRET\n-----END PRIVATE KEY-----\n");
    private("policy.toml", "# SECRET\n");
    private("notes.txt", "SECRET is what this note is about\n");
    let url = server.url();
    let own = ["device", "--id", "box", "--server", &url, "--token-file", "device.key"];
    let files = ["--mcp", "mcp.json", "--policy", "policy.toml", "--root", "."];
    let mut device = home.start(&[&own[..], &files, args].concat());
    device.says("connected to").await;
    device
}

#[tokio::test]
async fn no_requester_gets_the_devices_own_files_and_keys() {
    let (server, home) = (Server::start().await, Home::new());
    let _device = among_its_own_files(&server, &home, &[]).await;
    fs::hard_link(home.path().join("device.key"), home.path().join("hard")).unwrap();
    let key = server.key();
    for line in [
        "cat device.key",
        "cat hard",
        "head -c 20 mcp.json",
        "tail policy.toml",
        "cat key.pem",
        "grep -c . device.key",
        "ls -l .local/state/flightdeck",
        "grep -r . .local/state/flightdeck",
    ] {
        let done = server.run(&["exec", "--on", "box", "--", line]).await;
        assert!(done.code != 0 && done.stdout.is_empty(), "{line}: {done:?}");
        assert!(done.stderr.contains("is kept from callers"), "{line}: {done:?}");
    }
    for line in ["grep -rh . .", "grep -r SECRET", "grep -rc SECRET ./."] {
        let done = server.run(&["exec", "--on", "box", "--", line]).await;
        assert!(!format!("{done:?}").contains(&key), "{line}: {done:?}");
        let secrets = done.stdout.lines().filter(|line| line.contains("SECRET"));
        assert!(secrets.clone().count() <= 1, "{line}: {done:?}");
        let can_hide = !done.stderr.contains("cannot hide it from a program");
        assert!(!can_hide || done.stdout.contains("notes.txt") || line.contains("-rh"), "{done:?}");
    }
    for (tool, parameters) in [
        ("read_file", json!({"path": "device.key"})),
        ("read_file", json!({"path": "hard"})),
        ("read_file", json!({"path": "key.pem"})),
        ("search_files", json!({"path": "mcp.json", "content": "SECRET"})),
        ("list_directory", json!({"path": ".local/state/flightdeck"})),
    ] {
        let plan = json!({"commands": [{"tool_name": tool, "parameters": parameters}]});
        let done = server.run(&["run", "--on", "box", &plan.to_string()]).await;
        assert!(done.code == 1 && format!("{done:?}").contains("is kept from callers"), "{done:?}");
    }
    let plan = json!({"commands": [{"tool_name": "search_files", "parameters": {"content": "."}}]});
    let done = server.run(&["run", "--on", "box", &plan.to_string()]).await;
    assert!(done.code == 0 && done.stdout.contains("notes.txt"), "{done:?}");
    assert!(!done.stdout.contains(&key) && !done.stdout.contains("BEGIN"), "{done:?}");
}

#[tokio::test]
async fn an_owner_may_show_a_file_that_is_kept_otherwise() {
    let (server, home) = (Server::start().await, Home::new());
    let _device = among_its_own_files(&server, &home, &["--reveal", "mcp.json:key.pem"]).await;
    for file in ["mcp.json", "key.pem"] {
        let done = server.run(&["exec", "--on", "box", "--", "cat", file]).await;
        assert!(done.code == 0 && done.stdout.contains("SECRET"), "{done:?}");
    }
    assert_ne!(server.run(&["exec", "--on", "box", "--", "cat", "device.key"]).await.code, 0);
}

#[tokio::test]
async fn a_rule_on_files_holds_for_commands_too() {
    let policy = "[[rule]]\nname = \"no keys\"\neffect = \"read\"\npath = \"*.pem\"\n\
                  decision = \"deny\"\n";
    for exec in ["observe", "shell"] {
        let (server, home) = (Server::start().await, home_with(policy));
        let folder = home.path().join("srv");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("k.pem"), "SECRET").unwrap();
        std::os::unix::fs::symlink("k.pem", folder.join("k")).unwrap();
        let root = folder.to_str().unwrap();
        let _device = server.device_at(&home, "box", &["--exec", exec, "--root", root]).await;
        for line in [format!("cat {root}/k.pem"), format!("cat {root}/k")] {
            let done = server.run(&["exec", "--on", "box", "--", &line]).await;
            assert!(done.code != 0 && done.stderr.contains("(rule: no keys)"), "{exec}: {done:?}");
        }
        let done = server.run(&["exec", "--on", "box", "--", "uname"]).await;
        assert_eq!((done.code, done.stdout.as_str()), (0, "Linux\n"), "{done:?}");
    }
}

#[tokio::test]
async fn what_servers_and_devices_elsewhere_keep_is_kept_from_callers_too() {
    let home = Arc::new(Home::new());
    let server = Server::start_in(home.clone(), 0, &[]).await;
    let (url, key) = (server.url(), server.key());
    let mut command =
        home.command(&["device", "--id", "q", "--state-dir", "other", "--server", &url]);
    let mut device = Process::start(command.env("FLIGHTDECK_TOKEN", &key));
    device.says("connected to").await;
    for command in ["cat state/key", "cat other/journal-q/identity.json", "grep -r . state"] {
        let done = server.run(&["exec", "--on", "q", "--", command]).await;
        assert!(done.code == 125 || done.stdout.is_empty(), "{command}: {done:?}");
        assert!(!done.stdout.contains(&key), "{command}");
    }
}

#[tokio::test]
async fn a_device_keeps_a_record_of_what_was_run_and_says_each_at_its_terminal() {
    let (server, home) = (Server::start().await, Home::new());
    let (mut device, _typing) = server.device_at_terminal(&home, "box", &["--exec", "shell"]).await;
    let done = server.run(&["exec", "--on", "box", "--", "echo SECRET; exit 3"]).await;
    assert_eq!(done.code, 3, "{done:?}");
    device.says("BashExecutor.execute_command echo SECRET; exit 3: exit 3 in ").await;
    let slow = common::long_sleep();
    let running = server.start_command(&["exec", "--on", "box", "--", &slow]);
    common::process::until_running(&slow).await;
    device.kill().await;
    drop(running);

    let file = home.path().join(".local/state/flightdeck/journal-box/commands.jsonl");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let shown = home.start(&["device", "log", "--json"]).done().await;
    let entries: Vec<Value> =
        shown.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(entries.len(), 2, "{shown:?}");
    assert_eq!(entries[0]["tool"], "BashExecutor.execute_command");
    assert_eq!(entries[0]["command"], "echo SECRET; exit 3");
    let outcome = (&entries[0]["outcome"], &entries[0]["exit_code"]);
    assert_eq!(outcome, (&json!("success"), &json!(3)));
    assert!(
        entries[0]["task"].is_string() && entries[0]["ms"].is_u64() && entries[0]["at"].is_string()
    );
    assert_eq!((&entries[1]["outcome"], &entries[1]["command"]), (&json!("started"), &json!(slow)));
    let shown = home.start(&["device", "log", "--id", "box", "--last", "1"]).done().await;
    assert!(
        shown.code == 0 && shown.stdout.contains("no end: it runs, or was cut off"),
        "{shown:?}"
    );
    let none = home.start(&["device", "log", "--id", "other"]).done().await;
    assert!(none.code == 1 && none.stdout.is_empty(), "{none:?}");

    let _device = server.device_at(&home, "digest", &["--record", "digest"]).await;
    server.run(&["exec", "--on", "digest", "--", "echo", "SECRET"]).await;
    let shown = home.start(&["device", "log", "--id", "digest", "--json"]).done().await;
    assert!(!shown.stdout.contains("SECRET") && shown.stdout.contains("\"sha256\""), "{shown:?}");
}
