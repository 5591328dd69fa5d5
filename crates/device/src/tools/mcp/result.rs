//! What a call of an MCP tool returned, as a Result carries it.

use std::collections::BTreeMap;
use std::fmt;

use aip::Payload;
use aip::codec::{MAX_DEPTH, check_depth};
use aip::payload::Object;
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::client::CallError;
use super::message;

/// What is told of a failure without a text.
const NO_REASON: &str = "The tool failed and did not say why";

const NO_RESULT: &str = "The MCP server answered with something that is no result of a tool";

/// How deep a result may be nested: a message has three levels around it.
const RESULT_DEPTH: usize = MAX_DEPTH - 3;

/// A result as servers write it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    #[serde(default)]
    result_type: Option<Payload>,
    #[serde(default)]
    content: Option<Payload>,
    #[serde(default, deserialize_with = "present")]
    structured_content: Option<Payload>,
    #[serde(default)]
    is_error: Option<Payload>,
    #[serde(default, rename = "_meta")]
    meta: Option<Payload>,
}

/// Structured content may be `null`.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Payload>, D::Error> {
    Payload::deserialize(deserializer).map(Some)
}

/// The value that a tool returned, off the text of its result: the structured content, else the text, else the
/// content blocks themselves. `wraps` says that this tool's structured content stands in `{"result": …}`.
///
/// # Errors
/// What the tool says went wrong, or why the result cannot be read.
pub(super) fn returned(text: String, wraps: bool) -> Result<Payload, CallError> {
    let whole = Payload::from_text(text).map_err(|error| unreadable(&error.to_string()))?;
    if !whole.as_str().starts_with('{') {
        return if whole.is_null() { Err(no_result()) } else { carried(whole) };
    }
    let read = whole.parse_carried::<Object<Written>>();
    let Object(written) = read.map_err(|error| because(&error, &whole))?;
    if is(written.is_error.as_ref(), "true") {
        return Err(CallError::Failed(written.failure()));
    }
    match written.result_type.as_ref().map(Payload::as_str) {
        None | Some("\"complete\"") => written.value(&whole, wraps),
        Some("\"input_required\"") => Err(CallError::Failed(
            "The tool asks back for input, which nobody here can give".to_owned(),
        )),
        Some(_) => Err(no_result()),
    }
}

impl Written {
    fn value(self, whole: &Payload, wraps: bool) -> Result<Payload, CallError> {
        let wraps = wraps || self.says_it_wraps();
        match (self.structured_content, self.content) {
            (Some(value), _) if wraps => carried(unwrapped(value)),
            (Some(value), _) => carried(value),
            (None, Some(blocks)) => content(blocks),
            (None, None) if self.is_error.is_some() => Ok(no_blocks()),
            (None, None) => of_unknown_kind(whole),
        }
    }

    /// FastMCP also says so in each result.
    fn says_it_wraps(&self) -> bool {
        #[derive(Deserialize)]
        struct Meta {
            fastmcp: FastMcp,
        }

        #[derive(Deserialize)]
        struct FastMcp {
            wrap_result: bool,
        }

        let meta = self.meta.as_ref().and_then(|meta| meta.parse::<Meta>().ok());
        meta.is_some_and(|meta| meta.fastmcp.wrap_result)
    }

    fn failure(&self) -> String {
        let text = self.content.as_ref().map(|blocks| texts(blocks).join("\n")).unwrap_or_default();
        let content = self.content.as_ref().filter(|blocks| blocks.as_str() != "[]");
        match self.structured_content.as_ref().or(content) {
            _ if !text.is_empty() => text,
            Some(value) => value.as_str().to_owned(),
            None => NO_REASON.to_owned(),
        }
    }
}

fn unwrapped(value: Payload) -> Payload {
    let members = value.parse_carried::<BTreeMap<String, Payload>>();
    let mut members = members.unwrap_or_default();
    match (members.remove("result"), members.is_empty()) {
        (Some(inner), true) => inner,
        _ => value,
    }
}

/// The text of blocks that are nothing but text, else the blocks.
fn content(blocks: Payload) -> Result<Payload, CallError> {
    let all = blocks.parse::<Vec<Block>>().unwrap_or_default();
    let texts: Option<Vec<_>> = all.into_iter().map(Block::text).collect();
    match texts {
        Some(texts) if !texts.is_empty() => Ok(Payload::string(&texts.join("\n"))),
        _ => carried(blocks),
    }
}

fn texts(blocks: &Payload) -> Vec<String> {
    let blocks = blocks.parse::<Vec<Block>>().unwrap_or_default();
    blocks.into_iter().filter_map(Block::text).collect()
}

/// What matters of a content block.
#[derive(Deserialize)]
struct Block {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    text: Option<String>,
}

impl Block {
    fn text(self) -> Option<String> {
        self.text.filter(|_| self.kind == "text")
    }
}

fn no_blocks() -> Payload {
    Payload::from_value(&[(); 0]).unwrap_or_else(|_| Payload::string(""))
}

/// A result with nothing that is known of results of tools.
fn of_unknown_kind(whole: &Payload) -> Result<Payload, CallError> {
    let members = whole.parse::<BTreeMap<String, IgnoredAny>>();
    let members = members.map_err(|error| because(&error, whole))?;
    match members.keys().all(|name| matches!(name.as_str(), "_meta" | "resultType")) {
        true => Err(no_result()),
        false => carried(whole.clone()),
    }
}

fn no_result() -> CallError {
    CallError::Failed(NO_RESULT.to_owned())
}

fn is(flag: Option<&Payload>, text: &str) -> bool {
    flag.is_some_and(|flag| flag.as_str() == text)
}

fn because(error: &serde_json::Error, text: &Payload) -> CallError {
    unreadable(&message::why(error, text.as_bytes()))
}

fn unreadable(why: &str) -> CallError {
    CallError::Unanswered(message::unreadable_text(why))
}

/// A value that each reader of JSON can read, whichever it is.
fn carried(value: Payload) -> Result<Payload, CallError> {
    if check_depth(value.as_bytes(), RESULT_DEPTH).is_err() {
        let why = format!("The result is nested deeper than {RESULT_DEPTH} levels");
        return Err(CallError::Failed(why));
    }
    value.parse::<Readable>().map_err(|error| because(&error, &value))?;
    Ok(value)
}

/// Any JSON whose strings are text and whose numbers are no infinite ones. Nothing of it is kept.
struct Readable;

impl<'de> Deserialize<'de> for Readable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Readable {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        while map.next_entry::<Self, Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self, A::Error> {
        while items.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[allow(clippy::needless_pass_by_value, reason = "so it reads better")]
    fn read(result: Value, wraps: bool) -> Result<Value, String> {
        let read = returned(result.to_string(), wraps).map(|payload| payload.parse().unwrap());
        read.map_err(|error| match error {
            CallError::Failed(why) => why,
            error => panic!("{error:?}"),
        })
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
    fn what_is_no_result_of_a_tool_as_we_know_it_arrives_as_it_came() {
        let blocks = json!([{"type": "hologram", "data": 1}]);
        assert_eq!(read(json!({"content": blocks}), false), Ok(blocks.clone()));
        assert_eq!(read(json!({"content": blocks, "structuredContent": 0}), false), Ok(json!(0)));
        let error = read(json!({"content": blocks, "isError": true}), false).unwrap_err();
        assert!(error.contains("hologram"), "{error}");
        for odd in [json!({"toolResult": 1}), json!({"content": "plain"}), json!([1]), json!(1)] {
            let expected = odd.get("content").unwrap_or(&odd).clone();
            assert_eq!(read(odd, false), Ok(expected));
        }
        for no_result in [json!(null), json!({}), json!({"_meta": {}}), json!({"resultType": "x"})]
        {
            assert_eq!(read(no_result, false), Err(NO_RESULT.to_owned()));
        }
        assert_eq!(read(json!({"isError": false}), false), Ok(json!([])));
        let asks = read(json!({"resultType": "input_required", "content": []}), false);
        assert!(asks.unwrap_err().contains("asks back"));
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
