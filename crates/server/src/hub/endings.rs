//! The end of a task: however it comes about, its outcome is written, stored, and only then told.

use std::sync::Arc;

use super::cancels::word_on;
use super::commands::Reach;
use super::effect::{DeviceGoodbye, Effect, Over, Writing};
use super::session::{Broken, Farewell, Goodbyes, Halt, Phase, Sent, Session};
use super::steps::unknown;
use super::{Hub, Moment, Settlement, Via, queue, queue_lazily};
use crate::session::{Cause, Incarnation, Outcome, Task, TaskId};
use crate::store::{Ended, Ending, Record};

/// What is said of a task of which the store has lost something.
const LOST: &str = "The server has lost what it had stored last; the outcome is unknown";

/// Whether somebody learns how a task was cancelled: who cancelled it, or a requester that comes back.
fn is_cancel(cause: &Cause, task: &Task) -> bool {
    match cause {
        Cause::Cancelled(_) => true,
        Cause::RequesterGone => task.terms.is_acknowledged(),
        _ => false,
    }
}

impl Hub {
    /// Ends a session early, wherever it stands.
    pub(super) fn halt(&mut self, moment: &Moment<'_>, id: TaskId, halt: &Halt) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if matches!(halt, Halt::Stopped(Cause::DeviceGone)) {
            session.is_device_gone = true;
        }
        let broken = match halt {
            Halt::Stopped(cause) => Broken::Stopped(cause.clone()),
            Halt::OutOfTime => self.out_of_time(id),
            Halt::Lost => Broken::Failed(LOST.to_owned()),
            Halt::Broken => Broken::Failed(Outcome::broken().error.unwrap_or_default().to_string()),
        };
        let Some(session) = self.sessions.get_mut(&id) else { return };
        match &session.phase {
            Phase::Ending(_) => {}
            Phase::Resting if session.cancel.is_some() => {
                if session.is_device_gone {
                    self.rest_cancelled(id, true);
                }
            }
            Phase::Queued => {
                let device = session.device;
                self.end_broken(id, broken);
                self.free_place(moment, device, id);
            }
            Phase::Thinking(_) | Phase::Resting => self.end_broken(id, broken),
            Phase::Prepared(prepared) => {
                let (calls, response_id) = (prepared.calls.clone(), prepared.response_id.clone());
                let (is_discovery, journal) = (prepared.is_discovery, prepared.journal.clone());
                let results = unknown(&calls, "Stopped", Reach::NeverSent);
                let sent = Sent { response_id, calls, is_discovery, at: moment.now, journal };
                session.phase = Phase::Running(sent);
                self.take_step(moment, id, Settlement::Stopped, results, Some(broken));
            }
            Phase::Running(sent) => {
                let sent = sent.clone();
                if let Halt::Stopped(cause) = halt
                    && self.begin_cancel(moment, id, cause)
                {
                    return;
                }
                let Some(session) = self.sessions.get(&id) else { return };
                let (device, task) = (session.device, session.task.clone());
                let reach = self.stop_command(moment, device, &sent.response_id);
                let results = unknown(&sent.calls, "Stopped", reach);
                let broken = match broken {
                    // A device that cannot say what became of it confirms nothing.
                    Broken::Stopped(cause) if is_cancel(&cause, &task) => {
                        Broken::Ended(Outcome::stopped(&cause, &task).with_word(word_on(reach)))
                    }
                    broken => broken,
                };
                self.take_step(moment, id, Settlement::Stopped, results, Some(broken));
            }
        }
    }

    pub(super) fn end_broken(&mut self, id: TaskId, broken: Broken) {
        let Some(session) = self.sessions.get(&id) else { return };
        let outcome = match broken {
            Broken::Stopped(cause) => Outcome::stopped(&cause, &session.task),
            Broken::Failed(error) => Outcome::failed(error),
            Broken::Ended(outcome) => outcome,
        };
        self.end(id, outcome);
    }

    /// The outcome is known: it is written, stored, and only then sent.
    pub(super) fn end(&mut self, id: TaskId, outcome: Outcome) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if let Some((_, timer)) = session.deadline.take() {
            self.timers.clear(timer);
        }
        self.result_bytes -= session.bytes;
        let farewell = Farewell { outcome: outcome.clone(), goodbyes: None };
        session.phase = Phase::Ending(Box::new(farewell));
        session.memo = None;
        let device = self.parties.handle(session.device);
        let for_device = match device {
            None => DeviceGoodbye::Nothing,
            _ if session.is_device_gone || session.is_own_task() => DeviceGoodbye::Nothing,
            _ if session.cancel.as_ref().is_some_and(|cancel| cancel.is_told) => {
                DeviceGoodbye::Nothing
            }
            Some(handle) if handle.is_flightdeck => DeviceGoodbye::WithoutResult,
            Some(_) => DeviceGoodbye::Whole,
        };
        let requester = session.task.terms.requester.and_then(|id| self.parties.handle(id));
        let writing = Writing {
            task: session.task.clone(),
            outcome,
            history: session.history.clone(),
            for_requester: requester.is_some(),
            for_device,
        };
        self.effects.push(Effect::Write(Box::new(writing)));
    }

    /// The TASK_END is written: the outcome is stored now.
    pub(crate) fn handle_goodbyes(&mut self, moment: &Moment<'_>, id: TaskId, goodbyes: Goodbyes) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Phase::Ending(farewell) = &mut session.phase else { return };
        if farewell.goodbyes.is_some() {
            return;
        }
        let Outcome { ending, error, finish, .. } = farewell.outcome.clone();
        let is_unfetched = session.task.terms.requester.is_none() || !goodbyes.is_whole;
        let kept = moment.at.checked_add(self.config.outcome_time).unwrap_or(moment.at);
        let undelivered_until = session.task.terms.is_acknowledged().then_some(kept);
        let ended = Ended { at: moment.at, ending, error, finish, is_unfetched, undelivered_until };
        session.kept.grow(goodbyes.bytes());
        farewell.goodbyes = Some(goodbyes);
        session.journal.push(Record::Ended(Arc::new(ended)));
        self.commit(id);
    }

    /// Something failed inside the server while it worked on this task.
    pub(crate) fn handle_panic(&mut self, moment: &Moment<'_>, id: TaskId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if let Phase::Ending(farewell) = &mut session.phase {
            if farewell.goodbyes.is_none() {
                farewell.outcome = Outcome::broken();
            }
            return;
        }
        self.halt(moment, id, &Halt::Broken);
    }

    /// The outcome is stored: the TASK_ENDs go out, and everything of the session goes.
    pub(super) fn finish(&mut self, moment: &Moment<'_>, id: TaskId) {
        let Some(mut session) = self.remove(moment, id) else { return };
        let phase = std::mem::replace(&mut session.phase, Phase::Queued);
        let Phase::Ending(farewell) = phase else { return };
        let Farewell { outcome, goodbyes } = *farewell;
        let bytes = goodbyes.as_ref().map_or(0, Goodbyes::bytes);
        let (for_device, for_requester) =
            goodbyes.map_or((None, None), |goodbyes| (goodbyes.device, goodbyes.requester));
        let device = (!session.is_device_gone).then_some(session.device);
        let device = device.and_then(|id| self.parties.handle(id));
        if let (Some(handle), Some(frame)) = (device, for_device) {
            // A device that has done what it was asked to has nothing to stop.
            let queue = if outcome.ending == Ending::Completed { queue_lazily } else { queue };
            queue(handle, frame);
        }
        self.keep_undelivered(moment, &session.task, bytes);
        let requester = session.task.terms.requester.and_then(|id| self.parties.handle(id));
        match (requester, for_requester) {
            (Some(handle), Some(frame)) => queue(handle, frame),
            // It came back while its outcome was being written for nobody.
            (Some(handle), None) => {
                let identity = session.task.terms.requester.unwrap_or_default();
                let via = Via { identity, connection: handle.connection };
                self.deliver(via, vec![id]);
            }
            (None, _) => {}
        }
        if let Some(seat) = self.parties.seat_mut(session.device)
            && seat.commands.has_of(id)
        {
            seat.stopping.insert(id, session.task.clone());
        }
        self.free_place(moment, session.device, id);
        let ended = moment.now;
        self.effects.push(Effect::Over(Box::new(Over { session, outcome, ended })));
    }

    /// Takes a session out of the tables.
    pub(super) fn remove(&mut self, moment: &Moment<'_>, id: TaskId) -> Option<Box<Session>> {
        let session = self.sessions.remove(&id)?;
        self.open_ids.remove(&session.task.session_id);
        let deadline = session.deadline.map(|(_, timer)| timer);
        let cancel = session.cancel.as_ref().and_then(|cancel| cancel.timer);
        let timers = [deadline, session.journal.retry, session.leave, cancel];
        timers.into_iter().flatten().for_each(|timer| self.timers.clear(timer));
        if let Some(identity) = session.task.terms.requester {
            if let Some(identity) = self.parties.get_mut(identity) {
                identity.requested.remove(&id);
            }
            self.parties.forget_unneeded(identity, moment.now);
        }
        Some(session)
    }

    /// Gives a task's place on its device to the next, unless a command of it has still to stop.
    pub(super) fn free_place(&mut self, moment: &Moment<'_>, device: Incarnation, id: TaskId) {
        let Some(seat) = self.parties.seat_mut(device) else { return };
        if seat.commands.has_of(id) {
            return;
        }
        seat.stopping.remove(&id);
        let limits = self.config.places(seat.at_once);
        let started = seat.lane.leave(id, limits);
        seat.rest();
        for next in started {
            if self.sessions.get(&next).is_some_and(|next| matches!(next.phase, Phase::Queued)) {
                self.ask(moment, next);
            }
        }
        self.parties.forget_unneeded(device, moment.now);
    }
}
