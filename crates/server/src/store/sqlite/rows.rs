//! What stands in the rows: the records of a batch as JSON, in types of the store's own, and what is large in files
//! beside.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aip::message::{Feature, JournalId, OnDisconnect};
use aip::{CallId, ClientId, ClientType, Payload, RequestId, ResponseId, SessionId, TaskName};
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::agent::Usage;
use crate::session::{
    Call, CallResult, CallStatus, Finish, Incarnation, KeyName, Requester, Task, TaskId, Terms,
};
use crate::store::{Batch, Ended, Ending, Record};

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
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    features: Vec<Feature>,
    on_disconnect: OnDisconnect,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    request_id: Option<RequestId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hash: Option<Cow<'a, str>>,
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

/// A batch as it goes into its rows.
#[derive(Debug)]
pub(super) struct Encoded {
    /// The task and its request, when it begins with its acceptance.
    pub(super) created: Option<EncodedTask>,
    /// The other records.
    pub(super) body: Vec<u8>,
    /// What stands beside.
    pub(super) files: Vec<(FileRef, Bytes)>,
}

/// A task as it goes into its row.
#[derive(Debug)]
pub(super) struct EncodedTask {
    pub(super) task: Arc<Task>,
    pub(super) json: Vec<u8>,
    /// Whether the request stands in the row.
    pub(super) has_request: bool,
}

impl EncodedTask {
    /// The request, unless it stands in a file.
    pub(super) fn request(&self) -> &str {
        if self.has_request { &self.task.request } else { "" }
    }
}

/// Whether something of a batch stands beside its row.
pub(super) fn is_large(batch: &Batch) -> bool {
    let large = |payload: &Payload| payload.len() > LARGE_BYTES;
    batch.records.iter().any(|record| match record {
        Record::Created(task) => task.request.len() > LARGE_BYTES,
        Record::Noted { notes, .. } => notes.iter().any(large),
        Record::Decided { calls, .. } => {
            calls.iter().filter_map(|call| call.parameters.as_ref()).any(large)
        }
        Record::Answered { results, .. } => {
            results.iter().filter_map(|result| result.result.as_ref()).any(large)
        }
        Record::Ended(ended) => matches!(&ended.finish, Finish::Value(value) if large(value)),
        Record::Readdressed { .. } | Record::Cancelling { .. } => false,
    })
}

/// Writes a batch as it goes into its rows.
pub(super) fn encode(batch: &Batch) -> Result<Encoded, serde_json::Error> {
    let mut beside = Beside { task: batch.task, files: Vec::new() };
    let mut records = batch.records.iter().peekable();
    let created = match records.peek() {
        Some(Record::Created(task)) => {
            records.next();
            Some(beside.task(task)?)
        }
        _ => None,
    };
    let rows: Vec<_> = records.filter_map(|record| beside.record(record)).collect();
    Ok(Encoded { created, body: serde_json::to_vec(&rows)?, files: beside.files })
}

/// Makes rows, and collects what stands beside them.
struct Beside {
    task: TaskId,
    files: Vec<(FileRef, Bytes)>,
}

impl Beside {
    fn file(&mut self, content: Bytes) -> FileRef {
        let name = format!("{}.{}", self.task, Uuid::new_v4().simple());
        let file = FileRef { name, bytes: content.len(), crc: crc32c::crc32c(&content) };
        self.files.push((file.clone(), content));
        file
    }

    fn part(&mut self, payload: &Payload) -> Part {
        if payload.len() <= LARGE_BYTES {
            return Part::Value(payload.clone());
        }
        Part::File(self.file(payload.to_bytes()))
    }

    fn task(&mut self, task: &Arc<Task>) -> Result<EncodedTask, serde_json::Error> {
        let has_request = task.request.len() <= LARGE_BYTES;
        let request =
            (!has_request).then(|| self.file(Bytes::copy_from_slice(task.request.as_bytes())));
        let (client, http) = match &task.requester {
            Requester::Client(id) => (Some(id.clone()), None),
            Requester::Http(key) => (None, Some(Cow::Borrowed(&**key))),
        };
        let terms = &task.terms;
        let row = TaskRow {
            session: task.session_id.clone(),
            name: task.task_name.as_str().into(),
            client,
            http,
            device: task.device.clone(),
            agent: task.agent_name.as_str().into(),
            timeout: task.command_timeout,
            at: task.created_at,
            key: Cow::Borrowed(&task.key.name),
            key_id: task.key.id.as_deref().map(Cow::Borrowed),
            owner: terms.requester,
            role: terms.role,
            address: terms.address,
            seat: terms.device,
            features: terms.features.list(),
            on_disconnect: terms.on_disconnect,
            request_id: terms.request_id.clone(),
            hash: terms.request_hash.as_deref().map(Cow::Borrowed),
            request,
        };
        Ok(EncodedTask { task: task.clone(), json: serde_json::to_vec(&row)?, has_request })
    }

    /// `None` for a second acceptance, which there is not.
    fn record<'a>(&mut self, record: &'a Record) -> Option<RecordRow<'a>> {
        Some(match record {
            Record::Created(_) => return None,
            Record::Noted { at, notes, usage } => RecordRow::Noted {
                at: *at,
                notes: notes.iter().map(|note| self.part(note)).collect(),
                tokens: (usage.input_tokens, usage.output_tokens),
            },
            Record::Decided { at, response_id, calls, is_discovery, device, journal } => {
                RecordRow::Decided {
                    at: *at,
                    r: response_id.clone(),
                    calls: calls.iter().map(|call| self.call(call)).collect(),
                    discovery: *is_discovery,
                    seat: *device,
                    journal: journal.clone(),
                }
            }
            Record::Readdressed { response_id, device, journal } => RecordRow::Readdressed {
                r: response_id.clone(),
                seat: *device,
                journal: journal.clone(),
            },
            Record::Cancelling { at, by, why } => RecordRow::Cancelling {
                at: *at,
                by: by.as_deref().map(Into::into),
                why: (&**why).into(),
            },
            Record::Answered { at, results } => RecordRow::Answered {
                at: *at,
                results: results.iter().map(|result| self.result(result)).collect(),
            },
            Record::Ended(ended) => self.ended(ended),
        })
    }

    fn call<'a>(&mut self, call: &'a Call) -> CallRow<'a> {
        CallRow {
            tool: call.tool_name.as_str().into(),
            parameters: call.parameters.as_ref().map(|payload| self.part(payload)),
            observes: call.observes,
            id: call.call_id.clone(),
        }
    }

    fn result<'a>(&mut self, result: &'a CallResult) -> ResultRow<'a> {
        ResultRow {
            status: result.status.into(),
            error: result.error.as_deref().map(Cow::Borrowed),
            result: result.result.as_ref().map(|payload| self.part(payload)),
            namespace: result.namespace.as_deref().map(Cow::Borrowed),
            id: result.call_id.clone(),
        }
    }

    fn ended<'a>(&mut self, ended: &'a Ended) -> RecordRow<'a> {
        RecordRow::Ended {
            at: ended.at,
            ending: ended.ending.into(),
            error: ended.error.as_deref().map(Cow::Borrowed),
            value: match &ended.finish {
                Finish::Value(value) => Some(self.part(value)),
                Finish::Results => None,
            },
            unfetched: ended.is_unfetched,
            until: ended.undelivered_until,
        }
    }
}

/// Why a row makes no record.
#[derive(Debug, thiserror::Error)]
#[error("it cannot be read")]
pub(super) struct Unreadable;

/// Reads rows; payloads that cannot be read any more come out as a marker that says so.
pub(super) struct Decoder<'a> {
    /// Reads a file beside, whole and as it was written, or not at all.
    pub(super) file: &'a dyn Fn(&FileRef) -> Option<Vec<u8>>,
    /// Whether the row is not as it was written: its payloads cannot be trusted.
    pub(super) is_damaged: bool,
    /// Whether something was missing or damaged.
    pub(super) has_found_damage: bool,
}

impl Decoder<'_> {
    /// Reads a task. The request of `None` is left out.
    pub(super) fn task(
        &mut self,
        id: TaskId,
        json: &[u8],
        request: Option<&str>,
    ) -> Result<Task, Unreadable> {
        let row: TaskRow<'_> = serde_json::from_slice(json).map_err(|_| Unreadable)?;
        let request = match (&row.request, request) {
            (_, None) => String::new(),
            (None, Some(request)) => request.to_owned(),
            (Some(file), Some(_)) => {
                let text = (self.file)(file).and_then(|text| String::from_utf8(text).ok());
                self.has_found_damage |= text.is_none();
                text.unwrap_or_else(|| damaged(Some(file.bytes)).as_str().to_owned())
            }
        };
        Ok(Task {
            id,
            session_id: row.session,
            task_name: TaskName::sanitize(&row.name).ok_or(Unreadable)?,
            request,
            requester: match (row.client, row.http) {
                (Some(client), _) => Requester::Client(client),
                (None, Some(key)) => Requester::Http(key.as_ref().into()),
                (None, None) => return Err(Unreadable),
            },
            device: row.device,
            agent_name: row.agent.into_owned(),
            command_timeout: row.timeout,
            created_at: row.at,
            key: KeyName {
                name: row.key.as_ref().into(),
                id: row.key_id.map(|id| id.as_ref().into()),
            },
            terms: Terms {
                requester: row.owner,
                role: row.role,
                address: row.address,
                device: row.seat,
                features: row.features.into_iter().collect(),
                on_disconnect: row.on_disconnect,
                request_id: row.request_id,
                request_hash: row.hash.map(|hash| hash.as_ref().into()),
            },
        })
    }

    /// Reads the records of a row.
    pub(super) fn records(&mut self, body: &[u8]) -> Result<Vec<Record>, Unreadable> {
        let rows: Vec<RecordRow<'_>> = serde_json::from_slice(body).map_err(|_| Unreadable)?;
        Ok(rows.into_iter().map(|row| self.record(row)).collect())
    }

    fn record(&mut self, row: RecordRow<'_>) -> Record {
        match row {
            RecordRow::Noted { at, notes, tokens: (input_tokens, output_tokens) } => {
                let notes = notes.into_iter().map(|note| self.payload(note)).collect();
                Record::Noted { at, notes, usage: Usage { input_tokens, output_tokens } }
            }
            RecordRow::Decided { at, r, calls, discovery, seat, journal } => Record::Decided {
                at,
                response_id: r,
                calls: calls.into_iter().map(|call| self.call(call)).collect(),
                is_discovery: discovery,
                device: seat,
                journal,
            },
            RecordRow::Readdressed { r, seat, journal } => {
                Record::Readdressed { response_id: r, device: seat, journal }
            }
            RecordRow::Cancelling { at, by, why } => {
                let by = by.as_deref().map(Into::into);
                Record::Cancelling { at, by, why: why.as_ref().into() }
            }
            RecordRow::Answered { at, results } => {
                let results = results.into_iter().map(|result| self.result(result)).collect();
                Record::Answered { at, results }
            }
            RecordRow::Ended { at, ending, error, value, unfetched, until } => {
                let value = value.map(|value| self.payload(value));
                Record::Ended(Arc::new(Ended {
                    at,
                    ending: ending.into(),
                    error: error.map(|error| error.as_ref().into()),
                    finish: value.map_or(Finish::Results, Finish::Value),
                    is_unfetched: unfetched,
                    undelivered_until: until,
                }))
            }
        }
    }

    fn call(&mut self, row: CallRow<'_>) -> Call {
        Call {
            tool_name: row.tool.into_owned(),
            parameters: row.parameters.map(|part| self.payload(part)),
            observes: row.observes,
            call_id: row.id,
        }
    }

    fn result(&mut self, row: ResultRow<'_>) -> CallResult {
        CallResult {
            status: row.status.into(),
            error: row.error.map(Cow::into_owned),
            result: row.result.map(|part| self.payload(part)),
            namespace: row.namespace.map(Cow::into_owned),
            call_id: row.id,
        }
    }

    fn payload(&mut self, part: Part) -> Payload {
        let (read, bytes) = match part {
            Part::Value(value) => (Some(value).filter(|_| !self.is_damaged), None),
            Part::File(file) => {
                let text = (self.file)(&file);
                let read = text.and_then(|text| Payload::from_text(text).ok());
                (read, Some(file.bytes))
            }
        };
        self.has_found_damage |= read.is_none();
        read.unwrap_or_else(|| damaged(bytes))
    }
}

/// Stands where a payload was that cannot be read any more.
pub(super) fn damaged(bytes: Option<usize>) -> Payload {
    #[derive(Serialize)]
    struct Marker {
        damaged: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        bytes: Option<usize>,
    }

    Payload::from_value(&Marker { damaged: true, bytes })
        .unwrap_or_else(|_| Payload::string("damaged"))
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
