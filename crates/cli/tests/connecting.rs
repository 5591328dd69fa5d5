//! How the commands and a device reach their server, and what they say when it does not have them, with real processes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::process::{BINARY, Home};
use common::{Process, Server, within};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A key that nobody made.
const WRONG: &str = "not-a-key";

/// Less than the wait after two refusals, which is ten seconds.
const SOON: Duration = Duration::from_secs(8);

/// A file of a home with a key in it.
fn key_file(home: &Home, key: &str) -> PathBuf {
    let path = home.path().join("its-key");
    fs::write(&path, key).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// A device that was refused twice, and waits for some time before it tries again.
async fn refused_twice(server: &Server, home: &Home, program: &[&str]) -> Process {
    let file = key_file(home, WRONG).display().to_string();
    let url = server.url();
    let args = ["device", "--id", "d", "--server", &url, "--token-file", &file];
    let all = [program, &[BINARY], &args[..]].concat();
    let mut device = Process::start(&mut home.program(all[0], &all[1..]));
    device.says_times("refused the key", 2).await;
    device
}

#[tokio::test]
async fn a_key_opens_as_soon_as_it_is_made() {
    let server = Server::start().await;
    for n in 0..5 {
        let id = format!("n{n}");
        let made = ["key", "create", "--name", &id, "--role", "device", "--client", &id];
        let key = server.run(&made).await.stdout.trim().to_owned();
        let home = Home::new();
        let args = ["device", "--id", &id, "--server", &server.url(), "--max-retries", "0"];
        let mut device = Process::start(home.command(&args).env("FLIGHTDECK_TOKEN", key));
        device.says("connected to").await;
        assert!(!device.stderr().contains("refused"), "{}", device.stderr());
    }
    // A key of this form that nobody made is refused all the same.
    let mut command = server.command(&["devices"]);
    let done = Process::start(command.env("FLIGHTDECK_TOKEN", "fd_abc_def")).done().await;
    assert!(done.code == 4 && done.stderr.contains("refused the key"), "{done:?}");
}

#[tokio::test]
async fn a_refused_device_tries_again_as_soon_as_its_key_has_changed() {
    let (server, home) = (Server::start().await, Home::new());
    let mut device = refused_twice(&server, &home, &[]).await;
    let since = Instant::now();
    key_file(&home, &server.key());
    device.says("connected to").await;
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
}

#[tokio::test]
async fn a_refused_device_finds_a_key_that_is_put_into_its_settings_file() {
    let (server, home) = (Server::start().await, Home::new());
    let settings = home.path().join(".config/flightdeck/config.toml");
    fs::create_dir_all(settings.parent().unwrap()).unwrap();
    let write = |key: &str| {
        fs::write(&settings, format!("[client]\ntoken = \"{key}\"\n")).unwrap();
        fs::set_permissions(&settings, fs::Permissions::from_mode(0o600)).unwrap();
    };
    write(WRONG);
    let mut device = home.start(&["device", "--id", "d", "--server", &server.url()]);
    device.says_times("refused the key", 2).await;
    let since = Instant::now();
    write(&server.key());
    device.says("connected to").await;
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
}

#[tokio::test]
async fn a_service_tries_again_at_sighup_and_a_device_at_a_terminal_ends_by_it() {
    let (server, home) = (Server::start().await, Home::new());
    // In a session of its own it has no terminal, as a service.
    let mut device = refused_twice(&server, &home, &["setsid"]).await;
    let since = Instant::now();
    device.signal(Signal::HUP);
    device.says("Trying again at once").await;
    device.says_times("refused the key", 3).await;
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());

    let (mut device, typing) = server.device_at_terminal(&Home::new(), "t", &[]).await;
    device.signal(Signal::HUP);
    device.ended().await;
    drop(typing);
}

#[tokio::test]
async fn a_file_of_a_key_that_is_named_by_a_flag_goes_before_the_variable() {
    let server = Server::start().await;
    let home = Home::new();
    let (good, url) = (key_file(&home, &server.key()).display().to_string(), server.url());
    let with = async |args: &[&str], variable: &str, key: &str| {
        let args = [&["devices", "--server", &url], args].concat();
        Process::start(home.command(&args).env(variable, key)).done().await.code
    };
    assert_eq!(with(&["--token-file", &good], "FLIGHTDECK_TOKEN", WRONG).await, 0);
    assert_eq!(with(&[], "FLIGHTDECK_TOKEN", WRONG).await, 4);
    assert_eq!(with(&[], "FLIGHTDECK_TOKEN_FILE", &good).await, 0);
    let key = server.key();
    assert_eq!(
        with(&["--token-file", "/nowhere", "--token", &key], "FLIGHTDECK_LOG", "warn").await,
        0
    );
}

/// Something that reads a request and answers it with a text, and then for ever with another, if there is one. Ends
/// with how many bytes of that were taken.
async fn stranger(answer: String, endless: &'static str) -> (String, JoinHandle<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 4096];
        let _read = stream.read(&mut request).await.unwrap();
        stream.write_all(answer.as_bytes()).await.unwrap();
        let mut taken = 0;
        while !endless.is_empty() && stream.write_all(endless.as_bytes()).await.is_ok() {
            taken += endless.len();
        }
        taken
    });
    (url, serving)
}

#[tokio::test]
async fn a_refusal_is_told_in_the_servers_own_words() {
    let why = "This server does not go by the name 'fleet.example.com'; see allowed_hosts";
    for args in [
        &["device", "--id", "d", "--max-retries", "0"][..],
        &["run", "--on", "box", "do it"],
        &["exec", "--on", "box", "--", "true"],
    ] {
        let head = format!("HTTP/1.1 403 Forbidden\r\ncontent-length: {}\r\n\r\n", why.len());
        let (url, _serving) = stranger(head + why, "").await;
        let home = Home::new();
        let args = [args[..1].as_ref(), &["--server", &url], &args[1..]].concat();
        let done = Process::start(home.command(&args).env("FLIGHTDECK_TOKEN", WRONG)).done().await;
        let code = if args[0] == "exec" { 123 } else { 4 };
        assert_eq!(done.code, code, "{done:?}");
        assert!(done.stderr.contains(why), "{done:?}");
        assert!(!done.stderr.contains("the key"), "{done:?}");
    }
}

#[tokio::test]
async fn an_endless_answer_to_the_handshake_takes_no_memory() {
    let (url, serving) = stranger("HTTP/1.1 101 x\r\n".to_owned(), "x-y: zzzzzzzzzzzzzz\r\n").await;
    let home = Home::new();
    let args = ["device", "--id", "d", "--max-retries", "0", "--server", &url];
    let done = Process::start(home.command(&args).env("FLIGHTDECK_TOKEN", WRONG)).done().await;
    assert_eq!(done.code, 4, "{done:?}");
    assert!(done.stderr.contains("head of its answer is longer than 65536 bytes"), "{done:?}");
    // What is more than that is in the buffers of the two sockets.
    let taken = within("the end of the answer", serving).await.unwrap();
    assert!(taken < 16 << 20, "{taken}");
}
