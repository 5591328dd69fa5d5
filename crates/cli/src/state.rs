//! The state folder: where the generated key is kept, for its owner's eyes only.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use link::private;
use secrecy::{ExposeSecret, SecretString};
use server::generate_key;

/// The user's home folder.
pub(crate) fn home() -> Option<PathBuf> {
    std::env::home_dir().filter(|home| !home.as_os_str().is_empty())
}

/// A path with `~/` in front, as a settings file may have it, where no shell has expanded it.
pub(crate) fn expand_home(path: &Path) -> PathBuf {
    match (path.strip_prefix("~"), home()) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.to_owned(),
    }
}

/// The name of the key's file in the state folder.
const KEY_FILE: &str = "key";

/// The largest key file that is read, in bytes.
const MAX_KEY_BYTES: u64 = 4096;

/// The state folder: the one that was named, else `$XDG_STATE_HOME/flightdeck`.
pub(crate) struct StateFolder(PathBuf);

/// Which state folders of this user are not the usual one.
const ELSEWHERE: &str = "state-folders";

/// The most of them that are known, the newest, and the longest file of them that is read, in bytes.
const MAX_ELSEWHERE: usize = 256;
const MAX_ELSEWHERE_BYTES: u64 = 1024 * 1024;

impl StateFolder {
    pub(crate) fn new(named: Option<PathBuf>) -> anyhow::Result<Self> {
        if let Some(folder) = named {
            return Ok(Self(folder));
        }
        let state_home = std::env::var_os("XDG_STATE_HOME").filter(|path| !path.is_empty());
        let state_home = match state_home {
            Some(path) => PathBuf::from(path),
            None => home()
                .context("there is no home folder for the key; name a folder with --state-dir")?
                .join(".local/state"),
        };
        Ok(Self(state_home.join("flightdeck")))
    }

    /// What to type with a command that is to use the same one; nothing for the usual one.
    pub(crate) fn flag(&self) -> String {
        let path = std::path::absolute(&self.0).unwrap_or_else(|_| self.0.clone());
        if Self::new(None).is_ok_and(|usual| usual.0 == path) {
            return String::new();
        }
        let path = path.to_string_lossy();
        format!(" --state-dir {}", shlex::try_quote(&path).unwrap_or_default())
    }

    pub(crate) fn key_path(&self) -> PathBuf {
        self.0.join(KEY_FILE)
    }

    /// The key, if one was generated here.
    ///
    /// # Errors
    /// When it cannot be read, or others can read it too.
    pub(crate) fn key(&self) -> anyhow::Result<Option<SecretString>> {
        let path = self.key_path();
        match read_key(&path) {
            Ok(key) => {
                check_private(&path)?;
                Ok(Some(key))
            }
            Err(error) if is_kind(&error, io::ErrorKind::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The key, generated now if there is none. `true` when it is new.
    pub(crate) fn key_or_new(&self) -> anyhow::Result<(SecretString, bool)> {
        if let Some(key) = self.key()? {
            return Ok((key, false));
        }
        let key = generate_key();
        match self.put_key(&key) {
            Ok(()) => Ok((key, true)),
            // Another server was faster.
            Err(error) if is_kind(&error, io::ErrorKind::AlreadyExists) => {
                Ok((read_key(&self.key_path())?, false))
            }
            Err(error) => Err(error),
        }
    }

    /// Makes the folder, if it is not there.
    ///
    /// # Errors
    /// When it cannot be made, or others can put files into it.
    pub(crate) fn create(&self) -> anyhow::Result<()> {
        let shown = self.0.display();
        create_private_folder(&self.0)
            .with_context(|| format!("cannot make the state folder {shown}"))?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(&self.0)?.permissions().mode() & 0o777;
            if mode & 0o022 != 0 {
                bail!(
                    "other users of this machine can put keys of their own into the state folder \
                     {shown} (mode {mode:o}); close it: chmod 700 {shown}"
                );
            }
        }
        Ok(())
    }

    /// Takes the folder for a server, for as long as the file is open: two would overwrite each other's keys and logs,
    /// wherever they keep their tasks. A file system that has no locks is taken at its word.
    ///
    /// # Errors
    /// When another server has it.
    pub(crate) fn take(&self) -> anyhow::Result<File> {
        self.create()?;
        let path = self.0.join("serve.lock");
        let cannot = || format!("cannot open {}", path.display());
        let lock = private(File::options().write(true).create(true).truncate(false)).open(&path);
        let lock = lock.with_context(cannot)?;
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => bail!(
                "another server uses the state folder {}\n  name another folder with --state-dir",
                self.0.display()
            ),
            Ok(()) | Err(TryLockError::Error(_)) => Ok(lock),
        }
    }

    /// Has this user's devices know of a folder that is not the usual one, so that they keep what is in it from their
    /// callers. It is no more than that: where it cannot be written, nothing else fails.
    pub(crate) fn note_elsewhere(&self) {
        let Ok(usual) = Self::new(None) else { return };
        let own = std::path::absolute(&self.0).unwrap_or_else(|_| self.0.clone());
        let mut known = Self::elsewhere();
        if own == usual.0 || known.contains(&own) || usual.create().is_err() {
            return;
        }
        known.push(own);
        let excess = known.len().saturating_sub(MAX_ELSEWHERE);
        let lines = known.iter().skip(excess).map(|path| path.to_string_lossy());
        let _noted =
            replace_private_note(&usual.0.join(ELSEWHERE), &lines.collect::<Vec<_>>().join("\n"));
    }

    /// The folders of which that was said.
    pub(crate) fn elsewhere() -> Vec<PathBuf> {
        let Ok(usual) = Self::new(None) else { return Vec::new() };
        let path = usual.0.join(ELSEWHERE);
        let is_readable = fs::metadata(&path).is_ok_and(|found| found.len() <= MAX_ELSEWHERE_BYTES);
        let text = is_readable.then(|| fs::read_to_string(path).ok()).flatten().unwrap_or_default();
        text.lines().filter(|line| !line.is_empty()).map(PathBuf::from).collect()
    }

    /// Whether a server has taken the folder; a file system that has no locks says so as well.
    pub(crate) fn is_taken(&self) -> bool {
        let lock = File::options().read(true).open(self.0.join("serve.lock"));
        lock.is_ok_and(|lock| lock.try_lock_shared().is_err())
    }

    /// Keeps a key where there is none.
    pub(crate) fn put_key(&self, key: &SecretString) -> anyhow::Result<()> {
        self.create()?;
        let path = self.key_path();
        write_private_file(&path, key.expose_secret())
            .with_context(|| format!("cannot write the key to {}", path.display()))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Removes the folder and all that is in it.
    pub(crate) fn remove(self) -> anyhow::Result<()> {
        fs::remove_dir_all(&self.0).with_context(|| format!("cannot remove {}", self.0.display()))
    }
}

/// What a shell hands on in the place of a file, or stands for none: that is not waited for without end.
const HANDED_ON: [&str; 4] = ["/dev/fd", "/dev/stdin", "/dev/null", "/proc"];

/// Refuses what is there in the place of a file that is to be read: a folder, and a pipe, which would be waited for.
pub(crate) fn check_is_file(path: &Path, found: &fs::Metadata) -> io::Result<()> {
    if found.is_dir() {
        return Err(io::Error::other("it is a folder"));
    }
    if found.is_file() || HANDED_ON.iter().any(|place| path.starts_with(place)) {
        return Ok(());
    }
    Err(io::Error::other("it is a pipe, a socket or a device, not a file"))
}

/// Refuses a file of keys that others than its owner can read or write.
pub(crate) fn check_private_keys(path: &Path) -> anyhow::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(path)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            let shown = path.display();
            bail!(
                "other users of this machine can read or write the keys in {shown} (mode {mode:o}); close the \
                 file: chmod 600 {shown}; then see that all in it is yours (on a server: `flightdeck key list`)"
            );
        }
    }
    #[cfg(not(unix))]
    let _no_modes_here = path;
    Ok(())
}

/// Refuses a file of rules that others than its owner can write or replace, or that is somebody else's.
pub(crate) fn check_only_owner_writes(path: &Path, file: &fs::Metadata) -> anyhow::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        /// In a folder with this bit only a file's owner can replace it.
        const STICKY: u32 = 0o1000;

        let shown = path.display();
        let mode = file.permissions().mode() & 0o777;
        if mode & 0o022 != 0 {
            bail!(
                "other users of this machine can write it (mode {mode:o}); close it: \
                 chmod go-w {shown}"
            );
        }
        if file.uid() != 0 && file.uid() != rustix::process::geteuid().as_raw() {
            bail!("it belongs to another user; make it yours: chown $USER {shown}");
        }
        let folder = path.canonicalize()?.parent().map(Path::to_owned).unwrap_or_default();
        let mode = fs::metadata(&folder)?.permissions().mode();
        if mode & 0o022 != 0 && mode & STICKY == 0 {
            let (folder, mode) = (folder.display(), mode & 0o777);
            bail!(
                "other users of this machine can replace it, since they can write its folder \
                 {folder} (mode {mode:o}); close that: chmod go-w {folder}"
            );
        }
    }
    #[cfg(not(unix))]
    let _no_modes_here = (path, file);
    Ok(())
}

/// Refuses a key file that others than its owner can read.
fn check_private(path: &Path) -> anyhow::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(path)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            let shown = path.display();
            bail!(
                "other users of this machine can read the key file {shown} (mode {mode:o}); \
                 close it: chmod 600 {shown}. If somebody may have read it, remove it instead, and \
                 `flightdeck serve` makes a new one"
            );
        }
    }
    #[cfg(not(unix))]
    let _no_modes_here = path;
    Ok(())
}

/// Warns of a file with a secret that others than its owner can read. A group may read it when root says
/// so, as where a group of servers shares a certificate.
pub(crate) fn warn_of_readers(what: &str, path: &Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let Ok(metadata) = fs::metadata(path) else { return };
        let mode = metadata.mode() & 0o777;
        let strangers = if metadata.uid() == 0 { 0o007 } else { 0o077 };
        if mode & strangers != 0 {
            let path = path.display();
            say!(
                "warning: other users of this machine can read the {what} {path} (mode {mode:o}); \
                 close it: chmod 600 {path}"
            );
        }
    }
    #[cfg(not(unix))]
    let _no_modes_here = (what, path);
}

/// Reads a key from a file: its text, without white space around it.
pub(crate) fn read_key(path: &Path) -> anyhow::Result<SecretString> {
    let shown = path.display();
    let metadata =
        fs::metadata(path).with_context(|| format!("cannot read the key file {shown}"))?;
    check_is_file(path, &metadata).with_context(|| format!("cannot read the key file {shown}"))?;
    if metadata.len() > MAX_KEY_BYTES {
        bail!("the key file {shown} is larger than {MAX_KEY_BYTES} bytes; is it the right file?");
    }
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read the key file {shown}"))?;
    let key = text.trim();
    if key.is_empty() {
        bail!(
            "the key file {shown} is empty; where it is the server's own, remove it, and `flightdeck serve` makes a new one"
        );
    }
    Ok(SecretString::from(key.to_owned()))
}

fn is_kind(error: &anyhow::Error, kind: io::ErrorKind) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == kind)
}

/// Makes a folder that only its owner can look into, unless it is there.
#[cfg(unix)]
pub(crate) fn create_private_folder(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        created => created,
    }
}

#[cfg(not(unix))]
pub(crate) fn create_private_folder(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)
}

/// Writes a file that nobody else can read, whole or not at all, unless it is there already.
pub(crate) fn write_private_file(path: &Path, text: &str) -> io::Result<()> {
    let draft = write_draft(path, text, fs::File::sync_all)?;
    // Unlike a rename, a link never replaces what is there.
    let linked = fs::hard_link(&draft, path);
    let removed = fs::remove_file(&draft);
    linked.and(removed)
}

/// The same, in the place of what is there.
pub(crate) fn replace_private_file(path: &Path, text: &str) -> io::Result<()> {
    replace_with(path, text, fs::File::sync_all)
}

/// The same for what need not outlive the machine: it does not wait for the disk.
pub(crate) fn replace_private_note(path: &Path, text: &str) -> io::Result<()> {
    replace_with(path, text, |_| Ok(()))
}

type Sync = fn(&fs::File) -> io::Result<()>;

fn replace_with(path: &Path, text: &str, sync: Sync) -> io::Result<()> {
    let draft = write_draft(path, text, sync)?;
    fs::rename(&draft, path).inspect_err(|_| {
        // What matters is the first error.
        let _removed = fs::remove_file(&draft);
    })
}

/// Writes a file beside the one that is meant. What nobody else can read stays so from the first byte.
fn write_draft(path: &Path, text: &str, sync: Sync) -> io::Result<PathBuf> {
    let draft = path.with_extension(uuid::Uuid::new_v4().simple().to_string());
    let mut file = private(fs::OpenOptions::new().write(true).create_new(true)).open(&draft)?;
    give_to_owner_of_folder(&draft);
    let written = writeln!(file, "{text}").and_then(|()| sync(&file));
    match written {
        Ok(()) => Ok(draft),
        Err(error) => {
            // What matters is the first error.
            let _removed = fs::remove_file(&draft);
            Err(error)
        }
    }
}

/// The audit log of a server with this state folder.
pub(crate) fn audit_log(folder: &Path) -> PathBuf {
    folder.join("audit.jsonl")
}

/// What root makes in a service's folder must stay readable to the service.
pub(crate) fn give_to_owner_of_folder(path: &Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt, chown};
        let owners = path.parent().and_then(|folder| fs::metadata(folder).ok());
        let owners = owners.zip(fs::metadata(path).ok());
        if let Some((folder, file)) = owners
            && folder.uid() != file.uid()
        {
            // Whoever is not root may not, and has no need to: the folder is open to its owner only.
            let _given = chown(path, Some(folder.uid()), Some(folder.gid()));
        }
    }
    #[cfg(not(unix))]
    let _no_owners_here = path;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_generated_once_and_only_its_owner_can_read_it() {
        let home = tempfile::tempdir().unwrap();
        let folder = StateFolder::new(Some(home.path().join("state"))).unwrap();
        assert!(folder.key().unwrap().is_none());
        let (key, is_new) = folder.key_or_new().unwrap();
        assert!(is_new && key.expose_secret().len() == 64);
        let (again, is_new) = folder.key_or_new().unwrap();
        assert!(!is_new && again.expose_secret() == key.expose_secret());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode(&folder.0), 0o700);
            assert_eq!(mode(&folder.key_path()), 0o600);
        }
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1, "no draft is left behind");
    }

    #[cfg(unix)]
    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_remedy() {
        use std::os::unix::fs::PermissionsExt;
        let home = tempfile::tempdir().unwrap();
        let folder = StateFolder::new(Some(home.path().to_owned())).unwrap();
        folder.key_or_new().unwrap();
        fs::set_permissions(folder.key_path(), fs::Permissions::from_mode(0o644)).unwrap();
        let error = folder.key().unwrap_err().to_string();
        assert!(error.contains("mode 644") && error.contains("chmod 600"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_is_not_waited_for() {
        let home = tempfile::tempdir().unwrap();
        let pipe = home.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let error = format!("{:#}", read_key(&pipe).unwrap_err());
        assert!(error.contains("it is a pipe"), "{error}");
        let found = fs::metadata("/dev/null").unwrap();
        assert!(check_is_file(Path::new("/dev/fd/63"), &found).is_ok(), "a shell hands it on");
    }

    #[test]
    fn an_empty_key_file_is_no_key() {
        let home = tempfile::tempdir().unwrap();
        let folder = StateFolder::new(Some(home.path().to_owned())).unwrap();
        write_private_file(&folder.key_path(), "").unwrap();
        assert!(folder.key_or_new().unwrap_err().to_string().contains("is empty"));
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_or_file_that_others_can_write_is_refused_with_the_remedy() {
        use std::os::unix::fs::PermissionsExt;
        let home = tempfile::tempdir().unwrap();
        let folder = StateFolder::new(Some(home.path().join("state"))).unwrap();
        folder.create().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let error = folder.create().unwrap_err().to_string();
        assert!(error.contains("mode 777") && error.contains("chmod 700"), "{error}");

        let keys = home.path().join("keys.json");
        fs::write(&keys, "{}").unwrap();
        fs::set_permissions(&keys, fs::Permissions::from_mode(0o666)).unwrap();
        let error = check_private_keys(&keys).unwrap_err().to_string();
        assert!(error.contains("mode 666") && error.contains("chmod 600"), "{error}");
    }
}
