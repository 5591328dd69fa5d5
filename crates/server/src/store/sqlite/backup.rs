//! A copy of the store while it is in use.
//!
//! It is made on the writer's own connection: made on another one it would start over with each commit. Commits go on
//! between its steps. A copy has no side file, so a server that starts with it gives it a new store id.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};

use super::folder::{Payloads, database_of_copy, make_private, open_private, sync_folder};
use super::queue::Answer;
use super::writer::{Deletions, Writer};
use crate::store::StoreError;

/// Pages that are copied at a time.
const STEP_PAGES: std::ffi::c_int = 256;

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
enum BackupError {
    #[error("{} is not empty", .0.display())]
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
    let (folder, payloads) = (folder.to_owned(), writer.payloads.clone());
    let finish = move || {
        let copied = copied.and_then(|database| Ok(database + copy_files(&folder, &payloads)?));
        let copied = copied.map_err(|error| StoreError::Failed(error.to_string()));
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

/// Copies the database. Returns its size, in bytes.
fn copy_database(
    writer: &mut Writer,
    connection: &Connection,
    folder: &Path,
) -> Result<u64, BackupError> {
    make_private(folder)?;
    if fs::read_dir(folder)?.next().is_some() {
        return Err(BackupError::NotEmpty(folder.to_owned()));
    }
    let own = connection.path().and_then(|path| Path::new(path).parent()?.canonicalize().ok());
    if own.is_some_and(|own| folder.canonicalize().is_ok_and(|folder| folder.starts_with(own))) {
        return Err(BackupError::Inside(folder.to_owned()));
    }
    let path = database_of_copy(folder);
    let partial = path.with_extension("partial");
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
    fs::rename(&partial, &path)?;
    Ok(fs::metadata(&path)?.len())
}

/// Copies the files that the copy's rows name. Returns their size, in bytes.
fn copy_files(folder: &Path, from: &Payloads) -> Result<u64, BackupError> {
    let to = Payloads::of_copy(folder)?;
    let copy = Connection::open(database_of_copy(folder))?;
    let mut statement = copy.prepare("SELECT name FROM files")?;
    let mut names = statement.query([])?;
    let mut bytes = 0;
    while let Some(row) = names.next()? {
        bytes += from.copy(&row.get::<_, String>(0)?, &to)?;
    }
    sync_folder(folder)?;
    Ok(bytes)
}
