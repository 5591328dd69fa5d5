//! How a task ended, and the TASK_END that says so.

use std::sync::Arc;

use aip::codec::{
    MAX_MESSAGE_BYTES, ResultFields, encode_server, write_list, write_outcome, write_result,
};
use aip::message::TruncatedResult;
use aip::{Payload, ResponseId, ServerMessage, ServerMessageType, Status};
use bytes::Bytes;

use super::{CallResult, Cause, Finish, Step, Task, TaskId};
use crate::store::{Ended, Ending};

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
    pub(crate) ending: Ending,
    pub(crate) error: Option<Arc<str>>,
    pub(crate) finish: Finish,
    /// Whether the error is in its agent's words, which may repeat what a device said.
    is_given_up: bool,
}

/// Names a TASK_END: its id, and when it is sent.
pub(crate) struct Stamp {
    pub(crate) response_id: ResponseId,
    pub(crate) at: String,
}

impl Outcome {
    pub(crate) const fn completed(finish: Finish) -> Self {
        Self { ending: Ending::Completed, error: None, finish, is_given_up: false }
    }

    pub(crate) fn failed(error: impl Into<Arc<str>>) -> Self {
        Self {
            ending: Ending::Failed,
            error: Some(error.into()),
            finish: Finish::Results,
            is_given_up: false,
        }
    }

    /// Its agent says that it failed, and why.
    pub(crate) fn given_up(error: impl Into<Arc<str>>) -> Self {
        Self { is_given_up: true, ..Self::failed(error) }
    }

    /// What is said when something failed inside the server.
    pub(crate) fn broken() -> Self {
        Self::failed("The server failed inside; see its log")
    }

    pub(crate) fn stopped(cause: &Cause, task: &Task) -> Self {
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
        match cause {
            Cause::Cancelled(_) => Self { ending: Ending::Cancelled, ..failed },
            _ => failed,
        }
    }

    /// The same with what is known of the command that ran when the task was cancelled.
    pub(crate) fn with_word(self, word: &str) -> Self {
        let error = self.error.as_deref().unwrap_or_default();
        Self { error: Some(format!("{error}: {word}").into()), ..self }
    }

    /// How a task ended, as the store has it.
    pub(crate) fn of(ended: &Ended) -> Self {
        let Ended { ending, error, finish, .. } = ended.clone();
        Self { ending, error, finish, is_given_up: true }
    }

    /// The word of the wire for it.
    pub(crate) const fn status(&self) -> Status {
        match self.ending {
            Ending::Completed => Status::Completed,
            Ending::Failed | Ending::Cancelled => Status::Failed,
        }
    }

    /// Why it failed, in the server's own words: for the logs, which repeat no peer's words.
    pub(crate) fn reason(&self) -> Option<&str> {
        if self.is_given_up { Some("The agent gave the task up") } else { self.error.as_deref() }
    }

    /// The TASK_END as one frame, and whether it carries all results whole.
    pub(crate) fn encode(&self, task: &Task, history: &[Step], stamp: Stamp) -> (Bytes, bool) {
        let message = self.message(task, stamp);
        let value = Value::of(&self.finish, history);
        let fit = Fit::new(task, &value);
        let frame = encode_server(&message, fit.bytes + fit.request.len(), |out| {
            write_outcome(out, fit.request, |out| value.write(out, task.id, fit.largest));
        });
        (frame, fit.largest == usize::MAX)
    }

    /// The TASK_END for a device, which knows the results already.
    pub(crate) fn encode_without_result(&self, task: &Task, stamp: Stamp) -> Bytes {
        encode_server(&self.message(task, stamp), 0, |_| ())
    }

    /// What stands beside the error of a task that was cancelled.
    fn words(&self) -> Option<Vec<String>> {
        let error = self.error.as_deref().filter(|_| self.ending == Ending::Cancelled)?;
        Some(vec![error.to_owned()])
    }

    fn message(&self, task: &Task, stamp: Stamp) -> ServerMessage {
        ServerMessage {
            error: self.error.as_deref().map(str::to_owned),
            session_id: Some(task.session_id.clone()),
            timestamp: Some(stamp.at),
            response_id: Some(stamp.response_id),
            messages: self.words(),
            ..ServerMessage::new(ServerMessageType::TaskEnd, self.status())
        }
    }
}

/// What a task returns.
enum Value<'a> {
    Own(&'a Payload),
    Results(&'a [Step]),
}

impl<'a> Value<'a> {
    const fn of(finish: &'a Finish, history: &'a [Step]) -> Self {
        match finish {
            Finish::Value(value) => Self::Own(value),
            Finish::Results => Self::Results(history),
        }
    }

    /// The steps that it returns: a look at the device's tools is none.
    fn steps(&self) -> impl Iterator<Item = &'a Step> + use<'a> {
        let steps = match self {
            Self::Own(_) => &[],
            Self::Results(steps) => *steps,
        };
        steps.iter().filter(|step| !step.is_discovery)
    }

    fn results(&self) -> impl Iterator<Item = &'a CallResult> + use<'a> {
        self.steps().flat_map(|step| step.results.iter())
    }

    /// The size of each result.
    fn sizes(&self) -> Vec<usize> {
        match self {
            Self::Own(value) => vec![value.len()],
            Self::Results(_) => self.results().map(CallResult::value_bytes).collect(),
        }
    }

    /// What the texts beside the values may take in all, in bytes.
    fn texts(&self) -> usize {
        let texts = self.results().flat_map(|result| [&result.error, &result.namespace]);
        texts.flatten().map(|text| text.len() * ESCAPED_BYTES).sum()
    }

    /// Writes the value; a result over `largest` bytes is only named.
    fn write(&self, out: &mut Vec<u8>, task: TaskId, largest: usize) {
        let named = |bytes: usize| (bytes > largest).then(|| truncated(bytes, task)).flatten();
        match self {
            Self::Own(value) => {
                out.extend_from_slice(named(value.len()).as_ref().unwrap_or(value).as_bytes());
            }
            Self::Results(_) => write_list(out, self.steps(), |out, step| {
                write_list(out, step.results.iter(), |out, result| {
                    let named = named(result.value_bytes());
                    write_result(out, fields(result, named.as_ref()));
                });
            }),
        }
    }
}

/// A result as the wire has it; `instead` stands in for its value when it is set.
fn fields<'a>(result: &'a CallResult, instead: Option<&'a Payload>) -> ResultFields<'a> {
    ResultFields {
        status: result.status.into(),
        error: result.error.as_deref(),
        result: instead.or(result.result.as_ref()),
        namespace: result.namespace.as_deref(),
        call_id: result.call_id.as_ref(),
    }
}

/// Writes what a task returned, as in its TASK_END but always whole.
pub(crate) fn write_whole_result(out: &mut Vec<u8>, task: &Task, finish: &Finish, steps: &[Step]) {
    let value = Value::of(finish, steps);
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
    use aip::codec::Wire;
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::session::CallStatus;
    use crate::session::tests::task;

    fn a_task() -> Task {
        task(TaskId::fresh())
    }

    fn step(bytes: usize) -> Step {
        let result = Some(Payload::string(&"x".repeat(bytes)));
        let status = CallStatus::Success;
        let result = CallResult { status, error: None, result, namespace: None, call_id: None };
        Step { calls: Arc::new([]), results: Arc::new([result]), is_discovery: false }
    }

    fn result(outcome: &Outcome, task: &Task, steps: &[Step]) -> Json {
        let stamp = Stamp { response_id: ResponseId::new("E").unwrap(), at: String::new() };
        let (frame, is_whole) = outcome.encode(task, steps, stamp);
        assert!(frame.len() <= MAX_MESSAGE_BYTES, "{}", frame.len());
        let message = ServerMessage::decode(&frame).unwrap();
        assert_eq!(message.status, outcome.status());
        let result: Json = message.result.unwrap().parse().unwrap();
        assert_eq!(is_whole, !result.to_string().contains("\"truncated\":true"));
        result
    }

    #[test]
    fn a_plan_returns_one_array_of_results_for_each_step_also_when_it_failed() {
        let steps = [step(1), step(2)];
        let expected = json!([{"request": "do it", "result": [
            [{"status": "success", "result": "x"}], [{"status": "success", "result": "xx"}],
        ]}]);
        assert_eq!(result(&Outcome::completed(Finish::Results), &a_task(), &steps), expected);
        assert_eq!(result(&Outcome::failed("no"), &a_task(), &steps), expected);
    }

    #[test]
    fn a_look_at_the_tools_is_no_part_of_the_outcome() {
        let steps = [Step { is_discovery: true, ..step(9) }, step(1)];
        let result = result(&Outcome::completed(Finish::Results), &a_task(), &steps);
        assert_eq!(result[0]["result"], json!([[{"status": "success", "result": "x"}]]));
    }

    #[test]
    fn an_outcome_that_would_be_too_large_names_its_largest_results() {
        let task = a_task();
        let steps = [step(60 << 20), step(60 << 20), step(5)];
        let result = result(&Outcome::completed(Finish::Results), &task, &steps);
        let named =
            json!({"truncated": true, "bytes": (60 << 20) + 2, "task": task.id.to_string()});
        assert_eq!(result[0]["result"][0][0]["result"], named);
        assert_eq!(result[0]["result"][2][0]["result"], "xxxxx");
    }

    #[test]
    fn what_stands_beside_the_results_counts_too() {
        let task = Task { request: "\"".repeat(8 << 20), ..a_task() };
        let failure = CallResult::failure(None, "\u{1}".repeat(64 << 10));
        let wordy = Step { results: Arc::new([failure]), ..step(0) };
        let mut steps = vec![step(60 << 20)];
        steps.extend(vec![wordy; 100]);
        let result = result(&Outcome::completed(Finish::Results), &task, &steps);
        assert_eq!(result[0]["result"][0][0]["result"]["truncated"], true);
    }
}
