//! Text to message and back: the only place where the wire's JSON is read and written.
//!
//! Reading is lenient where that is safe (letter case, missing fields, unknown fields) and bounded in
//! size and nesting. Writing is strict and by hand, so that a payload which only passes through is
//! copied once, into the frame it leaves in.

mod about;

use bytes::Bytes;
use memchr::memchr2_iter;
use serde::de::DeserializeOwned;

pub use self::about::About;
use crate::id::{CallId, SessionId};
use crate::json_string;
use crate::message::{
    ActionResult, ClientMessage, Command, ResultStatus, ServerMessage, ServerMessageType,
};
use crate::payload::{self, Payload};

/// Largest message either way, in bytes: 100 MiB.
pub const MAX_MESSAGE_BYTES: usize = 100 * 1024 * 1024;

/// Largest message before registration, in bytes: 64 KiB.
pub const MAX_FIRST_MESSAGE_BYTES: usize = 64 * 1024;

/// Deepest nesting of a message to the server, in levels of arrays and objects.
pub const MAX_DEPTH: usize = 200;

/// How much deeper a message from the server may be nested: what passed at 200 levels in
/// COMMAND_RESULTS comes back three levels deeper inside a TASK_END.
pub const OUTCOME_DEPTH: usize = 8;

/// The most characters of an error text that go back to a peer.
const MAX_ERROR_CHARS: usize = 400;

/// The most characters of a field's path that go back to a peer.
const MAX_PATH_CHARS: usize = 120;

/// Bounds on what is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest text, in bytes.
    pub bytes: usize,
    /// Deepest nesting, in levels.
    pub depth: usize,
}

impl Limits {
    /// For messages to the server.
    pub const CLIENT_MESSAGE: Self = Self { bytes: MAX_MESSAGE_BYTES, depth: MAX_DEPTH };
    /// For messages from the server.
    pub const SERVER_MESSAGE: Self =
        Self { bytes: MAX_MESSAGE_BYTES, depth: MAX_DEPTH + OUTCOME_DEPTH };
}

/// Why a text is no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Longer than the limit.
    #[error("Message of {bytes} bytes is over the limit of {limit} bytes")]
    TooBig {
        /// Its length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// Nested deeper than the limit.
    #[error("Message is nested deeper than {limit} levels (at byte {at})")]
    TooDeep {
        /// Where the first level too many opens.
        at: usize,
        /// The limit.
        limit: usize,
    },
    /// Not JSON, or not a message: what is wrong and where.
    #[error("Invalid message: {0}")]
    Invalid(String),
}

/// A message that can be read off a frame and written to one.
pub trait Wire: DeserializeOwned + Send + 'static {
    /// The bounds for reading it.
    const LIMITS: Limits;

    /// Reads the text of one frame. Large payloads share the frame's memory.
    ///
    /// # Errors
    /// When the text is over the limits, no JSON, or not of this message's shape.
    fn decode(frame: &Bytes) -> Result<Self, DecodeError> {
        decode(frame, Self::LIMITS)
    }

    /// Writes the text of one frame, which is UTF-8.
    fn encode(&self) -> Bytes;
}

fn decode<M: DeserializeOwned>(frame: &Bytes, limits: Limits) -> Result<M, DecodeError> {
    if frame.len() > limits.bytes {
        return Err(DecodeError::TooBig { bytes: frame.len(), limit: limits.bytes });
    }
    check_depth(frame, limits.depth)?;
    check_object(frame)?;
    // Checked once for the whole, the strings need not be checked one by one.
    let text = payload::text(frame)
        .map_err(|error| DecodeError::Invalid(format!("not UTF-8: {error}")))?;
    payload::carried(frame, text, false, |text| serde_json::from_str(text))
        .map_err(|error| explain::<M>(text, &error))
}

/// Refuses an array: serde would read one as the fields in their order.
fn check_object(frame: &[u8]) -> Result<(), DecodeError> {
    match frame.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'[') => Err(DecodeError::Invalid("expected an object, not an array".to_owned())),
        _ => Ok(()),
    }
}

/// Reads a broken frame a second time, slower, to name the field that is wrong.
fn explain<M: DeserializeOwned>(text: &str, error: &serde_json::Error) -> DecodeError {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let path = serde_path_to_error::deserialize::<_, M>(&mut deserializer)
        .err()
        .map(|error| error.path().to_string())
        .filter(|path| path != "." && path != "?");
    let text = path.map_or_else(
        || error.to_string(),
        |path| format!("{}: {error}", shown(&path, MAX_PATH_CHARS)),
    );
    DecodeError::Invalid(shown(&text, MAX_ERROR_CHARS))
}

/// Whatever a peer wrote comes back on one line, and short: `most` characters, its escapes included.
fn shown(text: &str, most: usize) -> String {
    let shown = text.chars().flat_map(|c| {
        let escaped = c.is_control().then(|| c.escape_default());
        escaped.into_iter().flatten().chain((!c.is_control()).then_some(c))
    });
    shown.take(most).collect()
}

/// Refuses JSON text that is nested deeper than `limit` levels. Counts brackets first, which is several times
/// faster than telling strings apart, and enough for nearly every message.
///
/// # Errors
/// Where the first level too many opens.
pub fn check_depth(text: &[u8], limit: usize) -> Result<(), DecodeError> {
    // What opens must close, or it is no JSON.
    if text.len() <= 2 * limit {
        return Ok(());
    }
    if memchr2_iter(b'{', b'[', text).take(limit + 1).count() <= limit {
        return Ok(());
    }
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for (at, byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > limit {
            return Err(DecodeError::TooDeep { at, limit });
        }
    }
    Ok(())
}

/// What a frame says it is, off its first bytes, when [`encode_server`] wrote it; `None` for any other
/// text. For those who count frames that others have encoded.
#[must_use]
pub fn kind_of_server(frame: &[u8]) -> Option<ServerMessageType> {
    let word = frame.strip_prefix(br#"{"type":""#)?;
    let is = |kind: &ServerMessageType| {
        word.strip_prefix(kind.as_str().as_bytes()).is_some_and(|rest| rest.starts_with(b"\""))
    };
    ServerMessageType::ALL.iter().copied().find(is)
}

/// Writes the members of one JSON object, the unset ones left out.
pub(crate) struct Object<'a> {
    out: &'a mut Vec<u8>,
    empty: bool,
}

impl<'a> Object<'a> {
    pub(crate) fn open(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, empty: true }
    }

    pub(crate) fn close(self) {
        self.out.push(b'}');
    }

    /// `key` is a plain word of the protocol: it needs no escapes.
    pub(crate) fn key(&mut self, key: &str) -> &mut Vec<u8> {
        self.out.extend_from_slice(if self.empty { b"\"" } else { b",\"" });
        self.empty = false;
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
        self.out
    }

    pub(crate) fn string(&mut self, key: &str, text: &str) {
        json_string::write(self.key(key), text);
    }

    pub(crate) fn number(&mut self, key: &str, number: u64) {
        self.key(key).extend_from_slice(number.to_string().as_bytes());
    }

    /// `value` is of a type that can always be written.
    pub(crate) fn value<T: serde::Serialize>(&mut self, key: &str, value: &T) {
        let written = serde_json::to_writer(self.key(key), value);
        debug_assert!(written.is_ok());
    }

    fn word(&mut self, key: &str, word: &str) {
        let out = self.key(key);
        out.push(b'"');
        out.extend_from_slice(word.as_bytes());
        out.push(b'"');
    }

    fn maybe(&mut self, key: &str, text: Option<&str>) {
        if let Some(text) = text {
            self.string(key, text);
        }
    }

    fn payload(&mut self, key: &str, payload: Option<&Payload>) {
        // A `null` is an unset field.
        if let Some(payload) = payload.filter(|payload| !payload.is_null()) {
            self.key(key).extend_from_slice(payload.as_bytes());
        }
    }

    /// The last member, left out if nothing is written for it.
    fn last(mut self, key: &str, write: impl FnOnce(&mut Vec<u8>)) {
        let before = self.out.len();
        let start = self.key(key).len();
        write(self.out);
        if self.out.len() == start {
            self.out.truncate(before);
        }
        self.close();
    }

    fn list<T>(&mut self, key: &str, items: Option<&Vec<T>>, write: impl Fn(&mut Vec<u8>, &T)) {
        if let Some(items) = items {
            write_list(self.key(key), items, write);
        }
    }
}

/// Writes a JSON array.
pub fn write_list<T>(
    out: &mut Vec<u8>,
    items: impl IntoIterator<Item = T>,
    write: impl Fn(&mut Vec<u8>, T),
) {
    out.push(b'[');
    for (n, item) in items.into_iter().enumerate() {
        if n > 0 {
            out.push(b',');
        }
        write(out, item);
    }
    out.push(b']');
}

fn write_command(out: &mut Vec<u8>, command: &Command) {
    let mut object = Object::open(out);
    object.string("tool_name", &command.tool_name);
    object.payload("parameters", command.parameters.as_ref());
    object.word("tool_type", command.tool_type.as_str());
    object.maybe("call_id", command.call_id.as_ref().map(CallId::as_str));
    object.close();
}

/// The fields of a Result, borrowed from where they are kept.
#[derive(Debug, Clone, Copy)]
pub struct ResultFields<'a> {
    /// How it ended.
    pub status: ResultStatus,
    /// What went wrong.
    pub error: Option<&'a str>,
    /// What the tool returned.
    pub result: Option<&'a Payload>,
    /// Where the tool lives.
    pub namespace: Option<&'a str>,
    /// The id of the action.
    pub call_id: Option<&'a CallId>,
}

impl<'a> From<&'a ActionResult> for ResultFields<'a> {
    fn from(result: &'a ActionResult) -> Self {
        Self {
            status: result.status,
            error: result.error.as_deref(),
            result: result.result.as_ref(),
            namespace: result.namespace.as_deref(),
            call_id: result.call_id.as_ref(),
        }
    }
}

/// Writes a Result as the wire has it.
pub fn write_result(out: &mut Vec<u8>, result: ResultFields<'_>) {
    let mut object = Object::open(out);
    object.word("status", result.status.as_str());
    object.maybe("error", result.error);
    object.payload("result", result.result);
    object.maybe("namespace", result.namespace);
    object.maybe("call_id", result.call_id.map(CallId::as_str));
    object.close();
}

/// An outcome's `result`: `[{"request": TEXT, "result": …}]`, the inner value written by `value`.
pub fn write_outcome(out: &mut Vec<u8>, request: &str, value: impl FnOnce(&mut Vec<u8>)) {
    out.push(b'[');
    let mut object = Object::open(out);
    object.string("request", request);
    value(object.key("result"));
    object.close();
    out.push(b']');
}

/// Room that a message needs beside its payloads.
const ENVELOPE_BYTES: usize = 384;

impl Wire for ClientMessage {
    const LIMITS: Limits = Limits::CLIENT_MESSAGE;

    fn encode(&self) -> Bytes {
        encode_client(self, self.metadata.as_ref().map_or(0, Payload::len), |out| {
            write_payload(out, self.metadata.as_ref());
        })
    }
}

impl Wire for ServerMessage {
    const LIMITS: Limits = Limits::SERVER_MESSAGE;

    fn encode(&self) -> Bytes {
        encode_server(self, self.result.as_ref().map_or(0, Payload::len), |out| {
            write_payload(out, self.result.as_ref());
        })
    }
}

/// A `null` is an unset field.
fn write_payload(out: &mut Vec<u8>, payload: Option<&Payload>) {
    if let Some(payload) = payload.filter(|payload| !payload.is_null()) {
        out.extend_from_slice(payload.as_bytes());
    }
}

/// Writes a client message whose `metadata` is written by `metadata` straight into the frame; otherwise as
/// [`encode_server`].
pub(crate) fn encode_client(
    message: &ClientMessage,
    metadata_bytes: usize,
    metadata: impl FnOnce(&mut Vec<u8>),
) -> Bytes {
    let results = message.action_results.iter().flatten().map(ActionResult::bytes).sum::<usize>();
    let request = message.request.as_ref().map_or(0, String::len);
    let mut out = Vec::with_capacity(ENVELOPE_BYTES + results + request + metadata_bytes);
    let mut object = Object::open(&mut out);
    object.string("type", message.kind.as_str());
    object.word("status", message.status.as_str());
    object.word("client_type", message.client_type.as_str());
    object.maybe("session_id", message.session_id.as_ref().map(SessionId::as_str));
    object.maybe("task_name", message.task_name.as_deref());
    object.maybe("client_id", message.client_id.as_ref().map(|id| id.as_str()));
    object.maybe("target_id", message.target_id.as_ref().map(|id| id.as_str()));
    object.maybe("request", message.request.as_deref());
    object.list("action_results", message.action_results.as_ref(), |out, result| {
        write_result(out, result.into());
    });
    object.maybe("timestamp", message.timestamp.as_deref());
    object.maybe("request_id", message.request_id.as_ref().map(|id| id.as_str()));
    object.maybe("prev_response_id", message.prev_response_id.as_ref().map(|id| id.as_str()));
    object.maybe("error", message.error.as_deref());
    object.last("metadata", metadata);
    out.into()
}

/// Writes a server message whose `result` is written by `result` straight into the frame, so that a
/// large outcome is never held twice. When `result` writes nothing, the field is left out.
/// `result_bytes` is how much it will write, about.
pub fn encode_server(
    message: &ServerMessage,
    result_bytes: usize,
    result: impl FnOnce(&mut Vec<u8>),
) -> Bytes {
    let actions = message.actions.iter().flatten().map(command_bytes).sum::<usize>();
    let request = message.user_request.as_ref().map_or(0, String::len);
    let mut out = Vec::with_capacity(ENVELOPE_BYTES + result_bytes + actions + request);
    let mut object = Object::open(&mut out);
    object.word("type", message.kind.as_str());
    object.word("status", message.status.as_str());
    object.maybe("user_request", message.user_request.as_deref());
    object.maybe("agent_name", message.agent_name.as_deref());
    object.maybe("process_name", message.process_name.as_deref());
    object.maybe("root_name", message.root_name.as_deref());
    object.list("actions", message.actions.as_ref(), write_command);
    object.list("messages", message.messages.as_ref(), |out, line| json_string::write(out, line));
    object.maybe("error", message.error.as_deref());
    object.maybe("session_id", message.session_id.as_ref().map(SessionId::as_str));
    object.maybe("task_name", message.task_name.as_deref());
    object.maybe("timestamp", message.timestamp.as_deref());
    object.maybe("response_id", message.response_id.as_ref().map(|id| id.as_str()));
    object.last("result", result);
    out.into()
}

fn command_bytes(command: &Command) -> usize {
    command.parameters.as_ref().map_or(0, Payload::len) + command.tool_name.len() + 128
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Status;

    fn client(text: &str) -> Result<ClientMessage, DecodeError> {
        ClientMessage::decode(&Bytes::copy_from_slice(text.as_bytes()))
    }

    fn why(text: &str) -> String {
        client(text).unwrap_err().to_string()
    }

    #[test]
    fn reading_is_lenient_where_it_is_safe() {
        let message = client(r#"{"type":"HEARTBEAT","client_id":"","extra":[1]}"#).unwrap();
        assert_eq!(message.kind.as_str(), "heartbeat");
        assert_eq!(message.status.as_str(), "ok");
        assert_eq!(message.client_type.as_str(), "device");
        assert_eq!(message.client_id, None);
    }

    #[test]
    fn an_error_names_what_is_wrong_and_where() {
        assert_eq!(why("{not json"), "Invalid message: key must be a string at line 1 column 2");
        assert_eq!(why(""), "Invalid message: EOF while parsing a value at line 1 column 0");
        assert!(why(r#" ["heartbeat","ok"]"#).contains("expected an object"));
        assert!(why(r#"{"status":"ok"}"#).contains("missing field `type`"));
        let nested = r#"{"type":"command_results","action_results":[{"status":"maybe"}]}"#;
        assert!(why(nested).contains("action_results[0].status"), "{}", why(nested));
        assert!(why(nested).contains("`success`"), "{}", why(nested));
        let id = format!(r#"{{"type":"task","session_id":"{}"}}"#, "x".repeat(300));
        assert!(why(&id).contains("session_id: an id must be"), "{}", why(&id));
        assert!(why(r#"{"type":"register","metadata":[]}"#).contains("expected an object"));
        assert!(why(&format!(r#"{{"type":{{}},"x":"{}"}}"#, "y".repeat(9000))).len() < 600);
    }

    #[test]
    fn a_frame_of_a_server_says_what_it_is_in_its_first_bytes() {
        for kind in ServerMessageType::ALL {
            let frame = ServerMessage::new(*kind, Status::Ok).encode();
            assert_eq!(kind_of_server(&frame), Some(*kind));
        }
        for other in [&b""[..], b"{}", br#"{"type":"#, br#"{"type":"task"#, br#"{"type":"tasks"}"#]
        {
            assert_eq!(kind_of_server(other), None);
        }
    }

    #[test]
    fn nesting_up_to_the_limit_passes_unchanged() {
        let frame = |levels: usize| {
            let value = format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
            format!(r#"{{"type":"error","metadata":{{"a":{value}}}}}"#)
        };
        let message = client(&frame(MAX_DEPTH - 2)).unwrap();
        assert!(
            std::str::from_utf8(&message.encode()).unwrap().contains(&"[".repeat(MAX_DEPTH - 2))
        );
        assert!(why(&frame(MAX_DEPTH - 1)).contains("nested deeper than 200 levels"));
        let brackets_in_text = format!(r#"{{"type":"error","error":"{}\"["}}"#, "[".repeat(999));
        assert!(client(&brackets_in_text).is_ok());
    }

    #[test]
    fn a_text_over_the_size_limit_is_refused_before_it_is_read() {
        let frame = Bytes::from_static(b"{\"type\":\"heartbeat\"}");
        let limits = Limits { bytes: 10, depth: 2 };
        let error = decode::<ClientMessage>(&frame, limits).unwrap_err();
        assert_eq!(error, DecodeError::TooBig { bytes: frame.len(), limit: 10 });
    }
}
