//! `flightdeck run`: submits a task and follows it to its outcome.

use std::io::Read;

use aip::visible::escape_json;
use anyhow::{Context, bail};
use constellation::{ClientId, Constellation, NewTask, Streams, Task, TaskEvent};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::follow::{
    Followed, Notices, accepted, ended_line, event_json, follow, interruptible, on_disconnect,
    print_ending, show_step,
};
use crate::args::{Global, Run};
use crate::connect::{Target, say_goodbye};
use crate::ending::{Ending, value};
use crate::output::{DIM, Spinner, print_json, print_line, safe_line};
use crate::{Code, Ended, Failure, Interrupts};

/// The longest task text that is read from standard input, in bytes.
const MAX_INPUT_BYTES: u64 = 64 * 1024 * 1024;

pub(crate) async fn run(args: Run, global: Global) -> Ended {
    let text = task_text(&args.text)?;
    let on = args.on.parse().with_context(|| format!("--on {:?}", args.on))?;
    let target = Target::new(args.client.clone(), &global)?;
    let (constellation, interrupts, task) = match submit(&args, &target, on, text).await {
        Ok(submitted) => submitted,
        Err(failure) => {
            if args.json {
                print_json(&ended_line(&Followed::not_submitted(&failure).ending, None, "null"))?;
            }
            return Err(failure);
        }
    };
    let stop = CancellationToken::new();
    let code = if args.detach {
        let notices = Notices::default();
        let tell = |event: &_| notices.of(event).iter().for_each(|said| say!("{said}"));
        match interruptible(&constellation, &stop, interrupts, accepted(task, &stop, tell)).await {
            Ok(Ok(id)) => print_id(&id, args.json).map(|()| Code::COMPLETED),
            Ok(Err(followed)) => print_outcome(&followed, args.json),
            Err(left) => print_left(&left, args.json),
        }
    } else {
        match interruptible(&constellation, &stop, interrupts, watch(task, &stop, args.json)).await
        {
            Ok(followed) => print_outcome(&followed, args.json),
            Err(left) => print_left(&left, args.json),
        }
    }?;
    say_goodbye(constellation).await;
    Ok(code)
}

async fn submit(
    args: &Run,
    target: &Target,
    on: ClientId,
    text: String,
) -> Result<(Constellation, Interrupts, Task), Failure> {
    let constellation = target.connect("run").await?;
    let interrupts = Interrupts::listen();
    let task = NewTask {
        task_name: args.task_name.clone(),
        command_timeout: args.command_timeout.map(|timeout| timeout.0),
        on_disconnect: on_disconnect(&constellation, target, args.detach)?,
        // Who leaves can read later what its commands write.
        streams: Streams { spool: args.detach && constellation.may_stream(), ..Streams::default() },
        ..NewTask::new(on, text)
    };
    let task = constellation.submit(task).map_err(Failure::unreachable)?;
    Ok((constellation, interrupts, task))
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

/// The id of a task that goes on without us.
fn print_id(id: &str, as_json: bool) -> anyhow::Result<()> {
    match as_json {
        true => print_json(&json!({"event": "accepted", "task": id}).to_string()),
        false => print_line(&safe_line(id)),
    }
}

async fn watch(task: Task, stop: &CancellationToken, as_json: bool) -> Followed {
    let notices = Notices::default();
    if as_json {
        let mut tell = |event: &TaskEvent| {
            if let Some(event) = event_json(event, &notices) {
                say!("{}", escape_json(&event.to_string()));
            }
        };
        return follow(task, stop, &mut tell).await;
    }
    let spinner = Spinner::new("submitted");
    let mut tell = |event: &TaskEvent| match event {
        TaskEvent::Accepted { .. } => spinner.say("accepted"),
        TaskEvent::Progress { step: Some(step), .. } => show_step(&spinner, step),
        TaskEvent::Progress { line, step: None } => {
            for line in line.lines() {
                spinner.line(&format!("    {DIM}{}{DIM:#}", safe_line(line)));
            }
        }
        TaskEvent::Disconnected { .. } | TaskEvent::Reconnected => {
            notices.of(event).iter().for_each(|said| spinner.line(said));
        }
        TaskEvent::Output(_) | TaskEvent::Ended(_) => {}
    };
    follow(task, stop, &mut tell).await
}

/// What is known of a task that was left, which was said in words already.
fn print_left(ending: &Ending, as_json: bool) -> anyhow::Result<Code> {
    if as_json {
        print_json(&ended_line(ending, None, "null"))?;
    }
    Ok(ending.code())
}

fn print_outcome(followed: &Followed, as_json: bool) -> anyhow::Result<Code> {
    let Followed { ending, outcome, task } = followed;
    if as_json {
        let result = outcome.result.as_ref().map_or("null", |result| result.as_str());
        print_json(&ended_line(ending, task.as_deref(), result))?;
    } else {
        print_ending(ending, value(outcome).as_ref())?;
    }
    Ok(ending.code())
}
