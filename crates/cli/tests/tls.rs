//! TLS, as a user meets it: certificates that are trusted, strange, replaced or broken, and who speaks
//! plain to whom.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{Done, Home, Process, Server, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A certificate that signed itself, and its key.
fn pair(names: &[&str]) -> (String, String) {
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

fn pair_of_this_machine() -> (String, String) {
    pair(&["localhost", "127.0.0.1"])
}

/// A real `flightdeck serve` behind TLS, its files in a home that its clients share.
struct TlsServer {
    process: Process,
    port: u16,
    home: Home,
}

impl TlsServer {
    async fn start() -> Self {
        let (certificate, key) = pair_of_this_machine();
        Self::start_with(&certificate, &key, &[]).await
    }

    async fn start_with(certificate: &str, key: &str, more: &[&str]) -> Self {
        let home = Home::new();
        put(&home, certificate, key);
        let mut args = serve(&["--state-dir", "state"]);
        args.extend(more);
        let mut process = home.start(&args);
        process.says("Other machines").await;
        let stderr = process.stderr();
        let port = stderr.split("wss://127.0.0.1:").nth(1).unwrap().split('/').next().unwrap();
        Self { port: port.parse().unwrap(), process, home }
    }

    /// Starts a command of somebody on this machine who trusts what is in a file.
    fn start_command(&self, ca_file: &str, args: &[&str]) -> Process {
        let server = format!("wss://127.0.0.1:{}", self.port);
        let mut command = self.home.command(args);
        command.env("FLIGHTDECK_SERVER", server).env("FLIGHTDECK_STATE_DIR", "state");
        Process::start(command.env("FLIGHTDECK_CA_FILE", ca_file))
    }

    async fn run(&self, ca_file: &str, args: &[&str]) -> Done {
        self.start_command(ca_file, args).done().await
    }

    async fn device(&self, id: &str) -> Process {
        let mut device = self.start_command("cert.pem", &["device", "--id", id, "--exec", "shell"]);
        device.says("connected to").await;
        device
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.home.path().join(file), text).unwrap();
    }
}

fn serve<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let usual = ["serve", "--port", "0", "--tls-cert", "cert.pem", "--tls-key", "key.pem"];
    usual.iter().chain(more).copied().collect()
}

/// Puts a certificate and its key where the server looks for them.
fn put(home: &Home, certificate: &str, key: &str) {
    fs::write(home.path().join("cert.pem"), certificate).unwrap();
    let key_path = home.path().join("key.pem");
    fs::write(&key_path, key).unwrap();
    close_to_others(&key_path);
}

fn close_to_others(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

#[tokio::test]
async fn devices_and_orchestrators_work_over_tls_with_a_certificate_they_were_given() {
    let server = TlsServer::start().await;
    let _device = server.device("box").await;
    let done = server.run("cert.pem", &["exec", "--on", "box", "--", "echo over TLS"]).await;
    assert_eq!((done.code, done.stdout.as_str()), (0, "over TLS\n"), "{done:?}");
    let large = "head -c 1000000 /dev/zero | tr '\\0' x";
    let done = server.run("cert.pem", &["exec", "--on", "box", "--", large]).await;
    assert_eq!((done.code, done.stdout.trim_end().len()), (0, 1_000_000), "{}", done.stderr);
    for url in ["https://localhost", "wss://127.0.0.1"] {
        let url = format!("{url}:{}", server.port);
        let done = server.run("cert.pem", &["devices", "--server", &url]).await;
        assert!(done.code == 0 && done.stdout.contains("box"), "{url}: {done:?}");
    }
}

#[tokio::test]
async fn the_greeting_of_a_server_behind_tls_is_what_works() {
    let mut server = TlsServer::start().await;
    let greeting = server.process.stderr();
    let device = greeting.lines().find(|line| line.contains("flightdeck device")).unwrap();
    let words: Vec<_> = device.split_whitespace().skip(1).collect();
    let mut command = server.home.command(&words);
    let mut device = Process::start(command.env("FLIGHTDECK_STATE_DIR", "state"));
    device.says("connected to wss://127.0.0.1").await;
    // Also with another key pair.
    let (certificate, key) = pair_of_this_machine();
    put(&server.home, &certificate, &key);
    server.process.says("the TLS certificate was replaced").await;
    server.process.kill().await;
    let port = server.port.to_string();
    let again = ["--tls-cert", "cert.pem", "--tls-key", "key.pem", "--state-dir", "state"];
    let _again = server.home.start(&[&["serve", "--port", &port][..], &again].concat());
    device.says_times("connected to wss://127.0.0.1", 2).await;
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_refused_with_what_to_do() {
    let server = TlsServer::start().await;
    server.write("other.pem", &pair_of_this_machine().0);
    for ca_file in ["", "other.pem"] {
        for args in [
            &["devices"][..],
            &["exec", "--on", "x", "--", "uname"],
            &["exec", "--all", "--", "uname"],
            &["run", "--on", "x", "y"],
            &["device", "--max-retries", "3"],
        ] {
            let refused = server.run(ca_file, args).await;
            let code = if args[0] == "exec" { 123 } else { 4 };
            assert_eq!(refused.code, code, "{args:?} {ca_file:?}: {refused:?}");
            assert!(refused.stderr.contains("signed by nobody"), "{args:?}: {refused:?}");
            assert!(refused.stderr.contains("--ca-file FILE"), "{args:?}: {refused:?}");
        }
        let mut device = server.start_command(ca_file, &["device"]);
        device.says("--ca-file FILE").await;
    }
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused_with_the_names_it_is_for() {
    let (certificate, key) = pair(&["fleet.example"]);
    let server = TlsServer::start_with(&certificate, &key, &[]).await;
    for args in [&["devices"][..], &["run", "--on", "x", "y"]] {
        let refused = server.run("cert.pem", args).await;
        assert_eq!(refused.code, 4, "{refused:?}");
        assert!(refused.stderr.contains("not for 127.0.0.1"), "{refused:?}");
        assert!(refused.stderr.contains("fleet.example"), "{refused:?}");
    }
}

#[tokio::test]
async fn the_certificate_of_an_authority_is_explained_to_both_ends() {
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap().pem();
    let server = TlsServer::start_with(&certificate, &key.serialize_pem(), &[]).await;
    assert!(server.process.stderr().contains("CA:FALSE"), "{}", server.process.stderr());
    let refused = server.run("cert.pem", &["devices"]).await;
    assert!(refused.code == 4 && refused.stderr.contains("CA:FALSE"), "{refused:?}");
}

#[tokio::test]
async fn a_file_of_trusted_certificates_that_cannot_be_used_is_named() {
    let server = TlsServer::start().await;
    server.write("empty.pem", "");
    for ca_file in ["missing.pem", "empty.pem", "key.pem"] {
        let done = server.run(ca_file, &["devices"]).await;
        let says = format!("--ca-file {ca_file}");
        assert!(done.code == 2 && done.stderr.contains(&says), "{ca_file}: {done:?}");
    }
}

#[tokio::test]
async fn a_replaced_certificate_serves_new_connections_and_the_old_ones_live_on() {
    let mut server = TlsServer::start().await;
    let device = server.device("box").await;
    fs::copy(server.home.path().join("cert.pem"), server.home.path().join("old.pem")).unwrap();
    let (certificate, key) = pair_of_this_machine();
    put(&server.home, &certificate, &key);
    server.process.says("the TLS certificate was replaced").await;

    let refused = server.run("old.pem", &["devices"]).await;
    assert!(refused.code == 4 && refused.stderr.contains("signed by nobody"), "{refused:?}");
    let done = server.run("cert.pem", &["exec", "--on", "box", "--", "echo still here"]).await;
    assert_eq!((done.code, done.stdout.as_str()), (0, "still here\n"), "{done:?}");
    assert!(!device.stderr().contains("not connected"), "{}", device.stderr());
}

#[tokio::test]
async fn a_broken_certificate_does_not_replace_a_good_one() {
    let mut server = TlsServer::start().await;
    fs::copy(server.home.path().join("cert.pem"), server.home.path().join("old.pem")).unwrap();
    let (certificate, key) = pair_of_this_machine();
    for (file, text, why) in [
        ("cert.pem", &certificate[..certificate.len() / 2], "ends in the middle"),
        ("cert.pem", "", "certificate cannot be used: there is none"),
        ("cert.pem", &certificate, "the key does not belong to the certificate"),
    ] {
        server.write(file, text);
        server.process.says(why).await;
        let done = server.run("old.pem", &["devices"]).await;
        assert_eq!(done.code, 0, "{why}: {done:?}");
    }
    fs::remove_file(server.home.path().join("key.pem")).unwrap();
    server.process.says("--tls-key key.pem: cannot be read").await;
    assert!(server.process.stderr().contains("the old one goes on"));
    server.write("key.pem", &key);
    server.process.says("the TLS certificate was replaced").await;
    assert_eq!(server.run("cert.pem", &["devices"]).await.code, 0);
    let secret = key.lines().nth(1).unwrap();
    assert!(!server.process.stderr().contains(secret), "the key is in the log");
}

#[tokio::test]
async fn a_server_does_not_start_with_files_that_it_cannot_use_and_says_why() {
    let home = Home::new();
    let (certificate, key) = pair_of_this_machine();
    let other = pair_of_this_machine().1;
    for (certificate, key, why) in [
        ("", &key[..], "certificate cannot be used: there is none"),
        (&certificate, "", "key cannot be used: there is none"),
        (&certificate, &other, "the key does not belong to the certificate"),
    ] {
        put(&home, certificate, key);
        let done = home.start(&serve(&[])).done().await;
        assert!(done.code == 2 && done.stderr.contains(why), "{why}: {done:?}");
        assert!(done.stderr.contains("cert.pem"), "{done:?}");
    }
    fs::remove_file(home.path().join("key.pem")).unwrap();
    let done = home.start(&serve(&[])).done().await;
    assert!(done.code == 2 && done.stderr.contains("--tls-key key.pem"), "{done:?}");
    for (given, missing) in [("--tls-cert", "--tls-key"), ("--tls-key", "--tls-cert")] {
        let done = home.start(&["serve", given, "cert.pem"]).done().await;
        let says = format!("give it with {missing}");
        assert!(done.code == 2 && done.stderr.contains(&says), "{done:?}");
    }
}

#[tokio::test]
async fn a_key_that_others_can_read_is_warned_of() {
    let server = TlsServer::start().await;
    assert!(!server.process.stderr().contains("warning"), "{}", server.process.stderr());
    let key = server.home.path().join("key.pem");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let mut process = server.home.start(&serve(&["--state-dir", "other"]));
    process.says("chmod 600 key.pem").await;
    process.says("listens on").await;
}

#[tokio::test]
async fn other_machines_are_let_in_over_tls_unless_the_network_is_trusted() {
    let home = Home::new();
    let (certificate, key) = pair_of_this_machine();
    put(&home, &certificate, &key);
    let usual = ["serve", "--port", "0", "--host", "0.0.0.0", "--state-dir", "state"];
    let with = |more: &[&'static str]| [&usual[..], more].concat();
    for (args, variable, scheme) in [
        (with(&["--insecure"]), "", "ws"),
        (with(&["--insecure=false"]), "1", "wss"),
        (with(&[]), "1", "ws"),
        (with(&[]), "false", "wss"),
        (with(&["--tls-cert", "cert.pem", "--tls-key", "key.pem"]), "", "wss"),
    ] {
        let mut command = home.command(&args);
        if !variable.is_empty() {
            command.env("FLIGHTDECK_INSECURE", variable);
        }
        let mut process = Process::start(&mut command);
        process.says(&format!("listens on {scheme}://")).await;
        process.says("join-token create").await;
        assert_eq!(process.stderr().contains("without TLS"), scheme == "ws", "{args:?}");
    }
    fs::write(home.path().join("settings.toml"), "[server]\ninsecure = true\n").unwrap();
    let mut process = home.start(&with(&["--config", "settings.toml"]));
    process.says("listens on ws://").await;
}

/// Starts a server that other machines may reach, and returns where it listens on this one.
async fn open_to_others(home: &Home) -> (Process, u16) {
    let serve = ["serve", "--port", "0", "--host", "0.0.0.0", "--state-dir", "state"];
    let mut process = home.start(&serve);
    process.says("Another machine joins").await;
    let stderr = process.stderr();
    let port = stderr.split("wss://0.0.0.0:").nth(1).unwrap().split('/').next().unwrap();
    let port = port.parse().unwrap();
    (process, port)
}

#[tokio::test]
async fn a_server_makes_its_own_certificate_once_and_keeps_its_key_to_itself() {
    let home = Home::new();
    let own = |name: &str| home.path().join("state").join(name);
    let mut made = Vec::new();
    for _ in 0..2 {
        let (process, port) = open_to_others(&home).await;
        let said = process.stderr();
        let key = fs::read_to_string(own("key")).unwrap();
        assert!(!said.contains(key.trim()), "{said}");
        let others = said.split("Another machine").nth(1).unwrap();
        assert!(!others.contains("key show") && !others.contains("TOKEN"), "{said}");
        for host in ["localhost", "127.0.0.1"] {
            let args = ["devices", "--ca-file", "state/tls-cert.pem", "--state-dir", "state"];
            let server = format!("wss://{host}:{port}");
            let done = home.start(&[&args[..], &["--server", &server]].concat()).done().await;
            assert_eq!(done.code, 0, "{server}: {done:?}");
        }
        // The commands of this machine find it by themselves.
        let mut device = home.start(&["device", "--id", "here", "--state-dir", "state"]);
        device.says("connected to wss://127.0.0.1:").await;
        let exec = ["exec", "--state-dir", "state", "--on", "here", "--", "echo found"];
        assert_eq!(home.start(&exec).done().await.stdout, "found\n");
        made.push(fs::read_to_string(own("tls-cert.pem")).unwrap());
    }
    assert_eq!(made[0], made[1], "it is kept");
    for file in ["tls-key.pem", "tls-cert.pem"] {
        let mode = fs::metadata(own(file)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{file}");
    }
    fs::write(own("tls-key.pem"), "nothing").unwrap();
    let serve = ["serve", "--port", "0", "--host", "0.0.0.0", "--state-dir", "state"];
    let done = home.start(&serve).done().await;
    assert!(done.code == 2 && done.stderr.contains("tls-key.pem"), "{done:?}");
}

#[tokio::test]
async fn whoever_speaks_plain_to_tls_or_tls_to_plain_is_told() {
    let (behind_tls, plain) = (TlsServer::start().await, Server::start().await);
    let plain_url = format!("ws://127.0.0.1:{}", behind_tls.port);
    let tls_url = format!("wss://127.0.0.1:{}", plain.port);
    for args in [&["devices"][..], &["run", "--on", "x", "y"], &["device", "--max-retries", "0"]] {
        let args = |url| [args, &["--server", url]].concat();
        let done = behind_tls.run("", &args(&plain_url)).await;
        assert!(done.code == 4 && done.stderr.contains("use wss://"), "{done:?}");
        let done = behind_tls.run("", &args(&tls_url)).await;
        assert!(done.code == 4 && done.stderr.contains("speaks no TLS"), "{done:?}");
    }
    // What a browser shows.
    let mut stream = TcpStream::connect(("127.0.0.1", behind_tls.port)).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    within("an answer", stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("https://"), "{answer}");
    assert_eq!(behind_tls.run("cert.pem", &["devices"]).await.code, 0);
}

#[tokio::test]
async fn a_handshake_that_does_not_go_on_ends_in_time_at_both_ends() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("wss://{}", silent.local_addr().unwrap());
    let home = Home::new();
    for args in [&["devices"][..], &["run", "--on", "x", "y"]] {
        let args = [args, &["--server", &url, "--connect-timeout", "1"]].concat();
        let done = home.start(&args).done().await;
        assert!(done.code == 4 && done.stderr.contains("no server answer"), "{done:?}");
    }

    let (certificate, key) = pair_of_this_machine();
    let server = TlsServer::start_with(&certificate, &key, &["--header-timeout", "1"]).await;
    for beginning in [&b""[..], b"\x16\x03\x01\x02\x00\x01"] {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
        stream.write_all(beginning).await.unwrap();
        let mut sink = Vec::new();
        // A reset is an end too.
        let _ended = within("the end", stream.read_to_end(&mut sink)).await;
    }
    assert_eq!(server.run("cert.pem", &["devices"]).await.code, 0);
}
