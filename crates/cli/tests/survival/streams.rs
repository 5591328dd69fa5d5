//! Output and input of `exec`: byte for byte, whatever breaks meanwhile.

use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::common::{Home, PATIENCE, Process, Server, within};
use crate::gate::Gate;
use crate::proxy::Proxy;

/// Bytes that look like nothing, the same each time.
fn noise(length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    std::iter::repeat_with(|| random.u8(..)).take(length).collect()
}

/// Runs a command with this input, to its end.
async fn piped(mut command: Command, input: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let feeding = async {
        // Who reads no more has closed it.
        let _closed = stdin.write_all(input).await;
        drop(stdin);
    };
    let (output, ()) =
        within("its end", async { tokio::join!(child.wait_with_output(), feeding) }).await;
    output.unwrap()
}

fn exec(server: &Server, command: &str) -> Command {
    server.command(&["exec", "--on", "box", "--", command])
}

#[tokio::test]
async fn output_and_input_pass_byte_for_byte() {
    let server = Server::start().await;
    let _device = server.device("box", &["--exec", "shell"]).await;
    let (home, noise) = (Home::new(), noise(3_000_000));
    let file = home.path().join("noise");
    std::fs::write(&file, &noise).unwrap();
    let file = file.display();
    let both =
        piped(exec(&server, &format!("cat {file}; head -c 70000 {file} >&2; exit 7")), b"").await;
    assert_eq!((both.status.code(), both.stdout == noise), (Some(7), true));
    assert_eq!(both.stderr, noise[..70_000]);

    let echoed = piped(exec(&server, "cat"), &noise).await;
    assert_eq!((echoed.status.code(), echoed.stdout == noise), (Some(0), true));
    let some = piped(exec(&server, "head -c 3"), &noise).await;
    assert_eq!((some.status.code(), some.stdout.as_slice()), (Some(0), &noise[..3]));
    let none = server.command(&["exec", "-n", "--on", "box", "--", "cat; printf end"]);
    assert_eq!(piped(none, &noise).await.stdout, b"end");
}

#[tokio::test]
async fn what_nobody_reads_any_more_is_not_written_on() {
    let server = Server::start().await;
    let _device = server.device("box", &["--exec", "shell"]).await;
    let mut child = exec(&server, "yes").stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let status = tokio::time::timeout(PATIENCE, child.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(120));
    let next = server.run(&["exec", "--on", "box", "--", "echo", "free again"]).await;
    assert_eq!((next.code, next.stdout.as_str()), (0, "free again\n"));
}

#[tokio::test]
async fn the_death_of_the_server_costs_no_byte() {
    let (mut server, gate) = (Server::start().await, Gate::new());
    let device = ["--exec", "shell", "--reconnect-first-wait", "0.1"];
    let _device = server.device("box", &device).await;
    let line = format!("seq 100000; {}; seq 100000; cat", gate.command(1));
    let mut command = server.command(&["exec", "--on", "box", "--", &line]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"before\n").await.unwrap();
    let reading = tokio::spawn(child.wait_with_output());
    gate.has_begun(1).await;
    server.process.kill().await;
    let _again = server.start_again().await;
    gate.open();
    stdin.write_all(b"after\n").await.unwrap();
    drop(stdin);
    let output = within("its end", reading).await.unwrap().unwrap();
    let numbers: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
    let expected = format!("{numbers}1\n{numbers}before\nafter\n");
    assert!(output.status.success() && output.stdout == expected.as_bytes(), "{:?}", output.status);
}

#[tokio::test]
async fn a_network_that_breaks_again_and_again_costs_no_byte() {
    let (server, home) = (Server::start().await, Home::new());
    let network = Proxy::start(server.port, 64 * 1024, Duration::from_millis(2)).await;
    let behind = |args: &[&str]| {
        let mut command = home.command(args);
        command
            .env("FLIGHTDECK_SERVER", format!("ws://127.0.0.1:{}/ws", network.port))
            .env("FLIGHTDECK_TOKEN", server.key());
        command
    };
    let device = ["device", "--id", "box", "--exec", "shell", "--reconnect-first-wait", "0.05"];
    let mut device = Process::start(&mut behind(&device));
    device.says("connected to").await;
    let command = behind(&["exec", "--on", "box", "--", "seq 300000; cat"]);
    let noise = noise(1_000_000);
    let running = piped(command, &noise);
    let breaking = async {
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(150)).await;
            network.cut();
        }
    };
    let (output, ()) = tokio::join!(running, breaking);
    let numbers: String = (1..=300_000).map(|n| format!("{n}\n")).collect();
    let expected = [numbers.as_bytes(), &noise].concat();
    assert!(output.status.success() && output.stdout == expected, "{:?}", output.stdout.len());
}
