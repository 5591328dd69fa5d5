//! A network between the server and everybody else that stands still, or breaks.

use std::time::Duration;

use crate::common::{Home, Process, Server};
use crate::gate::Gate;
use crate::proxy::Proxy;

/// The most that the network carries at once, in bytes.
const PIECE: usize = 64 * 1024;

/// A server, and behind a network a device and those who want something of it.
struct Remote {
    server: Server,
    network: Proxy,
    device: Process,
    home: Home,
}

impl Remote {
    async fn start(server_args: &[&str], device_args: &[&str]) -> Self {
        let (server, home) = (Server::start_with(server_args).await, Home::new());
        let network = Proxy::start(server.port, PIECE, Duration::ZERO).await;
        let args = [&["device", "--id", "box", "--exec", "shell"], device_args].concat();
        let mut device = Process::start(&mut behind(&home, &network, &server, &args));
        device.says("connected to").await;
        Self { server, network, device, home }
    }

    fn exec(&self, command: &str) -> Process {
        let args = ["exec", "--on", "box", "--", command];
        Process::start(&mut behind(&self.home, &self.network, &self.server, &args))
    }

    /// Lets a command end while the network stands still.
    async fn stands_still(&mut self, time: Duration) {
        let gate = Gate::new();
        let exec = self.exec(&gate.command(7));
        gate.has_begun(1).await;
        self.network.swallow();
        gate.open();
        tokio::time::sleep(time).await;
        self.network.heal();
        let done = exec.done().await;
        assert_eq!((done.code, done.stdout.as_str()), (0, "7\n"), "{done:?}");
        gate.assert_each_once(7..8);
    }
}

/// A command of somebody who reaches the server through the network.
fn behind(home: &Home, network: &Proxy, server: &Server, args: &[&str]) -> tokio::process::Command {
    let mut command = home.command(args);
    command
        .env("FLIGHTDECK_SERVER", format!("ws://127.0.0.1:{}/ws", network.port))
        .env("FLIGHTDECK_TOKEN", server.key());
    command
}

#[tokio::test]
async fn a_network_that_stands_still_until_both_ends_notice_costs_nothing() {
    let device = ["--resume-liveness-timeout", "1", "--reconnect-first-wait", "0.1"];
    let mut remote = Remote::start(&["--resume-ping", "0.5"], &device).await;
    remote.stands_still(Duration::from_secs(3)).await;
    assert!(remote.device.stderr().contains("no sign of life"), "{}", remote.device.stderr());
}

/// With the times that everybody has.
#[tokio::test]
#[ignore = "it takes 20 s"]
async fn a_network_that_stands_still_for_20_s_costs_nothing() {
    Remote::start(&[], &[]).await.stands_still(Duration::from_secs(20)).await;
}

/// Both ends notice, and the requester's link outlasts it.
#[tokio::test]
#[ignore = "it takes a minute"]
async fn a_network_that_stands_still_for_a_minute_costs_nothing() {
    Remote::start(&[], &[]).await.stands_still(Duration::from_secs(60)).await;
}

#[tokio::test]
async fn all_whose_link_breaks_learn_their_outcome() {
    const REQUESTERS: usize = 12;
    let server = Server::start_with(&["--sessions-per-device", "12"]).await;
    let device = ["--exec", "shell", "--parallel-commands", "12"];
    let (mut device, home) = (server.device("box", &device).await, Home::new());
    let network = Proxy::start(server.port, PIECE, Duration::ZERO).await;
    let gate = Gate::new();
    let start = |n| {
        let args = ["exec", "--on", "box", "--", &gate.command(n)];
        Process::start(&mut behind(&home, &network, &server, &args))
    };
    let mut requesters: Vec<Process> = (0..REQUESTERS).map(start).collect();
    gate.has_begun(REQUESTERS).await;
    network.cut();
    // The outcomes are there before half of them are back.
    for requester in requesters.iter_mut().take(REQUESTERS / 2) {
        requester.says("Lost the server").await;
    }
    gate.open();
    for (n, requester) in requesters.into_iter().enumerate() {
        let done = requester.done().await;
        assert_eq!((done.code, done.stdout), (0, format!("{n}\n")), "{}", done.stderr);
        assert_eq!(done.stderr.lines().count(), 2, "{}", done.stderr);
    }
    gate.assert_each_once(0..REQUESTERS);
    // The device's own link was another one.
    device.says_times("connected to", 1).await;
    assert_eq!(device.stderr().matches("connected to").count(), 1);
}
