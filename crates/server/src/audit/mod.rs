//! The audit log: who did what, when, from where, and how it ended. One JSON object a line.
//!
//! It holds ids, the names of keys and outcomes; no request, no payload and no key gets here.
//! A caller that records something never waits for the disk: the line goes into a bounded queue that one
//! thread writes out ([`writer`]). What the queue or the disk would not take is counted, and the log
//! itself says how much is missing.

mod file;
mod writer;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use crate::session::TaskId;
use writer::Writer;

/// Entries that wait to be written; beyond them entries are lost and counted.
const QUEUE_ENTRIES: usize = 8192;

/// The most characters of a text that a peer chose; longer ones are cut.
const MAX_TEXT_CHARS: usize = 256;

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
    /// A task is over.
    Ended,
    /// A request over HTTP cancelled a task.
    Cancelled,
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
        line
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

/// Bounded, and with nothing in it that would drive the terminal of a reader of the log. (JSON
/// escapes only the control characters of ASCII.)
fn text<S: Serializer>(text: &Option<&str>, serializer: S) -> Result<S::Ok, S::Error> {
    let text = text.unwrap_or_default();
    let is_plain = |byte: u8| (b' '..=b'~').contains(&byte);
    if text.len() <= MAX_TEXT_CHARS && text.bytes().all(is_plain) {
        return serializer.serialize_str(text);
    }
    let mut chars = text.chars().map(|char| if char.is_control() { '\u{fffd}' } else { char });
    let mut bounded: String = chars.by_ref().take(MAX_TEXT_CHARS).collect();
    if chars.next().is_some() {
        bounded.pop();
        bounded.push('…');
    }
    serializer.serialize_str(&bounded)
}

/// The audit log. What is recorded is written in order; when it is dropped, all of it is.
pub struct Audit(Option<Queue>);

struct Queue {
    sender: SyncSender<Message>,
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Queue {
    fn new(file: file::LogFile) -> (Self, Writer) {
        let (sender, receiver) = sync_channel(QUEUE_ENTRIES);
        let shared = Arc::new(Shared::default());
        let writer = Writer::new(file, receiver, shared.clone());
        (Self { sender, shared, writer: Mutex::default() }, writer)
    }

    fn start(&self, writer: Writer) -> io::Result<()> {
        let thread = std::thread::Builder::new().name("audit".to_owned());
        *self.lock_writer() = Some(thread.spawn(move || writer.run())?);
        Ok(())
    }

    fn lock_writer(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A message to the writer's thread.
enum Message {
    Line(Line),
    /// Nothing that matters comes after this.
    Close,
}

/// What both sides of the queue look at.
#[derive(Default)]
struct Shared {
    lost: AtomicU64,
    closing: AtomicBool,
}

impl Audit {
    /// Opens the log and starts the thread that writes it. An existing file is continued.
    ///
    /// # Errors
    /// When the file cannot be opened for writing, or no thread can be had.
    pub fn open(settings: AuditSettings) -> io::Result<Self> {
        let (queue, writer) = Queue::new(file::LogFile::open(settings)?);
        queue.start(writer)?;
        Ok(Self(Some(queue)))
    }

    /// No audit log: whatever is recorded is dropped.
    #[must_use]
    pub const fn none() -> Self {
        Self(None)
    }

    /// Notes an entry. It never waits: an entry for which the queue has no place is lost, and counted.
    pub(crate) fn record(&self, entry: Entry<'_>) {
        let Some(queue) = &self.0 else { return };
        match queue.sender.try_send(Message::Line(entry.line())) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => queue.shared.note_lost(1),
        }
    }

    /// How many entries were lost since the start, because the queue was full or the disk refused.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.0.as_ref().map_or(0, |queue| queue.shared.lost.load(Ordering::Relaxed))
    }

    /// Writes whatever was recorded, and stops; what is recorded later is lost. It blocks until then,
    /// for a few milliseconds, so async code calls it from `spawn_blocking` or at its very end.
    /// A disk that refuses gets one more try.
    pub fn close(&self) {
        let Some(queue) = &self.0 else { return };
        let Some(writer) = queue.lock_writer().take() else { return };
        queue.shared.closing.store(true, Ordering::Release);
        // It may be waiting for the disk.
        writer.thread().unpark();
        // An error of either kind means that the thread is gone already.
        let _told = queue.sender.send(Message::Close);
        let _ended = writer.join();
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Audit").field("lost", &self.lost()).finish_non_exhaustive()
    }
}

impl Shared {
    fn note_lost(&self, entries: u64) {
        if self.lost.fetch_add(entries, Ordering::Relaxed) == 0 {
            tracing::warn!(
                "the audit log cannot keep up or cannot be written: entries are lost; it says how many"
            );
        }
    }
}

#[cfg(test)]
mod tests;
