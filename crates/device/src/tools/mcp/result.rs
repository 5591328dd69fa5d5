//! What a call of an MCP tool returned, as a Result carries it.

use aip::Payload;
use rmcp::model::{CallToolResult, ContentBlock};
use serde_json::Value;

/// What is told of a failure without a text.
const NO_REASON: &str = "The tool failed and did not say why";

/// The value that a tool returned: its structured content, else its text, else the content blocks
/// themselves. `wraps` says that this tool's structured content stands in `{"result": …}`.
///
/// # Errors
/// What the tool says went wrong.
pub(super) fn returned(result: CallToolResult, wraps: bool) -> Result<Payload, String> {
    if result.is_error == Some(true) {
        return Err(failure(&result));
    }
    let wraps = wraps || says_it_wraps(&result);
    let value = match result.structured_content {
        Some(value) if wraps => unwrapped(value),
        Some(value) => value,
        None => content(result.content)?,
    };
    carried(&value)
}

/// The same of a result with blocks of kinds that the library does not know.
///
/// # Errors
/// What the tool says went wrong.
pub(super) fn of_unknown_kind(result: Value) -> Result<Payload, String> {
    let Value::Object(mut result) = result else { return carried(&result) };
    let content = result.remove("content");
    if result.get("isError") == Some(&Value::Bool(true)) {
        return Err(content.map_or_else(|| NO_REASON.to_owned(), |content| content.to_string()));
    }
    match result.remove("structuredContent").or(content) {
        Some(value) => carried(&value),
        None => carried(&Value::Object(result)),
    }
}

fn carried(value: &Value) -> Result<Payload, String> {
    Payload::from_value(value).map_err(|error| error.to_string())
}

/// FastMCP also says so in each result.
fn says_it_wraps(result: &CallToolResult) -> bool {
    let meta = result.meta.as_ref().and_then(|meta| serde_json::to_value(meta).ok());
    meta.and_then(|meta| meta.get("fastmcp")?.get("wrap_result")?.as_bool()).unwrap_or(false)
}

fn unwrapped(value: Value) -> Value {
    match value {
        Value::Object(mut map) if map.len() == 1 => {
            map.remove("result").unwrap_or(Value::Object(map))
        }
        value => value,
    }
}

fn content(blocks: Vec<ContentBlock>) -> Result<Value, String> {
    let text = if blocks.is_empty() { None } else { joined_text(&blocks) };
    match text {
        Some(text) => Ok(Value::String(text)),
        None => serde_json::to_value(blocks).map_err(|error| error.to_string()),
    }
}

/// All of it, if it is nothing but text.
fn joined_text(blocks: &[ContentBlock]) -> Option<String> {
    let texts: Option<Vec<_>> = blocks.iter().map(text).collect();
    texts.map(|texts| texts.join("\n"))
}

fn text(block: &ContentBlock) -> Option<&str> {
    match block {
        ContentBlock::Text(text) => Some(&text.text),
        _ => None,
    }
}

fn failure(result: &CallToolResult) -> String {
    let text = result.content.iter().filter_map(text).collect::<Vec<_>>().join("\n");
    match (&result.structured_content, text.is_empty()) {
        (_, false) => text,
        (Some(value), true) => value.to_string(),
        (None, true) if !result.content.is_empty() => {
            serde_json::to_string(&result.content).unwrap_or_else(|_| NO_REASON.to_owned())
        }
        (None, true) => NO_REASON.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(result: Value, wraps: bool) -> Result<Value, String> {
        let result = serde_json::from_value(result).unwrap();
        returned(result, wraps).map(|payload| payload.parse().unwrap())
    }

    #[test]
    fn structured_content_goes_before_text_and_arrives_as_it_is() {
        for value in [json!(false), json!(0), json!(""), json!([]), json!({}), json!(null)] {
            let result =
                json!({"content": [{"type": "text", "text": "x"}], "structuredContent": value});
            assert_eq!(read(result, false), Ok(value));
        }
    }

    #[test]
    fn what_fastmcp_wraps_is_unwrapped_and_nothing_else() {
        for value in [json!(false), json!(0), json!(""), json!([]), json!(null)] {
            let wrapped = json!({"content": [], "structuredContent": {"result": value}});
            assert_eq!(read(wrapped.clone(), true), Ok(value.clone()));
            assert_eq!(read(wrapped, false), Ok(json!({"result": value})));
            let said = json!({"content": [], "structuredContent": {"result": value},
                              "_meta": {"fastmcp": {"wrap_result": true}}});
            assert_eq!(read(said, false), Ok(value));
        }
        let more = json!({"content": [], "structuredContent": {"result": 1, "other": 2}});
        assert_eq!(read(more, true), Ok(json!({"result": 1, "other": 2})));
    }

    #[test]
    fn text_is_a_string_and_no_content_an_empty_list() {
        let text =
            json!({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]});
        assert_eq!(read(text, false), Ok(json!("a\nb")));
        assert_eq!(read(json!({"content": [{"type": "text", "text": ""}]}), false), Ok(json!("")));
        assert_eq!(read(json!({"content": []}), false), Ok(json!([])));
    }

    #[test]
    fn pictures_arrive_as_blocks_with_their_type() {
        let blocks = json!([{"type": "text", "text": "here:"},
                            {"type": "image", "data": "aGk=", "mimeType": "image/png"}]);
        assert_eq!(read(json!({"content": blocks}), false), Ok(blocks));
    }

    #[test]
    fn blocks_of_unknown_kinds_arrive_as_they_came() {
        let blocks = json!([{"type": "hologram", "data": 1}]);
        let read = |result: Value| of_unknown_kind(result).map(|payload| payload.parse().unwrap());
        assert_eq!(read(json!({"content": blocks})), Ok(blocks.clone()));
        assert_eq!(read(json!({"content": blocks, "structuredContent": 0})), Ok(json!(0)));
        assert!(
            read(json!({"content": blocks, "isError": true})).unwrap_err().contains("hologram")
        );
    }

    #[test]
    fn an_error_is_a_failure_with_its_text() {
        let error = |content: Value| read(json!({"content": content, "isError": true}), false);
        assert_eq!(
            error(json!([{"type": "text", "text": "no such row"}])),
            Err("no such row".into())
        );
        assert!(error(json!([])).unwrap_err().contains("did not say why"));
    }
}
