//! How a client that comes back is known again, and what becomes of what it still has.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Keyed, part};
use crate::id::ResponseId;
use crate::payload::{Object, Payload};

/// The most characters of a store id, a resume key, or either half of a journal id.
const MAX_CHARS: usize = 128;

/// The most commands that one REGISTER may list.
const MAX_HELD: usize = 4096;

/// Who a client is and what it still has, as `metadata.flightdeck.resume` of REGISTER. The last two are a device's.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// The store id of the server's last confirmation; absent at first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    /// The key of the server's last confirmation; absent at first. A secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Which journal it keeps.
    pub journal: JournalId,
    /// The number of this connection: it grows with each.
    pub n: u64,
    /// The greatest *R* that a receipt was written for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest: Option<ResponseId>,
    /// All that its journal holds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<Held>,
}

impl fmt::Debug for Resume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resume")
            .field("store", &self.store)
            .field("key", &self.key.as_ref().map(|_| "…"))
            .field("journal", &self.journal)
            .field("n", &self.n)
            .field("newest", &self.newest)
            .field("commands", &self.commands)
            .finish()
    }
}

impl Resume {
    /// Read out of what a client asks for. `None` of one that says nothing of itself.
    pub(super) fn of(resume: Option<&Payload>) -> Result<Option<Self>, String> {
        #[derive(Deserialize)]
        struct Parts {
            store: Option<Payload>,
            key: Option<Payload>,
            journal: Option<Payload>,
            n: Option<Payload>,
            newest: Option<Payload>,
            commands: Option<Payload>,
        }

        let Some(Object(parts)) = part::<Object<Parts>>(".resume", resume)? else {
            return Ok(None);
        };
        let missing = |name: &str| format!(".resume.{name} is missing");
        let held = part(".resume.commands", parts.commands.as_ref())?;
        let held: Vec<Object<Held>> = held.unwrap_or_default();
        if held.len() > MAX_HELD {
            return Err(format!(".resume.commands: they are more than {MAX_HELD}"));
        }
        Ok(Some(Self {
            store: word(".resume.store", parts.store.as_ref())?,
            key: word(".resume.key", parts.key.as_ref())?,
            journal: part(".resume.journal", parts.journal.as_ref())?
                .ok_or_else(|| missing("journal"))?,
            n: part(".resume.n", parts.n.as_ref())?.ok_or_else(|| missing("n"))?,
            newest: part(".resume.newest", parts.newest.as_ref())?,
            commands: held.into_iter().map(|Object(held)| held).collect(),
        }))
    }
}

/// Reads a store id or a key. What is wrong with one is said without it, since a key is a secret.
fn word(name: &str, value: Option<&Payload>) -> Result<Option<String>, String> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(None) };
    let word = value.parse::<String>().ok().filter(|text| is_word(text));
    let wrong = || format!("{name}: it is no text of 1 to {MAX_CHARS} printable characters");
    word.map(Some).ok_or_else(wrong)
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_CHARS && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Names a client's journal, `FILE.BOOT`: FILE is random and made with its file, BOOT is the kernel's boot id.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JournalId {
    file: String,
    boot: String,
}

impl JournalId {
    /// Of its two halves.
    ///
    /// # Errors
    /// When one is empty, too long, or not printable ASCII without a dot.
    pub fn new(file: &str, boot: &str) -> Result<Self, String> {
        let is_good = |half: &str| is_word(half) && !half.contains('.');
        if is_good(file) && is_good(boot) {
            return Ok(Self { file: file.to_owned(), boot: boot.to_owned() });
        }
        Err(format!("a journal is FILE.BOOT, each of 1 to {MAX_CHARS} printable characters"))
    }

    /// Of two halves of which what does not fit is left out; nothing at all becomes `0`.
    #[must_use]
    pub fn lossy(file: &str, boot: &str) -> Self {
        let fitting = |half: &str| {
            let fits = |c: &char| c.is_ascii_graphic() && *c != '.';
            let fitting: String = half.chars().filter(fits).take(MAX_CHARS).collect();
            if fitting.is_empty() { "0".to_owned() } else { fitting }
        };
        Self { file: fitting(file), boot: fitting(boot) }
    }

    /// The half that was made with the client's file.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The half that changes with each start of the machine.
    #[must_use]
    pub fn boot(&self) -> &str {
        &self.boot
    }
}

impl TryFrom<String> for JournalId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (file, boot) = text.split_once('.').unwrap_or((&text, ""));
        Self::new(file, boot)
    }
}

impl From<JournalId> for String {
    fn from(id: JournalId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for JournalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.file, self.boot)
    }
}

/// A command that a device's journal holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The COMMAND's id.
    #[serde(rename = "R")]
    pub response_id: ResponseId,
    /// How far it came.
    pub state: HeldState,
}

/// How far a command came on its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeldState {
    /// It has a receipt, and was not started.
    Received,
    /// Its first action was started.
    Running,
    /// Its results are there.
    Done,
}

/// What a device shall do with a command that it listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Instruction {
    /// Send its results.
    Send,
    /// Start it or let it run; its results come when it is done, also when it is done by now.
    Continue,
    /// Stop it and forget its results, but remember that it was there.
    Discard,
}

/// What an `ack` client learns of its identity, in the confirmation.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Resumed {
    /// Names the server's memory.
    pub store: String,
    /// Whether the store id that REGISTER named was this store's once.
    #[serde(default)]
    pub former: bool,
    /// Whether the identity was known.
    pub resumed: bool,
    /// Proves the identity the next time. A secret.
    pub resume_key: String,
    /// How long a device is waited for, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume_window_s: Option<f64>,
    /// What becomes of each command that a device listed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub commands: BTreeMap<ResponseId, Instruction>,
}

impl fmt::Debug for Resumed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resumed")
            .field("store", &self.store)
            .field("former", &self.former)
            .field("resumed", &self.resumed)
            .field("resume_window_s", &self.resume_window_s)
            .field("commands", &self.commands)
            .finish_non_exhaustive()
    }
}

/// Why a client is not taken for who it says it is, in the ERROR's `result.flightdeck.resume`: what to come with
/// instead.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mismatch {
    /// This server's store id: come with what you hold for that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    /// `unknown`: forget the key, and come without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The highest `n` that was seen: come with one above it, if this is the newest connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<u64>,
}

/// The same as the `result` of an ERROR.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumeRefused {
    /// What was wrong.
    pub resume: Mismatch,
}

impl ResumeRefused {
    /// An ERROR's `result`.
    #[must_use]
    pub fn to_result(&self) -> Option<Payload> {
        Payload::from_value(&Keyed { flightdeck: self }).ok()
    }

    /// Read out of an ERROR's `result`.
    #[must_use]
    pub fn of(result: Option<&Payload>) -> Option<Self> {
        result?.parse::<Keyed<Self>>().ok().map(|keyed| keyed.flightdeck)
    }
}
