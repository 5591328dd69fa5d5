//! What a task is, from its acceptance to its TASK_END, in types that know neither the hub nor the store.

mod history;
mod identity;
mod outcome;
mod progress;
mod task;

use std::sync::Arc;

use aip::codec::Wire;
use aip::message::CommandNote;
use aip::{CallId, ResponseId, ServerMessage, ServerMessageType, SessionId, Status, TaskName};
use bytes::Bytes;
use link::Ambient;
use uuid::Uuid;

pub(crate) use history::steps;
pub use identity::{IdentityRecord, Incarnation, KeyHash};
pub(crate) use outcome::{Outcome, Stamp, write_whole_result};
pub(crate) use progress::{
    ask_device, forward_output, step_ended, step_runs, to_device, to_requester, waits,
};
pub(crate) use task::LowHalf;
pub use task::{
    Call, CallResult, CallStatus, Finish, KeyName, RequestHash, Requester, Step, Task, TaskId,
    Terms,
};

/// Why the server stops a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cause {
    DeviceGone,
    RequesterGone,
    Shutdown,
    /// The key that it was submitted with opens no more.
    KeyGone,
    /// The holder of the key with this name cancelled it.
    Cancelled(Arc<str>),
}

/// A fresh id, from UUIDs of which the first that is a good id counts: each is.
fn fresh<T, E>(uuid: impl Fn() -> Uuid, id: impl Fn(&str) -> Result<T, E>) -> T {
    let mut buffer = Uuid::encode_buffer();
    loop {
        if let Ok(id) = id(uuid().hyphenated().encode_lower(&mut buffer)) {
            return id;
        }
    }
}

pub(crate) fn fresh_session_id(ambient: &Ambient) -> SessionId {
    fresh(|| ambient.uuid(), SessionId::new)
}

pub(crate) fn fresh_response_id(ambient: &Ambient) -> ResponseId {
    fresh(|| ambient.uuid(), ResponseId::new)
}

pub(crate) fn fresh_call_id(ambient: &Ambient) -> CallId {
    fresh(|| ambient.uuid(), CallId::new)
}

/// The id of a COMMAND, *R*: above all before it.
pub(crate) fn next_command_id(ambient: &Ambient) -> ResponseId {
    fresh(|| ambient.uuid_v7(), ResponseId::new)
}

/// A COMMAND as one frame, for a device of ours, which knows namespaces of tools, or another's.
pub(crate) fn encode_command(
    task: &Task,
    calls: &[Call],
    response_id: &ResponseId,
    is_ours: bool,
    note: Option<&CommandNote>,
    at: String,
) -> Bytes {
    let message = ServerMessage {
        result: note.and_then(CommandNote::to_result),
        agent_name: Some(task.agent_name.clone()),
        // As the Python server sends them: its devices choose a section by them.
        process_name: Some(String::new()),
        root_name: Some(String::new()),
        actions: Some(calls.iter().map(|call| call.to_command(is_ours)).collect()),
        session_id: Some(task.session_id.clone()),
        task_name: Some(task.task_name.to_string()),
        timestamp: Some(at),
        response_id: Some(response_id.clone()),
        ..ServerMessage::new(ServerMessageType::Command, Status::Continue)
    };
    message.encode()
}

pub(crate) fn fresh_task_name(ambient: &Ambient) -> TaskName {
    fresh(|| ambient.uuid(), |text| TaskName::sanitize(text).ok_or(()))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use aip::ClientId;
    use jiff::Timestamp;

    use super::*;

    pub(crate) fn task(id: TaskId) -> Task {
        Task {
            id,
            session_id: SessionId::new("S").unwrap(),
            task_name: TaskName::sanitize("t").unwrap(),
            request: "do it".to_owned(),
            requester: Requester::Client(ClientId::new("g").unwrap()),
            device: ClientId::new("d").unwrap(),
            agent_name: "LinuxAgent".to_owned(),
            command_timeout: Duration::from_secs(300),
            created_at: Timestamp::UNIX_EPOCH,
            key: KeyName { name: "local".into(), id: None },
            terms: Terms::default(),
        }
    }
}
