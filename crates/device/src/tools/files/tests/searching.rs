//! `search_files`.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::Tree;
use crate::tools::files::search::{MAX_MATCHES, SearchFiles, search_files};
use crate::tools::work::Watch;

async fn search(tree: &Tree, arguments: Value) -> Value {
    tree.call("search_files", arguments).await.unwrap()
}

/// The matches as `path` or `path:line:text`.
fn found(result: &Value) -> Vec<String> {
    let shown = |found: &Value| match found.get("line") {
        Some(line) => format!("{}:{line}:{}", text(&found["path"]), text(&found["text"])),
        None => text(&found["path"]).to_owned(),
    };
    result["matches"].as_array().unwrap().iter().map(shown).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn sources() -> Tree {
    let tree = Tree::new();
    tree.file("src/main.rs", "fn main() {\r\n    help();\n}\n");
    tree.file("src/deep/help.rs", "pub fn help() {}");
    tree.file("src/notes.txt", "Help yourself\n");
    tree.file("main.c", "int main;\n");
    tree.file("binary", b"\0fn main()\n");
    tree
}

#[tokio::test]
async fn files_and_folders_are_found_by_name() {
    let tree = sources();
    for (asked, expected) in [
        (json!({"pattern": "*.rs"}), vec!["src/deep/help.rs", "src/main.rs"]),
        (json!({"pattern": "main.*"}), vec!["main.c", "src/main.rs"]),
        (json!({"pattern": "*.{c,txt}"}), vec!["main.c", "src/notes.txt"]),
        (json!({"pattern": "src/*.rs"}), vec!["src/main.rs"]),
        (json!({"pattern": "src/**/*.rs"}), vec!["src/deep/help.rs", "src/main.rs"]),
        (json!({"pattern": "deep"}), vec!["src/deep"]),
        (json!({"pattern": "*.rs", "path": "src/deep"}), vec!["src/deep/help.rs"]),
        (json!({"pattern": "none"}), vec![]),
    ] {
        let result = search(&tree, asked.clone()).await;
        let mut names = found(&result);
        names.sort();
        assert_eq!(names, expected, "{asked}");
        assert_eq!(result["truncated"], false);
    }
}

#[tokio::test]
async fn lines_are_found_by_what_they_say() {
    let tree = sources();
    let help = ["src/main.rs:2:    help();", "src/deep/help.rs:1:pub fn help() {}"];
    for (asked, expected) in [
        (json!({"content": r"help\("}), help.to_vec()),
        (json!({"content": "^fn main"}), vec!["src/main.rs:1:fn main() {"]),
        (json!({"content": "(?i)help y"}), vec!["src/notes.txt:1:Help yourself"]),
        (json!({"content": "main", "pattern": "*.c"}), vec!["main.c:1:int main;"]),
        (json!({"content": "help", "path": "src/main.rs"}), vec!["src/main.rs:2:    help();"]),
    ] {
        let mut lines = found(&search(&tree, asked.clone()).await);
        lines.sort_by_key(|line| !line.starts_with("src/main.rs"));
        assert_eq!(lines, expected, "{asked}");
    }
    // What was found can be read by the path it was told with.
    let absolute = json!({"path": tree.root, "pattern": "help.rs"});
    let result = search(&tree, absolute).await;
    assert!(tree.read(text(&result["matches"][0]["path"])).await.is_ok(), "{result}");
}

#[tokio::test]
async fn what_a_search_is_for_must_be_said_and_understood() {
    let tree = Tree::new();
    for (asked, reason) in [
        (json!({}), "give pattern, content, or both"),
        (json!({"content": "("}), "content: regex parse error"),
        (json!({"content": r"\w{1000}{1000}"}), "content: Compiled regex exceeds size limit"),
        (json!({"pattern": "["}), "pattern: error parsing glob"),
        (json!({"pattern": "*", "path": "none"}), "it does not exist"),
    ] {
        let error = tree.call("search_files", asked).await.unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
}

#[tokio::test]
async fn links_are_not_followed_and_pipes_not_waited_for() {
    let tree = Tree::new();
    tree.file("a/b.txt", "SECRET not\n");
    symlink(&tree.outside, tree.root.join("out")).unwrap();
    symlink(tree.outside.join("private"), tree.root.join("private")).unwrap();
    symlink("..", tree.root.join("a/loop")).unwrap();
    let pipe = std::process::Command::new("mkfifo").arg(tree.root.join("pipe")).status().unwrap();
    assert!(pipe.success());
    let result = search(&tree, json!({"content": "SECRET"})).await;
    assert_eq!(found(&result), ["a/b.txt:1:SECRET not"]);
    let result = search(&tree, json!({"pattern": "*"})).await;
    assert_eq!(found(&result), ["a", "out", "pipe", "private", "a/b.txt", "a/loop"]);
}

#[tokio::test]
async fn a_search_is_bounded_in_matches_and_in_what_it_shows() {
    let tree = Tree::new();
    tree.file("a.txt", "hit\n".repeat(MAX_MATCHES));
    let asked = json!({"content": "hit"});
    assert_eq!(search(&tree, asked.clone()).await["truncated"], false);
    tree.file("b.txt", format!("{}hit{}", "ä".repeat(100_000), "x".repeat(100_000)));
    let result = search(&tree, asked.clone()).await;
    assert_eq!((&result["truncated"], &result["limit"]), (&json!(true), &json!("matches")));
    assert_eq!(found(&result).len(), MAX_MATCHES);
    fs::remove_file(tree.root.join("a.txt")).unwrap();
    let shown = found(&search(&tree, asked).await);
    assert!(shown[0].contains("ähitx") && shown[0].len() < 1000, "{shown:?}");
}

#[tokio::test]
async fn a_search_ends_at_its_time_limit_with_what_it_has() {
    let tree = sources();
    let arguments: SearchFiles = serde_json::from_value(json!({"pattern": "*"})).unwrap();
    let watch = Watch::new(CancellationToken::new(), Duration::ZERO);
    let result = search_files(&tree.files.reach, &arguments, &watch).unwrap();
    assert_eq!((&result["truncated"], &result["limit"]), (&json!(true), &json!("time")));
}

#[tokio::test]
async fn a_search_on_its_way_stops_when_it_is_told_to() {
    let tree = Tree::new();
    // A text by its head, and as long as the limit on bytes lets a search go on.
    let path = tree.file("endless", "x\n".repeat(1 << 17));
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(1 << 31).unwrap();
    let searching = tree.call("search_files", json!({"content": "none"}));
    let (result, ()) = tokio::join!(searching, async {
        tokio::task::yield_now().await;
        tree.stop.cancel();
    });
    assert_eq!(result.unwrap_err(), "stopped");
}

#[tokio::test]
async fn a_pattern_of_any_length_takes_no_memory_and_breaks_nothing() {
    let tree = Tree::new();
    for (key, part) in [("content", "\\w"), ("pattern", "[!a]"), ("pattern", "*")] {
        let error =
            tree.call("search_files", json!({key: part.repeat(900_000)})).await.unwrap_err();
        assert!(error.contains("is longer than 4096 bytes"), "{error}");
        let longest = part.repeat(4096 / part.len());
        let _found_or_not = tree.call("search_files", json!({key: longest})).await;
    }
}
