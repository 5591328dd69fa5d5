//! Whose something is: a client by whichever connection it comes.

use std::fmt;

use aip::message::JournalId;
use aip::{ClientId, ClientType, ResponseId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The server's own number of an identity, never used twice, also not after a restart.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "i{}", self.0)
    }
}

/// What the store keeps of a resume key: its SHA-256, in hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyHash(String);

impl KeyHash {
    /// Of a key. A key has 244 random bits, so that a slow hash would protect nothing that a fast one does not.
    #[must_use]
    pub fn of(key: &str) -> Self {
        let digest = Sha256::digest(key.as_bytes());
        Self(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// For comparing in constant time.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// What the store keeps of an identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityRecord {
    /// Its number.
    pub id: Incarnation,
    /// The id that it registers with.
    pub client_id: ClientId,
    /// Its role.
    pub role: ClientType,
    /// The label of the API key that it showed last.
    pub key_name: String,
    /// The public id of that key; the shared key has none.
    pub key_id: Option<String>,
    /// The journal that it named last: FILE and BOOT.
    pub journal: Option<JournalId>,
    /// The resume key that it presented last.
    pub presented: Option<KeyHash>,
    /// The resume key that it was given last.
    pub issued: Option<KeyHash>,
    /// A device: the greatest *R* that was committed to be sent to it. The store raises it with each
    /// [`Record::Decided`](crate::store::Record::Decided) that names this identity; a later record never lowers it.
    pub newest: Option<ResponseId>,
    /// Whether a device keeps a journal.
    pub resumes: bool,
    /// A device's platform.
    pub platform: String,
    /// When it last had a connection, an open task or an outcome to fetch.
    pub seen_at: Timestamp,
    /// Whether it has a connection: then it was seen until the server ended.
    #[serde(default)]
    pub is_here: bool,
}
