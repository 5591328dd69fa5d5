//! Time: the machine stands still for a while. What a device does after a suspend, of which its clock
//! knows nothing, is in `link/src/client/tests.rs`: no test can suspend a machine.

use std::time::Duration;

use rustix::process::Signal;

use super::common::{Home, Server};

#[tokio::test]
async fn a_device_that_stood_still_until_its_server_gave_it_up_comes_back_when_it_goes_on() {
    let watch = ["--liveness-timeout", "2", "--ping-interval", "0.5"];
    let (server, home) = (Server::start_with(&watch).await, Home::new());
    let mut device = server.device_at(&home, "box", &[]).await;
    device.signal(Signal::STOP);
    let mut log = server.process.stderr();
    while !log.contains("no sign of life") {
        tokio::time::sleep(Duration::from_millis(20)).await;
        log = server.process.stderr();
    }
    device.signal(Signal::CONT);
    device.says_times("connected to", 2).await;
    let done = server.run(&["exec", "--on", "box", "--", "echo", "here"]).await;
    assert_eq!((done.code, done.stdout.as_str()), (0, "here\n"), "{}", done.stderr);
}

/// How long nothing is done.
const IDLE: Duration = Duration::from_secs(10);

/// What an idle device may take of a core in that time, in hundredths of a second: pings are seen here.
const FEW: Duration = Duration::from_millis(30);

/// The most that an idle device holds, in bytes. `.ci/idle` looks at the released program, with its files.
const LITTLE: u64 = 15 * 1024 * 1024;

#[tokio::test]
async fn an_idle_device_takes_next_to_nothing() {
    let (server, home) = (Server::start().await, Home::new());
    let device = server.device_at(&home, "box", &[]).await;
    // What it does at its start is over when it has answered.
    let done = server.run(&["exec", "--on", "box", "--", "uname"]).await;
    assert_eq!(done.code, 0, "{done:?}");
    let before = device.busy();
    tokio::time::sleep(IDLE).await;
    let (busy, memory) = (device.busy() - before, device.memory("RssAnon"));
    println!("idle: {busy:?} of {IDLE:?}, {memory} bytes, {} with files", device.memory("VmRSS"));
    assert!(busy <= FEW, "{busy:?} in {IDLE:?}");
    assert!(memory <= LITTLE, "{memory} bytes");
}
