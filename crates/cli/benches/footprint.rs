//! What a device costs that has nothing to do: its size on disk, the time it takes to start, and the memory
//! and processor time that it and its helper take while idle. `cargo bench -p flightdeck --bench footprint`.
//!
//! Options behind `--`: `--check` fails if something is over its budget, `--seconds N` (60) of idling.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::print_stdout, clippy::print_stderr)]
#![cfg_attr(not(target_os = "linux"), allow(unused))]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "overhead/echo.rs"]
mod echo;

use std::fs;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use common::{Home, Peer, Process, PythonServer};
use serde_json::json;

const IDLE_SECONDS: u64 = 60;

/// How long a device may take to come to rest after its start.
const SETTLE: Duration = Duration::from_secs(3);

const MAX_BINARY_KIB: u64 = 25 * 1024;
const MAX_MEMORY_KIB: u64 = 15 * 1024;

/// Clock ticks of processor time; a second has 100 on every Linux. One may be somebody else's.
const MAX_TICKS: u64 = 1;

/// An idle device and what it costs.
struct Idle {
    what: &'static str,
    device: Process,
    _server: Peer,
    start: Duration,
}

/// Of one process.
struct Usage {
    rss_kib: u64,
    pss_kib: u64,
    private_kib: u64,
    ticks: u64,
    threads: u64,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if echo::ran(&args) {
        return ExitCode::SUCCESS;
    }
    let seconds =
        args.iter().position(|arg| arg == "--seconds").map(|at| args[at + 1].parse().unwrap());
    let is_good = echo::block_on(measure(Duration::from_secs(seconds.unwrap_or(IDLE_SECONDS))));
    let fails = args.iter().any(|arg| arg == "--check") && !is_good;
    if fails { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

async fn measure(idle: Duration) -> bool {
    let home = Home::new();
    let (server, server_args) = (std::env::current_exe().unwrap(), [echo::STDIO]);
    let entry = json!({"command": server, "args": server_args});
    let file = home.path().join("mcp.json");
    fs::write(&file, json!({"mcpServers": {"a": entry, "b": entry, "c": entry}}).to_string())
        .unwrap();
    let file = file.display().to_string();
    let devices = [
        start(&home, "no MCP server", &[]).await,
        start(&home, "3 MCP servers", &["--mcp", &file]).await,
    ];
    tokio::time::sleep(SETTLE).await;
    let before: Vec<_> = devices.iter().map(|idle| usage(idle.device.id())).collect();
    let helpers_before: Vec<_> =
        devices.iter().map(|idle| usage(helper(idle.device.id()))).collect();
    tokio::time::sleep(idle).await;
    let size = fs::metadata(env!("CARGO_BIN_EXE_flightdeck")).unwrap().len() / 1024;
    println!("binary: {size} KiB (budget {MAX_BINARY_KIB})");
    println!(
        "\nafter {} s of idling; memory in KiB (budget {MAX_MEMORY_KIB} RSS), processor time in ms",
        idle.as_secs()
    );
    println!(
        "{:22}{:>8}{:>8}{:>9}{:>9}{:>10}{:>10}",
        "", "RSS", "PSS", "private", "threads", "processor", "start"
    );
    let mut is_good = size <= MAX_BINARY_KIB;
    for (index, idle) in devices.iter().enumerate() {
        let device = usage(idle.device.id());
        let helper = usage(helper(idle.device.id()));
        is_good &= show(idle.what, &device, &before[index], Some(idle.start));
        is_good &= show("  its helper", &helper, &helpers_before[index], None);
    }
    is_good
}

/// Starts one, and waits until it is connected. (MCP servers start meanwhile.)
async fn start(home: &Home, what: &'static str, args: &[&str]) -> Idle {
    let server = PythonServer::start().await;
    let url = server.url();
    let all: Vec<&str> = ["device", "--id", "idle", "--server", &url]
        .into_iter()
        .chain(args.iter().copied())
        .collect();
    let started = Instant::now();
    let device = home.start(&all);
    let (peer, _) = server.accept().await;
    Idle { what, device, _server: peer, start: started.elapsed() }
}

/// The watchdog of a device: its child that is the same program.
fn helper(device: u32) -> u32 {
    let children = fs::read_dir(format!("/proc/{device}/task")).unwrap().flat_map(|thread| {
        fs::read_to_string(thread.unwrap().path().join("children"))
            .unwrap_or_default()
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    });
    let is_helper = |id: &String| {
        fs::read_to_string(format!("/proc/{id}/cmdline"))
            .is_ok_and(|line| line.contains("watchdog"))
    };
    children.into_iter().find(is_helper).unwrap().parse().unwrap()
}

fn usage(process: u32) -> Usage {
    // Only root may look into a device: for others what this tells is 0.
    let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap_or_default();
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let number = |text: &str, name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.map_or(0, |number| number.parse().unwrap())
    };
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    // The name, in front of the last parenthesis, may hold anything.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    Usage {
        rss_kib: number(&status, "VmRSS"),
        pss_kib: number(&rollup, "Pss"),
        private_kib: number(&rollup, "Private_Clean") + number(&rollup, "Private_Dirty"),
        ticks: [11, 12].map(|at| fields[at].parse::<u64>().unwrap()).iter().sum(),
        threads: number(&status, "Threads"),
    }
}

/// Prints one line of the table. Whether it is within budget.
fn show(what: &str, now: &Usage, before: &Usage, start: Option<Duration>) -> bool {
    let ticks = now.ticks - before.ticks;
    let start = start.map(|start| format!("{} ms", start.as_millis())).unwrap_or_default();
    let Usage { rss_kib, pss_kib, private_kib, threads, .. } = now;
    let is_good = *rss_kib <= MAX_MEMORY_KIB && ticks <= MAX_TICKS;
    let mark = if is_good { "" } else { "  OVER" };
    println!(
        "{what:22}{rss_kib:8}{pss_kib:8}{private_kib:9}{threads:9}{:10}{start:>10}{mark}",
        ticks * 10
    );
    is_good
}
