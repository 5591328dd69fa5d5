//! Sees to it that children never outlive the device, even if the device gets SIGKILL.
//!
//! The kernel's death signal reaches a dead device's direct children only, not theirs. So each
//! device has one helper process that reads from a pipe which process groups are being worked
//! for. When the pipe ends, the device is gone, however that came about: the helper then kills
//! every group that is still on its list.
//!
//! It must not know what the groups run, nor keep anything from being started: a helper that
//! fails takes only this last net away. It runs as the device's user, so what the device starts may
//! kill it. That is noticed when the next group is guarded or let go, and another one is started.
//! A helper that hangs or has died is a thread's business (`helper.rs`): guarding and letting go wait
//! for nothing.
//!
//! On Linux a command tells the helper of itself before its program begins. Known limit: all else (MCP servers, and
//! commands elsewhere) is guarded just after it was started. If the device is killed in between, the leader of the group
//! dies with it (on Linux), but what the leader has started by then doesn't.
//!
//! Where there are no process groups (Windows), nothing is started and nothing is guarded.

mod helper;
mod list;
#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests;

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

#[cfg(target_os = "linux")]
use rustix::process::Pid;

use self::helper::Helper;
use crate::group::Group;
use crate::mark::Mark;

/// How many groups the helper keeps at most; those past it aren't guarded.
pub const MAX_GUARDED: usize = 4096;

/// The device's end of the helper. Once it and all its [`Guarded`] are dropped, the helper kills
/// what is left on its list and ends.
#[derive(Debug)]
pub struct Watchdog {
    helper: Arc<Helper>,
}

impl Watchdog {
    /// Starts the helper: a program that does nothing but [`watch`] its standard input, usually
    /// the device's own with a hidden subcommand.
    ///
    /// It runs in a session of its own, so that Ctrl-C at the device's terminal isn't its end
    /// first, and has no descriptor of the device but the pipe.
    ///
    /// # Errors
    /// If the program can't be started.
    pub fn start(program: &Path, args: &[&str]) -> io::Result<Self> {
        Ok(Self { helper: Arc::new(Helper::start(program, args)?) })
    }

    /// Guards the process group led by process `group`, and all that bear `mark`, until the answer
    /// is dropped.
    ///
    /// It never fails and never waits. A helper that hangs or has died is replaced meanwhile.
    pub(crate) fn guard(&self, group: u32, mark: Option<Mark>) -> Guarded {
        self.helper.guard(group, mark);
        Guarded { helper: Arc::clone(&self.helper), group }
    }

    /// Guards the group of a child that `start` starts, and all that bear `mark`. The child has to call what `start` is
    /// given when it has all but begun: it tells the helper of the calling process, with plain system calls, no lock
    /// and no allocation, and it does so in the memory of the device.
    ///
    /// # Errors
    /// Those of `start`.
    #[cfg(target_os = "linux")]
    pub(crate) fn guard_start(
        &self,
        mark: Option<Mark>,
        start: impl FnOnce(&dyn Fn()) -> io::Result<Pid>,
    ) -> io::Result<(Pid, Guarded)> {
        let child = self.helper.guard_start(mark, start)?;
        let group = child.as_raw_pid().cast_unsigned();
        Ok((child, Guarded { helper: Arc::clone(&self.helper), group }))
    }

    /// Waits while a helper that hangs or has died is being replaced, most often a few tenths of a second
    /// and never longer than one. After that there is one, or there can be none.
    pub(crate) async fn be_there(&self) {
        self.helper.be_there().await;
    }

    /// Whether the helper still took the last line.
    #[cfg(test)]
    fn is_alive(&self) -> bool {
        self.helper.state().running.is_some()
    }
}

/// A process group that is killed if the device dies. Dropping it lets the group go, without waiting.
#[derive(Debug)]
#[must_use = "the group is guarded only until this is dropped"]
pub struct Guarded {
    helper: Arc<Helper>,
    group: u32,
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.helper.let_go(self.group);
    }
}

/// Keeps the list of guarded groups until `input` ends, then kills all that are on it. This is
/// all the helper process does.
pub fn watch(input: impl Read) {
    let groups = list::guarded_at_the_end(input);
    let groups = groups.into_iter();
    groups.filter_map(|(id, mark)| Some(Group::led_by(id)?.marked(mark))).for_each(Group::kill);
}
