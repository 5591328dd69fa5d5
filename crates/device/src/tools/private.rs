//! What is kept from callers although it may lie below a root: the device's own files, and private keys.
//!
//! A file is known by its identity, the device and the inode, so that neither a hard link nor another way
//! to it helps. The files are looked at anew for each call: their owner may replace them at any time. What one of
//! them was is kept from callers all the same, as long as it is the same file: editors move it aside.
//!
//! It must not know any tool, nor which files a device is configured with: it is told.

use std::cell::OnceCell;
use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::fs::{self, File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// How much of a file is looked at to tell whether it is a key, in bytes. A certificate, or the parameters
/// of a curve, may stand in front of one.
const HEAD_BYTES: usize = 4096;

/// Most entries of the device's own folders that are looked at for the other name of a hard link. Beyond
/// it any file with two names may be one of the device's.
const MAX_OWN_ENTRIES: usize = 100_000;

/// How many files are remembered that were own ones once. The oldest is forgotten first.
const MAX_FORMER: usize = 256;

/// The files and folders that are the device's own, and those that its owner shows all the same. Cheap to
/// clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Private {
    own: Arc<[PathBuf]>,
    shown: Arc<[PathBuf]>,
    /// The files that were found at the paths of the own ones so far.
    former: Arc<Mutex<VecDeque<Former>>>,
}

/// A file that is or was an own one. The same number is soon another file's, which came into being later.
type Former = (Id, SystemTime);

/// Why something is kept from callers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// It is the device's own, or in a folder of the device's own.
    Own,
    /// It is a private key by its first bytes.
    Key,
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Own => "one of the files that this device or its server keeps for itself",
            Self::Key => "a private key, as its first bytes say",
        })
    }
}

/// What tells a file from every other one.
type Id = (u64, u64);

/// The private files as they are at this moment.
pub(super) struct Known {
    /// Resolved as far as they exist, each with its identity if it does.
    own: Vec<(PathBuf, Option<Id>)>,
    shown: Vec<Id>,
    former: Vec<Former>,
    /// Those in the own folders that have a second name somewhere; `None` if there are too many to know.
    linked: OnceCell<Option<HashSet<Id>>>,
}

impl Private {
    /// Keeps `own`, files and folders with all in them, from callers, but for what `shown` names.
    pub(super) fn new(own: &[PathBuf], shown: &[PathBuf]) -> Self {
        let private = Self { own: own.into(), shown: shown.into(), former: Arc::default() };
        // What they are at the start counts, whenever the first call comes.
        let _remembered = private.known();
        private
    }

    /// Looks where they are now.
    pub(super) fn known(&self) -> Known {
        let mut former = self.former.lock().unwrap_or_else(PoisonError::into_inner);
        let own = self.own.iter().map(|path| {
            let found = fs::metadata(path).ok();
            let this = found.as_ref().filter(|found| found.is_file()).and_then(as_former);
            if let Some(this) = this.filter(|this| !former.contains(this)) {
                if former.len() == MAX_FORMER {
                    former.pop_front();
                }
                former.push_back(this);
            }
            (real(path), found.as_ref().and_then(id))
        });
        let own = own.collect();
        let shown = self.shown.iter().filter_map(|path| id(&fs::metadata(path).ok()?));
        let former = former.iter().copied().collect();
        Known { own, shown: shown.collect(), former, linked: OnceCell::new() }
    }

    /// Why what is at a resolved path is kept from callers; `None` if it is not.
    pub(super) fn keeps(&self, path: &Path) -> Option<Kept> {
        self.known().keeps(path)
    }

    /// The same of a file that was opened.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub(super) fn keeps_open(&self, file: &File) -> io::Result<Option<Kept>> {
        self.known().keeps_open(file)
    }
}

impl Known {
    /// Why what is at a resolved path is kept from callers; `None` if it is not.
    pub(super) fn keeps(&self, path: &Path) -> Option<Kept> {
        let found = fs::symlink_metadata(path).ok();
        if found.as_ref().is_some_and(|found| self.is_shown(found)) {
            return None;
        }
        let is_own = path.ancestors().any(|above| self.is_own(above))
            || found.as_ref().is_some_and(|found| self.is_own_file(found));
        if is_own {
            return Some(Kept::Own);
        }
        found.filter(Metadata::is_file).filter(|_| is_key_at(path)).map(|_| Kept::Key)
    }

    /// The same of a file that was opened.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub(super) fn keeps_open(&self, file: &File) -> io::Result<Option<Kept>> {
        let found = file.metadata()?;
        if self.is_shown(&found) {
            return Ok(None);
        }
        if self.is_own_file(&found) {
            return Ok(Some(Kept::Own));
        }
        Ok(is_key(&head(file)?).then_some(Kept::Key))
    }

    /// Whether a file is kept from callers that a walk met, of which the folders above were looked at.
    pub(super) fn keeps_below(&self, path: &Path, found: &Metadata) -> bool {
        !self.is_shown(found)
            && (self.own.iter().any(|(own, _)| own == path)
                || self.is_own_file(found)
                || found.is_file() && is_key_at(path))
    }

    fn is_shown(&self, found: &Metadata) -> bool {
        id(found).is_some_and(|id| self.shown.contains(&id))
    }

    /// Whether it is one of the own files or folders, by its path or its identity.
    pub(super) fn is_own(&self, path: &Path) -> bool {
        let found = || id(&fs::symlink_metadata(path).ok()?);
        self.own.iter().any(|(own, _)| own == path)
            || found().is_some_and(|found| self.own.iter().any(|(_, own)| *own == Some(found)))
    }

    /// Whether it is an own file under this or another name.
    fn is_own_file(&self, found: &Metadata) -> bool {
        let Some(known) = id(found) else { return false };
        let is_former = || as_former(found).is_some_and(|this| self.former.contains(&this));
        if self.own.iter().any(|(_, own)| *own == Some(known)) || is_former() {
            return true;
        }
        if !found.is_file() || names(found) < 2 {
            return false;
        }
        let linked = self.linked.get_or_init(|| linked_in(self.own.iter().map(|(path, _)| path)));
        linked.as_ref().is_none_or(|linked| linked.contains(&known))
    }
}

/// Whether a file that begins with these bytes looks like a private key.
pub(super) fn is_key(head: &[u8]) -> bool {
    let head = &head[..head.len().min(HEAD_BYTES)];
    // Editors of some systems put a mark in front.
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    let begins_key = |line: &[u8]| {
        let line = line.trim_ascii();
        let is_pem = line.starts_with(b"-----BEGIN ")
            && line.windows(b"PRIVATE KEY".len()).any(|part| part == b"PRIVATE KEY");
        is_pem || line.starts_with(b"PuTTY-User-Key-File-") || line.starts_with(b"AGE-SECRET-KEY-")
    };
    head.split(|byte| *byte == b'\n' || *byte == b'\r').any(begins_key)
}

/// The same of a file at a resolved path. One that cannot be read gives nothing away.
fn is_key_at(path: &Path) -> bool {
    open(path).and_then(|file| head(&file)).is_ok_and(|head| is_key(&head))
}

/// Opens a file without waiting for it or following a link.
fn open(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true);
    #[cfg(unix)]
    {
        use rustix::fs::OFlags;
        use std::os::unix::fs::OpenOptionsExt;
        let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY;
        options.custom_flags(flags.bits().cast_signed());
    }
    options.open(path)
}

/// The first bytes of a file, wherever it is read from next.
#[cfg(unix)]
fn head(file: &File) -> io::Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let (mut bytes, mut length) = (vec![0; HEAD_BYTES], 0);
    while length < bytes.len() {
        match file.read_at(&mut bytes[length..], length as u64) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(length);
    Ok(bytes)
}

#[cfg(not(unix))]
fn head(mut file: &File) -> io::Result<Vec<u8>> {
    use std::io::{Read, Seek, SeekFrom};
    let mut bytes = Vec::new();
    file.take(HEAD_BYTES as u64).read_to_end(&mut bytes)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(bytes)
}

/// The files in these folders that have more than one name; `None` if the folders hold too much.
fn linked_in<'a>(folders: impl Iterator<Item = &'a PathBuf>) -> Option<HashSet<Id>> {
    let (mut linked, mut seen) = (HashSet::new(), 0);
    let mut waiting: Vec<PathBuf> = folders.cloned().collect();
    while let Some(folder) = waiting.pop() {
        // What is a file, or cannot be listed, has nothing in it.
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            seen += 1;
            if seen > MAX_OWN_ENTRIES {
                return None;
            }
            let Ok(found) = entry.metadata() else { continue };
            if found.is_dir() {
                waiting.push(entry.path());
            } else if names(&found) > 1 {
                linked.extend(id(&found));
            }
        }
    }
    Some(linked)
}

/// Resolves a path as far as it exists.
fn real(path: &Path) -> PathBuf {
    let below = || Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?));
    path.canonicalize().ok().or_else(below).unwrap_or_else(|| path.to_owned())
}

#[cfg(unix)]
fn id(found: &Metadata) -> Option<Id> {
    use std::os::unix::fs::MetadataExt;
    Some((found.dev(), found.ino()))
}

/// Where files are not told apart like this, their paths alone count.
#[cfg(not(unix))]
fn id(_: &Metadata) -> Option<Id> {
    None
}

/// What tells a file from one that gets its number later; `None` where the system does not say when it came into being.
fn as_former(found: &Metadata) -> Option<Former> {
    Some((id(found)?, found.created().ok()?))
}

/// How many names a file has.
#[cfg(unix)]
fn names(found: &Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::nlink(found)
}

#[cfg(not(unix))]
fn names(_: &Metadata) -> u64 {
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_key_is_known_by_its_first_bytes() {
        for key in [
            "-----BEGIN PRIVATE KEY-----\nMC4C",
            "-----BEGIN OPENSSH PRIVATE KEY-----\n",
            "-----BEGIN EC PARAMETERS-----\nBggq\n-----END EC PARAMETERS-----\n-----BEGIN EC PRIVATE KEY-----\n",
            "Bag Attributes\r\n  localKeyID: 01\r\n-----BEGIN ENCRYPTED PRIVATE KEY-----\r\n",
            "-----BEGIN PGP PRIVATE KEY BLOCK-----\n",
            "PuTTY-User-Key-File-3: ssh-ed25519\n",
        ] {
            assert!(is_key(key.as_bytes()), "{key}");
        }
        for text in [
            "-----BEGIN CERTIFICATE-----\nMIIB",
            "-----BEGIN PUBLIC KEY-----\n",
            "ssh-ed25519 AAAA me",
            "The line is `-----BEGIN PRIVATE KEY-----`.",
            "",
        ] {
            assert!(!is_key(text.as_bytes()), "{text}");
        }
        let far = format!("{}\n-----BEGIN PRIVATE KEY-----", "x".repeat(HEAD_BYTES));
        assert!(!is_key(far.as_bytes()), "only the first bytes count");
    }

    #[cfg(unix)]
    #[test]
    fn own_files_are_known_whatever_they_are_called_and_shown_ones_are_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().canonicalize().unwrap().join(name);
        fs::create_dir_all(at("state/keys")).unwrap();
        for file in ["token", "state/keys/one", "open", "ca.pem"] {
            fs::write(at(file), "text").unwrap();
        }
        fs::hard_link(at("token"), at("other")).unwrap();
        fs::hard_link(at("state/keys/one"), at("one")).unwrap();
        fs::hard_link(at("open"), at("open too")).unwrap();
        let own = [at("token"), at("state"), at("ca.pem"), at("not yet")];
        let private = Private::new(&own, &[at("ca.pem")]);
        for kept in ["token", "other", "state", "state/keys", "state/keys/one", "state/new", "one"]
        {
            assert_eq!(private.keeps(&at(kept)), Some(Kept::Own), "{kept}");
        }
        assert_eq!(private.keeps(&at("not yet")), Some(Kept::Own), "it may come into being");
        for open in ["open", "open too", "ca.pem", "nothing"] {
            assert_eq!(private.keeps(&at(open)), None, "{open}");
        }
        fs::write(at("id"), "-----BEGIN OPENSSH PRIVATE KEY-----\n").unwrap();
        assert_eq!(private.keeps(&at("id")), Some(Kept::Key));
        let opened = |name| private.keeps_open(&File::open(at(name)).unwrap()).unwrap();
        assert_eq!((opened("other"), opened("id")), (Some(Kept::Own), Some(Kept::Key)));
        assert_eq!((opened("one"), opened("open")), (Some(Kept::Own), None));
        // A file that took the place of another one is as private.
        fs::write(at("new"), "text").unwrap();
        fs::rename(at("token"), at("token~")).unwrap();
        fs::rename(at("new"), at("token")).unwrap();
        assert_eq!(private.keeps(&at("token")), Some(Kept::Own));
        // So is what it was.
        for before in ["token~", "other"] {
            assert_eq!(private.keeps(&at(before)), Some(Kept::Own), "{before}");
        }
        assert_eq!(opened("token~"), Some(Kept::Own));
        // And not what gets its number one day.
        fs::remove_file(at("token~")).unwrap();
        fs::remove_file(at("other")).unwrap();
        for n in 0..100 {
            fs::write(at(&format!("later {n}")), "text").unwrap();
            assert_eq!(private.keeps(&at(&format!("later {n}"))), None, "{n}");
        }
    }
}
