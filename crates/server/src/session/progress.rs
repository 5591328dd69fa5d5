//! What a requester that asked for it sees of its task while it runs. It promises nothing: it is the
//! first to be dropped when a queue is full.

use aip::codec::Wire;
use aip::message::{Step as Shown, StepStatus};
use aip::{ActionResult, Command, Payload, ServerMessage, ServerMessageType, SessionId, Status};
use link::connection::timestamp;

use crate::registry::Client;

/// How much of a result is shown, in characters.
const RESULT_HEAD_CHARS: usize = 400;

/// How much of a command's arguments is shown, in characters.
const PARAMETERS_HEAD_CHARS: usize = 200;

/// Arguments over this size are not repeated in progress, in bytes.
const MAX_PARAMETERS_BYTES: usize = 4096;

/// The task waits for its turn.
pub(super) fn queued(requester: &Client, session_id: &SessionId, device: &str, ahead: usize) {
    let step = Shown {
        n: 0,
        tool_name: String::new(),
        parameters: None,
        status: StepStatus::Queued,
        result_head: None,
        elapsed_ms: 0,
    };
    let tasks = if ahead == 1 { "task" } else { "tasks" };
    send(requester, session_id, format!("waiting for {ahead} {tasks} on '{device}'"), &step);
}

/// A step was sent.
pub(super) fn running(requester: &Client, session_id: &SessionId, n: u32, commands: &[Command]) {
    for command in commands {
        send(requester, session_id, format!("step {n}: {}", describe(command)), &shown(n, command));
    }
}

/// A step is over.
pub(super) fn ended(
    requester: &Client,
    session_id: &SessionId,
    n: u32,
    commands: &[Command],
    results: &[ActionResult],
    elapsed_ms: u64,
) {
    for (command, result) in commands.iter().zip(results) {
        let line = format!("step {n}: {} {} ({elapsed_ms} ms)", command.tool_name, result.status);
        let step = shown(n, command).ended(result, elapsed_ms, RESULT_HEAD_CHARS);
        send(requester, session_id, line, &step);
    }
}

/// A tool tells something while it runs.
pub(crate) fn told(requester: &Client, session_id: &SessionId, lines: Vec<String>) {
    push(requester, session_id, lines, None);
}

fn shown(n: u32, command: &Command) -> Shown {
    let small = |parameters: &&Payload| parameters.len() <= MAX_PARAMETERS_BYTES;
    let parameters = command.parameters.as_ref().filter(small).cloned();
    Shown::running(n, &Command { parameters, ..command.clone() })
}

fn describe(command: &Command) -> String {
    let parameters = command.parameters.as_ref().map_or("", Payload::as_str);
    let head: String = parameters.chars().take(PARAMETERS_HEAD_CHARS).collect();
    format!("{} {head}", command.tool_name).trim_end().to_owned()
}

fn send(requester: &Client, session_id: &SessionId, line: String, step: &Shown) {
    push(requester, session_id, vec![line], step.to_result());
}

fn push(requester: &Client, session_id: &SessionId, lines: Vec<String>, result: Option<Payload>) {
    let message = ServerMessage {
        messages: Some(lines),
        session_id: Some(session_id.clone()),
        timestamp: Some(timestamp()),
        result,
        ..ServerMessage::new(ServerMessageType::Heartbeat, Status::Continue)
    };
    requester.outbox.push_progress(message.encode());
}
