//! Who a client is: what it needs to be known again when it comes back, in a file or in memory.
//!
//! [`Identity`] makes the `resume` of each REGISTER and takes in what the server answers. What a client has of a
//! server (tasks, commands) is its own affair: it is told when that counts for another store id.
//!
//! | of the file | written |
//! |---|---|
//! | FILE, the first half of the journal id | when the file is made |
//! | `n`, the number of the connection | before each REGISTER |
//! | the store id of the last confirmation | with the confirmation, when it is another |
//! | the key of a store | before it is presented, and synced |

mod file;

use std::fmt;
use std::path::Path;
use std::time::Duration;

use aip::message::{JournalId, Mismatch, Resume, Resumed};
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use self::file::IdentityError;
use self::file::StateFile;
use crate::ambient::Ambient;

/// The longest store id or key that is kept, in bytes. A server takes no longer ones back.
const MAX_WORD_BYTES: usize = 128;

/// How long things are kept that belong to other stores than the present one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Most stores beside the present one; the newest stay.
    pub stores: usize,
    /// Longest time since one was the present one.
    pub time: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self { stores: 8, time: Duration::from_secs(7 * 24 * 3600) }
    }
}

/// What a client must still know when it comes back. One client at a time has it: the file is locked.
pub struct Identity {
    known: Known,
    journal: JournalId,
    file: Option<StateFile>,
    retention: Retention,
    ambient: Ambient,
}

/// What the file holds.
#[derive(Debug, Serialize, Deserialize)]
struct Known {
    /// FILE.
    file: String,
    /// The number of the last connection.
    n: u64,
    /// The store id that the next REGISTER names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    store: Option<String>,
    /// The stores that confirmed this client, the last one last.
    #[serde(default)]
    stores: Vec<Store>,
}

/// What is kept of one server.
#[derive(Debug, Serialize, Deserialize)]
struct Store {
    id: String,
    /// The last key that was presented.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<Key>,
    /// A later one, which was not presented yet.
    #[serde(skip)]
    issued: Option<Key>,
    /// When it confirmed this client last.
    seen: Timestamp,
}

/// A resume key, which does not show itself.
#[derive(Debug, Clone)]
struct Key(SecretString);

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.expose_secret().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|key| Self(key.into()))
    }
}

impl Identity {
    /// The identity in this file, which is made when it is not there. Its folder must exist; a file beside it is the
    /// lock.
    ///
    /// # Errors
    /// When another client has it, or it cannot be read or written.
    pub fn open(
        path: &Path,
        retention: Retention,
        ambient: &Ambient,
    ) -> Result<Self, IdentityError> {
        let file = StateFile::lock(path)?;
        let known = match file.read()? {
            Some(known) => known,
            None => {
                let known = Known::new(ambient);
                file.write(&known, true)?;
                known
            }
        };
        Ok(Self::of(known, Some(file), retention, ambient))
    }

    /// A new identity, which ends with the client.
    #[must_use]
    pub fn in_memory(ambient: &Ambient) -> Self {
        Self::of(Known::new(ambient), None, Retention::default(), ambient)
    }

    fn of(known: Known, file: Option<StateFile>, retention: Retention, ambient: &Ambient) -> Self {
        let journal = JournalId::lossy(&known.file, ambient.boot());
        Self { known, journal, file, retention, ambient: ambient.clone() }
    }

    /// Names this client's journal: it changes when its file is lost, or its machine loses power.
    #[must_use]
    pub const fn journal(&self) -> &JournalId {
        &self.journal
    }

    /// Takes another FILE, since the journal has lost something that its server relies on: what it was sent counts as
    /// sent to another journal then, and is not sent again.
    pub fn renew_journal(&mut self) {
        self.known.file = self.ambient.uuid().to_string();
        self.journal = JournalId::lossy(&self.known.file, self.ambient.boot());
    }

    /// The store id that the next REGISTER names: that of the last confirmation, or the one that a refusal asked for.
    #[must_use]
    pub fn store(&self) -> Option<&str> {
        self.known.store.as_deref()
    }

    /// The stores that are remembered beside the present one, the newest last.
    pub fn other_stores(&self) -> impl Iterator<Item = &str> {
        let is_other = |store: &&Store| Some(&store.id) != self.known.store.as_ref();
        self.known.stores.iter().filter(is_other).map(|store| store.id.as_str())
    }

    /// What the next REGISTER carries; a device adds what it holds. The file has it by then, and a key that is
    /// presented for the first time is synced. When the file cannot be written, this is logged, and the key before is
    /// presented, which the server still takes.
    pub fn present(&mut self) -> Resume {
        self.known.n = self.known.n.saturating_add(1);
        self.forget_old();
        let before = self.promote();
        if let Err(error) = self.write(before.is_some()) {
            tracing::warn!(%error, "failed to write who this client is");
            self.demote(before);
        }
        Resume {
            store: self.known.store.clone(),
            key: self.present_store().and_then(|store| store.key.as_ref()).map(Key::to_wire),
            journal: self.journal.clone(),
            n: self.known.n,
            newest: None,
            commands: Vec::new(),
        }
    }

    /// The server confirmed this client. Returns the store id under which this client has held what it now holds for
    /// [`Self::store`], if that was another one: the server says that it is its own former one.
    pub fn handle_confirmed(&mut self, resumed: &Resumed) -> Option<String> {
        if !is_word(&resumed.store) || !is_word(&resumed.resume_key) {
            tracing::warn!("the server's store id or key is too long to be kept");
            return None;
        }
        let named = self.known.store.replace(resumed.store.clone());
        let former = named.clone().filter(|named| resumed.former && *named != resumed.store);
        // A key of a former store id is still taken.
        let written = [Some(&resumed.store), former.as_ref()].into_iter().flatten();
        let written = written.filter_map(|id| self.store_of(id)?.key.clone()).next();
        let is_gone =
            |store: &Store| store.id == resumed.store || Some(&store.id) == former.as_ref();
        self.known.stores.retain(|store| !is_gone(store));
        self.known.stores.push(Store {
            id: resumed.store.clone(),
            key: written,
            issued: Some(Key(resumed.resume_key.clone().into())),
            seen: self.ambient.timestamp(),
        });
        if named.as_ref() != Some(&resumed.store)
            && let Err(error) = self.write(false)
        {
            tracing::warn!(%error, "failed to write which server this client is known to");
        }
        former
    }

    /// The server refused this client for who it says it is. `true` when the next REGISTER will differ.
    pub fn handle_refused(&mut self, mismatch: &Mismatch) -> bool {
        let mut differs = false;
        if let Some(id) = mismatch.store.as_ref() {
            let held = self.known.stores.iter().any(|store| store.id == *id).then(|| id.clone());
            differs |= held != self.known.store;
            self.known.store = held;
        }
        if mismatch.key.is_some() {
            let named = self.known.store.clone();
            for store in
                self.known.stores.iter_mut().filter(|store| Some(&store.id) == named.as_ref())
            {
                differs |= store.key.take().is_some() | store.issued.take().is_some();
            }
        }
        if let Some(highest) = mismatch.n {
            differs = true;
            self.known.n = self.known.n.max(highest);
        }
        differs
    }

    fn present_store(&self) -> Option<&Store> {
        self.store_of(self.known.store.as_deref()?)
    }

    fn store_of(&self, id: &str) -> Option<&Store> {
        self.known.stores.iter().find(|store| store.id == id)
    }

    fn present_store_mut(&mut self) -> Option<&mut Store> {
        let named = self.known.store.as_ref()?;
        self.known.stores.iter_mut().find(|store| store.id == *named)
    }

    /// Makes the issued key the one that is presented. Returns the one before, if there is a new one.
    fn promote(&mut self) -> Option<Option<Key>> {
        let store = self.present_store_mut()?;
        let issued = store.issued.take()?;
        Some(store.key.replace(issued))
    }

    fn demote(&mut self, before: Option<Option<Key>>) {
        if let Some((store, before)) = self.present_store_mut().zip(before) {
            store.issued = std::mem::replace(&mut store.key, before);
        }
    }

    /// Forgets the stores that are beyond the bounds.
    fn forget_old(&mut self) {
        let (now, named) = (self.ambient.timestamp(), self.known.store.clone());
        let Retention { stores: most, time } = self.retention;
        let is_old = |store: &Store| {
            let age = Duration::try_from(now.duration_since(store.seen)).unwrap_or_default();
            age > time
        };
        let is_present = |store: &Store| Some(&store.id) == named.as_ref();
        self.known.stores.retain(|store| is_present(store) || !is_old(store));
        let others = self.known.stores.iter().filter(|store| !is_present(store)).count();
        let mut beyond = others.saturating_sub(most);
        self.known.stores.retain(|store| {
            let goes = beyond > 0 && !is_present(store);
            beyond -= usize::from(goes);
            !goes
        });
    }

    fn write(&self, sync: bool) -> Result<(), IdentityError> {
        self.file.as_ref().map_or(Ok(()), |file| file.write(&self.known, sync))
    }
}

impl Known {
    fn new(ambient: &Ambient) -> Self {
        Self { file: ambient.uuid().to_string(), n: 0, store: None, stores: Vec::new() }
    }
}

impl Key {
    fn to_wire(&self) -> String {
        self.0.expose_secret().to_owned()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("journal", &self.journal)
            .field("n", &self.known.n)
            .field("store", &self.known.store)
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

fn is_word(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MAX_WORD_BYTES
        && text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests;
