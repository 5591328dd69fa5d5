//! What a child does not see: files and folders that are covered, in a mount namespace of the child's own.
//!
//! It must not know why they are kept from it. A file that its owner replaces while the child runs is not
//! covered any more.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};

use super::{Tie, set_apart};
use crate::confine::Confinement;

/// What is covered. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Veil(Arc<[Covered]>);

/// One file or folder, ready for the system calls between fork and exec.
#[derive(Debug)]
pub(super) struct Covered {
    pub(super) path: CString,
    pub(super) is_folder: bool,
}

impl Veil {
    /// Covers these: a folder is empty then, a file nothing that has content.
    ///
    /// # Errors
    /// When one of them cannot be named to the system.
    pub(crate) fn over(paths: Vec<PathBuf>) -> io::Result<Self> {
        let covered = paths.into_iter().map(|path| {
            let is_folder = path.is_dir();
            Ok(Covered { path: CString::new(path.into_os_string().into_vec())?, is_folder })
        });
        Ok(Self(covered.collect::<io::Result<_>>()?))
    }

    pub(super) fn covered(&self) -> &[Covered] {
        &self.0
    }

    /// Whether this process may have children that see less than it does; tried once.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn try_out() -> Result<(), &'static str> {
        static TRIED: OnceLock<Option<String>> = OnceLock::new();
        let failed = TRIED.get_or_init(|| tried().err().map(|error| error.to_string()));
        failed.as_deref().map_or(Ok(()), Err)
    }
}

fn tried() -> io::Result<()> {
    // A file and a folder that are there everywhere.
    let veil = Veil::over(vec!["/dev/null".into(), std::env::temp_dir()])?;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", ":"]).env_clear().current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    set_apart(&mut command, Tie::Outlives, &Confinement::default().behind(veil), None);
    let status = command.spawn()?.wait()?;
    if status.success() { Ok(()) } else { Err(io::Error::other("a program did not start in one")) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_covered_is_not_seen_by_the_child_and_by_all_others() {
        if let Err(why) = Veil::try_out() {
            eprintln!("left out: {why}");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        for name in ["key", "open", "gone"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        fs::create_dir(folder.path().join("state")).unwrap();
        fs::write(folder.path().join("state/secret"), "secret").unwrap();
        let covered = ["key", "gone", "state"].map(|name| folder.path().join(name)).to_vec();
        let veil = Veil::over(covered).unwrap();
        fs::remove_file(folder.path().join("gone")).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "cat key open state/* 2>/dev/null; ls state; umount key && cat key"]);
        command.current_dir(folder.path()).stdin(Stdio::null());
        set_apart(&mut command, Tie::Outlives, &Confinement::default().behind(veil), None);
        let output = command.output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "open");
        assert_eq!(fs::read_to_string(folder.path().join("key")).unwrap(), "key");
    }
}
