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
    ops::{Range, RangeInclusive},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::{
    listing::{Status, highest_number, latest_number, numbers},
    mark::Mark,
};

/// How long descendants are looked for that appear while others are being killed. Only a program
/// that forks as fast as it is killed needs any of it.
const SEARCH_TIME: Duration = Duration::from_secs(1);

/// How many marks are kept whose bearers may not all be dead. The oldest is forgotten first.
const MAX_LEFT: usize = 64;

/// How often all processes are listed to find who was being forked during the first time.
const SWEEPS: usize = 2;

/// How often they are listed at most where the latest number isn't known.
const BLIND_SWEEPS: usize = 8;

/// More process numbers than the system hands out in a second.
const NUMBERS_A_SECOND: u32 = 81_920;

/// How many numbers are tried one by one at most. Of more, only those are that are listed.
const FEW_NUMBERS: i32 = 256;

/// How many numbers at most are looked at [at once](Hunt::is_over_at_once).
const NUMBERS_AT_ONCE: usize = 8;

/// How often at most it is looked at once for who came meanwhile.
const ROUNDS_AT_ONCE: usize = 3;

const ALL_NUMBERS: RangeInclusive<i32> = 1..=i32::MAX;

/// In the place of the number up to which all were looked at: nobody was.
const NOBODY_YET: i32 = i32::MAX;

/// The marks of descendants that could not surely be killed in time.
static LEFT: Mutex<Vec<Mark>> = Mutex::new(Vec::new());

/// Searches anew for all that could not surely be killed before.
pub(super) fn left_over() -> Vec<Chase> {
    let marks = std::mem::take(&mut *left());
    let hunt = |mark| Hunt { leader: None, since: None, mark: Some(mark) };
    marks.into_iter().map(|mark| Chase::of(hunt(mark))).collect()
}

/// Whether there is anybody who could not surely be killed before.
pub(super) fn is_anybody_left() -> bool {
    !left().is_empty()
}

/// How long it takes at least until the numbers come round, where this is the highest one.
fn youth(highest_number: i32) -> Duration {
    Duration::from_secs(1) * highest_number.max(0).cast_unsigned() / NUMBERS_A_SECOND
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

/// A search for all that a [`Hunt`] is for, which kills them. It may be interrupted.
pub(crate) struct Chase {
    hunt: Hunt,
    /// All with a number up to this one were looked at, once the first round is over.
    seen: Option<i32>,
    /// When the search is given up.
    deadline: Instant,
}

impl Chase {
    pub(super) fn of(hunt: Hunt) -> Self {
        Self { hunt, seen: None, deadline: Instant::now() + SEARCH_TIME }
    }

    /// Kills all it finds, until `pause` at the latest; a first round is always finished. True when it
    /// is over: nobody is left, or the time is up and who was not caught is [left over](left_over).
    pub(crate) fn go_on(&mut self, pause: Option<Instant>) -> bool {
        let until = pause.map_or(self.deadline, |pause| pause.min(self.deadline));
        if self.is_sure_by(until) {
            return true;
        }
        let is_late = Instant::now() >= self.deadline;
        if is_late {
            self.leave();
        }
        is_late
    }

    /// Kills all; false when the time is up before it is sure that nobody is left.
    fn is_sure_by(&mut self, until: Instant) -> bool {
        let Some(latest) = latest_number() else {
            return self.hunt.kill_listed(BLIND_SWEEPS, &ALL_NUMBERS);
        };
        let seen =
            self.seen.or_else(|| self.hunt.numbers_until(latest).map(|newer| newer.start - 1));
        let mut round = (seen.unwrap_or(NOBODY_YET), latest);
        while round.0 != round.1 {
            self.hunt.kill_round(round.0, round.1);
            self.seen = Some(round.1);
            round = (round.1, latest_number().unwrap_or_default());
            if Instant::now() >= until {
                return round.0 == round.1;
            }
        }
        true
    }

    fn leave(&self) {
        let Some(mark) = self.hunt.mark else { return };
        let mut left = left();
        if left.len() == MAX_LEFT {
            left.remove(0);
        }
        left.push(mark);
    }
}

impl Hunt {
    /// Looks for all where that takes no time: few numbers were handed out since the leader's start, most often none.
    /// False if somebody may be left.
    pub(super) fn is_over_at_once(self) -> bool {
        let mut seen = self.leader.map(Pid::as_raw_pid);
        for _ in 0..ROUNDS_AT_ONCE {
            let latest = latest_number();
            let Some(range) = latest.and_then(|latest| self.numbers_until(latest)) else {
                return false;
            };
            let newer = range.start.max(seen.map_or(0, |seen| seen + 1))..range.end;
            if newer.is_empty() {
                return true;
            }
            if newer.len() > NUMBERS_AT_ONCE {
                return false;
            }
            seen = latest;
            for id in newer {
                self.signal_number(id, Signal::KILL);
            }
        }
        false
    }

    /// Signals all that are there now.
    pub(super) fn signal(self, signal: Signal) {
        let newer = latest_number().and_then(|latest| self.numbers_until(latest));
        let newer = newer.unwrap_or(1..i32::MAX);
        for id in numbers().filter(|id| newer.contains(id)) {
            self.signal_number(id, signal);
        }
    }

    /// Kills all with a number that was handed out after `seen`, up to `latest`.
    fn kill_round(self, seen: i32, latest: i32) {
        if seen > latest {
            // The numbers have come round to the bottom; or nobody was looked at yet.
            self.kill_listed(SWEEPS, &ALL_NUMBERS);
        } else if latest - seen > FEW_NUMBERS {
            self.kill_listed(SWEEPS, &(seen + 1..=latest));
        } else {
            for id in seen + 1..=latest {
                self.signal_number(id, Signal::KILL);
            }
        }
    }

    /// Kills all among `among` that are listed, until nobody new is found and nobody has vanished
    /// meanwhile, who may have forked; false if it comes to that never.
    fn kill_listed(self, sweeps: usize, among: &RangeInclusive<i32>) -> bool {
        let mut struck = HashSet::new();
        (0..sweeps).any(|_| {
            let listed = numbers().filter(|id| among.contains(id));
            listed.fold(true, |is_quiet, id| match self.signal_number(id, Signal::KILL) {
                Found::Descendant => !struck.insert(id) && is_quiet,
                Found::Stranger => is_quiet,
                Found::Nobody => false,
            })
        })
    }

    /// The numbers after the leader's up to the latest, if its descendants surely have one of those.
    /// They are handed out up to a highest one and then from the bottom again: only as long as they
    /// cannot have come round since its start is a leader surely below its descendants, and only if
    /// the latest is still above its own.
    pub(super) fn numbers_until(self, latest: i32) -> Option<Range<i32>> {
        let is_young = self.since.is_some_and(|since| since.elapsed() < youth(highest_number()));
        let leader = self.leader.filter(|_| is_young)?.as_raw_pid();
        (leader <= latest).then_some(leader + 1..latest + 1)
    }

    /// Signals the process with this number if it is a descendant. Most are none, which is seen at
    /// little cost; one that is is looked at again when a descriptor holds on to it, so that one that
    /// gets the same number next is never hit.
    fn signal_number(self, id: i32, signal: Signal) -> Found {
        let Some(process) = Pid::from_raw(id) else { return Found::Nobody };
        match self.is_for(process) {
            None => Found::Nobody,
            Some(false) => Found::Stranger,
            Some(true) => self.signal_descendant(process, signal),
        }
    }

    fn signal_descendant(self, process: Pid, signal: Signal) -> Found {
        let held = pidfd_open(process, PidfdFlags::empty()).ok();
        let Some(held) = held.filter(|_| self.is_for(process) == Some(true)) else {
            return Found::Nobody;
        };
        // An error means that it has ended.
        let _ = pidfd_send_signal(held, signal);
        Found::Descendant
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
    use std::io::{BufRead, BufReader};

    use super::*;
    use crate::group::{Group, testing};

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
    fn descendants_of_a_leader_of_a_fraction_of_a_second_are_looked_for_above_it_too() {
        let then = Instant::now().checked_sub(Duration::from_millis(150));
        assert_eq!(hunt(50, then).numbers_until(52), Some(51..53));
    }

    /// A leader that runs this, once it has said something, and its hunt.
    fn start(script: &str) -> (std::process::Child, Hunt) {
        use crate::group::{Tie, set_apart};
        let mut command = std::process::Command::new("sh");
        command.args(["-c", script]).stdout(std::process::Stdio::piped());
        set_apart(&mut command, Tie::DiesWithDevice, &crate::confine::Confinement::default(), None);
        let mut child = command.spawn().unwrap();
        let since = Some(Instant::now());
        std::io::Read::read(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let hunt = hunt(child.id(), since);
        (child, hunt)
    }

    /// Whether a hunt for a leader that runs this is over at once, and a number that the leader tells.
    fn is_over_at_once_for(script: &str) -> (bool, u32) {
        let (mut child, hunt) = start(script);
        let mut told = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut told).unwrap();
        let is_over = hunt.is_over_at_once();
        child.kill().unwrap();
        child.wait().unwrap();
        (is_over, told.trim().parse().unwrap())
    }

    #[test]
    fn a_hunt_among_few_is_over_at_once_and_kills_who_has_left() {
        if latest_number().is_none() {
            return;
        }
        let many =
            "for n in 1 2 3 4 5 6 7 8 9; do sleep 0 & done; wait; echo; echo 0; exec sleep 1000";
        assert!(!is_over_at_once_for(many).0);
        // Other tests start processes, too: not always are there few.
        testing::until("there is nobody", || {
            is_over_at_once_for("echo; echo 0; exec sleep 1000").0.then_some(())
        });
        // One that makes a group of its own, and its child.
        let leaves = "timeout 1000 sh -c 'echo; echo $PPID; exec sleep 1000' & exec sleep 1000";
        let stray = testing::until("somebody is found", || {
            let (is_over, stray) = is_over_at_once_for(leaves);
            if !is_over {
                Group::led_by(stray).unwrap().kill_members();
            }
            is_over.then_some(stray)
        });
        testing::all_gone(&[stray]);
    }

    #[test]
    fn who_was_left_is_found_again_by_the_mark_alone() {
        use crate::group::{Tie, set_apart};
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
        Chase::of(Hunt { leader: None, since: None, mark }).leave();
        testing::until("it is killed", || {
            // Another test's call may have taken it in hand.
            left_over().iter_mut().all(|chase| chase.go_on(None));
            child.try_wait().unwrap()
        });
    }
}
