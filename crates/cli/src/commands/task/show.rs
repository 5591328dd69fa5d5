//! `flightdeck task show`: all that is known of a task.

use std::fmt::Write;

use jiff::Timestamp;

use super::super::follow::{CommandOutput, describe};
use super::super::tasks::{between, state, what};
use super::follow::as_step;
use crate::api::{Action, Api, Listed, Step, Task, TaskId};
use crate::output::{BOLD, DIM, GREEN, RED, human, print, print_json, safe, safe_line};
use crate::{Code, Ended};

/// The most of what a step returned that is shown, in characters. `task result` has all of it.
const OUTPUT_CHARS: usize = 2000;

pub(super) async fn run(api: &Api<'_>, id: TaskId, as_json: bool) -> Ended {
    let Listed { task, json } = api.task(id).await?;
    match as_json {
        true => print_json(json.as_str())?,
        false => print(&shown(&task, Timestamp::now()))?,
    }
    Ok(super::code_of(&task, Code::COMPLETED))
}

fn shown(task: &Task, now: Timestamp) -> String {
    let ago = human(between(task.created_at, now));
    let took = human(between(task.created_at, task.ended_at.unwrap_or(now)));
    let mut lines = vec![
        ("task", task.id.to_string()),
        ("what", what(task)),
        ("device", task.device.clone()),
        ("requester", format!("{}, with the key '{}'", task.requester, task.key)),
        (
            "state",
            format!(
                "{}, {} after {took}",
                state(task),
                if task.is_over() { "over" } else { "open" }
            ),
        ),
        ("since", format!("{} ({ago} ago)", task.created_at)),
    ];
    lines.extend(task.error.clone().map(|error| ("error", error)));
    let mut text = String::new();
    for (name, value) in lines {
        // Writing into a string cannot fail.
        let _written = writeln!(text, "{BOLD}{name:<10}{BOLD:#}{}", safe_line(&value));
    }
    for step in &task.steps {
        text.push('\n');
        text.push_str(&step_shown(step, now));
    }
    text
}

fn step_shown(step: &Step, now: Timestamp) -> String {
    let took = human(between(step.sent_at, step.settled_at.unwrap_or(now)));
    let said = as_step(step).map(|step| describe(&step)).unwrap_or_default();
    let mut text = format!("{BOLD}{}{BOLD:#} {said} {DIM}({took}){DIM:#}\n", step.n);
    for action in &step.actions {
        let exit = action.nonzero_exit().map(|code| format!("exit {code}"));
        let (style, status) = match action.status.as_deref() {
            Some("success") => exit.as_deref().map_or((GREEN, "success"), |exit| (RED, exit)),
            Some(other) => (RED, other),
            None => (DIM, "running"),
        };
        let _written = writeln!(text, "  {style}{}{style:#}", safe_line(status));
        for line in safe(&returned(action)).lines() {
            let _written = writeln!(text, "    {line}");
        }
    }
    text
}

/// The beginning of what an action returned: the output of a command where it is one.
fn returned(action: &Action) -> String {
    let output = CommandOutput::read(action.result.as_ref());
    let text = match (&action.error, output, &action.result) {
        (Some(error), ..) => error.clone(),
        (_, Some(output), _) if output.exit_code.is_some() => {
            format!("{}{}", output.stdout, output.stderr)
        }
        (_, _, Some(result)) => result.as_str().to_owned(),
        (None, _, None) => String::new(),
    };
    match text.char_indices().nth(OUTPUT_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
