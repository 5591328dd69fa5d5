//! The server: killed, stopped, or standing still. A server that is killed while a command runs is in
//! `kills.rs`.

use rustix::process::Signal;

use super::common::{Home, Process, Server};

/// Notices quickly that the server is silent, and tries quickly.
const IMPATIENT: [&str; 6] =
    ["--liveness-timeout", "2", "--ping-interval", "0.5", "--connect-timeout", "1"];

async fn runs(server: &Server) {
    let done = server.run(&["exec", "--on", "box", "--", "echo", "here"]).await;
    assert_eq!((done.code, done.stdout.as_str()), (0, "here\n"), "{}", done.stderr);
}

/// Waits until the device has been connected so many times.
async fn connected(device: &mut Process, times: usize) {
    device.says_times("connected to", times).await;
}

#[tokio::test]
async fn a_device_comes_back_to_a_server_that_was_killed_or_stopped_each_time() {
    let (mut server, home) = (Server::start().await, Home::new());
    let mut device = server.device_at(&home, "box", &[]).await;
    for (round, signal) in [Signal::KILL, Signal::TERM, Signal::KILL].into_iter().enumerate() {
        runs(&server).await;
        match signal {
            Signal::KILL => server.process.kill().await,
            signal => {
                server.process.signal(signal);
                server.process.ended().await;
            }
        }
        device.says_times("trying again in", round + 1).await;
        // One that was told to stop has its state folder until it is gone.
        server.process.ended().await;
        let next = server.start_again().await;
        server = next;
        connected(&mut device, round + 2).await;
    }
    runs(&server).await;
}

#[tokio::test]
async fn a_device_leaves_a_server_that_stands_still_and_comes_back_when_it_goes_on() {
    let (server, home) = (Server::start().await, Home::new());
    let mut device = server.device_at(&home, "box", &IMPATIENT).await;
    server.process.signal(Signal::STOP);
    device.says("no sign of life for 2 s").await;
    device.says_times("trying again in", 2).await;
    server.process.signal(Signal::CONT);
    connected(&mut device, 2).await;
    runs(&server).await;
}
