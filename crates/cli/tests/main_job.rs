//! The README's story with real processes: a server, devices, and people at the command line.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::process::Stdio;

use common::process::{is_inhabited, until_gone, until_running};
use common::{Home, Process, Server, long_sleep, plan, plan_of, unique, until, within};
use rustix::process::Signal;
use serde_json::{Value, json};

/// What a program of this machine prints.
fn prints(program: &str, args: &[&str]) -> String {
    let output = std::process::Command::new(program).args(args).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

#[tokio::test]
async fn a_device_is_listed_and_a_command_on_it_prints_what_it_prints_there() {
    let server = Server::start().await;
    let nobody = server.run(&["devices"]).await;
    assert!(nobody.code == 0 && nobody.stderr.contains("No device is online"), "{nobody:?}");

    let _device = server.device("my-box", &[]).await;
    let table = server.run(&["devices"]).await;
    assert_eq!(table.code, 0);
    let row: Vec<&str> = table.stdout.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[..2], ["my-box", "linux"], "{}", table.stdout);

    let listed = json_lines(&server.run(&["devices", "--json"]).await.stdout);
    assert_eq!(listed.len(), 1);
    assert_eq!((&listed[0]["id"], &listed[0]["tasks"]), (&json!("my-box"), &json!([])));

    let ran = server.run(&["exec", "--on", "my-box", "--", "uname", "-r"]).await;
    assert_eq!((ran.code, ran.stdout), (0, prints("uname", &["-r"])));
}

#[tokio::test]
async fn the_code_of_a_command_becomes_the_code_of_exec() {
    let (server, files) = (Server::start().await, Home::new());
    let root = files.path().to_str().unwrap();
    let _careful = server.device("careful", &["--root", root]).await;
    let _open = server.device("open", &["--exec", "shell"]).await;
    let missing = format!("{root}/missing");
    for (words, code, stderr) in [
        (&["--on", "careful", "--", "ls", root][..], 0, ""),
        (&["--on", "careful", "--", "ls", &missing], 2, "No such file"),
        (&["--on", "careful", "--", "rm", "-r", root], 125, "Blocked"),
        (&["--on", "open", "--", "exit 7"], 7, ""),
        (&["--on", "open", "--", "sh", "-c", "echo oh >&2; exit 255"], 255, "oh"),
        (&["--on", "open", "--", "kill -9 $$"], 137, ""),
        (&["--on", "open", "--timeout", "0.2", "--", "sleep 60"], 124, "Timed out"),
        (&["--on", "nobody", "--", "uname"], 123, "Target device 'nobody' is not connected"),
        (&["--on", "careful", "--timeout", "0", "--", "uname"], 125, "must be more than 0"),
    ] {
        let done = server.run(&[&["exec"], words].concat()).await;
        assert_eq!(done.code, code, "{words:?}: {done:?}");
        assert!(done.stderr.contains(stderr), "{words:?}: {done:?}");
    }
}

#[tokio::test]
async fn several_devices_answer_with_their_labels_and_the_worst_code_wins() {
    let (server, homes) = (Server::start().await, [Home::new(), Home::new(), Home::new()]);
    let mut devices = Vec::new();
    for (home, (id, code)) in homes.iter().zip([("a", 0), ("b", 5), ("c", 3)]) {
        std::fs::write(home.path().join("code"), format!("exit {code}")).unwrap();
        devices.push(server.device_at(home, id, &["--exec", "shell"]).await);
    }
    let command = ["--", "cat code; echo; echo err >&2; . ./code"];

    let two = server.run(&[&["exec", "--on", "a", "--on", "c"], &command[..]].concat()).await;
    let mut lines: Vec<&str> = two.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!((two.code, lines), (3, vec!["[a] exit 0", "[c] exit 3"]));
    assert!(two.stderr.contains("[a] err") && two.stderr.contains("[c] err"), "{}", two.stderr);

    let all = server.run(&[&["exec", "--all", "--json"], &command[..]].concat()).await;
    let mut answers = json_lines(&all.stdout);
    // The id differs each time.
    answers.iter_mut().for_each(|answer| answer["task"] = Value::Null);
    answers.sort_by_key(|answer| answer["device"].to_string());
    let shown = |id, code| {
        json!({"device": id, "task": null, "status": "completed", "known": null, "refused": null,
            "error": null, "exit_code": code, "stdout": format!("exit {code}\n"), "stderr": "err\n",
            "truncated": false})
    };
    assert_eq!((all.code, answers), (5, vec![shown("a", 0), shown("b", 5), shown("c", 3)]));

    let missing =
        server.run(&[&["exec", "--on", "a", "--on", "nobody"], &command[..]].concat()).await;
    assert_eq!(missing.code, 123, "the reachable device went well: {missing:?}");
    assert!(missing.stdout.contains("[a] exit 0"), "{missing:?}");
}

#[tokio::test]
async fn run_prints_the_outcome_of_a_plan_on_stdout_and_its_progress_on_stderr() {
    let server = Server::start().await;
    let _device = server.device("box", &["--exec", "shell"]).await;

    let ran = server.run(&["run", "--on", "box", &plan_of(&["echo one", "echo two"])]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let steps: Value = serde_json::from_str(&ran.stdout).unwrap();
    let printed = |n: usize| steps[n][0]["result"]["stdout"].as_str().unwrap().to_owned();
    assert_eq!((printed(0), printed(1)), ("one\n".to_owned(), "two\n".to_owned()));
    assert!(ran.stderr.contains("1 echo one") && ran.stderr.contains("completed"), "{ran:?}");

    let mut from_stdin = Process::start(
        server.command(&["run", "--on", "box", "--json", "-"]).stdin(Stdio::piped()),
    );
    from_stdin.feed(&plan("echo three")).await;
    let ran = from_stdin.done().await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let ended = &json_lines(&ran.stdout)[..];
    assert!(matches!(ended, [_]), "one line: {}", ran.stdout);
    assert_eq!(ended[0]["result"][0]["result"][0][0]["result"]["stdout"], "three\n");
    let events = json_lines(&ran.stderr);
    assert_eq!(events[0]["event"], "accepted");
    assert!(events[1..].iter().all(|event| event["event"] == "progress"), "{events:?}");
    assert!(events.len() > 1, "there is progress");

    let text = server.run(&["run", "--on", "box", "tidy up my desk"]).await;
    assert!(text.code == 1 && text.stderr.contains("has no model"), "{text:?}");
}

#[tokio::test]
async fn a_key_is_needed_and_whoever_has_none_is_told_where_it_is() {
    let server = Server::start().await;
    let shown = server.run(&["key", "show"]).await;
    assert_eq!((shown.code, shown.stdout.trim()), (0, server.key().as_str()));

    let stranger = Home::new();
    let url = server.url();
    for args in
        [&["devices"][..], &["exec", "--on", "x", "--", "uname"], &["run", "--on", "x", "y"]]
    {
        for (key, hint) in [(None, "no key was given"), (Some("wrong"), "makes one")] {
            let mut command = stranger.command(args);
            command.env("FLIGHTDECK_SERVER", &url).envs(key.map(|key| ("FLIGHTDECK_TOKEN", key)));
            let refused = Process::start(&mut command).done().await;
            let code = if args[0] == "exec" { 123 } else { 4 };
            assert_eq!(refused.code, code, "{args:?} with {key:?}: {refused:?}");
            assert!(refused.stderr.contains("refused the key"), "{refused:?}");
            assert!(refused.stderr.contains(hint), "{args:?} with {key:?}: {refused:?}");
            assert!(refused.stderr.contains("flightdeck key create"), "{refused:?}");
        }
    }
}

#[tokio::test]
async fn without_a_server_every_command_says_how_to_start_one() {
    let home = Home::new();
    // A port that is free just now, and that nothing else here listens on.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    drop(listener);
    for args in [
        &["devices"][..],
        &["exec", "--on", "x", "--", "uname"],
        &["exec", "--all", "--", "uname"],
        &["run", "--on", "x", "y"],
        &["device", "--max-retries", "0"],
    ] {
        let done = Process::start(home.command(args).env("FLIGHTDECK_SERVER", &url)).done().await;
        let code = if args[0] == "exec" { 123 } else { 4 };
        assert_eq!(done.code, code, "{args:?}: {done:?}");
        assert!(done.stderr.contains("no server answers at"), "{args:?}: {done:?}");
        assert!(done.stderr.contains("flightdeck serve"), "{args:?}: {done:?}");
    }
}

#[tokio::test]
async fn ctrl_c_cancels_what_runs_on_the_device() {
    let server = Server::start().await;
    let _device = server.device("box", &["--exec", "shell"]).await;
    let plans = [long_sleep(), long_sleep()];
    for (args, slow) in [
        (vec!["run", "--on", "box", &plan(&plans[0])], &plans[0]),
        (vec!["exec", "--on", "box", "--timeout", "300", "--", &plans[1]], &plans[1]),
    ] {
        let waiting = server.start_command(&args);
        until_running(slow).await;
        waiting.signal(Signal::INT);
        let done = waiting.done().await;
        let code = if args[0] == "exec" { 120 } else { 3 };
        assert_eq!(done.code, code, "{args:?}: {done:?}");
        assert!(done.stderr.to_lowercase().contains("cancelled"), "{args:?}: {done:?}");
        until_gone(slow).await;
    }
    let next = server.run(&["exec", "--on", "box", "--", "echo", "free again"]).await;
    assert_eq!((next.code, next.stdout.as_str()), (0, "free again\n"));
}

#[tokio::test]
async fn a_server_that_is_told_to_stop_says_goodbye_and_its_devices_try_again() {
    let mut server = Server::start().await;
    let mut device = server.device("box", &[]).await;
    server.process.signal(Signal::TERM);
    server.process.says("Stopping").await;
    device.says("trying again in").await;
    assert!(device.stderr().contains("1001"), "{}", device.stderr());
    let Server { process, .. } = server;
    assert_eq!(process.done().await.code, 0);
    device.signal(Signal::TERM);
    assert_eq!(device.done().await.code, 0);
}

#[tokio::test]
async fn a_server_that_is_told_to_stop_lets_the_running_command_finish_and_goes_on_later() {
    for _ in 0..4 {
        let mut server = Server::start().await;
        let one_at_a_time = ["--exec", "shell", "--parallel-commands", "1"];
        let (_device, home) = (server.device("box", &one_at_a_time).await, Home::new());
        let (is_on, go) = (home.path().join("is_on"), home.path().join("go"));
        let wait = format!(
            "touch {}; while ! [ -e {} ]; do sleep 0.05; done; echo finished",
            is_on.display(),
            go.display()
        );
        let running = server.start_command(&["exec", "--on", "box", "--", &wait]);
        until("the command to be on", || is_on.exists()).await;
        let waiting = server.start_command(&["exec", "--on", "box", "--", "uname"]);
        let queued =
            async { while !server.run(&["devices", "--json"]).await.stdout.contains("queued") {} };
        within("a queued task", queued).await;

        server.process.signal(Signal::TERM);
        server.process.says("Stopping").await;
        std::fs::write(&go, "").unwrap();
        let done = running.done().await;
        assert_eq!((done.code, done.stdout.as_str()), (0, "finished\n"), "{}", done.stderr);
        server.process.ended().await;
        let _again = server.start_again().await;
        let done = waiting.done().await;
        assert_eq!((done.code, done.stdout.as_str()), (0, "Linux\n"), "{}", done.stderr);
    }
}

#[tokio::test]
async fn the_demo_shows_three_steps_and_leaves_nothing_behind() {
    let home = Home::new();
    let demo = home.start(&["demo"]).done().await;
    assert_eq!(demo.code, 0, "{demo:?}");
    for step in ["✓ 1 uname", "✓ 2 df", "✓ 3 "] {
        assert!(demo.stderr.contains(step), "{step}: {demo:?}");
    }
    assert!(demo.stderr.contains(prints("uname", &["-sr"]).trim()), "{demo:?}");
    assert!(demo.stdout.contains("3 of 3 steps went well"), "{demo:?}");
    assert_eq!(home.files(), [""; 0]);
    until("the end of all its processes", || !is_inhabited(&home)).await;
}

#[tokio::test]
async fn the_demo_shows_its_frames_as_json() {
    let home = Home::new();
    let demo = home.start(&["demo", "--json"]).done().await;
    assert_eq!(demo.code, 0, "{demo:?}");
    let frames = json_lines(&demo.stdout);
    let keys = frames.iter().filter_map(|one| {
        one["frame"]["result"]["flightdeck"]["resume_key"].as_str().map(str::to_owned)
    });
    assert_eq!(keys.collect::<Vec<_>>(), ["…", "…"], "they are secrets: {}", demo.stdout);
    let kinds = |link: &str, dir: &str| -> Vec<String> {
        let on = frames.iter().filter(|frame| frame["link"] == link && frame["dir"] == dir);
        on.map(|frame| frame["frame"]["type"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(frames.iter().filter(|frame| frame["t"].is_f64()).count(), frames.len());
    assert_eq!(
        kinds("device", "c2s"),
        ["register", "command_results", "command_results", "command_results"]
    );
    // The confirmation; then each result is acknowledged.
    let [confirmed, step] = [["heartbeat"].as_slice(), ["command", "heartbeat"].as_slice()];
    let expected = [confirmed, step, step, step, ["task_end"].as_slice()].concat();
    assert_eq!(kinds("device", "s2c"), expected);
    // The outcome is acknowledged too, if there is time for it.
    assert_eq!(kinds("constellation", "c2s")[..2], ["register", "task"]);
    let told = kinds("constellation", "s2c");
    // The confirmation, the ACK, and progress.
    let (end, before) = told.split_last().unwrap();
    assert!(end == "task_end" && before.len() > 2, "{told:?}");
    assert!(before.iter().all(|kind| kind == "heartbeat"), "{told:?}");
}

#[tokio::test]
async fn a_device_can_be_given_a_task_of_its_own_at_its_start() {
    let server = Server::start().await;
    let name = unique("own");
    let args = ["--exec", "shell", "--request", &plan("echo mine"), "--task-name", &name];
    let mut device = server.device("box", &args).await;
    device.says("task completed").await;
    device.signal(Signal::INT);
    let done = device.done().await;
    assert!(done.code == 0 && done.stdout.contains("mine"), "{done:?}");
}
