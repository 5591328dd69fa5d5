//! What a call costs beyond the tool itself: from a COMMAND's way to a real device, over a real WebSocket, to
//! its results, against the same tool called directly. `cargo bench -p flightdeck --bench overhead`.
//!
//! Options behind `--`: `--check` fails if a median is over its budget, `--rounds N` (1000).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

#[path = "../../tests/common/mod.rs"]
mod common;
mod direct;
mod echo;
mod table;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use common::{Home, Peer, Process, PythonServer};
use direct::Direct;
use serde_json::{Value, json};
use table::{Measured, Times};
use tokio::process::Command;

/// Calls of each kind before any is measured.
const WARM_UP: usize = 50;

const ROUNDS: usize = 1000;

const BUILT_IN: Duration = Duration::from_millis(1);
const STDIO: Duration = Duration::from_millis(1);
const HTTP: Duration = Duration::from_millis(2);

/// A program at the other end of a WebSocket, which answers each message with one.
struct Remote {
    peer: Peer,
    _process: Process,
}

/// One kind of call.
struct Case {
    name: &'static str,
    budget: Duration,
    /// Which of the devices.
    device: usize,
    command: String,
    direct: Direct,
    through: Times,
    alone: Times,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if echo::ran(&args) {
        return ExitCode::SUCCESS;
    }
    let rounds =
        args.iter().position(|arg| arg == "--rounds").map(|at| args[at + 1].parse().unwrap());
    let measured = echo::block_on(measure(rounds.unwrap_or(ROUNDS)));
    println!("{measured}");
    let fails = args.iter().any(|arg| arg == "--check") && !measured.is_within_budget();
    if fails { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

async fn measure(rounds: usize) -> Measured {
    let home = Home::new();
    let (_http, port) = start_http().await;
    let settings = home.path().join("mcp.json");
    std::fs::write(&settings, servers(port).to_string()).unwrap();
    let settings = settings.display().to_string();
    let mut bare = start_bare().await;
    let mut devices = [
        start_device(&home, "observe", &["--mcp", &settings]).await,
        start_device(&home, "shell", &["--exec", "shell"]).await,
    ];
    let mut cases = cases(home.path(), port);
    let mut echoes = Times::default();
    for round in 0..WARM_UP + rounds {
        let counts = round >= WARM_UP;
        echoes.add(counts, bare.ask("x".repeat(300)).await.0);
        for case in &mut cases {
            let (took, answer) = devices[case.device].ask(case.command.clone()).await;
            assert!(answer.contains(r#""status":"success""#), "{}: {answer}", case.name);
            case.through.add(counts, took);
            let started = Instant::now();
            case.direct.call().await;
            case.alone.add(counts, started.elapsed());
        }
    }
    let rows = cases.into_iter().map(|case| (case.name, case.budget, case.alone, case.through));
    Measured::new(rows.collect(), echoes)
}

impl Remote {
    /// Says something; gives what came back, and after which time.
    async fn ask(&mut self, text: String) -> (Duration, String) {
        let started = Instant::now();
        self.peer.send(text).await;
        let answer = self.peer.next_text().await.unwrap();
        (started.elapsed(), answer)
    }
}

fn cases(home: &Path, port: u16) -> Vec<Case> {
    let file = home.join("small.txt");
    std::fs::write(&file, "a few words\n".repeat(10)).unwrap();
    let path = json!({"path": file});
    let run = |line: &str| json!({"command": line, "cwd": home});
    let arguments = json!({"text": "a few words", "number": 1});
    let url = |route: &str| format!("http://127.0.0.1:{port}/{route}");
    let case = |name, budget, device, tool: &str, parameters: &Value, direct| Case {
        name,
        budget,
        device,
        command: command(tool, parameters),
        direct,
        through: Times::default(),
        alone: Times::default(),
    };
    vec![
        case("get_system_info", BUILT_IN, 0, "get_system_info", &json!({}), Direct::Nothing),
        case("Files.read_file", BUILT_IN, 0, "Files::read_file", &path, Direct::Read(file)),
        case(
            "execute_command: pwd",
            BUILT_IN,
            0,
            "execute_command",
            &run("pwd"),
            Direct::run(&["pwd"]),
        ),
        case(
            "the same by --exec shell",
            BUILT_IN,
            1,
            "execute_command",
            &run("pwd"),
            Direct::run(&["sh", "-c", "pwd"]),
        ),
        case("MCP over stdio", STDIO, 0, "stdio::echo", &arguments, Direct::stdio(&arguments)),
        case(
            "MCP over HTTP, as JSON",
            HTTP,
            0,
            "json::echo",
            &arguments,
            Direct::post(url("json"), &arguments),
        ),
        case(
            "MCP over HTTP, as a stream",
            HTTP,
            0,
            "sse::echo",
            &arguments,
            Direct::post(url("sse"), &arguments),
        ),
    ]
}

/// A COMMAND with one action.
fn command(tool: &str, parameters: &Value) -> String {
    let action =
        json!({"tool_name": tool, "parameters": parameters, "tool_type": "action", "call_id": "c"});
    json!({"type": "command", "status": "continue", "agent_name": "LinuxAgent", "session_id": "s",
        "task_name": "t", "response_id": "r", "timestamp": "2026-01-01T00:00:00+00:00", "actions": [action]})
    .to_string()
}

fn servers(port: u16) -> Value {
    let url = |route: &str| json!({"url": format!("http://127.0.0.1:{port}/{route}")});
    let program = std::env::current_exe().unwrap();
    json!({"mcpServers": {"stdio": {"command": program, "args": [echo::STDIO]},
        "json": url("json"), "sse": url("sse")}})
}

/// This program again, as one of [`echo`].
fn again(args: &[&str]) -> Process {
    let mut command = Command::new(std::env::current_exe().unwrap());
    Process::start(command.args(args).kill_on_drop(true))
}

async fn start_http() -> (Process, u16) {
    let mut process = again(&[echo::HTTP]);
    process.says(";").await;
    let said = process.stderr();
    let port = said.strip_prefix("port ").unwrap().split(';').next().unwrap();
    (process, port.parse().unwrap())
}

async fn start_bare() -> Remote {
    let server = PythonServer::start().await;
    let process = again(&[echo::WEB_SOCKET, &server.url()]);
    let (mut peer, _) = server.accept().await;
    // It has echoed the confirmation of its REGISTER.
    peer.next_text().await.unwrap();
    Remote { peer, _process: process }
}

async fn start_device(home: &Home, id: &str, args: &[&str]) -> Remote {
    let (server, root) = (PythonServer::start().await, home.path().display().to_string());
    let url = server.url();
    let mut all = vec![
        "device",
        "--id",
        id,
        "--server",
        &url,
        "--root",
        &root,
        "--heartbeat-interval",
        "3600",
    ];
    all.extend(args);
    let process = home.start(&all);
    let (peer, _) = server.accept().await;
    Remote { peer, _process: process }
}
