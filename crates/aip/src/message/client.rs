//! [`ClientMessage`]: what a device or a constellation says to the server.

use serde::Deserialize;

use super::{ActionResult, ClientMessageType, ClientType, Status};
use crate::id::{self, ClientId, RequestId, ResponseId, SessionId};
use crate::payload::{self, Payload};

/// A message to the server. Unset fields are not written; missing and `null` read the same.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ClientMessage {
    /// What it is.
    #[serde(rename = "type")]
    pub kind: ClientMessageType,
    /// How it stands; missing reads as `ok`.
    #[serde(default, deserialize_with = "status_or_ok")]
    pub status: Status,
    /// The sender's role; missing reads as `device`.
    #[serde(default, deserialize_with = "type_or_device")]
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
    /// What became of a COMMAND's actions, in their order.
    #[serde(default)]
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

fn status_or_ok<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Status, D::Error> {
    Option::deserialize(deserializer).map(|status| status.unwrap_or(Status::Ok))
}

fn type_or_device<'de, D: serde::Deserializer<'de>>(d: D) -> Result<ClientType, D::Error> {
    Option::deserialize(d).map(|client_type| client_type.unwrap_or(ClientType::Device))
}

impl Default for Status {
    /// What a missing status means.
    fn default() -> Self {
        Self::Ok
    }
}

impl Default for ClientType {
    /// What a missing client type means.
    fn default() -> Self {
        Self::Device
    }
}
