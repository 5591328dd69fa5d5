//! The file in which a device says how it is doing, for `flightdeck device status` and whoever else
//! wants to know.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aip::ClientId;
use anyhow::Context;
use device::DeviceState;
use link::{Exit, ServerUrl};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::args::Global;
use crate::state::{StateFolder, expand_home, replace_private_note};

/// The shortest time between two writings.
const WRITE_EVERY: Duration = Duration::from_millis(300);

/// The largest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// The longest part of a file's name that stands for an id, in bytes.
const MAX_WORD: usize = 100;

/// What the file says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Report {
    /// Who the device says it is.
    pub(super) id: String,
    /// Its server, without a key.
    pub(super) server: String,
    /// The version of the program.
    pub(super) version: String,
    /// The process.
    pub(super) pid: u32,
    /// What tells the process from a later one with its number, where the system says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    process_start: Option<u64>,
    /// Why it ended by itself, once it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ended: Option<String>,
    /// How it is doing.
    #[serde(flatten)]
    pub(super) state: DeviceState,
}

impl Report {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read or is not what a device writes.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let cannot = || format!("cannot read the status file {}", path.display());
        let found = fs::metadata(path).with_context(cannot)?;
        anyhow::ensure!(found.is_file(), "{}: it is no ordinary file", cannot());
        anyhow::ensure!(found.len() <= MAX_FILE_BYTES, "{}: it is too large", cannot());
        let text = fs::read_to_string(path).with_context(cannot)?;
        serde_json::from_str(&text)
            .with_context(|| format!("{}: it is not what a device writes", cannot()))
    }

    /// Whether the process that wrote it is still there.
    pub(super) fn is_alive(&self) -> bool {
        self.ended.is_none() && is_process(self.pid, self.process_start)
    }
}

/// Where a device writes its reports. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct StatusFile {
    path: PathBuf,
    id: String,
    server: String,
    /// Set at the end: a write that is under way then must not bring the file back.
    is_closed: Arc<Mutex<bool>>,
}

impl StatusFile {
    /// The file that was named, else the one in the state folder. A device without a status file is a
    /// device all the same, so that what is in the way is only told.
    pub(super) fn open(
        named: &str,
        global: &Global,
        id: &ClientId,
        server: &ServerUrl,
    ) -> Option<Self> {
        match path(named, global, id.as_str()).and_then(claim) {
            Ok(path) => Some(Self {
                path,
                id: id.as_str().to_owned(),
                server: server.to_string(),
                is_closed: Arc::default(),
            }),
            Err(error) => {
                say!("warning: `flightdeck device status` will not tell of it: {error:#}");
                None
            }
        }
    }

    /// Writes each change, at most a few times a second, for ever.
    pub(super) async fn keep(self, mut state: watch::Receiver<DeviceState>) {
        let mut is_well = true;
        loop {
            let report = self.report(state.borrow_and_update().clone());
            let file = self.clone();
            let written = tokio::task::spawn_blocking(move || file.write(&report)).await;
            let error = written.unwrap_or_else(|error| Err(error.into())).err();
            if let Some(error) = error.as_ref().filter(|_| is_well) {
                tracing::warn!(path = %self.path.display(), %error, "the status cannot be written");
            }
            is_well = error.is_none();
            tokio::time::sleep(WRITE_EVERY).await;
            if state.changed().await.is_err() {
                return;
            }
        }
    }

    /// Removes the file of a device that was told to stop; of one that ended by itself it stays, and
    /// says why. `state` is its last.
    pub(super) fn close(self, exit: &Exit, state: DeviceState) {
        let mut is_closed = self.is_closed.lock().unwrap_or_else(PoisonError::into_inner);
        *is_closed = true;
        if let Exit::Stopped = exit {
            // It may never have been written.
            let _removed = fs::remove_file(&self.path);
        } else {
            let last = Report { ended: Some(exit.to_string()), ..self.report(state) };
            let _told_already = write(&self.path, &last);
        }
    }

    fn write(&self, report: &Report) -> io::Result<()> {
        let is_closed = self.is_closed.lock().unwrap_or_else(PoisonError::into_inner);
        if *is_closed { Ok(()) } else { write(&self.path, report) }
    }

    fn report(&self, state: DeviceState) -> Report {
        let pid = std::process::id();
        Report {
            id: self.id.clone(),
            server: self.server.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid,
            process_start: process_start(pid),
            ended: None,
            state,
        }
    }
}

fn write(path: &Path, report: &Report) -> io::Result<()> {
    replace_private_note(path, &serde_json::to_string(report)?)
}

fn path(named: &str, global: &Global, id: &str) -> anyhow::Result<PathBuf> {
    if !named.is_empty() {
        return Ok(expand_home(Path::new(named)));
    }
    let folder = StateFolder::new(global.state_dir.clone())?;
    folder.create()?;
    Ok(folder.path().join(format!("device-{}.json", file_word(id))))
}

/// Leaves the file to another device that lives and writes to it, and devices and pipes to whoever uses them.
fn claim(path: PathBuf) -> anyhow::Result<PathBuf> {
    // It would be replaced by a file.
    if fs::metadata(&path).is_ok_and(|found| !found.is_file()) {
        anyhow::bail!("{} is no ordinary file", path.display());
    }
    match Report::read(&path) {
        Ok(other) if other.is_alive() && other.pid != std::process::id() => {
            anyhow::bail!("a device with its id, or its file, runs already (process {})", other.pid)
        }
        _ => Ok(path),
    }
}

/// The reports in a state folder, each with its file; what is no report is left out.
pub(super) fn all_in(folder: &Path) -> Vec<(PathBuf, Report)> {
    let files = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let is_status = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("device-") && name.ends_with(".json")
    };
    let paths = files.map(|file| file.path()).filter(is_status);
    let mut found: Vec<_> =
        paths.filter_map(|path| Some((Report::read(&path).ok()?, path))).collect();
    found.sort_by(|a, b| a.0.id.cmp(&b.0.id));
    found.into_iter().map(|(report, path)| (path, report)).collect()
}

/// An id in letters that fit the name of a file and of a unit, each id in its own way.
pub(super) fn file_word(id: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if id.len() <= MAX_WORD && id.chars().all(fits) {
        return id.to_owned();
    }
    let word = id.chars().map(|c| if fits(c) { c } else { '_' }).take(MAX_WORD);
    // FNV-1a: two ids that look alike now are told apart by it.
    let hash = id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{}-{hash:016x}", word.collect::<String>())
}

/// Whether a process is there and alive, and the one that is meant.
fn is_process(pid: u32, start: Option<u64>) -> bool {
    if let Some(found) = Listed::of(pid) {
        return !found.is_dead && start.is_none_or(|start| start == found.start);
    }
    #[cfg(unix)]
    {
        let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
        let asked = pid.map(rustix::process::test_kill_process);
        // One that is somebody else's is there too.
        matches!(asked, Some(Ok(()) | Err(rustix::io::Errno::PERM)))
    }
    #[cfg(not(unix))]
    true
}

fn process_start(pid: u32) -> Option<u64> {
    Listed::of(pid).map(|listed| listed.start)
}

/// What the kernel lists of a process, where it does.
struct Listed {
    /// It has ended, but whoever started it has not taken notice yet.
    is_dead: bool,
    /// When it was started, in the kernel's own count.
    start: u64,
}

impl Listed {
    fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name before it may hold anything, brackets too.
        let (_, after_name) = stat.rsplit_once(')')?;
        let mut fields = after_name.split_whitespace();
        let is_dead = matches!(fields.next()?, "Z" | "X" | "x");
        Some(Self { is_dead, start: fields.nth(18)?.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_files_of_their_own() {
        assert_eq!(file_word("build-box.1"), "build-box.1");
        let words = ["a/b", "a_b", "a b", "../../etc/passwd", &"x".repeat(256)].map(file_word);
        for word in &words {
            assert!(word.len() <= MAX_WORD + 17 && !word.contains('/'), "{word}");
        }
        assert_ne!(words[0], words[2]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_is_told_from_a_later_one_with_its_number() {
        let pid = std::process::id();
        let start = process_start(pid);
        assert!(start.is_some() && is_process(pid, start));
        assert!(!is_process(pid, start.map(|start| start + 1)));
        assert!(!is_process(u32::MAX, start));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_that_is_dead_but_not_yet_taken_away_is_gone() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id();
        let start = process_start(pid);
        assert!(start.is_some() && is_process(pid, start));
        child.kill().unwrap();
        let stat = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        while !stat().contains(") Z ") {
            std::thread::yield_now();
        }
        assert!(!is_process(pid, start) && !is_process(pid, None));
        child.wait().unwrap();
    }
}
