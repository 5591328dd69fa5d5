//! What `demo`, `exec` and `run` share: following a task, and reading its outcome.

use aip::{ActionResult, Payload};
use constellation::{Outcome, Step, StepStatus, Task, TaskEvent};
use serde::Deserialize;

use crate::Code;
use crate::output::{DIM, GREEN, RED, Spinner, human, safe_line};

/// Follows a task to its outcome, telling each event on the way.
pub(super) async fn follow(mut task: Task, mut tell: impl FnMut(&TaskEvent)) -> Outcome {
    loop {
        let event = task.next_event().await;
        tell(&event);
        if let TaskEvent::Ended(outcome) = event {
            return outcome;
        }
    }
}

/// The exit code of a task.
pub(super) fn code(outcome: &Outcome) -> Code {
    match outcome {
        Outcome { completed: true, .. } => Code::COMPLETED,
        Outcome { is_lost: true, .. } => Code::UNREACHABLE,
        _ => Code::FAILED,
    }
}

/// Why a task failed, for people.
pub(super) fn why(outcome: &Outcome) -> String {
    let error = safe_line(outcome.error.as_deref().unwrap_or("the server gave no reason"));
    if outcome.is_lost {
        format!("the connection to the server was lost, so the outcome is unknown: {error}")
    } else {
        error
    }
}

/// What stands in an outcome's `[{"request", "result"}]`.
#[derive(Deserialize)]
struct Item {
    #[serde(default)]
    result: Option<Payload>,
}

/// The value that the task returned.
pub(super) fn value(outcome: &Outcome) -> Option<Payload> {
    let items: Vec<Item> = outcome.result.as_ref()?.parse_carried().ok()?;
    items.into_iter().next()?.result
}

/// The results of a plan, one array a step.
pub(super) fn results(outcome: &Outcome) -> Vec<Vec<ActionResult>> {
    value(outcome).and_then(|value| value.parse_carried().ok()).unwrap_or_default()
}

/// What `execute_command` returned.
#[derive(Debug, Default, Deserialize)]
pub(super) struct CommandOutput {
    #[serde(default)]
    pub(super) exit_code: Option<i32>,
    #[serde(default)]
    pub(super) stdout: String,
    #[serde(default)]
    pub(super) stderr: String,
    /// Why there is no exit code: what UFO's devices say of a command that they refuse, or that takes too long.
    #[serde(default)]
    pub(super) error: Option<String>,
}

impl CommandOutput {
    pub(super) fn of(result: &ActionResult) -> Option<Self> {
        result.result.as_ref()?.parse().ok()
    }
}

/// Shows a step on stderr, as it happens: the spinner says what runs, a line stays of what is over.
pub(super) fn show_step(spinner: &Spinner, step: &Step) {
    let what = describe(step);
    let (mark, style) = match step.status {
        StepStatus::Queued => return spinner.say("waiting for the device"),
        StepStatus::Running => return spinner.say(&what),
        StepStatus::Success => ("✓", GREEN),
        StepStatus::Failure => ("✗", RED),
        StepStatus::Skipped | StepStatus::None => ("–", DIM),
    };
    let took = human(std::time::Duration::from_millis(step.elapsed_ms));
    spinner.line(&format!("{style}{mark}{style:#} {} {what} {DIM}({took}){DIM:#}", step.n));
}

/// A step in a few words: the command line where there is one.
pub(super) fn describe(step: &Step) -> String {
    let parameters = step.parameters.as_ref();
    match parameters.and_then(|parameters| parameters.parse::<CommandLine>().ok()) {
        Some(CommandLine { command }) => safe_line(&command),
        None => {
            let parameters = parameters.map_or("", Payload::as_str);
            safe_line(format!("{} {parameters}", step.tool_name).trim())
        }
    }
}

/// The arguments of a step that runs a command line.
#[derive(Deserialize)]
struct CommandLine {
    command: String,
}
