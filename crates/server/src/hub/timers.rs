//! What is due when. Pure: time is an argument.

use std::collections::BTreeMap;
use std::time::Instant;

use aip::ResponseId;

use crate::session::{Incarnation, TaskId};

/// Something that is due at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Due {
    /// A command of this device: its answer, or the confirmation that it stopped.
    Command(Incarnation, ResponseId),
    /// The end of a session.
    Session(TaskId),
    /// Another try to store what a session has to store.
    Retry(TaskId),
    /// The end of the wait for a device that is away.
    Window(Incarnation),
    /// The end of the wait for the requester of a task.
    Leave(TaskId),
    /// The end of the wait for a device to confirm a cancel.
    Cancel(TaskId),
    /// Another try to store an identity.
    Keep(Incarnation),
    /// The end of the wait for the requester of a command of this device, whose output nobody takes.
    Unread(Incarnation, ResponseId),
}

/// Names a timer, to clear it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TimerKey(Instant, u64);

/// All that is due, by its time. Each entry belongs to a command or a session and is cleared with it.
#[derive(Debug, Default)]
pub(super) struct Timers {
    entries: BTreeMap<TimerKey, Due>,
    set: u64,
}

impl Timers {
    pub(super) fn set(&mut self, at: Instant, due: Due) -> TimerKey {
        self.set += 1;
        let key = TimerKey(at, self.set);
        self.entries.insert(key, due);
        key
    }

    /// Clears a timer. One that was taken already changes nothing.
    pub(super) fn clear(&mut self, key: TimerKey) {
        self.entries.remove(&key);
    }

    /// Takes the first that is due.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Due> {
        let first = self.entries.first_entry().filter(|first| first.key().0 <= now)?;
        Some(first.remove())
    }

    /// When the next one is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.entries.first_key_value().map(|(key, _)| key.0)
    }

    /// When a timer is due.
    pub(super) const fn at(key: TimerKey) -> Instant {
        key.0
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_due_comes_in_order_once_unless_it_was_cleared() {
        let (start, mut timers) = (Instant::now(), Timers::default());
        let tasks = [(); 3].map(|()| TaskId::fresh());
        let at = |seconds| start + Duration::from_secs(seconds);
        timers.set(at(2), Due::Session(tasks[0]));
        timers.set(at(1), Due::Session(tasks[1]));
        let cleared = timers.set(at(1), Due::Retry(tasks[2]));
        timers.clear(cleared);
        assert_eq!(timers.next(), Some(at(1)));
        assert_eq!(timers.take_due(start), None);
        assert_eq!(timers.take_due(at(5)), Some(Due::Session(tasks[1])));
        assert_eq!(timers.take_due(at(5)), Some(Due::Session(tasks[0])));
        assert_eq!((timers.take_due(at(5)), timers.len()), (None, 0));
    }
}
