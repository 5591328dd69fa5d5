//! An MCP server that is a child process: started within limits, and killed with all it has started.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::client::Told;
use super::pipes::Pipes;
use crate::confine::Confinement;
use crate::group::{Tie, set_apart};
use crate::mark::Mark;
use crate::process::{GRACE, LINGER, Session, scrubbed_env};
use crate::watchdog::Watchdog;

/// How much is kept of what a server wrote last to its standard error, for whoever wonders why it died.
const LAST_WORDS_BYTES: usize = 2048;

/// How long a server may take to end by itself, once its standard input has ended.
const END_TIME: Duration = Duration::from_secs(2);

/// The transport to a child process.
pub(super) type Stdio3 = Pipes<ChildStdout, ChildStdin>;

/// A server that runs. Dropping it kills the server and all it has started.
pub(super) struct Program {
    // The session goes first, while its number is surely the child's own.
    session: Session,
    child: Child,
    last_words: LastWords,
    listener: Option<JoinHandle<()>>,
}

impl Program {
    /// Starts a server.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub(super) fn start(
        (command, args): (&str, &[String]),
        env: &BTreeMap<String, String>,
        cwd: Option<&Path>,
        confinement: &Confinement,
        watchdog: Option<&Watchdog>,
        told: &Told,
    ) -> Result<(Self, Stdio3), String> {
        let program = find(command);
        let mut command_line = std::process::Command::new(&program);
        command_line.args(args).env_clear().envs(environment()).envs(env);
        if let Some(cwd) = cwd {
            command_line.current_dir(cwd);
        }
        command_line.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mark = Mark::new();
        set_apart(&mut command_line, Tie::DiesWithDevice, confinement, mark);
        let mut child = Command::from(command_line)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| cannot_start(command, cwd, &error))?;
        let session = Session::of(child.id(), mark, watchdog);
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(format!("'{command}' was started without its pipes"));
        };
        let last_words = LastWords::default();
        let transport = Pipes::new(stdout, stdin, told.clone());
        let stderr = child.stderr.take();
        let listener = stderr.map(|stderr| tokio::spawn(last_words.clone().listen(stderr)));
        Ok((Self { session, child, last_words, listener }, transport))
    }

    /// Waits for the server to end, now that its standard input has ended; kills it when it does not.
    /// Tells what it said last and, where it was the one to end the connection, how it ended: else that is
    /// our doing.
    pub(super) async fn end(mut self, by_itself: bool) -> Option<String> {
        let mut ended = timeout(END_TIME, self.child.wait()).await;
        let how = match &ended {
            _ if !by_itself => None,
            Ok(Ok(status)) => Some(status.to_string()),
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("it was killed, as it did not end by itself".to_owned()),
        };
        if ended.is_err() && self.session.ask_to_end() {
            ended = timeout(GRACE, self.child.wait()).await;
        }
        self.session.kill().await;
        if ended.is_err() {
            let _reaped = timeout(GRACE, self.child.wait()).await;
        }
        if let Some(listener) = self.listener.take() {
            // What it wrote just before may still be on its way.
            let _heard = timeout(LINGER, listener).await;
        }
        let words = Some(self.last_words.text()).filter(|words| !words.is_empty());
        let words = words.map(|words| format!("it last said: {words}"));
        let told: Vec<_> = how.into_iter().chain(words).collect();
        (!told.is_empty()).then(|| told.join("; "))
    }
}

/// The program that is meant: a path, or a name that is looked for in the device's own PATH, since that
/// is where its owner has installed it.
fn find(command: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_name = Path::new(command).components().count() == 1 && !command.starts_with('.');
    let mut found = std::env::split_paths(&path).map(|folder| folder.join(command));
    let found = if is_name { found.find(|file| file.is_file()) } else { None };
    found.unwrap_or_else(|| PathBuf::from(command))
}

/// What every server gets: the scrubbed environment, but the device's own PATH.
fn environment() -> Vec<(OsString, OsString)> {
    let mut environment = scrubbed_env();
    if let Some(path) = std::env::var_os("PATH").filter(|path| !path.is_empty()) {
        environment.retain(|(name, _)| name != "PATH");
        environment.push(("PATH".into(), path));
    }
    environment
}

fn cannot_start(command: &str, cwd: Option<&Path>, error: &io::Error) -> String {
    match cwd {
        Some(cwd) if !cwd.is_dir() => format!("there is no folder {} to run it in", cwd.display()),
        _ if error.kind() == io::ErrorKind::NotFound => {
            format!("there is no program '{command}'; install it, or give its path")
        }
        _ => format!("'{command}' cannot be started: {error}"),
    }
}

/// What a server wrote last to its standard error. Cheap to clone.
#[derive(Clone, Default)]
struct LastWords(Arc<Mutex<VecDeque<u8>>>);

impl LastWords {
    async fn listen(self, mut stderr: ChildStderr) {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
            self.push(&buffer[..count]);
        }
    }

    fn push(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(bytes);
        let excess = kept.len().saturating_sub(LAST_WORDS_BYTES);
        kept.drain(..excess);
    }

    /// On one line.
    fn text(&self) -> String {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = kept.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_are_bounded_and_on_one_line() {
        let words = LastWords::default();
        words.push(&vec![b'a'; 2 * LAST_WORDS_BYTES]);
        words.push(b"\nnpm error\n  404\n");
        let text = words.text();
        assert!(text.len() <= LAST_WORDS_BYTES && text.ends_with("a npm error 404"), "{text}");
    }
}
