//! Runs one child process for a tool call, within limits of time and output.
//!
//! It must not know which tool called it, what the output means, or how a refusal is worded to a
//! model: it takes a program and gives back what a shell would have shown.
//!
//! Nothing a call started outlives the call: however it ends — by itself, by its time limit, by
//! being stopped, by its future being dropped — the child's whole session is killed. What happens
//! when the device itself is killed is the [watchdog](crate::watchdog)'s matter. The one limit: a
//! descendant that calls `setsid` itself (a classic daemon) has left the session and isn't found;
//! see `group.rs` for why that is left so. A number that is signalled is safe from reuse while
//! its leader isn't reaped or its group has a member; after a leader that ended by itself there
//! are at most [`LINGER`] in which the numbers would have to run once round to hit a stranger.

use std::{
    collections::VecDeque,
    convert::Infallible,
    ffi::OsString,
    future, io,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, ChildStderr, ChildStdout, Command},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    group::{Group, Tie, set_apart},
    watchdog::{Guarded, Watchdog},
};

/// How long a child that was asked to end may take before it is killed.
pub const GRACE: Duration = Duration::from_millis(500);

/// How long the output of a child that has ended is still read while others hold it open.
pub const LINGER: Duration = Duration::from_millis(200);

/// How long a killed child is waited for. Only one stuck in the kernel needs any of it; it is
/// then left to the runtime to reap.
pub const REAP_TIME: Duration = Duration::from_secs(2);

/// How many bytes are read from a stream at once.
const READ_SIZE: usize = 16 * 1024;

/// What fraction of the kept output is the end of it; the rest is the beginning.
const TAIL_FRACTION: usize = 4;

/// Where programs are looked for, whatever the device's own PATH says.
#[cfg(unix)]
const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The language of a child whose caller has none that is UTF-8.
#[cfg(unix)]
const PLAIN_LANGUAGE: &str = "C.UTF-8";

/// What Windows needs of the device's environment to start programs at all.
#[cfg(not(unix))]
const KEPT_VARIABLES: [&str; 12] = [
    "PATH",
    "PATHEXT",
    "SystemRoot",
    "SystemDrive",
    "ComSpec",
    "TEMP",
    "TMP",
    "USERPROFILE",
    "USERNAME",
    "APPDATA",
    "LOCALAPPDATA",
    "ProgramData",
];

/// A program to run, and its limits.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The program: a path, or a name that is looked for in the PATH of `env`.
    pub program: PathBuf,
    /// Its arguments, without the program's name.
    pub args: Vec<OsString>,
    /// The directory it starts in.
    pub cwd: PathBuf,
    /// How long it may run.
    pub timeout: Duration,
    /// How many bytes of each stream are kept, as the program wrote them.
    pub max_output: usize,
    /// The whole environment of the child; nothing of the device's own is added.
    pub env: Vec<(OsString, OsString)>,
    /// Whether the program waits for a line on its standard input before it starts others. It gets
    /// the line once it is guarded, so that nothing it starts is ever unguarded.
    pub awaits_line: bool,
}

/// What a program that ended by itself left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// The exit code; 128 and the signal's number if a signal ended it, as a shell says.
    pub exit_code: i32,
    /// What it wrote to its standard output: the head and the tail if that was too much.
    pub stdout: String,
    /// What it wrote to its standard error: the head and the tail if that was too much.
    pub stderr: String,
    /// How long it ran.
    pub elapsed: Duration,
}

/// Why there is no [`Output`].
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The program isn't there or may not be run, or its directory isn't there.
    #[error("the program could not be started")]
    NotStarted(#[source] io::Error),
    /// The time limit passed; all the call started has been killed.
    #[error("the program was stopped after its time limit of {after:?}")]
    TimedOut {
        /// The time limit.
        after: Duration,
        /// What it wrote to its standard output until then.
        stdout: String,
        /// What it wrote to its standard error until then.
        stderr: String,
    },
    /// The caller stopped the call; all the call started has been killed.
    #[error("the call was stopped")]
    Stopped,
    /// The system doesn't tell how the program ended; all the call started has been killed.
    #[error("the program's end could not be observed")]
    Lost(#[source] io::Error),
}

/// Runs a program to its end, its time limit, or until `stop` is cancelled, whichever is first.
///
/// The child leads its own session and reads an empty standard input. With a `guard`, its session
/// is killed even if the device gets killed. When the future is dropped, everything it started is
/// killed at once.
///
/// Must be polled on a worker thread of the runtime (or in its `block_on`), never inside
/// `spawn_blocking` or on a thread of its own: Linux kills the child when the *thread* that
/// started it ends.
///
/// # Errors
/// See [`RunError`]. A program that ran and failed is no error: see [`Output::exit_code`].
pub async fn run(
    spec: Spec,
    stop: &CancellationToken,
    guard: Option<&Watchdog>,
) -> Result<Output, RunError> {
    if stop.is_cancelled() {
        return Err(RunError::Stopped);
    }
    let started = Instant::now();
    let limit = spec.timeout;
    let mut call = Call::start(&spec, guard).map_err(RunError::NotStarted)?;
    match call.first_event(stop, limit).await {
        Event::Ended(status) => call.finish(status, started.elapsed()).await,
        Event::TimeIsUp => Err(call.time_out(limit).await),
        Event::Stopped => {
            call.end().await;
            Err(RunError::Stopped)
        }
    }
}

/// Gives the environment for a child: a fixed system PATH, who the user is, a UTF-8 language, a
/// terminal without tricks, and where time zone and temporary files are, if set. Nothing else of
/// the device's environment, so no keys and no tokens.
pub fn scrubbed_env() -> Vec<(OsString, OsString)> {
    scrub(|name| std::env::var_os(name).filter(|value| !value.is_empty()))
}

/// The first thing that happens to a running child.
enum Event {
    Ended(io::Result<ExitStatus>),
    TimeIsUp,
    Stopped,
}

/// A started child with all that belongs to it. Dropping it kills the child's session.
struct Call {
    // The session goes first when this is dropped: its number is surely the child's own only as
    // long as the child isn't reaped.
    session: Session,
    child: Child,
    stdout: Stream<ChildStdout>,
    stderr: Stream<ChildStderr>,
}

impl Call {
    fn start(spec: &Spec, guard: Option<&Watchdog>) -> io::Result<Self> {
        let mut child = command(spec).spawn().map_err(|error| explain(error, spec))?;
        let session = Session::of(&child, guard);
        if let Some(input) = child.stdin.take() {
            release(input)?;
        }
        let stdout = Stream::new(child.stdout.take(), spec.max_output);
        let stderr = Stream::new(child.stderr.take(), spec.max_output);
        Ok(Self { session, child, stdout, stderr })
    }

    async fn first_event(&mut self, stop: &CancellationToken, limit: Duration) -> Event {
        tokio::select! {
            biased;
            () = stop.cancelled() => Event::Stopped,
            status = self.exit() => Event::Ended(status),
            () = sleep(limit) => Event::TimeIsUp,
        }
    }

    /// Reads both streams until the child itself has ended.
    async fn exit(&mut self) -> io::Result<ExitStatus> {
        let Self { child, stdout, stderr, .. } = self;
        let reading = async {
            tokio::join!(stdout.read_all(), stderr.read_all());
            future::pending::<Infallible>().await
        };
        tokio::select! {
            biased;
            status = child.wait() => status,
            never = reading => match never {},
        }
    }

    /// Reads what is left of both streams, until nobody holds them open any more.
    async fn read_rest(&mut self) {
        tokio::join!(self.stdout.read_all(), self.stderr.read_all());
    }

    /// Gives the output of a child that ended by itself, and kills what it left behind.
    async fn finish(
        mut self,
        status: io::Result<ExitStatus>,
        elapsed: Duration,
    ) -> Result<Output, RunError> {
        let status = status.map_err(RunError::Lost)?;
        // Whether or not all was read: what was read counts.
        let _ = timeout(LINGER, self.read_rest()).await;
        self.session.kill();
        let (stdout, stderr) = self.texts();
        Ok(Output { exit_code: exit_code(status), stdout, stderr, elapsed })
    }

    async fn time_out(mut self, after: Duration) -> RunError {
        self.end().await;
        let (stdout, stderr) = self.texts();
        RunError::TimedOut { after, stdout, stderr }
    }

    /// Asks the whole session to end, kills what hasn't after [`GRACE`], and reaps the child.
    async fn end(&mut self) {
        if self.session.ask_to_end() {
            let _ = timeout(GRACE, self.exit_and_rest()).await;
        }
        self.session.kill();
        // Fails if the child was reaped above; where there are no groups it is what kills.
        let _ = self.child.start_kill();
        let _ = timeout(REAP_TIME, self.exit()).await;
        let _ = timeout(LINGER, self.read_rest()).await;
    }

    async fn exit_and_rest(&mut self) {
        // How it ended doesn't matter: it was told to.
        let _ = self.exit().await;
        self.read_rest().await;
    }

    /// Standard output and standard error as read so far; to be taken once.
    fn texts(&mut self) -> (String, String) {
        (self.stdout.take_text(), self.stderr.take_text())
    }
}

/// The session a child leads, until it is killed: by hand, or by dropping this.
pub(crate) struct Session {
    group: Option<Group>,
    // Dropped after the session is killed, which lets the watchdog forget it.
    _guarded: Option<Guarded>,
}

impl Session {
    pub(crate) fn of(child: &Child, guard: Option<&Watchdog>) -> Self {
        let id = child.id();
        let guarded = guard.zip(id).map(|(guard, id)| guard.guard(id));
        Self { group: id.and_then(Group::of_new), _guarded: guarded }
    }

    /// Asks all in it to end; false if there is no way to ask.
    pub(crate) fn ask_to_end(&self) -> bool {
        self.group.inspect(|group| group.ask_to_end()).is_some()
    }

    /// Kills all in it, once: later the number may be somebody else's.
    pub(crate) fn kill(&mut self) {
        if let Some(group) = self.group.take() {
            group.kill();
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One output stream of the child, and what is kept of it.
struct Stream<Pipe> {
    /// None once its end was read.
    pipe: Option<Pipe>,
    kept: Kept,
}

impl<Pipe: AsyncRead + Unpin> Stream<Pipe> {
    fn new(pipe: Option<Pipe>, max_output: usize) -> Self {
        Self { pipe, kept: Kept::new(max_output) }
    }

    /// Reads to the end of the stream. May be dropped and called again without losing a byte.
    async fn read_all(&mut self) {
        let mut buffer = vec![0; READ_SIZE];
        while let Some(pipe) = &mut self.pipe {
            match pipe.read(&mut buffer).await {
                Ok(0) | Err(_) => self.pipe = None,
                Ok(count) => self.kept.push(&buffer[..count]),
            }
        }
    }

    fn take_text(&mut self) -> String {
        std::mem::replace(&mut self.kept, Kept::new(0)).into_text()
    }
}

/// The head and the tail of a stream of any length, in bounded memory.
struct Kept {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    max_head: usize,
    max_tail: usize,
    /// How many bytes came in all.
    total: u64,
}

impl Kept {
    fn new(max: usize) -> Self {
        let max_tail = max / TAIL_FRACTION;
        let (head, tail) = (Vec::new(), VecDeque::new());
        Self { head, tail, max_head: max - max_tail, max_tail, total: 0 }
    }

    fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let (head, rest) = bytes.split_at(bytes.len().min(self.max_head - self.head.len()));
        self.head.extend_from_slice(head);
        let rest = &rest[rest.len().saturating_sub(self.max_tail)..];
        let excess = (self.tail.len() + rest.len()).saturating_sub(self.max_tail);
        self.tail.drain(..excess);
        self.tail.extend(rest);
    }

    /// The text, with a line in the place of what was cut. No character is cut in two; what is
    /// no UTF-8 becomes U+FFFD.
    fn into_text(self) -> String {
        let (mut head, tail) = (self.head, Vec::from(self.tail));
        if (head.len() + tail.len()) as u64 == self.total {
            head.extend(tail);
            return text(head);
        }
        head.truncate(head.len() - started_character(&head));
        let tail = &tail[ended_character(&tail)..];
        let cut = self.total - (head.len() + tail.len()) as u64;
        format!("{}\n[... {cut} bytes cut ...]\n{}", text(head), String::from_utf8_lossy(tail))
    }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// How many bytes at the end begin a character whose rest is missing.
fn started_character(bytes: &[u8]) -> usize {
    for (index, byte) in bytes.iter().rev().take(3).enumerate() {
        let length = match byte {
            0x80..=0xBF => continue,
            0xC2..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF4 => 4,
            _ => return 0,
        };
        return if index + 1 < length { index + 1 } else { 0 };
    }
    0
}

/// How many bytes at the beginning end a character whose start is missing.
fn ended_character(bytes: &[u8]) -> usize {
    bytes.iter().take(3).take_while(|byte| matches!(byte, 0x80..=0xBF)).count()
}

fn command(spec: &Spec) -> Command {
    let mut command = std::process::Command::new(&spec.program);
    command.args(&spec.args).current_dir(&spec.cwd);
    command.env_clear().envs(spec.env.iter().map(|(name, value)| (name, value)));
    command.stdin(if spec.awaits_line { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    set_apart(&mut command, Tie::DiesWithDevice);
    let mut command = Command::from(command);
    command.kill_on_drop(true);
    command
}

/// Writes the line that a child waits for. An empty pipe takes it at once.
#[cfg(unix)]
fn release(input: tokio::process::ChildStdin) -> io::Result<()> {
    use std::io::Write;
    std::fs::File::from(input.into_owned_fd()?).write_all(b"\n")
}

#[cfg(not(unix))]
fn release(_: tokio::process::ChildStdin) -> io::Result<()> {
    Ok(())
}

/// The system says "not found" for the program and for the directory alike; this names the latter.
fn explain(error: io::Error, spec: &Spec) -> io::Error {
    if spec.cwd.is_dir() {
        return error;
    }
    io::Error::new(error.kind(), format!("there is no directory {}", spec.cwd.display()))
}

#[cfg(unix)]
fn exit_code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

#[cfg(not(unix))]
fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or(-1)
}

/// [`scrubbed_env`] of the environment that `variable` looks up.
#[cfg(unix)]
fn scrub(variable: impl Fn(&str) -> Option<OsString>) -> Vec<(OsString, OsString)> {
    let user = variable("USER").or_else(|| variable("LOGNAME"));
    let login = variable("LOGNAME").or_else(|| variable("USER"));
    let language = variable("LANG").filter(is_utf8);
    let entries = [
        ("PATH", Some(SYSTEM_PATH.into())),
        ("HOME", variable("HOME").or_else(|| Some("/".into()))),
        ("USER", user),
        ("LOGNAME", login),
        ("LANG", language.or_else(|| Some(PLAIN_LANGUAGE.into()))),
        ("LC_ALL", variable("LC_ALL").filter(is_utf8)),
        ("TERM", Some("dumb".into())),
        ("TZ", variable("TZ")),
        ("TMPDIR", variable("TMPDIR")),
    ];
    entries.into_iter().filter_map(|(name, value)| Some((name.into(), value?))).collect()
}

/// Whether a locale's name says that it is UTF-8.
#[cfg(unix)]
fn is_utf8(locale: &OsString) -> bool {
    let locale = locale.to_string_lossy().to_ascii_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}

#[cfg(not(unix))]
fn scrub(variable: impl Fn(&str) -> Option<OsString>) -> Vec<(OsString, OsString)> {
    let kept = KEPT_VARIABLES.iter();
    kept.filter_map(|name| Some((OsString::from(name), variable(name)?))).collect()
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::{error::Error as _, fs, path::Path};

    use super::*;
    use crate::group::testing::{all_gone, ids_in, runs};

    /// Longer than any test waits: what takes as long has failed.
    const LONG: Duration = Duration::from_secs(60);

    fn program(program: &str, args: &[&str]) -> Spec {
        Spec {
            program: program.into(),
            args: args.iter().map(OsString::from).collect(),
            cwd: "/".into(),
            timeout: LONG,
            max_output: 64 * 1024,
            env: scrubbed_env(),
            awaits_line: false,
        }
    }

    fn shell(script: &str) -> Spec {
        program("sh", &["-c", script])
    }

    async fn ran(spec: Spec) -> Output {
        run(spec, &CancellationToken::new(), None).await.unwrap()
    }

    async fn failed(spec: Spec) -> RunError {
        run(spec, &CancellationToken::new(), None).await.unwrap_err()
    }

    /// A script that writes the process ids of itself and of a grandchild, and doesn't end.
    fn endless(directory: &Path) -> (Spec, PathBuf) {
        let file = directory.join("ids");
        let mut spec = shell("sleep 1000 & printf '%s\\n%s\\n' $$ $! > ids; wait");
        spec.cwd = directory.to_owned();
        (spec, file)
    }

    fn ids(text: &str) -> Vec<u32> {
        text.lines().map(|line| line.parse().unwrap()).collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn both_streams_and_the_exit_code_come_back() {
        let output = ran(shell("echo out; echo err >&2; exit 7")).await;
        assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("out\n", "err\n"));
        assert_eq!(output.exit_code, 7);
        assert!(output.elapsed < LONG);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_signal_is_told_as_a_shell_tells_it() {
        assert_eq!(ran(shell("kill -KILL $$")).await.exit_code, 137);
        assert_eq!(ran(shell("kill -TERM $$")).await.exit_code, 143);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_program_that_is_not_there_is_not_started() {
        let error = failed(program("no-such-program-anywhere", &[])).await;
        assert!(
            matches!(&error, RunError::NotStarted(why) if why.kind() == io::ErrorKind::NotFound)
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_missing_directory_is_named() {
        let error = failed(Spec { cwd: "/no/such/place".into(), ..shell("true") }).await;
        assert_eq!(error.source().unwrap().to_string(), "there is no directory /no/such/place");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn standard_input_is_empty() {
        assert_eq!(ran(program("cat", &[])).await.stdout, "");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn there_is_no_terminal_to_ask_on() {
        assert_ne!(ran(shell(": < /dev/tty")).await.exit_code, 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_child_sees_the_given_environment_and_nothing_else() {
        let mut spec = program("/usr/bin/env", &[]);
        spec.env = vec![("ONLY".into(), "this".into())];
        assert_eq!(ran(spec).await.stdout, "ONLY=this\n");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_time_limit_kills_grandchildren_too_and_keeps_the_output() {
        let mut spec = shell("sleep 1000 & printf '%s\\n%s\\n' $$ $!; wait");
        spec.timeout = Duration::from_millis(300);
        let begun = Instant::now();
        let RunError::TimedOut { after, stdout, .. } = failed(spec).await else {
            panic!("it should have timed out")
        };
        assert_eq!(after, Duration::from_millis(300));
        assert!(begun.elapsed() >= after && begun.elapsed() < LONG / 2);
        assert_eq!(ids(&stdout).len(), 2);
        all_gone(&ids(&stdout));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_child_may_clean_up_when_it_is_asked_to_end() {
        let mut spec = shell("trap 'echo bye; exit' TERM; sleep 1000 & wait");
        spec.timeout = Duration::from_millis(300);
        let error = failed(spec).await;
        assert!(matches!(&error, RunError::TimedOut { stdout, .. } if stdout == "bye\n"));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_child_that_will_not_end_is_killed() {
        let mut spec = shell("trap '' TERM; sleep 1000 & printf '%s\\n%s\\n' $$ $!; wait");
        spec.timeout = Duration::from_millis(300);
        let begun = Instant::now();
        let error = failed(spec).await;
        assert!(begun.elapsed() >= Duration::from_millis(300) + GRACE);
        assert!(matches!(&error, RunError::TimedOut { stdout, .. } if {
            all_gone(&ids(stdout));
            ids(stdout).len() == 2
        }));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn stopping_kills_all_the_call_started() {
        let directory = tempfile::tempdir().unwrap();
        let (spec, file) = endless(directory.path());
        let stop = CancellationToken::new();
        let call = tokio::spawn({
            let stop = stop.clone();
            async move { run(spec, &stop, None).await }
        });
        let ids = ids_in(&file, 2);
        assert!(ids.iter().all(|id| runs(*id)));
        stop.cancel();
        assert!(matches!(call.await.unwrap(), Err(RunError::Stopped)));
        all_gone(&ids);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_call_that_is_stopped_beforehand_starts_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        stop.cancel();
        let spec = Spec { cwd: directory.path().into(), ..program("touch", &["file"]) };
        assert!(matches!(run(spec, &stop, None).await, Err(RunError::Stopped)));
        assert!(!directory.path().join("file").exists());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn dropping_the_call_kills_all_it_started() {
        let directory = tempfile::tempdir().unwrap();
        let (spec, file) = endless(directory.path());
        let call = tokio::spawn(async move { run(spec, &CancellationToken::new(), None).await });
        let ids = ids_in(&file, 2);
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
        all_gone(&ids);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn too_much_output_keeps_its_head_and_tail() {
        let script = "echo first; head -c 100000 /dev/zero | tr '\\0' x; echo; echo last";
        let output = ran(Spec { max_output: 1000, ..shell(script) }).await;
        let total = "first\n".len() + 100_000 + "\nlast\n".len();
        let marker = format!("\n[... {} bytes cut ...]\n", total - 1000);
        let (head, tail) = output.stdout.split_once(&marker).unwrap();
        assert!(head.starts_with("first\nxxx") && tail.ends_with("xxx\nlast\n"));
        assert_eq!((head.len(), tail.len()), (750, 250));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn output_of_just_the_limit_is_whole() {
        let script = "head -c 1000 /dev/zero | tr '\\0' x; printf 123 >&2";
        let output = ran(Spec { max_output: 1000, ..shell(script) }).await;
        assert_eq!((output.stdout, output.stderr.as_str()), ("x".repeat(1000), "123"));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn huge_output_neither_blocks_the_child_nor_fills_the_memory() {
        let before = peak_memory();
        let script = "yes | head -c 50M; yes error | head -c 50M >&2";
        let output = ran(Spec { max_output: 4096, ..shell(script) }).await;
        assert_eq!(output.exit_code, 0);
        for stream in [&output.stdout, &output.stderr] {
            assert!(stream.len() < 4096 + 100);
            assert!(stream.contains(&format!("{} bytes cut", 50 * 1024 * 1024 - 4096)));
        }
        let grown = peak_memory() - before;
        assert!(grown < 32 * 1024, "the peak grew by {grown} KiB");
    }

    /// The most memory this process has had, in KiB.
    fn peak_memory() -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_endless_writer_is_stopped_in_time() {
        let spec = Spec { timeout: Duration::from_millis(200), ..program("yes", &[]) };
        assert!(matches!(failed(spec).await, RunError::TimedOut { stdout, .. } if
            stdout.starts_with("y\ny\n") && stdout.contains("bytes cut")));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn bytes_that_are_no_text_become_replacement_characters() {
        assert_eq!(ran(shell("printf 'a\\377b\\303'")).await.stdout, "a\u{FFFD}b\u{FFFD}");
    }

    #[test]
    fn no_character_is_cut_in_two() {
        for character in ["é", "€", "🙂"] {
            for limit in 1..40 {
                let mut kept = Kept::new(limit);
                let text = character.repeat(30);
                text.as_bytes().chunks(7).for_each(|chunk| kept.push(chunk));
                let shown = kept.into_text();
                assert!(!shown.contains('\u{FFFD}'), "{limit}: {shown}");
                let bytes_shown = shown.matches(character).count() * character.len();
                let marker = format!("[... {} bytes cut ...]", text.len() - bytes_shown);
                assert!(shown.contains(&marker), "{limit}: {shown}");
            }
        }
    }

    #[test]
    fn an_unending_stream_is_kept_in_bounded_memory() {
        let mut kept = Kept::new(10_000);
        (0..1000).for_each(|_| kept.push(&[b'x'; READ_SIZE]));
        assert!(kept.head.capacity() + kept.tail.capacity() < 4 * 10_000);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_background_process_that_holds_the_output_delays_little_and_dies() {
        let output = ran(shell("sleep 1000 & echo $!")).await;
        assert_eq!(output.exit_code, 0);
        all_gone(&ids(&output.stdout));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_silent_background_process_dies_with_the_call() {
        let output = ran(shell("sleep 1000 > /dev/null 2>&1 & echo $!")).await;
        all_gone(&ids(&output.stdout));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_background_process_in_a_group_of_its_own_dies_with_the_call() {
        // It has its own group for sure once it has started its own child.
        let script = "timeout 1000 sh -c 'echo $$; echo $PPID; : > ready; exec sleep 1000' &
            until test -e ready; do :; done";
        let directory = tempfile::tempdir().unwrap();
        let output = ran(Spec { cwd: directory.path().into(), ..shell(script) }).await;
        assert_eq!(ids(&output.stdout).len(), 2);
        all_gone(&ids(&output.stdout));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn two_hundred_calls_at_once_do_not_mix() {
        let calls = (0..200).map(|number| {
            let spec = shell(&format!("echo {number}; exit {}", number % 100));
            tokio::spawn(async move { (number, ran(spec).await) })
        });
        for call in calls.collect::<Vec<_>>() {
            let (number, output) = call.await.unwrap();
            assert_eq!(output.stdout, format!("{number}\n"));
            assert_eq!(output.exit_code, number % 100);
        }
    }

    fn scrubbed(variables: &[(&str, &str)]) -> Vec<String> {
        let look_up = |name: &str| variables.iter().find(|entry| entry.0 == name);
        let scrubbed = scrub(|name| look_up(name).map(|entry| entry.1.into()));
        let show = |(name, value): &(OsString, OsString)| format!("{name:?}={value:?}");
        scrubbed.iter().map(show).map(|entry| entry.replace('"', "")).collect()
    }

    #[test]
    fn the_scrubbed_environment_holds_no_secrets() {
        let shown = scrubbed(&[
            ("HOME", "/home/ada"),
            ("USER", "ada"),
            ("PATH", "/tmp/evil"),
            ("API_KEY", "secret"),
            ("TZ", "Europe/Paris"),
        ]);
        let path = format!("PATH={SYSTEM_PATH}");
        let expected = ["HOME=/home/ada", "USER=ada", "LOGNAME=ada", "LANG=C.UTF-8", "TERM=dumb"];
        let expected = [&[path.as_str()], &expected[..], &["TZ=Europe/Paris"]].concat();
        assert_eq!(shown, expected);
    }

    #[test]
    fn only_a_utf8_language_is_passed_on() {
        let language = |lang, all| {
            let mut shown = scrubbed(&[("LANG", lang), ("LC_ALL", all)]);
            shown.retain(|entry| entry.starts_with('L'));
            shown
        };
        assert_eq!(language("de_DE.UTF-8", "C"), ["LANG=de_DE.UTF-8"]);
        assert_eq!(language("C", "en_US.utf8"), ["LANG=C.UTF-8", "LC_ALL=en_US.utf8"]);
    }
}
