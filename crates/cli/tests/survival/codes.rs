//! How `exec` exits, with real devices: a command's own code, and what is said where there is none. A command may exit
//! with one of ours, so programs are told apart from it by `--json`.

use std::collections::BTreeMap;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::process::until_running;
use crate::common::{Done, Process, Server, long_sleep};
use crate::gate::Gate;

fn start(server: &Server, device: &str, words: &[&str]) -> Process {
    server.start_command(&[&["exec", "--json", "--on", device], words].concat())
}

/// What `--json` says of the end: the status, what is known, whether it was refused, and the command's own code.
fn told(done: &Done) -> [Value; 4] {
    let ended: Value = serde_json::from_str(&done.stdout).expect(&done.stdout);
    ["status", "known", "refused", "exit_code"].map(|name| ended[name].clone())
}

#[tokio::test]
async fn exec_exits_as_its_command_did_or_says_why_there_is_no_such_code() {
    let server = Server::start().await;
    let _device = server.device("box", &["--exec", "shell"]).await;
    let _careful = server.device("careful", &["--exec", "off"]).await;
    let (none, completed, failed) = (Value::Null, json!("completed"), json!("failed"));
    let own = |code: i32| [completed.clone(), none.clone(), none.clone(), json!(code)];
    let failed_as = |known: Value, refused: Value| [failed.clone(), known, refused, none.clone()];
    for (device, words, code, expected) in [
        ("box", &["--", "exit 0"][..], 0, own(0)),
        ("box", &["--", "exit 1"], 1, own(1)),
        ("box", &["--", "exit 2"], 2, own(2)),
        ("box", &["--", "exit 120"], 120, own(120)),
        ("box", &["--", "exit 125"], 125, own(125)),
        ("box", &["--", "exit 255"], 255, own(255)),
        ("box", &["ls", "--all", "/"], 0, own(0)),
        (
            "box",
            &["--timeout", "0.2", "--", "sleep 60"],
            124,
            failed_as(none.clone(), none.clone()),
        ),
        ("nobody", &["--", "x"], 123, failed_as(json!("never_sent"), json!("final"))),
        ("careful", &["--", "x"], 125, failed_as(none.clone(), none.clone())),
    ] {
        let done = start(&server, device, words).done().await;
        assert_eq!((done.code, told(&done)), (code, expected), "{words:?} on {device}: {done:?}");
    }

    // Cancelled by somebody else.
    let sleep = long_sleep();
    let mut exec = start(&server, "box", &["--", &sleep]);
    exec.says(r#""event":"accepted""#).await;
    let task: Value = serde_json::from_str(exec.stderr().lines().next().unwrap()).unwrap();
    until_running(&sleep).await;
    let cancelled = server.run(&["task", "cancel", task["task"].as_str().unwrap()]).await;
    assert_eq!(cancelled.code, 0, "{cancelled:?}");
    let done = exec.done().await;
    let expected = [json!("cancelled"), json!("stopped"), none.clone(), none.clone()];
    assert_eq!((done.code, told(&done)), (120, expected), "{done:?}");
}

#[tokio::test]
async fn a_device_that_stays_away_leaves_one_unknown_and_one_never_sent() {
    let (server, gate) = (Server::start_with(&["--resume-window", "0.5"]).await, Gate::new());
    let one_at_a_time = ["--exec", "shell", "--parallel-commands", "1"];
    let mut device = server.device("box", &one_at_a_time).await;
    let running = start(&server, "box", &["--", &gate.command(0)]);
    gate.has_begun(1).await;
    let mut queued = start(&server, "box", &["--", &gate.quick_command(1)]);
    queued.says(r#""event":"accepted""#).await;
    device.kill().await;
    let (running, queued) = (running.done().await, queued.done().await);
    for (done, code, known) in [(&running, 121, "outcome_unknown"), (&queued, 122, "never_sent")] {
        assert_eq!((done.code, &told(done)[1]), (code, &json!(known)), "{done:?}");
    }
    gate.assert_each_once(0..1);
}

#[tokio::test]
async fn exec_exits_with_2_for_its_own_command_line_only() {
    let server = Server::start().await;
    let missing = server.state_file("no-such-file.toml");
    let missing = missing.to_str().unwrap();
    let codes: BTreeMap<&str, i32> = BTreeMap::from([
        ("no device", server.run(&["exec", "--", "x"]).await.code),
        ("no command", server.run(&["exec", "--on", "box"]).await.code),
        ("no such flag", server.run(&["exec", "--on", "box", "--no-such", "--", "x"]).await.code),
        (
            "no file",
            server.run(&["exec", "--config", missing, "--on", "box", "--", "x"]).await.code,
        ),
        ("no id", server.run(&["exec", "--on", "", "--", "x"]).await.code),
        ("empty", server.run(&["exec", "--on", "box", "--", ""]).await.code),
        ("nobody is there", server.run(&["exec", "--all", "--", "x"]).await.code),
    ]);
    let expected = BTreeMap::from([
        ("no device", 2),
        ("no command", 2),
        ("no such flag", 2),
        ("no file", 125),
        ("no id", 125),
        ("empty", 125),
        ("nobody is there", 123),
    ]);
    assert_eq!(codes, expected);
    server.process.signal(Signal::TERM);
    let mut gone = server;
    gone.process.ended().await;
    assert_eq!(gone.run(&["exec", "--on", "box", "--", "x"]).await.code, 123);
}

#[tokio::test]
async fn programs_get_their_object_also_where_no_server_can_be_asked() {
    let server = Server::start().await;
    let nowhere = ("FLIGHTDECK_SERVER", "ws://127.0.0.1:1");
    let stranger = ("FLIGHTDECK_TOKEN", "not-the-key-of-this-server");
    for ((name, value), why) in [(nowhere, "no server answer"), (stranger, "refused the key")] {
        let ask = async |args: &[&str]| {
            Process::start(server.command(args).env(name, value)).done().await
        };
        let exec = ask(&["exec", "--json", "--on", "a", "--on", "b", "--", "x"]).await;
        let run = ask(&["run", "--json", "--on", "a", "x"]).await;
        assert_eq!((exec.code, run.code), (123, 4), "{exec:?} {run:?}");
        let objects = |done: &Done| -> Vec<Value> {
            done.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        };
        let of_exec = objects(&exec);
        assert_eq!((&of_exec[0]["device"], &of_exec[1]["device"]), (&json!("a"), &json!("b")));
        let of_run = objects(&run);
        assert_eq!((of_exec.len(), of_run.len(), &of_run[0]["lost"]), (2, 1, &json!(false)));
        for object in of_exec.iter().chain(&of_run) {
            assert_eq!(
                (&object["status"], &object["known"]),
                (&json!("failed"), &json!("never_sent"))
            );
            assert_eq!(object["task"], Value::Null);
            assert!(object["error"].as_str().unwrap().contains(why), "{object}");
        }
        assert!(exec.stderr.contains(why) && run.stderr.contains(why), "{exec:?} {run:?}");
        // For people nothing is said twice.
        let plain = ask(&["exec", "--on", "a", "--", "x"]).await;
        assert!(plain.stdout.is_empty() && plain.stderr.matches(why).count() == 1, "{plain:?}");
    }
}
