//! The file of an identity: locked, private, and written whole or not at all.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::Known;
use crate::private::private;

/// The largest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// Why an identity cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Another client has it.
    #[error("another client uses {path}: one at a time can be known by it")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file, or its lock, cannot be used.
    #[error("failed to {what} {path}")]
    File {
        /// What was tried.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// The file, which nobody else has as long as this exists.
#[derive(Debug)]
pub(super) struct StateFile {
    path: PathBuf,
    /// Beside the file, which is replaced whenever it is written.
    _lock: File,
}

impl StateFile {
    pub(super) fn lock(path: &Path) -> Result<Self, IdentityError> {
        let lock_path = path.with_extension("lock");
        let cannot = |what| failed(what, &lock_path);
        let opened = private(OpenOptions::new().create(true).write(true)).open(&lock_path);
        let lock = opened.map_err(cannot("open"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(IdentityError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(error)) => Err(cannot("lock")(error)),
        }
    }

    /// What the file holds; `None` when it is not there. One that is damaged is put aside: its client is another one
    /// then, which is safer than none.
    pub(super) fn read(&self) -> Result<Option<Known>, IdentityError> {
        let cannot = |what| failed(what, &self.path);
        match fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(cannot("read")(error)),
            Ok(found) if found.len() > MAX_FILE_BYTES => return self.put_aside(),
            Ok(_) => {}
        }
        let text = fs::read(&self.path).map_err(cannot("read"))?;
        match serde_json::from_slice(&text) {
            Ok(known) => Ok(Some(known)),
            Err(_) => self.put_aside(),
        }
    }

    fn put_aside(&self) -> Result<Option<Known>, IdentityError> {
        let aside = self.path.with_extension("damaged");
        tracing::warn!(path = %self.path.display(), aside = %aside.display(),
            "the file that says who this client is is damaged: it is put aside, and a new one is made");
        fs::rename(&self.path, &aside).map_err(failed("put aside", &self.path))?;
        Ok(None)
    }

    /// Replaces what the file holds. It survives the end of the process; with `sync` also that of the machine.
    pub(super) fn write(&self, known: &Known, sync: bool) -> Result<(), IdentityError> {
        let cannot = |error| failed("write", &self.path)(error);
        let text = serde_json::to_vec(known).map_err(|error| cannot(error.into()))?;
        let draft = self.path.with_extension("new");
        let write = || {
            let mut file =
                private(OpenOptions::new().create(true).truncate(true).write(true)).open(&draft)?;
            file.write_all(&text)?;
            if sync {
                file.sync_all()?;
            }
            fs::rename(&draft, &self.path)?;
            if sync { sync_folder(&self.path) } else { Ok(()) }
        };
        write().map_err(cannot)
    }
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> IdentityError + 'a {
    move |source| IdentityError::File { what, path: path.to_owned(), source }
}

/// A new name in a folder survives the machine only once the folder is synced too.
fn sync_folder(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    if let Some(folder) = path.parent() {
        return File::open(folder)?.sync_all();
    }
    #[cfg(not(unix))]
    let _folders_cannot_be_opened = path;
    Ok(())
}
