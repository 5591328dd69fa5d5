//! `flightdeck demo`: the whole thing on this machine, over real WebSockets: a server on a free port
//! with a key of its own, this machine as its device, one task from beginning to end.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use aip::codec::Wire;
use aip::message::{Confirmed, Extension};
use aip::{ClientMessage, ServerMessage};
use anyhow::Context;
use bytes::Bytes;
use constellation::{Constellation, NewTask, Outcome, TaskEvent};
use device::{Device, DeviceEvent};
use link::{ClientSettings, Direction, ServerUrl, Tap};
use secrecy::SecretString;
use serde_json::{Value, json};
use server::{Config, Keys, Server, generate_key};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::follow::{CommandOutput, follow, show_step};
use crate::args::Demo;
use crate::commands::device::{settings as device_settings, watchdog};
use crate::ending::{Ending, results, value};
use crate::output::{BOLD, DIM, GREEN, RED, Spinner, print, print_line, safe};
use crate::settings::DeviceKeys;
use crate::state::StateFolder;
use crate::{Ended, Failure, interrupted};

pub(crate) async fn run(args: &Demo) -> Ended {
    let demo = start(args.json).await?;
    let say = |text: &str| {
        if !args.json {
            say!("{text}");
        }
    };
    say(&format!("{BOLD}Flightdeck demo{BOLD:#}: server, device and task on this machine"));
    say(&format!("{DIM}server listens on {} with a key of its own{DIM:#}", demo.server));
    say(&format!("{DIM}device '{}' has joined it{DIM:#}\n", demo.device_id));

    let outcome = tokio::select! {
        outcome = demo.task(args.json) => outcome?,
        () = interrupted() => return demo.end(crate::Code::CANCELLED).await,
    };
    if !args.json {
        print_line(&summary(&outcome))?;
        print(&next_steps())?;
    }
    if args.keep {
        keep(&demo, args.json).await?;
    }
    let code = Ending::of(&outcome).code();
    demo.end(code).await
}

/// Everything that runs.
struct Running {
    server: ServerUrl,
    key: SecretString,
    device_id: String,
    frames: Option<Arc<Frames>>,
    stop_serving: CancellationToken,
    serving: JoinHandle<()>,
    stop_device: CancellationToken,
    device: JoinHandle<link::Exit>,
}

async fn start(json: bool) -> Result<Running, Failure> {
    let frames = json.then(|| Arc::new(Frames::new()));
    let key = generate_key();
    let listener =
        server::listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).context("the demo")?;
    let port = listener.local_addr().context("the address of the listener")?.port();
    let stop_serving = CancellationToken::new();
    let server = Server::new(Config::default(), Keys::local(key.clone()));
    let stopped = stop_serving.clone();
    let serving = tokio::spawn(async move { server.serve(listener, stopped).await });
    let server = ServerUrl::local(port);

    let values = DeviceKeys::default().resolve(DeviceKeys::default());
    let mut settings = device_settings(&values, &server)?;
    settings.client.token = Some(key.clone());
    settings.client.tap = frames.as_ref().map(|frames| frames.tap("device"));
    let device_id = settings.id.to_string();
    let (connected, mut is_connected) = mpsc::channel(1);
    let device = Device::new(settings, watchdog(), move |event| {
        if event == DeviceEvent::Connected {
            // A second connection finds the demo long started.
            let _started_already = connected.try_send(());
        }
    })
    .context("the device")?;
    let stop_device = CancellationToken::new();
    let mut device = tokio::spawn(device.run(stop_device.clone()));
    tokio::select! {
        _ = is_connected.recv() => {}
        exit = &mut device => {
            let why = exit.map_or_else(|error| error.to_string(), |exit| exit.to_string());
            return Err(Failure::unreachable(anyhow::anyhow!("the device could not join: {why}")));
        }
    }
    Ok(Running { server, key, device_id, frames, stop_serving, serving, stop_device, device })
}

impl Running {
    async fn task(&self, json: bool) -> Result<Outcome, Failure> {
        let settings = ClientSettings {
            token: Some(self.key.clone()),
            tap: self.frames.as_ref().map(|frames| frames.tap("constellation")),
            ..ClientSettings::constellation(self.server.clone())
        };
        let id = "demo".parse().context("the id of this client")?;
        let constellation =
            Constellation::connect(settings, id).await.map_err(Failure::unreachable)?;
        let target = self.device_id.parse().context("the device's id")?;
        let mut task = NewTask::new(target, plan());
        task.task_name = Some("demo".to_owned());
        let task = constellation.submit(task).map_err(Failure::unreachable)?;
        let outcome = if json { task.outcome().await } else { watch(task).await };
        constellation.close().await;
        Ok(outcome)
    }

    /// Stops everything, and waits until it has: the server first, which tells the device of the end of the task.
    async fn end(self, code: crate::Code) -> Ended {
        self.stop_serving.cancel();
        self.serving.await.context("the server failed")?;
        self.stop_device.cancel();
        self.device.await.context("the device failed")?;
        Ok(code)
    }
}

/// A few commands that show this machine.
fn plan() -> String {
    let uptime = ["/usr/bin/uptime", "/bin/uptime"].iter().any(|path| Path::new(path).exists());
    let lines = ["uname -sr", "df -h /", if uptime { "uptime" } else { "cat /proc/uptime" }];
    let commands: Vec<Value> = lines
        .iter()
        .map(|line| json!({"tool_name": "execute_command", "parameters": {"command": line}}))
        .collect();
    json!({"commands": commands, "keep_going": true}).to_string()
}

async fn watch(task: constellation::Task) -> Outcome {
    let spinner = Spinner::new("submitted");
    let never = CancellationToken::new();
    let mut tell = |event: &TaskEvent| match event {
        TaskEvent::Accepted { .. } => spinner.line(&format!("{DIM}task accepted{DIM:#}")),
        TaskEvent::Progress { step: Some(step), .. } => {
            show_step(&spinner, step);
            let output = step.result_head.as_deref().map(shown_output);
            for line in output.iter().flat_map(|text| text.lines()) {
                spinner.line(&format!("    {}", safe(line)));
            }
        }
        _ => {}
    };
    follow(task, &never, &mut tell).await.outcome
}

/// What a command printed, out of the beginning of its result; the whole comes with the outcome.
fn shown_output(head: &str) -> String {
    let output = serde_json::from_str::<CommandOutput>(head);
    output.map_or_else(|_| head.to_owned(), |output| output.stdout + &output.stderr)
}

fn summary(outcome: &Outcome) -> String {
    if !outcome.completed {
        return format!("{RED}failed{RED:#}: {}", safe(&Ending::of(outcome).why()));
    }
    let steps = results(value(outcome).as_ref());
    let outputs = steps.iter().flatten().filter_map(CommandOutput::of);
    let good = outputs.filter(|output| output.exit_code == Some(0)).count();
    format!("{GREEN}completed{GREEN:#}: {good} of {} steps went well", steps.len())
}

fn next_steps() -> String {
    let steps = [
        ("flightdeck serve", "start a server of your own"),
        ("flightdeck device", "join this machine to it; `serve` says how others join"),
        ("flightdeck exec --all -- uname -r", "send work to all of them"),
    ];
    let line = |(command, about)| format!("  {BOLD}{command:34}{BOLD:#} {about}\n");
    format!("\nNext:\n{}", steps.map(line).concat())
}

/// Stays up until Ctrl-C. The key goes where other terminals can find it, for as long as it is good.
async fn keep(demo: &Running, json: bool) -> anyhow::Result<()> {
    let name = format!("flightdeck-demo-{}", uuid::Uuid::new_v4().simple());
    let folder = StateFolder::new(Some(std::env::temp_dir().join(name)))?;
    folder.put_key(&demo.key)?;
    if !json {
        let (server, id, state) = (&demo.server, &demo.device_id, folder.path().display());
        print_line(
            "
Staying up until Ctrl-C. In another terminal:",
        )?;
        print_line(&format!(
            "  {BOLD}flightdeck exec --state-dir {state} --server {server} --on {id} -- df -h{BOLD:#}"
        ))?;
    }
    interrupted().await;
    folder.remove()
}

/// A frame without the key by which its client is known again, which is a secret also of a server that lives for
/// seconds.
fn without_keys(frame: &[u8]) -> String {
    let text = String::from_utf8_lossy(frame).into_owned();
    let frame = Bytes::copy_from_slice(frame);
    let shown = ClientMessage::decode(&frame).ok().and_then(|message| {
        let asked = Extension::of(message.metadata.as_ref()).ok().flatten();
        asked?.resume?.key
    });
    let issued = ServerMessage::decode(&frame).ok().and_then(|message| {
        let granted = Confirmed::of(message.result.as_ref());
        Some(granted?.resumed?.resume_key)
    });
    let keys = [shown, issued].into_iter().flatten().filter(|key| !key.is_empty());
    keys.fold(text, |text, key| text.replace(&key, "…"))
}

/// Prints the frames of both links, one a line, in their order.
struct Frames {
    start: Instant,
    out: Mutex<std::io::Stdout>,
}

impl Frames {
    fn new() -> Self {
        Self { start: Instant::now(), out: Mutex::new(std::io::stdout()) }
    }

    fn tap(self: &Arc<Self>, link: &'static str) -> Tap {
        let frames = self.clone();
        Arc::new(move |direction, frame| {
            let direction = if direction == Direction::Out { "c2s" } else { "s2c" };
            let at = frames.start.elapsed().as_secs_f64();
            let frame = without_keys(frame);
            let mut out = frames.out.lock().unwrap_or_else(PoisonError::into_inner);
            // Whoever closed our standard output wants no more of it.
            let _closed = writeln!(
                out,
                r#"{{"t":{at:.4},"link":"{link}","dir":"{direction}","frame":{frame}}}"#
            );
        })
    }
}
