//! What happened in a simulation, in order: every frame on every wire, and what was done to the parties.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aip::codec::Wire;
use aip::message::{Accepted, Confirmed, Extension, Instruction, ResultAck, Resume};
use aip::{ClientMessage, ResponseId, ServerMessage, Status};
use link::Frame;
use server::store::{Batch, Record};
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
    /// A device carries an order out.
    Ran { device: String, order: String },
    /// A device is told to leave: it turns down what comes from then on, and keeps nothing of that.
    Leaving { device: String },
    /// A device dies.
    Crashed { device: String },
    /// The store has this.
    Stored(Arc<Batch>),
    /// The store has lost so many of the last batches, and from now on has another id.
    Forgotten { batches: usize },
    /// Something happens to the server.
    Server(Life),
    /// A requester that waits for all outcomes has submitted a task, and nothing hindered it.
    Submitted { party: String, session: String },
    /// A requester learned what became of a task.
    Learned { party: String, session: String, end: End },
    /// A requester got output that nobody wrote there.
    Garbled { party: String, session: String },
    /// Something else.
    Note(String),
}

/// What happens to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    Started,
    Stopping,
    Killed,
    LostPower,
}

/// What a requester was told of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    Completed,
    Failed(String),
    /// It was not accepted.
    Refused(String),
    /// Nobody knows.
    Lost(String),
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

    /// Looks at all that has happened.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&[Event]) -> T) -> T {
        look(&self.lock())
    }

    pub(crate) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A message on a wire, as far as it matters here.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Said {
    pub(crate) kind: String,
    pub(crate) status: String,
    pub(crate) session: Option<String>,
    /// R: of a COMMAND its id, of results the command that they answer.
    pub(crate) command: Option<String>,
    pub(crate) error: Option<String>,
    pub(crate) more: More,
}

/// What else matters of some messages.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) enum More {
    #[default]
    Nothing,
    /// Of REGISTER: who its client is, and what is in its journal.
    Comes(Box<Resume>),
    /// Of a confirmation: what becomes of each of these.
    Confirmed(Vec<(ResponseId, Instruction)>),
    /// Of an ACK: the task's id.
    Accepted(String),
    /// Of the answer to results.
    Taken(ResultAck),
}

/// Reads a frame.
pub(crate) fn said(to_server: bool, frame: &Frame) -> Option<Said> {
    let Frame::Text(text) = frame else { return None };
    let text_of = |id: Option<&str>| id.map(str::to_owned);
    if to_server {
        let message = ClientMessage::decode(text).ok()?;
        let resume = match message.kind {
            aip::ClientMessageType::Register => {
                Extension::of(message.metadata.as_ref()).ok().flatten()
            }
            _ => None,
        }
        .and_then(|asked| asked.resume);
        return Some(Said {
            kind: message.kind.as_str().to_owned(),
            status: message.status.to_string(),
            session: text_of(message.session_id.as_ref().map(|id| id.as_str())),
            command: text_of(message.prev_response_id.as_ref().map(|id| id.as_str())),
            more: resume.map_or(More::Nothing, |resume| More::Comes(Box::new(resume))),
            error: message.error,
        });
    }
    let message = ServerMessage::decode(text).ok()?;
    Some(Said {
        kind: message.kind.to_string(),
        status: message.status.to_string(),
        session: text_of(message.session_id.as_ref().map(|id| id.as_str())),
        command: text_of(message.response_id.as_ref().map(|id| id.as_str())),
        more: more_of(&message),
        error: message.error,
    })
}

fn more_of(message: &ServerMessage) -> More {
    let result = message.result.as_ref();
    if message.kind != aip::ServerMessageType::Heartbeat
        || message.status != Status::Ok
        || result.is_none()
    {
        return More::Nothing;
    }
    if message.session_id.is_none() {
        let resumed = Confirmed::of(result).and_then(|confirmed| confirmed.resumed);
        return resumed.map_or(More::Nothing, |resumed| {
            More::Confirmed(resumed.commands.into_iter().collect())
        });
    }
    let accepted = Accepted::of(result).map(|accepted| More::Accepted(accepted.task));
    accepted.or_else(|| ResultAck::of(result).map(More::Taken)).unwrap_or_default()
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>9.3}  ", self.at.as_secs_f64())?;
        match &self.what {
            What::Opened { wire, party } => write!(f, "w{wire} {party} connects"),
            What::Broken { wire, how } => write!(f, "w{wire} is {how}"),
            What::Received { device, command } => write!(f, "{device} takes {}", short(command)),
            What::Ran { device, order } => write!(f, "{device} carries out {order}"),
            What::Leaving { device } => write!(f, "{device} is told to leave"),
            What::Crashed { device } => write!(f, "{device} crashes"),
            What::Stored(batch) => {
                write!(f, "the store has of T={}:", short(&batch.task.to_string()))?;
                batch.records.iter().try_for_each(|record| write!(f, " {}", Stored(record)))
            }
            What::Forgotten { batches } => write!(f, "the store has lost {batches} batches"),
            What::Server(life) => write!(f, "the server: {life:?}"),
            What::Submitted { party, session } => {
                write!(f, "{party} waits for S={}", short(session))
            }
            What::Learned { party, session, end } => {
                write!(f, "{party} learns of S={}: {end:?}", short(session))
            }
            What::Garbled { party, session } => write!(f, "{party} got wrong output of {session}"),
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

/// A record in a few words.
struct Stored<'a>(&'a Record);

impl fmt::Display for Stored<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Record::Created(task) => write!(f, "created S={}", short(task.session_id.as_str())),
            Record::Noted { .. } => f.write_str("noted"),
            Record::Decided { response_id, .. } => {
                write!(f, "decided R={}", short(response_id.as_str()))
            }
            Record::Readdressed { response_id, .. } => {
                write!(f, "readdressed R={}", short(response_id.as_str()))
            }
            Record::Cancelling { why, .. } => write!(f, "cancelling ({why})"),
            Record::Answered { results, .. } => {
                let error = results.iter().find_map(|result| result.error.as_deref());
                write!(f, "answered ({})", error.unwrap_or("success"))
            }
            Record::Ended(ended) => write!(f, "ended {:?}", ended.ending),
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
        match &self.more {
            More::Nothing | More::Accepted(_) => {}
            More::Comes(resume) => {
                let Resume { journal, n, key, commands, .. } = &**resume;
                let key = key.as_deref().map(short);
                let (file, boot) = (short(journal.file()), short(journal.boot()));
                write!(f, " {file}.{boot} n={n} key={key:?}")?;
                for held in commands {
                    write!(f, " {}:{:?}", short(held.response_id.as_str()), held.state)?;
                }
            }
            More::Confirmed(told) => {
                for (id, instruction) in told {
                    write!(f, " {}:{instruction:?}", short(id.as_str()))?;
                }
            }
            More::Taken(ack) => write!(f, " {:?}", ack.result)?,
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
        self.lock().iter().try_for_each(|event| writeln!(f, "{event}"))
    }
}
