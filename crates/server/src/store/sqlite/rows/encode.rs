//! From a batch to its rows.

use std::borrow::Cow;
use std::sync::Arc;

use aip::Payload;
use bytes::Bytes;
use uuid::Uuid;

use super::{CallRow, FileRef, LARGE_BYTES, Part, RecordRow, ResultRow, TaskRow};
use crate::session::{Call, CallResult, Finish, Requester, Task, TaskId};
use crate::store::{Batch, Ended, Record};

/// A batch as it goes into its rows.
#[derive(Debug)]
pub(in crate::store::sqlite) struct Encoded {
    /// The task and its request, when it begins with its acceptance.
    pub(in crate::store::sqlite) created: Option<EncodedTask>,
    /// The other records.
    pub(in crate::store::sqlite) body: Vec<u8>,
    /// What stands beside.
    pub(in crate::store::sqlite) files: Vec<(FileRef, Bytes)>,
}

/// A task as it goes into its row.
#[derive(Debug)]
pub(in crate::store::sqlite) struct EncodedTask {
    pub(in crate::store::sqlite) task: Arc<Task>,
    pub(in crate::store::sqlite) json: Vec<u8>,
    /// Whether the request stands in the row.
    pub(in crate::store::sqlite) has_request: bool,
}

impl EncodedTask {
    /// The request, unless it stands in a file.
    pub(in crate::store::sqlite) fn request(&self) -> &str {
        if self.has_request { &self.task.request } else { "" }
    }
}

/// Whether something of a batch stands beside its row.
pub(in crate::store::sqlite) fn is_large(batch: &Batch) -> bool {
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
pub(in crate::store::sqlite) fn encode(batch: &Batch) -> Result<Encoded, serde_json::Error> {
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
            seat_key: terms.device_key.as_deref().map(Cow::Borrowed),
            features: terms.features.list(),
            on_disconnect: terms.on_disconnect,
            unlimited: terms.no_time_limit,
            request_id: terms.request_id.clone(),
            hash: terms.request_hash.map(|hash| hash.to_string().into()),
            streams: terms.streams,
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
