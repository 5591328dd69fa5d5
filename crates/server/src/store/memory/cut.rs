//! What is left of a journal when its bytes must go: what was done, and how it ended.

use std::sync::Arc;

use aip::Payload;
use aip::message::TruncatedResult;

use crate::session::{Call, CallResult, Finish, TaskId};
use crate::store::{Ended, Record};

/// Payloads up to this size stay when the others go, in bytes.
const SMALL_BYTES: usize = 1024;

/// Puts the size of each large payload in its place.
pub(super) fn cut(task: TaskId, record: &mut Record) {
    let cut = |payload: &mut Payload| {
        let (bytes, task) = (payload.len(), task.to_string());
        let marker = TruncatedResult { truncated: true, bytes, task };
        if bytes > SMALL_BYTES
            && let Ok(marker) = Payload::from_value(&marker)
        {
            *payload = marker;
        }
    };
    match record {
        Record::Created(_) | Record::Readdressed { .. } | Record::Cancelling { .. } => {}
        Record::Noted { notes, .. } => {
            let mut smaller = notes.to_vec();
            smaller.iter_mut().for_each(cut);
            *notes = smaller.into();
        }
        Record::Decided { calls, .. } => {
            let mut smaller: Vec<Call> = calls.to_vec();
            smaller.iter_mut().filter_map(|call| call.parameters.as_mut()).for_each(cut);
            *calls = smaller.into();
        }
        Record::Answered { results, .. } => {
            let mut smaller: Vec<CallResult> = results.to_vec();
            smaller.iter_mut().filter_map(|result| result.result.as_mut()).for_each(cut);
            *results = smaller.into();
        }
        Record::Ended(ended) => {
            let mut smaller = Ended::clone(ended);
            if let Finish::Value(value) = &mut smaller.finish {
                cut(value);
            }
            *ended = Arc::new(smaller);
        }
    }
}
