//! A copy of the store while it is in use.
//!
//! It is made on the writer's own connection: made on another one it would start over with each commit. Commits go on
//! between its steps. A copy has no side file, so a server that starts with it gives it a new store id.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};

use super::folder::{Draft, Payloads, open_private};
use super::queue::Answer;
use super::writer::{Deletions, Writer};
use crate::store::StoreError;

/// Pages that are copied at a time.
const STEP_PAGES: std::ffi::c_int = 256;

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
enum BackupError {
    #[error("{} is not empty, and a copy needs a folder of its own: name a new one", .0.display())]
    NotEmpty(PathBuf),
    #[error("{} is in the store's own folder", .0.display())]
    Inside(PathBuf),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Database(#[from] rusqlite::Error),
}

/// Makes a copy, and serves the queue meanwhile. Its files are copied by a thread of their own.
pub(super) fn make(
    writer: &mut Writer,
    connection: &Connection,
    folder: &Path,
    answer: Answer<u64>,
) {
    writer.deletions.hold();
    let held = Held(writer.deletions.clone());
    let copied = copy_database(writer, connection, folder);
    let payloads = writer.payloads.clone();
    let finish = move || {
        let copied = copied.and_then(|draft| finish(draft, &payloads));
        let copied = copied.map_err(|error| StoreError::NotCopied(error.to_string()));
        drop(held);
        // Whoever asked may be gone.
        let _is_gone = answer.send(copied);
    };
    let thread = std::thread::Builder::new().name("store-backup".to_owned());
    if let Err(error) = thread.spawn(finish) {
        tracing::error!(%error, "a copy of the store could not be finished");
    }
}

/// Keeps files from being deleted while they are to be copied.
struct Held(Deletions);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// Copies the database.
fn copy_database(
    writer: &mut Writer,
    connection: &Connection,
    folder: &Path,
) -> Result<Draft, BackupError> {
    let not_empty = || BackupError::NotEmpty(folder.to_owned());
    let draft = Draft::begin(folder)?.ok_or_else(not_empty)?;
    let own = connection.path().and_then(|path| Path::new(path).parent()?.canonicalize().ok());
    if own.is_some_and(|own| folder.canonicalize().is_ok_and(|folder| folder.starts_with(own))) {
        return Err(BackupError::Inside(folder.to_owned()));
    }
    let partial = draft.database();
    // SQLite would let everybody read it.
    drop(open_private(&partial)?);
    let mut copy = Connection::open(&partial)?;
    let backup = Backup::new(connection, &mut copy)?;
    while backup.step(STEP_PAGES)? != StepResult::Done {
        writer.serve(connection);
    }
    drop(backup);
    copy.close().map_err(|(_, error)| error)?;
    fs::File::open(&partial)?.sync_all()?;
    Ok(draft)
}

/// Copies what else belongs to the copy, which is whole then. Returns its size, in bytes.
fn finish(draft: Draft, payloads: &Payloads) -> Result<u64, BackupError> {
    let bytes = copy_files(&draft, payloads)? + fs::metadata(draft.database())?.len();
    draft.finish()?;
    Ok(bytes)
}

/// Copies the files that the copy's rows name. Returns their size, in bytes.
fn copy_files(draft: &Draft, from: &Payloads) -> Result<u64, BackupError> {
    let to = draft.payloads()?;
    let copy = Connection::open(draft.database())?;
    let mut statement = copy.prepare("SELECT name FROM files")?;
    let mut names = statement.query([])?;
    let mut bytes = 0;
    while let Some(row) = names.next()? {
        bytes += from.copy(&row.get::<_, String>(0)?, &to)?;
    }
    Ok(bytes)
}
