//! The disk: full, where the device writes how it is doing, where it logs, and where its tools write.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::json;

use super::common::{Home, PythonServer, until, within};
use super::{Connected, error_of};

/// A file system of a few pages.
struct TinyDisk<'a>(&'a Path);

impl<'a> TinyDisk<'a> {
    /// `None` where this user may not mount one.
    fn mount(at: &'a Path) -> Option<Self> {
        fs::create_dir(at).unwrap();
        let args = ["-t", "tmpfs", "-o", "size=64k", "tmpfs"];
        let mounted = Command::new("mount").args(args).arg(at).stderr(Stdio::null()).status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(at))
    }

    /// Takes all that is left of it.
    fn fill(&self) {
        let file = OpenOptions::new().create(true).append(true).open(self.0.join("ballast"));
        let mut file = file.unwrap();
        while file.write_all(&[0; 512]).is_ok() {}
    }

    fn free(&self) {
        fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for TinyDisk<'_> {
    fn drop(&mut self) {
        let _unmounted = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_stops_no_device_and_its_tools_say_what_is_wrong() {
    let home = Home::new();
    let at = home.path().join("disk");
    let Some(disk) = TinyDisk::mount(&at) else {
        return eprintln!("left out: this user may not mount a small file system");
    };
    let (status, policy) = (at.join("status.json"), home.path().join("policy.toml"));
    fs::write(&policy, "[[rule]]\nname = \"w\"\ntool = \"*.write_file\"\ndecision = \"allow\"\n")
        .unwrap();
    disk.fill();
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let (status_arg, policy, root) = (path(&status), path(&policy), path(&at));
    let args = ["--status-file", &status_arg, "--policy", &policy, "--root", &root];
    let mut device = Connected::start(&home, &args).await;

    let write = json!({"path": "a.txt", "content": "x".repeat(10_000)});
    let failed = device.call("write_file", write.clone()).await;
    assert!(error_of(&failed).contains("the disk is full"), "{failed}");
    let line = format!("head -c 10000 /dev/zero > {}/b.txt", at.display());
    let ran = device.call("execute_command", json!({"command": line})).await;
    assert!(ran.to_string().contains("No space left on device"), "{ran}");
    assert_eq!(device.prints("echo fine").await, "fine\n");
    assert!(!status.exists() && device.device.stderr().contains("status cannot be written"));

    disk.free();
    assert_eq!(device.call("write_file", write).await["status"], "success");
    until("a status", || fs::read_to_string(&status).is_ok_and(|text| text.contains("\"d\"")))
        .await;
    device.device.signal(Signal::TERM);
    assert_eq!(device.link.expect_close().await.0, 1000);
}

#[tokio::test]
async fn a_device_whose_log_cannot_be_written_goes_on_and_leaves_politely() {
    let (python, home) = (PythonServer::start().await, Home::new());
    let url = python.url();
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let args = ["device", "--id", "d", "--server", &url, "--log", "trace"];
    let mut child = home.command(&args).stdout(full()).stderr(full()).spawn().unwrap();
    // Each loss is told, to nobody.
    for _ in 0..2 {
        drop(python.accept().await);
    }
    let (mut link, _register) = python.accept().await;
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), Signal::TERM)
        .unwrap();
    assert_eq!(link.expect_close().await.0, 1000);
    drop(link);
    assert_eq!(within("its end", child.wait()).await.unwrap().code(), Some(0));
}
