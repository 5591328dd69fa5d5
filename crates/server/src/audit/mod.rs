//! The audit log: who did what, when, from where, and how it ended. One JSON object a line.
//!
//! It holds ids, the names of keys and of tools, and outcomes; no request, no payload and no key gets here, except the
//! arguments of tools where the owner's settings say so.
//! A caller that records something never waits for the disk: the line goes into a bounded queue that one
//! thread writes out ([`writer`]). What the queue or the disk would not take is counted, and the log
//! itself says how much is missing.
//!
//! That a task was accepted is another matter: nobody is told before the line is written. So it is the store that
//! has it written, once it has the task ([`Audit::write_accepted`]). What a server that was killed just then could not
//! write, it writes when it starts again ([`missing`]).

mod file;
mod missing;
mod writer;

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use aip::visible::escape_json;
use jiff::Timestamp;
use serde::{Serialize, Serializer};

use crate::session::{Requester, Task, TaskId};
use crate::store::Commit;
use writer::Shared;

pub use file::{KeyChange, append_key_change};
pub(crate) use missing::End;

/// Entries that wait to be written; beyond them entries are lost and counted.
const QUEUE_ENTRIES: usize = 8192;

/// The most characters of a text that a peer chose; longer ones are cut.
const MAX_TEXT_CHARS: usize = 256;

/// The most characters of a call's arguments.
const MAX_ARGUMENTS_CHARS: usize = 4096;

/// What an entry takes, about, in bytes.
const ENTRY_BYTES: usize = 256;

/// Where the audit log goes.
#[derive(Debug, Clone)]
pub struct AuditSettings {
    /// The file. Its older ones are beside it, with `.1`, `.2`, … at the end, `.1` the newest.
    pub path: PathBuf,
    /// The file is put aside before it would grow beyond this, in bytes.
    pub max_bytes: u64,
    /// How many older files are kept. With none, a full file is deleted.
    pub files: u32,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Event {
    /// The server began to listen.
    Started,
    /// A client registered.
    Registered,
    /// A connection, a registration, a task or a request was refused.
    Refused,
    /// A request showed a wrong key or none.
    KeyRefused,
    /// A task was accepted.
    Submitted,
    /// A step of a task was sent to its device: one line for each tool that it calls.
    Step,
    /// A task is over.
    Ended,
    /// A request cancelled a task.
    Cancelled,
    /// A key was created.
    KeyCreated,
    /// A key was revoked.
    KeyRevoked,
    /// A join token was made.
    JoinTokenCreated,
    /// A join token was revoked.
    JoinTokenRevoked,
    /// A device or an operator joined with one.
    Joined,
    /// A copy of the store was made, or could not be.
    Backup,
    /// The server closed the connection of a client: too slow, silent, replaced, its key revoked.
    Cut,
    /// A client left, or its connection was lost.
    Disconnected,
    /// The server stopped.
    Stopped,
    /// Entries are missing here, `count` of them.
    Lost,
}

/// One line. Only what is set is written. Texts that a peer chose may be of any length and content
/// here; what is written is bounded, and has no control characters.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Entry<'a> {
    #[serde(serialize_with = "time")]
    pub(crate) at: Timestamp,
    pub(crate) event: Event,
    /// Who did it: a client id.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text")]
    pub(crate) client: Option<&'a str>,
    /// In which role: `device`, `constellation` or `operator`.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text")]
    pub(crate) role: Option<&'a str>,
    /// With which key: its *name*.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text")]
    pub(crate) key: Option<&'a str>,
    /// From where.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) address: Option<SocketAddr>,
    /// Our id of the task.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "id")]
    pub(crate) task: Option<TaskId>,
    /// The wire's id of it, which may come again.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text")]
    pub(crate) session: Option<&'a str>,
    /// On which device.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text")]
    pub(crate) device: Option<&'a str>,
    /// The number of a step, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) step: Option<u32>,
    /// The tool that it calls.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text")]
    pub(crate) tool: Option<&'a str>,
    /// Its arguments, where the owner wants them here: JSON, as the task has it.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "arguments")]
    pub(crate) arguments: Option<&'a str>,
    /// Into which folder a copy of the store went.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text")]
    pub(crate) folder: Option<&'a str>,
    /// How it ended.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text")]
    pub(crate) outcome: Option<&'a str>,
    /// Why, in our own words.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text")]
    pub(crate) reason: Option<&'a str>,
    /// How many, of [`Event::Lost`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) count: Option<u64>,
}

impl<'a> Entry<'a> {
    /// That something happened to a task, now.
    pub(crate) fn of(task: &'a Task, event: Event) -> Self {
        let client = match &task.requester {
            Requester::Client(id) => Some(id.as_str()),
            Requester::Http(_) => None,
        };
        Self {
            client,
            role: task.terms.role.filter(|_| client.is_some()).map(|role| role.as_str()),
            key: Some(&task.key.name),
            address: task.terms.address,
            task: Some(task.id),
            session: Some(task.session_id.as_str()),
            device: Some(task.device.as_str()),
            ..Self::new(event)
        }
    }
}

impl Entry<'_> {
    /// That something happened, now.
    pub(crate) fn new(event: Event) -> Self {
        Self {
            at: Timestamp::now(),
            event,
            client: None,
            role: None,
            key: None,
            address: None,
            task: None,
            session: None,
            device: None,
            step: None,
            tool: None,
            arguments: None,
            folder: None,
            outcome: None,
            reason: None,
            count: None,
        }
    }

    /// The line, with its end.
    fn line(&self) -> Line {
        let mut line = Vec::with_capacity(ENTRY_BYTES);
        // It cannot fail: the keys are strings, and memory takes every byte.
        let _written = serde_json::to_writer(&mut line, self);
        line.push(b'\n');
        match std::str::from_utf8(&line).map(escape_json) {
            Ok(Cow::Owned(escaped)) => escaped.into_bytes(),
            _ => line,
        }
    }
}

/// An entry as it is written, with its line end.
type Line = Vec<u8>;

fn time<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{at:.6}"))
}

fn id<S: Serializer>(id: &Option<TaskId>, serializer: S) -> Result<S::Ok, S::Error> {
    match id {
        Some(id) => serializer.collect_str(id),
        None => serializer.serialize_none(),
    }
}

fn text<S: Serializer>(text: &Option<&str>, serializer: S) -> Result<S::Ok, S::Error> {
    bounded(text.unwrap_or_default(), MAX_TEXT_CHARS, serializer)
}

fn arguments<S: Serializer>(text: &Option<&str>, serializer: S) -> Result<S::Ok, S::Error> {
    bounded(text.unwrap_or_default(), MAX_ARGUMENTS_CHARS, serializer)
}

/// Bounded, and with nothing in it that would drive the terminal of a reader of the log. (JSON
/// escapes only the control characters of ASCII.)
fn bounded<S: Serializer>(text: &str, most: usize, serializer: S) -> Result<S::Ok, S::Error> {
    let is_plain = |byte: u8| (b' '..=b'~').contains(&byte);
    if text.len() <= most && text.bytes().all(is_plain) {
        return serializer.serialize_str(text);
    }
    let mut chars = text.chars().map(|char| if char.is_control() { '\u{fffd}' } else { char });
    let mut bounded: String = chars.by_ref().take(most).collect();
    if chars.next().is_some() {
        bounded.pop();
        bounded.push('…');
    }
    serializer.serialize_str(&bounded)
}

/// The audit log. What is recorded is written in order; when its last clone is dropped, all of it is. Cheap to clone.
#[derive(Clone)]
pub struct Audit(Option<Arc<Log>>);

struct Log {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Audit {
    /// Opens the log and starts the thread that writes it. An existing file is continued.
    ///
    /// # Errors
    /// When the file cannot be opened for writing, or no thread can be had.
    pub fn open(settings: AuditSettings) -> io::Result<Self> {
        let log = Log::new(file::LogFile::open(settings)?);
        log.start()?;
        Ok(Self(Some(Arc::new(log))))
    }

    /// No audit log: whatever is recorded is dropped.
    #[must_use]
    pub const fn none() -> Self {
        Self(None)
    }

    /// Notes an entry. It never waits: an entry for which the queue has no place is lost, and counted.
    pub(crate) fn record(&self, entry: Entry<'_>) {
        if let Some(log) = &self.0 {
            log.shared.push(entry.line());
        }
    }

    /// Writes a line for each of these tasks, which were accepted, and whatever was recorded before. On return they
    /// are in the file, unless the disk refuses: then they wait like all others. It blocks, so it is for threads that
    /// may wait for the disk, such as a store's.
    pub fn write_accepted<'a>(&self, tasks: impl IntoIterator<Item = &'a Task>) {
        let accepted = |task| Entry::of(task, Event::Submitted).line();
        self.write_through(tasks.into_iter().map(accepted));
    }

    /// The same for a task, by the log's own thread: what is returned says when the line is in the file. It never
    /// waits; a line for which the queue has no place is lost, and counted.
    pub fn queue_accepted(&self, task: &Task) -> Commit {
        match &self.0 {
            Some(log) => log.shared.push_and_ask(Entry::of(task, Event::Submitted).line()),
            None => Commit::Known(Ok(())),
        }
    }

    fn write_through(&self, lines: impl Iterator<Item = Line>) {
        if let Some(log) = &self.0 {
            log.shared.write_through(lines);
        }
    }

    /// Writes whatever was recorded so far. It blocks.
    pub(crate) fn flush(&self) {
        self.write_through(std::iter::empty());
    }

    /// Reads the end of the log, of a server that did not stop but was killed. It blocks. `None` when nothing can be
    /// missing there.
    pub(crate) fn end(&self) -> Option<End> {
        End::read(self.0.as_ref()?.shared.path())
    }

    /// Writes the lines of tasks that a server had accepted and did not come to write down. It blocks.
    pub(crate) fn write_missing<'a>(&self, tasks: impl IntoIterator<Item = &'a Task>) {
        self.write_through(tasks.into_iter().map(|task| {
            let reason = Some("the server was killed before it could write this");
            let at = task.created_at;
            Entry { at, reason, ..Entry::of(task, Event::Submitted) }.line()
        }));
    }

    /// How many entries were lost since the start, because the queue was full or the disk refused.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.0.as_ref().map_or(0, |log| log.shared.lost())
    }

    /// Writes whatever was recorded, and stops; what is recorded later is lost. It blocks until then,
    /// for a few milliseconds, so async code calls it from `spawn_blocking` or at its very end.
    /// A disk that refuses gets one more try.
    pub fn close(&self) {
        if let Some(log) = &self.0 {
            log.close();
        }
    }
}

impl Log {
    fn new(file: file::LogFile) -> Self {
        Self { shared: Arc::new(Shared::new(file)), writer: Mutex::default() }
    }

    fn start(&self) -> io::Result<()> {
        let thread = std::thread::Builder::new().name("audit".to_owned());
        let shared = self.shared.clone();
        *self.lock_writer() = Some(thread.spawn(move || shared.run())?);
        Ok(())
    }

    fn lock_writer(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        let Some(writer) = self.lock_writer().take() else { return };
        self.shared.close();
        // It says so itself when it panics.
        let _ended = writer.join();
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Audit").field("lost", &self.lost()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
