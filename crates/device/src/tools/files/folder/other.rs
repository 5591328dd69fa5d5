//! Folders by their paths, for systems without descriptors of folders. A link that is put in the place of a
//! folder between the check of a path and its use is followed here; nothing in these tools can put one there.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, FileType};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::{Facts, Kind, check_regular};

/// A folder.
pub(in super::super) struct Folder(PathBuf);

impl Folder {
    /// Opens a folder by its resolved path.
    pub(in super::super) fn open(path: &Path) -> io::Result<Self> {
        let is_folder = fs::symlink_metadata(path)?.is_dir();
        is_folder.then(|| Self(path.to_path_buf())).ok_or(io::ErrorKind::NotADirectory.into())
    }

    /// The same, and makes what is missing of it.
    pub(in super::super) fn make(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        Self::open(path)
    }

    /// What is in it, in no order.
    pub(in super::super) fn entries(
        &self,
    ) -> io::Result<impl Iterator<Item = io::Result<OsString>> + use<>> {
        Ok(fs::read_dir(&self.0)?.map(|entry| entry.map(|entry| entry.file_name())))
    }

    /// Looks at what is in it under `name`, itself and not what it links to.
    pub(in super::super) fn facts(&self, name: &OsStr) -> io::Result<Facts> {
        let found = fs::symlink_metadata(self.0.join(name))?;
        let modified = found.modified().ok().and_then(|time| Timestamp::try_from(time).ok());
        Ok(Facts { kind: kind(found.file_type()), size: found.len(), modified })
    }

    pub(super) fn open_to_read(&self, name: &OsStr) -> io::Result<File> {
        File::open(self.0.join(name))
    }

    /// Puts a file with this content in the place of the one under `name`, or where there is none, at once
    /// and on the disk. `check` is asked before the last step. Tells whether there was none.
    pub(in super::super) fn replace(
        &self,
        name: &OsStr,
        content: &[u8],
        check: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<bool> {
        let is_new = match self.facts(name) {
            Ok(old) => check_regular(old.kind).map(|()| false)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => return Err(error),
        };
        let own = self.0.join(format!(".flightdeck-{}.tmp", uuid::Uuid::new_v4().simple()));
        let replaced = write_new(&own, content)
            .and_then(|()| check())
            .and_then(|()| fs::rename(&own, self.0.join(name)));
        if replaced.is_err() {
            let _gone = fs::remove_file(&own);
        }
        replaced.map(|()| is_new)
    }
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn kind(found: FileType) -> Kind {
    match found {
        found if found.is_file() => Kind::File,
        found if found.is_dir() => Kind::Directory,
        found if found.is_symlink() => Kind::Symlink,
        _ => Kind::Other,
    }
}
