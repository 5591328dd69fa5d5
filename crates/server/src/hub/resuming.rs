//! What becomes of a device's commands when its connection is lost and when it is back: each is sent again, goes on, or is
//! settled, as the device's journal and the store together know.

use std::collections::{BTreeMap, BTreeSet};

use aip::ResponseId;
use aip::message::{Feature, Held, HeldState, Instruction, JournalId};

use super::cancels::NEVER_SENT;
use super::commands::{Place, Reach};
use super::session::{Broken, Halt, Phase, Prepared};
use super::steps::unknown;
use super::timers::{Due, Timers};
use super::{Hub, Moment, Settlement, Via};
use crate::handle::Handle;
use crate::session::{Incarnation, TaskId, encode_command};
use crate::store::Record;

impl Hub {
    /// The journal that a device's commands go to, if it keeps one.
    pub(super) fn journal_of(&self, device: Incarnation) -> Option<JournalId> {
        let record = &self.recall(device)?.record;
        record.journal.clone().filter(|_| record.resumes)
    }

    /// Whether a device is here, or is to come back.
    pub(super) fn is_expected(&self, device: Incarnation) -> bool {
        self.parties
            .get(device)
            .is_some_and(|device| device.connection().is_some() || device.is_expected())
    }

    /// The connection of a device is lost, whose queue was taken up to `taken`: the time of its commands stands still.
    pub(super) fn park_commands(
        &mut self,
        moment: &Moment<'_>,
        device: Incarnation,
        lost: &Handle,
        taken: u64,
    ) {
        let heard = moment.now.checked_sub(lost.outbox.silence()).unwrap_or(moment.now);
        let Some(seat) = self.parties.seat_mut(device) else { return };
        for (_, command) in seat.commands.iter_mut() {
            command.place = Place::Known(command.reach(taken));
            if let Some(timer) = command.timer.take_if(|_| !command.is_stopping) {
                command.left = Timers::at(timer).saturating_duration_since(heard);
                self.timers.clear(timer);
            }
        }
    }

    /// Gives what waits for one device to another, which has its id now, beside what that has to do itself.
    pub(super) fn pass_seat(&mut self, moment: &Moment<'_>, from: Incarnation, to: Incarnation) {
        let Some(seat) = self.parties.seat_mut(from) else { return };
        let tasks = seat.lane.sessions();
        let (work, window) = (seat.take_work(), seat.window.take());
        for task in tasks {
            if let Some(session) = self.sessions.get_mut(&task) {
                session.device = to;
            }
        }
        window.into_iter().for_each(|timer| self.timers.clear(timer));
        let Some(seat) = self.parties.seat_mut(to) else { return };
        let limits = self.config.places(seat.at_once);
        seat.add_work(work, limits);
        let lane = seat.lane.sessions();
        for (response_id, command) in seat.commands.iter_mut() {
            if let Some(timer) = command.timer.take() {
                self.timers.clear(timer);
                let due = Due::Command(to, response_id.clone());
                command.timer = Some(self.timers.set(Timers::at(timer), due));
            }
        }
        lane.into_iter().for_each(|task| self.settle_in(task));
        self.parties.forget_unneeded(from, moment.now);
    }

    /// A device is here again, with what its journal holds: says what becomes of each of that, and goes on with its tasks.
    pub(super) fn resume_device(
        &mut self,
        moment: &Moment<'_>,
        device: Incarnation,
        listed: &[Held],
    ) -> BTreeMap<ResponseId, Instruction> {
        let mut told: BTreeMap<_, _> =
            listed.iter().map(|held| (held.response_id.clone(), Instruction::Discard)).collect();
        let open = self.parties.seat(device).map(|seat| seat.commands.ids()).unwrap_or_default();
        for response_id in open {
            let held = listed.iter().find(|held| held.response_id == response_id);
            match held.filter(|_| self.is_awaited(device, &response_id)) {
                Some(held) => {
                    self.arm(moment, device, &response_id, Place::Known(Reach::Sent));
                    let instruction = match held.state {
                        HeldState::Done => Instruction::Send,
                        HeldState::Received | HeldState::Running => Instruction::Continue,
                    };
                    told.insert(response_id, instruction);
                }
                None => self.resume_command(moment, device, &response_id),
            }
        }
        self.tell_cancels(moment, device);
        self.give_places(device);
        self.wake_lane(moment, device);
        told
    }

    /// Of the commands that a device listed, the tasks of those that something else has settled since it came, and whose
    /// settlement is not stored: were their results forgotten now, and the server died, nobody would have them.
    pub(super) fn settled_meanwhile(
        &self,
        device: Incarnation,
        listed: &[Held],
    ) -> BTreeSet<TaskId> {
        let lane = self.parties.seat(device).map(|seat| seat.lane.sessions()).unwrap_or_default();
        let is_unstored = |task: &TaskId| {
            let Some(session) = self.sessions.get(task) else { return false };
            let last = session.last_command.as_ref();
            !matches!(session.phase, Phase::Running(_))
                && !session.journal.is_stored()
                && listed.iter().any(|held| Some(&held.response_id) == last)
        };
        lane.into_iter().filter(is_unstored).collect()
    }

    /// Whether a command's session still waits for its results.
    fn is_awaited(&self, device: Incarnation, response_id: &ResponseId) -> bool {
        let seat = self.parties.seat(device);
        let command = seat.and_then(|seat| seat.commands.get(response_id));
        command.is_some_and(|command| !command.is_stopping)
    }

    /// Starts a command's time again.
    fn arm(
        &mut self,
        moment: &Moment<'_>,
        device: Incarnation,
        response_id: &ResponseId,
        place: Place,
    ) {
        let Some(seat) = self.parties.seat_mut(device) else { return };
        let Some(command) = seat.commands.get_mut(response_id) else { return };
        let due = Due::Command(device, response_id.clone());
        command.timer = Some(self.timers.set(moment.now + command.left, due));
        command.place = place;
    }

    /// A command that the device's journal does not hold: it is sent again if it never got there, else what became of it
    /// is unknown.
    fn resume_command(
        &mut self,
        moment: &Moment<'_>,
        device: Incarnation,
        response_id: &ResponseId,
    ) {
        let own = self.journal_of(device);
        let Some(seat) = self.parties.seat_mut(device) else { return };
        let Some(command) = seat.commands.get(response_id) else { return };
        let task = command.task;
        let is_of_journal = own.is_some() && command.journal == own;
        if command.is_stopping {
            seat_remove(self, device, response_id);
            return self.free_place_of_ended(moment, device, task);
        }
        let was_sent = command.place != Place::Known(Reach::NeverSent);
        if was_sent && !is_of_journal {
            seat_remove(self, device, response_id);
            return self.lose_other(moment, task);
        }
        let is_cancelled = self.sessions.get(&task).is_some_and(|session| session.cancel.is_some());
        if is_cancelled {
            return self.take_back(moment, device, response_id, task);
        }
        if is_of_journal {
            return self.send_again(moment, device, response_id, task);
        }
        seat_remove(self, device, response_id);
        self.readdress(moment, task);
    }

    /// A command that was to be cancelled never got to its device.
    fn take_back(
        &mut self,
        moment: &Moment<'_>,
        device: Incarnation,
        response_id: &ResponseId,
        task: TaskId,
    ) {
        seat_remove(self, device, response_id);
        let Some(session) = self.sessions.get(&task) else { return };
        let Phase::Running(sent) = &session.phase else { return };
        let results = unknown(&sent.calls, "Stopped", Reach::NeverSent);
        self.note_word(task, NEVER_SENT);
        self.take_step(moment, task, Settlement::Stopped, results, None);
    }

    fn send_again(
        &mut self,
        moment: &Moment<'_>,
        device: Incarnation,
        response_id: &ResponseId,
        task: TaskId,
    ) {
        let Some(session) = self.sessions.get(&task) else { return };
        let Phase::Running(sent) = &session.phase else { return };
        let (note, at) = (self.note_of(&session.task, &sent.calls), moment.text());
        // It has a journal, so it is one of ours.
        let (own, calls) = (&session.task, &sent.calls);
        let frame = encode_command(own, calls, response_id, true, note.as_ref(), at);
        let place = self.parties.handle(device).and_then(|handle| handle.outbox.push(frame).ok());
        // A connection that takes nothing more is gone at once, and comes back for it.
        let place = place.map_or(Place::Known(Reach::Sent), Place::Queued);
        self.arm(moment, device, response_id, place);
    }

    /// A command that was never sent goes to another journal, or another device.
    pub(super) fn readdress(&mut self, moment: &Moment<'_>, task: TaskId) {
        let Some(device) = self.sessions.get(&task).map(|session| session.device) else { return };
        let journal = self.journal_of(device);
        let Some(session) = self.sessions.get(&task) else { return };
        let (response_id, calls, is_discovery) = match &session.phase {
            Phase::Running(sent) => {
                (sent.response_id.clone(), sent.calls.clone(), sent.is_discovery)
            }
            Phase::Prepared(own) => (own.response_id.clone(), own.calls.clone(), own.is_discovery),
            _ => return,
        };
        if let Some(recall) = self.recall_mut(device) {
            recall.record.newest = recall.record.newest.take().max(Some(response_id.clone()));
        }
        let Some(session) = self.sessions.get(&task) else { return };
        let (own, at) = (&session.task, moment.text());
        let (note, is_ours) = (self.note_of(own, &calls), self.may_be_ours(&own.device));
        let frame = encode_command(own, &calls, &response_id, is_ours, note.as_ref(), at);
        let Some(session) = self.sessions.get_mut(&task) else { return };
        session.journal.push(Record::Readdressed {
            response_id: response_id.clone(),
            device,
            journal: journal.clone(),
        });
        session.phase =
            Phase::Prepared(Prepared { response_id, calls, is_discovery, frame, journal });
        self.commit(task);
    }

    /// A command went to another device or journal: what became of it is unknown.
    fn lose_other(&mut self, moment: &Moment<'_>, task: TaskId) {
        let Some(session) = self.sessions.get_mut(&task) else { return };
        let Phase::Running(sent) = &session.phase else { return };
        let what = "The device came back without its journal";
        let results = unknown(&sent.calls, what, Reach::Sent);
        let broken = Broken::Failed(format!("{what}; the outcome is unknown"));
        self.take_step(moment, task, Settlement::Lost, results, Some(broken));
    }

    /// Gives the places that a device has now to those whose turn it is: it may take more at once than before.
    fn give_places(&mut self, device: Incarnation) {
        let Some(seat) = self.parties.seat_mut(device) else { return };
        // A device that has nothing to do takes no room for it.
        if seat.lane.is_empty() {
            return;
        }
        let limits = self.config.places(seat.at_once);
        let started = seat.lane.start(limits);
        started.into_iter().for_each(|task| self.settle_in(task));
    }

    /// Goes on with what waited for the device.
    fn wake_lane(&mut self, moment: &Moment<'_>, device: Incarnation) {
        let lane = self.parties.seat(device).map(|seat| seat.lane.sessions()).unwrap_or_default();
        for task in lane {
            let Some(session) = self.sessions.get(&task) else { continue };
            if session.deadline.is_some_and(|(at, _)| at <= moment.now) {
                self.halt(moment, task, &Halt::OutOfTime);
            } else if matches!(session.phase, Phase::Resting) && session.cancel.is_none() {
                self.ask(moment, task);
            }
        }
    }

    /// A command's time is over: whether its device is there is asked first, and what it says in front of its answer
    /// counts.
    pub(super) fn ask_for_proof(&mut self, device: Incarnation) -> bool {
        let handle = self.parties.handle(device).filter(|handle| handle.has(Feature::Resume));
        handle.map(|handle| handle.outbox.ask_in_order()).is_some()
    }

    /// The device has given a sign of life after its commands' time was over, and no results in front of it.
    pub(crate) fn handle_proof(&mut self, moment: &Moment<'_>, via: Via) {
        if self.parties.current(via).is_none() {
            return;
        }
        let Some(seat) = self.parties.seat_mut(via.identity) else { return };
        let is_over = |own: &super::commands::OpenCommand| {
            !own.is_stopping && own.timer.is_some_and(|timer| Timers::at(timer) <= moment.now)
        };
        let over: Vec<ResponseId> = seat
            .commands
            .iter_mut()
            .filter(|(_, command)| is_over(command))
            .map(|(response_id, _)| response_id.clone())
            .collect();
        for response_id in over {
            self.settle_overdue(moment, via.identity, &response_id);
        }
    }
}

fn seat_remove(hub: &mut Hub, device: Incarnation, response_id: &ResponseId) {
    if let Some(seat) = hub.parties.seat_mut(device)
        && let Some(timer) = seat.commands.remove(response_id).and_then(|own| own.timer)
    {
        hub.timers.clear(timer);
    }
}
