//! Folders and what is in them, opened so that a resolved path leads to itself and nowhere else.
//!
//! It must not know what may be touched: it is given paths that were resolved and checked before.

#[cfg(not(unix))]
mod other;
#[cfg(unix)]
mod unix;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::Path;

use jiff::Timestamp;

#[cfg(not(unix))]
pub(super) use self::other::Folder;
#[cfg(unix)]
pub(super) use self::unix::Folder;

/// What a name in a folder stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Symlink,
    /// A pipe, a socket or a device.
    Other,
}

impl Kind {
    /// As callers are told.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Directory => "directory",
            Self::Symlink => "symlink",
            Self::Other => "other",
        }
    }
}

/// What is known of a file without opening it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    pub(super) kind: Kind,
    /// Bytes.
    pub(super) size: u64,
    pub(super) modified: Option<Timestamp>,
}

/// Takes a path apart into its folder and the name in it.
///
/// # Errors
/// For `/`, which is a folder and in none.
pub(super) fn split(path: &Path) -> io::Result<(&Path, &OsStr)> {
    path.parent().zip(path.file_name()).ok_or_else(|| ErrorKind::IsADirectory.into())
}

/// Opens a file to read it.
///
/// # Errors
/// Of the system; and for all that is no regular file, which is not even opened: a pipe would wait for its
/// other end, and opening a device can do something.
pub(super) fn open_file(path: &Path) -> io::Result<File> {
    let (folder, name) = split(path)?;
    Folder::open(folder)?.file(name)
}

impl Folder {
    /// Opens a file in this folder to read it, under the rules of [`open_file`].
    pub(super) fn file(&self, name: &OsStr) -> io::Result<File> {
        check_regular(self.facts(name)?.kind)?;
        let file = self.open_to_read(name)?;
        // It may have become something else meanwhile.
        if file.metadata()?.is_file() {
            Ok(file)
        } else {
            check_regular(Kind::Other).map(|()| file)
        }
    }
}

fn check_regular(kind: Kind) -> io::Result<()> {
    match kind {
        Kind::File => Ok(()),
        Kind::Directory => Err(ErrorKind::IsADirectory.into()),
        Kind::Symlink => Err(io::Error::other("it became a symbolic link meanwhile")),
        Kind::Other => Err(io::Error::other("it is a pipe, a socket or a device, not a file")),
    }
}
