//! Finds and kills the descendants of a child that have left its group, even one that forks on and
//! on, each parent ending before it is looked at.
//!
//! It must not know how a child is started, or why it is to end.
//!
//! Why a search can be sure: numbers are handed out in order, and a process has its number before
//! it can be seen. So all up to the number that was handed out last are looked at, in order, a
//! parent before its children; who is found is killed at once and can then finish no fork. Whoever
//! was gone already has only children with higher numbers. So once no number was handed out during
//! the last round, nobody is left.

use std::{
    collections::HashSet,
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::{
    listing::{Status, highest_number, latest_number, numbers},
    mark::Mark,
};

/// How long descendants are looked for that appear while others are being killed. Only a program
/// that forks as fast as it is killed needs any of it. It holds up a thread of the runtime.
const SEARCH_TIME: Duration = Duration::from_secs(1);

/// How many marks are kept whose bearers may not all be dead. The oldest is forgotten first.
const MAX_LEFT: usize = 64;

/// How often all processes are listed to find who was being forked during the first time.
const SWEEPS: usize = 2;

/// How often they are listed at most where the latest number isn't known.
const BLIND_SWEEPS: usize = 8;

/// How long after its leader's start a group counts as young.
const YOUTH: Duration = Duration::from_millis(100);

/// More process numbers than the system hands out during a group's youth.
const NUMBERS_IN_YOUTH: i32 = 8192;

/// The marks of descendants that could not surely be killed in time.
static LEFT: Mutex<Vec<Mark>> = Mutex::new(Vec::new());

/// Looks once more for all that could not surely be killed before, for [`SEARCH_TIME`] at most.
pub(super) fn kill_left() {
    let marks = std::mem::take(&mut *left());
    let deadline = Instant::now() + SEARCH_TIME;
    for mark in marks {
        Hunt { leader: None, since: None, mark: Some(mark) }.kill_until(deadline);
    }
}

fn left() -> MutexGuard<'static, Vec<Mark>> {
    LEFT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What tells the descendants of one child that have left its group.
#[derive(Clone, Copy)]
pub(super) struct Hunt {
    /// The leader of the group and the session; `None` once its number may be somebody else's.
    pub(super) leader: Option<Pid>,
    /// When the leader was started, if that is known.
    pub(super) since: Option<Instant>,
    /// What the leader and its descendants were marked with.
    pub(super) mark: Option<Mark>,
}

/// What came of looking at a number.
enum Found {
    /// A descendant; it has the signal.
    Descendant,
    Stranger,
    /// Nobody, or nobody any more.
    Nobody,
}

impl Hunt {
    /// Kills all it finds. Those it cannot be sure of in time are left to [`kill_left`].
    pub(super) fn kill(self) {
        self.kill_until(Instant::now() + SEARCH_TIME);
    }

    fn kill_until(self, deadline: Instant) {
        let is_sure = self.kill_surely(deadline);
        let Some(mark) = self.mark.filter(|_| !is_sure) else { return };
        let mut left = left();
        if left.len() == MAX_LEFT {
            left.remove(0);
        }
        left.push(mark);
    }

    /// Signals all that are there now.
    pub(super) fn signal(self, signal: Signal) {
        let newer = latest_number().and_then(|latest| self.numbers_until(latest));
        let numbers: Box<dyn Iterator<Item = i32>> = match newer {
            Some(newer) => Box::new(newer),
            None => Box::new(numbers()),
        };
        for id in numbers {
            self.signal_number(id, signal);
        }
    }

    /// Kills all; false when the time is up before it is sure that nobody is left.
    fn kill_surely(self, deadline: Instant) -> bool {
        let Some(mut latest) = latest_number() else { return self.kill_listed(BLIND_SWEEPS) };
        let mut seen = match self.numbers_until(latest) {
            Some(newer) => newer.start - 1,
            None => {
                self.kill_listed(SWEEPS);
                std::mem::replace(&mut latest, latest_number().unwrap_or_default())
            }
        };
        while seen != latest {
            if Instant::now() >= deadline {
                return false;
            }
            if seen < latest {
                for id in seen + 1..=latest {
                    self.signal_number(id, Signal::KILL);
                }
            } else {
                // The numbers have come round to the bottom.
                self.kill_listed(SWEEPS);
            }
            seen = std::mem::replace(&mut latest, latest_number().unwrap_or_default());
        }
        true
    }

    /// Kills all that are listed, until nobody new is found and nobody has vanished meanwhile, who
    /// may have forked; false if it comes to that never.
    fn kill_listed(self, sweeps: usize) -> bool {
        let mut struck = HashSet::new();
        (0..sweeps).any(|_| {
            numbers().fold(true, |is_quiet, id| match self.signal_number(id, Signal::KILL) {
                Found::Descendant => !struck.insert(id) && is_quiet,
                Found::Stranger => is_quiet,
                Found::Nobody => false,
            })
        })
    }

    /// The numbers after the leader's up to the latest, if its descendants surely have one of those.
    /// They are handed out up to a highest one and then from the bottom again: only soon after its
    /// start is a leader surely below its descendants, and only if the latest is still above its own.
    pub(super) fn numbers_until(self, latest: i32) -> Option<Range<i32>> {
        let is_young = self.since.is_some_and(|since| since.elapsed() < YOUTH);
        let leader = self.leader.filter(|_| is_young)?.as_raw_pid();
        let in_order = leader <= latest && highest_number() > NUMBERS_IN_YOUTH;
        in_order.then_some(leader + 1..latest + 1)
    }

    /// Signals the process with this number if it is a descendant. It is looked at when a descriptor
    /// holds on to it, so that one that gets the same number next is never hit.
    fn signal_number(self, id: i32, signal: Signal) -> Found {
        let process = Pid::from_raw(id);
        let held = process.and_then(|process| pidfd_open(process, PidfdFlags::empty()).ok());
        let (Some(process), Some(held)) = (process, held) else { return Found::Nobody };
        match self.is_for(process) {
            None => Found::Nobody,
            Some(false) => Found::Stranger,
            Some(true) => {
                // An error means that it has ended.
                let _ = pidfd_send_signal(held, signal);
                Found::Descendant
            }
        }
    }

    /// Whether this is a descendant that has left the group; `None` if it has ended.
    pub(super) fn is_for(self, process: Pid) -> Option<bool> {
        let status = Status::of(process)?;
        let leader = self.leader.map(Pid::as_raw_pid);
        if leader == Some(status.group) {
            return Some(false);
        }
        match self.mark {
            _ if leader == Some(status.session) => Some(true),
            Some(mark) => mark.is_on(process.as_raw_pid(), status.started),
            None => Some(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hunt(leader: u32, since: Option<Instant>) -> Hunt {
        Hunt { leader: Pid::from_raw(leader.cast_signed()), since, mark: None }
    }

    #[test]
    fn descendants_are_looked_for_above_their_leader_only_when_they_must_be_there() {
        let now = Some(Instant::now() + Duration::from_secs(1000));
        assert_eq!(hunt(50, now).numbers_until(52), Some(51..53));
        assert_eq!(hunt(50, now).numbers_until(50), Some(51..51));
        assert_eq!(hunt(50, now).numbers_until(49), None, "others have come since");
        assert_eq!(hunt(50, None).numbers_until(52), None, "it may be old");
    }

    #[test]
    fn who_was_left_is_found_again_by_the_mark_alone() {
        use crate::group::{Tie, set_apart, testing};
        let mark = Mark::new();
        let mut command = std::process::Command::new("sleep");
        set_apart(
            command.arg("1000"),
            Tie::Outlives,
            &crate::confine::Confinement::default(),
            mark,
        );
        let mut child = command.spawn().unwrap();
        // No time at all: it is only remembered.
        Hunt { leader: None, since: None, mark }.kill_until(Instant::now());
        testing::until("it is killed", || {
            // Another test's call may have taken it in hand.
            kill_left();
            child.try_wait().unwrap()
        });
    }
}
