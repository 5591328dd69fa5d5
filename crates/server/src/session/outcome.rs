//! How a task ended, and the TASK_END that says so.

use std::sync::Arc;

use aip::codec::{MAX_MESSAGE_BYTES, encode_server, write_list, write_outcome, write_result};
use aip::message::TruncatedResult;
use aip::{ActionResult, Payload, ResponseId, ServerMessage, ServerMessageType, Status};
use bytes::Bytes;
use link::connection::timestamp;

use super::{Cause, Step, Task, TaskId};
use crate::agent::Finish;

/// Room that an outcome needs beside its results.
const ENVELOPE_BYTES: usize = 8192;

/// What each result costs in an outcome beside its value, about.
const RESULT_BYTES: usize = 512;

/// What a character of one byte may take in JSON, such as `\u0001`.
const ESCAPED_BYTES: usize = 6;

/// The most of a request that an outcome repeats when it would not fit otherwise, in characters.
const REQUEST_HEAD_CHARS: usize = 1000;

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) status: Status,
    pub(crate) error: Option<Arc<str>>,
    pub(crate) finish: Finish,
    /// Whether it failed because somebody cancelled it.
    pub(crate) is_cancelled: bool,
    /// Whether the error is in its agent's words, which may repeat what a device said.
    is_given_up: bool,
}

impl Outcome {
    pub(super) fn completed(finish: Finish) -> Self {
        let status = Status::Completed;
        Self { status, error: None, finish, is_cancelled: false, is_given_up: false }
    }

    pub(super) fn failed(error: impl Into<Arc<str>>) -> Self {
        Self {
            status: Status::Failed,
            error: Some(error.into()),
            finish: Finish::Results,
            is_cancelled: false,
            is_given_up: false,
        }
    }

    /// Its agent says that it failed, and why.
    pub(super) fn given_up(error: impl Into<Arc<str>>) -> Self {
        Self { is_given_up: true, ..Self::failed(error) }
    }

    /// Why it failed, in the server's own words: for the logs, which repeat nobody's.
    pub(super) fn reason(&self) -> Option<&str> {
        if self.is_given_up { Some("The agent gave the task up") } else { self.error.as_deref() }
    }

    pub(super) fn stopped(cause: &Cause, task: &Task) -> Self {
        let failed = Self::failed(match cause {
            Cause::DeviceGone => {
                format!("Task was cancelled because target device disconnected ('{}')", task.device)
            }
            Cause::RequesterGone => "Task was cancelled due to client disconnection".to_owned(),
            Cause::Shutdown => "Task was cancelled because the server is shutting down".to_owned(),
            Cause::KeyGone => "Task was cancelled because the key that it was submitted with was \
                revoked or has expired"
                .to_owned(),
            Cause::Cancelled(by) => format!("Task was cancelled by '{by}'"),
        });
        Self { is_cancelled: matches!(cause, Cause::Cancelled(_)), ..failed }
    }

    /// The TASK_END, as one frame.
    pub(super) fn encode(&self, task: &Task, history: &[Step], response_id: &ResponseId) -> Bytes {
        let message = self.message(task, response_id);
        let value = self.value(history);
        let fit = Fit::new(task, &value);
        encode_server(&message, fit.bytes + fit.request.len(), |out| {
            write_outcome(out, fit.request, |out| value.write(out, task.id, fit.largest));
        })
    }

    /// Whether the TASK_END carries all results whole.
    pub(super) fn fits_whole(&self, task: &Task, history: &[Step]) -> bool {
        Fit::new(task, &self.value(history)).largest == usize::MAX
    }

    fn value<'a>(&self, history: &'a [Step]) -> Value<'a> {
        match &self.finish {
            Finish::Value(value) => Value::Own(value.clone()),
            Finish::Results => Value::Results(history),
        }
    }

    /// The TASK_END for somebody who knows the results already.
    pub(super) fn encode_without_result(&self, task: &Task, response_id: &ResponseId) -> Bytes {
        encode_server(&self.message(task, response_id), 0, |_| ())
    }

    fn message(&self, task: &Task, response_id: &ResponseId) -> ServerMessage {
        ServerMessage {
            error: self.error.as_deref().map(str::to_owned),
            session_id: Some(task.session_id.clone()),
            timestamp: Some(timestamp()),
            response_id: Some(response_id.clone()),
            ..ServerMessage::new(ServerMessageType::TaskEnd, self.status)
        }
    }
}

/// What a task returns.
enum Value<'a> {
    Own(Payload),
    Results(&'a [Step]),
}

impl Value<'_> {
    /// The size of each result.
    fn sizes(&self) -> Vec<usize> {
        match self {
            Self::Own(value) => vec![value.len()],
            Self::Results(steps) => {
                steps.iter().flat_map(|step| step.results.iter()).map(result_bytes).collect()
            }
        }
    }

    /// What the texts beside the values may take in all, in bytes.
    fn texts(&self) -> usize {
        let Self::Results(steps) = self else { return 0 };
        let results = steps.iter().flat_map(|step| step.results.iter());
        let texts = results.flat_map(|result| [&result.error, &result.namespace]);
        texts.flatten().map(|text| text.len() * ESCAPED_BYTES).sum()
    }

    /// Writes the value; a result over `largest` bytes is only named.
    fn write(&self, out: &mut Vec<u8>, task: TaskId, largest: usize) {
        match self {
            Self::Own(value) => {
                let named = (value.len() > largest).then(|| truncated(value.len(), task));
                out.extend_from_slice(named.flatten().as_ref().unwrap_or(value).as_bytes());
            }
            Self::Results(steps) => write_list(out, *steps, |out, step| {
                write_list(out, step.results.iter(), |out, result| {
                    let bytes = result_bytes(result);
                    let named = (bytes > largest).then(|| truncated(bytes, task)).flatten();
                    write_result(out, result, named.as_ref());
                });
            }),
        }
    }
}

fn result_bytes(result: &ActionResult) -> usize {
    result.result.as_ref().map_or(0, Payload::len)
}

/// Writes what a task returned, as in its TASK_END but always whole.
pub(crate) fn write_whole_result(out: &mut Vec<u8>, task: &Task, finish: &Finish, steps: &[Step]) {
    let value = match finish {
        Finish::Value(value) => Value::Own(value.clone()),
        Finish::Results => Value::Results(steps),
    };
    write_outcome(out, &task.request, |out| value.write(out, task.id, usize::MAX));
}

/// What stands for a result that is too large, naming where the whole is.
fn truncated(bytes: usize, task: TaskId) -> Option<Payload> {
    let marker = TruncatedResult { truncated: true, bytes, task: task.to_string() };
    Payload::from_value(&marker).ok()
}

/// How an outcome fits into one message: usually whole, else with its largest results only named.
struct Fit<'a> {
    request: &'a str,
    /// Results up to this size are carried.
    largest: usize,
    bytes: usize,
}

impl<'a> Fit<'a> {
    fn new(task: &'a Task, value: &Value<'_>) -> Self {
        let (sizes, texts) = (value.sizes(), value.texts());
        let whole = |request: &str, largest: usize| {
            let carried = sizes.iter().filter(|size| **size <= largest).sum::<usize>();
            // A plan is JSON inside a text: quotes take twice their bytes.
            let request = request.len() * 2;
            ENVELOPE_BYTES + request + carried + texts + sizes.len() * RESULT_BYTES
        };
        if whole(&task.request, usize::MAX) <= MAX_MESSAGE_BYTES {
            let bytes = whole("", usize::MAX);
            return Self { request: &task.request, largest: usize::MAX, bytes };
        }
        let request = head(&task.request);
        let mut largest = MAX_MESSAGE_BYTES / 2;
        while whole(request, largest) > MAX_MESSAGE_BYTES && largest > 0 {
            largest /= 2;
        }
        Self { request, largest, bytes: whole("", largest) }
    }
}

fn head(text: &str) -> &str {
    text.char_indices().nth(REQUEST_HEAD_CHARS).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;
    use std::time::Duration;

    use aip::codec::Wire;
    use aip::{ClientId, SessionId, TaskName};
    use jiff::Timestamp;
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::auth::Principal;
    use crate::session::{Requester, fresh_response_id};

    fn task() -> Task {
        Task {
            id: TaskId::fresh(),
            session_id: SessionId::new("S").unwrap(),
            task_name: TaskName::sanitize("t").unwrap(),
            request: "do it".to_owned(),
            requester: Requester::Client(ClientId::new("g").unwrap()),
            device: ClientId::new("d").unwrap(),
            agent_name: "LinuxAgent".to_owned(),
            command_timeout: Duration::from_secs(300),
            holder: Arc::new(Principal::Shared { name: "local" }),
            created_at: Timestamp::UNIX_EPOCH,
            plan: OnceLock::new(),
        }
    }

    fn step(bytes: usize) -> Step {
        let result = ActionResult::success(None, None, Payload::string(&"x".repeat(bytes)));
        Step { commands: Arc::new([]), results: Arc::new([result]) }
    }

    fn result(outcome: &Outcome, task: &Task, steps: &[Step]) -> Json {
        let frame = outcome.encode(task, steps, &fresh_response_id());
        assert!(frame.len() <= MAX_MESSAGE_BYTES, "{}", frame.len());
        let message = ServerMessage::decode(&frame).unwrap();
        assert_eq!(message.status, outcome.status);
        message.result.unwrap().parse().unwrap()
    }

    #[test]
    fn a_plan_returns_one_array_of_results_for_each_step_also_when_it_failed() {
        let steps = [step(1), step(2)];
        let expected = json!([{"request": "do it", "result": [
            [{"status": "success", "result": "x"}], [{"status": "success", "result": "xx"}],
        ]}]);
        assert_eq!(result(&Outcome::completed(Finish::Results), &task(), &steps), expected);
        assert_eq!(result(&Outcome::failed("no"), &task(), &steps), expected);
    }

    #[test]
    fn an_outcome_that_would_be_too_large_names_its_largest_results() {
        let task = task();
        let steps = [step(60 << 20), step(60 << 20), step(5)];
        let result = result(&Outcome::completed(Finish::Results), &task, &steps);
        let named =
            json!({"truncated": true, "bytes": (60 << 20) + 2, "task": task.id.to_string()});
        assert_eq!(result[0]["result"][0][0]["result"], named);
        assert_eq!(result[0]["result"][2][0]["result"], "xxxxx");
    }

    #[test]
    fn what_stands_beside_the_results_counts_too() {
        let task = Task { request: "\"".repeat(8 << 20), ..task() };
        let failure = ActionResult::failure(None, "\u{1}".repeat(64 << 10));
        let wordy = Step { commands: Arc::new([]), results: Arc::new([failure]) };
        let mut steps = vec![step(60 << 20)];
        steps.extend(vec![wordy; 100]);
        let result = result(&Outcome::completed(Finish::Results), &task, &steps);
        assert_eq!(result[0]["result"][0][0]["result"]["truncated"], true);
    }
}
