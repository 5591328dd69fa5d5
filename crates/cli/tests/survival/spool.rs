//! What a detached command writes is kept on its device, and can be read from its start while it runs and after.

use std::process::Stdio;

use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use crate::common::{Process, Server, http_client, plan_of, within};

/// What the API answers about a task's output.
struct Answer {
    status: u16,
    /// Where it begins.
    offset: Option<usize>,
    body: Vec<u8>,
}

impl Answer {
    /// The code of a refusal.
    fn code(&self) -> (u16, String) {
        let problem: Value = serde_json::from_slice(&self.body).unwrap();
        (self.status, problem["code"].as_str().unwrap().to_owned())
    }
}

/// Asks for a task's output.
async fn ask(server: &Server, key: &str, task: &str, query: &str) -> Answer {
    let url = format!("http://127.0.0.1:{}/api/v1/tasks/{task}/output{query}", server.port);
    let response = http_client().get(url).header("X-API-Key", key).send().await.unwrap();
    let offset = response.headers().get("flightdeck-offset");
    let offset = offset.map(|offset| offset.to_str().unwrap().parse().unwrap());
    let status = response.status().as_u16();
    Answer { status, offset, body: response.bytes().await.unwrap().into() }
}

/// Runs a command to its end, and gives the bytes that it wrote.
async fn bytes_of(mut command: Command) -> std::process::Output {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.kill_on_drop(true).spawn().unwrap();
    within("its end", child.wait_with_output()).await.unwrap()
}

/// Leaves a command running, and says as which task.
async fn detached(server: &Server, command: &str) -> String {
    let done = server.run(&["exec", "--on", "box", "--detach", "--", command]).await;
    assert_eq!(done.code, 0, "{done:?}");
    done.stdout.trim().to_owned()
}

fn from_start(server: &Server, task: &str) -> Command {
    server.command(&["task", "follow", "--from", "start", task])
}

/// 600,000 bytes that are no text, and a shell command that writes them.
fn noise(server: &Server) -> (Vec<u8>, String) {
    let noise: Vec<u8> =
        (0..600_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let file = server.state_file("noise");
    std::fs::write(&file, &noise).unwrap();
    (noise, format!("cat {}", file.display()))
}

#[tokio::test]
async fn it_is_read_byte_for_byte_while_the_command_runs_and_after() {
    let server = Server::start().await;
    let _device = server.device("box", &["--exec", "shell"]).await;
    let (noise, cat) = noise(&server);
    let gate = server.state_file("gate");
    let wait = format!("while ! test -e {}; do sleep 0.02; done", gate.display());
    let task = detached(&server, &format!("{cat}; {wait}; {cat} >&2; printf end; exit 3")).await;

    let mut follow = from_start(&server, &task);
    follow.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut following = follow.kill_on_drop(true).spawn().unwrap();
    let mut stdout = following.stdout.take().unwrap();
    let mut seen = vec![0; noise.len()];
    let reading = stdout.read_exact(&mut seen);
    within("what was written so far", reading).await.unwrap();
    assert!(seen == noise, "while it runs");
    std::fs::write(&gate, "").unwrap();
    let mut rest = Vec::new();
    within("the end", stdout.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"end");
    let done = within("its end", following.wait_with_output()).await.unwrap();
    // A command that fails is a task that ran.
    assert_eq!(done.status.code(), Some(0));

    let again = bytes_of(from_start(&server, &task)).await;
    assert!(again.stdout == [&noise[..], b"end"].concat(), "after it");
    let end_of_noise = again.stderr.windows(1000).any(|window| window == &noise[599_000..]);
    assert!(end_of_noise, "standard error is there too");
}

#[tokio::test]
async fn it_outlives_server_and_device() {
    let mut server = Server::start().await;
    let mut device = server.device("box", &["--exec", "shell"]).await;
    let (noise, cat) = noise(&server);
    let task = detached(&server, &cat).await;
    let done = server.run(&["task", "follow", &task]).await;
    assert_eq!(done.code, 0, "{done:?}");
    device.kill().await;
    let away = ask(&server, &server.key(), &task, "").await;
    assert_eq!(away.code(), (409, "device_away".to_owned()));
    server.process.kill().await;
    let server = server.start_again().await;
    let _device = server.device("box", &["--exec", "shell"]).await;
    assert!(bytes_of(from_start(&server, &task)).await.stdout == noise);
}

#[tokio::test]
async fn each_command_of_a_detached_plan_has_its_own() {
    let server = Server::start().await;
    let _device = server.device("box", &["--exec", "shell"]).await;
    let plan = plan_of(&["echo one", "seq 1 200000 | tail -c 20; echo two >&2"]);
    let task = server.run(&["run", "--detach", "--on", "box", &plan]).await.stdout;
    let followed = bytes_of(from_start(&server, task.trim())).await;
    assert_eq!(followed.stdout, b"one\n99998\n199999\n200000\n");
    assert!(String::from_utf8_lossy(&followed.stderr).contains("two\n"));
}

#[tokio::test]
async fn over_http_it_is_read_from_any_byte_by_who_may_see_the_task() {
    let server = Server::start().await;
    let _device = server.device("box", &["--exec", "shell", "--spool-bytes", "160000"]).await;
    let task = detached(&server, "seq 1 100000; echo oops >&2").await;
    server.run(&["task", "follow", &task]).await;
    let all: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
    let key = server.key();

    let end = ask(&server, &key, &task, "?from=588000").await;
    assert_eq!((end.offset, &*end.body), (Some(588_000), &all.as_bytes()[588_000..]));
    // The device keeps no more than its owner wants.
    let whole = ask(&server, &key, &task, "").await;
    let begin = whole.offset.unwrap();
    assert!((all.len() - 160_000..all.len() - 100_000).contains(&begin), "{begin}");
    assert!(whole.body == all.as_bytes()[begin..]);
    assert_eq!(ask(&server, &key, &task, "?step=1&stream=stderr").await.body, b"oops\n");
    let followed = bytes_of(from_start(&server, &task)).await;
    let said = String::from_utf8_lossy(&followed.stderr).into_owned();
    assert!(said.contains(&format!("{begin} bytes of stdout are no longer kept")), "{said}");

    for (query, status, code) in [
        ("?step=2", 404, "no_such_step"),
        ("?step=0", 404, "no_such_step"),
        ("?stream=stdin", 400, "bad_query"),
        ("?from=-1", 400, "bad_query"),
    ] {
        let refused = ask(&server, &key, &task, query).await;
        assert_eq!(refused.code(), (status, code.to_owned()), "{query}");
    }
    let key = server.run(&["key", "create", "--name", "c", "--role", "constellation"]).await;
    let other = ask(&server, key.stdout.trim(), &task, "").await;
    assert_eq!(other.code(), (404, "task_not_found".to_owned()));
}

#[tokio::test]
async fn what_was_not_detached_has_its_results() {
    let server = Server::start().await;
    let _device = server.device("box", &["--exec", "shell"]).await;
    let done = server.run(&["exec", "--json", "--on", "box", "--", "echo out; echo err >&2"]).await;
    let task = serde_json::from_str::<Value>(done.stdout.trim()).unwrap()["task"].clone();
    let task = task.as_str().unwrap();
    let refused = ask(&server, &server.key(), task, "").await;
    assert_eq!(refused.code(), (404, "output_not_kept".to_owned()));
    let followed = bytes_of(from_start(&server, task)).await;
    assert_eq!((followed.status.code(), &*followed.stdout), (Some(0), &b"out\n"[..]));
    assert!(String::from_utf8_lossy(&followed.stderr).contains("err\n"));
    // So it is where the device keeps nothing.
    let _other = server.device("none", &["--exec", "shell", "--spool-bytes", "0"]).await;
    let task = server.run(&["exec", "--on", "none", "--detach", "--", "echo kept"]).await.stdout;
    let follow = Process::start(&mut from_start(&server, task.trim())).done().await;
    assert_eq!((follow.code, &*follow.stdout), (0, "kept\n"), "{follow:?}");
}
