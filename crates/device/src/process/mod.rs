//! Runs one child process for a tool call, within limits of time and output.
//!
//! It must not know which tool called it, what the output means, or how a refusal is worded to a
//! model: it takes a program and gives back what a shell would have shown.
//!
//! Nothing a call started outlives the call: however it ends — by itself, by its time limit, by
//! being stopped, by its future being dropped — the child's whole group is killed at once, and then,
//! by a thread of its own (`hunter.rs`), what has left the group; on Linux also the descendants that
//! have left the session (see `mark.rs`). What happens when the device itself is killed is the
//! [watchdog](crate::watchdog)'s matter. A number that is signalled is safe from reuse while its
//! leader isn't reaped or its group has a member; after a leader that ended by itself there are at
//! most [`LINGER`] and the time of a hunt, in which the numbers would have to run once round to hit a
//! stranger.

#[cfg(target_os = "linux")]
mod child;
#[cfg(not(target_os = "linux"))]
#[path = "child_elsewhere.rs"]
mod child;
mod environment;
pub(crate) mod hunter;
mod output;
mod session;
mod telling;
#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests;

use std::{
    convert::Infallible,
    ffi::OsString,
    future, io,
    path::PathBuf,
    process::ExitStatus,
    time::{Duration, Instant},
};

use aip::message::Channel;
use tokio::{
    io::AsyncWriteExt,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

pub use self::environment::scrubbed_env;
pub use self::output::Written;
pub(crate) use self::session::Session;
use self::{
    child::{Child, ChildStderr, ChildStdin, ChildStdout},
    output::Stream,
    telling::Telling,
};
use crate::{
    confine::Confinement, flow::Flow, group::Cgroup, mark::Mark, progress::Progress,
    watchdog::Watchdog,
};

/// How long a child that was asked to end may take before it is killed.
pub const GRACE: Duration = Duration::from_millis(500);

/// How long the output of a child that has ended is still read while others hold it open.
pub const LINGER: Duration = Duration::from_millis(200);

/// How long a killed child is waited for. Only one stuck in the kernel needs any of it; it is
/// then left to the runtime to reap.
pub const REAP_TIME: Duration = Duration::from_secs(2);

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
    /// What it and all it starts may not do.
    pub confinement: Confinement,
}

/// What a program that ended by itself left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// The exit code; 128 and the signal's number if a signal ended it, as a shell says.
    pub exit_code: i32,
    /// What it wrote to its standard output.
    pub stdout: Written,
    /// What it wrote to its standard error.
    pub stderr: Written,
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
        stdout: Written,
        /// What it wrote to its standard error until then.
        stderr: Written,
    },
    /// The caller stopped the call; all the call started has been killed.
    #[error("stopped")]
    Stopped {
        /// What it wrote to its standard output until then.
        stdout: Written,
        /// What it wrote to its standard error until then.
        stderr: Written,
    },
    /// The system doesn't tell how the program ended; all the call started has been killed.
    #[error("the program's end could not be observed")]
    Lost(#[source] io::Error),
}

/// Runs a program to its end, its time limit, or until `stop` is cancelled, whichever is first.
///
/// The child leads its own session and reads an empty standard input. With a `guard`, its session
/// is killed even if the device gets killed. When the future is dropped, everything it started is
/// killed at once. What it writes is told to `progress` meanwhile: whole lines, at most four texts
/// a second of at most 8 KiB each; or all of it goes through `flow`, which may bring its standard input as well.
///
/// Must be polled on a worker thread of the runtime (or in its `block_on`), never inside
/// `spawn_blocking` or on a thread of its own: Linux kills the child when the *thread* that
/// started it ends.
///
/// # Errors
/// See [`RunError`]. A program that ran and failed is no error: see [`Output::exit_code`].
pub(crate) async fn run(
    spec: Spec,
    stop: &CancellationToken,
    guard: Option<&Watchdog>,
    progress: &Progress,
    flow: Option<&Flow>,
) -> Result<Output, RunError> {
    if stop.is_cancelled() {
        return Err(RunError::Stopped { stdout: Written::default(), stderr: Written::default() });
    }
    let started = Instant::now();
    let limit = spec.timeout;
    let call = Call::start(&spec, guard, progress, flow).await;
    let mut call = call.map_err(RunError::NotStarted)?;
    match call.first_event(stop, limit).await {
        Event::Ended(status) => call.finish(status, started.elapsed(), stop).await,
        Event::TimeIsUp => {
            let (stdout, stderr) = call.cut_short().await;
            Err(RunError::TimedOut { after: limit, stdout, stderr })
        }
        Event::Stopped => {
            let (stdout, stderr) = call.cut_short().await;
            Err(RunError::Stopped { stdout, stderr })
        }
    }
}

/// The first thing that happens to a running child.
enum Event {
    Ended(io::Result<ExitStatus>),
    TimeIsUp,
    Stopped,
}

/// A started child with all that belongs to it. Dropping it kills the child's session.
struct Call<'a> {
    // The session goes first when this is dropped: its group is killed at once, and its number is
    // surely the child's own only as long as the child isn't reaped.
    session: Session,
    child: Child,
    /// Where the input goes, until its end.
    stdin: Option<ChildStdin>,
    stdout: Stream<ChildStdout>,
    stderr: Stream<ChildStderr>,
    telling: Telling<'a>,
    flow: Option<&'a Flow>,
}

impl<'a> Call<'a> {
    async fn start(
        spec: &Spec,
        guard: Option<&Watchdog>,
        progress: &'a Progress,
        flow: Option<&'a Flow>,
    ) -> io::Result<Self> {
        let mark = Mark::new();
        let has_input = flow.is_some_and(Flow::has_input);
        if let Some(guard) = guard {
            guard.be_there().await;
        }
        let spawned = spawn(spec, mark, guard, has_input).map_err(|error| explain(error, spec));
        let (mut child, session) = spawned?;
        let stdin = child.stdin.take();
        flow.into_iter().for_each(Flow::begin);
        let stdout = Stream::new(Channel::Stdout, child.stdout.take(), spec.max_output);
        let stderr = Stream::new(Channel::Stderr, child.stderr.take(), spec.max_output);
        Ok(Self { session, child, stdin, stdout, stderr, telling: Telling::new(progress), flow })
    }

    /// What all output goes through, if it does.
    fn outflow(&self) -> Option<&'a Flow> {
        self.flow.filter(|flow| flow.takes_output())
    }

    async fn first_event(&mut self, stop: &CancellationToken, limit: Duration) -> Event {
        tokio::select! {
            biased;
            () = stop.cancelled() => Event::Stopped,
            // Before the output, which may come so fast that there is always more of it.
            () = sleep(limit) => Event::TimeIsUp,
            status = self.exit() => Event::Ended(status),
        }
    }

    /// Reads both streams, and tells of them, until the child itself has ended.
    async fn exit(&mut self) -> io::Result<ExitStatus> {
        let out = self.outflow();
        let Self { child, stdin, stdout, stderr, telling, flow, .. } = self;
        let reading = async {
            tokio::join!(
                stdout.read_all(telling, out),
                stderr.read_all(telling, out),
                feed(stdin, *flow)
            );
            future::pending::<Infallible>().await
        };
        tokio::select! {
            biased;
            status = child.wait() => status,
            never = telling.go_on() => match never {},
            never = reading => match never {},
        }
    }

    /// Reads what is left of both streams, until nobody holds them open any more.
    async fn read_rest(&mut self) {
        let out = self.outflow();
        let Self { stdout, stderr, telling, .. } = self;
        tokio::join!(stdout.read_all(telling, out), stderr.read_all(telling, out));
    }

    /// Reads what is left of the output of a child that has ended, for [`LINGER`] at most while others hold it open;
    /// while its reader holds it up, that does not count.
    async fn linger(&mut self, stop: &CancellationToken) {
        let reading = async {
            while timeout(LINGER, self.read_rest()).await.is_err() {
                let out = self.outflow();
                if !(self.stdout.is_held_up(out) || self.stderr.is_held_up(out)) {
                    return;
                }
            }
        };
        tokio::select! {
            () = reading => {}
            () = stop.cancelled() => {}
        }
    }

    /// Gives the output of a child that ended by itself, and kills what it left behind.
    async fn finish(
        mut self,
        status: io::Result<ExitStatus>,
        elapsed: Duration,
        stop: &CancellationToken,
    ) -> Result<Output, RunError> {
        let status = status.map_err(RunError::Lost)?;
        // Whether or not all was read: what was read counts.
        self.linger(stop).await;
        self.session.kill().await;
        let (stdout, stderr) = self.texts();
        Ok(Output { exit_code: exit_code(status), stdout, stderr, elapsed })
    }

    /// Ends the child, and gives its output until then.
    async fn cut_short(mut self) -> (Written, Written) {
        self.end().await;
        self.texts()
    }

    /// Asks the whole session to end, kills what hasn't after [`GRACE`], and reaps the child.
    async fn end(&mut self) {
        if self.session.ask_to_end() {
            let _ = timeout(GRACE, self.exit_and_rest()).await;
        }
        self.session.kill().await;
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
    fn texts(&mut self) -> (Written, Written) {
        let out = self.outflow();
        (self.stdout.take(out), self.stderr.take(out))
    }
}

/// Starts the child: in a cgroup of its own where there can be one, else without. It is guarded before its program
/// begins.
fn spawn(
    spec: &Spec,
    mark: Option<Mark>,
    guard: Option<&Watchdog>,
    has_input: bool,
) -> io::Result<(Child, Session)> {
    if let Some(cgroup) = Cgroup::new()
        && let Ok((child, guarded)) = Child::start(spec, (mark, guard), Some(&cgroup), has_input)
    {
        let session = Session::guarded(child.id(), mark, guarded).within(cgroup);
        return Ok((child, session));
    }
    let (child, guarded) = Child::start(spec, (mark, guard), None, has_input)?;
    let session = Session::guarded(child.id(), mark, guarded);
    Ok((child, session))
}

/// Gives a child its input, until its end or until it reads no more.
async fn feed(stdin: &mut Option<ChildStdin>, flow: Option<&Flow>) {
    let Some(flow) = flow.filter(|flow| flow.has_input()) else { return };
    while let Some(bytes) = flow.next_input().await {
        let mut rest = bytes.as_slice();
        while let Some(pipe) = stdin.as_mut().filter(|_| !rest.is_empty()) {
            match pipe.write(rest).await {
                Ok(count) if count > 0 => {
                    flow.input_written(count);
                    rest = rest.get(count..).unwrap_or_default();
                }
                _ => {
                    *stdin = None;
                    flow.close_input();
                }
            }
        }
    }
    *stdin = None;
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
