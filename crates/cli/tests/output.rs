//! What the command line does with its output, and with a key, when the other end misbehaves.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::OpenOptions;
use std::process::Stdio;

use common::process::{Home, Server};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Commands that print, and need no device.
const PRINTING: [&[&str]; 5] = [
    &["devices"],
    &["key", "show"],
    &["config", "show"],
    &["config", "reference"],
    &["completions", "bash"],
];

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_has_seen_enough_is_no_error() {
    let server = Server::start().await;
    let _device = server.device("box", &[]).await;
    for args in PRINTING {
        let mut child = server.command(args).stdout(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let status = child.wait().await.unwrap();
        assert_eq!(status.code(), Some(0), "{args:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn output_that_is_lost_is_an_error() {
    let server = Server::start().await;
    let _device = server.device("box", &[]).await;
    let exec: &[&str] = &["exec", "--on", "box", "--", "uname"];
    for args in PRINTING.into_iter().chain([exec]) {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let child = server.command(args).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
        let done = child.wait_with_output().await.unwrap();
        let stderr = String::from_utf8_lossy(&done.stderr);
        // What `exec` says itself is none of a command's own codes.
        let code = if args[0] == "exec" { 125 } else { 2 };
        assert_eq!(done.status.code(), Some(code), "{args:?}: {stderr}");
        assert!(stderr.contains("cannot write the output"), "{args:?}: {stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_points_elsewhere_does_not_get_the_key_there() {
    let thief = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", server.local_addr().unwrap());
    let elsewhere = format!("http://{}/steal", thief.local_addr().unwrap());
    let answering = tokio::spawn(async move {
        let (mut stream, _) = server.accept().await.unwrap();
        let mut request = [0_u8; 4096];
        let _read = stream.read(&mut request).await.unwrap();
        let answer =
            format!("HTTP/1.1 302 Found\r\nLocation: {elsewhere}\r\nContent-Length: 0\r\n\r\n");
        stream.write_all(answer.as_bytes()).await.unwrap();
    });
    let home = Home::new();
    let mut command = home.command(&["devices", "--server", &url]);
    let status = command.env("FLIGHTDECK_TOKEN", "hunter2").status().await.unwrap();
    answering.await.unwrap();
    assert_eq!(status.code(), Some(4));
    let nobody = tokio::time::timeout(std::time::Duration::ZERO, thief.accept()).await;
    assert!(nobody.is_err(), "the key went elsewhere");
}

#[tokio::test]
async fn what_a_ufo_device_says_of_a_command_without_an_exit_code_is_shown() {
    let server = Server::start().await;
    let mut device = server.raw_device("ufo").await;
    let waiting = server.start_command(&["exec", "--on", "ufo", "--", "sleep 9"]);
    let command = device.expect("command").await;
    let result = json!({"success": false, "error": "Timeout after 2s."});
    let call_id = &command["actions"][0]["call_id"];
    let results = json!([{"status": "success", "result": result, "call_id": call_id}]);
    device.answer(&command, results).await;
    let done = waiting.done().await;
    assert_eq!((done.code, done.stderr.trim()), (124, "ufo: Timeout after 2s."));
}

#[tokio::test]
async fn the_help_of_a_command_names_the_defaults_of_its_own_settings() {
    let home = Home::new();
    for (command, default) in [("serve", "90 s"), ("device", "180 s")] {
        let help = home.start(&[command, "--help"]).done().await.stdout;
        let about = help.split("--liveness-timeout").nth(1).unwrap();
        let about = about.split("--").next().unwrap();
        assert!(about.contains(&format!("[default: {default}]")), "{command}: {about}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_an_address_is_told_without_its_password() {
    let home = Home::new();
    let run = |args: &[&str]| home.start(args).done();
    let done = run(&["devices", "--server", "ws://me:hunter2@127.0.0.1:1/x?token=5ecret"]).await;
    assert!(done.code == 2 && done.stderr.contains("\"ws://127.0.0.1:1/x\" is no server URL"));
    assert!(!done.stderr.contains("hunter2") && !done.stderr.contains("5ecret"), "{done:?}");
    // It has to be there also where there is nothing to be trusted.
    let done = run(&["devices", "--server", "ws://127.0.0.1:1", "--ca-file", "nofile.pem"]).await;
    assert!(done.code == 2 && done.stderr.contains("nofile.pem"), "{done:?}");
}

#[tokio::test]
async fn a_server_with_a_state_folder_of_its_own_says_how_to_use_it() {
    let home = Home::new();
    let state = home.path().join("my state");
    let args = ["serve", "--port", "0", "--state-dir", state.to_str().unwrap()];
    let mut server = home.start(&args);
    server.says("Other machines cannot reach").await;
    let flag = format!("--state-dir '{}'", state.display());
    let said = server.stderr();
    for command in ["flightdeck key show", "flightdeck device", "flightdeck exec"] {
        let line = said.lines().find(|line| line.contains(command)).unwrap();
        assert!(line.contains(&flag), "{line}");
    }
}
