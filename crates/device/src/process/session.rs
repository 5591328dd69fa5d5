//! All that descends from one child, and its end: killed by hand, or by dropping it. For calls and for MCP servers.

use crate::{
    group::{Group, kill_left},
    mark::Mark,
    watchdog::{Guarded, Watchdog},
};

/// All that descends from one child, until it is killed: by hand, or by dropping this.
pub(crate) struct Session {
    group: Option<Group>,
    // Dropped after the session is killed, which lets the watchdog forget it.
    _guarded: Option<Guarded>,
}

impl Session {
    /// The session of the child `id`, which has only just been started: set apart with `mark` (see
    /// [`set_apart`](crate::group::set_apart)) and not reaped. With a `guard`, it is killed even if
    /// the device gets killed. Without an id it is empty.
    pub(crate) fn of(id: Option<u32>, mark: Option<Mark>, guard: Option<&Watchdog>) -> Self {
        let guarded = guard.zip(id).map(|(guard, id)| guard.guard(id, mark));
        let group = id.and_then(Group::of_new).map(|group| group.marked(mark));
        Self { group, _guarded: guarded }
    }

    /// Asks all in it to end; false if there is no way to ask.
    pub(crate) fn ask_to_end(&self) -> bool {
        self.group.inspect(|group| group.ask_to_end()).is_some()
    }

    /// Kills all in it, once: later the number may be somebody else's. What an earlier one has left
    /// is looked for first.
    pub(crate) fn kill(&mut self) {
        if let Some(group) = self.group.take() {
            kill_left();
            group.kill();
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.kill();
    }
}
