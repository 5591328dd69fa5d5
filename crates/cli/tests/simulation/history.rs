//! What happened in a simulation, in order: every frame on every wire, and what was done to the parties.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aip::codec::Wire;
use aip::message::Extension;
use aip::{ClientMessage, ServerMessage};
use link::Frame;
use tokio::time::Instant;

/// Something that happened.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) at: Duration,
    pub(crate) what: What,
}

#[derive(Debug, Clone)]
pub(crate) enum What {
    /// A party opened a wire to the server.
    Opened { wire: usize, party: String },
    /// A frame left one end, and takes so long, or as long as what is before it.
    Sent { wire: usize, to_server: bool, frame: Frame, takes: Duration },
    /// A device took a COMMAND off its wire.
    Received { device: String, command: String },
    /// Something was done to a wire: it is not to be relied on from then on.
    Broken { wire: usize, how: &'static str },
    /// Something else.
    Note(String),
}

/// The history of one simulation. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub(crate) struct History {
    start: Instant,
    events: Arc<Mutex<Vec<Event>>>,
}

impl History {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), events: Arc::default() }
    }

    pub(crate) fn push(&self, what: What) {
        let at = self.start.elapsed();
        self.lock().push(Event { at, what });
    }

    pub(crate) fn note(&self, text: impl Into<String>) {
        self.push(What::Note(text.into()));
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A message on a wire, as far as it matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) kind: String,
    pub(crate) status: String,
    pub(crate) session: Option<String>,
    /// R: of a COMMAND its id, of results the command that they answer.
    pub(crate) command: Option<String>,
    pub(crate) error: Option<String>,
    /// Of REGISTER, which journal or file its client keeps.
    pub(crate) journal: Option<String>,
}

/// Reads a frame.
pub(crate) fn said(to_server: bool, frame: &Frame) -> Option<Said> {
    let Frame::Text(text) = frame else { return None };
    let text_of = |id: Option<&str>| id.map(str::to_owned);
    if to_server {
        let message = ClientMessage::decode(text).ok()?;
        return Some(Said {
            kind: message.kind.as_str().to_owned(),
            status: message.status.to_string(),
            session: text_of(message.session_id.as_ref().map(|id| id.as_str())),
            command: text_of(message.prev_response_id.as_ref().map(|id| id.as_str())),
            journal: Extension::of(message.metadata.as_ref())
                .ok()
                .flatten()
                .and_then(|asked| asked.resume)
                .map(|resume| resume.journal.file().to_owned()),
            error: message.error,
        });
    }
    let message = ServerMessage::decode(text).ok()?;
    Some(Said {
        kind: message.kind.to_string(),
        status: message.status.to_string(),
        session: text_of(message.session_id.as_ref().map(|id| id.as_str())),
        command: text_of(message.response_id.as_ref().map(|id| id.as_str())),
        error: message.error,
        journal: None,
    })
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>9.3}  ", self.at.as_secs_f64())?;
        match &self.what {
            What::Opened { wire, party } => write!(f, "w{wire} {party} connects"),
            What::Broken { wire, how } => write!(f, "w{wire} is {how}"),
            What::Received { device, command } => write!(f, "{device} takes {}", short(command)),
            What::Note(text) => f.write_str(text),
            What::Sent { wire, to_server, frame, .. } => {
                let arrow = if *to_server { "→ server" } else { "← server" };
                write!(f, "w{wire} {arrow}  ")?;
                match (said(*to_server, frame), frame) {
                    (Some(said), _) => said.fmt(f),
                    (None, frame) => write!(f, "{frame:?}"),
                }
            }
        }
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.status)?;
        for (name, id) in [("S", &self.session), ("R", &self.command)] {
            if let Some(id) = id {
                write!(f, " {name}={}", short(id))?;
            }
        }
        self.error.as_ref().map_or(Ok(()), |error| write!(f, " ({error})"))
    }
}

/// The end of an id, which tells ids apart.
pub(crate) fn short(id: &str) -> &str {
    id.char_indices().rev().nth(5).map_or(id, |(at, _)| &id[at..])
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.events().iter().try_for_each(|event| writeln!(f, "{event}"))
    }
}
