//! Folders by their descriptors. Every part of a path is opened by itself, in the folder before it and
//! without following links, so that a link that somebody puts in its place meanwhile is an error.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use jiff::Timestamp;
use rustix::fs::{self, AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;

use super::{Facts, Kind, check_regular};

/// What it takes to go through a folder: on Linux not even the permission to list it.
#[cfg(any(target_os = "linux", target_os = "android"))]
const PASS: OFlags = OFlags::PATH;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const PASS: OFlags = OFlags::RDONLY;

/// A file is never waited for, becomes nobody's terminal, and is not handed on to children.
const SAFELY: OFlags =
    OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// The permissions that a rewritten file can keep. Those that lend its owner's powers go, as they
/// do whenever a file is written.
const KEPT_MODE: u32 = 0o777;

/// An open folder.
pub(in super::super) struct Folder(OwnedFd);

impl Folder {
    /// Opens a folder by its resolved path.
    pub(in super::super) fn open(path: &Path) -> io::Result<Self> {
        names(path).try_fold(Self::top()?, |folder, name| folder.folder(name))
    }

    /// The same, and makes what is missing of it.
    pub(in super::super) fn make(path: &Path) -> io::Result<Self> {
        names(path).try_fold(Self::top()?, |folder, name| folder.folder_or_new(name))
    }

    fn top() -> io::Result<Self> {
        Ok(Self(fs::openat(CWD, "/", PASS | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?))
    }

    fn folder(&self, name: &OsStr) -> io::Result<Self> {
        let flags = PASS | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self(fs::openat(&self.0, name, flags, Mode::empty())?))
    }

    fn folder_or_new(&self, name: &OsStr) -> io::Result<Self> {
        match self.folder(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => return found,
        }
        match fs::mkdirat(&self.0, name, Mode::from_raw_mode(0o777)) {
            Ok(()) | Err(Errno::EXIST) => self.folder(name),
            Err(error) => Err(error.into()),
        }
    }

    /// What is in it, in no order, without `.` and `..`.
    pub(in super::super) fn entries(
        &self,
    ) -> io::Result<impl Iterator<Item = io::Result<OsString>> + use<>> {
        let named = |name: &[u8]| OsStr::from_bytes(name).to_os_string();
        let entries = Dir::new(self.open_itself()?)?.map(move |entry| {
            entry.map(|entry| named(entry.file_name().to_bytes())).map_err(io::Error::from)
        });
        let is_itself = |name: &OsString| name == "." || name == "..";
        Ok(entries.filter(move |entry| !entry.as_ref().is_ok_and(is_itself)))
    }

    /// Looks at what is in it under `name`, itself and not what it links to.
    pub(in super::super) fn facts(&self, name: &OsStr) -> io::Result<Facts> {
        Ok(facts(&self.stat(name)?))
    }

    fn stat(&self, name: &OsStr) -> rustix::io::Result<Stat> {
        fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    pub(super) fn open_to_read(&self, name: &OsStr) -> io::Result<File> {
        Ok(fs::openat(&self.0, name, OFlags::RDONLY | SAFELY, Mode::empty())?.into())
    }

    /// Puts a file with this content in the place of the one under `name`, or where there is none, at once
    /// and on the disk. It keeps permissions, and the owner where the system lets it. `check` is asked
    /// before the last step. Tells whether there was none.
    pub(in super::super) fn replace(
        &self,
        name: &OsStr,
        content: &[u8],
        check: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<bool> {
        let old = self.replaceable(name)?;
        // Until it has the permissions of the old one, nobody else may look into it.
        let mode = old.map_or(0o666, |_| 0o600);
        let mut new = Temporary::create(self, Mode::from_raw_mode(mode))?;
        new.file.write_all(content)?;
        if let Some(old) = &old {
            keep_owner_and_mode(&new.file, old)?;
        }
        new.file.sync_all()?;
        check()?;
        new.rename_to(name)?;
        self.sync();
        Ok(old.is_none())
    }

    /// Looks at the file that is to be replaced. One that may not be written is not replaced either.
    fn replaceable(&self, name: &OsStr) -> io::Result<Option<Stat>> {
        let old = match self.stat(name) {
            Ok(old) => old,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        check_regular(facts(&old).kind)?;
        match fs::openat(&self.0, name, OFlags::WRONLY | SAFELY, Mode::empty()) {
            // A program that runs may be replaced: it keeps its old file.
            Ok(_) | Err(Errno::TXTBSY) => Ok(Some(old)),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes the names in it to the disk, as far as the system can and lets us.
    fn sync(&self) {
        if let Err(error) = self.open_itself().and_then(fs::fsync) {
            tracing::debug!(%error, "a folder could not be synced");
        }
    }

    /// Opens the folder itself, which to pass through it was not yet needed.
    fn open_itself(&self) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        fs::openat(&self.0, ".", flags, Mode::empty())
    }
}

/// The parts of an absolute path.
fn names(path: &Path) -> impl Iterator<Item = &OsStr> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name),
        _ => None,
    })
}

#[allow(
    clippy::useless_conversion,
    clippy::unnecessary_cast,
    reason = "other systems have other types"
)]
fn facts(stat: &Stat) -> Facts {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        _ => Kind::Other,
    };
    let modified = Timestamp::new(stat.st_mtime as i64, stat.st_mtime_nsec as i32).ok();
    Facts { kind, size: u64::try_from(stat.st_size).unwrap_or(0), modified }
}

#[allow(clippy::unnecessary_cast, reason = "other systems have other types")]
fn keep_owner_and_mode(file: &File, old: &Stat) -> io::Result<()> {
    let new = fs::fstat(file)?;
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid) {
        // Only root may give files away.
        let (owner, group) = (Uid::from_raw(old.st_uid), Gid::from_raw(old.st_gid));
        let _not_kept = fs::fchown(file, Some(owner), Some(group));
    }
    Ok(fs::fchmod(file, Mode::from_raw_mode(old.st_mode & KEPT_MODE as rustix::fs::RawMode))?)
}

/// A file that is gone again unless it gets its name.
struct Temporary<'a> {
    folder: &'a Folder,
    name: Option<String>,
    file: File,
}

impl<'a> Temporary<'a> {
    fn create(folder: &'a Folder, mode: Mode) -> io::Result<Self> {
        let name = format!(".flightdeck-{}.tmp", uuid::Uuid::new_v4().simple());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | SAFELY;
        let file = fs::openat(folder.0.as_fd(), name.as_str(), flags, mode)?.into();
        Ok(Self { folder, name: Some(name), file })
    }

    fn rename_to(mut self, name: &OsStr) -> io::Result<()> {
        if let Some(own) = &self.name {
            fs::renameat(&self.folder.0, own.as_str(), &self.folder.0, name)?;
        }
        self.name = None;
        Ok(())
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            let _gone = fs::unlinkat(&self.folder.0, name.as_str(), AtFlags::empty());
        }
    }
}
