//! All that descends from one child, and its end: killed by hand, or by dropping it. For calls and for MCP servers.

use crate::{
    group::{Cgroup, Group},
    mark::Mark,
    process::hunter,
    watchdog::{Guarded, Watchdog},
};

/// All that descends from one child, until it is killed: by hand, or by dropping this.
pub(crate) struct Session {
    group: Option<Group>,
    /// The cgroup that it is in, with nobody else.
    cgroup: Option<Cgroup>,
    // Handed over with the group, and dropped after all in it was killed: then the watchdog forgets it.
    guarded: Option<Guarded>,
}

impl Session {
    /// The session of the child `id`, which has only just been started: set apart with `mark` (see
    /// [`set_apart`](crate::group::set_apart)) and not reaped. With a `guard`, it is killed even if
    /// the device gets killed. Without an id it is empty.
    pub(crate) fn of(id: Option<u32>, mark: Option<Mark>, guard: Option<&Watchdog>) -> Self {
        let guarded = guard.zip(id).map(|(guard, id)| guard.guard(id, mark));
        Self::guarded(id, mark, guarded)
    }

    /// The same, of a child that is guarded already.
    pub(super) fn guarded(id: Option<u32>, mark: Option<Mark>, guarded: Option<Guarded>) -> Self {
        hunter::be_ready();
        let group = id.and_then(Group::of_new).map(|group| group.marked(mark));
        Self { group, cgroup: None, guarded }
    }

    /// The same, all of it started in `cgroup`.
    pub(super) fn within(mut self, cgroup: Cgroup) -> Self {
        self.cgroup = Some(cgroup);
        self
    }

    /// Asks all in it to end; false if there is no way to ask. Those that have left the group are asked
    /// a little later.
    pub(crate) fn ask_to_end(&self) -> bool {
        let Some(group) = self.group else { return false };
        group.ask_members();
        hunter::ask(group);
        true
    }

    /// Kills all in it, once: later the number may be somebody else's. What an earlier one has left
    /// is looked for, too. When this is dropped half way, the killing goes on.
    pub(crate) async fn kill(&mut self) {
        if let Some(killed) = self.begin_to_kill() {
            killed.await;
        }
    }

    /// Kills the group, and hands the rest over if there may be any: then something to wait for.
    fn begin_to_kill(&mut self) -> Option<impl Future<Output = ()> + use<>> {
        let (group, cgroup, guarded) =
            (self.group.take()?, self.cgroup.take(), self.guarded.take());
        group.kill_members();
        let may_have_more = cgroup.is_some() || group.may_have_strays();
        may_have_more.then(|| hunter::kill(group, cgroup, guarded))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        drop(self.begin_to_kill());
    }
}
