//! The folder of a store: that one server has it, that its disk is a local one, and the names in it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use link::private;

use super::OpenError;
use super::rows::FileRef;

/// The database.
const DATABASE: &str = "flightdeck.db";

/// The database of a copy that is not whole yet.
const PARTIAL: &str = "flightdeck.partial";

/// Held by the server that has the folder.
const LOCK: &str = "lock";

/// How far the store came.
const SIDE: &str = "committed";

/// Given up when the disk is full.
const RESERVE: &str = "reserve";

/// Large payloads, a file each.
const PAYLOADS: &str = "payloads";

/// A store's folder, which is this process's own for as long as this lives.
pub(super) struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Takes the folder, and makes it if there is none.
    pub(super) fn take(path: &Path) -> Result<Self, OpenError> {
        if path.join(PARTIAL).try_exists()? {
            return Err(OpenError::Incomplete { folder: path.to_owned() });
        }
        make_private(path)?;
        make_private(&path.join(PAYLOADS))?;
        if let Some(kind) = network(path)? {
            return Err(OpenError::Network { folder: path.to_owned(), kind });
        }
        let lock = open_private(&path.join(LOCK))?;
        match lock.try_lock() {
            Ok(()) => {
                // The database's other files get what it has. It is not open yet: to close it later would drop its locks.
                drop(open_private(&path.join(DATABASE))?);
                Ok(Self { path: path.to_owned(), _lock: lock })
            }
            Err(TryLockError::WouldBlock) => Err(OpenError::InUse { folder: path.to_owned() }),
            Err(TryLockError::Error(error)) => Err(error.into()),
        }
    }

    pub(super) fn database(&self) -> PathBuf {
        self.path.join(DATABASE)
    }

    pub(super) fn side(&self) -> PathBuf {
        self.path.join(SIDE)
    }

    pub(super) fn reserve(&self) -> PathBuf {
        self.path.join(RESERVE)
    }

    pub(super) fn payloads(&self) -> Payloads {
        Payloads { folder: self.path.join(PAYLOADS) }
    }
}

/// Opens a file for writing, or makes it, so that nobody else can read it.
pub(super) fn open_private(path: &Path) -> io::Result<File> {
    private(OpenOptions::new().create(true).truncate(false).write(true)).open(path)
}

/// A copy that is being made. Its database gets its name last, so that none that is cut off passes for a whole one; one
/// that fails is removed.
pub(super) struct Draft {
    folder: PathBuf,
    /// Whether the folder was made for it.
    is_new: bool,
    is_whole: bool,
}

impl Draft {
    /// Takes a folder with nothing in it, or makes it.
    pub(super) fn begin(folder: &Path) -> io::Result<Option<Self>> {
        let is_new = !folder.try_exists()?;
        make_private(folder)?;
        let is_empty = fs::read_dir(folder)?.next().is_none();
        Ok(is_empty.then(|| Self { folder: folder.to_owned(), is_new, is_whole: false }))
    }

    /// Where its database is.
    pub(super) fn database(&self) -> PathBuf {
        self.folder.join(PARTIAL)
    }

    /// Where its large payloads go.
    pub(super) fn payloads(&self) -> io::Result<Payloads> {
        let folder = self.folder.join(PAYLOADS);
        make_private(&folder)?;
        Ok(Payloads { folder })
    }

    /// Removes what there is of it. The database goes last: it says that the copy is not whole.
    fn remove(&self) -> io::Result<()> {
        let payloads = self.folder.join(PAYLOADS);
        if payloads.try_exists()? {
            fs::remove_dir_all(payloads)?;
        }
        if self.is_new {
            return fs::remove_dir_all(&self.folder);
        }
        fs::read_dir(&self.folder)?.try_for_each(|entry| fs::remove_file(entry?.path()))
    }

    /// All of it is there.
    pub(super) fn finish(mut self) -> io::Result<()> {
        sync_folder(&self.folder.join(PAYLOADS))?;
        fs::rename(self.database(), self.folder.join(DATABASE))?;
        self.is_whole = true;
        sync_folder(&self.folder)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.is_whole {
            return;
        }
        if let Err(error) = self.remove() {
            tracing::warn!(%error, "a copy that failed could not be removed");
        }
    }
}

/// The files beside the database.
#[derive(Debug, Clone)]
pub(super) struct Payloads {
    folder: PathBuf,
}

impl Payloads {
    /// Writes files, and if asked for sees to it that they survive a power loss.
    pub(super) fn write(&self, files: &[(FileRef, Bytes)], synced: bool) -> io::Result<()> {
        for (file, content) in files {
            let mut out = open_private(&self.folder.join(&file.name))?;
            out.set_len(0)?;
            out.write_all(content)?;
            if synced {
                out.sync_data()?;
            }
        }
        if synced && !files.is_empty() {
            sync_folder(&self.folder)?;
        }
        Ok(())
    }

    /// A file's content, unless it is not as it was written.
    pub(super) fn read(&self, file: &FileRef) -> Option<Vec<u8>> {
        let content = fs::read(self.path(&file.name)?).ok()?;
        (content.len() == file.bytes && crc32c::crc32c(&content) == file.crc).then_some(content)
    }

    /// Deletes a file. One that stays is found at the next start.
    pub(super) fn delete(&self, name: &str) {
        if let Some(path) = self.path(name)
            && let Err(error) = fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "a file of the store could not be deleted");
        }
    }

    /// The names of all.
    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().into_string().ok());
        fs::read_dir(&self.folder)?.filter_map(|entry| name(entry).transpose()).collect()
    }

    /// Copies a file to another store's. Returns its size, in bytes; one that is missing is left out.
    pub(super) fn copy(&self, name: &str, to: &Self) -> io::Result<u64> {
        let (Some(from), Some(to)) = (self.path(name), to.path(name)) else { return Ok(0) };
        match fs::copy(from, &to) {
            Ok(bytes) => {
                File::open(to)?.sync_all()?;
                Ok(bytes)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Where a name leads; nowhere if a damaged row made it lead outside.
    fn path(&self, name: &str) -> Option<PathBuf> {
        let is_plain = |byte: u8| byte.is_ascii_hexdigit() || byte == b'-' || byte == b'.';
        let is_name = !name.starts_with('.') && name.bytes().all(is_plain);
        is_name.then(|| self.folder.join(name))
    }
}

/// Makes a folder that only its owner may look into.
pub(super) fn make_private(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(path)
}

/// Sees to it that the names in a folder survive a power loss.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    File::open(path)?.sync_all()?;
    #[cfg(not(unix))]
    let _folders_need_no_sync = path;
    Ok(())
}

/// What kind of network file system a folder is on: SQLite's locks and shared memory do not hold there.
#[cfg(target_os = "linux")]
fn network(path: &Path) -> io::Result<Option<&'static str>> {
    // The kernel's number has 32 bits, whatever the platform's type for it.
    Ok(network_kind(rustix::fs::statfs(path)?.f_type as u32))
}

/// The same by the number of a file system, as `man 2 statfs` lists it.
#[cfg(target_os = "linux")]
fn network_kind(number: u32) -> Option<&'static str> {
    Some(match number {
        0x6969 => "NFS",
        0x517B => "SMB",
        0xFF53_4D42 => "CIFS",
        0xFE53_4D42 => "SMB2",
        0x0102_1997 => "9P",
        0x5346_414F => "AFS",
        0x7375_7245 => "Coda",
        0x00C3_6400 => "Ceph",
        0x0BD0_0BD0 => "Lustre",
        _ => return None,
    })
}

/// Other platforms do not say so in one way.
#[cfg(not(target_os = "linux"))]
fn network(_path: &Path) -> io::Result<Option<&'static str>> {
    Ok(None)
}

/// The bytes that a folder's disk has left for this user; `None` where it does not say.
pub(super) fn room(path: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let stat = rustix::fs::statvfs(path).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _it_does_not_say = path;
        None
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_on_a_disk_of_this_machine_is_told_by_its_number() {
        // As `stat -f -c %t` prints them: file systems of the network, and such as have a disk or the memory.
        for number in [0x6969, 0x517b, 0xff53_4d42, 0xfe53_4d42, 0x0102_1997, 0x00c3_6400] {
            assert!(network_kind(number).is_some(), "{number:x}");
        }
        for number in [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x794c_7630, 0x2fc1_2fc1] {
            assert_eq!(network_kind(number), None, "{number:x}");
        }
        assert_eq!(network(&std::env::temp_dir()).unwrap(), None);
    }

    #[test]
    fn a_folder_on_the_network_is_refused_with_what_it_takes() {
        let error = OpenError::Network { folder: "/srv/nfs".into(), kind: "NFS" };
        let text = "/srv/nfs is on a network file system (NFS); a store needs a local disk";
        assert_eq!(error.to_string(), text);
    }
}
