//! `flightdeck task follow`: shows the steps of a task as they happen, also of one that somebody else submitted.
//!
//! The API has no stream, so it is asked: for the end with a request that waits, for a new step every second.

use std::time::Duration;

use aip::visible::escape_json;
use constellation::{Step, StepStatus};
use jiff::Timestamp;
use tokio::time::Instant;

use super::super::exec::screen::Screen;
use super::super::follow::show_step;
use super::super::tasks::between;
use super::output::{Kept, Outputs};
use crate::api::{Api, Listed, Step as TaskStep, Task, TaskId};
use crate::output::{Spinner, safe_line};
use crate::{Code, Failure};

/// How often it is looked for a new step.
pub(super) const PACE: Duration = Duration::from_secs(1);

/// The longest wait for the end in one request.
const WAIT: Duration = Duration::from_secs(60);

/// How long a server may be away meanwhile.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// The most of what a step returned that a line for programs repeats, in characters; the rest comes with the end.
const HEAD_CHARS: usize = 400;

/// Shows the steps until the task is over; with `output` also all that their commands write. Whether some of that is there
/// no more.
pub(super) async fn until_over(
    api: &Api<'_>,
    id: TaskId,
    as_json: bool,
    output: bool,
) -> Result<(Task, bool), Failure> {
    let mut shown = Shown::new(as_json);
    let outputs = output.then(|| Outputs::new(api, id, shown.screen.clone()));
    let mut away_since: Option<Instant> = None;
    let mut looked = api.task(id).await;
    loop {
        let task = match looked {
            Ok(Listed { task, .. }) => task,
            Err(failure) => {
                let since = *away_since.get_or_insert_with(Instant::now);
                if failure.code != Code::UNREACHABLE || since.elapsed() > PATIENCE {
                    return Err(failure);
                }
                shown.away(&failure);
                tokio::time::sleep(PACE).await;
                looked = api.task(id).await;
                continue;
            }
        };
        if away_since.take().is_some() {
            shown.back();
        }
        if let Some(outputs) = &outputs
            && shown.tell_output(outputs, &task).await?
            && !task.is_over()
        {
            // It took a while.
            looked = api.task(id).await;
            continue;
        }
        shown.tell(&task);
        if task.is_over() {
            return Ok((task, shown.is_cut));
        }
        looked = tokio::select! {
            over = api.wait(id, WAIT) => over,
            changed = until_changed(api, &task) => match changed {
                Ok(()) => api.task(id).await,
                Err(failure) => Err(failure),
            },
        };
    }
}

/// Waits until a task stands otherwise. What is asked for is short, whatever its steps returned.
async fn until_changed(api: &Api<'_>, known: &Task) -> Result<(), Failure> {
    loop {
        tokio::time::sleep(PACE).await;
        let now = api.find(&known.id.to_string()).await?;
        if (&now.state, now.step_count) != (&known.state, known.step_count) {
            return Ok(());
        }
    }
}

/// What was told already.
struct Shown {
    screen: Option<Screen>,
    /// Of how many steps the output was shown.
    written: usize,
    /// Whether some of it was there no more.
    is_cut: bool,
    begun: usize,
    ended: usize,
    is_away: bool,
}

impl Shown {
    fn new(as_json: bool) -> Self {
        let screen = (!as_json).then(|| Screen::new(Spinner::new("looking"), None));
        Self { screen, written: 0, is_cut: false, begun: 0, ended: 0, is_away: false }
    }

    fn spinner(&self) -> Option<&Spinner> {
        self.screen.as_ref().map(Screen::spinner)
    }

    /// Shows what the commands of steps have written of which that was not shown yet. Whether there were any.
    async fn tell_output(&mut self, outputs: &Outputs<'_>, task: &Task) -> Result<bool, Failure> {
        let before = self.written;
        for step in task.steps.iter().skip(before) {
            let mut kept = outputs.show(step).await?;
            if kept == Kept::None {
                if step.settled_at.is_none() {
                    break;
                }
                kept = outputs.show_results(step).await?;
            }
            self.is_cut |= kept != Kept::All;
            self.written += 1;
        }
        Ok(self.written > before)
    }

    fn tell(&mut self, task: &Task) {
        if let Some(spinner) = self.spinner() {
            spinner.say(&super::super::tasks::state(task));
        }
        for (at, step) in task.steps.iter().enumerate() {
            let is_over = step.settled_at.is_some();
            let is_new = if is_over { at >= self.ended } else { at >= self.begun };
            if let Some(step) = as_step(step).filter(|_| is_new) {
                self.tell_step(&step);
            }
        }
        self.begun = task.steps.len();
        self.ended = task.steps.iter().take_while(|step| step.settled_at.is_some()).count();
    }

    fn tell_step(&self, step: &Step) {
        match self.spinner() {
            Some(spinner) => show_step(spinner, step),
            None => say_json(&serde_json::json!({"event": "progress", "step": step})),
        }
    }

    fn away(&mut self, failure: &Failure) {
        if !std::mem::replace(&mut self.is_away, true) {
            self.line("disconnected", &format!("{:#}; asking again", failure.error));
        }
    }

    fn back(&mut self) {
        self.is_away = false;
        self.line("reconnected", "the server is back");
    }

    fn line(&self, event: &str, text: &str) {
        match self.spinner() {
            Some(spinner) => spinner.line(&safe_line(text)),
            None => say_json(&serde_json::json!({"event": event, "text": text})),
        }
    }
}

pub(super) fn say_json(said: &serde_json::Value) {
    say!("{}", escape_json(&said.to_string()));
}

/// A step as progress has it; `None` for one without an action.
pub(super) fn as_step(step: &TaskStep) -> Option<Step> {
    let action = step.actions.first()?;
    let status = match action.status.as_deref() {
        None => StepStatus::Running,
        Some("success") => StepStatus::Success,
        Some("failure") => StepStatus::Failure,
        Some("skipped") => StepStatus::Skipped,
        Some(_) => StepStatus::None,
    };
    let text = action.error.as_deref().or(action.result.as_ref().map(aip::Payload::as_str));
    let took = between(step.sent_at, step.settled_at.unwrap_or_else(Timestamp::now));
    Some(Step {
        n: step.n,
        tool_name: action.tool_name.clone(),
        parameters: action.parameters.clone(),
        status,
        result_head: text.map(|text| text.chars().take(HEAD_CHARS).collect()),
        exit_code: action.nonzero_exit(),
        elapsed_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
    })
}
