//! `flightdeck exec`: runs a command on one device or several.

mod end;
mod input;
mod recap;
mod schedule;
pub(super) mod screen;
mod targets;
mod teller;

use std::time::Duration;

use aip::visible::escape_json;
use anyhow::Context;
use constellation::{ClientId, Constellation, NewTask, OnDisconnect, RequestError, Streams, Task};
use serde_json::{Map, Value, json};
use tokio::io::Stdin;
use tokio_util::sync::CancellationToken;

use self::recap::Recap;
use self::schedule::{CANCELLED_BEFORE, Schedule};
pub(super) use self::targets::TAG;
use self::teller::Teller;
use super::follow::{CommandOutput, Followed, follow, interruptible, on_disconnect};
use crate::args::{Exec, Global, Variable};
use crate::connect::{Target, say_goodbye};
use crate::ending::{Ending, Known};
use crate::output::{RED, print_json, print_line, safe_line};
use crate::{Code, Ended, Failure, Interrupts};

pub(crate) async fn run(args: Exec, global: Global) -> Ended {
    let plan = plan(&args)?;
    let target = Target::new(args.client.clone(), &global)?;
    let chosen = targets::choose(&args, &target).await?;
    let escapes = (args.raw || args.escape).then_some(args.escape);
    let show = Show { labels: chosen.len() > 1, json: args.json, escapes };
    let (constellation, on_disconnect) = match connect(&target, args.detach).await {
        Ok(connected) => connected,
        Err(failure) => {
            for (device, failure) in &chosen.left_out {
                show_not_submitted(device, failure, show)?;
            }
            for device in &chosen.devices {
                show_not_submitted(device, &failure, show)?;
            }
            return Err(failure);
        }
    };
    let (mut recap, mut worst) = (Recap::of(&chosen.devices), Code::COMPLETED);
    for (device, failure) in &chosen.left_out {
        worst = worst.max(say_not_submitted(device, failure, show)?);
        recap.left_out(device, failure.code);
    }
    let asked = Asked::new(&args, chosen.len(), &constellation);
    let submit = |device: &ClientId, has_input| {
        constellation.submit(NewTask {
            command_timeout: args.timeout.map(|timeout| timeout.0 + ANSWER_TIME),
            no_time_limit: has_no_limit(&args),
            on_disconnect,
            streams: Streams {
                output: asked.output,
                input: has_input,
                spool: asked.spool,
                window: None,
            },
            ..NewTask::new(device.clone(), plan.clone())
        })
    };
    let interrupts = Interrupts::listen();
    let stop = CancellationToken::new();
    let schedule = Schedule {
        submit: &submit,
        asked,
        at_once: args.at_once.map_or(usize::MAX, usize::from),
        stop_after: args.stop_after_failures.map_or(usize::MAX, usize::from),
        show,
        stop: &stop,
    };
    let code = if args.detach {
        let accepting = schedule.all_accepted(chosen.devices, &mut recap);
        interruptible(&constellation, &stop, interrupts, accepting).await
    } else {
        let running = schedule.run(chosen.devices, &mut recap);
        let running = warning_of_input(running, asked.has_unread_input);
        interruptible(&constellation, &stop, interrupts, running).await
    };
    let code = match code {
        Ok(code) => code?,
        Err(left) => {
            for (device, has_begun) in recap.leave() {
                match has_begun {
                    true => show_left(&device, &left, show)?,
                    false => show_not_started(&device, CANCELLED_BEFORE.to_owned(), show)?,
                }
            }
            left.exec_code()
        }
    };
    if show.json && show.labels {
        say!("{}", escape_json(&recap.json().to_string()));
    } else if show.labels {
        say!("{}", recap.line(if args.detach { "submitted" } else { "ok" }));
    }
    say_goodbye(constellation).await;
    Ok(code.max(worst))
}

/// Submits the task for a device, with our standard input or without.
type Submit<'a> = &'a dyn Fn(&ClientId, bool) -> Result<Task, RequestError>;

/// The streams that are asked for.
#[derive(Clone, Copy)]
struct Asked {
    output: bool,
    input: bool,
    /// Whether its device keeps what it writes, for whoever asks later.
    spool: bool,
    /// Whether there is input that cannot be passed on.
    has_vain_input: bool,
    /// Whether there is input, and several devices.
    has_unread_input: bool,
}

impl Asked {
    fn new(args: &Exec, devices: usize, constellation: &Constellation) -> Self {
        let is_followed = !args.detach;
        let is_there = is_followed && !args.no_input && input::is_there();
        let wanted = is_there && devices == 1;
        let input = wanted && constellation.may_send_input();
        let output = is_followed && constellation.may_stream();
        let spool = args.detach && constellation.may_stream();
        Self {
            output,
            input,
            spool,
            has_vain_input: wanted && !input,
            has_unread_input: is_there && devices > 1,
        }
    }
}

/// Connects to a server that takes plans, and says what shall become of a task without us there.
async fn connect(
    target: &Target,
    is_detached: bool,
) -> Result<(Constellation, OnDisconnect), Failure> {
    let constellation = target.connect("exec").await?;
    if !constellation.is_flightdeck() {
        return Err(Failure::unreachable(anyhow::anyhow!(
            "the server at {} is no Flightdeck server: it takes no plans, which `exec` needs. \
             Send it a task in words with `flightdeck run`",
            target.server
        )));
    }
    let on_disconnect = on_disconnect(&constellation, target, is_detached)?;
    Ok((constellation, on_disconnect))
}

/// How much longer the server waits than the device, so that the device's own answer comes through.
const ANSWER_TIME: Duration = Duration::from_secs(15);

/// What a command asks its device for that is to take as long as it takes, in seconds: a year. Every device knows a number,
/// also those that know of no limit at all.
const NO_LIMIT_S: u64 = 366 * 24 * 3600;

/// Whether only the time that is asked for, and what others have set, may end the command: somebody waits for it, or has
/// said how long it may take.
const fn has_no_limit(args: &Exec) -> bool {
    !args.detach || args.timeout.is_some()
}

/// The tool that runs the command, with its namespace: an MCP server of the device may have one of the same name.
const TOOL: &str = "BashExecutor::execute_command";

/// How to print.
#[derive(Clone, Copy)]
struct Show {
    labels: bool,
    json: bool,
    /// Whether what would drive a terminal is escaped, whatever the output goes to.
    escapes: Option<bool>,
}

fn plan(args: &Exec) -> anyhow::Result<String> {
    let command = match args.command.as_slice() {
        [line] => line.clone(),
        words => shlex::try_join(words.iter().map(String::as_str))
            .context("a NUL character cannot be part of a command")?,
    };
    if command.trim().is_empty() {
        anyhow::bail!("the command is empty");
    }
    let mut parameters = Map::from_iter([("command".to_owned(), json!(command))]);
    if let Some(timeout) = args.timeout {
        anyhow::ensure!(!timeout.0.is_zero(), "--timeout must be more than 0");
        parameters.insert("timeout".to_owned(), json!(timeout.0.as_secs_f64()));
    } else if has_no_limit(args) {
        parameters.insert("timeout".to_owned(), json!(NO_LIMIT_S));
    }
    if let Some(cwd) = &args.cwd {
        parameters.insert("cwd".to_owned(), json!(cwd));
    }
    if !args.env.is_empty() {
        let set: Map<_, _> =
            args.env.iter().map(|Variable { name, value }| (name.clone(), json!(value))).collect();
        parameters.insert("env".to_owned(), Value::Object(set));
    }
    let command = json!({"tool_name": TOOL, "parameters": parameters, "tool_type": "action"});
    Ok(json!({"commands": [command]}).to_string())
}

fn print_id(device: &ClientId, id: &str, show: Show) -> anyhow::Result<()> {
    if show.json {
        return print_json(&json!({"device": device, "task": id}).to_string());
    }
    match show.labels {
        true => print_line(&format!("{}  {}", safe_line(id), safe_line(device.as_str()))),
        false => print_line(&safe_line(id)),
    }
}

fn waiting(devices: usize) -> String {
    format!("waiting for {devices} {}", if devices == 1 { "device" } else { "devices" })
}

/// Follows the task of one device, and gives its command our standard input if it takes that.
async fn one(
    mut teller: Teller,
    task: Task,
    stop: &CancellationToken,
    asked: Asked,
    submit: Submit<'_>,
) -> (Teller, Followed) {
    let mut source = tokio::io::stdin();
    if asked.input {
        let into = task.input();
        let followed = tokio::select! {
            biased;
            followed = follow(task, stop, &mut teller) => followed,
            never = input::pass_on(&into, &mut source) => match never {},
        };
        if !is_without_input(&followed) {
            return (teller, followed);
        }
        // Nothing of it was read, so the command can do without.
        let task = match submit(&teller.device, false) {
            Ok(task) => task,
            Err(error) => {
                let failure = Failure::unreachable(error);
                return (teller, Followed::not_submitted(&failure));
            }
        };
        return watching_input(teller, task, stop, &mut source).await;
    }
    if asked.has_vain_input {
        return watching_input(teller, task, stop, &mut source).await;
    }
    let followed = follow(task, stop, &mut teller).await;
    (teller, followed)
}

/// Follows a task that cannot have our standard input, and says so if something comes there.
async fn watching_input(
    mut teller: Teller,
    task: Task,
    stop: &CancellationToken,
    source: &mut Stdin,
) -> (Teller, Followed) {
    let device = safe_line(teller.device.as_str());
    let followed = {
        let following = follow(task, stop, &mut teller);
        tokio::pin!(following);
        tokio::select! {
            biased;
            followed = &mut following => followed,
            () = input::something_comes(source) => {
                say!("warning: standard input is not passed on: '{device}' takes none (-n says that it need not)");
                following.await
            }
        }
    };
    (teller, followed)
}

/// Says so if something comes on standard input, which goes to one device only.
async fn warning_of_input<T>(running: impl Future<Output = T>, is_there: bool) -> T {
    if !is_there {
        return running.await;
    }
    let mut source = tokio::io::stdin();
    tokio::pin!(running);
    tokio::select! {
        biased;
        done = &mut running => done,
        () = input::something_comes(&mut source) => {
            say!("warning: standard input is not passed on: it goes to one device only (-n says that it need not)");
            running.await
        }
    }
}

/// Whether a task was refused since its device takes no input.
fn is_without_input(followed: &Followed) -> bool {
    let error = followed.outcome.error.as_deref().unwrap_or_default();
    followed.outcome.refused.is_some() && error.ends_with("takes no input")
}

/// Tells of a device whose task did not get as far as the server. Returns the code that it stands for.
fn say_not_submitted(device: &ClientId, failure: &Failure, show: Show) -> anyhow::Result<Code> {
    show_not_submitted(device, failure, show)?;
    let (name, why) = (device.as_str(), format!("{:#}", failure.error));
    say!("{RED}{}{RED:#}: {}", safe_line(name), safe_line(&why));
    Ok(failure.code.of_exec())
}

/// Tells programs of a device on which it was not started.
fn show_not_started(device: &ClientId, why: String, show: Show) -> anyhow::Result<()> {
    let failure = Failure { code: Code::EXEC_NEVER_SENT, error: anyhow::Error::msg(why) };
    show_not_submitted(device, &failure, show)
}

/// Tells programs of a device for which nobody waits any longer.
fn show_left(device: &ClientId, left: &Ending, show: Show) -> anyhow::Result<()> {
    if !show.json {
        return Ok(());
    }
    print_json(&as_json(device, &Followed::left(left.clone()), None).to_string())
}

/// Tells programs of a device whose task did not get as far as the server.
fn show_not_submitted(device: &ClientId, failure: &Failure, show: Show) -> anyhow::Result<()> {
    if !show.json {
        return Ok(());
    }
    print_json(&as_json(device, &Followed::not_submitted(failure), None).to_string())
}

fn as_json(device: &ClientId, followed: &Followed, output: Option<&CommandOutput>) -> Value {
    let Followed { ending, task, .. } = followed;
    json!({
        "device": device,
        "task": task,
        "status": ending.status(),
        "known": ending.known.map(Known::as_str),
        "refused": ending.refused(),
        "error": ending.error.as_ref().or_else(|| output.and_then(|output| output.error.as_ref())),
        "exit_code": output.and_then(|output| output.exit_code),
        "stdout": output.map(|output| &output.stdout),
        "stderr": output.map(|output| &output.stderr),
        "truncated": false,
    })
}
