//! What can be told of a message that cannot be read: enough to answer whoever waits for it.
//!
//! It takes what it can get: whatever is wrong with one field says nothing about the others, and of broken
//! JSON all counts that comes before the fault.

use std::fmt;

use bytes::Bytes;
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::value::RawValue;

use super::{ENVELOPE_BYTES, Object, Wire, write_list};
use crate::id::{ClientId, ResponseId, SessionId};
use crate::message::{
    ClientMessageType, ClientType, MAX_RESULTS, ResultStatus, ServerMessage, Status,
};
use crate::payload::Payload;

/// The longest id that is sent back to whoever chose it, in bytes of its JSON. So a COMMAND with as many of
/// them as it may have can still be answered in one message.
const MAX_ECHO_BYTES: usize = 4096;

/// What a message that cannot be read is about, as far as it can be told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct About {
    /// Its type, as the sender wrote it.
    pub kind: Option<String>,
    /// How it stands, if that is a word of the protocol.
    pub status: Option<Status>,
    /// The session it names, if that is an id.
    pub session_id: Option<SessionId>,
    /// The message it answers, of a message to the server, if that is an id.
    pub prev_response_id: Option<ResponseId>,
    echo: Echo,
}

/// Ids as they came, to be sent back: they may be none that this crate lets in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Echo {
    session_id: Option<Payload>,
    response_id: Option<Payload>,
    /// Of a COMMAND, one for each action.
    call_ids: Vec<Option<Payload>>,
}

impl About {
    /// Reads what there is to read of a frame that is no message.
    #[must_use]
    pub fn of(frame: &[u8]) -> Self {
        let mut about = Self::default();
        let mut json = serde_json::Deserializer::from_slice(frame);
        // What is wrong with the frame is known already.
        let _as_far_as_it_goes =
            Fields(|name: &str, value| about.take(name, value)).deserialize(&mut json);
        about
    }

    /// Whether its type is this one, in any letter case.
    #[must_use]
    pub fn is(&self, kind: &str) -> bool {
        self.kind.as_deref().is_some_and(|word| word.eq_ignore_ascii_case(kind))
    }

    /// The text of the COMMAND_RESULTS that answer it, if it is a COMMAND: each of its actions has failed with
    /// `error`. They bear its ids as they came, also such as this crate does not let in, up to 4 KiB each;
    /// its server knows them. If its actions cannot be told apart, or are too many, one result says it for all.
    #[must_use]
    pub fn refusal(&self, client_id: &ClientId, timestamp: &str, error: &str) -> Bytes {
        let Echo { session_id, response_id, call_ids } = &self.echo;
        let one = [None];
        let call_ids = if call_ids.is_empty() { &one[..] } else { call_ids };
        let status = self.status.unwrap_or(Status::Continue);
        let mut out = Vec::with_capacity(ENVELOPE_BYTES * (1 + call_ids.len()));
        let mut object = Object::open(&mut out);
        object.string("type", ClientMessageType::CommandResults.as_str());
        object.word("status", status.as_str());
        object.word("client_type", ClientType::Device.as_str());
        object.payload("session_id", session_id.as_ref());
        object.string("client_id", client_id.as_str());
        write_list(object.key("action_results"), call_ids, |out, call_id| {
            let mut result = Object::open(out);
            result.word("status", ResultStatus::Failure.as_str());
            result.string("error", error);
            result.payload("call_id", call_id.as_ref());
            result.close();
        });
        object.string("timestamp", timestamp);
        object.payload("prev_response_id", response_id.as_ref());
        object.close();
        out.into()
    }

    /// The text of a message about the session it names, if that is none that this crate lets in: the message,
    /// which names none itself, with its id as it came.
    #[must_use]
    pub fn in_odd_session(&self, message: &ServerMessage) -> Option<Bytes> {
        let id = self.echo.session_id.as_ref().filter(|_| self.session_id.is_none())?;
        let mut out = Vec::from(message.encode());
        // Its closing brace.
        out.pop();
        for part in [b",\"session_id\":", id.as_bytes(), b"}"] {
            out.extend_from_slice(part);
        }
        Some(out.into())
    }

    fn take(&mut self, name: &str, value: &RawValue) {
        match name {
            "type" => self.kind = text(value),
            "status" => self.status = serde_json::from_str(value.get()).ok(),
            "session_id" => {
                self.session_id = text(value).and_then(|id| SessionId::new(&id).ok());
                self.echo.session_id = echo(value);
            }
            "prev_response_id" => {
                self.prev_response_id = text(value).and_then(|id| ResponseId::new(&id).ok());
            }
            "response_id" => self.echo.response_id = echo(value),
            "actions" => {
                let actions = serde_json::from_str::<CallIds>(value.get());
                self.echo.call_ids = actions.map(|ids| ids.0).unwrap_or_default();
            }
            _ => {}
        }
    }
}

/// A text that is one.
fn text(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

/// An id that can be sent back: a string that each reader of JSON can read (half a surrogate pair is none),
/// neither empty nor too long.
fn echo(value: &RawValue) -> Option<Payload> {
    let json = value.get();
    let is_one = (3..=MAX_ECHO_BYTES).contains(&json.len()) && text(value).is_some();
    is_one.then(|| Payload::from_text(json.to_owned()).ok()).flatten()
}

/// Hands each member of an object to a function.
struct Fields<F>(F);

impl<'de, F: FnMut(&str, &'de RawValue)> DeserializeSeed<'de> for Fields<F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, F: FnMut(&str, &'de RawValue)> Visitor<'de> for Fields<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some((name, value)) = map.next_entry::<String, &'de RawValue>()? {
            (self.0)(&name, value);
        }
        Ok(())
    }
}

/// The `call_id` of each item of a list, if it is an object that has one; nothing, if there are more items than
/// a message has results.
struct CallIds(Vec<Option<Payload>>);

impl<'de> Deserialize<'de> for CallIds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(CallIdsVisitor)
    }
}

struct CallIdsVisitor;

impl<'de> Visitor<'de> for CallIdsVisitor {
    type Value = CallIds;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<CallIds, A::Error> {
        let mut ids = Vec::new();
        while let Some(item) = items.next_element::<&'de RawValue>()? {
            if ids.len() == MAX_RESULTS {
                while items.next_element::<IgnoredAny>()?.is_some() {}
                return Ok(CallIds(Vec::new()));
            }
            ids.push(call_id(item));
        }
        Ok(CallIds(ids))
    }
}

fn call_id(action: &RawValue) -> Option<Payload> {
    let mut id = None;
    let mut json = serde_json::Deserializer::from_str(action.get());
    let take = |name: &str, value| {
        if name == "call_id" {
            id = echo(value);
        }
    };
    Fields(take).deserialize(&mut json).ok()?;
    id
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn answer(frame: &str) -> Value {
        let client_id = ClientId::new("d").unwrap();
        let answer = About::of(frame.as_bytes()).refusal(&client_id, "now", "bad");
        serde_json::from_slice(&answer).unwrap()
    }

    fn failure(call_id: Value) -> Value {
        match call_id {
            Value::Null => json!({"status": "failure", "error": "bad"}),
            call_id => json!({"status": "failure", "error": "bad", "call_id": call_id}),
        }
    }

    #[test]
    fn it_is_known_what_it_is_about() {
        let frame = br#"{"type":"COMMAND_RESULTS","session_id":"S","prev_response_id":"R",
            "action_results":[{"status":"weird"}]}"#;
        let about = About::of(frame);
        assert!(about.is("command_results"));
        let ids = (about.session_id.unwrap(), about.prev_response_id.unwrap());
        assert_eq!((ids.0.as_str(), ids.1.as_str()), ("S", "R"));
        assert_eq!(About::of(b"{oops"), About::default());
        assert_eq!(About::of(br#"["task","S","R"]"#), About::default());
    }

    #[test]
    fn one_bad_field_says_nothing_about_the_others() {
        let long = "x".repeat(300);
        for id in [json!(long), json!("a\nb"), json!(7), Value::Null] {
            let frame = json!({"type": "task", "session_id": id, "status": "oops", "prev_response_id": "R"});
            let about = About::of(frame.to_string().as_bytes());
            assert_eq!((about.session_id.as_ref(), about.status), (None, None), "{id}");
            assert!(about.is("task") && about.prev_response_id.is_some(), "{id}");
        }
        let deep = format!(r#"{{"x":{}1{},"type":"task"}}"#, "[".repeat(9999), "]".repeat(9999));
        let broken = r#"{"type":"task","session_id":"S","request":"..."#;
        for frame in [&deep, broken, r#"{"type":1,"type":"task"} x"#] {
            assert!(About::of(frame.as_bytes()).is("task"), "{frame}");
        }
    }

    #[test]
    fn a_command_is_answered_with_its_ids_as_they_came() {
        let (odd, long) = ("a\u{1}\u{7f}é\"", "i".repeat(300));
        let actions = json!([{"tool_type": "weird", "call_id": odd}, {"call_id": long}, {"call_id": 1}, "no"]);
        let frame = json!({"type": "Command", "status": "completed", "session_id": long,
            "response_id": odd, "actions": actions});
        let results = [json!(odd), json!(long), Value::Null, Value::Null].map(failure);
        let expected = json!({"type": "command_results", "status": "completed", "client_type": "device",
            "session_id": long, "client_id": "d", "action_results": results, "timestamp": "now",
            "prev_response_id": odd});
        assert_eq!(answer(&frame.to_string()), expected);
    }

    #[test]
    fn an_id_that_not_every_reader_can_read_is_not_sent_back() {
        let frame =
            r#"{"type":"command","session_id":"\ud83d","response_id":"\ud83d\ude00","actions":[]}"#;
        let answer = answer(frame);
        assert_eq!(
            (&answer["session_id"], &answer["prev_response_id"]),
            (&Value::Null, &json!("😀"))
        );
        let about = About::of(frame.as_bytes());
        let error = ServerMessage::error("bad", None);
        assert_eq!(about.in_odd_session(&error), None);
    }

    #[test]
    fn a_command_whose_actions_or_ids_cannot_be_told_is_answered_all_the_same() {
        let too_long = "i".repeat(MAX_ECHO_BYTES);
        let many = vec![json!({"call_id": "C"}); MAX_RESULTS + 1];
        for actions in [json!({"call_id": "C"}), Value::Null, json!([]), json!(many)] {
            let frame = json!({"type": "command", "response_id": too_long, "actions": actions});
            let answer = answer(&frame.to_string());
            assert_eq!(answer["action_results"], json!([failure(Value::Null)]));
            assert_eq!(
                (&answer["prev_response_id"], &answer["status"]),
                (&Value::Null, &json!("continue"))
            );
        }
    }
}
