//! An MCP server that is a child process: started within limits, listened to within limits, and killed
//! with all it has started.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rmcp::RoleClient;
use rmcp::transport::async_rw::AsyncRwTransport;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::client::Told;
use crate::confine::Confinement;
use crate::group::{Tie, set_apart};
use crate::mark::Mark;
use crate::process::{GRACE, LINGER, Session, scrubbed_env};
use crate::watchdog::Watchdog;

/// The longest line that a server may write. A message may be 100 MiB; escaped, it is more.
const MAX_LINE_BYTES: usize = 128 << 20;

/// How much is kept of what a server wrote last to its standard error, for whoever wonders why it died.
const LAST_WORDS_BYTES: usize = 2048;

/// How long a server may take to end by itself, once its standard input has ended.
const END_TIME: Duration = Duration::from_secs(2);

/// The transport to a child process.
pub(super) type Stdio3 = AsyncRwTransport<RoleClient, Bounded<ChildStdout>, ChildStdin>;

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
        let stdout = Bounded::new(stdout, last_words.clone(), told.clone());
        let transport = AsyncRwTransport::new(stdout, stdin).with_max_line_length(MAX_LINE_BYTES);
        let stderr = child.stderr.take();
        let listener = stderr.map(|stderr| tokio::spawn(last_words.clone().listen(stderr)));
        Ok((Self { session, child, last_words, listener }, transport))
    }

    /// Waits for the server to end, now that its standard input has ended; kills it when it does not.
    /// Says how it ended, and what it said last.
    pub(super) async fn end(mut self) -> String {
        let mut ended = timeout(END_TIME, self.child.wait()).await;
        if ended.is_err() && self.session.ask_to_end() {
            ended = timeout(GRACE, self.child.wait()).await;
        }
        self.session.kill();
        let how = match ended {
            Ok(Ok(status)) => status.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it was killed, as it did not end by itself".to_owned(),
        };
        let _reaped = timeout(GRACE, self.child.wait()).await;
        if let Some(listener) = self.listener.take() {
            // What it wrote just before may still be on its way.
            let _heard = timeout(LINGER, listener).await;
        }
        match self.last_words.text() {
            words if words.is_empty() => how,
            words => format!("{how}; it last said: {words}"),
        }
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

/// What a server wrote last to its standard error, and what was wrong with its output. Cheap to clone.
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

/// A stream that ends with an error at a line that is too long. (The transport would pass over such a line
/// in silence, and whoever waits for it would wait in vain.)
pub(super) struct Bounded<R> {
    stream: R,
    line: usize,
    last_words: LastWords,
    told: Told,
}

impl<R> Bounded<R> {
    fn new(stream: R, last_words: LastWords, told: Told) -> Self {
        Self { stream, line: 0, last_words, told }
    }

    /// Counts what came into the lines it belongs to.
    fn count(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut lines = bytes.split(|byte| *byte == b'\n');
        self.line += lines.next().map_or(0, <[u8]>::len);
        let longest = lines.clone().map(<[u8]>::len).max().unwrap_or(0).max(self.line);
        if let Some(last) = lines.next_back() {
            self.line = last.len();
        }
        if longest <= MAX_LINE_BYTES {
            return Ok(());
        }
        let error = format!("it wrote a message of more than {MAX_LINE_BYTES} bytes");
        self.last_words.push(error.as_bytes());
        self.told.break_off(&error);
        Err(io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Bounded<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        Poll::Ready(self.count(&buf.filled()[before..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_line_that_is_too_long_is_an_error() {
        let half = vec![b'x'; MAX_LINE_BYTES / 2];
        let mut stream = Bounded::new(io::empty(), LastWords::default(), Told::default());
        for _ in 0..3 {
            stream.count(&half).unwrap();
            stream.count(b"\n").unwrap();
        }
        stream.count(&half).unwrap();
        stream.count(b"\nmore\nlines").unwrap();
        assert_eq!(stream.line, 5);
        stream.count(&half).unwrap();
        let error = stream.count(&half).unwrap_err().to_string();
        assert!(error.contains("more than 134217728 bytes"), "{error}");
    }

    #[test]
    fn the_last_words_are_bounded_and_on_one_line() {
        let words = LastWords::default();
        words.push(&vec![b'a'; 2 * LAST_WORDS_BYTES]);
        words.push(b"\nnpm error\n  404\n");
        let text = words.text();
        assert!(text.len() <= LAST_WORDS_BYTES && text.ends_with("a npm error 404"), "{text}");
    }
}
