//! What an MCP server wrote, read more leniently than the library reads it. The library passes over what it
//! cannot read, and whoever waits for that answer would wait in vain: here each answer of which can be told
//! whose it is comes to something, if only to the reason why it cannot be read.

use std::borrow::Cow;

use rmcp::model::{
    CustomRequest, CustomResult, ErrorCode, ErrorData, JsonRpcError, JsonRpcMessage, RequestId,
    ServerJsonRpcMessage, ServerNotification, ServerRequest, ServerResult,
};
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

/// The largest message that a server may write, in MiB. What fits a message of ours (100 MiB) may come in it
/// twice: FastMCP sends a result as text and as structured content.
pub(super) const MAX_MESSAGE_MIB: usize = 256;

/// The same in bytes.
pub(super) const MAX_MESSAGE_BYTES: usize = MAX_MESSAGE_MIB << 20;

/// The largest result that the library is left to read where we can read it as well, in bytes: it takes many
/// times the size of what it reads.
const MAX_LEFT_TO_LIBRARY: usize = 4 << 20;

/// How the reason begins why an answer cannot be read.
const UNREADABLE: &str = "its answer could not be read: ";

/// How much is shown before and after the place of a mistake, in bytes.
const SHOWN_BEFORE: usize = 20;
const SHOWN_AFTER: usize = 10;

/// The most of a passed over line that is logged, in bytes.
const LOGGED_BYTES: usize = 200;

/// UTF-8's byte order mark, which a reader of JSON may pass over.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// As what the result of an answer is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// As the library reads it.
    Read,
    /// As the text that it came as, in a [`CustomResult`].
    Text,
    /// A list of tools as the library reads it, which notes what it needs of them for its requests over HTTP;
    /// as text where it is large, or the library does not take it for one.
    ListOrText,
}

/// Reads one message; `form` says what becomes of the result of the answer with this id. None for what is no
/// message.
///
/// Of an answer with both an error and a result, or with neither `jsonrpc` nor the exact form of an error, is
/// taken what there is. One that cannot be read at all becomes an error for which [`is_unreadable`] holds, and
/// a question that cannot becomes one that the library refuses.
pub(super) fn read(text: &[u8], form: impl Fn(&RequestId) -> Form) -> Option<ServerJsonRpcMessage> {
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text).trim_ascii();
    let message = match text.first() {
        None => return None,
        Some(b'{') => match serde_json::from_slice::<Envelope<'_>>(text) {
            Ok(envelope) => envelope.open(text, form),
            Err(error) => Glimpse::of(text).message(&why(&error, text)),
        },
        Some(_) => None,
    };
    if message.is_none() {
        let line = String::from_utf8_lossy(&text[..text.len().min(LOGGED_BYTES)]);
        tracing::debug!(line = %line.escape_debug(), "passed over what is no message");
    }
    message
}

/// An answer that cannot be read.
pub(super) fn unreadable(id: RequestId, why: &str) -> ServerJsonRpcMessage {
    let error = ErrorData::new(ErrorCode::PARSE_ERROR, unreadable_text(why), None);
    JsonRpcMessage::error(error, Some(id))
}

/// The same in words.
pub(super) fn unreadable_text(why: &str) -> String {
    format!("{UNREADABLE}{why}")
}

/// Whether an error stands for an answer that could not be read.
pub(super) fn is_unreadable(error: &ErrorData) -> bool {
    error.code == ErrorCode::PARSE_ERROR && error.message.starts_with(UNREADABLE)
}

/// The id of an answer as we gave it: ours are numbers, and some servers send them back as strings.
pub(super) fn given(id: RequestId) -> RequestId {
    match &id {
        RequestId::String(text) => text.parse().map_or(id, RequestId::Number),
        RequestId::Number(_) => id,
    }
}

/// What is wrong with a JSON text, and near what.
pub(super) fn why(error: &serde_json::Error, text: &[u8]) -> String {
    let told = error.to_string();
    let Some((told, _position)) = told.rsplit_once(" at line ") else { return told };
    let line = text.split(|byte| *byte == b'\n').nth(error.line().saturating_sub(1));
    let line = line.unwrap_or_default();
    let at = error.column().min(line.len());
    let near = &line[at.saturating_sub(SHOWN_BEFORE)..line.len().min(at + SHOWN_AFTER)];
    let near = String::from_utf8_lossy(near);
    // A character that is cut at either end.
    let near = near.trim_matches(char::REPLACEMENT_CHARACTER);
    format!("{told} near '{}'", escaped(near))
}

/// A text as it may be shown on a terminal.
pub(super) fn escaped(text: &str) -> String {
    text.chars().map(shown).collect()
}

/// A character as it may be shown on a terminal.
fn shown(letter: char) -> String {
    match letter {
        '"' | '\'' | '\\' => letter.to_string(),
        _ => letter.escape_debug().to_string(),
    }
}

/// The outermost members of a message, with what matters of their values.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(default)]
    jsonrpc: Option<IgnoredAny>,
    #[serde(default)]
    id: Option<RequestId>,
    #[serde(default, borrow)]
    method: Option<Cow<'a, str>>,
    #[serde(default, borrow, deserialize_with = "present")]
    result: Option<&'a RawValue>,
    #[serde(default, borrow)]
    error: Option<&'a RawValue>,
}

/// `null` is a result too.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl Envelope<'_> {
    fn open(self, text: &[u8], form: impl Fn(&RequestId) -> Form) -> Option<ServerJsonRpcMessage> {
        match (self.method, self.id) {
            (Some(method), Some(id)) => {
                let question = serde_json::from_slice::<ServerRequest>(text);
                Some(question.map_or_else(
                    |_| refused(id.clone(), &method),
                    |question| JsonRpcMessage::request(question, id.clone()),
                ))
            }
            (Some(_), None) => serde_json::from_slice::<ServerNotification>(text)
                .ok()
                .map(JsonRpcMessage::notification),
            // The library takes an error without an id for the answer to its greeting.
            (None, None) => {
                serde_json::from_slice::<JsonRpcError>(text).ok().map(JsonRpcMessage::Error)
            }
            (None, Some(id)) => {
                let id = given(id);
                let form = form(&id);
                match (self.error, self.result) {
                    (Some(error), _) => Some(JsonRpcMessage::error(told(error), Some(id))),
                    (None, Some(result)) => Some(answer(id, result, form)),
                    (None, None) if self.jsonrpc.is_some() => {
                        Some(unreadable(id, "it has neither a result nor an error"))
                    }
                    (None, None) => None,
                }
            }
        }
    }
}

fn answer(id: RequestId, result: &RawValue, form: Form) -> ServerJsonRpcMessage {
    let text = result.get();
    if form == Form::Text || (form == Form::ListOrText && text.len() > MAX_LEFT_TO_LIBRARY) {
        return kept(id, text);
    }
    match (serde_json::from_str(text), form) {
        (Ok(list @ ServerResult::ListToolsResult(_)), _) => JsonRpcMessage::response(list, id),
        (_, Form::ListOrText) => kept(id, text),
        (Ok(result), _) => JsonRpcMessage::response(result, id),
        (Err(error), _) => unreadable(id, &why(&error, text.as_bytes())),
    }
}

/// An answer whose result is the text that it came as.
fn kept(id: RequestId, text: &str) -> ServerJsonRpcMessage {
    let result = CustomResult::new(Value::String(text.to_owned()));
    JsonRpcMessage::response(ServerResult::CustomResult(result), id)
}

/// The text of a result, of one that is kept as text the very text.
///
/// # Errors
/// When it cannot be written as JSON.
pub(super) fn text_of(result: ServerResult) -> serde_json::Result<String> {
    match result {
        ServerResult::CustomResult(CustomResult(Value::String(text))) => Ok(text),
        result => serde_json::to_string(&result),
    }
}

/// An error as it should be, else its message, else all that was sent for one.
fn told(error: &RawValue) -> ErrorData {
    #[derive(Deserialize)]
    struct Told {
        message: String,
    }

    let text = error.get();
    serde_json::from_str(text).unwrap_or_else(|_| {
        let message = serde_json::from_str::<Told>(text).map(|told| told.message);
        let message = message.or_else(|_| serde_json::from_str(text));
        ErrorData::internal_error(message.unwrap_or_else(|_| text.to_owned()), None)
    })
}

/// A question without its arguments: the library answers that nobody here knows it.
fn refused(id: RequestId, method: &str) -> ServerJsonRpcMessage {
    let question = ServerRequest::CustomRequest(CustomRequest::new(method, None));
    JsonRpcMessage::request(question, id)
}

/// What can be told of an object that is no JSON.
#[derive(Default)]
struct Glimpse {
    id: Option<RequestId>,
    method: Option<String>,
    is_answer: bool,
}

impl Glimpse {
    /// Looks for the outermost members: each string that a colon follows is the name of one.
    fn of(text: &[u8]) -> Self {
        let (mut glimpse, mut depth, mut at) = (Self::default(), 0_usize, 0);
        while let Some(byte) = text.get(at) {
            let next = match byte {
                b'"' => string_end(text, at),
                _ => at + 1,
            };
            match byte {
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth = depth.saturating_sub(1),
                b'"' if depth == 1 => {
                    glimpse.note(&text[at..next], text[next..].trim_ascii_start());
                }
                _ => {}
            }
            at = next;
        }
        glimpse
    }

    /// Takes up a name, if it is one, and what begins with its value. Of two the first counts.
    fn note(&mut self, name: &[u8], rest: &[u8]) {
        let Some(value) = rest.strip_prefix(b":") else { return };
        let value = value.trim_ascii_start();
        match name {
            b"\"id\"" if self.id.is_none() => self.id = serde_json::from_slice(token(value)).ok(),
            b"\"method\"" if self.method.is_none() => {
                self.method = Some(serde_json::from_slice(token(value)).unwrap_or_default());
            }
            b"\"jsonrpc\"" | b"\"result\"" | b"\"error\"" => self.is_answer = true,
            _ => {}
        }
    }

    fn message(self, why: &str) -> Option<ServerJsonRpcMessage> {
        match (self.id?, self.method) {
            (id, Some(method)) => Some(refused(id, &method)),
            (id, None) => self.is_answer.then(|| unreadable(given(id), why)),
        }
    }
}

/// Where the string ends that begins here, or the text.
fn string_end(text: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(byte) = text.get(at) {
        match byte {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

/// A string, number or word at the beginning of a text.
fn token(text: &[u8]) -> &[u8] {
    match text.first() {
        Some(b'"') => &text[..string_end(text, 0)],
        _ => {
            let ends = |byte: &u8| matches!(byte, b',' | b'}' | b']') || byte.is_ascii_whitespace();
            &text[..text.iter().position(ends).unwrap_or(text.len())]
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn glimpse(text: &[u8]) -> (Option<RequestId>, Option<String>, bool) {
        let glimpse = Glimpse::of(text);
        (glimpse.id, glimpse.method, glimpse.is_answer)
    }

    #[test]
    fn of_what_is_no_json_it_is_told_whose_it_is() {
        let one = || Some(RequestId::Number(1));
        for (text, seen) in [
            (&b"{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":NaN}"[..], (one(), None, true)),
            (
                b"{ \"result\" : [{\"id\":2},\"id\",\"\\\"id\\\":3\xff\t\"] , \"id\" : 1 ",
                (one(), None, true),
            ),
            (
                b"{\"result\":{\"method\":\"m\"},\"id\":\"1\"",
                (Some(RequestId::String("1".into())), None, true),
            ),
            (b"{\"id\":1,\"method\":\"m\",\"params\":NaN}", (one(), Some("m".to_owned()), false)),
            (b"{\"id\":1,\"name\":NaN}", (one(), None, false)),
            (b"{\"id\":1.5,\"result\":NaN}", (None, None, true)),
            (b"{\"id\":", (None, None, false)),
            (b"{\"\\", (None, None, false)),
            (b"}}}{\"id\":1}", (one(), None, false)),
        ] {
            assert_eq!(glimpse(text), seen, "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn a_mistake_is_shown_with_what_stands_around_it() {
        let text = "{\n\"ä\u{1b}\": [1, 2, é]}";
        let error = serde_json::from_str::<IgnoredAny>(&text.replace('\u{1b}', "")).unwrap_err();
        let told = why(&error, text.replace('\u{1b}', "").as_bytes());
        assert_eq!(told, r#"expected value near '"ä": [1, 2, é]}'"#);
    }

    proptest! {
        #[test]
        fn no_text_is_too_odd(text: Vec<u8>, start in 0..40_usize) {
            let message = br#"{"jsonrpc":"2.0","id":1,"result":{"a":["\u00e9",1]}}"#;
            let mut text = text;
            text.splice(0..0, message[..start].iter().copied());
            let _message = read(&text, |_| Form::Text);
        }
    }
}
