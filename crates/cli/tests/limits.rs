//! The owner's limits on what a device starts, as a user meets them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;

use common::{Home, Server};
use device::confine::Confinement;

#[tokio::test]
async fn a_sandboxed_device_writes_below_its_root_only_or_does_not_start() {
    // Not where temporary files are: those may be written.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    if folder.path().starts_with(std::env::temp_dir()) {
        // What is built below the folder for temporary files has no outside to try.
        return;
    }
    let (root, outside) = (folder.path().join("root"), folder.path().join("outside"));
    fs::create_dir(&root).unwrap();
    let limits = ["--exec", "shell", "--sandbox", "--root", root.to_str().unwrap()];
    if Confinement::default().sandboxed(std::slice::from_ref(&root)).is_err() {
        let args = [&["device", "--server", "ws://127.0.0.1:1/ws"], &limits[..]].concat();
        let refused = Home::new().start(&args).done().await;
        assert!(refused.code == 2 && refused.stderr.contains("no sandbox"), "{refused:?}");
        return;
    }
    let server = Server::start().await;
    let _device = server.device("box", &limits).await;
    let write = |path: std::path::PathBuf| format!("echo written > {}", path.display());
    let inside = server.run(&["exec", "--on", "box", "--", &write(root.join("file"))]).await;
    assert_eq!(inside.code, 0, "{}", inside.stderr);
    let elsewhere = server.run(&["exec", "--on", "box", "--", &write(outside.clone())]).await;
    assert!(elsewhere.code != 0 && elsewhere.stderr.contains("Permission denied"), "{elsewhere:?}");
    assert!(root.join("file").exists() && !outside.exists());
    // Root is no more than another user in there.
    let rights = ["exec", "--on", "box", "--", "grep -E '^Cap(Eff|Prm|Inh):' /proc/self/status"];
    let rights = server.run(&rights).await;
    assert_eq!(rights.stdout.matches("\t0000000000000000\n").count(), 3, "{rights:?}");
}

#[tokio::test]
async fn a_command_gets_no_more_memory_than_the_owner_allows() {
    let server = Server::start().await;
    let _device =
        server.device("box", &["--exec", "shell", "--max-memory-bytes", "100000000"]).await;
    let hungry = "perl -e 'my $n = 200 << 20; my $x = \"x\" x $n; print \"too much\"'";
    let ended = server.run(&["exec", "--on", "box", "--", hungry]).await;
    assert!(ended.code != 0 && ended.stdout.is_empty(), "{ended:?}");
    assert!(ended.stderr.contains("Out of memory"), "{ended:?}");
    let modest = server.run(&["exec", "--on", "box", "--", "echo fine"]).await;
    assert_eq!(modest.stdout, "fine\n", "{modest:?}");
}
