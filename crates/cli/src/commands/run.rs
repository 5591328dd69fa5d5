//! `flightdeck run`: submits a task and follows it to its outcome.

use std::io::Read;

use anyhow::{Context, bail};
use constellation::{NewTask, Outcome, Task, TaskEvent};
use serde_json::{Value, json};

use super::follow::{code, follow, show_step, value, why};
use crate::args::{Global, Run};
use crate::connect::{Target, say_goodbye};
use crate::output::{DIM, GREEN, RED, Spinner, indented, print_line, safe, safe_line};
use crate::{Code, Ended, Failure, interrupted};

/// The longest task text that is read from standard input, in bytes.
const MAX_INPUT_BYTES: u64 = 64 * 1024 * 1024;

pub(crate) async fn run(args: Run, global: Global) -> Ended {
    let text = task_text(&args.text)?;
    let on = args.on.parse().with_context(|| format!("--on {:?}", args.on))?;
    let target = Target::new(args.client, &global)?;
    let constellation = target.connect("run").await?;
    let task = NewTask {
        task_name: args.task_name,
        command_timeout: args.command_timeout.map(|timeout| timeout.0),
        ..NewTask::new(on, text)
    };
    let task = constellation.submit(task).map_err(Failure::unreachable)?;
    let outcome = tokio::select! {
        outcome = watch(task, args.json) => outcome,
        () = interrupted() => {
            say!("Cancelled.");
            say_goodbye(constellation).await;
            return Ok(Code::CANCELLED);
        }
    };
    print_outcome(&outcome, args.json)?;
    say_goodbye(constellation).await;
    Ok(code(&outcome))
}

fn task_text(text: &str) -> anyhow::Result<String> {
    let mut read = text.to_owned();
    if text == "-" {
        read.clear();
        let mut input = std::io::stdin().lock().take(MAX_INPUT_BYTES + 1);
        input.read_to_string(&mut read).context("cannot read the task from standard input")?;
        if read.len() as u64 > MAX_INPUT_BYTES {
            bail!("the task on standard input is longer than {MAX_INPUT_BYTES} bytes");
        }
    }
    if read.trim().is_empty() {
        bail!("the task is empty; say what to do");
    }
    Ok(read)
}

async fn watch(task: Task, json: bool) -> Outcome {
    if json {
        return follow(task, |event| {
            if let Some(event) = event_json(event) {
                say!("{event}");
            }
        })
        .await;
    }
    let spinner = Spinner::new("submitted");
    follow(task, |event| match event {
        TaskEvent::Accepted => spinner.say("accepted"),
        TaskEvent::Progress { step: Some(step), .. } => show_step(&spinner, step),
        TaskEvent::Progress { line, step: None } => {
            for line in line.lines() {
                spinner.line(&format!("    {DIM}{}{DIM:#}", safe_line(line)));
            }
        }
        TaskEvent::Ended(_) => {}
    })
    .await
}

/// An event before the outcome, for programs.
fn event_json(event: &TaskEvent) -> Option<Value> {
    match event {
        TaskEvent::Accepted => Some(json!({"event": "accepted"})),
        TaskEvent::Progress { line, step } => {
            Some(json!({"event": "progress", "line": line, "step": step}))
        }
        TaskEvent::Ended(_) => None,
    }
}

fn print_outcome(outcome: &Outcome, json: bool) -> anyhow::Result<()> {
    if json {
        let status = if outcome.completed { "completed" } else { "failed" };
        let result = outcome.result.as_ref().map_or("null", |result| result.as_str());
        let error = json!(outcome.error);
        let is_lost = outcome.is_lost;
        return print_line(&format!(
            r#"{{"event":"ended","status":"{status}","lost":{is_lost},"error":{error},"result":{result}}}"#
        ));
    }
    if outcome.completed {
        say!("{GREEN}completed{GREEN:#}");
    } else {
        say!("{RED}failed{RED:#}: {}", why(outcome));
    }
    if let Some(value) = value(outcome) {
        // A text is printed as it is, anything else as JSON, so that it pipes.
        let text = value.parse::<String>().unwrap_or_else(|_| indented(value.as_str()));
        print_line(&safe(&text))?;
    }
    Ok(())
}
