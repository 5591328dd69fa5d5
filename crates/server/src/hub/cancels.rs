//! How a task is cancelled whose command runs: the cancel is stored, the device told, and its word waited for.

use std::sync::Arc;

use aip::message::{Feature, Word};
use aip::{RequestId, ResponseId};

use super::commands::Reach;
use super::parties::Via;
use super::session::{Cancelling, Halt, Phase, Session};
use super::steps::unknown;
use super::timers::Due;
use super::{Hub, Moment, Settlement, queue};
use crate::session::{Cause, Incarnation, Outcome, Stamp, Task, TaskId, fresh_response_id};
use crate::store::Record;

/// What is said when the device did not say what became of a command.
const NOT_CONFIRMED: &str = "not_confirmed";

/// What is said when it never got there.
pub(super) const NEVER_SENT: &str = "never_sent";

/// What is said of a cancelled command that its device has no word on.
pub(super) const fn word_on(reach: Reach) -> &'static str {
    match reach {
        Reach::NeverSent => NEVER_SENT,
        Reach::Sent => NOT_CONFIRMED,
    }
}

impl Hub {
    /// Begins to cancel a task whose command was sent, if its device can say what became of it: `false` if it cannot.
    pub(super) fn begin_cancel(&mut self, moment: &Moment<'_>, id: TaskId, cause: &Cause) -> bool {
        let Some(session) = self.sessions.get(&id) else { return false };
        if session.cancel.is_some() {
            return true;
        }
        let device = self.parties.get(session.device);
        let can_say = device.is_some_and(|device| match device.handle() {
            Some(handle) => handle.has(Feature::Cancel),
            None => device.is_expected() || device.connection().is_some(),
        });
        let is_known = matches!(cause, Cause::Cancelled(_) | Cause::RequesterGone | Cause::KeyGone);
        if !can_say || !is_known {
            return false;
        }
        self.set_cancelling(moment, id, cause.clone());
        true
    }

    /// Has a cancel stored.
    fn set_cancelling(&mut self, moment: &Moment<'_>, id: TaskId, cause: Cause) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let why = Outcome::stopped(&cause, &session.task).error.unwrap_or_default();
        let by = match &cause {
            Cause::Cancelled(by) => Some(by.clone()),
            _ => None,
        };
        session.journal.push(Record::Cancelling { at: moment.at, by, why });
        let (is_committed, is_told) = (false, false);
        session.cancel = Some(Cancelling { cause, is_committed, is_told, word: None, timer: None });
        self.commit(id);
    }

    /// The store has a task's cancel: its device is told, and has a while to say what became of its command.
    pub(super) fn handle_cancel_stored(&mut self, moment: &Moment<'_>, id: TaskId) {
        let at = moment.now + self.config.cancel_wait;
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let device = session.device;
        let Some(cancel) = session.cancel.as_mut().filter(|cancel| !cancel.is_committed) else {
            return;
        };
        cancel.is_committed = true;
        cancel.timer = Some(self.timers.set(at, Due::Cancel(id)));
        self.tell_cancels(moment, device);
        self.end_if_cancelled(id);
    }

    /// Tells a device of the cancels that it was not told of.
    pub(super) fn tell_cancels(&mut self, moment: &Moment<'_>, device: Incarnation) {
        let Some(handle) = self.parties.handle(device).cloned() else { return };
        let lane = self.parties.seat(device).map(|seat| seat.lane.sessions()).unwrap_or_default();
        for id in lane {
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            let Phase::Running(_) = &session.phase else { continue };
            let Some(cancel) = session.cancel.as_mut().filter(|own| own.is_committed) else {
                continue;
            };
            cancel.is_told = true;
            let outcome = Outcome::stopped(&cancel.cause, &session.task);
            let stamp = Stamp { response_id: fresh_response_id(moment.ambient), at: moment.text() };
            queue(&handle, outcome.encode_without_result(&session.task, stamp));
        }
    }

    /// A device says what became of a command that it was told to stop.
    pub(crate) fn handle_stopped(&mut self, via: Via, response_id: &ResponseId, word: Word) {
        if self.parties.current(via).is_none() {
            return;
        }
        let is_of = |session: &Session| {
            session.device == via.identity
                && session.cancel.is_some()
                && session.last_command.as_ref() == Some(response_id)
        };
        let lane = self.parties.seat(via.identity).map(|seat| seat.lane.sessions());
        let mut all = lane.into_iter().flatten();
        let found = all.find(|id| self.sessions.get(id).is_some_and(|one| is_of(one)));
        if let Some(id) = found {
            self.note_word(id, word.as_str());
            self.end_if_cancelled(id);
        }
    }

    /// Notes what is known of a cancelled task's command; the first word counts.
    pub(super) fn note_word(&mut self, id: TaskId, word: &'static str) {
        let cancel = self.sessions.get_mut(&id).and_then(|session| session.cancel.as_mut());
        if let Some(cancel) = cancel {
            cancel.word.get_or_insert(word);
        }
    }

    /// The wait for a device's word is over.
    pub(super) fn handle_cancel_due(&mut self, moment: &Moment<'_>, id: TaskId) {
        self.note_word(id, NOT_CONFIRMED);
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if let Some(cancel) = &mut session.cancel {
            cancel.timer = None;
        }
        if let Phase::Running(sent) = &session.phase {
            let (sent, device) = (sent.clone(), session.device);
            let reach = self.stop_command(moment, device, &sent.response_id);
            let results = unknown(&sent.calls, "Stopped", reach);
            return self.take_step(moment, id, Settlement::Stopped, results, None);
        }
        self.end_if_cancelled(id);
    }

    /// Its command is settled: a cancelled task decides no further step, and ends once there is a word on it.
    pub(super) fn rest_cancelled(&mut self, id: TaskId, is_lost: bool) {
        if is_lost {
            self.note_word(id, NOT_CONFIRMED);
        }
        if let Some(session) = self.sessions.get_mut(&id) {
            session.phase = Phase::Resting;
        }
        self.end_if_cancelled(id);
        self.commit(id);
    }

    /// Ends a cancelled task once its command is settled and there is a word on it.
    pub(super) fn end_if_cancelled(&mut self, id: TaskId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(cancel) = &mut session.cancel else { return };
        let (Phase::Resting, Some(word)) = (&session.phase, cancel.word) else { return };
        let (cause, timer) = (cancel.cause.clone(), cancel.timer.take());
        timer.into_iter().for_each(|timer| self.timers.clear(timer));
        let outcome = Outcome::stopped(&cause, &session.task).with_word(word);
        self.end(id, outcome);
    }

    /// A requester wants its task to end; one that is over is not touched.
    pub(crate) fn cancel_of(
        &mut self,
        moment: &Moment<'_>,
        via: Via,
        task: Option<TaskId>,
        request_id: Option<&RequestId>,
    ) -> Option<Arc<Task>> {
        let client = self.parties.current(via)?.id().to_string();
        let requested = &self.parties.get(via.identity)?.requested;
        let is_named = |id: TaskId| match task {
            Some(task) => id == task,
            None => {
                let own = self.sessions.get(&id).and_then(|own| own.task.terms.request_id.as_ref());
                own.is_some() && own == request_id
            }
        };
        let found = requested.iter().copied().find(|id| is_named(*id))?;
        let session = self.sessions.get(&found).filter(|session| session.may_be_cancelled())?;
        let known = session.task.clone();
        self.halt(moment, found, &Halt::Stopped(Cause::Cancelled(client.into())));
        Some(known)
    }
}
