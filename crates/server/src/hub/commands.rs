//! The commands that one device has not answered, and the one settlement that each gets.
//!
//! A command is settled by what is first: its results, its deadline, a stop, or the loss of the device. Everything
//! later is counted and ignored. A command that was sent and settled without an answer stays in the table as
//! *stopping* until the device confirms (by answering after all), is gone, or its grace is over: until then its
//! place on the device is taken.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use aip::message::JournalId;
use aip::{CallId, ResponseId, SessionId};
use link::Outbox;

use super::streams::Relay;
use super::timers::TimerKey;
use crate::session::{CallResult, TaskId};

/// Commands of a device that are remembered after they were given up.
const MAX_GIVEN_UP: usize = 32;

/// How a command was settled, for the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settlement {
    /// The device answered.
    Answered,
    /// No answer came in time.
    TimedOut,
    /// The device is gone.
    Lost,
    /// Its session was stopped.
    Stopped,
}

/// How far a command without an answer came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// It never left this server: it was not executed.
    NeverSent,
    /// It was sent: whether it was executed is unknown.
    Sent,
}

/// Why results were not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unclaimed {
    #[error("These results answer no command of yours in this session")]
    Unknown,
    #[error("These results came too late: their command was settled without them")]
    Late,
}

/// A command that its device was sent.
#[derive(Debug)]
pub(super) struct OpenCommand {
    pub(super) task: TaskId,
    pub(super) session_id: SessionId,
    pub(super) call_ids: Vec<CallId>,
    /// How far it came.
    pub(super) place: Place,
    /// The journal of its device that it goes to, if that keeps one.
    pub(super) journal: Option<JournalId>,
    /// Whether its session waits for it, or its device has still to confirm that it stopped.
    pub(super) is_stopping: bool,
    /// When its time is over; none while its device is away.
    pub(super) timer: Option<TimerKey>,
    /// What is left of its time while its device is away.
    pub(super) left: Duration,
    /// The streams of its requester, where it has any.
    pub(super) relay: Option<Box<Relay>>,
}

/// How far a command came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// It is in its device's outgoing queue, or was.
    Queued(u64),
    /// It is known: there is no connection of its device, or a newer one.
    Known(Reach),
}

impl OpenCommand {
    /// How far it came on a connection whose queue was aborted, which was taken up to `taken`.
    pub(super) const fn reach(&self, taken: u64) -> Reach {
        match self.place {
            Place::Queued(place) if place >= taken => Reach::NeverSent,
            Place::Queued(_) => Reach::Sent,
            Place::Known(reach) => reach,
        }
    }

    /// Takes it out of the queue of a connection, if it still waits there.
    pub(super) fn withdraw(&self, outbox: Option<&Outbox>) -> Reach {
        match (self.place, outbox) {
            (Place::Known(reach), _) => reach,
            (Place::Queued(place), Some(outbox)) if outbox.withdraw(place) => Reach::NeverSent,
            (Place::Queued(_), _) => Reach::Sent,
        }
    }
}

/// The commands of one device. There is at most one for each place of its lane.
#[derive(Debug, Default)]
pub(super) struct Commands {
    open: BTreeMap<ResponseId, OpenCommand>,
    /// The last ones that were given up, by which results that come even later differ from invented ones.
    given_up: VecDeque<ResponseId>,
}

impl Commands {
    pub(super) fn insert(&mut self, response_id: ResponseId, command: OpenCommand) {
        self.open.insert(response_id, command);
    }

    pub(super) fn get(&self, response_id: &ResponseId) -> Option<&OpenCommand> {
        self.open.get(response_id)
    }

    pub(super) fn get_mut(&mut self, response_id: &ResponseId) -> Option<&mut OpenCommand> {
        self.open.get_mut(response_id)
    }

    pub(super) fn remove(&mut self, response_id: &ResponseId) -> Option<OpenCommand> {
        self.open.remove(response_id)
    }

    /// Takes out the command that these results answer.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn claim(
        &mut self,
        session_id: Option<&SessionId>,
        response_id: Option<&ResponseId>,
    ) -> Result<OpenCommand, Unclaimed> {
        let response_id = response_id.ok_or(Unclaimed::Unknown)?;
        let known = self.open.get(response_id).ok_or_else(|| self.unclaimed(response_id))?;
        if session_id != Some(&known.session_id) {
            return Err(Unclaimed::Unknown);
        }
        self.open.remove(response_id).ok_or(Unclaimed::Unknown)
    }

    fn unclaimed(&self, response_id: &ResponseId) -> Unclaimed {
        if self.given_up.contains(response_id) { Unclaimed::Late } else { Unclaimed::Unknown }
    }

    /// Takes in those of another device.
    pub(super) fn absorb(&mut self, other: Self) {
        self.open.extend(other.open);
        other.given_up.into_iter().rev().for_each(|one| self.give_up(one));
    }

    /// Remembers a command that did not confirm its stop in time.
    pub(super) fn give_up(&mut self, response_id: ResponseId) {
        self.given_up.truncate(MAX_GIVEN_UP - 1);
        self.given_up.push_front(response_id);
    }

    /// Of each command its id, in the order in which they were decided.
    pub(super) fn ids(&self) -> Vec<ResponseId> {
        self.open.keys().cloned().collect()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&ResponseId, &mut OpenCommand)> {
        self.open.iter_mut()
    }

    pub(super) fn take_all(&mut self) -> BTreeMap<ResponseId, OpenCommand> {
        std::mem::take(&mut self.open)
    }

    /// Whether a task still has a command here.
    pub(super) fn has_of(&self, task: TaskId) -> bool {
        self.open.values().any(|command| command.task == task)
    }

    /// Whether none that was given up is remembered.
    pub(super) fn is_forgetful(&self) -> bool {
        self.given_up.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }
}

/// Puts results into the order of the calls; a missing one counts as a failure.
pub(super) fn in_order(call_ids: &[CallId], mut results: Vec<CallResult>) -> Vec<CallResult> {
    let as_asked = results.len() == call_ids.len()
        && results
            .iter()
            .zip(call_ids)
            .all(|(result, id)| result.call_id.as_ref().is_none_or(|named| named == id));
    if as_asked {
        for (result, id) in results.iter_mut().zip(call_ids) {
            result.call_id.get_or_insert_with(|| id.clone());
        }
        return results;
    }
    let mut take = |id: &CallId| {
        let found = results.iter().position(|result| result.call_id.as_ref() == Some(id));
        found.map(|at| results.swap_remove(at))
    };
    let missing = |id: &CallId| CallResult::failure(Some(id.clone()), "no result");
    call_ids.iter().map(|id| take(id).unwrap_or_else(|| missing(id))).collect()
}
