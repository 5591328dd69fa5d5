//! The steps of a task: the agent is asked, its decision is stored and sent, and what settles it is put into the history.

use std::sync::Arc;

use aip::Payload;
use aip::message::Feature;
use tokio_util::sync::DropGuard;

use super::commands::{OpenCommand, Place, Reach};
use super::effect::Effect;
use super::session::{Broken, Phase, Prepared, Sent, Session};
use super::streams::Relay;
use super::timers::Due;
use super::{Hub, Moment, Settlement};
use crate::agent::{Memo, Question, Remaining, Usage};
use crate::session::{
    Call, CallResult, CallStatus, Cause, Finish, Outcome, Step, TaskId, step_ended, step_runs,
};
use crate::store::Record;

/// What an agent advises, made ready to be carried out.
pub(crate) struct Advice {
    pub(crate) next: Next,
    pub(crate) notes: Vec<Payload>,
    pub(crate) usage: Usage,
    pub(crate) memo: Memo,
}

/// What comes next in a task.
pub(crate) enum Next {
    Send(Prepared),
    Finish(Finish),
    Fail(String),
}

impl Hub {
    /// Has the agent asked what comes next.
    pub(super) fn ask(&mut self, moment: &Moment<'_>, id: TaskId) {
        let device = self.sessions.get(&id).map(|session| session.device);
        let is_away = device.is_some_and(|device| {
            self.parties.handle(device).is_none() && self.is_expected(device)
        });
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if is_away {
            session.phase = Phase::Resting;
            return self.commit(id);
        }
        session.phase = Phase::Thinking(None);
        let limit = self.config.session_limit(session.task.terms.no_time_limit);
        let (deadline, _) = *session.deadline.get_or_insert_with(|| {
            let at = moment.now + limit;
            (at, self.timers.set(at, Due::Session(id)))
        });
        let steps = u32::try_from(session.history.len()).unwrap_or(u32::MAX);
        let remaining = Remaining {
            steps: self.config.max_steps.saturating_sub(steps),
            time: deadline.saturating_duration_since(moment.now),
        };
        let question = Question {
            task: session.task.clone(),
            facts: self.parties.seat(session.device).and_then(|seat| seat.facts.clone()),
            tools: session.tools.clone(),
            history: session.history.clone(),
            remaining,
            memo: session.memo.clone(),
        };
        self.effects.push(Effect::Ask(Box::new(question)));
    }

    /// The agent takes a while; dropping the guard cancels its thought.
    pub(crate) fn handle_thinking(&mut self, id: TaskId, guard: DropGuard) {
        if let Some(Phase::Thinking(thinking)) =
            self.sessions.get_mut(&id).map(|session| &mut session.phase)
        {
            *thinking = Some(guard);
            self.commit(id);
        }
    }

    /// Takes what the agent advises. Advice that comes when the session goes no further is dropped.
    pub(crate) fn handle_advice(&mut self, moment: &Moment<'_>, id: TaskId, advice: Advice) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if !matches!(session.phase, Phase::Thinking(_)) {
            return;
        }
        let Advice { next, notes, usage, memo } = advice;
        session.memo = memo;
        if !notes.is_empty() || usage != Usage::default() {
            let notes = notes.into();
            session.journal.push(Record::Noted { at: moment.at, notes, usage });
        }
        match next {
            Next::Send(_) if self.is_suspended(id) => {
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.phase = Phase::Resting;
                }
                self.commit(id);
            }
            Next::Send(prepared) => self.prepare(moment, id, prepared),
            Next::Finish(finish) => self.end(id, Outcome::completed(finish)),
            Next::Fail(error) => self.end(id, Outcome::given_up(error)),
        }
    }

    /// Notes a decided step, which is sent once that is stored.
    fn prepare(&mut self, moment: &Moment<'_>, id: TaskId, prepared: Prepared) {
        if let Some(broken) = self.limit(moment, id) {
            return self.end_broken(id, broken);
        }
        let device = self.sessions.get(&id).map(|session| session.device);
        let journal = device.and_then(|device| self.journal_of(device));
        if let Some(recall) = device.and_then(|device| self.recall_mut(device)) {
            recall.record.newest = Some(prepared.response_id.clone());
        }
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let prepared = Prepared { journal, ..prepared };
        session.journal.push(Record::Decided {
            at: moment.at,
            response_id: prepared.response_id.clone(),
            calls: prepared.calls.clone(),
            is_discovery: prepared.is_discovery,
            device: session.device,
            journal: prepared.journal.clone(),
        });
        session.phase = Phase::Prepared(prepared);
        self.commit(id);
    }

    /// Why a session may take no further step.
    fn limit(&self, moment: &Moment<'_>, id: TaskId) -> Option<Broken> {
        let session = self.sessions.get(&id)?;
        if session.deadline.is_some_and(|(deadline, _)| deadline <= moment.now) {
            return Some(self.out_of_time(id));
        }
        if self.is_closed {
            return Some(Broken::Stopped(Cause::Shutdown));
        }
        // Were it to wait for room, the others that have some would wait for it too.
        let room = self.config.max_bytes_in_flight;
        if self.result_bytes > room && session.bytes > 0 {
            let error = format!("Tasks that go on have more than {room} bytes of results");
            return Some(Broken::Failed(error));
        }
        let max_steps = self.config.max_steps;
        let is_over = session.history.len() >= max_steps as usize;
        is_over.then(|| Broken::Failed(format!("Task did not end within {max_steps} steps")))
    }

    pub(super) fn out_of_time(&self, id: TaskId) -> Broken {
        let wants_none = self.sessions.get(&id).is_some_and(|own| own.task.terms.no_time_limit);
        let limit = self.config.session_limit(wants_none).as_secs();
        Broken::Failed(format!("Task did not end within {limit} s (the server's session_timeout)"))
    }

    /// Sends a decided step, now that it is stored.
    pub(super) fn dispatch(&mut self, moment: &Moment<'_>, id: TaskId) {
        let Some(device) = self.sessions.get(&id).map(|session| session.device) else { return };
        let journal = self.journal_of(device);
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if matches!(&session.phase, Phase::Prepared(prepared) if prepared.journal != journal) {
            return self.readdress(moment, id);
        }
        let phase = std::mem::replace(&mut session.phase, Phase::Queued);
        let Phase::Prepared(prepared) = phase else { return session.phase = phase };
        let Prepared { response_id, calls, is_discovery, frame, journal } = prepared;
        let sent = Sent { response_id, calls, is_discovery, at: moment.now, journal };
        session.last_command = Some(sent.response_id.clone());
        session.phase = Phase::Running(sent.clone());
        let (device, timeout) = (session.device, session.task.command_timeout);
        let n = session.step_number();
        self.show(id, |task| {
            let shown = |call| step_runs(&task.session_id, n, call, moment.text());
            sent.calls.iter().map(shown).collect()
        });
        // The queue decides once whether it is sent. A device that is away, or goes right now, gets it when it is back.
        let is_expected = sent.journal.is_some() && self.is_expected(device);
        let place = self.parties.handle(device).and_then(|handle| handle.outbox.push(frame).ok());
        let is_queued = place.is_some();
        let waits = is_expected.then_some(Place::Known(Reach::NeverSent));
        let place = place.map(Place::Queued).or(waits);
        let (Some(place), Some(seat)) = (place, self.parties.seat_mut(device)) else {
            let results = unknown(&sent.calls, "The device disconnected", Reach::NeverSent);
            let broken = Some(Broken::Stopped(Cause::DeviceGone));
            return self.take_step(moment, id, Settlement::Lost, results, broken);
        };
        let due = || Due::Command(device, sent.response_id.clone());
        let timer = is_queued.then(|| self.timers.set(moment.now + timeout, due()));
        let Some(session) = self.sessions.get(&id) else { return };
        self.effects.push(Effect::Stepped(session.task.clone(), n, sent.calls.clone()));
        let command = OpenCommand {
            task: id,
            session_id: session.task.session_id.clone(),
            call_ids: sent.calls.iter().filter_map(|call| call.call_id.clone()).collect(),
            place,
            journal: sent.journal.clone(),
            is_stopping: false,
            timer,
            left: timeout,
            relay: Relay::of(&session.task, &sent.calls, n),
        };
        seat.commands.insert(sent.response_id, command);
    }

    /// Puts a settled step into the history, and goes on or ends.
    pub(super) fn take_step(
        &mut self,
        moment: &Moment<'_>,
        id: TaskId,
        settlement: Settlement,
        results: Vec<CallResult>,
        broken: Option<Broken>,
    ) {
        let device = self.sessions.get(&id).map(|session| session.device);
        let is_told = device
            .and_then(|device| self.parties.handle(device))
            .is_some_and(|device| device.has(Feature::Ack));
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Phase::Running(sent) = &session.phase else { return };
        let sent = sent.clone();
        let is_told = is_told && settlement == Settlement::Answered;
        session.settling.push_back(is_told.then(|| sent.response_id.clone()));
        let took = moment.now.saturating_duration_since(sent.at);
        self.effects.push(Effect::Settled(settlement, took));
        let bytes = results.iter().map(CallResult::bytes).sum::<usize>();
        session.bytes += bytes;
        session.kept.grow(bytes);
        self.result_bytes += bytes;
        let results = Arc::<[CallResult]>::from(results);
        session.journal.push(Record::Answered { at: moment.at, results: results.clone() });
        if sent.is_discovery {
            session.note_tools(&results);
        }
        let (n, calls) = (session.step_number(), sent.calls.clone());
        let step = Step { calls, results: results.clone(), is_discovery: sent.is_discovery };
        Arc::make_mut(&mut session.history).push(step);
        let elapsed = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.show(id, |task| {
            let shown = |step| step_ended(&task.session_id, n, step, elapsed, moment.text());
            sent.calls.iter().zip(results.iter()).map(shown).collect()
        });
        if self.sessions.get(&id).is_some_and(|session| session.cancel.is_some()) {
            return self.rest_cancelled(id, broken.is_some());
        }
        match broken.or_else(|| self.too_much(id)) {
            None => self.ask(moment, id),
            Some(broken) => self.end_broken(id, broken),
        }
    }

    /// Why a task may collect no more, if it has too much.
    fn too_much(&self, id: TaskId) -> Option<Broken> {
        let limit = self.config.max_task_bytes;
        let is_over = self.sessions.get(&id).is_some_and(|session| session.bytes > limit);
        is_over.then(|| Broken::Failed(format!("Task has more than {limit} bytes of results")))
    }
}

impl Session {
    /// Notes the device's tools, if that is what came.
    pub(super) fn note_tools(&mut self, results: &[CallResult]) {
        let found = results.first().filter(|found| found.status == CallStatus::Success);
        if let Some(tools) = found.and_then(|found| found.result.clone()) {
            self.tools = Some(tools);
        }
    }
}

/// The results of a command without an answer: what happened, and what is known of it.
pub(super) fn unknown(calls: &[Call], what: &str, reach: Reach) -> Vec<CallResult> {
    let known = match reach {
        Reach::NeverSent => "it was never sent",
        Reach::Sent => "its outcome is unknown",
    };
    let error = format!("{what}; {known}");
    calls.iter().map(|call| CallResult::failure(call.call_id.clone(), &error)).collect()
}
