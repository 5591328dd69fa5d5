//! `flightdeck exec`: runs a command on one device or several.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use constellation::{
    ClientId, Constellation, NewTask, OnDisconnect, Payload, StepStatus, Task, TaskEvent,
};
use serde_json::{Map, Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::follow::{
    CommandOutput, Followed, Notices, accepted, describe, event_json, follow, interruptible,
    on_disconnect,
};
use crate::api::Api;
use crate::args::{Exec, Global};
use crate::connect::{Target, say_goodbye};
use crate::ending::{Known, is_timeout, results, value};
use crate::output::{RED, Spinner, labelled, print, print_line, safe, safe_line};
use crate::{Code, Ended, Failure};

pub(crate) async fn run(args: Exec, global: Global) -> Ended {
    let plan = plan(&args)?;
    let target = Target::new(args.client.clone(), &global)?;
    let devices = devices(&args, &target).await?;
    let show = Show { labels: devices.len() > 1, json: args.json };
    let (constellation, on_disconnect) = match connect(&target, args.detach).await {
        Ok(connected) => connected,
        Err(failure) => {
            for device in &devices {
                show_not_submitted(device, &failure, show)?;
            }
            return Err(failure);
        }
    };
    let (mut submitted, mut worst) = (Vec::new(), Code::COMPLETED);
    for device in devices {
        let task = NewTask {
            command_timeout: args.timeout.map(|timeout| timeout.0 + ANSWER_TIME),
            no_time_limit: has_no_limit(&args),
            on_disconnect,
            ..NewTask::new(device.clone(), plan.clone())
        };
        match constellation.submit(task).map_err(Failure::unreachable) {
            Ok(task) => submitted.push((device, task)),
            Err(failure) => {
                show_not_submitted(&device, &failure, show)?;
                let (name, why) = (device.as_str(), format!("{:#}", failure.error));
                say!("{RED}{}{RED:#}: {}", safe_line(name), safe_line(&why));
                worst = worst.max(failure.code.of_exec());
            }
        }
    }
    let stop = CancellationToken::new();
    let code = if args.detach {
        interruptible(&constellation, &stop, all_accepted(submitted, &stop, show)).await
    } else {
        interruptible(&constellation, &stop, follow_all(submitted, &stop, show)).await
    };
    let code = code.unwrap_or_else(|left| Ok(left.exec_code()))?;
    say_goodbye(constellation).await;
    Ok(code.max(worst))
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

/// How to print.
#[derive(Clone, Copy)]
struct Show {
    labels: bool,
    json: bool,
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
    let command =
        json!({"tool_name": "execute_command", "parameters": parameters, "tool_type": "action"});
    Ok(json!({"commands": [command]}).to_string())
}

async fn devices(args: &Exec, target: &Target) -> Result<Vec<ClientId>, Failure> {
    let names = if args.all {
        let devices = Api::new(target)?.devices().await?;
        devices.into_iter().filter(|device| device.is_online()).map(|device| device.id).collect()
    } else {
        args.on.clone()
    };
    if names.is_empty() {
        return Err(Failure {
            code: Code::EXEC_UNREACHABLE,
            error: anyhow::anyhow!("no device is online; make this machine one: flightdeck device"),
        });
    }
    let mut seen = HashSet::new();
    let ids = names.into_iter().filter(|name| seen.insert(name.clone()));
    let parsed = ids.map(|id| id.parse().with_context(|| format!("--on {id:?}")));
    Ok(parsed.collect::<anyhow::Result<Vec<ClientId>>>()?)
}

/// Waits until the server has each task, and prints their ids. Returns the worst code.
async fn all_accepted(tasks: Vec<(ClientId, Task)>, stop: &CancellationToken, show: Show) -> Ended {
    let (spinner, notices) = (Spinner::new("submitted"), Notices::default());
    let mut worst = Code::COMPLETED;
    for (device, task) in tasks {
        let tell = |event: &_| notices.of(event).iter().for_each(|said| spinner.line(said));
        match accepted(task, stop, tell).await {
            Ok(id) => print_id(&device, &id, show)?,
            Err(followed) => worst = worst.max(show_outcome(&spinner, &device, &followed, show)?),
        }
    }
    Ok(worst)
}

fn print_id(device: &ClientId, id: &str, show: Show) -> anyhow::Result<()> {
    if show.json {
        return print_line(&json!({"device": device, "task": id}).to_string());
    }
    match show.labels {
        true => print_line(&format!("{}  {}", safe_line(id), safe_line(device.as_str()))),
        false => print_line(&safe_line(id)),
    }
}

/// Follows all tasks at once, and prints each device's output when it has it. Returns the worst code.
async fn follow_all(
    submitted: Vec<(ClientId, Task)>,
    stop: &CancellationToken,
    show: Show,
) -> Ended {
    let (mut left, notices) = (submitted.len(), Notices::default());
    let spinner = Arc::new(Spinner::new(&waiting(left)));
    let mut tasks = JoinSet::new();
    for (device, task) in submitted {
        let teller = Teller { device, spinner: spinner.clone(), notices: notices.clone(), show };
        tasks.spawn(one(teller, task, stop.clone()));
    }
    let mut worst = Code::COMPLETED;
    while let Some(done) = tasks.join_next().await {
        let (device, followed) = done.context("a task of this program failed")?;
        left -= 1;
        spinner.say(&waiting(left));
        worst = worst.max(show_outcome(&spinner, &device, &followed, show)?);
    }
    Ok(worst)
}

fn waiting(devices: usize) -> String {
    format!("waiting for {devices} {}", if devices == 1 { "device" } else { "devices" })
}

/// Tells what happens to the task of one device.
struct Teller {
    device: ClientId,
    spinner: Arc<Spinner>,
    notices: Notices,
    show: Show,
}

/// Follows the task of one device.
async fn one(teller: Teller, task: Task, stop: CancellationToken) -> (ClientId, Followed) {
    let followed = follow(task, &stop, |event| teller.tell(event)).await;
    (teller.device, followed)
}

impl Teller {
    /// For people the spinner says what it is about; programs are told that the task is accepted, and as what.
    fn tell(&self, event: &TaskEvent) {
        match event {
            TaskEvent::Progress { line, step } => self.tell_progress(line, step.as_deref()),
            _ if self.show.json => {
                if let Some(mut said) = event_json(event, &self.notices) {
                    if matches!(event, TaskEvent::Accepted { .. }) {
                        said["device"] = json!(self.device);
                    }
                    say!("{said}");
                }
            }
            _ => self.notices.of(event).iter().for_each(|said| self.spinner.line(said)),
        }
    }

    fn tell_progress(&self, line: &str, step: Option<&constellation::Step>) {
        let said = match step.map(|step| step.status) {
            // What it writes; all of it is printed at the end.
            None => line.lines().last().map(safe_line),
            Some(StepStatus::Queued) => Some(safe_line(line)),
            Some(StepStatus::Running) => step.map(describe),
            Some(_) => None,
        };
        if let Some(said) = said {
            self.spinner.say(&format!("{}: {said}", safe_line(self.device.as_str())));
        }
    }
}

/// Prints what a device returned; its exit code becomes ours.
fn show_outcome(
    spinner: &Spinner,
    device: &ClientId,
    followed: &Followed,
    show: Show,
) -> anyhow::Result<Code> {
    let results = results(value(&followed.outcome).as_ref());
    let returned = results.iter().flatten().next();
    let output = returned.and_then(CommandOutput::of);
    if show.json {
        print_line(&as_json(device, followed, output.as_ref()).to_string())?;
    } else if let Some(output) = &output {
        print_output(spinner, device, output, show)?;
    }
    let name = safe_line(device.as_str());
    if !followed.outcome.completed {
        spinner.line(&format!("{RED}{name}{RED:#}: {}", safe_line(&followed.ending.why())));
        return Ok(followed.ending.exec_code());
    }
    // An exit code is a byte; whatever else a device says is no command's own.
    let (code, error) = output.map_or((None, None), |output| (output.exit_code, output.error));
    if let Some(byte) = code.and_then(|code| u8::try_from(code).ok()) {
        return Ok(Code(byte));
    }
    let why = error.unwrap_or_else(|| {
        let result = returned.and_then(|returned| returned.result.as_ref());
        format!("this is no command's output: {}", result.map_or("nothing", Payload::as_str))
    });
    spinner.line(&format!("{RED}{name}{RED:#}: {}", safe_line(&why)));
    Ok(if is_timeout(&why) { Code::EXEC_TIMED_OUT } else { Code::EXEC_OTHER })
}

fn print_output(
    spinner: &Spinner,
    device: &ClientId,
    output: &CommandOutput,
    show: Show,
) -> anyhow::Result<()> {
    let shown = |text: &str| {
        let text = safe(text);
        if show.labels { labelled(&safe_line(device.as_str()), &text) } else { text }
    };
    print(&shown(&output.stdout))?;
    let errors = shown(&output.stderr);
    if !errors.is_empty() {
        spinner.line(errors.trim_end_matches('\n'));
    }
    Ok(())
}

/// Tells programs of a device whose task did not get as far as the server.
fn show_not_submitted(device: &ClientId, failure: &Failure, show: Show) -> anyhow::Result<()> {
    if !show.json {
        return Ok(());
    }
    print_line(&as_json(device, &Followed::not_submitted(failure), None).to_string())
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
    })
}
