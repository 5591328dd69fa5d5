//! What messages carry: commands, their results, and the description of a tool.

use serde::{Deserialize, Serialize};

use super::{ResultStatus, ToolType};
use crate::id::{self, CallId};
use crate::payload::{self, Payload};

/// One tool call of a COMMAND.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Command {
    /// Which tool.
    pub tool_name: String,
    /// Its arguments: a JSON object.
    #[serde(default, deserialize_with = "payload::optional_object")]
    pub parameters: Option<Payload>,
    /// Whether the tool observes or changes.
    pub tool_type: ToolType,
    /// The id that its result will carry.
    #[serde(default, deserialize_with = "id::optional")]
    pub call_id: Option<CallId>,
}

/// What a result takes of a message beside its value and its error, about, in bytes.
const RESULT_ENVELOPE_BYTES: usize = 160;

/// What became of one action.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ActionResult {
    /// How it ended.
    pub status: ResultStatus,
    /// What went wrong, for people.
    #[serde(default)]
    pub error: Option<String>,
    /// What the tool returned.
    #[serde(default)]
    pub result: Option<Payload>,
    /// Where the tool lives: the name of its server or of the built-in set.
    #[serde(default)]
    pub namespace: Option<String>,
    /// The id of the action.
    #[serde(default, deserialize_with = "id::optional")]
    pub call_id: Option<CallId>,
}

impl ActionResult {
    /// The tool ran and returned this.
    #[must_use]
    pub fn success(call_id: Option<CallId>, namespace: Option<String>, result: Payload) -> Self {
        let status = ResultStatus::Success;
        Self { status, error: None, result: Some(result), namespace, call_id }
    }

    /// The tool could not run, or said that it failed.
    #[must_use]
    pub fn failure(call_id: Option<CallId>, error: impl Into<String>) -> Self {
        let error = Some(error.into());
        Self { status: ResultStatus::Failure, error, result: None, namespace: None, call_id }
    }

    /// What it takes of a message, about, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let error = self.error.as_ref().map_or(0, String::len);
        RESULT_ENVELOPE_BYTES + error + self.result.as_ref().map_or(0, Payload::len)
    }

    /// An action before it failed; the text is the Python device's.
    #[must_use]
    pub fn skipped(call_id: Option<CallId>) -> Self {
        let error = "Skipped due to previous failure (early_exit=True).";
        Self { status: ResultStatus::Skipped, ..Self::failure(call_id, error) }
    }
}

/// A tool as `list_tools` describes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToolInfo {
    /// `<tool_type>::<tool_name>`.
    pub tool_key: String,
    /// Its name.
    pub tool_name: String,
    /// Where it lives.
    pub namespace: String,
    /// Whether it observes or changes.
    pub tool_type: ToolType,
    /// A short name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// What it does, for the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// JSON schema of its arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_schema: Option<serde_json::Value>,
    /// JSON schema of what it returns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_schema: Option<serde_json::Value>,
    /// Whatever else its server says of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meta: Option<serde_json::Value>,
    /// MCP's hints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<serde_json::Value>,
}

/// Stands in an outcome for a result that would make the message too large.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TruncatedResult {
    /// Always true.
    pub truncated: bool,
    /// Length of the whole result in bytes.
    pub bytes: usize,
    /// The server's own id of the task, under which the whole is to be had.
    pub task: String,
}
