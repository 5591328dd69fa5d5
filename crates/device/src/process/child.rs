//! A child with its pipes, as `tokio::process` has one, but started without a copy of the device's memory.
//!
//! It must not know what the child does, or when it is to end.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use rustix::pipe::fcntl_setpipe_size;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, waitpid};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, Interest};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};

use super::Spec;
use crate::group::{Cgroup, Image, start};
use crate::mark::Mark;
use crate::watchdog::{Guarded, Watchdog};

pub(super) type ChildStdin = Sender;
pub(super) type ChildStdout = Receiver;
pub(super) type ChildStderr = Receiver;

/// How much a pipe holds, once it was full. The system's own 64 KiB are a few pages in front of a program that writes
/// much: it and the device then wait for each other at each of them.
const WIDE_PIPE_BYTES: usize = 1024 * 1024;

/// A pipe that a child writes to.
pub(super) trait Output: AsyncRead + Unpin {
    /// Has it hold more, where the system lets it.
    fn widen(&self);
}

impl Output for Receiver {
    fn widen(&self) {
        let _as_it_was = fcntl_setpipe_size(self, WIDE_PIPE_BYTES);
    }
}

/// A process of ours. Dropping it kills it; it is reaped all the same.
pub(super) struct Child {
    pub(super) stdin: Option<ChildStdin>,
    pub(super) stdout: Option<ChildStdout>,
    pub(super) stderr: Option<ChildStderr>,
    process: Process,
}

/// What is waited for.
struct Process {
    id: Pid,
    /// Says when it has ended; `None` where the system has no such descriptors.
    end: Option<AsyncFd<OwnedFd>>,
    /// How it ended, once it is reaped.
    status: Option<ExitStatus>,
}

impl Child {
    /// Starts a program, set apart, within its limits and guarded, if there is a watchdog, before it begins;
    /// `has_input` says that something will be written to it.
    ///
    /// # Errors
    /// What the system says of the program, its directory or its limits.
    pub(super) fn start(
        spec: &Spec,
        (mark, guard): (Option<Mark>, Option<&Watchdog>),
        cgroup: Option<&Cgroup>,
        has_input: bool,
    ) -> io::Result<(Self, Option<Guarded>)> {
        let image = Image::new(&spec.program, &spec.args, &spec.env, &spec.cwd)?;
        let (input, stdin) = input(has_input)?;
        let ((stdout, output), (stderr, errors)) = (io::pipe()?, io::pipe()?);
        let stdio = [input.as_fd(), output.as_fd(), errors.as_fd()];
        let limits = (&spec.confinement, mark);
        let (id, guarded) = match guard {
            Some(guard) => {
                let start = |tell: &dyn Fn()| start(&image, stdio, limits, cgroup, tell);
                let (id, guarded) = guard.guard_start(mark, start)?;
                (id, Some(guarded))
            }
            None => (start(&image, stdio, limits, cgroup, &|| ())?, None),
        };
        // From here on it ends with this.
        let process = Process { id, end: None, status: None };
        let mut child = Self { stdin: None, stdout: None, stderr: None, process };
        child.process.end = pidfd_open(id, PidfdFlags::NONBLOCK).ok().map(awaited).transpose()?;
        child.stdin = stdin.map(Sender::from_owned_fd).transpose()?;
        child.stdout = Some(Receiver::from_owned_fd(stdout.into())?);
        child.stderr = Some(Receiver::from_owned_fd(stderr.into())?);
        Ok((child, guarded))
    }

    /// Its number, until it is reaped.
    pub(super) fn id(&self) -> Option<u32> {
        let is_there = self.process.status.is_none();
        is_there.then(|| self.process.id.as_raw_pid().cast_unsigned())
    }

    /// Waits until it has ended; may be dropped and called again.
    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.process.wait().await
    }

    /// Kills it.
    ///
    /// # Errors
    /// When it is reaped already, or may not be killed.
    pub(super) fn start_kill(&self) -> io::Result<()> {
        self.process.kill()
    }
}

#[allow(
    deprecated,
    reason = "what it warns of cannot befall a descriptor that is owned; the other way is unsafe"
)]
fn awaited(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(descriptor, Interest::READABLE)
}

/// What a child reads, and where that comes from if it gets anything.
fn input(is_piped: bool) -> io::Result<(OwnedFd, Option<OwnedFd>)> {
    if !is_piped {
        return Ok((std::fs::File::open("/dev/null")?.into(), None));
    }
    let (reader, writer) = io::pipe()?;
    Ok((reader.into(), Some(writer.into())))
}

impl Process {
    fn kill(&self) -> io::Result<()> {
        match self.status {
            None => Ok(kill_process(self.id, Signal::KILL)?),
            Some(_) => Err(io::ErrorKind::NotFound.into()),
        }
    }

    async fn wait(&mut self) -> io::Result<ExitStatus> {
        // Made before it is looked for: no end is missed in between.
        let mut children = match self.end {
            Some(_) => None,
            None => Some(signal(SignalKind::child())?),
        };
        loop {
            if let Some(status) = self.reaped()? {
                return Ok(status);
            }
            match (&self.end, &mut children) {
                (Some(end), _) => {
                    let mut ready = end.readable().await?;
                    if let Some(status) = reap(self.id)? {
                        return Ok(*self.status.insert(status));
                    }
                    ready.clear_ready();
                }
                (None, Some(children)) => {
                    children.recv().await;
                }
                (None, None) => return Err(io::ErrorKind::Unsupported.into()),
            }
        }
    }

    fn reaped(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = reap(self.id)?;
        }
        Ok(self.status)
    }
}

fn reap(id: Pid) -> io::Result<Option<ExitStatus>> {
    let ended = waitpid(Some(id), WaitOptions::NOHANG)?;
    Ok(ended.map(|(_, status)| ExitStatus::from_raw(status.as_raw())))
}

impl Drop for Child {
    fn drop(&mut self) {
        // An error means that it has ended.
        let _ = self.process.kill();
        if !matches!(self.process.reaped(), Ok(None)) {
            return;
        }
        // It is dying. Without a runtime it stays listed as dead until the device ends.
        if let Ok(runtime) = Handle::try_current() {
            let Process { id, end, status } = &mut self.process;
            let mut process = Process { id: *id, end: end.take(), status: *status };
            runtime.spawn(async move { process.wait().await });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::confine::Confinement;
    use crate::group::testing;

    fn shell(script: &str) -> Spec {
        Spec {
            program: "sh".into(),
            args: ["-c", script].map(Into::into).to_vec(),
            cwd: "/".into(),
            timeout: Duration::from_secs(60),
            max_output: 1024,
            env: crate::process::scrubbed_env(),
            confinement: Confinement::default(),
        }
    }

    fn start_shell(script: &str) -> Child {
        Child::start(&shell(script), (None, None), None, false).unwrap().0
    }

    #[tokio::test]
    async fn a_child_begins_with_no_signal_blocked_or_ignored() {
        let mut child = start_shell("grep -E '^Sig(Blk|Ign)' /proc/self/status");
        let mut told = String::new();
        child.stdout.as_mut().unwrap().read_to_string(&mut told).await.unwrap();
        assert!(child.wait().await.unwrap().success());
        // The two that the C library has for itself are nobody's to set.
        let own = 1 << 31 | 1 << 32;
        let signals = told.lines().map(|line| line.split_once('\t').unwrap().1);
        let signals = signals.map(|signals| u64::from_str_radix(signals, 16).unwrap() & !own);
        assert_eq!(signals.collect::<Vec<_>>(), [0, 0], "{told}");
    }

    #[tokio::test]
    async fn an_end_is_seen_also_where_no_descriptor_tells_it() {
        for end in ["exit 3", "sleep 0.2; exit 3"] {
            let mut child = start_shell(end);
            child.process.end = None;
            assert_eq!(child.wait().await.unwrap().code(), Some(3));
            assert_eq!(child.wait().await.unwrap().code(), Some(3), "it may be asked again");
            assert!(child.id().is_none() && child.start_kill().is_err());
        }
    }

    #[tokio::test]
    async fn a_child_that_is_dropped_is_killed_and_reaped() {
        let child = start_shell("exec sleep 1000");
        let id = child.id().unwrap();
        drop(child);
        let process = Pid::from_raw(id.cast_signed());
        let is_reaped = || waitpid(process, WaitOptions::NOHANG).is_err();
        while !is_reaped() {
            tokio::task::yield_now().await;
        }
        testing::all_gone(&[id]);
    }

    #[tokio::test]
    async fn what_does_not_begin_says_why_and_leaves_nobody() {
        let nowhere = Spec { cwd: "/no/such/place".into(), ..shell("true") };
        let nothing = Spec { program: "/etc/passwd".into(), ..shell("true") };
        let nul = Spec { args: vec!["a\0b".into()], ..shell("true") };
        for (spec, kind) in [
            (nowhere, io::ErrorKind::NotFound),
            (nothing, io::ErrorKind::PermissionDenied),
            (nul, io::ErrorKind::InvalidInput),
        ] {
            let failed = Child::start(&spec, (None, None), None, false).map(|_| ()).unwrap_err();
            assert_eq!(failed.kind(), kind, "{failed}");
        }
    }
}
