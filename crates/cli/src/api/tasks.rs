//! Tasks, as the API shows them, and how one is found by the beginning of its id.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use aip::Payload;
use aip::message::exit_code;
use jiff::Timestamp;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Api, MAX_SHORT_BYTES, TIMEOUT, code, detail};
use crate::{Code, Failure};

/// The most tasks that one request lists.
pub(crate) const PAGE: usize = 500;

/// The longest wait for a task in one request; the server's own bound is 300 s.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// How many tasks are named when several ids begin with what was typed.
const MAX_NAMED: usize = 5;

/// The digits of an id.
const DIGITS: usize = 32;

/// A task.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Task {
    pub(crate) id: TaskId,
    pub(crate) task_name: String,
    pub(crate) device: String,
    pub(crate) requester: String,
    pub(crate) key: String,
    pub(crate) state: String,
    #[serde(default)]
    pub(crate) ahead: Option<usize>,
    pub(crate) created_at: Timestamp,
    #[serde(default)]
    pub(crate) ended_at: Option<Timestamp>,
    #[serde(default)]
    pub(crate) error: Option<String>,
    #[serde(default)]
    pub(crate) step_count: usize,
    #[serde(default)]
    pub(crate) summary: String,
    /// From here on not in lists.
    #[serde(default)]
    pub(crate) request: String,
    #[serde(default)]
    pub(crate) steps: Vec<Step>,
    #[serde(default)]
    pub(crate) result: Option<Payload>,
}

/// A step: a COMMAND and its answer.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Step {
    pub(crate) n: u32,
    pub(crate) sent_at: Timestamp,
    #[serde(default)]
    pub(crate) settled_at: Option<Timestamp>,
    pub(crate) actions: Vec<Action>,
}

/// A tool call, and what became of it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Action {
    pub(crate) tool_name: String,
    #[serde(default)]
    pub(crate) parameters: Option<Payload>,
    /// Missing while it runs.
    #[serde(default)]
    pub(crate) status: Option<String>,
    #[serde(default)]
    pub(crate) error: Option<String>,
    #[serde(default)]
    pub(crate) result: Option<Payload>,
    #[serde(default)]
    namespace: Option<String>,
}

impl Action {
    /// With what the command that it ran exited, where that is no 0.
    pub(crate) fn nonzero_exit(&self) -> Option<i64> {
        self.result.as_ref().and_then(exit_code).filter(|code| *code != 0)
    }
}

/// A task of a list, and what the server says of it, word for word.
pub(crate) struct Listed {
    pub(crate) task: Task,
    pub(crate) json: Payload,
}

#[derive(Deserialize)]
struct Page {
    tasks: Vec<Payload>,
    #[serde(default)]
    next: Option<String>,
}

/// Which tasks to list.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query {
    pub(crate) device: Option<String>,
    pub(crate) state: Option<&'static str>,
    pub(crate) name: Option<String>,
    /// Only older ones than this.
    pub(crate) before: Option<String>,
    pub(crate) limit: usize,
}

/// The server's id of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct TaskId(Uuid);

impl FromStr for TaskId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        text.parse().map(Self)
    }
}

impl TryFrom<String> for TaskId {
    type Error = uuid::Error;

    fn try_from(text: String) -> Result<Self, uuid::Error> {
        text.parse()
    }
}

impl From<TaskId> for String {
    fn from(id: TaskId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TaskId {
    /// The shortest beginning, of `least` characters or more, that tells it from the others.
    pub(crate) fn short(self, others: &[Self], least: usize) -> String {
        let id = self.to_string();
        let shared = |other: &Self| {
            let other = other.to_string();
            id.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count()
        };
        let longest = others.iter().filter(|other| **other != self).map(shared).max();
        let end = longest.map_or(least, |shared| least.max(shared + 1));
        id.chars().take(end).collect()
    }
}

/// The ids that begin with some digits: they stand together in the order of all.
#[derive(Debug, PartialEq, Eq)]
struct Range {
    first: u128,
    last: u128,
}

impl Range {
    /// Of digits as somebody typed them, with or without dashes.
    fn of(typed: &str) -> Option<Self> {
        let digits: String = typed.chars().filter(|c| *c != '-').collect();
        if digits.is_empty()
            || digits.len() > DIGITS
            || !digits.chars().all(|c| c.is_ascii_hexdigit())
        {
            return None;
        }
        let padded = |with: &str| {
            let padded = format!("{digits}{}", with.repeat(DIGITS - digits.len()));
            u128::from_str_radix(&padded, 16).ok()
        };
        Some(Self { first: padded("0")?, last: padded("f")? })
    }

    const fn holds(&self, id: TaskId) -> bool {
        let id = id.0.as_u128();
        self.first <= id && id <= self.last
    }

    /// What all of them are older than.
    fn end(&self) -> Option<String> {
        self.last.checked_add(1).map(|end| Uuid::from_u128(end).to_string())
    }
}

impl Task {
    pub(crate) fn is_over(&self) -> bool {
        !matches!(self.state.as_str(), "queued" | "running")
    }

    /// Whether the server's store has lost some of what it returned, and something else stands in its place.
    pub(crate) fn is_damaged(&self) -> bool {
        let actions = self.steps.iter().flat_map(|step| &step.actions);
        let returned = actions.filter_map(|action| action.result.as_ref()).chain(&self.result);
        returned.filter_map(|value| value.parse::<Damaged>().ok()).any(|marker| marker.damaged)
    }

    /// What it returned: its agent's own value, else the results of its steps, one array a step.
    pub(crate) fn value(&self) -> Option<Payload> {
        let ended = self.steps.iter().filter(|step| step.settled_at.is_some());
        let results: Vec<Vec<_>> =
            ended.map(|step| step.actions.iter().map(Action::returned).collect()).collect();
        match &self.result {
            Some(value) => Some(value.clone()),
            None if results.is_empty() => None,
            None => Payload::from_value(&results).ok(),
        }
    }
}

/// What the server's store has in the place of something that cannot be read any more.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Damaged {
    damaged: bool,
    #[serde(rename = "bytes")]
    _bytes: Option<u64>,
}

/// What an action returned, as a TASK_END says it.
#[derive(Serialize)]
struct Returned<'a> {
    status: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a Payload>,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
}

impl Action {
    fn returned(&self) -> Returned<'_> {
        Returned {
            status: self.status.as_deref().unwrap_or("none"),
            error: self.error.as_deref(),
            result: self.result.as_ref(),
            namespace: self.namespace.as_deref(),
        }
    }
}

/// What a command wrote.
pub(crate) enum Output {
    /// The bytes from this offset on, as they come.
    Bytes(u64, reqwest::Response),
    /// Its device keeps none of it.
    NotKept,
    /// It cannot be had now, for this reason.
    NotNow(String),
}

impl Api<'_> {
    /// A page of tasks, newest first, and where the next one begins.
    pub(crate) async fn tasks(
        &self,
        query: &Query,
    ) -> Result<(Vec<Listed>, Option<String>), Failure> {
        let mut pairs = vec![("limit", query.limit.clamp(1, PAGE).to_string())];
        for (name, value) in [
            ("device", &query.device),
            ("state", &query.state.map(str::to_owned)),
            ("task_name", &query.name),
            ("before", &query.before),
        ] {
            pairs.extend(value.clone().map(|value| (name, value)));
        }
        let answer = self.get("/api/v1/tasks", &pairs).await?;
        let page: Page = self.read(&answer, "list of tasks")?;
        let read = |json: Payload| Some(Listed { task: json.parse().ok()?, json });
        Ok((page.tasks.into_iter().filter_map(read).collect(), page.next))
    }

    /// The one task whose id begins so, without its steps.
    pub(crate) async fn find(&self, typed: &str) -> Result<Task, Failure> {
        let failed = |error| Failure { code: Code::FAILED, error };
        let Some(range) = Range::of(typed) else {
            return Err(anyhow::anyhow!(
                "{typed:?} is no id of a task, nor the beginning of one; `flightdeck tasks` shows them"
            )
            .into());
        };
        let query = Query { before: range.end(), limit: MAX_NAMED + 1, ..Query::default() };
        let (mut found, _) = self.tasks(&query).await?;
        found.retain(|found| range.holds(found.task.id));
        if found.len() > 1 {
            return Err(failed(ambiguous(typed, &found)));
        }
        found.pop().map(|found| found.task).ok_or_else(|| {
            failed(anyhow::anyhow!(
                "there is no task {typed:?}, or it is not yours to see, or it was forgotten; \
                 `flightdeck tasks` shows those that are known"
            ))
        })
    }

    /// A task with its steps, and what the server says of it, word for word.
    pub(crate) async fn task(&self, id: TaskId) -> Result<Listed, Failure> {
        let answer = self.get(&path(id), &[]).await?;
        self.whole(&answer)
    }

    /// The same once it is over, or after a minute at most as it is then.
    pub(crate) async fn wait(&self, id: TaskId, longest: Duration) -> Result<Listed, Failure> {
        let wait = longest.min(MAX_WAIT);
        let query = [("timeout_s", wait.as_secs_f64().to_string())];
        let path = format!("{}/wait", path(id));
        let answer = self.send(Method::GET, &path, &query, wait + TIMEOUT).await?;
        self.whole(&answer)
    }

    /// Tells the server to cancel a task. `false` when it had ended before.
    pub(crate) async fn cancel(&self, id: TaskId) -> Result<bool, Failure> {
        let path = format!("{}/cancel", path(id));
        let answer = self.send(Method::POST, &path, &[], TIMEOUT).await?;
        if answer.status == 409 {
            return Ok(false);
        }
        self.good(&answer, "tasks")?;
        Ok(true)
    }

    /// What the command of a step has written to a stream, from an offset on.
    pub(crate) async fn output(
        &self,
        id: TaskId,
        step: u32,
        stream: &str,
        from: u64,
    ) -> Result<Output, Failure> {
        let query =
            [("step", step.to_string()), ("stream", stream.to_owned()), ("from", from.to_string())];
        let request = self.request(Method::GET, &format!("{}/output", path(id)), &query)?;
        let asked = tokio::time::timeout(TIMEOUT, request.send()).await;
        let asked =
            asked.map_err(|_| Failure::unreachable(anyhow::anyhow!("no answer in time")))?;
        let response = asked.map_err(|error| self.unreachable(error))?;
        let begin = response.headers().get("flightdeck-offset");
        let begin = begin.and_then(|begin| begin.to_str().ok()?.parse().ok());
        if let Some(begin) = begin.filter(|_| response.status().is_success()) {
            return Ok(Output::Bytes(begin, response));
        }
        let answer = self.read_answer(response, MAX_SHORT_BYTES).await?;
        match (answer.status, code(&answer.body).as_deref()) {
            (404, Some("output_not_kept")) => Ok(Output::NotKept),
            (409, _) => Ok(Output::NotNow(detail(&answer.body).unwrap_or_default())),
            _ => self.good(&answer, "output").map(|_| Output::NotKept),
        }
    }

    fn whole(&self, answer: &super::Answer) -> Result<Listed, Failure> {
        let json: Payload = self.read(answer, "task")?;
        let task = json.parse();
        let wrong = |error| anyhow::Error::new(error).context("what the server answers is no task");
        Ok(Listed { task: task.map_err(wrong).map_err(Failure::unreachable)?, json })
    }
}

fn path(id: TaskId) -> String {
    format!("/api/v1/tasks/{id}")
}

fn ambiguous(typed: &str, found: &[Listed]) -> anyhow::Error {
    let shown = found.iter().take(MAX_NAMED);
    let named: Vec<_> = shown.map(|found| format!("\n  {}", found.task.id)).collect();
    let (many, more) = match found.len() {
        many if many > MAX_NAMED => (format!("more than {MAX_NAMED}"), "\n  …"),
        many => (many.to_string(), ""),
    };
    anyhow::anyhow!("{many} tasks begin with {typed:?}; type more of it:{}{more}", named.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "019ab3c4-5d6e-7f80-9a1b-2c3d4e5f6071";

    fn id(text: &str) -> TaskId {
        text.parse().unwrap()
    }

    #[test]
    fn the_ids_with_one_beginning_stand_together() {
        for typed in ["0", "019ab3c4", "019AB3C4-5", "019ab3c45d6e7f80", ID] {
            assert!(Range::of(typed).unwrap().holds(id(ID)), "{typed}");
        }
        for typed in ["019ab3c5", "1", "019ab3c4-5d6e-7f80-9a1b-2c3d4e5f6072"] {
            assert!(!Range::of(typed).unwrap().holds(id(ID)), "{typed}");
        }
        for typed in ["", "-", "xyz", "019ab3c4 ", "ä", &format!("{ID}0")] {
            assert_eq!(Range::of(typed), None, "{typed}");
        }
        let end = Range::of("019ab3c4").unwrap().end();
        assert_eq!(end.as_deref(), Some("019ab3c5-0000-0000-0000-000000000000"));
        assert_eq!(Range::of("f").unwrap().end(), None, "nothing is behind them");
    }

    #[test]
    fn an_id_is_shown_as_short_as_it_can_be_told_from_the_others() {
        let near = id("019ab3c4-5d6e-7f80-9a1b-2c3d4e5f6072");
        let far = id("119ab3c4-5d6e-7f80-9a1b-2c3d4e5f6071");
        assert_eq!(id(ID).short(&[id(ID), far], 13), "019ab3c4-5d6e");
        assert_eq!(id(ID).short(&[near, far], 13), ID);
    }
}
