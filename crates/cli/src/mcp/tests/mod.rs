//! What an owner sees of the lists of MCP servers, right and wrong.

mod common;
mod damage;
mod files;
mod ufo;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::*;

/// What must not be found in anything that is said.
const SECRET: &str = "hunter2_5ecret";

fn variable(name: &str) -> Option<String> {
    match name {
        "TOKEN" => Some(SECRET.to_owned()),
        "BREAK" => Some(format!("{SECRET}\n")),
        "HOST" => Some("example.com".to_owned()),
        "PORT" => Some("8010".to_owned()),
        _ => None,
    }
}

/// A folder with files that only their owner can read.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn put(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        chmod(&path, 0o600);
        path
    }

    fn read(&self, files: &[(&str, &str)]) -> Listed {
        let sources = files.iter().map(|(name, text)| Source::File(self.put(name, text)));
        let listed = read(sources, &variable);
        assert!(!format!("{listed:?}").contains(SECRET), "{listed:?}");
        listed
    }

    /// The messages about one file, without its name.
    fn problems(&self, name: &str, text: &str) -> Vec<String> {
        self.messages(&self.read(&[(name, text)]))
    }

    fn messages(&self, listed: &Listed) -> Vec<String> {
        let prefix = format!("{}/", self.0.path().display());
        listed.problems.iter().map(|problem| problem.to_string().replace(&prefix, "")).collect()
    }
}

fn chmod(path: &Path, mode: u32) {
    #[cfg(unix)]
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    #[cfg(not(unix))]
    let _no_modes_here = (path, mode);
}

fn names(listed: &Listed) -> Vec<&str> {
    listed.servers.iter().map(|server| server.namespace.as_str()).collect()
}

fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
    entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}
