//! [`ClientMessage`]: what a device or a constellation says to the server.

use serde::Deserialize;

use super::enums::or_default;
use super::{ActionResult, ClientMessageType, ClientType, Status, payloads};
use crate::id::{self, ClientId, RequestId, ResponseId, SessionId};
use crate::payload::{self, Payload};

/// A message to the server. Unset fields are not written; missing and `null` read the same.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(expecting = "a JSON object")]
pub struct ClientMessage {
    /// What it is.
    #[serde(rename = "type")]
    pub kind: ClientMessageType,
    /// How it stands; missing reads as `ok`.
    #[serde(default, deserialize_with = "or_default")]
    pub status: Status,
    /// The sender's role; missing reads as `device`.
    #[serde(default, deserialize_with = "or_default")]
    pub client_type: ClientType,
    /// The task run it is about.
    #[serde(default, deserialize_with = "id::optional")]
    pub session_id: Option<SessionId>,
    /// A label of the task.
    #[serde(default)]
    pub task_name: Option<String>,
    /// The sender.
    #[serde(default, deserialize_with = "id::optional")]
    pub client_id: Option<ClientId>,
    /// The device it is about.
    #[serde(default, deserialize_with = "id::optional")]
    pub target_id: Option<ClientId>,
    /// What the task asks for.
    #[serde(default)]
    pub request: Option<String>,
    /// What became of a COMMAND's actions, in their order; at most [`super::MAX_RESULTS`].
    #[serde(default, deserialize_with = "payloads::results")]
    pub action_results: Option<Vec<ActionResult>>,
    /// When it was sent, as the sender says.
    #[serde(default)]
    pub timestamp: Option<String>,
    /// The sender's id of this request.
    #[serde(default, deserialize_with = "id::optional")]
    pub request_id: Option<RequestId>,
    /// The server's message that this answers.
    #[serde(default, deserialize_with = "id::optional")]
    pub prev_response_id: Option<ResponseId>,
    /// What went wrong.
    #[serde(default)]
    pub error: Option<String>,
    /// Anything else: a JSON object.
    #[serde(default, deserialize_with = "payload::optional_object")]
    pub metadata: Option<Payload>,
}

impl ClientMessage {
    /// A message with nothing but its type set.
    #[must_use]
    pub fn new(kind: ClientMessageType, client_type: ClientType) -> Self {
        Self {
            kind,
            status: Status::Ok,
            client_type,
            session_id: None,
            task_name: None,
            client_id: None,
            target_id: None,
            request: None,
            action_results: None,
            timestamp: None,
            request_id: None,
            prev_response_id: None,
            error: None,
            metadata: None,
        }
    }
}
