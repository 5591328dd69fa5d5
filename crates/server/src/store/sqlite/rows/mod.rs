//! What stands in the rows: the records of a batch as JSON, in types of the store's own, and what is large in files
//! beside.

mod decode;
mod encode;

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::Duration;

use aip::message::{Feature, JournalId, OnDisconnect, Streams};
use aip::{CallId, ClientId, ClientType, Payload, RequestId, ResponseId, SessionId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub(super) use self::decode::{Decoder, damaged};
pub(super) use self::encode::{Encoded, EncodedTask, encode, is_large};
use crate::session::{CallStatus, Incarnation};
use crate::store::Ending;

/// Payloads over this size stand in a file of their own, in bytes: a large commit would hold up the small ones.
pub(super) const LARGE_BYTES: usize = 256 * 1024;

/// Names a file beside the database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileRef {
    pub(super) name: String,
    pub(super) bytes: usize,
    pub(super) crc: u32,
}

/// A payload, where it stands.
#[derive(Serialize, Deserialize)]
enum Part {
    #[serde(rename = "v")]
    Value(Payload),
    #[serde(rename = "f")]
    File(FileRef),
}

/// A task's columns of which nothing is asked, but for its request.
#[derive(Serialize, Deserialize)]
struct TaskRow<'a> {
    session: SessionId,
    name: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    client: Option<ClientId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    http: Option<Cow<'a, str>>,
    device: ClientId,
    agent: Cow<'a, str>,
    timeout: Duration,
    at: Timestamp,
    key: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_id: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<Incarnation>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    role: Option<ClientType>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    address: Option<SocketAddr>,
    seat: Incarnation,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seat_key: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    features: Vec<Feature>,
    on_disconnect: OnDisconnect,
    #[serde(default, skip_serializing_if = "is_false")]
    unlimited: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    request_id: Option<RequestId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hash: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    streams: Option<Streams>,
    /// Where a large request stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    request: Option<FileRef>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RecordRow<'a> {
    Noted {
        at: Timestamp,
        notes: Vec<Part>,
        tokens: (u64, u64),
    },
    Decided {
        at: Timestamp,
        r: ResponseId,
        calls: Vec<CallRow<'a>>,
        #[serde(default, skip_serializing_if = "is_false")]
        discovery: bool,
        seat: Incarnation,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        journal: Option<JournalId>,
    },
    Readdressed {
        r: ResponseId,
        seat: Incarnation,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        journal: Option<JournalId>,
    },
    Cancelling {
        at: Timestamp,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<Cow<'a, str>>,
        why: Cow<'a, str>,
    },
    Answered {
        at: Timestamp,
        results: Vec<ResultRow<'a>>,
    },
    Ended {
        at: Timestamp,
        ending: EndingRow,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<Cow<'a, str>>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        value: Option<Part>,
        #[serde(default, skip_serializing_if = "is_false")]
        unfetched: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<Timestamp>,
    },
}

#[derive(Serialize, Deserialize)]
struct CallRow<'a> {
    tool: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parameters: Option<Part>,
    #[serde(default, skip_serializing_if = "is_false")]
    observes: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<CallId>,
}

#[derive(Serialize, Deserialize)]
struct ResultRow<'a> {
    status: StatusRow,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result: Option<Part>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    namespace: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<CallId>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StatusRow {
    Success,
    Failure,
    Skipped,
    None,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum EndingRow {
    Completed,
    Failed,
    Cancelled,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
const fn is_false(value: &bool) -> bool {
    !*value
}

impl From<CallStatus> for StatusRow {
    fn from(status: CallStatus) -> Self {
        match status {
            CallStatus::Success => Self::Success,
            CallStatus::Failure => Self::Failure,
            CallStatus::Skipped => Self::Skipped,
            CallStatus::None => Self::None,
        }
    }
}

impl From<StatusRow> for CallStatus {
    fn from(status: StatusRow) -> Self {
        match status {
            StatusRow::Success => Self::Success,
            StatusRow::Failure => Self::Failure,
            StatusRow::Skipped => Self::Skipped,
            StatusRow::None => Self::None,
        }
    }
}

impl From<Ending> for EndingRow {
    fn from(ending: Ending) -> Self {
        match ending {
            Ending::Completed => Self::Completed,
            Ending::Failed => Self::Failed,
            Ending::Cancelled => Self::Cancelled,
        }
    }
}

impl From<EndingRow> for Ending {
    fn from(ending: EndingRow) -> Self {
        match ending {
            EndingRow::Completed => Self::Completed,
            EndingRow::Failed => Self::Failed,
            EndingRow::Cancelled => Self::Cancelled,
        }
    }
}
