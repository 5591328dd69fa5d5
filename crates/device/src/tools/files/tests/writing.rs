//! `write_file`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use super::{Tree, is_root};

#[tokio::test]
async fn a_file_is_made_with_its_folders_and_then_replaced() {
    let tree = Tree::new();
    let made = tree.write("new/deep/a.txt", "one").await.unwrap();
    assert_eq!(made, json!({"size": 3, "created": true}));
    let replaced = tree.write("new/deep/a.txt", "zwei ä").await.unwrap();
    assert_eq!(replaced, json!({"size": 7, "created": false}));
    let folder = tree.root.join("new/deep");
    assert_eq!(fs::read_to_string(folder.join("a.txt")).unwrap(), "zwei ä");
    assert_eq!(fs::read_dir(folder).unwrap().count(), 1, "nothing is left beside it");
}

#[tokio::test]
async fn bytes_are_written_as_base64() {
    let tree = Tree::new();
    let write = |content| json!({"path": "a.bin", "content": content, "encoding": "base64"});
    tree.call("write_file", write("AP+A")).await.unwrap();
    assert_eq!(fs::read(tree.root.join("a.bin")).unwrap(), [0, 255, 128]);
    let error = tree.call("write_file", write("no base64!")).await.unwrap_err();
    assert!(error.contains("content is no base64"), "{error}");
}

#[test]
fn a_reader_never_sees_half_a_file() {
    let tree = Tree::new();
    let (one, two) = ("1".repeat(300_000), "2".repeat(200_000));
    let path = tree.file("a.txt", &one);
    let is_over = AtomicBool::new(false);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while !is_over.load(Ordering::Relaxed) || reads == 0 {
                let content = fs::read_to_string(&path).unwrap();
                assert!(content == one || content == two, "{} bytes", content.len());
                reads += 1;
            }
        });
        for _ in 0..50 {
            runtime.block_on(tree.write("a.txt", &two)).unwrap();
            runtime.block_on(tree.write("a.txt", &one)).unwrap();
        }
        is_over.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
}

#[tokio::test]
async fn a_replaced_file_keeps_its_permissions_and_owner() {
    let tree = Tree::new();
    let path = tree.file("run.sh", "old");
    // What lends its owner's powers is lost when a file is written, by whomever.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4750)).unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&path, Some(12345), Some(12346)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4750)).unwrap();
    }
    let old = fs::metadata(&path).unwrap();
    tree.write("run.sh", "new").await.unwrap();
    let new = fs::metadata(&path).unwrap();
    assert_eq!(new.permissions().mode() & 0o7777, 0o750);
    assert_eq!((new.uid(), new.gid()), (old.uid(), old.gid()));
}

#[tokio::test]
async fn a_link_stays_a_link_and_what_it_leads_to_is_written() {
    let tree = Tree::new();
    let target = tree.file("deep/target.txt", "old");
    symlink("deep/target.txt", tree.root.join("link")).unwrap();
    tree.write("link", "new").await.unwrap();
    assert!(tree.root.join("link").is_symlink());
    assert_eq!(fs::read_to_string(target).unwrap(), "new");
}

#[tokio::test]
async fn what_cannot_be_written_is_named_and_untouched() {
    let tree = Tree::new();
    fs::create_dir(tree.root.join("sub")).unwrap();
    assert!(Command::new("mkfifo").arg(tree.root.join("pipe")).status().unwrap().success());
    let closed = tree.file("closed.txt", "old");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o444)).unwrap();
    let mut cases = vec![
        ("sub", "it is a folder"),
        (".", "it is a folder"),
        ("pipe", "not a file"),
        ("closed.txt/below", "a part of its path is none"),
    ];
    if !is_root() {
        cases.push(("closed.txt", "may not do that"));
    }
    for (path, reason) in cases {
        let error = tree.write(path, "new").await.unwrap_err();
        assert!(error.starts_with(&format!("Cannot write \"{path}\": ")), "{error}");
        assert!(error.contains(reason), "{error}");
    }
    assert_eq!(fs::read_to_string(closed).unwrap(), "old");
}

/// A file system of 64 KiB, where this user may mount one.
struct TinyDisk<'a>(&'a Path);

impl<'a> TinyDisk<'a> {
    fn mount(at: &'a Path) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(at);
        mount.output().is_ok_and(|done| done.status.success()).then_some(Self(at))
    }
}

impl Drop for TinyDisk<'_> {
    fn drop(&mut self) {
        let _unmounted = Command::new("umount").arg(self.0).status();
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_full_disk_is_told_and_the_old_file_stays_whole() {
    let tree = Tree::new();
    let at = tree.root.join("disk");
    fs::create_dir(&at).unwrap();
    let Some(_disk) = TinyDisk::mount(&at) else {
        return eprintln!("left out: this user may not mount a small file system");
    };
    tree.write("disk/a.txt", "old").await.unwrap();
    let error = tree.write("disk/a.txt", &"x".repeat(100_000)).await.unwrap_err();
    assert_eq!(error, "Cannot write \"disk/a.txt\": the disk is full");
    assert_eq!(fs::read_to_string(at.join("a.txt")).unwrap(), "old");
    assert_eq!(fs::read_dir(&at).unwrap().count(), 1, "nothing is left beside it");
}
