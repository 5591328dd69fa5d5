//! Where journals are kept: in a folder, or in memory for a device without one.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use link::private;

use super::CommandId;
use super::ledger::Span;

/// The ending of a journal's file.
const LOG: &str = "journal";

/// The ending of a file with the results of one command.
const ASIDE: &str = "results";

/// The place of the files. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) enum Shelf {
    Folder(PathBuf),
    Memory(Arc<Mutex<BTreeMap<CommandId, Bytes>>>),
}

impl Shelf {
    pub(super) fn new(folder: Option<&Path>) -> Self {
        folder.map_or_else(|| Self::Memory(Arc::default()), |path| Self::Folder(path.to_owned()))
    }

    /// The journals that are there, each with what is in it.
    pub(super) fn logs(&self) -> io::Result<Vec<(Log, Vec<u8>)>> {
        let mut logs = Vec::new();
        for path in self.files(LOG)? {
            let bytes = fs::read(&path)?;
            logs.push((Log::in_file(path, bytes.len() as u64), bytes));
        }
        Ok(logs)
    }

    /// A journal that is not there yet. Its file is made when something is written to it.
    pub(super) fn new_log(&self, name: &str) -> Log {
        match self {
            Self::Folder(folder) => Log::in_file(folder.join(format!("{name}.{LOG}")), 0),
            Self::Memory(_) => Log::in_memory(),
        }
    }

    /// Keeps the results of a command in a file of their own. Returns their checksum. It may take a while.
    pub(crate) fn put(&self, id: CommandId, results: &Bytes) -> io::Result<u32> {
        match self {
            Self::Folder(folder) => {
                let path = aside(folder, id);
                // What matters is the first error.
                create(&path, results).inspect_err(|_| drop(fs::remove_file(&path)))?;
            }
            Self::Memory(files) => {
                let mut files = files.lock().unwrap_or_else(PoisonError::into_inner);
                files.insert(id, results.clone());
            }
        }
        Ok(crc32c::crc32c(results))
    }

    /// Reads them again. It may take a while.
    ///
    /// # Errors
    /// When they cannot be read, or are not what was written.
    pub(crate) fn take_out(&self, id: CommandId, len: u64, crc: u32) -> io::Result<Bytes> {
        let read = match self {
            Self::Folder(folder) => fs::read(aside(folder, id)).map(Bytes::from)?,
            Self::Memory(files) => {
                let files = files.lock().unwrap_or_else(PoisonError::into_inner);
                files.get(&id).cloned().unwrap_or_default()
            }
        };
        if read.len() as u64 == len && crc32c::crc32c(&read) == crc {
            return Ok(read);
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "they are damaged"))
    }

    /// Removes the results of a command.
    pub(crate) fn remove(&self, id: CommandId) {
        match self {
            // What cannot be removed is removed at the next start.
            Self::Folder(folder) => drop(fs::remove_file(aside(folder, id))),
            Self::Memory(files) => {
                files.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            }
        }
    }

    /// Removes the results that nobody holds.
    pub(super) fn sweep(&self, is_held: impl Fn(&Path) -> bool) {
        for path in self.files(ASIDE).unwrap_or_default() {
            if !is_held(&path) {
                let _again_at_the_next_start = fs::remove_file(path);
            }
        }
    }

    fn files(&self, ending: &str) -> io::Result<Vec<PathBuf>> {
        let Self::Folder(folder) = self else { return Ok(Vec::new()) };
        let paths = fs::read_dir(folder)?.map(|file| file.map(|file| file.path()));
        let is_such = |path: &PathBuf| path.extension().is_some_and(|found| found == ending);
        let mut paths: Vec<_> = paths.collect::<Result<_, _>>()?;
        paths.retain(is_such);
        paths.sort();
        Ok(paths)
    }
}

/// The name of the file with a command's results.
pub(super) fn aside_name(id: CommandId) -> String {
    format!("{:032x}.{ASIDE}", id.0)
}

fn aside(folder: &Path, id: CommandId) -> PathBuf {
    folder.join(aside_name(id))
}

/// The file of a journal, which only grows, or is replaced by a shorter one.
#[derive(Debug)]
pub(super) struct Log {
    medium: Medium,
    len: u64,
    /// Whether something may stand behind its end that should not.
    is_broken: bool,
}

#[derive(Debug)]
enum Medium {
    File { path: PathBuf, open: Option<File> },
    Memory(Vec<u8>),
}

impl Log {
    const fn in_file(path: PathBuf, len: u64) -> Self {
        Self { medium: Medium::File { path, open: None }, len, is_broken: false }
    }

    const fn in_memory() -> Self {
        Self { medium: Medium::Memory(Vec::new()), len: 0, is_broken: false }
    }

    pub(super) const fn len(&self) -> u64 {
        self.len
    }

    /// Appends a record, whole or not at all.
    pub(super) fn append(&mut self, record: &[u8]) -> io::Result<()> {
        if self.is_broken {
            self.cut(self.len)?;
        }
        match &mut self.medium {
            Medium::Memory(bytes) => bytes.extend(record),
            Medium::File { path, open } => {
                let file = opened(path, open, self.len)?;
                if let Err(error) = file.write_all(record) {
                    // Some of it may be there. When it cannot be cut off now, that is tried again.
                    let _cut = self.cut(self.len);
                    return Err(error);
                }
            }
        }
        self.len += record.len() as u64;
        Ok(())
    }

    /// Cuts off what stands behind this place; before something is appended, if that fails now.
    pub(super) fn cut(&mut self, len: u64) -> io::Result<()> {
        (self.len, self.is_broken) = (len, true);
        match &mut self.medium {
            Medium::Memory(bytes) => bytes.truncate(usize::try_from(len).unwrap_or(usize::MAX)),
            Medium::File { path, open } => opened(path, open, len)?.set_len(len)?,
        }
        self.is_broken = false;
        Ok(())
    }

    pub(super) fn read(&mut self, span: Span) -> io::Result<Bytes> {
        match &mut self.medium {
            Medium::Memory(bytes) => {
                let at = usize::try_from(span.at).unwrap_or(usize::MAX);
                let found = bytes.get(at..at.saturating_add(span.len));
                found.map(Bytes::copy_from_slice).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
            }
            Medium::File { path, open } => {
                let file = opened(path, open, self.len)?;
                file.seek(SeekFrom::Start(span.at))?;
                let mut bytes = vec![0; span.len];
                file.read_exact(&mut bytes)?;
                Ok(bytes.into())
            }
        }
    }

    /// Puts another journal in the place of this one.
    pub(super) fn replace(&mut self, with: Vec<u8>) -> io::Result<()> {
        let len = with.len() as u64;
        match &mut self.medium {
            Medium::Memory(bytes) => *bytes = with,
            Medium::File { path, open } => {
                let draft = path.with_extension("new");
                // Some systems replace no file that is open.
                *open = None;
                let replaced = create(&draft, &with).and_then(|()| fs::rename(&draft, &*path));
                replaced.inspect_err(|_| drop(fs::remove_file(&draft)))?;
            }
        }
        (self.len, self.is_broken) = (len, false);
        Ok(())
    }

    /// Removes it for good.
    pub(super) fn remove(self) {
        if let Medium::File { path, open } = self.medium {
            drop(open);
            // One that was never written is not there.
            let _removed = fs::remove_file(path);
        }
    }
}

/// The file of a journal of this length, which is made where there is nothing in it yet. What is written goes to its
/// end.
fn opened<'a>(path: &Path, open: &'a mut Option<File>, len: u64) -> io::Result<&'a mut File> {
    if open.is_none() {
        let mut options = OpenOptions::new();
        *open = Some(private(options.create(len == 0).append(true).read(true)).open(path)?);
    }
    open.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Writes a private file anew.
fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    private(options.create(true).truncate(true).write(true)).open(path)?.write_all(bytes)
}
