//! `list_directory`.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use super::Tree;
use crate::tools::files::list::MAX_ENTRIES;

async fn list(tree: &Tree, arguments: Value) -> Value {
    tree.call("list_directory", arguments).await.unwrap()
}

fn names(listed: &Value) -> Vec<&str> {
    listed["entries"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn entries_are_sorted_with_type_size_and_time() {
    let tree = Tree::new();
    tree.file("b.txt", "12345");
    tree.file("a/inner", "");
    symlink(tree.outside.join("private"), tree.root.join("c")).unwrap();
    assert!(
        std::process::Command::new("mkfifo").arg(tree.root.join("d")).status().unwrap().success()
    );
    let listed = list(&tree, json!({})).await;
    assert_eq!(names(&listed), ["a", "b.txt", "c", "d"]);
    let types: Vec<_> = (0..4).map(|number| listed["entries"][number]["type"].clone()).collect();
    assert_eq!(types, ["directory", "file", "symlink", "other"]);
    assert_eq!(listed["entries"][1]["size"], 5);
    let modified = listed["entries"][1]["modified"].as_str().unwrap();
    let modified: jiff::Timestamp = modified.parse().unwrap();
    let real = fs::metadata(tree.root.join("b.txt")).unwrap().modified().unwrap();
    let real = jiff::Timestamp::try_from(real).unwrap();
    assert_eq!(modified.as_microsecond(), real.as_microsecond());
    assert_eq!((&listed["total"], &listed["truncated"]), (&json!(4), &json!(false)));
    let absolute = json!({"path": tree.root.join("a")});
    assert_eq!(names(&list(&tree, absolute).await), ["inner"]);
}

#[tokio::test]
async fn a_name_that_is_no_text_is_still_listed() {
    let tree = Tree::new();
    fs::write(tree.root.join(OsStr::from_bytes(b"caf\xe9")), "").unwrap();
    assert_eq!(names(&list(&tree, json!({})).await), ["caf\u{fffd}"]);
}

#[tokio::test]
async fn a_large_folder_is_cut_after_the_first_names() {
    let tree = Tree::new();
    for number in (0..=MAX_ENTRIES).rev() {
        tree.file(&format!("{number:05}"), "");
    }
    let listed = list(&tree, json!({"path": "."})).await;
    let expected: Vec<_> = (0..MAX_ENTRIES).map(|number| format!("{number:05}")).collect();
    assert_eq!(names(&listed), expected);
    assert_eq!((&listed["total"], &listed["truncated"]), (&json!(MAX_ENTRIES + 1), &json!(true)));
}

#[tokio::test]
async fn what_is_no_folder_is_named() {
    let tree = Tree::new();
    tree.file("a.txt", "");
    for (path, reason) in [("a.txt", "it is no folder"), ("none", "it does not exist")] {
        let error = tree.call("list_directory", json!({"path": path})).await.unwrap_err();
        assert!(error.starts_with(&format!("Cannot list \"{path}\": {reason}")), "{error}");
    }
}
