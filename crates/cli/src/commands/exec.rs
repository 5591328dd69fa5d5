//! `flightdeck exec`: runs a command on one device or several.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use constellation::{
    ClientId, Constellation, NewTask, Outcome, Payload, StepStatus, Task, TaskEvent,
};
use serde_json::{Map, Value, json};

use super::follow::{CommandOutput, code, describe, follow, results, why};
use crate::args::{Exec, Global};
use crate::connect::{Target, say_goodbye};
use crate::output::{RED, Spinner, labelled, print, print_line, safe, safe_line};
use crate::{Code, Ended, Failure, api, interrupted};

pub(crate) async fn run(args: Exec, global: Global) -> Ended {
    let plan = plan(&args)?;
    let target = Target::new(args.client.clone(), &global)?;
    let devices = devices(&args, &target).await?;
    let constellation = target.connect("exec").await?;
    if !constellation.is_flightdeck() {
        return Err(Failure::unreachable(anyhow::anyhow!(
            "the server at {} is no Flightdeck server: it takes no plans, which `exec` needs. \
             Send it a task in words with `flightdeck run`",
            target.server
        )));
    }
    let command_timeout = args.timeout.map(|timeout| timeout.0 + ANSWER_TIME);
    let show = Show { labels: devices.len() > 1, json: args.json };
    tokio::select! {
        code = run_all(&constellation, devices, &plan, command_timeout, show) => {
            let code = code?;
            say_goodbye(constellation).await;
            Ok(code)
        }
        () = interrupted() => {
            say!("Cancelled.");
            say_goodbye(constellation).await;
            Ok(Code::CANCELLED)
        }
    }
}

/// How much longer the server waits than the device, so that the device's own answer comes through.
const ANSWER_TIME: Duration = Duration::from_secs(15);

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
        api::devices(target).await?.into_iter().map(|device| device.id).collect()
    } else {
        args.on.clone()
    };
    if names.is_empty() {
        return Err(Failure {
            code: Code::FAILED,
            error: anyhow::anyhow!("no device is online; make this machine one: flightdeck device"),
        });
    }
    let mut seen = HashSet::new();
    let ids = names.into_iter().filter(|name| seen.insert(name.clone()));
    let parsed = ids.map(|id| id.parse().with_context(|| format!("--on {id:?}")));
    Ok(parsed.collect::<anyhow::Result<Vec<ClientId>>>()?)
}

/// Runs the plan everywhere at once, and prints each device's output when it has it. Returns the worst
/// code.
async fn run_all(
    constellation: &Constellation,
    devices: Vec<ClientId>,
    plan: &str,
    command_timeout: Option<Duration>,
    show: Show,
) -> Ended {
    let spinner = Arc::new(Spinner::new(&waiting(devices.len())));
    let mut left = devices.len();
    let mut tasks = tokio::task::JoinSet::new();
    for device in devices {
        let task = NewTask { command_timeout, ..NewTask::new(device.clone(), plan) };
        let task = constellation.submit(task).map_err(Failure::unreachable)?;
        tasks.spawn(one(device, task, spinner.clone()));
    }
    let mut worst = Code::COMPLETED;
    while let Some(done) = tasks.join_next().await {
        let (device, outcome) = done.context("a task of this program failed")?;
        left -= 1;
        spinner.say(&waiting(left));
        worst = worst.max(show_outcome(&spinner, &device, &outcome, show)?);
    }
    Ok(worst)
}

fn waiting(devices: usize) -> String {
    format!("waiting for {devices} {}", if devices == 1 { "device" } else { "devices" })
}

/// Follows the task of one device; the spinner says what it is about.
async fn one(device: ClientId, task: Task, spinner: Arc<Spinner>) -> (ClientId, Outcome) {
    let name = safe_line(device.as_str());
    let outcome = follow(task, |event| {
        let TaskEvent::Progress { line, step } = event else { return };
        let said = match step.as_ref().map(|step| step.status) {
            // What it writes; all of it is printed at the end.
            None => line.lines().last().map(safe_line),
            Some(StepStatus::Queued) => Some(safe_line(line)),
            Some(StepStatus::Running) => step.as_deref().map(describe),
            Some(_) => None,
        };
        if let Some(said) = said {
            spinner.say(&format!("{name}: {said}"));
        }
    })
    .await;
    (device, outcome)
}

/// Prints what a device returned; its exit code becomes ours.
fn show_outcome(
    spinner: &Spinner,
    device: &ClientId,
    outcome: &Outcome,
    show: Show,
) -> anyhow::Result<Code> {
    let results = results(outcome);
    let returned = results.iter().flatten().next();
    let output = returned.and_then(CommandOutput::of);
    if show.json {
        print_line(&as_json(device, outcome, output.as_ref()).to_string())?;
    } else if let Some(output) = &output {
        print_output(spinner, device, output, show)?;
    }
    let name = safe_line(device.as_str());
    if !outcome.completed {
        spinner.line(&format!("{RED}{name}{RED:#}: {}", why(outcome)));
        return Ok(code(outcome));
    }
    // An exit code is a byte; whatever else a device says is a failure too.
    let (code, error) = output.map_or((None, None), |output| (output.exit_code, output.error));
    if let Some(byte) = code.and_then(|code| u8::try_from(code).ok()) {
        return Ok(Code(byte));
    }
    let why = error.unwrap_or_else(|| {
        let result = returned.and_then(|returned| returned.result.as_ref());
        format!("this is no command's output: {}", result.map_or("nothing", Payload::as_str))
    });
    spinner.line(&format!("{RED}{name}{RED:#}: {}", safe_line(&why)));
    Ok(Code::FAILED)
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

fn as_json(device: &ClientId, outcome: &Outcome, output: Option<&CommandOutput>) -> Value {
    json!({
        "device": device,
        "status": if outcome.completed { "completed" } else { "failed" },
        "error": outcome.error.as_ref().or_else(|| output.and_then(|output| output.error.as_ref())),
        "exit_code": output.and_then(|output| output.exit_code),
        "stdout": output.map(|output| &output.stdout),
        "stderr": output.map(|output| &output.stderr),
    })
}
