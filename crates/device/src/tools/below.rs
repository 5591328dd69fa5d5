//! What a command that reads all files below some folders must not see of them.
//!
//! It must not know which command that is, nor how files are covered.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::bounds::Bounds;
use super::work::Watch;

/// Most files and folders that are covered for one command.
const MAX_COVERED: usize = 4096;

/// The files and folders below `starts` that are private, or of which `is_closed` says so. Links are not
/// followed, nor are folders entered that are out of bounds.
///
/// # Errors
/// When it takes too long or was stopped, or there are too many of them.
pub(super) fn private(
    starts: Vec<PathBuf>,
    bounds: &Bounds,
    is_closed: impl Fn(&Path) -> bool,
    watch: &Watch,
) -> io::Result<Vec<PathBuf>> {
    let (known, mut waiting, mut found) = (bounds.private().known(), starts, Vec::new());
    while let Some(folder) = waiting.pop() {
        // What cannot be listed, or is gone, shows nothing.
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            watch.check()?;
            let path = entry.path();
            let Ok(metadata) = entry.metadata() else { continue };
            let is_file = metadata.is_file();
            if metadata.is_symlink() || !bounds.holds(&path) {
                continue;
            }
            if known.keeps_below(&path, &metadata) || (is_file && is_closed(&path)) {
                found.push(path);
            } else if metadata.is_dir() {
                waiting.push(path);
            }
            if found.len() > MAX_COVERED {
                return Err(io::Error::other(format!(
                    "more than {MAX_COVERED} files there are kept from callers; name a folder further down"
                )));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use aip::Payload;
    use serde_json::{Value, json};
    use tempfile::TempDir;
    use tokio_util::sync::CancellationToken;

    use super::super::bash::{Bash, EXECUTE_COMMAND};
    use super::super::{Call, Caller, ToolSettings};
    use crate::confine::{Confinement, can_hide};
    use crate::policy::{Decision, Effect, Policy, Rule};
    use crate::progress::Progress;
    use std::fs;

    /// A root in which the device's own files lie, and keys.
    fn root() -> TempDir {
        let folder = tempfile::Builder::new().prefix("below").tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("state/journal")).unwrap();
        fs::create_dir_all(at("src/deep")).unwrap();
        for own in ["token", "mcp.json", "state/key", "state/journal/one"] {
            fs::write(at(own), "SECRET of the device\n").unwrap();
        }
        fs::hard_link(at("token"), at("src/other")).unwrap();
        fs::hard_link(at("state/key"), at("src/deep/another")).unwrap();
        fs::write(at("src/tls.pem"), "-----BEGIN PRIVATE KEY-----\nSECRET\n").unwrap();
        fs::write(at("src/main.rs"), "open SECRET is no secret\n").unwrap();
        fs::write(at("src/notes.log"), "SECRET by a rule\n").unwrap();
        folder
    }

    fn settings(root: &TempDir) -> ToolSettings {
        let at = |name: &str| root.path().join(name);
        ToolSettings {
            roots: vec![root.path().to_owned()],
            private: ["token", "mcp.json", "state", "none"].map(at).to_vec(),
            ..ToolSettings::default()
        }
    }

    async fn ran(settings: &ToolSettings, line: &str) -> Result<Value, String> {
        let bash = Bash::new(settings, Confinement::new(0), None);
        let parameters = Payload::from_value(&json!({ "command": line })).unwrap();
        let call = Call {
            parameters: Some(&parameters),
            caller: &Caller::default(),
            stop: &CancellationToken::new(),
            progress: &Progress::default(),
            flow: None,
        };
        bash.call(EXECUTE_COMMAND, &call).await
    }

    fn stdout(ran: &Result<Value, String>) -> &str {
        ran.as_ref().unwrap()["stdout"].as_str().unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_command_that_reads_a_folder_does_not_see_what_is_private_in_it() {
        let root = root();
        let mut settings = settings(&root);
        let (closes, whole) = (settings.clone(), "grep -rh SECRET .");
        let rule = Rule {
            name: None,
            tool: "*".to_owned(),
            tool_type: None,
            effect: Some(Effect::Read),
            path: Some("*.log".to_owned()),
            arguments: Vec::new(),
            decision: Decision::Ask,
        };
        settings.policy = Policy::new([rule]);
        let ran_there = ran(&settings, whole).await;
        if can_hide().is_err() {
            assert!(ran_there.unwrap_err().contains("cannot hide it from a program"));
            return;
        }
        assert_eq!(stdout(&ran_there), "open SECRET is no secret\n");
        assert_eq!(ran_there.unwrap()["stderr"], "");
        let without_rule = ran(&closes, "grep -rhc SECRET src/notes.log src/deep").await;
        assert_eq!(stdout(&without_rule), "1\n");
        assert!(fs::read_to_string(root.path().join("token")).unwrap().contains("SECRET"));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_private_is_refused_by_each_of_its_names() {
        let root = root();
        let settings = settings(&root);
        std::os::unix::fs::symlink("../token", root.path().join("src/link")).unwrap();
        for line in [
            "cat token",
            "cat src/../token",
            "cat src/link",
            "cat src/other",
            "cat src/main.rs mcp.json",
            "head -c 10 src/deep/another",
            "tail -n1 state/key",
            "grep -c . token",
            "grep -r SECRET state",
            "grep -r SECRET src state/journal",
            "wc src/tls.pem",
            "sha256sum src/tls.pem",
            "stat token",
            "ls -l state",
            "ls state/journal",
            "find state -type f",
            "find src -newer token",
            "du -a state",
            "date -r token",
        ] {
            let error = ran(&settings, line).await.unwrap_err();
            assert!(error.contains("is kept from callers: it is "), "{line}: {error}");
        }
        let shown = ToolSettings { reveal: vec![root.path().join("mcp.json")], ..settings };
        assert_eq!(stdout(&ran(&shown, "cat mcp.json").await), "SECRET of the device\n");
        assert!(ran(&shown, "cat token").await.is_err());
        assert!(stdout(&ran(&shown, "ls").await).contains("token"), "its name is no secret");
    }
}
