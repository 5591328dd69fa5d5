//! The settings file: found, read, and its mistakes explained.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::state::{check_is_file, home};

use super::{ClientKeys, DeviceKeys, ServerKeys, defaults};

/// The largest settings file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// The whole file; every section and key is optional.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct File {
    pub(crate) server: ServerKeys,
    pub(crate) client: ClientKeys,
    pub(crate) device: DeviceKeys,
    /// What the server adds to the facts of a device: `[devices."ID"]`, with any keys.
    pub(crate) devices: DeviceTables,
    /// MCP servers of the device: `[mcp.NAME]`. Read by [`crate::mcp`], so that a mistake in one of them
    /// stops neither the others nor the device.
    pub(crate) mcp: toml::Table,
    /// Where this was read.
    #[serde(skip)]
    pub(crate) path: Option<PathBuf>,
}

/// A table of any keys for each device.
pub(crate) type DeviceTables = BTreeMap<String, toml::Table>;

/// What is wrong with the file, and what to do about it.
#[derive(Debug)]
pub(crate) struct FileError(String);

impl std::fmt::Display for FileError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for FileError {}

impl File {
    /// Reads the file that was named, else the usual one if it is there.
    pub(crate) fn load(named: Option<&Path>) -> Result<Self, FileError> {
        let path = match named {
            Some(path) => path.to_owned(),
            None => match usual_path().filter(|path| is_there(path)) {
                Some(path) => path,
                None => return Ok(Self::default()),
            },
        };
        let cannot = |error: &dyn std::fmt::Display| {
            FileError(format!("cannot read the settings file {}: {error}", path.display()))
        };
        let metadata = std::fs::metadata(&path).map_err(|error| match path.is_symlink() {
            true => cannot(&format!("it is a link that leads to no file: {error}")),
            false => cannot(&error),
        })?;
        check_is_file(&path, &metadata).map_err(|error| cannot(&error))?;
        if metadata.len() > MAX_FILE_BYTES {
            return Err(cannot(&format!("it is larger than {MAX_FILE_BYTES} bytes")));
        }
        let text = std::fs::read_to_string(&path).map_err(|error| cannot(&error))?;
        let read = Self::read(&text).map_err(|error| {
            FileError(format!("the settings file {} is not valid: {error}", path.display()))
        })?;
        Ok(Self { path: Some(path), ..read })
    }

    fn read(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| {
            let hint = nearest(error.message()).unwrap_or_default();
            format!("{}{hint}", shown(text, &error))
        })
    }
}

/// Whether there is anything under this name, if only a link that leads nowhere: settings that cannot be read are
/// not no settings.
fn is_there(path: &Path) -> bool {
    match path.symlink_metadata() {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory),
    }
}

/// The error with the line it is about, unless that may hold a secret.
fn shown(text: &str, error: &toml::de::Error) -> String {
    let whole = error.to_string();
    let mut quoted = whole.lines().filter(|line| line.contains(" | "));
    // Among MCP servers stand variables of any name.
    if !text.contains("mcp") && !quoted.any(may_hold_secret) {
        return whole.trim_end().to_owned();
    }
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let message = match error.message() {
        message if message.starts_with("unknown field") => message.to_owned(),
        // It repeats a value of a wrong type.
        message => message.split(['"', '`']).step_by(2).collect::<Vec<_>>().join("…"),
    };
    format!("line {line}: {message} (the line is not shown, since it may hold a secret)")
}

fn may_hold_secret(line: &str) -> bool {
    let line = line.to_lowercase();
    ["key", "token", "secret", "pass"].iter().any(|word| line.contains(word))
}

/// `$XDG_CONFIG_HOME/flightdeck/config.toml`.
pub(crate) fn usual_path() -> Option<PathBuf> {
    let named = std::env::var_os("XDG_CONFIG_HOME").filter(|path| !path.is_empty());
    let folder = named.map(PathBuf::from).or_else(|| Some(home()?.join(".config")))?;
    Some(folder.join("flightdeck/config.toml"))
}

/// For a key that does not exist, the one that was meant.
fn nearest(message: &str) -> Option<String> {
    let unknown = message.strip_prefix("unknown field `")?.split('`').next()?;
    let sections = ["server", "client", "device", "devices", "mcp"].map(str::to_owned);
    if let Some(row) = defaults().into_iter().find(|row| row.key == unknown) {
        return Some(format!("\n  `{unknown}` belongs under [{}]", row.section));
    }
    let keys = defaults().into_iter().map(|row| row.key.to_owned());
    let near = likest(&unknown.replace('-', "_"), keys.chain(sections))?;
    Some(format!("\n  did you mean `{near}`?"))
}

/// The word that was most likely meant.
pub(crate) fn likest(unknown: &str, words: impl Iterator<Item = String>) -> Option<String> {
    let (likeness, near) = words
        .map(|word| (strsim::jaro_winkler(&word, unknown), word))
        .max_by(|a, b| a.0.total_cmp(&b.0))?;
    (likeness > 0.7).then_some(near)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_may_hold_anything_and_nothing() {
        assert!(File::read("").is_ok());
        let text = "[server]\nport = 7000\ncommand_timeout = \"5m\"\nstop_grace = 1.5\n\
                    [device]\nroot = [\"/srv\"]\nmax_retries = 5\nexec = \"shell\"\n";
        let file = File::read(text).unwrap();
        assert_eq!(file.server.port, Some(7000));
        assert_eq!(
            file.server.command_timeout.and_then(|s| s.0),
            Some(std::time::Duration::from_secs(300))
        );
        assert_eq!(file.device.root.map(|roots| roots.to_string()).as_deref(), Some("/srv"));
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_file_is_not_taken_for_no_settings() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::os::unix::fs::symlink("nowhere", at("link")).unwrap();
        let fifo = std::process::Command::new("mkfifo").arg(at("pipe")).status();
        assert!(fifo.unwrap().success());
        for (path, why) in [
            (at("link"), "a link that leads to no file"),
            (folder.path().to_owned(), "it is a folder"),
            (at("pipe"), "it is a pipe"),
        ] {
            assert!(is_there(&path));
            let error = File::load(Some(&path)).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        assert!(!is_there(&at("none")) && File::load(Some(Path::new("/dev/null"))).is_ok());
    }

    #[test]
    fn a_mistake_is_named_with_its_place_and_what_was_meant() {
        let error = |text| File::read(text).unwrap_err();
        let typo = error("[server]\nsesions_per_device = 2\n");
        assert!(
            typo.contains("line 2") && typo.contains("did you mean `sessions_per_device`"),
            "{typo}"
        );
        assert!(error("[sever]\n").contains("did you mean `server`"));
        assert!(error("host = \"::1\"\n").contains("`host` belongs under [server]"));
        assert!(error("[server]\nport = 99999\n").contains("line 2"));
        assert!(
            error("[server]\ncommand_timeout = \"soon\"\n").contains("'soon' is no length of time")
        );
        assert!(error("[server\n").contains("line 1"));
    }

    #[test]
    fn no_line_of_a_file_with_mcp_servers_is_shown() {
        for line in
            ["PAT = \"5ecret", "PAT = 5ecret", "PAT \"5ecret\"", "PAT = \"5ecret\"\nPAT = 1"]
        {
            let error = File::read(&format!("[mcp.fs.env]\n{line}\n")).unwrap_err();
            assert!(error.contains("line ") && !error.contains("5ecret"), "{error}");
        }
        let error = File::read("[mcp.fs]\n[device]\nPAT = \"5ecret\"\n").unwrap_err();
        assert!(
            error.contains("line 3: unknown field `PAT`") && !error.contains("5ecret"),
            "{error}"
        );
    }

    #[test]
    fn a_mistake_among_mcp_servers_is_no_mistake_of_the_file() {
        let file = File::read("[mcp.fs]\ncomand = 3\n[mcp]\nx = 1\n");
        assert!(file.is_ok_and(|file| file.mcp.len() == 2));
    }

    #[test]
    fn a_mistake_in_a_line_with_a_secret_does_not_show_it() {
        for line in [
            "api_key = 5ecret",
            "api_key = [51234]",
            "Api-Key = \"5ecret\"",
            "token = [\"5ecret\"]",
        ] {
            let error = File::read(&format!("[server]\n\n{line}\n")).unwrap_err();
            assert!(error.contains("line 3"), "{error}");
            assert!(!error.contains("5ecret") && !error.contains("51234"), "{error}");
        }
    }
}
