//! What a server that was killed did not come to write down: tasks that are in the store and not in the log.
//!
//! A store has the lines of a group of commits written before it commits more. So only the newest few can be missing,
//! and whether they are is seen at the end of the log.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use jiff::Timestamp;
use serde::Deserialize;

use super::file::aside;
use crate::session::{Task, TaskId};

/// How much of the log is read, in bytes. It has a few thousand lines.
const END_BYTES: u64 = 1024 * 1024;

/// The end of a log.
pub(crate) struct End {
    /// The time of the first line there.
    since: Timestamp,
    /// The tasks of which it says that they were accepted.
    accepted: HashSet<TaskId>,
}

/// A line, as far as it matters here.
#[derive(Deserialize)]
struct Seen {
    at: Timestamp,
    event: String,
    #[serde(default)]
    task: Option<String>,
}

impl End {
    /// Reads it. `None` where nothing is missing: there is no log, or its server stopped in peace.
    pub(super) fn read(path: &Path) -> Option<Self> {
        let text = match read_end(path) {
            Ok(text) => text,
            Err(error) => {
                tracing::warn!(%error, "the end of the audit log cannot be read; lines may be missing");
                return None;
            }
        };
        let lines = text.split(|byte| *byte == b'\n');
        let seen = lines.filter_map(|line| serde_json::from_slice::<Seen>(line).ok());
        let mut end: Option<Self> = None;
        let mut is_stopped = false;
        for Seen { at, event, task } in seen {
            let end = end.get_or_insert_with(|| Self { since: at, accepted: HashSet::new() });
            is_stopped = event == "stopped" || (is_stopped && event.starts_with("key_"));
            if event == "submitted" {
                end.accepted.extend(task.and_then(|task| task.parse::<TaskId>().ok()));
            }
        }
        end.filter(|_| !is_stopped)
    }

    /// Whether this task, which the store has, should be in the log and is not.
    pub(crate) fn misses(&self, task: &Task) -> bool {
        task.created_at >= self.since && !self.accepted.contains(&task.id)
    }
}

/// The last bytes of the log, and of the file before it if they are not in one.
fn read_end(path: &Path) -> io::Result<Vec<u8>> {
    let newest = read_last(path, END_BYTES)?;
    let left = END_BYTES.saturating_sub(newest.len() as u64);
    let mut text = read_last(&aside(path, 1), left)?;
    text.extend(newest);
    Ok(text)
}

/// The last bytes of a file; none of one that is not there.
fn read_last(path: &Path, bytes: u64) -> io::Result<Vec<u8>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
    let mut text = Vec::new();
    file.take(bytes).read_to_end(&mut text)?;
    Ok(text)
}
