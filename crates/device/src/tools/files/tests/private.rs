//! What is kept from callers although it lies below a root.

use super::*;
use crate::policy::{Decision, Effect, Policy, Rule};

/// A root with the device's own files in it.
fn tree() -> Tree {
    let tree = Tree::with(|root| {
        let at = |name: &str| root.join(name);
        let own = ToolSettings { private: vec![at("token"), at("state")], ..settings(&[root]) };
        let rule = Rule {
            name: None,
            tool: "*".to_owned(),
            tool_type: None,
            effect: Some(Effect::Read),
            path: Some("*.log".to_owned()),
            arguments: Vec::new(),
            decision: Decision::Deny,
        };
        Files::new(&ToolSettings { policy: Policy::new([rule]), ..own }, None)
    });
    for name in ["token", "state/keys/one", "open", "src/a.log"] {
        tree.file(name, "SECRET");
    }
    tree.file("src/id", "-----BEGIN OPENSSH PRIVATE KEY-----\nSECRET\n");
    #[cfg(unix)]
    {
        fs::hard_link(tree.root.join("token"), tree.root.join("src/hard")).unwrap();
        std::os::unix::fs::symlink("../token", tree.root.join("src/soft")).unwrap();
    }
    tree
}

#[tokio::test]
async fn own_files_and_keys_are_neither_read_nor_written_nor_listed() {
    let tree = tree();
    for path in ["token", "state/keys/one", "src/id", "./src/../token", "src/hard", "src/soft"] {
        for refused in [tree.read(path).await, tree.write(path, "mine").await] {
            let error = refused.unwrap_err();
            assert!(error.starts_with("Blocked: ") && error.contains(path), "{path}: {error}");
            assert!(error.contains("is kept from callers"), "{path}: {error}");
        }
    }
    assert!(tree.write("state/keys/new", "mine").await.is_err());
    assert!(tree.call("list_directory", json!({"path": "state"})).await.is_err());
    assert_eq!(fs::read_to_string(tree.root.join("token")).unwrap(), "SECRET");
    assert_eq!(tree.read("open").await.unwrap()["content"], "SECRET");
}

#[tokio::test]
async fn a_search_leaves_out_what_is_private_or_what_a_rule_closes() {
    let tree = tree();
    let found = tree.call("search_files", json!({"content": "SECRET"})).await.unwrap();
    let paths: Vec<_> = found["matches"].as_array().unwrap().iter().map(|m| &m["path"]).collect();
    assert_eq!(paths, ["open"], "{found}");
    for path in ["state", "token", "src/id"] {
        let refused = tree.call("search_files", json!({"path": path, "content": "SECRET"})).await;
        assert!(refused.is_err(), "{path}: {refused:?}");
    }
}
