//! What a requester that asked for it sees of its task while it runs. It promises nothing: it is the
//! first to be dropped when a queue is full.

use aip::codec::Wire;
use aip::message::{Downstream, Passed, ReadSpool, Step as ProgressStep, StepStatus};
use aip::{Payload, ResponseId, ServerMessage, ServerMessageType, SessionId, Status};
use bytes::Bytes;

use super::{Call, CallResult, CallStatus};

/// How much of a result is shown, in characters.
const RESULT_HEAD_CHARS: usize = 400;

/// How much of a command's arguments is shown, in characters.
const PARAMETERS_HEAD_CHARS: usize = 200;

/// Arguments over this size are not repeated in progress, in bytes.
const MAX_PARAMETERS_BYTES: usize = 4096;

/// Says that a task waits for its turn.
pub(crate) fn waits(session_id: &SessionId, device: &str, ahead: usize, at: String) -> Bytes {
    let step = ProgressStep {
        n: 0,
        tool_name: String::new(),
        parameters: None,
        status: StepStatus::Queued,
        result_head: None,
        exit_code: None,
        elapsed_ms: 0,
    };
    let tasks = if ahead == 1 { "task" } else { "tasks" };
    frame(session_id, vec![format!("waiting for {ahead} {tasks} on '{device}'")], &step, at)
}

/// Says that a call of step `n` was sent.
pub(crate) fn step_runs(session_id: &SessionId, n: u32, call: &Call, at: String) -> Bytes {
    let line = format!("step {n}: {}", describe(call));
    frame(session_id, vec![line], &shown(n, call), at)
}

/// Says what became of a call of step `n`.
pub(crate) fn step_ended(
    session_id: &SessionId,
    n: u32,
    (call, result): (&Call, &CallResult),
    elapsed_ms: u64,
    at: String,
) -> Bytes {
    let status = match result.status {
        CallStatus::Success => StepStatus::Success,
        CallStatus::Failure => StepStatus::Failure,
        CallStatus::Skipped => StepStatus::Skipped,
        CallStatus::None => StepStatus::None,
    };
    let word = aip::ResultStatus::from(result.status);
    let exit_code = result.nonzero_exit();
    let said = exit_code.map_or_else(|| word.to_string(), |code| format!("exit {code}"));
    let line = format!("step {n}: {} {said} ({elapsed_ms} ms)", call.tool_name);
    let text = result.error.as_deref().or(result.result.as_ref().map(Payload::as_str));
    let result_head = text.map(|text| text.chars().take(RESULT_HEAD_CHARS).collect());
    let step = ProgressStep { status, result_head, exit_code, elapsed_ms, ..shown(n, call) };
    frame(session_id, vec![line], &step, at)
}

/// Passes on what a tool writes while it runs.
pub(crate) fn forward_output(session_id: &SessionId, lines: Vec<String>, at: String) -> Bytes {
    message(session_id, lines, None, at)
}

/// Passes on what a device says of a command's streams.
pub(crate) fn to_requester(session_id: &SessionId, passed: &Passed, at: String) -> Bytes {
    passed.encode(&about(session_id, at))
}

/// Passes on what a requester says of a command's streams.
pub(crate) fn to_device(
    session_id: &SessionId,
    response_id: &ResponseId,
    downstream: &Downstream,
    at: String,
) -> Bytes {
    let message = ServerMessage {
        response_id: Some(response_id.clone()),
        result: Some(downstream.to_payload()),
        ..about(session_id, at)
    };
    message.encode()
}

fn shown(n: u32, call: &Call) -> ProgressStep {
    let small = |parameters: &&Payload| parameters.len() <= MAX_PARAMETERS_BYTES;
    ProgressStep {
        n,
        tool_name: call.tool_name.clone(),
        parameters: call.parameters.as_ref().filter(small).cloned(),
        status: StepStatus::Running,
        result_head: None,
        exit_code: None,
        elapsed_ms: 0,
    }
}

fn describe(call: &Call) -> String {
    let parameters = call.parameters.as_ref().map_or("", Payload::as_str);
    let head: String = parameters.chars().take(PARAMETERS_HEAD_CHARS).collect();
    format!("{} {head}", call.tool_name).trim_end().to_owned()
}

fn frame(session_id: &SessionId, lines: Vec<String>, step: &ProgressStep, at: String) -> Bytes {
    message(session_id, lines, step.to_result(), at)
}

fn message(
    session_id: &SessionId,
    lines: Vec<String>,
    result: Option<Payload>,
    at: String,
) -> Bytes {
    ServerMessage { messages: Some(lines), result, ..about(session_id, at) }.encode()
}

/// Asks a device for what it has kept of a command's output.
pub(crate) fn ask_device(
    session_id: &SessionId,
    response_id: &ResponseId,
    asked: &ReadSpool,
    at: String,
) -> Bytes {
    let message = ServerMessage {
        response_id: Some(response_id.clone()),
        result: Some(asked.to_result()),
        ..about(session_id, at)
    };
    message.encode()
}

/// A message about a task that runs.
fn about(session_id: &SessionId, at: String) -> ServerMessage {
    ServerMessage {
        session_id: Some(session_id.clone()),
        timestamp: Some(at),
        ..ServerMessage::new(ServerMessageType::Heartbeat, Status::Continue)
    }
}
