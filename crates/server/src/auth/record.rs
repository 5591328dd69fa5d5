//! A key as it is stored: everything but the secret. It is a text that its holder shows, or a key pair of a device.

use std::fmt;

use aip::ClientId;
use jiff::Timestamp;
use link::proof::Shown;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use uuid::Uuid;

use super::keyring::SHARED_NAMES;
use super::{JoinToken, Pattern};

/// What created keys begin with, so that secret scanners know one when they see it.
const PREFIX: &str = "fd_";

/// Characters of the part of a key that names it and is no secret.
pub(super) const ID_CHARS: usize = 12;

/// The longest name of a key, in characters.
pub(super) const MAX_NAME_CHARS: usize = 64;

/// What the holder of a key may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Executes: registers as a device, and submits tasks for itself.
    Device,
    /// Orchestrates: registers as a constellation, and submits tasks for its targets, also over HTTP.
    Constellation,
    /// Runs the place: what a constellation may, and sees and cancels everybody's tasks.
    Operator,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Device => "device",
            Self::Constellation => "constellation",
            Self::Operator => "operator",
        })
    }
}

/// What is asked for when a key is created.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// A label for people: in listings, in the log, in the audit log.
    pub name: String,
    /// What its holder may be.
    pub role: Role,
    /// Which ids its holder may register with; any if `None`.
    pub client: Option<Pattern>,
    /// Which devices its holder may work with; any if `None`. Not for devices.
    pub target: Option<Pattern>,
    /// When it stops to open.
    pub expires_at: Option<Timestamp>,
}

/// A created key or a device's key pair, as it is stored: without its secret, which cannot be found out from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRecord {
    /// The part of the key that names it: what stands between `fd_` and the next `_`. A key pair has such a name too.
    pub id: String,
    /// The label.
    pub name: String,
    /// What its holder may be.
    pub role: Role,
    /// Which ids its holder may register with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<Pattern>,
    /// Which devices its holder may work with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Pattern>,
    /// SHA-256 of the whole key, in hexadecimal digits. A key has 244 random bits, so that a slow hash
    /// would protect nothing that a fast one does not. A key pair has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
    /// The public key of a device's key pair, in the form of [`link::proof`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ed25519: Option<String>,
    /// The id of the join token that the key pair was bound with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    joined_with: Option<String>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it stops to open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
}

impl KeyRecord {
    /// Creates a key: what to store, and the key itself, to be shown once.
    ///
    /// # Errors
    /// When the name is empty, too long, has control characters or is the shared key's, or a device has
    /// targets.
    pub fn create(new: NewKey) -> Result<(Self, SecretString), String> {
        check_name(&new.name)?;
        if new.role == Role::Device && new.target.is_some() {
            return Err("a device works for itself only: it has no targets".to_owned());
        }
        let id: String = Uuid::new_v4().simple().to_string().chars().take(ID_CHARS).collect();
        let key = format!("{PREFIX}{id}_{}", generate_key().expose_secret());
        let record = Self {
            sha256: Some(hash(key.as_bytes())),
            ed25519: None,
            joined_with: None,
            id,
            name: new.name,
            role: new.role,
            client: new.client,
            target: new.target,
            created_at: Timestamp::now(),
            expires_at: new.expires_at,
        };
        Ok((record, SecretString::from(key)))
    }

    /// Binds an id, which a pattern names, to the key pair of a device.
    pub(super) fn bind(
        name: String,
        client: Pattern,
        public_key: &str,
        token: &str,
        at: Timestamp,
    ) -> Self {
        Self {
            id: Uuid::new_v4().simple().to_string().chars().take(ID_CHARS).collect(),
            name,
            role: Role::Device,
            client: Some(client),
            target: None,
            sha256: None,
            ed25519: Some(public_key.to_owned()),
            joined_with: Some(token.to_owned()),
            created_at: at,
            expires_at: None,
        }
    }

    /// Whether it is a device's key pair, rather than a text that is shown.
    #[must_use]
    pub const fn is_key_pair(&self) -> bool {
        self.ed25519.is_some()
    }

    /// Whether it is the key pair of this device.
    pub(super) fn is_bound_to(&self, device: &ClientId) -> bool {
        self.is_key_pair() && self.client.as_ref().is_some_and(|client| client.matches(device))
    }

    /// Whether it is the key pair with this public key, bound with this token: then its device asks again, since the answer
    /// was lost.
    pub(super) fn is_of(&self, token: &JoinToken, public_key: &str) -> bool {
        self.ed25519.as_deref() == Some(public_key) && self.joined_with.as_ref() == Some(&token.id)
    }

    /// Whether its device has signed this for this store.
    pub(super) fn has_signed(&self, shown: &Shown, store: &str) -> bool {
        let device =
            self.client.as_ref().and_then(|client| ClientId::new(&client.to_string()).ok());
        let own = self.ed25519.as_deref().zip(device);
        own.is_some_and(|(public_key, device)| shown.is_signed_by(public_key, &device, store))
    }

    /// Whether it opens no more.
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|end| end <= now)
    }

    /// Whether this is the key. In constant time.
    pub(super) fn is(&self, shown: &[u8]) -> bool {
        self.sha256.as_deref().is_some_and(|own| is_hash_of(own, shown))
    }

    /// Whether its holder may register with this id.
    pub(super) fn admits_client(&self, id: &ClientId) -> bool {
        self.client.as_ref().is_none_or(|pattern| pattern.matches(id))
    }
}

/// The part of a shown key that names its record.
pub(super) fn id_of(shown: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(shown).ok()?;
    text.strip_prefix(PREFIX)?.split_once('_').map(|(id, _)| id)
}

/// Refuses a name that a key cannot have.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let chars = name.chars().count();
    if chars == 0 || chars > MAX_NAME_CHARS || name.chars().any(char::is_control) {
        return Err(format!("a name has 1 to {MAX_NAME_CHARS} characters, none of control"));
    }
    if SHARED_NAMES.contains(&name) {
        return Err(format!("'{name}' is what the shared key is called in the logs"));
    }
    Ok(())
}

/// Whether a stored hash is that of a secret that is shown. In constant time.
pub(super) fn is_hash_of(stored: &str, shown: &[u8]) -> bool {
    bool::from(hash(shown).as_bytes().ct_eq(stored.as_bytes()))
}

pub(super) fn hash(key: &[u8]) -> String {
    Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A fresh secret: 244 random bits, in letters and digits.
#[must_use]
pub fn generate_key() -> SecretString {
    let halves = [Uuid::new_v4(), Uuid::new_v4()];
    SecretString::from(halves.map(|half| half.simple().to_string()).concat())
}
