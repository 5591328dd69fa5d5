//! Tests what callers get of real files in temporary folders, and what they never get.

mod escaping;
mod listing;
mod private;
mod reading;
mod searching;
mod writing;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aip::Payload;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::Files;
use crate::confine::Confinement;
use crate::progress::Progress;
use crate::tools::{Call, Caller, ToolSettings, Toolbox};

/// The bound on what one call reads, small enough to be met.
const MAX_BYTES: usize = 1000;

/// A root, and beside it what lies outside.
struct Tree {
    _folder: TempDir,
    root: PathBuf,
    outside: PathBuf,
    files: Files,
    stop: CancellationToken,
}

impl Tree {
    fn new() -> Self {
        Self::with(|root| Files::new(&settings(&[root]), None))
    }

    /// The same, where the owner named no root and `root` is the home folder.
    fn by_default() -> Self {
        Self::with(|root| Files::new(&settings(&[]), Some(root.to_path_buf())))
    }

    fn with(files: impl FnOnce(&Path) -> Files) -> Self {
        let folder = tempfile::Builder::new().prefix("files").tempdir().unwrap();
        let base = folder.path().canonicalize().unwrap();
        let (root, outside) = (base.join("root"), base.join("outside"));
        fs::create_dir(&root).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("private"), "SECRET").unwrap();
        let files = files(&root);
        Self { _folder: folder, root, outside, files, stop: CancellationToken::new() }
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    async fn call(&self, tool: &str, arguments: Value) -> Result<Value, String> {
        let parameters = Payload::from_value(&arguments).unwrap();
        self.files
            .call(
                tool,
                &Call {
                    parameters: Some(&parameters),
                    caller: &Caller::default(),
                    stop: &self.stop,
                    progress: &Progress::default(),
                    flow: None,
                },
            )
            .await
    }

    async fn read(&self, path: &str) -> Result<Value, String> {
        self.call("read_file", json!({"path": path})).await
    }

    async fn write(&self, path: &str, content: &str) -> Result<Value, String> {
        self.call("write_file", json!({"path": path, "content": content})).await
    }
}

fn settings(roots: &[&Path]) -> ToolSettings {
    let roots = roots.iter().map(|root| root.to_path_buf()).collect();
    ToolSettings { roots, max_output_bytes: MAX_BYTES, ..ToolSettings::default() }
}

/// Permissions do not bind root, so tests of them say that they were left out.
fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        eprintln!("left out: root may read and write everything");
    }
    is_root
}

#[tokio::test]
async fn only_writing_asks_and_counts_as_an_action() {
    use crate::policy::Decision;
    use aip::ToolType::{Action, DataCollection};
    let tree = Tree::new();
    let tools = tree.files.tools();
    let told =
        tools.iter().map(|tool| (tool.info.tool_name.as_str(), tool.info.tool_type, tool.usual));
    let expected = [
        ("read_file", DataCollection, Decision::Allow),
        ("write_file", Action, Decision::Ask),
        ("list_directory", DataCollection, Decision::Allow),
        ("search_files", DataCollection, Decision::Allow),
    ];
    assert!(told.eq(expected), "{tools:?}");
    let root = tree.root.to_str().unwrap();
    assert!(tools.iter().all(|tool| tool.info.description.as_deref().unwrap().contains(root)));
}

#[tokio::test]
async fn without_a_root_there_are_no_tools() {
    assert!(Files::new(&settings(&[]), None).tools().is_empty());
    // A system user's home, which nobody has chosen to open.
    assert!(Files::new(&settings(&[]), Some(PathBuf::from("/"))).tools().is_empty());
}

#[tokio::test]
async fn a_call_that_was_stopped_does_nothing() {
    let tree = Tree::new();
    tree.file("a.txt", "old");
    tree.stop.cancel();
    for (tool, arguments) in [
        ("write_file", json!({"path": "a.txt", "content": "new"})),
        ("list_directory", json!({})),
        ("search_files", json!({"content": "old"})),
        ("read_file", json!({"path": "a.txt", "from_line": 1})),
    ] {
        let error = tree.call(tool, arguments).await.unwrap_err();
        assert!(error.contains("stopped"), "{tool}: {error}");
    }
    assert_eq!(fs::read_to_string(tree.root.join("a.txt")).unwrap(), "old");
    assert_eq!(fs::read_dir(&tree.root).unwrap().count(), 1, "nothing is left beside it");
}

#[tokio::test]
async fn a_device_says_that_it_has_files_when_a_tool_for_them_is_offered() {
    let offers = |settings: &ToolSettings| {
        let nobody: crate::tools::mcp::OnEvent = Arc::new(|_| {});
        Toolbox::start(settings, &Confinement::default(), None, &nobody).offers()
    };
    let tree = Tree::new();
    let mut settings = settings(&[&tree.root]);
    assert!(offers(&settings).files);
    settings.disabled = vec!["Files.write_file".to_owned()];
    assert!(offers(&settings).files);
    settings.disabled = vec!["Files".to_owned(), "execute_command".to_owned()];
    let none = offers(&settings);
    assert!(!none.files && !none.commands);
}
