//! What an orchestrator keeps for the time when it comes back: who it is, and its tasks. In memory, or in files.
//!
//! The file of tasks is a list of records, one line of JSON each. It is written anew when most of it is out of date.
//! What is written survives the end of the process; a power loss may cost the last records. It must not know what a
//! record means for the wire: that is the ledger's.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use aip::{Payload, RequestId, ResponseId, SessionId};
use link::{Ambient, Identity, IdentityError, Retention, private};
use serde::{Deserialize, Serialize};

use crate::task::Outcome;

/// The file is written anew when it has grown by as much as it had, and by this many bytes at least.
const MIN_GROWTH: u64 = 1024 * 1024;

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The one that says who we are.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The one with the tasks.
    #[error("failed to {what} {path}")]
    Tasks {
        /// What was tried.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// Where an orchestrator keeps who it is, and its tasks.
pub struct Keep {
    pub(crate) identity: Identity,
    pub(crate) file: Option<TaskFile>,
    /// What the file held, oldest first.
    pub(crate) records: Vec<Record>,
}

impl Keep {
    /// In memory: it comes back from the loss of a connection, not from its own end.
    #[must_use]
    pub fn in_memory(ambient: &Ambient) -> Self {
        Self { identity: Identity::in_memory(ambient), file: None, records: Vec::new() }
    }

    /// In the file `path`, which says who it is, and in one beside it for the tasks. Each client id wants a path of its
    /// own. The folder must exist.
    ///
    /// # Errors
    /// When another process uses the files, or they cannot be read or written.
    pub fn open(path: &Path, ambient: &Ambient) -> Result<Self, KeepError> {
        // Its lock is for both files.
        let identity = Identity::open(path, Retention::default(), ambient)?;
        let path = path.with_extension("tasks");
        let records = read(&path).map_err(failed("read", &path))?;
        let file = TaskFile::open(&path).map_err(failed("open", &path))?;
        Ok(Self { identity, file: Some(file), records })
    }
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> KeepError + 'a {
    move |source| KeepError::Tasks { what, path: path.to_owned(), source }
}

/// Something that happened to a task, or to all that is held for a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Record {
    /// It is about to be sent.
    Submitted {
        request_id: RequestId,
        session_id: SessionId,
        /// The store that it is held for.
        store: String,
        /// The TASK; of one that was accepted it is not needed any more.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        frame: Option<Payload>,
    },
    /// The server has it.
    Accepted { request_id: RequestId, task: ResponseId },
    /// It is to be cancelled.
    Cancelled { request_id: RequestId },
    /// It is over.
    Ended { request_id: RequestId, outcome: Outcome },
    /// Whoever wanted it knows.
    Taken { request_id: RequestId },
    /// What was held for a store is held for another.
    Moved { from: String, to: String },
    /// Tasks whose outcome may come once more.
    Known { tasks: Vec<ResponseId> },
}

/// What can be read of the file. A record that was not written to its end is none.
fn read(path: &Path) -> io::Result<Vec<Record>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened?,
    };
    let (mut records, mut damaged) = (Vec::new(), 0_usize);
    for line in BufReader::new(file).split(b'\n') {
        let read = Payload::from_text(line?).ok().and_then(|line| line.parse_carried().ok());
        damaged += usize::from(read.is_none());
        records.extend(read);
    }
    if damaged > 0 {
        tracing::warn!(path = %path.display(), damaged, "records of tasks could not be read");
    }
    Ok(records)
}

/// The file of tasks.
pub(crate) struct TaskFile {
    path: PathBuf,
    file: File,
    /// Bytes when it was written anew, and since then.
    whole: u64,
    grown: u64,
}

impl TaskFile {
    fn open(path: &Path) -> io::Result<Self> {
        let file = private(OpenOptions::new().create(true).append(true)).open(path)?;
        let whole = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, whole, grown: 0 })
    }

    /// Writes a record behind the others.
    pub(crate) fn append(&mut self, record: &Record) -> io::Result<()> {
        let line = line(record)?;
        if let Err(error) = self.file.write_all(&line) {
            // What was written of it must not become one line with the next record.
            let end = self.whole + self.grown;
            let _stays_damaged = self.file.set_len(end);
            return Err(error);
        }
        self.grown += line.len() as u64;
        Ok(())
    }

    /// Whether it is time to write it anew.
    pub(crate) fn is_stale(&self) -> bool {
        self.grown > self.whole.max(MIN_GROWTH)
    }

    /// Replaces all that it holds.
    pub(crate) fn replace(&mut self, records: &[Record]) -> io::Result<()> {
        let draft = self.path.with_extension("tasks.new");
        let mut file =
            private(OpenOptions::new().create(true).truncate(true).write(true)).open(&draft)?;
        for record in records {
            file.write_all(&line(record)?)?;
        }
        file.sync_all()?;
        fs::rename(&draft, &self.path)?;
        *self = Self::open(&self.path)?;
        Ok(())
    }
}

fn line(record: &Record) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(record)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(request: &str) -> Record {
        Record::Submitted {
            request_id: request.parse().unwrap(),
            session_id: "s".parse().unwrap(),
            store: "S".to_owned(),
            frame: Some(
                Payload::from_text(r#"{"type":"task","x":1.0}"#.as_bytes().to_vec()).unwrap(),
            ),
        }
    }

    #[test]
    fn what_was_written_is_there_again_and_half_a_record_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let (path, ambient) = (folder.path().join("me.json"), Ambient::system());
        let ended = Record::Ended { request_id: "a".parse().unwrap(), outcome: Outcome::lost("x") };
        let mut keep = Keep::open(&path, &ambient).unwrap();
        assert!(keep.records.is_empty());
        let file = keep.file.as_mut().unwrap();
        file.append(&record("a")).unwrap();
        file.append(&ended).unwrap();
        file.file.write_all(br#"{"taken":{"requ"#).unwrap();
        drop(keep);
        let keep = Keep::open(&path, &ambient).unwrap();
        assert_eq!(keep.records, [record("a"), ended]);
        let second = Keep::open(&path, &ambient).err().unwrap();
        assert!(second.to_string().contains("another client"), "{second}");
    }

    #[test]
    fn it_is_written_anew_when_most_of_it_is_out_of_date() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = TaskFile::open(&folder.path().join("me.tasks")).unwrap();
        while !file.is_stale() {
            file.append(&record("a")).unwrap();
        }
        file.replace(&[record("b")]).unwrap();
        assert!(!file.is_stale());
        file.append(&record("c")).unwrap();
        assert_eq!(read(&file.path).unwrap(), [record("b"), record("c")]);
    }
}
