//! The network: a black hole, which swallows everything and tells nobody; and a name that moves.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use tokio::process::Command;

use super::common::process::{BINARY, until_gone, until_running};
use super::common::{Home, Process, PythonServer, Server, long_sleep, plan};
use super::proxy::Proxy;

/// The most that the network carries at once, in bytes.
const PIECE: usize = 64 * 1024;

/// A device behind a network that can be broken.
struct Remote {
    server: Server,
    network: Proxy,
    device: Process,
    _home: Home,
}

impl Remote {
    async fn start(server_args: &[&str], args: &[&str]) -> Self {
        let (server, home) = (Server::start_with(server_args).await, Home::new());
        let network = Proxy::start(server.port, PIECE, Duration::ZERO).await;
        let url = format!("ws://127.0.0.1:{}/ws", network.port);
        let all = [&["device", "--id", "box", "--exec", "shell", "--server", &url], args].concat();
        let mut command = home.command(&all);
        let mut device = Process::start(command.env("FLIGHTDECK_TOKEN", server.key()));
        device.says("connected to").await;
        Self { server, network, device, _home: home }
    }

    async fn runs(&self) {
        let done = self.server.run(&["exec", "--on", "box", "--", "echo", "here"]).await;
        assert_eq!((done.code, done.stdout.as_str()), (0, "here\n"), "{}", done.stderr);
    }

    /// Swallows everything for a while, in which a command ends.
    async fn lives_through(&mut self, hole: Duration) {
        let go = Home::new();
        let file = go.path().join("go");
        let ran = go.path().join("ran");
        let line = format!(
            "until [ -e {} ]; do sleep 0.05; done; echo done | tee -a {}",
            file.display(),
            ran.display()
        );
        let mut requester = self.server.raw_constellation("g").await;
        let session = requester.submit("box", &plan(&line)).await;
        requester.expect_ack(&session).await;
        until_running("sleep 0.05").await;
        self.network.swallow();
        std::fs::write(&file, "").unwrap();
        requester.alive_while(tokio::time::sleep(hole)).await;
        self.network.heal();
        let end = requester.expect_end(&session, "completed").await;
        assert_eq!(end["result"][0]["result"][0][0]["result"]["stdout"], "done\n");
        assert_eq!(fs::read_to_string(ran).unwrap(), "done\n");
    }
}

#[tokio::test]
async fn a_black_hole_that_ends_in_time_costs_nothing() {
    let mut remote = Remote::start(&[], &[]).await;
    remote.lives_through(Duration::from_secs(3)).await;
    assert_eq!(remote.device.stderr().matches("connected to").count(), 1);
}

/// With the settings that everybody has, both ends find out in the meantime and the device comes
/// back with what its command has done.
#[tokio::test]
#[ignore = "it takes more than a minute"]
async fn a_black_hole_of_a_minute_costs_nothing() {
    Remote::start(&[], &[]).await.lives_through(Duration::from_secs(60)).await;
}

#[tokio::test]
async fn a_black_hole_that_lasts_is_noticed_and_the_device_comes_back_after_it() {
    let watch = ["--liveness-timeout", "3", "--ping-interval", "0.5"];
    let server = [&watch[..], &["--resume-window", "1"]].concat();
    let device = [&watch[..], &["--connect-timeout", "1"]].concat();
    let mut remote = Remote::start(&server, &device).await;
    let slow = long_sleep();
    let mut requester = remote.server.raw_constellation("g").await;
    let session = requester.submit("box", &plan(&slow)).await;
    requester.expect_ack(&session).await;
    until_running(&slow).await;
    remote.network.swallow();
    // Both ends find out by themselves, and wait for each other for a while.
    let end = requester.expect_end(&session, "failed").await;
    assert!(end["error"].as_str().unwrap().contains("disconnected ('box')"), "{end}");
    let noticing = async {
        remote.device.says("no sign of life for 3 s").await;
        until_gone(&slow).await;
        // No way there is a reason to try again, not to give up.
        remote.device.says_times("trying again in", 2).await;
    };
    requester.alive_while(noticing).await;
    requester.close().await;
    remote.network.heal();
    remote.device.says_times("connected to", 2).await;
    remote.runs().await;
}

/// A file of names that stands where the machine's own one does (`/etc/hosts`), for one program.
struct Names<'a> {
    home: &'a Home,
    file: PathBuf,
}

impl<'a> Names<'a> {
    fn new(home: &'a Home) -> Self {
        Self { home, file: home.path().join("hosts") }
    }

    fn set(&self, name: &str, address: &str) {
        fs::write(&self.file, format!("{address} {name}\n")).unwrap();
    }

    /// A program that sees these names.
    fn seen_by(&self, program: &[&str]) -> Command {
        let own = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
        let file = self.file.to_str().unwrap();
        let apart = ["--map-root-user", "--mount", "sh", "-c", own, file];
        self.home.program("unshare", &[&apart, program].concat())
    }
}

#[tokio::test]
async fn a_device_finds_a_server_whose_name_moved_to_another_address() {
    let home = Home::new();
    let names = Names::new(&home);
    names.set("moving.test", "127.0.0.2");
    if !names.seen_by(&["true"]).status().await.is_ok_and(|status| status.success()) {
        return eprintln!("left out: this user may not have names of their own (unshare)");
    }
    let old = PythonServer::start_at("127.0.0.2:0").await;
    let new = PythonServer::start_at(&format!("127.0.0.3:{}", old.port())).await;
    let url = format!("ws://moving.test:{}/ws", old.port());
    let device = [BINARY, "device", "--id", "d", "--server", &url];
    let _device = Process::start(&mut names.seen_by(&device));
    let (link, _register) = old.accept().await;

    names.set("moving.test", "127.0.0.3");
    drop((link, old));
    let (_link, register) = new.accept().await;
    assert_eq!(register["client_id"], "d");
}
