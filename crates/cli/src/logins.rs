//! The servers that this user has logged in to, by name: address, public key and an operator's key, in a file of the state
//! folder.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use link::{Pin, ServerUrl};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::state::{StateFolder, check_is_file, check_private_keys, replace_private_file};

/// The name of the file in the state folder.
const NAME: &str = "logins.json";

/// The largest file that is read, in bytes.
const MAX_BYTES: u64 = 1024 * 1024;

/// The most servers that are kept.
const MAX_LOGINS: usize = 256;

/// A server that this user has logged in to.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Login {
    /// What it is called here.
    pub(crate) name: String,
    server: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pin: Option<String>,
    #[serde(serialize_with = "expose", deserialize_with = "hide")]
    pub(crate) key: SecretString,
}

/// What a file keeps is as secret as the file.
pub(crate) fn expose<S: Serializer>(
    secret: &SecretString,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.expose_secret())
}

/// Reads such a secret.
pub(crate) fn hide<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SecretString, D::Error> {
    String::deserialize(deserializer).map(SecretString::from)
}

impl Login {
    pub(crate) fn new(
        name: String,
        server: &ServerUrl,
        pin: Option<Pin>,
        key: SecretString,
    ) -> Self {
        Self { name, server: server.to_string(), pin: pin.map(|pin| pin.to_string()), key }
    }

    /// Where the server is.
    pub(crate) fn server(&self) -> anyhow::Result<ServerUrl> {
        self.server.parse().with_context(|| format!("the server of the login '{}'", self.name))
    }

    /// What tells its public key from others; none without TLS.
    pub(crate) fn pin(&self) -> anyhow::Result<Option<Pin>> {
        let pin = self.pin.as_deref().map(str::parse).transpose();
        pin.with_context(|| format!("the public key of the login '{}'", self.name))
    }
}

/// The file.
pub(crate) struct Logins(PathBuf);

impl Logins {
    pub(crate) fn new(folder: &StateFolder) -> Self {
        Self(folder.path().join(NAME))
    }

    /// All of them, the newest last.
    ///
    /// # Errors
    /// When the file cannot be read, or others can read it too.
    pub(crate) fn all(&self) -> anyhow::Result<Vec<Login>> {
        let cannot = || format!("cannot read the logins in {}", self.0.display());
        let found = match fs::metadata(&self.0) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            found => found.with_context(cannot)?,
        };
        check_is_file(&self.0, &found).with_context(cannot)?;
        check_private_keys(&self.0)?;
        ensure!(found.len() <= MAX_BYTES, "{}: it is larger than {MAX_BYTES} bytes", cannot());
        let text = fs::read(&self.0).with_context(cannot)?;
        // The library's own words may repeat what is secret.
        let read = serde_json::from_slice(&text).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            anyhow::anyhow!(
                "it is damaged (line {line}, column {column}); remove it, and log in again"
            )
        });
        read.with_context(cannot)
    }

    /// Keeps one, as the newest, in the place of one with this name.
    ///
    /// # Errors
    /// When the file cannot be read or written, or holds as many as it may.
    pub(crate) fn keep(&self, login: Login) -> anyhow::Result<()> {
        let mut all = self.all()?;
        all.retain(|known| known.name != login.name);
        ensure!(all.len() < MAX_LOGINS, "there are {MAX_LOGINS} logins already; log out of some");
        all.push(login);
        self.write(&all)
    }

    /// Forgets one. `false` when there is none with this name.
    ///
    /// # Errors
    /// As [`Self::keep`].
    pub(crate) fn forget(&self, name: &str) -> anyhow::Result<bool> {
        let mut all = self.all()?;
        let before = all.len();
        all.retain(|known| known.name != name);
        self.write(&all)?;
        Ok(all.len() < before)
    }

    fn write(&self, all: &[Login]) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(all).context("the logins")?;
        replace_private_file(&self.0, &text)
            .with_context(|| format!("cannot write the logins to {}", self.0.display()))
    }
}
