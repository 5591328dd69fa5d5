//! What messages carry: commands, their results, and the description of a tool.

use std::fmt;

use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::{ResultStatus, ToolType};
use crate::id::{self, CallId};
use crate::payload::{self, Object, Payload};

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

/// The most results of one message. There is no command with as many actions; and results without
/// content take much more memory than they take of a message, so that one of 100 MiB would be 1.6 GB.
pub const MAX_RESULTS: usize = 10_000;

/// The most of a result's error text that is kept, in bytes. It is for people.
const MAX_ERROR_BYTES: usize = 64 * 1024;

/// The most of a namespace that is kept, in bytes.
const MAX_NAMESPACE_BYTES: usize = 256;

/// A list of results, `null` or missing. Their texts are cut at their bounds.
///
/// # Errors
/// When there are more than [`MAX_RESULTS`].
pub(super) fn results<'de, D>(deserializer: D) -> Result<Option<Vec<ActionResult>>, D::Error>
where
    D: Deserializer<'de>,
{
    Option::<Results>::deserialize(deserializer).map(|results| results.map(|results| results.0))
}

struct Results(Vec<ActionResult>);

impl<'de> Deserialize<'de> for Results {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ResultsVisitor)
    }
}

struct ResultsVisitor;

impl<'de> Visitor<'de> for ResultsVisitor {
    type Value = Results;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of results")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Results, A::Error> {
        let mut results = Vec::new();
        while let Some(Object(mut result)) = list.next_element::<Object<ActionResult>>()? {
            if results.len() == MAX_RESULTS {
                return Err(A::Error::custom(format!("more than {MAX_RESULTS} results")));
            }
            cut(&mut result.error, MAX_ERROR_BYTES);
            cut(&mut result.namespace, MAX_NAMESPACE_BYTES);
            results.push(result);
        }
        Ok(Results(results))
    }
}

/// Cuts a text that has more bytes than it may.
fn cut(text: &mut Option<String>, bytes: usize) {
    let Some(text) = text.as_mut().filter(|text| text.len() > bytes) else { return };
    let end = (0..=bytes).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.truncate(end);
    text.push('…');
    text.shrink_to_fit();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::ClientMessage;

    #[test]
    fn the_texts_of_a_result_are_cut_at_their_bounds() {
        let long = "é".repeat(MAX_ERROR_BYTES);
        let text = format!(
            r#"{{"type":"command_results","action_results":[
                {{"status":"failure","error":"{long}","namespace":"x{long}","result":"{long}"}},
                {{"status":"failure","error":"no such file","namespace":"n"}}]}}"#
        );
        let message: ClientMessage = serde_json::from_str(&text).unwrap();
        let results = message.action_results.unwrap();
        let kept = |text: &Option<String>| text.as_ref().unwrap().len() - '…'.len_utf8();
        assert_eq!(kept(&results[0].error), MAX_ERROR_BYTES);
        assert_eq!(kept(&results[0].namespace), MAX_NAMESPACE_BYTES - 1, "between two characters");
        assert_eq!(results[0].result.as_ref().unwrap().len(), long.len() + 2);
        assert_eq!(results[1].error.as_deref(), Some("no such file"));
        assert_eq!(results[1].namespace.as_deref(), Some("n"));
    }

    #[test]
    fn a_message_has_a_bounded_number_of_results() {
        let read = |number: usize| {
            let results = vec![r#"{"status":"none"}"#; number].join(",");
            let text = format!(r#"{{"type":"command_results","action_results":[{results}]}}"#);
            serde_json::from_str::<ClientMessage>(&text)
                .map(|message| message.action_results.map(|results| results.len()))
                .map_err(|error| error.to_string())
        };
        assert_eq!(read(MAX_RESULTS), Ok(Some(MAX_RESULTS)));
        assert!(read(MAX_RESULTS + 1).unwrap_err().contains("more than 10000 results"));
        for none in ["", r#","action_results":null"#] {
            let text = format!(r#"{{"type":"command_results"{none}}}"#);
            let message: ClientMessage = serde_json::from_str(&text).unwrap();
            assert_eq!(message.action_results, None);
        }
    }
}
