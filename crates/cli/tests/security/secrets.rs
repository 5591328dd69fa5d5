//! Keys are in no log, whoever shows them, however.

use std::path::Path;

use serde_json::Value;

use crate::common::{Home, Peer, Process, http_client, within};
use crate::fleet::{Fleet, SHARED};

/// What a key must not be found by: itself, and the part of a created one that is secret.
fn secrets(key: &str) -> [&str; 2] {
    [key, key.rsplit('_').next().unwrap()]
}

#[tokio::test]
async fn no_key_is_ever_in_a_log_of_the_server_right_or_wrong() {
    show_keys("text").await;
}

#[tokio::test]
async fn no_key_is_ever_in_a_log_of_the_server_for_programs() {
    show_keys("json").await;
}

/// Shows a server right and wrong keys in every way, and looks for them in its logs.
async fn show_keys(format: &str) {
    let keys = ["lab --role device", "galaxy --role constellation", "boss --role operator"];
    let flags = ["--log", "trace", "--log-format", format];
    let mut fleet = Fleet::start_with(&keys, &flags).await;
    let valid = ["lab", "galaxy", "boss", SHARED].map(|name| fleet.key(name).to_owned());
    let near = format!("{}x", fleet.key("lab"));
    let wrong = ["wr0ng-s3cret".to_owned(), near, "fd_000000000000_5ecr3t".to_owned()];
    let client = http_client();
    for key in valid.iter().chain(&wrong) {
        for path in ["/api/clients", "/api/v1/tasks", "/metrics", "/ws", "/healthz", "/none"] {
            let url = fleet.http(path);
            let encoded: String = key.bytes().map(|byte| format!("%{byte:02x}")).collect();
            for request in [
                client.get(&url).header("X-API-Key", key),
                client.get(&url).bearer_auth(key),
                client.get(format!("{url}?token={key}")),
                client.get(format!("{url}?token={encoded}")),
                // Where it does not belong, but where people put it.
                client.get(format!("{url}?key={key}")),
                client.get(&url).basic_auth("user", Some(key)),
                client.post(&url).header("X-API-Key", key).body("{"),
                client.get(&url).bearer_auth(key).header("Origin", "https://attacker.example"),
            ] {
                let answer = within("an answer", request.send()).await.unwrap();
                let body = within("its body", answer.text()).await.unwrap();
                assert!(!body.contains(secrets(key)[1]), "{path}: {body}");
            }
        }
        let peer = Peer::connect(fleet.server.port, key).await;
        assert_eq!(peer.is_ok(), valid.contains(key));
        if let Ok(mut peer) = peer {
            peer.say_device("x").await;
            peer.next().await.unwrap();
            peer.send("{").await;
            let _answered_or_closed = peer.next().await;
        }
    }
    fleet.create("late --role device").await;
    fleet.revoke("late").await;
    let late = fleet.key("late").to_owned();
    let log = fleet.server.process.stderr();
    assert!(log.contains("DEBUG") && log.contains("a wrong key or none was refused"));
    let audit = std::fs::read_to_string(fleet.server.state_file("audit.jsonl")).unwrap();
    assert!(audit.contains("key_refused"), "{audit}");
    for key in valid.iter().chain(&wrong).chain([&late]) {
        let encoded: String = key.bytes().map(|byte| format!("%{byte:02x}")).collect();
        for secret in secrets(key).into_iter().chain([&*encoded]) {
            for (name, text) in [("log", &log), ("audit log", &audit)] {
                let line = text.lines().find(|line| line.contains(secret));
                assert_eq!(line, None, "a key is in the {name}");
            }
        }
    }
}

#[tokio::test]
async fn no_key_is_ever_in_what_a_client_says() {
    let fleet = Fleet::start(&["lab --role device", "galaxy --role constellation"]).await;
    let home = Home::new();
    let port = fleet.server.port;
    for (key, is_right) in [(fleet.key("lab"), true), ("wr0ng-s3cret", false)] {
        let url = format!("ws://127.0.0.1:{port}/ws?token={key}");
        let plain = format!("ws://127.0.0.1:{port}/ws");
        for (url, variable) in [(&url, ""), (&plain, key)] {
            let args =
                ["device", "--id", "x", "--server", url, "--log", "trace", "--max-retries", "0"];
            let mut command = home.command(&args);
            if !variable.is_empty() {
                command.env("FLIGHTDECK_TOKEN", variable);
            }
            let mut device = Process::start(&mut command);
            let log = if is_right {
                device.says("connected to").await;
                device.signal(rustix::process::Signal::INT);
                device.done().await.stderr
            } else {
                let done = device.done().await;
                assert_ne!(done.code, 0, "{done:?}");
                done.stderr
            };
            let line = log.lines().find(|line| line.contains(secrets(key)[1]));
            assert_eq!(line, None, "the key is in the log");
        }
    }
    let key = fleet.key("galaxy");
    let args = ["config", "show", "--json"];
    let done = Process::start(home.command(&args).env("FLIGHTDECK_TOKEN", key)).done().await;
    assert!(done.code == 0 && !done.stdout.contains(secrets(key)[1]), "{done:?}");
}

/// The keys by which clients are known again that lie somewhere below a folder.
fn resume_keys(folder: &Path) -> Vec<String> {
    let mut keys = Vec::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        if path.is_dir() {
            keys.extend(resume_keys(&path));
        } else if path.ends_with("identity.json") {
            let known: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            let stores = known["stores"].as_array().unwrap().iter();
            keys.extend(stores.filter_map(|store| store["key"].as_str().map(str::to_owned)));
        }
    }
    keys
}

#[tokio::test]
async fn no_key_by_which_a_client_is_known_again_is_in_a_log_or_printed() {
    for format in ["text", "json"] {
        let flags = ["--log", "trace", "--log-format", format];
        let mut fleet = Fleet::start_with(&[], &flags).await;
        let home = Home::new();
        let mut device = fleet.server.device_at(&home, "x", &flags).await;
        fleet.server.process.kill().await;
        let before = fleet.server.process.stderr();
        fleet.server = fleet.server.start_again_with(&flags).await;
        // It shows the key that it was given before.
        device.says_times("connected to", 2).await;
        let run = ["exec", "--on", "x", "--json", "--log", "trace", "--", "uname"];
        let done = fleet.run(&run).await;
        assert_eq!(done.code, 0, "{done:?}");
        let (_, devices) = fleet.get(SHARED, "/api/v1/devices").await;
        let keys = resume_keys(home.path());
        assert!(!keys.is_empty());
        let server = fleet.server.process.stderr();
        let shown =
            [before, server, device.stderr(), done.stdout, done.stderr, devices.to_string()];
        for text in shown {
            assert!(!text.contains("resume_key"), "{text}");
            assert!(!keys.iter().any(|key| text.contains(key)), "{text}");
        }
    }
}

/// Starts a program of which a core dump may be as large as it likes, has it end as if it had a fault, and tells
/// whether one lies in its home.
#[cfg(target_os = "linux")]
async fn dumps_core(args: &[&str], says: &str) -> bool {
    let home = Home::new();
    let script = "ulimit -c unlimited; echo begun >&2; exec \"$@\"";
    let mut process =
        Process::start(&mut home.program("/bin/sh", &[&["-c", script, "sh"][..], args].concat()));
    process.says(says).await;
    process.signal(rustix::process::Signal::ABORT);
    within("the end of an aborted process", process.ended()).await;
    home.files().iter().any(|name| name.starts_with("core"))
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn no_process_with_a_key_leaves_a_core_dump() {
    use crate::common::process::BINARY;
    let program = "echo waits >&2; exec sleep 1000";
    if !dumps_core(&["/bin/sh", "-c", program], "waits").await {
        eprintln!("left out: this system puts core dumps elsewhere, or makes none");
        return;
    }
    assert!(!dumps_core(&[BINARY, "serve", "--port", "0"], "Other machines").await);
    let away = ["--server", "ws://127.0.0.1:9", "--token", "5ecret"];
    assert!(!dumps_core(&[&[BINARY, "device"][..], &away].concat(), "trying again").await);
}
