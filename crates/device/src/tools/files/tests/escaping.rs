//! What lies outside the roots is neither read nor written, whatever the path says or becomes.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::{Tree, settings};
use crate::tools::files::Files;
use crate::tools::files::folder::Folder;

/// Asserts that no tool does anything with this path, and that all say the same.
async fn assert_blocked(tree: &Tree, path: &str) {
    for (tool, arguments) in [
        ("read_file", json!({"path": path})),
        ("write_file", json!({"path": path, "content": "new"})),
        ("list_directory", json!({"path": path})),
        ("search_files", json!({"path": path, "pattern": "*"})),
    ] {
        let error = tree.call(tool, arguments).await.unwrap_err();
        assert!(error.starts_with(&format!("Blocked: \"{path}\" is outside")), "{tool}: {error}");
    }
}

#[tokio::test]
async fn paths_that_lead_outside_are_refused_alike() {
    let tree = Tree::new();
    tree.file("a.txt", "");
    symlink(&tree.outside, tree.root.join("out")).unwrap();
    symlink("../outside/private", tree.root.join("private")).unwrap();
    symlink(tree.outside.join("none"), tree.root.join("dangling")).unwrap();
    symlink("out/private", tree.root.join("twice")).unwrap();
    let outside = tree.outside.to_str().unwrap();
    for path in [
        "..",
        "../outside/private",
        "../outside/none",
        "../root2",
        "a/../../outside/private",
        "none/../../outside/private",
        "out",
        "out/private",
        "out/none",
        "private",
        "dangling",
        "twice",
        "/etc/passwd",
        "/none",
        "/",
        outside,
    ] {
        assert_blocked(&tree, path).await;
    }
    assert_eq!(fs::read_dir(&tree.outside).unwrap().count(), 1, "nothing was made there");
    assert_eq!(fs::read_to_string(tree.outside.join("private")).unwrap(), "SECRET");
}

#[tokio::test]
async fn a_root_that_is_a_link_opens_what_it_leads_to() {
    let tree = Tree::with(|root| {
        let link = root.with_file_name("link");
        symlink(root, &link).unwrap();
        Files::new(&settings(&[&link]), None)
    });
    tree.file("a.txt", "text");
    for path in ["a.txt", "../link/a.txt", "../root/a.txt"] {
        assert_eq!(tree.read(path).await.unwrap()["content"], "text", "{path}");
    }
    assert_blocked(&tree, "../outside/private").await;
}

#[tokio::test]
async fn each_root_is_open_and_a_relative_path_is_below_the_first() {
    let tree = Tree::with(|root| {
        let second = root.with_file_name("outside");
        Files::new(&settings(&[root, &second]), None)
    });
    tree.file("private", "of the first");
    assert_eq!(tree.read("private").await.unwrap()["content"], "of the first");
    let second = tree.outside.join("private");
    assert_eq!(tree.read(second.to_str().unwrap()).await.unwrap()["content"], "SECRET");
}

#[tokio::test]
async fn without_a_named_root_dot_files_of_the_home_folder_stay_closed() {
    let tree = Tree::by_default();
    tree.file(".ssh/id_rsa", "SECRET\n");
    tree.file("src/.env", "SECRET\n");
    tree.file("src/a.txt", "SECRET not\n");
    symlink(".ssh", tree.root.join("keys")).unwrap();
    for path in [".ssh", ".ssh/id_rsa", "src/.env", "src/.new", "keys/id_rsa", "x/../.ssh/id_rsa"] {
        assert_blocked(&tree, path).await;
    }
    let found = tree.call("search_files", json!({"content": "SECRET"})).await.unwrap();
    assert_eq!(found["matches"].as_array().map(Vec::len), Some(1), "{found}");
    let listed = tree.call("list_directory", json!({})).await.unwrap();
    let names: Vec<&Value> =
        listed["entries"].as_array().unwrap().iter().map(|entry| &entry["name"]).collect();
    assert_eq!(names, ["keys", "src"]);
    tree.write("src/b.txt", "new").await.unwrap();
}

#[test]
fn a_resolved_path_is_opened_without_following_links() {
    let tree = Tree::new();
    symlink(&tree.outside, tree.root.join("out")).unwrap();
    assert!(Folder::open(&tree.root.join("out")).is_err());
    assert!(Folder::make(&tree.root.join("out/new")).is_err());
    symlink(tree.outside.join("private"), tree.root.join("private")).unwrap();
    let root = Folder::open(&tree.root).unwrap();
    assert!(root.file("private".as_ref()).is_err());
    assert!(root.replace("private".as_ref(), b"new", || Ok(())).is_err());
    assert_eq!(fs::read_dir(&tree.outside).unwrap().count(), 1);
}

#[test]
fn a_link_that_is_swapped_in_meanwhile_leads_nobody_outside() {
    let tree = Tree::new();
    tree.file("a/private", "open");
    let (folder, spare) = (tree.root.join("a"), tree.root.join("spare"));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let _moved = fs::rename(&folder, &spare);
                let _linked = symlink(&tree.outside, &folder);
                let _unlinked = fs::remove_file(&folder);
                // A write may have made the folder anew in between.
                let _gone = fs::remove_dir_all(&folder);
                let _back = fs::rename(&spare, &folder);
            }
        });
        for _ in 0..1000 {
            if let Ok(read) = runtime.block_on(tree.read("a/private")) {
                assert_eq!(read["content"], "open");
            }
            let _may_fail = runtime.block_on(tree.write("a/private", "open"));
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert_eq!(fs::read_to_string(tree.outside.join("private")).unwrap(), "SECRET");
    assert_eq!(fs::read_dir(&tree.outside).unwrap().count(), 1, "nothing was made there");
}
