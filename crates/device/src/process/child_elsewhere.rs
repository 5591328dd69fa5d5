//! A child with its pipes, where they are started as programs usually are.

use std::io;
use std::process::Stdio;

use tokio::io::AsyncRead;
use tokio::process::Command;
pub(super) use tokio::process::{ChildStderr, ChildStdin, ChildStdout};

use super::Spec;
use crate::group::{Cgroup, Tie, enter, set_apart};
use crate::mark::Mark;
use crate::watchdog::{Guarded, Watchdog};

/// A pipe that a child writes to.
pub(super) trait Output: AsyncRead + Unpin {
    /// It holds what the system has it hold.
    fn widen(&self) {}
}

impl<Pipe: AsyncRead + Unpin> Output for Pipe {}

/// A process of ours. Dropping it kills it.
pub(super) struct Child {
    pub(super) stdin: Option<ChildStdin>,
    pub(super) stdout: Option<ChildStdout>,
    pub(super) stderr: Option<ChildStderr>,
    process: tokio::process::Child,
}

impl Child {
    /// Starts a program, set apart, within its limits and guarded; `has_input` says that something will be written to it.
    ///
    /// # Errors
    /// What the system says of the program, its directory or its limits.
    pub(super) fn start(
        spec: &Spec,
        (mark, guard): (Option<Mark>, Option<&Watchdog>),
        cgroup: Option<&Cgroup>,
        has_input: bool,
    ) -> io::Result<(Self, Option<Guarded>)> {
        let mut command = std::process::Command::new(&spec.program);
        command.args(&spec.args).current_dir(&spec.cwd);
        command.env_clear().envs(spec.env.iter().map(|(name, value)| (name, value)));
        command.stdin(if has_input { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(cgroup) = cgroup {
            enter(&mut command, cgroup);
        }
        set_apart(&mut command, Tie::DiesWithDevice, &spec.confinement, mark);
        let mut command = Command::from(command);
        let mut process = command.kill_on_drop(true).spawn()?;
        let (stdin, stdout) = (process.stdin.take(), process.stdout.take());
        let guarded = guard.zip(process.id()).map(|(guard, id)| guard.guard(id, mark));
        Ok((Self { stdin, stdout, stderr: process.stderr.take(), process }, guarded))
    }

    /// Its number, until it is reaped.
    pub(super) fn id(&self) -> Option<u32> {
        self.process.id()
    }

    /// Waits until it has ended; may be dropped and called again.
    pub(super) async fn wait(&mut self) -> io::Result<std::process::ExitStatus> {
        self.process.wait().await
    }

    /// Kills it.
    ///
    /// # Errors
    /// When it is reaped already, or may not be killed.
    pub(super) fn start_kill(&mut self) -> io::Result<()> {
        self.process.start_kill()
    }
}
