//! [`ServerMessage`]: what the server says to a client.

use serde::Deserialize;

use super::enums::or_default;
use super::{Command, ServerMessageType, Status};
use crate::id::{self, ResponseId, SessionId};
use crate::payload::{self, Payload};

/// A message from the server. Unset fields are not written; missing and `null` read the same.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(expecting = "a JSON object")]
pub struct ServerMessage {
    /// What it is.
    #[serde(rename = "type")]
    pub kind: ServerMessageType,
    /// How it stands; missing reads as `ok`.
    #[serde(default, deserialize_with = "or_default")]
    pub status: Status,
    /// The task text that a device shall submit (TASK).
    #[serde(default)]
    pub user_request: Option<String>,
    /// Which section of its `mcp.yaml` a Python device shall use.
    #[serde(default)]
    pub agent_name: Option<String>,
    /// The process that the command is about.
    #[serde(default)]
    pub process_name: Option<String>,
    /// The root of the process that the command is about.
    #[serde(default)]
    pub root_name: Option<String>,
    /// What a COMMAND asks for, to be run in this order.
    #[serde(default, deserialize_with = "payload::optional_objects")]
    pub actions: Option<Vec<Command>>,
    /// Lines for people.
    #[serde(default)]
    pub messages: Option<Vec<String>>,
    /// What went wrong.
    #[serde(default)]
    pub error: Option<String>,
    /// The task run it is about.
    #[serde(default, deserialize_with = "id::optional")]
    pub session_id: Option<SessionId>,
    /// The label of the task.
    #[serde(default)]
    pub task_name: Option<String>,
    /// When it was sent, as the sender says.
    #[serde(default)]
    pub timestamp: Option<String>,
    /// The id of this message; for an answer to a request with a `request_id`, that.
    #[serde(default, deserialize_with = "id::optional")]
    pub response_id: Option<ResponseId>,
    /// What came out.
    #[serde(default)]
    pub result: Option<Payload>,
}

impl ServerMessage {
    /// A message with nothing but its type and status set.
    #[must_use]
    pub fn new(kind: ServerMessageType, status: Status) -> Self {
        Self {
            kind,
            status,
            user_request: None,
            agent_name: None,
            process_name: None,
            root_name: None,
            actions: None,
            messages: None,
            error: None,
            session_id: None,
            task_name: None,
            timestamp: None,
            response_id: None,
            result: None,
        }
    }

    /// An ERROR with its text.
    #[must_use]
    pub fn error(text: impl Into<String>, session_id: Option<SessionId>) -> Self {
        let error = Some(text.into());
        Self { error, session_id, ..Self::new(ServerMessageType::Error, Status::Error) }
    }

    /// A TASK_END `failed` with its text, without a result.
    #[must_use]
    pub fn task_failed(error: impl Into<String>, session_id: SessionId) -> Self {
        Self {
            error: Some(error.into()),
            session_id: Some(session_id),
            ..Self::new(ServerMessageType::TaskEnd, Status::Failed)
        }
    }
}
