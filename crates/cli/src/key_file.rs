//! The created keys of the server on this machine, the key pairs of devices and the join tokens: a file in the state
//! folder, which the commands change and the server watches, and changes itself when somebody joins.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use link::private;
use server::{BookChange, KeyBook, KeyChange, KeyStore, Role, Server, append_key_change};

use crate::key_uses::KeyUses;
use crate::state::{
    StateFolder, audit_log, check_private_keys, give_to_owner_of_folder, replace_private_file,
};

/// The name of the file in the state folder.
const NAME: &str = "keys.json";

/// The largest file that is read, in bytes.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// How often the server looks whether the file has changed.
const LOOK: Duration = Duration::from_secs(1);

/// The shortest time between two looks, however many keys are shown that are not known.
const PAUSE: Duration = Duration::from_millis(50);

/// The file.
#[derive(Clone)]
pub(crate) struct KeyFile {
    folder: PathBuf,
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

    /// All that is in the file; nothing without one.
    ///
    /// # Errors
    /// When the file cannot be read, or is not what these commands write.
    pub(crate) fn book(&self) -> anyhow::Result<KeyBook> {
        let path = self.path();
        let cannot = || format!("cannot read the keys in {}", path.display());
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(KeyBook::default()),
            Ok(found) if found.len() > MAX_BYTES => {
                bail!("{}: it is larger than {MAX_BYTES} bytes", cannot());
            }
            found => found.with_context(cannot)?,
        };
        check_private_keys(&path)?;
        let text = fs::read_to_string(&path).with_context(cannot)?;
        serde_json::from_str(&text)
            .context("it is not what `flightdeck key` writes; put a copy back, or remove it and create the keys anew")
            .with_context(cannot)
    }

    /// Adds a key or token, or takes one away, and writes its name and role into the audit log; nobody else changes them
    /// meanwhile. What is returned is whether the log has it: the change counts all the same.
    ///
    /// # Errors
    /// When `change` has one, or a file cannot be used.
    pub(crate) fn change(
        &self,
        what: KeyChange,
        change: impl FnOnce(&mut KeyBook) -> anyhow::Result<(String, Role)>,
    ) -> anyhow::Result<io::Result<()>> {
        let _locked = self.lock()?;
        let mut book = self.book()?;
        let (name, role) = change(&mut book)?;
        self.write(&book)?;
        let log = audit_log(&self.folder);
        let written = append_key_change(&log, &name, role, what);
        give_to_owner_of_folder(&log);
        Ok(written)
    }

    /// Keeps others from changing the file for as long as what is returned is open.
    fn lock(&self) -> anyhow::Result<File> {
        let lock = self.folder.join("keys.lock");
        let cannot = || format!("cannot lock {}", lock.display());
        let file = private(File::options().write(true).create(true).truncate(false)).open(&lock);
        let file = file.with_context(cannot)?;
        give_to_owner_of_folder(&lock);
        file.lock().with_context(cannot)?;
        Ok(file)
    }

    /// Writes the file anew. Where a full disk has no room for another one, what has become no longer is written in the
    /// place of the old one: a key has to be revoked all the same.
    fn write(&self, book: &KeyBook) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(book).context("the keys")?;
        let path = self.path();
        if text.len() as u64 > MAX_BYTES {
            bail!("{} would be larger than {MAX_BYTES} bytes; revoke some keys", path.display());
        }
        let written = replace_private_file(&path, &text).or_else(|error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                overwrite(&path, &text).map_err(|_| error)
            }
            _ => Err(error),
        });
        written.with_context(|| format!("cannot write the keys to {}", path.display()))
    }

    /// Puts each change into force on a server, for ever: at the latest when a new key is shown. A file that cannot be
    /// read changes nothing. A disk that hangs holds up no thread of the runtime.
    pub(crate) async fn watch(self, server: Server, mut seen: Version) {
        let mut noted = HashMap::new();
        loop {
            let wanted = tokio::time::timeout(LOOK, server.key_look_wanted()).await;
            let uses = server.key_uses();
            // Nobody has to wait for it.
            if wanted.is_err() && uses != noted {
                noted.clone_from(&uses);
                let folder = self.folder.clone();
                // It is no more than a help to people: where it fails, it is tried with the next use.
                let _noted =
                    tokio::task::spawn_blocking(move || KeyUses::at(&folder).note(uses)).await;
            }
            let look = server.begin_key_look().await;
            let (file, last) = (self.clone(), seen);
            let looking = tokio::task::spawn_blocking(move || file.look(last));
            if let Ok(Some((version, loaded))) = looking.await {
                seen = version;
                match loaded {
                    Ok(book) => {
                        tracing::info!(keys = book.keys.len(), "the created keys have changed");
                        look.set(book);
                    }
                    Err(error) => {
                        let error = format!("{error:#}");
                        tracing::error!(error, "the created keys stay as they were");
                    }
                }
            }
            drop(look);
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// What is in the file, if it is not in the state any more that was `seen`, and the one it is in.
    fn look(&self, seen: Version) -> Option<(Version, anyhow::Result<KeyBook>)> {
        let version = self.version();
        (version != seen).then(|| (version, self.book()))
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

impl KeyStore for KeyFile {
    fn change(&self, change: BookChange<'_>) -> io::Result<Option<KeyBook>> {
        let mut changing = || -> anyhow::Result<Option<KeyBook>> {
            let _locked = self.lock()?;
            let mut book = self.book()?;
            if !change(&mut book) {
                return Ok(None);
            }
            self.write(&book)?;
            Ok(Some(book))
        };
        changing().map_err(|error| io::Error::other(format!("{error:#}")))
    }
}

/// Writes a text over a file that is no shorter, without taking more of the disk.
fn overwrite(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::options().write(true).open(path)?;
    let (old, new) = (file.metadata()?.len(), text.len() as u64);
    if new > old {
        return Err(io::ErrorKind::StorageFull.into());
    }
    // White space behind it is none of the text, so that no moment has a part of the old one behind the new one.
    let rest = usize::try_from(old - new).unwrap_or_default();
    file.write_all(format!("{text}{}", " ".repeat(rest)).as_bytes())?;
    file.set_len(new)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_over_a_file_takes_no_more_room() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        fs::write(&path, "{\"keys\": [1, 2, 3]}").unwrap();
        overwrite(&path, "{\"keys\": []}").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"keys\": []}");
        let longer = overwrite(&path, "{\"keys\": [1, 2, 3]}").unwrap_err();
        assert_eq!(longer.kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"keys\": []}");
    }
}
