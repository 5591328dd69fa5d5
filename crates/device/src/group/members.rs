//! All in one session, and the signals they get.
//!
//! It must not know who is to end, or why. A signal to the members of the group is one system call. Who
//! has left the group is looked for among all processes, which takes a while: on which thread, the
//! caller chooses.

#[cfg(unix)]
use rustix::process::{Pid, Signal};

use super::Chase;
#[cfg(target_os = "linux")]
use super::hunt;
use crate::mark::Mark;

/// The session and process group that one child leads: both have the child's process id as
/// their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    #[cfg(unix)]
    leader: Pid,
    /// When the leader was started, if that is known.
    #[cfg(target_os = "linux")]
    since: Option<std::time::Instant>,
    /// What the leader and its descendants were marked with.
    #[cfg(target_os = "linux")]
    mark: Option<Mark>,
    #[cfg(not(unix))]
    leader: std::convert::Infallible,
}

#[cfg(unix)]
impl Group {
    /// Like [`Group::led_by`], for a process that has only just been started: such a group is
    /// killed faster while it is young.
    pub(crate) fn of_new(id: u32) -> Option<Self> {
        let group = Self::led_by(id)?;
        #[cfg(target_os = "linux")]
        let group = Self { since: Some(std::time::Instant::now()), ..group };
        Some(group)
    }

    /// Names the group led by process `id`, or nothing if a signal to that number would reach
    /// more than one group (0, 1 and what is no process id).
    pub(crate) fn led_by(id: u32) -> Option<Self> {
        let id = i32::try_from(id).ok().filter(|id| *id > 1)?;
        Pid::from_raw(id).map(|leader| Self {
            leader,
            #[cfg(target_os = "linux")]
            since: None,
            #[cfg(target_os = "linux")]
            mark: None,
        })
    }

    /// The same, with the descendants that bear `mark` and have left the session.
    pub(crate) fn marked(self, mark: Option<Mark>) -> Self {
        #[cfg(target_os = "linux")]
        return Self { mark, ..self };
        #[cfg(not(target_os = "linux"))]
        {
            let _ = mark;
            self
        }
    }

    /// Asks the members of the group to end (SIGTERM). One system call.
    pub(crate) fn ask_members(self) {
        // An error here and below means that nobody is left, or nobody that we may signal.
        let _ = rustix::process::kill_process_group(self.leader, Signal::TERM);
    }

    /// Kills the members of the group (SIGKILL). One system call.
    pub(crate) fn kill_members(self) {
        let _ = rustix::process::kill_process_group(self.leader, Signal::KILL);
    }

    /// Kills all in it, whether or not they have left the group. They are dead or dying when this
    /// returns, but for those that forked too fast to be caught: they are [left over](left_over).
    /// May take a second, so never on a thread of the runtime.
    pub(crate) fn kill(self) {
        self.kill_members();
        self.chase().go_on(None);
    }
}

#[cfg(not(unix))]
impl Group {
    /// There are no process groups here.
    pub(crate) fn of_new(_: u32) -> Option<Self> {
        None
    }

    /// There are no process groups here.
    pub(crate) fn led_by(_: u32) -> Option<Self> {
        None
    }

    /// Never called: there is no group.
    pub(crate) fn marked(self, _: Option<Mark>) -> Self {
        match self.leader {}
    }

    /// Never called: there is no group.
    pub(crate) fn ask_members(self) {
        match self.leader {}
    }

    /// Never called: there is no group.
    pub(crate) fn kill_members(self) {
        match self.leader {}
    }

    /// Never called: there is no group.
    pub(crate) fn kill(self) {
        match self.leader {}
    }
}

#[cfg(target_os = "linux")]
impl Group {
    /// Asks those to end (SIGTERM) that have left the group. Looks through processes, so never on a
    /// thread of the runtime.
    pub(crate) fn ask_strays(self) {
        self.hunt().signal(Signal::TERM);
    }

    /// Whether anybody may be left once its members were killed. Where few were started since its leader was, who has
    /// left it is killed here, with a few system calls that wait for nobody.
    pub(crate) fn may_have_strays(self) -> bool {
        !self.hunt().is_over_at_once() || hunt::is_anybody_left()
    }

    /// The search for all in it that have left the group, which has not begun yet.
    pub(crate) fn chase(self) -> Chase {
        Chase::of(self.hunt())
    }

    pub(super) fn hunt(self) -> hunt::Hunt {
        hunt::Hunt { leader: Some(self.leader), since: self.since, mark: self.mark }
    }
}

#[cfg(not(target_os = "linux"))]
impl Group {
    /// Nothing tells who has left the group.
    pub(crate) fn ask_strays(self) {}

    /// Nobody is found.
    pub(crate) fn may_have_strays(self) -> bool {
        false
    }

    /// Nothing tells who has left the group.
    pub(crate) fn chase(self) -> Chase {
        Chase
    }
}

/// Searches for descendants of any child that forked too fast to be caught when its group was killed;
/// most often there are none.
pub(crate) fn left_over() -> Vec<Chase> {
    #[cfg(target_os = "linux")]
    return hunt::left_over();
    #[cfg(not(target_os = "linux"))]
    Vec::new()
}
