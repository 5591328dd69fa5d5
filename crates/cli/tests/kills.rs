//! Somebody is killed, as by `kill -9`, while a command runs: nobody hangs, nobody is left without an
//! outcome, and no process outlives its reason.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::Duration;

use common::process::{until_gone, until_running};
use common::{Peer, Process, Server, long_sleep, plan, unique, until, within};
use rustix::process::Signal;

/// A device that runs any command, and stops it at once when it is told to stop itself.
const AT_WORK: [&str; 6] = ["--exec", "shell", "--finish-time", "0", "--parallel-commands", "1"];

/// A device that runs a command line, and somebody who waits for it.
struct Working {
    server: Server,
    device: Process,
}

impl Working {
    async fn start() -> Self {
        let server = Server::start().await;
        let device = server.device("box", &AT_WORK).await;
        Self { server, device }
    }

    async fn device_is_free(&self) {
        let next = self.server.run(&["exec", "--on", "box", "--", "echo", "free"]).await;
        assert_eq!((next.code, next.stdout.as_str()), (0, "free\n"), "{}", next.stderr);
    }
}

/// The command, behind so much output that it does not begin before the device has begun to read it: so
/// the device has done all that it does at the start of a command.
fn settled(command: &str) -> String {
    format!("seq 50000; {command}")
}

/// Command lines in the shapes that people write, with what runs in them.
fn shapes() -> Vec<(String, Vec<String>)> {
    let sleeps: [String; 12] = std::array::from_fn(|_| long_sleep());
    let [a, b, c, d, e, f, g, h, i, j, k, l] = sleeps;
    vec![
        (a.clone(), vec![a]),
        (format!("sh -c '{b} & {c}'"), vec![b, c]),
        (format!("{d} & {e} & wait"), vec![d, e]),
        (format!("(trap '' TERM HUP INT; {f})"), vec![f]),
        (format!("nohup {g} >/dev/null 2>&1 & {h} | cat"), vec![g, h]),
        (format!("timeout 300 {i}"), vec![i]),
        // In sessions of their own, one without its environment: what is left of a daemon.
        (format!("setsid {j} & env -i setsid {k} >/dev/null & {l}"), vec![j, k, l]),
    ]
}

#[tokio::test]
async fn a_killed_device_leaves_no_process_and_says_what_became_of_its_task_when_it_is_back() {
    let Working { server, mut device } = Working::start().await;
    let mut requester = server.raw_constellation("g").await;
    for (command, running) in shapes() {
        let session = requester.submit("box", &plan(&settled(&command))).await;
        requester.expect_ack(&session).await;
        for sleep in &running {
            until_running(sleep).await;
        }
        device.kill().await;
        for sleep in &running {
            until_gone(sleep).await;
        }
        device = server.device("box", &AT_WORK).await;
        let end = requester.expect_end(&session, "failed").await;
        let error = end["result"][0]["result"][0][0]["error"].as_str().unwrap();
        assert_eq!(error, "interrupted, outcome unknown", "{command}");
    }
    requester.beat().await;
}

#[tokio::test]
async fn a_device_that_is_killed_right_after_it_started_a_command_leaves_no_process() {
    let Working { server, mut device } = Working::start().await;
    let mut requester = server.raw_constellation("g").await;
    for _ in 0..30 {
        let (a, b) = (long_sleep(), long_sleep());
        let session = requester.submit("box", &plan(&format!("{a} & {b} & wait"))).await;
        requester.expect_ack(&session).await;
        until_running(&a).await;
        device.kill().await;
        until_gone(&a).await;
        until_gone(&b).await;
        device = server.device("box", &AT_WORK).await;
        requester.expect_end(&session, "failed").await;
    }
}

#[tokio::test]
async fn a_device_that_is_told_to_stop_right_after_it_started_a_command_leaves_no_process() {
    let Working { server, mut device } = Working::start().await;
    let mut requester = server.raw_constellation("g").await;
    for _ in 0..30 {
        let (a, b) = (long_sleep(), long_sleep());
        let session = requester.submit("box", &plan(&format!("{a} & {b} & wait"))).await;
        requester.expect_ack(&session).await;
        tokio::time::sleep(Duration::from_micros(fastrand::u64(..4000))).await;
        device.signal(Signal::TERM);
        assert_eq!(device.done().await.code, 0);
        requester.expect_end(&session, "failed").await;
        until_gone(&a).await;
        until_gone(&b).await;
        device = server.device("box", &AT_WORK).await;
    }
}

#[tokio::test]
async fn exec_names_the_device_that_was_killed() {
    let Working { server, mut device } = Working::start().await;
    let slow = long_sleep();
    let waiting = server.start_command(&["exec", "--on", "box", "--", &settled(&slow)]);
    until_running(&slow).await;
    device.kill().await;
    let _device = server.device("box", &AT_WORK).await;
    let failed = waiting.done().await;
    assert_eq!(failed.code, 121, "{failed:?}");
    assert!(failed.stderr.contains("execute_command: interrupted, outcome unknown"), "{failed:?}");
}

#[tokio::test]
async fn a_damaged_journal_costs_the_command_that_ran_and_nothing_that_waits() {
    let server = Server::start().await;
    let state = server.state_file("device");
    let args = [&AT_WORK[..], &["--state-dir", state.to_str().unwrap()]].concat();
    let mut device = server.device("box", &args).await;
    let slow = long_sleep();
    let waiting = server.start_command(&["exec", "--on", "box", "--", &settled(&slow)]);
    until_running(&slow).await;
    let queued = server.run(&["exec", "--detach", "--on", "box", "--", "echo", "later"]).await;
    device.kill().await;
    until_gone(&slow).await;
    let files = std::fs::read_dir(state.join("journal-box")).unwrap();
    let mut files = files.map(|file| file.unwrap().path());
    let log = files.find(|path| path.extension().is_some_and(|name| name == "journal")).unwrap();
    let mut bytes = std::fs::read(&log).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&log, bytes).unwrap();

    let _device = server.device("box", &args).await;
    let cut = waiting.done().await;
    assert_eq!(cut.code, 121, "{cut:?}");
    let later = server.run(&["task", "follow", queued.stdout.trim()]).await;
    assert!(later.code == 0 && later.stdout.contains("later"), "{queued:?} {later:?}");
    let ready = format!("http://127.0.0.1:{}/readyz", server.port);
    let ready = within("an answer", common::http_client().get(ready).send()).await.unwrap();
    assert_eq!(within("its body", ready.text()).await.unwrap(), "ready");
}

#[tokio::test]
async fn a_device_that_is_told_to_stop_stops_what_it_runs() {
    for signal in [Signal::INT, Signal::TERM] {
        let Working { server, device } = Working::start().await;
        let slow = long_sleep();
        let waiting = server.start_command(&["exec", "--on", "box", "--", &settled(&slow)]);
        until_running(&slow).await;
        device.signal(signal);
        assert_eq!(device.done().await.code, 0);
        let failed = waiting.done().await;
        assert_eq!(failed.code, 121, "{}", failed.stderr);
        assert!(failed.stdout.starts_with("1\n2\n"), "what came until then is there");
        for part in ["stopping: stopped", "; its outcome is unknown"] {
            assert!(failed.stderr.contains(part), "{}", failed.stderr);
        }
        until_gone(&slow).await;
    }
}

/// Somebody who leaves nothing running: a constellation without the extension, whose tasks end with its connection.
async fn submitted(server: &Server, plan: &str) -> (Peer, String) {
    let mut requester = server.raw_constellation(&unique("g")).await;
    let session = requester.submit("box", plan).await;
    requester.expect_ack(&session).await;
    (requester, session)
}

#[tokio::test]
async fn an_orchestrator_that_is_gone_frees_its_device() {
    let Working { server, mut device } = Working::start().await;
    for (command, running) in shapes() {
        let (requester, _) = submitted(&server, &plan(&settled(&command))).await;
        for sleep in &running {
            until_running(sleep).await;
        }
        drop(requester);
        for sleep in &running {
            until_gone(sleep).await;
        }
    }
    let working = Working { server, device };
    working.device_is_free().await;
    device = working.device;
    assert_eq!(device.stderr().matches("connected to").count(), 1, "{}", device.stderr());
}

#[tokio::test]
async fn tasks_that_waited_behind_an_orchestrator_that_is_gone_get_their_turn() {
    let working = Working::start().await;
    let slow = long_sleep();
    let (first, _) = submitted(&working.server, &plan(&settled(&slow))).await;
    until_running(&slow).await;
    let (mut second, session) = submitted(&working.server, &plan("echo at last")).await;
    drop(first);
    let end = second.expect_end(&session, "completed").await;
    assert_eq!(end["result"][0]["result"][0][0]["result"]["stdout"], "at last\n");
}

#[tokio::test]
async fn a_killed_server_stops_nothing_and_loses_nothing() {
    let Working { mut server, mut device } = Working::start().await;
    let [begun, go, line] = ["begun", "go", "line"].map(|name| server.state_file(name));
    let command = format!(
        "touch {}; until test -e {}; do sleep 0.05; done; echo at last >> {}; echo at last",
        begun.display(),
        go.display(),
        line.display(),
    );
    let mut waiting = server.start_command(&["run", "--on", "box", &plan(&command)]);
    until("the command", || begun.exists()).await;
    server.process.kill().await;
    waiting.says("Lost the server").await;
    device.says("trying again in").await;

    let server = server.start_again().await;
    device.says_times("connected to", 2).await;
    std::fs::write(&go, "").unwrap();
    let done = waiting.done().await;
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stdout.contains("at last"), "{done:?}");
    assert_eq!(std::fs::read_to_string(&line).unwrap(), "at last\n");
    Working { server, device }.device_is_free().await;
}

#[tokio::test]
async fn everybody_killed_at_once_leaves_no_process() {
    let Working { mut server, mut device } = Working::start().await;
    let slow = long_sleep();
    let mut waiting = server.start_command(&["exec", "--on", "box", "--", &settled(&slow)]);
    until_running(&slow).await;
    let killing = async { tokio::join!(server.process.kill(), device.kill(), waiting.kill()) };
    within("the end of all", killing).await;
    until_gone(&slow).await;
}
