//! Room on the disk that is given up when it is full, so that the outcomes of open tasks fit.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

use super::folder::room;

/// What is written at a time, in bytes.
const CHUNK: usize = 64 * 1024;

/// The file that keeps the room.
pub(super) struct Reserve {
    path: PathBuf,
    bytes: usize,
    /// Whether the disk is full: no new tasks are taken until there is room for the reserve again.
    is_given_up: bool,
}

impl Reserve {
    /// Makes the reserve, unless it is there. A disk that has no room for it now may still take tasks.
    pub(super) fn make(path: PathBuf, bytes: usize) -> Self {
        let reserve = Self { path, bytes, is_given_up: false };
        if let Err(error) = reserve.fill() {
            tracing::warn!(%error, bytes, "the disk has no room for the store's reserve");
            reserve.remove();
        }
        reserve
    }

    pub(super) const fn is_given_up(&self) -> bool {
        self.is_given_up
    }

    /// The disk is full. `true` if it was not before.
    pub(super) fn give_up(&mut self) -> bool {
        self.remove();
        !std::mem::replace(&mut self.is_given_up, true)
    }

    /// Makes it again, if there is room. `true` if so.
    pub(super) fn restore(&mut self) -> bool {
        // A little more, so that what comes next fits beside it.
        let needed = self.bytes.saturating_add(self.bytes / 4);
        let is_room = self.path.parent().and_then(room).is_none_or(|room| room >= needed as u64);
        if !is_room {
            return false;
        }
        match self.fill() {
            Ok(()) => self.is_given_up = false,
            Err(_) => self.remove(),
        }
        !self.is_given_up
    }

    fn fill(&self) -> io::Result<()> {
        if self.bytes == 0
            || fs::metadata(&self.path).is_ok_and(|found| found.len() == self.bytes as u64)
        {
            return Ok(());
        }
        let mut file = File::create(&self.path)?;
        let zeros = [0; CHUNK];
        let mut left = self.bytes;
        while left > 0 {
            let some = left.min(CHUNK);
            file.write_all(zeros.get(..some).unwrap_or_default())?;
            left -= some;
        }
        Ok(())
    }

    fn remove(&self) {
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "the store's reserve could not be given up");
        }
    }
}
