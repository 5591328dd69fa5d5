//! What the extension adds to a task: its settings, its acceptance or refusal, and its cancelling.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize};

use super::{Keyed, Streams};
use crate::id::RequestId;
use crate::payload::Payload;

/// What a requester may set for one task, as `metadata.flightdeck` of its TASK.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(expecting = "an object")]
pub struct TaskSettings {
    /// Longest time for one command of the task, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command_timeout_s: Option<f64>,
    /// Whether it wants no limit but that: what the server takes where a task says nothing does not count. Limits that
    /// the server's owner has set stand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_time_limit: Option<bool>,
    /// What becomes of it when its requester's connection is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_disconnect: Option<OnDisconnect>,
    /// The streams that it asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streams: Option<Streams>,
    /// The store id under which it was first sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    /// The task that is asked after; such a TASK starts nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
}

impl TaskSettings {
    /// What a TASK sets, read out of its `metadata`.
    ///
    /// # Errors
    /// When something of it has the wrong shape.
    pub fn of(metadata: Option<&Payload>) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Metadata {
            #[serde(default)]
            flightdeck: Option<TaskSettings>,
        }

        let Some(metadata) = metadata else { return Ok(Self::default()) };
        let read: Metadata = metadata
            .parse()
            .map_err(|error| format!("Invalid message: metadata.flightdeck: {error}"))?;
        Ok(read.flightdeck.unwrap_or_default())
    }

    /// All that a TASK sets, each setting as it was written, but for `store` and `task`, which change when it is sent
    /// again; one that is `null` is none. `None` of a TASK without settings.
    #[must_use]
    pub fn as_sent(metadata: Option<&Payload>) -> Option<BTreeMap<String, Payload>> {
        let mut sent = metadata?.parse::<Keyed<BTreeMap<String, Payload>>>().ok()?.flightdeck;
        sent.retain(|name, value| !value.is_null() && name != "store" && name != "task");
        Some(sent)
    }

    /// Longest time for one command.
    ///
    /// # Errors
    /// When the number is no length of time.
    pub fn command_timeout(&self) -> Result<Option<Duration>, String> {
        let seconds = self.command_timeout_s.map(Duration::try_from_secs_f64).transpose();
        seconds.map_err(|_| "command_timeout_s must be a length of time in seconds".to_owned())
    }

    /// As `metadata` of a TASK.
    #[must_use]
    pub fn to_metadata(&self) -> Option<Payload> {
        Payload::from_value(&Keyed { flightdeck: self }).ok()
    }
}

/// What becomes of a task when its requester's connection is lost and not taken over: on the wire `"cancel"`,
/// `{"cancel_after_s":N}` or `"continue"`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnDisconnect {
    /// It is cancelled.
    #[default]
    Cancel,
    /// It goes on.
    Continue,
    /// It is cancelled unless the requester is back within this time.
    #[serde(untagged)]
    After(CancelAfter),
}

/// After how long a task is cancelled whose requester stays away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CancelAfter {
    /// In seconds.
    pub cancel_after_s: u32,
}

impl OnDisconnect {
    /// Cancelled unless the requester is back within so many seconds.
    #[must_use]
    pub const fn after(cancel_after_s: u32) -> Self {
        Self::After(CancelAfter { cancel_after_s })
    }
}

impl<'de> Deserialize<'de> for OnDisconnect {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Shape {
            Word(String),
            After(CancelAfter),
        }

        let wrong = "on_disconnect must be \"cancel\", {\"cancel_after_s\":N} or \"continue\"";
        match Shape::deserialize(deserializer).map_err(|_| de::Error::custom(wrong))? {
            Shape::Word(word) if word == "cancel" => Ok(Self::Cancel),
            Shape::Word(word) if word == "continue" => Ok(Self::Continue),
            Shape::Word(_) => Err(de::Error::custom(wrong)),
            Shape::After(after) => Ok(Self::After(after)),
        }
    }
}

macro_rules! under_key {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        impl $name {
            $(#[$doc])*
            #[must_use]
            pub fn to_payload(&self) -> Option<Payload> {
                Payload::from_value(&Keyed { flightdeck: self }).ok()
            }

            /// The same, read again.
            #[must_use]
            pub fn of(payload: Option<&Payload>) -> Option<Self> {
                payload?.parse::<Keyed<Self>>().ok().map(|keyed| keyed.flightdeck)
            }
        }
    )*};
}

under_key! {
    /// As the `result` of an ACK.
    Accepted
    /// As the `result` of an ERROR.
    TaskRefused
    /// As the `result` of the answer to COMMAND_RESULTS.
    ResultAck
    /// As the `metadata` of a client's TASK_END.
    Cancel
}

/// The acceptance of a task, in its ACK.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The server's id of the task, *T*.
    pub task: String,
    /// The request that it was accepted for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// The streams that it gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streams: Option<Streams>,
}

/// The refusal of a task, in the ERROR to an `ack` requester.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRefused {
    /// The request that is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// What the refusal means.
    pub refused: Refused,
}

/// What the refusal of a task means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refused {
    /// It will not be accepted.
    Final,
    /// It may be accepted later.
    Retry,
    /// It was accepted once, and the server has lost it: its outcome is unknown.
    Lost,
}

/// What became of results, in the answer to COMMAND_RESULTS of an `ack` device. Each lets the device forget them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultAck {
    /// What.
    pub result: Taken,
}

/// Whether results settled their command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Taken {
    /// They did.
    Accepted,
    /// Something else had.
    Late,
    /// There is no such command.
    Unknown,
}

/// A requester's wish that a task ends, or a device's word on what it stopped, in a client's TASK_END.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// Which.
    pub cancel: Word,
}

/// What is said of a cancel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// A requester: cancel this task.
    Request,
    /// A device: it was stopped.
    Stopped,
    /// A device: it had finished.
    Finished,
    /// A device: it could not be stopped.
    CouldNotStop,
}

impl Word {
    /// As the wire has it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Stopped => "stopped",
            Self::Finished => "finished",
            Self::CouldNotStop => "could_not_stop",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_becomes_of_a_task_without_its_requester_has_three_forms() {
        for (text, meant) in [
            (r#""cancel""#, OnDisconnect::Cancel),
            (r#""continue""#, OnDisconnect::Continue),
            (r#"{"cancel_after_s":60}"#, OnDisconnect::after(60)),
        ] {
            let read: OnDisconnect = serde_json::from_str(text).unwrap();
            assert_eq!(read, meant);
            assert_eq!(serde_json::to_string(&read).unwrap(), text);
        }
        for wrong in [r#""stay""#, r#"{"cancel_after_s":-1}"#, "5", r#"{"after":1}"#] {
            let error = serde_json::from_str::<OnDisconnect>(wrong).unwrap_err().to_string();
            assert!(error.contains("on_disconnect must be"), "{error}");
        }
    }

    #[test]
    fn what_a_task_sets_is_told_apart_as_it_was_written() {
        let sent =
            |text: &'static str| TaskSettings::as_sent(Some(&Payload::from_text(text).unwrap()));
        let with = r#"{"flightdeck":{"on_disconnect":"cancel","x":{"b":1,"a":2},"store":"s"}}"#;
        let again = r#"{"flightdeck": {"task":"t","x":{"b":1,"a":2}, "on_disconnect":"cancel"}}"#;
        assert_eq!(sent(with), sent(again));
        let without = r#"{"flightdeck":{"x":{"b":1,"a":2},"on_disconnect":null}}"#;
        assert_ne!(sent(with), sent(without), "what is not said differs from its default");
        assert_eq!(sent(r#"{"flightdeck":{"store":"s"}}"#), Some(BTreeMap::new()));
        assert_eq!(sent(r#"{"other":1}"#), None);
        assert_eq!(TaskSettings::as_sent(None), None);
    }

    #[test]
    fn what_stands_under_the_key_is_read_as_it_was_written() {
        let ack = ResultAck { result: Taken::Late };
        let payload = ack.to_payload().unwrap();
        assert_eq!(payload.as_str(), r#"{"flightdeck":{"result":"late"}}"#);
        assert_eq!(ResultAck::of(Some(&payload)), Some(ack));
        let word = Cancel { cancel: Word::CouldNotStop }.to_payload().unwrap();
        assert_eq!(word.as_str(), r#"{"flightdeck":{"cancel":"could_not_stop"}}"#);
    }
}
