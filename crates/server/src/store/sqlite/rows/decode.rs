//! From its rows to a task's journal.

use std::borrow::Cow;
use std::sync::Arc;

use aip::{Payload, TaskName};
use serde::Serialize;

use super::{CallRow, FileRef, Part, RecordRow, ResultRow, TaskRow};
use crate::agent::Usage;
use crate::session::{
    Call, CallResult, Finish, KeyName, RequestHash, Requester, Task, TaskId, Terms,
};
use crate::store::{Ended, Record};

/// Why a row makes no record.
#[derive(Debug, thiserror::Error)]
#[error("it cannot be read")]
pub(in crate::store::sqlite) struct Unreadable;

/// Reads rows; payloads that cannot be read any more come out as a marker that says so.
pub(in crate::store::sqlite) struct Decoder<'a> {
    /// Reads a file beside, whole and as it was written, or not at all.
    pub(in crate::store::sqlite) file: &'a dyn Fn(&FileRef) -> Option<Vec<u8>>,
    /// Whether the row is not as it was written: its payloads cannot be trusted.
    pub(in crate::store::sqlite) is_damaged: bool,
    /// Whether something was missing or damaged.
    pub(in crate::store::sqlite) has_found_damage: bool,
}

impl Decoder<'_> {
    /// Reads a task. The request of `None` is left out.
    pub(in crate::store::sqlite) fn task(
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
                device_key: row.seat_key.map(|id| id.as_ref().into()),
                features: row.features.into_iter().collect(),
                on_disconnect: row.on_disconnect,
                no_time_limit: row.unlimited,
                request_id: row.request_id,
                request_hash: row.hash.and_then(|hash| RequestHash::of_text(&hash)),
                streams: row.streams,
            },
        })
    }

    /// Reads the records of a row.
    pub(in crate::store::sqlite) fn records(
        &mut self,
        body: &[u8],
    ) -> Result<Vec<Record>, Unreadable> {
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
pub(in crate::store::sqlite) fn damaged(bytes: Option<usize>) -> Payload {
    #[derive(Serialize)]
    struct Marker {
        damaged: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        bytes: Option<usize>,
    }

    Payload::from_value(&Marker { damaged: true, bytes })
        .unwrap_or_else(|_| Payload::string("damaged"))
}
