//! The files of TLS: the server's certificate and key, read again whenever they change, and the
//! certificates that a client trusts beside the system's.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use link::{Pins, Trust};
use server::Tls;

use crate::state::{check_is_file, expand_home, warn_of_readers};

/// Time between two looks at the certificate's files.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The largest file of certificates that is read, in bytes.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// Whose certificates are trusted: the system's, and those of the file, if one is named.
pub(crate) fn trust(ca_file: &str) -> anyhow::Result<Trust> {
    if ca_file.is_empty() {
        return Ok(Trust::system()?);
    }
    Trust::system_and(&authorities(ca_file)?).with_context(|| format!("--ca-file {ca_file}"))
}

/// The same, and whoever has one of these public keys.
pub(crate) fn pinned(pins: Pins, ca_file: &str) -> anyhow::Result<Trust> {
    if ca_file.is_empty() {
        return Ok(Trust::pinned(pins, None)?);
    }
    let pem = authorities(ca_file)?;
    Trust::pinned(pins, Some(&pem)).with_context(|| format!("--ca-file {ca_file}"))
}

fn authorities(ca_file: &str) -> anyhow::Result<Vec<u8>> {
    let path = expand_home(Path::new(ca_file));
    read(&path).with_context(|| format!("--ca-file {}", path.display()))
}

/// Where the server's certificate and key are.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    pub(crate) certificate: PathBuf,
    key: PathBuf,
}

/// What is in them.
type Pair = (Vec<u8>, Vec<u8>);

impl Files {
    /// The files that were named; both or none.
    pub(crate) fn named(certificate: &str, key: &str) -> anyhow::Result<Option<Self>> {
        match (certificate, key) {
            ("", "") => Ok(None),
            (_, "") => bail!("--tls-cert needs the certificate's key too: give it with --tls-key"),
            ("", _) => bail!("--tls-key needs a certificate too: give it with --tls-cert"),
            _ => {
                let [certificate, key] =
                    [certificate, key].map(|path| expand_home(Path::new(path)));
                Ok(Some(Self { certificate, key }))
            }
        }
    }

    pub(crate) const fn new(certificate: PathBuf, key: PathBuf) -> Self {
        Self { certificate, key }
    }

    /// Reads them, and again whenever they change, for as long as the program runs.
    ///
    /// # Errors
    /// When they cannot be used to begin with.
    pub(crate) fn serve(self) -> anyhow::Result<Tls> {
        warn_of_readers("TLS key", &self.key);
        let pair = self.read()?;
        let tls = Tls::new(&pair.0, &pair.1).with_context(|| self.to_string())?;
        tokio::spawn(self.keep_fresh(tls.clone(), pair));
        Ok(tls)
    }

    /// Looks at what is in the files, not at their times: these may be set back, and links be turned.
    async fn keep_fresh(self, tls: Tls, pair: Pair) {
        let mut seen = Ok(pair);
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let files = self.clone();
            let Ok(now) = tokio::task::spawn_blocking(move || files.read()).await else { continue };
            // As a text, an error can be told from the last one.
            let now = now.map_err(|error| format!("{error:#}"));
            if now == seen {
                continue;
            }
            match &now {
                Ok((certificate, key)) => match tls.replace(certificate, key) {
                    Ok(()) => tracing::info!(files = %self, "the TLS certificate was replaced"),
                    Err(error) => self.report(&error),
                },
                Err(error) => self.report(error),
            }
            seen = now;
        }
    }

    fn report(&self, error: &dyn Display) {
        tracing::error!(files = %self, "the new TLS certificate is not used, the old one goes on: {error}");
    }

    fn read(&self) -> anyhow::Result<Pair> {
        let named = |flag: &str, path: &Path| format!("{flag} {}", path.display());
        Ok((
            read(&self.certificate).with_context(|| named("--tls-cert", &self.certificate))?,
            read(&self.key).with_context(|| named("--tls-key", &self.key))?,
        ))
    }
}

impl Display for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "--tls-cert {} --tls-key {}", self.certificate.display(), self.key.display())
    }
}

/// Reads a file of certificates or their keys.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let found = std::fs::metadata(path).context("cannot be read")?;
    check_is_file(path, &found).context("cannot be read")?;
    let length = found.len();
    anyhow::ensure!(length <= MAX_FILE_BYTES, "is larger than {MAX_FILE_BYTES} bytes");
    std::fs::read(path).context("cannot be read")
}
