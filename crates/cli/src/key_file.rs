//! The created keys of the server on this machine: a file in the state folder, which the commands
//! change and the server watches.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use link::private;
use serde::{Deserialize, Serialize};
use server::{KeyChange, KeyRecord, Server, append_key_change};

use crate::state::{
    StateFolder, audit_log, check_private_keys, give_to_owner_of_folder, replace_private_file,
};

/// The name of the file in the state folder.
const NAME: &str = "keys.json";

/// The largest file that is read, in bytes.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// How often the server looks whether the file has changed.
const LOOK: Duration = Duration::from_secs(1);

/// The file.
#[derive(Clone)]
pub(crate) struct KeyFile {
    folder: PathBuf,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    keys: Vec<KeyRecord>,
}

/// What tells one state of the file from another: it is replaced as a whole, never written in place.
type Version = Option<(SystemTime, u64, u64)>;

impl KeyFile {
    pub(crate) fn new(folder: &StateFolder) -> Self {
        Self { folder: folder.path().to_owned() }
    }

    fn path(&self) -> PathBuf {
        self.folder.join(NAME)
    }

    /// The created keys; none without a file.
    ///
    /// # Errors
    /// When the file cannot be read, or is not what these commands write.
    pub(crate) fn load(&self) -> anyhow::Result<Vec<KeyRecord>> {
        let path = self.path();
        let cannot = || format!("cannot read the keys in {}", path.display());
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Ok(found) if found.len() > MAX_BYTES => {
                bail!("{}: it is larger than {MAX_BYTES} bytes", cannot());
            }
            found => found.with_context(cannot)?,
        };
        check_private_keys(&path)?;
        let text = fs::read_to_string(&path).with_context(cannot)?;
        let content: Content = serde_json::from_str(&text)
            .context("it is not what `flightdeck key` writes; put a copy back, or remove it and create the keys anew")
            .with_context(cannot)?;
        Ok(content.keys)
    }

    /// Adds a key, or takes one away, and writes that into the audit log; nobody else changes them meanwhile. What is
    /// returned is whether the log has it: the change counts all the same.
    ///
    /// # Errors
    /// When `change` has one, or a file cannot be used.
    pub(crate) fn change(
        &self,
        what: KeyChange,
        change: impl FnOnce(&mut Vec<KeyRecord>) -> anyhow::Result<KeyRecord>,
    ) -> anyhow::Result<io::Result<()>> {
        let lock = self.folder.join("keys.lock");
        let cannot = || format!("cannot lock {}", lock.display());
        let file = private(File::options().write(true).create(true).truncate(false)).open(&lock);
        let file = file.with_context(cannot)?;
        give_to_owner_of_folder(&lock);
        file.lock().with_context(cannot)?;
        let mut keys = self.load()?;
        let changed = change(&mut keys)?;
        let text = serde_json::to_string_pretty(&Content { keys }).context("the keys")?;
        let path = self.path();
        replace_private_file(&path, &text)
            .with_context(|| format!("cannot write the keys to {}", path.display()))?;
        let log = audit_log(&self.folder);
        let written = append_key_change(&log, &changed, what);
        give_to_owner_of_folder(&log);
        Ok(written)
    }

    /// Puts each change into force on a server, for ever. A file that cannot be read changes nothing. A disk
    /// that hangs holds up no thread of the runtime.
    pub(crate) async fn watch(self, server: Server, mut seen: Version) {
        loop {
            tokio::time::sleep(LOOK).await;
            let (file, last) = (self.clone(), seen);
            let looking = tokio::task::spawn_blocking(move || file.look(last));
            let Ok(Some((version, loaded))) = looking.await else { continue };
            seen = version;
            match loaded {
                Ok(keys) => {
                    tracing::info!(keys = keys.len(), "the created keys have changed");
                    server.set_keys(keys);
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::error!(error, "the created keys stay as they were");
                }
            }
        }
    }

    /// The keys, if the file is not in the state any more that was `seen`, and the one it is in.
    fn look(&self, seen: Version) -> Option<(Version, anyhow::Result<Vec<KeyRecord>>)> {
        let version = self.version();
        (version != seen).then(|| (version, self.load()))
    }

    /// Which state the file is in.
    pub(crate) fn version(&self) -> Version {
        let found = fs::metadata(self.path()).ok()?;
        #[cfg(unix)]
        let number = std::os::unix::fs::MetadataExt::ino(&found);
        #[cfg(not(unix))]
        let number = 0;
        Some((found.modified().ok()?, found.len(), number))
    }
}
