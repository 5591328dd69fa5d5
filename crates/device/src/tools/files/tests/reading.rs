//! `read_file`.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{MAX_BYTES, Tree, is_root};

/// Reads a range and gives its content, whether there is more, and where to go on.
async fn range(tree: &Tree, range: Value) -> (String, bool, Option<u64>) {
    let mut arguments = json!({"path": "a.txt"});
    arguments.as_object_mut().unwrap().extend(range.as_object().unwrap().clone());
    let read = tree.call("read_file", arguments).await.unwrap();
    assert_eq!(read["encoding"], "utf-8", "{read}");
    let content = read["content"].as_str().unwrap().to_owned();
    assert_eq!(read["length"], content.len(), "{read}");
    let next = read.get("next_line").or(read.get("next_offset")).and_then(Value::as_u64);
    (content, read["truncated"].as_bool().unwrap(), next)
}

#[tokio::test]
async fn a_range_of_bytes_is_exact_at_its_borders() {
    let tree = Tree::new();
    tree.file("a.txt", "0123456789");
    for (asked, content, next) in [
        (json!({}), "0123456789", None),
        (json!({"offset": 0, "length": 10}), "0123456789", None),
        (json!({"length": 9}), "012345678", Some(9)),
        (json!({"length": 0}), "", Some(0)),
        (json!({"offset": 3, "length": 4}), "3456", Some(7)),
        (json!({"offset": 9}), "9", None),
        (json!({"offset": 10}), "", None),
        (json!({"offset": 11, "length": 5}), "", None),
        (json!({"offset": u64::from(u32::MAX), "length": u64::MAX}), "", None),
        (json!({"offset": null, "length": null}), "0123456789", None),
    ] {
        let read = range(&tree, asked.clone()).await;
        assert_eq!(read, (content.to_owned(), next.is_some(), next), "{asked}");
    }
    let error =
        tree.call("read_file", json!({"path": "a.txt", "offset": u64::MAX})).await.unwrap_err();
    assert!(error.contains("a.txt"), "{error}");
}

#[tokio::test]
async fn a_range_of_lines_is_exact_at_its_borders() {
    let tree = Tree::new();
    tree.file("a.txt", "one\ntwo\n\nfour\r\nfive");
    for (asked, content, next) in [
        (json!({"from_line": 1}), "one\ntwo\n\nfour\r\nfive", None),
        (json!({"from_line": 0, "line_count": 1}), "one\n", Some(2)),
        (json!({"line_count": 2}), "one\ntwo\n", Some(3)),
        (json!({"from_line": 3, "line_count": 1}), "\n", Some(4)),
        (json!({"from_line": 4, "line_count": 1}), "four\r\n", Some(5)),
        (json!({"from_line": 5, "line_count": 1}), "five", None),
        (json!({"from_line": 5, "line_count": u64::MAX}), "five", None),
        (json!({"from_line": 6}), "", None),
        (json!({"from_line": u64::MAX}), "", None),
    ] {
        let read = range(&tree, asked.clone()).await;
        assert_eq!(read, (content.to_owned(), next.is_some(), next), "{asked}");
    }
    let both = json!({"path": "a.txt", "offset": 1, "from_line": 1});
    assert!(tree.call("read_file", both).await.unwrap_err().contains("offset and length, or"));
}

#[tokio::test]
async fn going_on_gives_the_whole_of_a_file_that_is_too_large_for_one_call() {
    let tree = Tree::new();
    let text: String = (0..400).map(|number| format!("Zeile {number} äöü€\n")).collect();
    tree.file("a.txt", &text);
    for (name, first) in [("offset", 0), ("from_line", 1)] {
        let (mut whole, mut next) = (String::new(), Some(first));
        while let Some(from) = next {
            let (piece, _, after) = range(&tree, json!({name: from})).await;
            assert!(!piece.is_empty() && piece.len() <= MAX_BYTES);
            assert!(name == "offset" || piece.ends_with('\n'), "only whole lines");
            whole.push_str(&piece);
            next = after;
        }
        assert_eq!(whole, text, "{name}");
    }
}

#[tokio::test]
async fn a_line_that_is_too_long_is_cut_and_goes_on_by_bytes() {
    let tree = Tree::new();
    tree.file("a.txt", format!("short\n{}\nend", "ä".repeat(MAX_BYTES)));
    let first = range(&tree, json!({"from_line": 1})).await;
    assert_eq!(first, ("short\n".to_owned(), true, Some(2)));
    let asked = json!({"path": "a.txt", "from_line": 2});
    let cut = tree.call("read_file", asked).await.unwrap();
    assert_eq!(cut["content"], "ä".repeat(MAX_BYTES / 2));
    assert_eq!(cut["next_offset"], 6 + MAX_BYTES);
    assert_eq!(cut.get("next_line"), None, "the next line is not where it goes on");
}

#[tokio::test]
async fn bytes_that_are_no_text_come_as_base64() {
    let tree = Tree::new();
    let bytes: Vec<u8> = (0..=255).collect();
    tree.file("a.bin", &bytes);
    let read = tree.read("a.bin").await.unwrap();
    assert_eq!(read["encoding"], "base64");
    assert_eq!((&read["length"], &read["size"]), (&json!(256), &json!(256)));
    assert_eq!(STANDARD.decode(read["content"].as_str().unwrap()).unwrap(), bytes);
    tree.file("empty", "");
    let read = tree.read("empty").await.unwrap();
    assert_eq!((&read["content"], &read["encoding"]), (&json!(""), &json!("utf-8")));
}

#[tokio::test]
async fn what_cannot_be_read_is_named_as_it_was_asked_for() {
    let tree = Tree::new();
    let file = tree.file("sub/a.txt", "text");
    let fifo = std::process::Command::new("mkfifo").arg(tree.root.join("pipe")).status().unwrap();
    assert!(fifo.success());
    let _socket = std::os::unix::net::UnixListener::bind(tree.root.join("socket")).unwrap();
    for (path, reason) in [
        ("sub", "it is a folder"),
        ("./", "it is a folder"),
        ("sub/b.txt", "does not exist"),
        ("none/b.txt", "does not exist"),
        ("sub/a.txt/b", "a part of its path is none"),
        ("pipe", "not a file"),
        ("socket", "not a file"),
    ] {
        let error = tree.read(path).await.unwrap_err();
        assert!(error.starts_with(&format!("Cannot read \"{path}\": ")), "{error}");
        assert!(error.contains(reason), "{error}");
    }
    let long = "x".repeat(300);
    assert!(tree.read(&long).await.unwrap_err().contains("name is too long"));
    assert!(tree.read("a\0b\u{1b}[2J").await.unwrap_err().contains(r"a\0b\u{1b}[2J"));
    if !is_root() {
        fs::set_permissions(file, fs::Permissions::from_mode(0o000)).unwrap();
        assert!(tree.read("sub/a.txt").await.unwrap_err().contains("may not do that"));
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn what_the_kernel_makes_up_is_read_only_where_the_owner_named_it() {
    use crate::tools::files::Files;
    let closed = Tree::with(|_| Files::new(&super::settings(&["/".as_ref()]), None));
    for path in ["/proc/version", "/dev/null", "/sys/kernel/notes", "dev/zero"] {
        let error = closed.read(path).await.unwrap_err();
        assert!(error.starts_with("Blocked: "), "{error}");
    }
    let open = Tree::with(|_| Files::new(&super::settings(&["/proc".as_ref()]), None));
    let read = open.read("/proc/version").await.unwrap();
    assert!(read["content"].as_str().unwrap().starts_with("Linux"), "{read}");
    assert_eq!((&read["size"], &read["truncated"]), (&json!(0), &json!(false)));
}
