//! What a running server says of itself to commands on its machine: where others reach it, and its public key. They make
//! the lines with which other machines join.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use link::{Pin, ServerUrl};
use serde::{Deserialize, Serialize};

use crate::state::{StateFolder, replace_private_note};
use crate::tls;

/// The name of the file in the state folder.
const NAME: &str = "serving.json";

/// The largest file that is read, in bytes.
const MAX_BYTES: u64 = 64 * 1024;

/// The file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Serving {
    /// Where other machines reach the server.
    pub(crate) url: String,
    /// Where commands on its machine do.
    pub(crate) local: String,
    /// Its TLS certificate, which may be another one by now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) certificate: Option<PathBuf>,
    /// The hash of the public key of the TLS proxy in front of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) proxy_key_hash: Option<String>,
}

/// The file of a server that runs; it goes with it.
pub(crate) struct Noted(PathBuf);

impl Drop for Noted {
    fn drop(&mut self) {
        // Where it stays, a token names a server that is not there.
        let _removed = fs::remove_file(&self.0);
    }
}

impl Serving {
    /// Writes the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn note(&self, folder: &StateFolder) -> anyhow::Result<Noted> {
        let path = folder.path().join(NAME);
        let text = serde_json::to_string(self).context("where the server is")?;
        replace_private_note(&path, &text)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Noted(path))
    }

    /// What the server of a state folder has said.
    ///
    /// # Errors
    /// When no server runs there, or the file cannot be read.
    pub(crate) fn read(folder: &StateFolder) -> anyhow::Result<Self> {
        let path = folder.path().join(NAME);
        let cannot = || format!("cannot read {}", path.display());
        if !path.exists() || !folder.is_taken() {
            let folder = folder.path().display();
            bail!(
                "no server runs with the state folder {folder}\n  start it with `flightdeck serve --host \
                 0.0.0.0`, or name its folder with --state-dir"
            );
        }
        let length = fs::metadata(&path).with_context(cannot)?.len();
        anyhow::ensure!(length <= MAX_BYTES, "{}: it is larger than {MAX_BYTES} bytes", cannot());
        let text = fs::read_to_string(&path).with_context(cannot)?;
        serde_json::from_str(&text).with_context(cannot)
    }

    /// Where the server is.
    pub(crate) fn server(&self) -> anyhow::Result<ServerUrl> {
        self.url.parse().with_context(|| format!("{:?} is no address of a server", self.url))
    }

    /// The server that runs with a state folder, if one does.
    pub(crate) fn here(folder: &StateFolder) -> Option<Self> {
        Self::read(folder).ok()
    }

    /// Where it is for commands on its machine, and what tells its public key from others; none without TLS.
    ///
    /// # Errors
    /// When the certificate cannot be read.
    pub(crate) fn local(&self) -> anyhow::Result<(ServerUrl, Option<Pin>)> {
        let local = &self.local;
        let server =
            local.parse().with_context(|| format!("{local:?} is no address of a server"))?;
        Ok((server, self.certificate.as_deref().map(pin_of).transpose()?))
    }

    /// What tells the public key that clients see there from others; none without TLS.
    ///
    /// # Errors
    /// When the certificate cannot be read, or behind a proxy the key is not known.
    pub(crate) fn pin(&self) -> anyhow::Result<Option<Pin>> {
        if let Some(hash) = &self.proxy_key_hash {
            return hash.parse().map(Some).context("proxy_key_hash");
        }
        let Some(path) = &self.certificate else {
            let is_tls = self.server()?.is_tls();
            ensure!(
                !is_tls,
                "the public key of the TLS proxy at {} is not known: set the server's proxy_key_hash",
                self.url
            );
            return Ok(None);
        };
        pin_of(path).map(Some)
    }
}

fn pin_of(certificate: &Path) -> anyhow::Result<Pin> {
    let path = certificate.display();
    let pem = tls::read(certificate).with_context(|| path.to_string())?;
    Pin::of_pem(&pem).with_context(|| format!("{path} is no certificate"))
}
