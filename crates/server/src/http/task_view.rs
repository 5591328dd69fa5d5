//! A task as the HTTP API shows it.

use aip::{Payload, ResultStatus};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::agent::{Plan, PlanCommand};
use crate::hub::{Hub, SessionState};
use crate::session::{self, Call, CallResult, Finish};
use crate::store::{Ending, Record, Summary};

/// The longest summary of a task, in characters.
const MAX_SUMMARY_CHARS: usize = 200;

/// The longest request that is read for its summary, in bytes. Of a longer one the beginning is shown.
const MAX_SUMMARIZED_BYTES: usize = 16 * 1024;

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum TaskState {
    /// It waits for its turn on the device.
    Queued,
    /// It has its place on the device.
    Running,
    /// It ended well.
    Completed,
    /// It ended, and `error` says why.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
}

impl TaskState {
    pub(super) const fn is_over(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }
}

/// A task.
#[derive(Serialize, ToSchema)]
pub(super) struct Task {
    /// Our own id of it, unique for ever.
    #[schema(example = "019ab3c4-5d6e-7f80-9a1b-2c3d4e5f6071")]
    id: String,
    /// The wire's name for the run.
    session_id: String,
    /// The label for people.
    #[schema(example = "nightly-check")]
    task_name: String,
    /// Which device does it.
    #[schema(example = "lab-1")]
    device: String,
    /// Who wants it: the id of a client, or `HTTP, key NAME`.
    #[schema(example = "HTTP, key local")]
    requester: String,
    /// The name of the key it was submitted with.
    #[schema(example = "local")]
    key: String,
    state: TaskState,
    /// While it is queued: how many tasks come before it, as it stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    ahead: Option<usize>,
    created_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<Timestamp>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// How many steps were begun.
    step_count: usize,
    /// What it is about, for people: the command of a plan, or the beginning of its text; at most 200 characters.
    #[schema(example = "df -h")]
    summary: String,
    /// What to do. Not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<String>,
    /// What was done. Not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    steps: Option<Vec<ShownStep>>,
    /// What its agent returned, if that is something else than the results of its steps. Not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    result: Option<Payload>,
}

/// A page of tasks, newest first.
#[derive(Serialize, ToSchema)]
pub(super) struct Tasks {
    tasks: Vec<Task>,
    /// Where the next page begins: give it as `before`. Missing on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// One step of a task: a COMMAND and its answer.
#[derive(Serialize, ToSchema)]
#[schema(as = TaskStep)]
struct ShownStep {
    /// From 1.
    n: usize,
    /// When it was sent.
    sent_at: Timestamp,
    /// When it was settled; missing while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    settled_at: Option<Timestamp>,
    actions: Vec<Action>,
}

/// One tool call of a step, and what became of it.
#[derive(Serialize, ToSchema)]
#[schema(as = TaskAction)]
struct Action {
    #[schema(example = "get_system_info")]
    tool_name: String,
    /// Its arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    parameters: Option<Payload>,
    /// `action` or `data_collection`.
    #[schema(example = "action")]
    tool_type: String,
    /// `success`, `failure`, `skipped` or `none`; missing while it runs.
    #[schema(example = "success")]
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<String>,
    /// What went wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// What the tool returned.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    result: Option<Payload>,
    /// Where the tool lives.
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
}

/// A task as it is now, without its steps.
pub(super) fn view(hub: &Hub, known: &Summary) -> Task {
    let task = &known.task;
    let (state, ended_at, error) = match &known.ended {
        Some(ended) => {
            let state = match ended.ending {
                Ending::Completed => TaskState::Completed,
                Ending::Failed => TaskState::Failed,
                Ending::Cancelled => TaskState::Cancelled,
            };
            (state, Some(ended.at), ended.error.as_deref().map(str::to_owned))
        }
        None => match hub.state(task.id) {
            Some(SessionState::Queued) => (TaskState::Queued, None, None),
            _ => (TaskState::Running, None, None),
        },
    };
    let ahead = if state == TaskState::Queued { hub.ahead(task.id) } else { None };
    Task {
        id: task.id.to_string(),
        session_id: task.session_id.to_string(),
        task_name: task.task_name.to_string(),
        device: task.device.to_string(),
        requester: task.requester.to_string(),
        key: task.key.name.to_string(),
        state,
        ahead,
        created_at: task.created_at,
        ended_at,
        error,
        step_count: known.steps,
        summary: summary(&task.request),
        request: None,
        steps: None,
        result: None,
    }
}

impl Task {
    pub(super) const fn state(&self) -> TaskState {
        self.state
    }

    pub(super) fn with_steps(self, task: &session::Task, journal: &[Record]) -> Self {
        let result = journal.iter().find_map(|record| match record {
            Record::Ended(ended) => match &ended.finish {
                Finish::Value(value) => Some(value.clone()),
                Finish::Results => None,
            },
            _ => None,
        });
        Self { request: Some(task.request.clone()), steps: Some(steps(journal)), result, ..self }
    }
}

impl Tasks {
    /// The first `limit` of tasks, and where the rest begins.
    pub(super) fn page(mut tasks: Vec<Task>, limit: usize) -> Self {
        let has_more = tasks.len() > limit;
        tasks.truncate(limit);
        let next = tasks.last().filter(|_| has_more).map(|last| last.id.clone());
        Self { tasks, next }
    }
}

/// What a request is about, for people: of a plan its first command, and how many more there are; else its beginning.
pub(super) fn summary(request: &str) -> String {
    let plan = if request.len() <= MAX_SUMMARIZED_BYTES { Plan::read(request).ok() } else { None };
    let Some(plan) = plan.flatten() else { return head(request.trim(), MAX_SUMMARY_CHARS) };
    let first = plan.commands.first().map(in_words).unwrap_or_default();
    let more = match plan.commands.len() {
        0 | 1 => String::new(),
        n => format!(" (+{} more)", n - 1),
    };
    head(&first, MAX_SUMMARY_CHARS.saturating_sub(more.len())) + &more
}

/// A command in a few words: the command line where there is one.
fn in_words(command: &PlanCommand) -> String {
    #[derive(Deserialize)]
    struct CommandLine {
        command: String,
    }

    let line = command.parameters.as_ref().map(Payload::parse::<CommandLine>);
    match (line, &command.parameters) {
        (Some(Ok(line)), _) => line.command,
        (_, Some(parameters)) => format!("{} {}", command.tool_name, parameters.as_str()),
        (_, None) => command.tool_name.clone(),
    }
}

/// The beginning of a text that may be of any length.
fn head(text: &str, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        Some(_) => text.chars().take(chars.saturating_sub(1)).chain(['…']).collect(),
        None => text.to_owned(),
    }
}

fn steps(journal: &[Record]) -> Vec<ShownStep> {
    let mut steps: Vec<ShownStep> = Vec::new();
    for record in journal {
        match record {
            Record::Decided { at, calls, .. } => steps.push(ShownStep {
                n: steps.len() + 1,
                sent_at: *at,
                settled_at: None,
                actions: calls.iter().map(Action::begun).collect(),
            }),
            Record::Answered { at, results } => {
                if let Some(step) = steps.last_mut() {
                    step.settled_at = Some(*at);
                    let ended = step.actions.iter_mut().zip(results.iter());
                    ended.for_each(|(action, result)| action.end(result));
                }
            }
            Record::Created(_)
            | Record::Noted { .. }
            | Record::Readdressed { .. }
            | Record::Cancelling { .. }
            | Record::Ended(_) => {}
        }
    }
    steps
}

impl Action {
    fn begun(call: &Call) -> Self {
        Self {
            tool_name: call.tool_name.clone(),
            parameters: call.parameters.clone(),
            tool_type: call.tool_type().to_string(),
            status: None,
            error: None,
            result: None,
            namespace: None,
        }
    }

    fn end(&mut self, result: &CallResult) {
        self.status = Some(ResultStatus::from(result.status).to_string());
        self.error.clone_from(&result.error);
        self.result.clone_from(&result.result);
        self.namespace.clone_from(&result.namespace);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_the_command_that_somebody_typed_or_the_beginning_of_a_text() {
        for (request, expected) in [
            (
                r#"{"commands":[{"tool_name":"execute_command","parameters":{"command":"df -h"}}]}"#,
                "df -h",
            ),
            (
                r#"{"commands":[{"tool_name":"get_system_info"},{"tool_name":"x"}]}"#,
                "get_system_info (+1 more)",
            ),
            (r#"{"commands":[{"tool_name":"t","parameters":{"a":1}}]}"#, r#"t {"a":1}"#),
            (" tidy up my desk ", "tidy up my desk"),
            (r#"{"commands":[]}"#, r#"{"commands":[]}"#),
            ("", ""),
        ] {
            assert_eq!(summary(request), expected);
        }
        let long = summary(&"ä".repeat(100_000));
        assert!(long.chars().count() == MAX_SUMMARY_CHARS && long.ends_with('…'), "{long}");
        let plan = serde_json::json!({"commands": [
            {"tool_name": "t", "parameters": {"command": "x".repeat(1000)}}, {"tool_name": "t"}]});
        let long = summary(&plan.to_string());
        assert!(long.ends_with("x… (+1 more)"), "{long}");
        assert_eq!(long.chars().count(), MAX_SUMMARY_CHARS);
    }
}
