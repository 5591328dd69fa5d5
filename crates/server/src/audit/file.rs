//! A file of lines that is put aside when it is full.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use link::private;

use super::{AuditSettings, Entry, Event, Line};
use crate::auth::Role;

/// The log file and the older ones beside it. No line is ever split over two of them.
pub(super) struct LogFile {
    settings: AuditSettings,
    /// `None` after an error: it is opened anew, since only a look at the file shows what it holds.
    open: Option<Open>,
    /// Lines that are being written together.
    chunk: Vec<u8>,
}

struct Open {
    file: File,
    /// Its size.
    bytes: u64,
    /// The size from which on it may grow by `max_bytes`: zero, unless it could not be put aside.
    start: u64,
    max_bytes: u64,
}

impl LogFile {
    /// Opens the file, or makes it, for its owner's eyes only.
    pub(super) fn open(settings: AuditSettings) -> io::Result<Self> {
        let open = Some(Open::at(&settings.path, settings.max_bytes)?);
        Ok(Self { settings, open, chunk: Vec::new() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.settings.path
    }

    /// Appends lines, and takes away those that were written.
    pub(super) fn append(&mut self, lines: &mut VecDeque<Line>) -> io::Result<()> {
        while !lines.is_empty() {
            let open = match &mut self.open {
                Some(open) => open,
                none => none.insert(Open::at(&self.settings.path, self.settings.max_bytes)?),
            };
            // Those who create and revoke keys append lines too.
            open.bytes = open.file.metadata()?.len();
            self.chunk.clear();
            let count = open.take(lines, &mut self.chunk);
            if count == 0 {
                self.put_aside()?;
                continue;
            }
            if let Err(error) = open.write(&self.chunk) {
                self.open = None;
                return Err(error);
            }
            lines.drain(..count);
        }
        // A storm's buffer is not kept.
        self.chunk.shrink_to(KEPT_BYTES);
        Ok(())
    }

    /// Puts a full file aside and begins another. If that cannot be done, a file that is too long is
    /// better than none, and the next try comes when it has grown by as much again.
    fn put_aside(&mut self) -> io::Result<()> {
        // Closed first, since not every system renames an open file.
        self.open = None;
        let moved = self.shift();
        let mut open = Open::at(&self.settings.path, self.settings.max_bytes)?;
        if let Err(error) = moved {
            tracing::error!(%error, "the full audit log cannot be put aside, and grows on");
            open.start = open.bytes;
        }
        self.open = Some(open);
        Ok(())
    }

    fn shift(&self) -> io::Result<()> {
        let path = &self.settings.path;
        let Some(oldest) = self.settings.files.checked_sub(1) else { return fs::remove_file(path) };
        for number in (1..=oldest).rev() {
            match fs::rename(aside(path, number), aside(path, number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(path, aside(path, 1))
    }
}

/// As much of the buffer as is kept between writes.
const KEPT_BYTES: usize = 64 * 1024;

/// The file that was put aside so many times ago.
pub(super) fn aside(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// What became of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyChange {
    /// It was created.
    Created,
    /// It was revoked.
    Revoked,
    /// It is a join token that was made.
    JoinTokenCreated,
    /// It is a join token that was revoked.
    JoinTokenRevoked,
}

/// Writes into an audit log, of a server that runs or not, what became of a key or join token with this name. A running server goes on behind it.
///
/// # Errors
/// When the file cannot be written.
pub fn append_key_change(path: &Path, name: &str, role: Role, change: KeyChange) -> io::Result<()> {
    let event = match change {
        KeyChange::Created => Event::KeyCreated,
        KeyChange::Revoked => Event::KeyRevoked,
        KeyChange::JoinTokenCreated => Event::JoinTokenCreated,
        KeyChange::JoinTokenRevoked => Event::JoinTokenRevoked,
    };
    let role = role.to_string();
    let entry = Entry { role: Some(&role), key: Some(name), ..Entry::new(event) };
    // A server that runs decides when the file is full.
    Open::at(path, u64::MAX)?.file.write_all(&entry.line())
}

impl Open {
    /// Opens a file at its end. A line that a crash cut short is ended first.
    fn at(path: &Path, max_bytes: u64) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let mut file = private(options.read(true).append(true).create(true)).open(path)?;
        let bytes = file.seek(SeekFrom::End(0))?;
        let mut open = Self { file, bytes, start: 0, max_bytes };
        if bytes > 0 {
            let mut last = [0];
            open.file.seek(SeekFrom::End(-1))?;
            open.file.read_exact(&mut last)?;
            if last != *b"\n" {
                open.write(b"\n")?;
            }
        }
        Ok(open)
    }

    /// Copies lines until the file would be full, but at least one into an empty file. How many.
    fn take(&self, lines: &VecDeque<Line>, chunk: &mut Vec<u8>) -> usize {
        let mut count = 0;
        for line in lines {
            let grown = self.bytes - self.start + chunk.len() as u64;
            if grown > 0 && grown + line.len() as u64 > self.max_bytes {
                break;
            }
            chunk.extend_from_slice(line);
            count += 1;
        }
        count
    }

    /// All or nothing, as far as the disk lets us.
    fn write(&mut self, chunk: &[u8]) -> io::Result<()> {
        let written = self.file.write_all(chunk);
        match written {
            Ok(()) => self.bytes += chunk.len() as u64,
            // A disk that refuses us takes nobody else's lines meanwhile. What cannot be taken back is ended when the file is opened anew.
            Err(_) => self.file.set_len(self.bytes).unwrap_or_default(),
        }
        written
    }
}
