//! The side file: how far the store came, beside the database, which does not notice when it comes back behind that.

use std::cmp::Ordering;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Durability;
use super::folder::{open_private, sync_folder};

/// Every state of the file has this size, so that each one covers the one before, in bytes.
const SIZE: usize = 512;

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// The number of the last commit that anybody may have been told of.
    pub(super) sequence: i64,
    /// Whether the store was closed, with all that it had.
    pub(super) is_clean: bool,
    /// The start of the machine in which it was written.
    pub(super) boot: String,
    /// What its commits survive.
    pub(super) durability: Durability,
    /// The store id.
    pub(super) store: String,
}

/// Which store comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The one that it was.
    Same,
    /// One that may have lost commits: it gets a new id.
    New,
    /// One that has lost commits: it is refused.
    Behind,
}

/// Compares a database that has come to `sequence` with what the side file says.
pub(super) fn judge(mark: Option<&Mark>, sequence: i64, boot: &str) -> Verdict {
    let Some(mark) = mark else { return Verdict::New };
    if mark.is_clean {
        return match sequence.cmp(&mark.sequence) {
            Ordering::Less => Verdict::Behind,
            Ordering::Equal => Verdict::Same,
            Ordering::Greater => Verdict::New,
        };
    }
    if mark.durability == Durability::Process && mark.boot != boot {
        return Verdict::New;
    }
    if sequence < mark.sequence { Verdict::Behind } else { Verdict::Same }
}

/// The file, open for as long as the store is.
pub(super) struct Side {
    file: File,
    mark: Mark,
}

impl Side {
    /// What the file of a folder says; `None` when there is none, or nothing that can be read.
    pub(super) fn read(path: &Path) -> io::Result<Option<Mark>> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => String::new(),
            Err(error) => return Err(error),
        };
        let mark = parse(&text);
        if mark.is_none() {
            tracing::warn!("the store's side file cannot be read; it counts as missing");
        }
        Ok(mark)
    }

    /// Begins to write, without a clean mark; synced.
    pub(super) fn begin(path: &Path, mark: Mark) -> io::Result<Self> {
        let file = open_private(path)?;
        let mut side = Self { file, mark };
        side.write()?;
        side.file.sync_all()?;
        if let Some(folder) = path.parent() {
            sync_folder(folder)?;
        }
        Ok(side)
    }

    /// Notes a commit. Not synced: a power loss shows by the boot id.
    pub(super) fn note(&mut self, sequence: i64) -> io::Result<()> {
        self.mark.sequence = sequence;
        self.write()
    }

    /// Notes that the store is closed with all that it had; synced.
    pub(super) fn close(mut self) -> io::Result<()> {
        self.mark.is_clean = true;
        self.write()?;
        self.file.sync_all()
    }

    fn write(&mut self) -> io::Result<()> {
        let text = serde_json::to_string(&self.mark)?;
        let line = format!("{:08x} {text}", crc32c::crc32c(text.as_bytes()));
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(format!("{line:<width$}\n", width = SIZE - 1).as_bytes())
    }
}

fn parse(text: &str) -> Option<Mark> {
    let (crc, text) = text.trim_end().split_once(' ')?;
    let is_whole =
        u32::from_str_radix(crc, 16).is_ok_and(|crc| crc == crc32c::crc32c(text.as_bytes()));
    if is_whole { serde_json::from_str(text).ok() } else { None }
}

/// Names this start of the machine. Where the system does not, each process is one of its own, which turns its death
/// into a power loss.
pub(super) fn boot_id() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.map_or_else(|_| uuid::Uuid::new_v4().to_string(), |id| id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(is_clean: bool, boot: &str, durability: Durability) -> Mark {
        Mark { sequence: 10, is_clean, boot: boot.to_owned(), durability, store: "s".to_owned() }
    }

    #[test]
    fn the_first_rule_that_fits_says_which_store_comes_back() {
        use Durability::{Power, Process};
        use Verdict::{Behind, New, Same};

        assert_eq!(judge(None, 10, "now"), New, "there is no file");
        for (is_clean, boot, durability, [behind, equal, ahead]) in [
            (true, "now", Process, [Behind, Same, New]),
            (true, "then", Process, [Behind, Same, New]),
            (true, "then", Power, [Behind, Same, New]),
            (false, "then", Process, [New, New, New]),
            (false, "now", Process, [Behind, Same, Same]),
            (false, "now", Power, [Behind, Same, Same]),
            (false, "then", Power, [Behind, Same, Same]),
        ] {
            let mark = mark(is_clean, boot, durability);
            let found = [9, 10, 11].map(|sequence| judge(Some(&mark), sequence, "now"));
            assert_eq!(found, [behind, equal, ahead], "{mark:?}");
        }
    }

    #[test]
    fn what_was_noted_is_read_again_and_a_damaged_file_counts_as_missing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("side");
        assert_eq!(Side::read(&path).unwrap(), None);
        let before = mark(false, "now", Durability::Process);
        let mut side = Side::begin(&path, before.clone()).unwrap();
        side.note(11).unwrap();
        let noted = Side::read(&path).unwrap().unwrap();
        assert_eq!(noted, Mark { sequence: 11, ..before });
        side.close().unwrap();
        assert!(Side::read(&path).unwrap().unwrap().is_clean);
        let mut bytes = fs::read(&path).unwrap();
        bytes[40] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_eq!(Side::read(&path).unwrap(), None);
    }
}
