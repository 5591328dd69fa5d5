//! A device's life on its connection, with a server that behaves as the Python one: what it tells of
//! itself, its tasks, how it leaves, and what `flightdeck device status` says meanwhile.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use common::process::{AT_ONCE, state_dir, until_gone, until_running};
use common::{Done, Home, Peer, Process, PythonServer, Server, long_sleep, unique, until, within};
use rustix::process::Signal;
use serde_json::{Value, json};

/// A real device on a Python server.
struct Connected {
    python: PythonServer,
    home: Home,
    device: Process,
    link: Peer,
    register: Value,
}

impl Connected {
    async fn start(args: &[&str]) -> Self {
        let (python, home) = (PythonServer::start().await, Home::new());
        let all = [&["device", "--id", "d", "--exec", "shell"], args].concat();
        let device = Process::start(home.command(&all).env("FLIGHTDECK_SERVER", python.url()));
        let (link, register) = python.accept().await;
        Self { python, home, device, link, register }
    }

    /// Has it run a command line; `status` is the COMMAND's own.
    async fn command(&mut self, line: &str, status: &str) {
        let action = json!({"tool_name": "execute_command", "parameters": {"command": line},
            "tool_type": "action", "call_id": "C"});
        let command = json!({"agent_name": "LinuxAgent", "actions": [action], "session_id": "S",
            "response_id": unique("R")});
        self.link.say_as_server("command", status, command).await;
    }

    /// The result of the only action.
    async fn result(&mut self) -> Value {
        self.link.expect("command_results").await["action_results"][0].clone()
    }

    async fn status(&self, args: &[&str]) -> Done {
        self.home.start(&[&["device", "status"], args].concat()).done().await
    }

    /// What its status says, once that is so.
    async fn status_when(&self, is_so: impl Fn(&Value) -> bool) -> Value {
        let file = self.status_file();
        let read = || serde_json::from_slice::<Value>(&fs::read(&file).ok()?).ok();
        until("the status", || read().is_some_and(|status| is_so(&status))).await;
        read().unwrap()
    }

    fn status_file(&self) -> std::path::PathBuf {
        self.home.path().join(".local/state/flightdeck/device-d.json")
    }
}

fn features(register: &Value) -> Vec<String> {
    let features = &register["metadata"]["system_info"]["supported_features"];
    serde_json::from_value(features.clone()).unwrap()
}

#[tokio::test]
async fn a_device_tells_what_it_can_do_or_what_every_ufo_device_says() {
    let honest = Connected::start(&[]).await;
    assert!(features(&honest.register).contains(&"cli".to_owned()), "{}", honest.register);
    assert!(!features(&honest.register).contains(&"gui".to_owned()), "there is no display");
    for nothing in [["--disable", "execute_command"], ["--disable", "BashExecutor"]] {
        let honest = Connected::start(&nothing).await;
        assert!(!features(&honest.register).contains(&"cli".to_owned()), "{nothing:?}");
    }
    let ufo = Connected::start(&["--features", "ufo"]).await;
    let expected = ["gui", "cli", "browser", "file_system", "office", "linux_apps"];
    assert_eq!(features(&ufo.register), expected);
    assert!(ufo.register["metadata"]["registration_time"].is_string());
}

#[tokio::test]
async fn a_command_that_ends_its_task_is_executed_and_answered_first() {
    for status in ["completed", "failed"] {
        let mut at = Connected::start(&["--request", "tidy up"]).await;
        let task = at.link.expect("task").await;
        assert_eq!(task["metadata"], json!({"platform": "linux"}));
        at.link.say_as_server("heartbeat", "ok", json!({"session_id": "S"})).await;
        at.device.says("task accepted: S").await;
        let go = at.home.path().join("go");
        let wait = format!("while ! [ -e {} ]; do sleep 0.02; done; echo last", go.display());
        at.command(&wait, status).await;
        at.status_when(|status| status["running"][0]["session_id"] == "S").await;
        // While it runs, its task does.
        at.link.say_as_server("task", "continue", json!({"user_request": "other"})).await;
        let refused = at.link.expect("error").await;
        assert!(refused["error"].as_str().unwrap().contains("running already"), "{refused}");
        assert!(!at.device.stderr().contains(&format!("task {status}")));

        fs::write(&go, "").unwrap();
        let answer = at.link.expect("command_results").await;
        assert_eq!(answer["action_results"][0]["result"]["stdout"], "last\n", "{answer}");
        assert_eq!(answer["status"], status);
        at.device.says(&format!("task {status}")).await;
        at.link.say_as_server("task", "continue", json!({"user_request": "other"})).await;
        assert_eq!(at.link.expect("task").await["request"], "other");
    }
}

#[tokio::test]
async fn a_task_of_its_own_that_nobody_confirmed_is_told_and_not_done_twice() {
    let mut at = Connected::start(&["--request", "tidy up"]).await;
    at.link.expect("task").await;
    drop(at.link);
    at.device.says("task failed").await;
    at.device.says("before the server accepted the task").await;
    let (mut link, _) = at.python.accept().await;
    link.say_as_server("device_info_request", "ok", json!({"response_id": "I"})).await;
    let next = link.expect("device_info_response").await;
    assert_eq!(next["prev_response_id"], "I", "no task before it");
}

#[tokio::test]
async fn a_task_of_its_own_that_is_refused_frees_the_device_for_the_next() {
    let mut at = Connected::start(&["--request", "tidy up"]).await;
    at.link.expect("task").await;
    at.link.say_as_server("error", "error", json!({"error": "no agent"})).await;
    at.device.says("task failed: no agent").await;
    at.link.say_as_server("task", "continue", json!({"user_request": "other"})).await;
    assert_eq!(at.link.expect("task").await["request"], "other");
    // One without a task in it is refused too.
    at.link.say_as_server("task", "continue", json!({})).await;
    assert!(at.link.expect("error").await["error"].as_str().unwrap().contains("user_request"));
}

#[tokio::test]
async fn a_command_that_cannot_be_read_is_answered_action_by_action_with_its_ids_as_they_came() {
    let mut at = Connected::start(&[]).await;
    let (long, odd) = ("i".repeat(300), "a\u{1}b");
    let bad = json!({"tool_name": "get_system_info", "tool_type": "weird", "call_id": odd});
    let good = json!({"tool_name": "get_system_info", "tool_type": "action", "call_id": "C"});
    let command = json!({"actions": [good, bad], "session_id": odd, "response_id": long});
    at.link.say_as_server("command", "continue", command).await;
    let reported = at.link.expect("error").await["error"].clone();
    let answer = at.link.expect("command_results").await;
    assert_eq!((&answer["session_id"], &answer["prev_response_id"]), (&json!(odd), &json!(long)));
    assert_eq!(answer["status"], "continue");
    let failed = |id: &str| json!({"status": "failure", "error": reported, "call_id": id});
    assert_eq!(answer["action_results"], json!([failed("C"), failed(odd)]));
    at.command("echo fine", "continue").await;
    assert_eq!(at.result().await["result"]["stdout"], "fine\n");
}

#[tokio::test]
async fn a_task_of_its_own_ends_also_when_its_end_cannot_be_read() {
    for (kind, status) in [("task_end", "completed"), ("command", "failed")] {
        let mut at = Connected::start(&["--request", "tidy up"]).await;
        at.link.expect("task").await;
        at.link.say_as_server("heartbeat", "ok", json!({"session_id": "S"})).await;
        at.device.says("task accepted: S").await;
        at.link.say_as_server(kind, status, json!({"session_id": "S", "task_name": 7})).await;
        at.device.says("task failed: Invalid message: task_name").await;
    }
}

#[tokio::test]
async fn a_device_that_is_told_to_stop_lets_its_command_finish_and_says_goodbye() {
    let mut at = Connected::start(&["--finish-time", "30"]).await;
    let go = at.home.path().join("go");
    let wait = format!("while ! [ -e {} ]; do sleep 0.02; done; echo done", go.display());
    at.command(&wait, "continue").await;
    at.status_when(|status| status["running"][0]["tools"] == json!(["execute_command"])).await;
    at.device.signal(Signal::TERM);
    at.device.says("Stopping").await;
    // From a moment on nothing new is begun, and that is said.
    let refusing = async {
        loop {
            at.command("echo new", "continue").await;
            let answer = at.result().await;
            if answer["status"] == "failure" {
                return answer["error"].clone();
            }
        }
    };
    assert_eq!(within("a refusal", refusing).await, "This device is stopping: it did not run");
    fs::write(&go, "").unwrap();
    assert_eq!(at.result().await["result"]["stdout"], "done\n");
    let file = at.status_file();
    let Connected { device, mut link, .. } = at;
    assert_eq!(link.expect_close().await.0, 1000);
    drop(link);
    assert_eq!(device.done().await.code, 0);
    assert!(!file.exists(), "it ended cleanly");
}

#[tokio::test]
async fn a_command_that_takes_too_long_to_finish_is_stopped_and_answered_before_the_goodbye() {
    let mut at = Connected::start(&["--finish-time", "0"]).await;
    let slow = long_sleep();
    at.command(&slow, "continue").await;
    until_running(&slow).await;
    at.device.signal(Signal::TERM);
    let stopped = at.result().await;
    assert_eq!(stopped["status"], "failure", "{stopped}");
    assert_eq!(stopped["error"], "This device is stopping: stopped; its outcome is unknown");
    assert_eq!(at.link.expect_close().await.0, 1000);
    drop(at.link);
    assert_eq!(at.device.done().await.code, 0);
    until_gone(&slow).await;
}

#[tokio::test]
async fn a_second_signal_leaves_at_once() {
    let mut at = Connected::start(&["--finish-time", "1h"]).await;
    let slow = long_sleep();
    at.command(&slow, "continue").await;
    until_running(&slow).await;
    at.device.signal(Signal::TERM);
    at.device.says("Stopping").await;
    let asked = Instant::now();
    at.device.signal(Signal::TERM);
    assert_eq!(at.device.done().await.code, 0);
    assert!(asked.elapsed() < AT_ONCE, "{:?}", asked.elapsed());
    until_gone(&slow).await;
}

#[tokio::test]
async fn the_status_tells_how_a_device_is_doing() {
    let mut at = Connected::start(&[]).await;
    at.status_when(|status| status["is_connected"] == true).await;
    let mode = fs::metadata(at.status_file()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let done = at.status(&[]).await;
    assert!(done.code == 0 && done.stdout.contains("connected: 'd' to ws://127.0.0.1"), "{done:?}");

    let slow = long_sleep();
    at.command(&slow, "continue").await;
    at.status_when(|status| status["running"] != json!([])).await;
    let done = at.status(&["--id", "d"]).await;
    assert!(done.stdout.contains("runs execute_command"), "{done:?}");
    assert!(done.stdout.contains("(session S)"), "{done:?}");

    let url = at.python.url();
    drop((at.link, at.python));
    let file = at.home.path().join(".local/state/flightdeck/device-d.json");
    let is_lost =
        || fs::read_to_string(&file).is_ok_and(|text| text.contains(r#""is_connected":false"#));
    until("the loss", is_lost).await;
    let status = |args: &'static [&'static str]| {
        at.home.start(&[&["device", "status"], args].concat()).done()
    };
    let done = status(&["--json"]).await;
    let told: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(
        (done.code, &told["is_connected"], &told["server"]),
        (1, &json!(false), &json!(url))
    );
    assert!(told["last_error"]["text"].is_string() && told["is_running"] == true, "{told}");
    let done = status(&[]).await;
    assert!(
        done.stdout.contains("not connected") && done.stdout.contains("last error"),
        "{done:?}"
    );

    at.device.kill().await;
    let done = status(&[]).await;
    assert!(done.code == 1 && done.stdout.contains("not running: 'd'"), "{done:?}");
    assert!(done.stdout.contains("start it: flightdeck device --id d --server ws://"), "{done:?}");
    let done = status(&["--id", "other"]).await;
    assert!(done.code == 1 && done.stderr.contains("flightdeck device --id other"), "{done:?}");
}

#[tokio::test]
async fn the_status_of_a_device_that_gave_up_says_why() {
    let home = Home::new();
    let args = ["device", "--id", "d", "--server", "ws://127.0.0.1:1", "--max-retries", "0"];
    assert_eq!(home.start(&args).done().await.code, 4);
    let done = home.start(&["device", "status"]).done().await;
    assert!(done.code == 1 && done.stdout.contains("it ended: no server answers"), "{done:?}");
    let none = Home::new().start(&["device", "status"]).done().await;
    assert!(none.code == 1 && none.stderr.contains("Start one: flightdeck device"), "{none:?}");
}

#[tokio::test]
async fn a_device_that_would_come_back_without_a_pause_does_not_start() {
    for waits in [["--reconnect-first-wait", "0"], ["--reconnect-max-wait", "0.5"]] {
        let done = Home::new().start(&["device", waits[0], waits[1]]).done().await;
        assert!(done.code == 2 && done.stderr.contains("reconnect_first_wait must be"), "{done:?}");
    }
}

#[tokio::test]
async fn a_device_goes_on_where_its_status_cannot_be_written() {
    let mut at = Connected::start(&["--status-file", "/proc/nowhere/status.json"]).await;
    at.command("echo fine", "continue").await;
    assert_eq!(at.result().await["result"]["stdout"], "fine\n");
    // A second one with its id leaves the file alone, and says so.
    let at = Connected::start(&[]).await;
    at.status_when(|status| status["is_connected"] == true).await;
    let args = ["device", "--id", "d", "--server", "ws://127.0.0.1:1", "--max-retries", "0"];
    let done = at.home.start(&args).done().await;
    assert!(done.stderr.contains("runs already"), "{done:?}");
    assert_eq!(at.status(&[]).await.code, 0);
}

#[tokio::test]
async fn a_device_that_starts_before_the_first_start_of_its_server_gets_in() {
    // A server makes its key at its first start.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let home = std::sync::Arc::new(Home::new());
    let at = format!("ws://127.0.0.1:{port}");
    let state = state_dir(&home);
    let mut device =
        home.start(&["--state-dir", &state, "device", "--id", "early", "--server", &at]);
    device.says("not connected").await;
    let _server = Server::start_in(home, port, &[]).await;
    device.says("connected to").await;
}

/// As whom a device runs here that is not root, to whom all is open.
const NOBODY: u32 = 65534;

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_command_reads_neither_the_environment_nor_the_memory_of_its_device() {
    let (python, home) = (PythonServer::start().await, Home::new());
    let mut command = home.command(&["device", "--id", "d", "--exec", "shell"]);
    command.env("FLIGHTDECK_SERVER", python.url()).env("FLIGHTDECK_TOKEN", "hunter2");
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(home.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        command.uid(NOBODY).gid(NOBODY);
    }
    let device = Process::start(&mut command);
    let (link, register) = python.accept().await;
    let mut at = Connected { python, home, device, link, register };
    let daemon = long_sleep();
    let look = format!(
        "setsid {daemon} & cat /proc/$PPID/comm; tr '\\0' ' ' < /proc/$PPID/environ; \
         head -c 1 /proc/$PPID/mem; cat /proc/$PPID/maps; readlink /proc/$PPID/exe; true"
    );
    at.command(&look, "continue").await;
    let result = at.result().await["result"].clone();
    assert_eq!(result["stdout"], "flightdeck\n", "{result}");
    assert!(result["stderr"].as_str().unwrap().contains("ermission denied"), "{result}");
    // It does the rest of its work as ever.
    until_gone(&daemon).await;
    at.status_when(|status| status["counts"]["commands"] == 1).await;
    let done = at.status(&[]).await;
    assert!(done.code == 0, "{done:?}");
    let next = long_sleep();
    at.command(&format!("setsid {next} & {next}"), "continue").await;
    until_running(&next).await;
    at.device.kill().await;
    until_gone(&next).await;
}
