//! What becomes of the commands that were sent: results, output, deadlines, and the loss of their device.

use aip::codec::Wire;
use aip::message::{Feature, ResultAck, Taken};
use aip::{CallId, ResponseId, ServerMessage, ServerMessageType, SessionId, Status};
use bytes::Bytes;

use super::commands::{OpenCommand, Reach, in_order};
use super::parties::Via;
use super::session::{Broken, Halt};
use super::steps::unknown;
use super::timers::Due;
use super::{Hub, Moment, Settlement, Unclaimed, queue_lazily, say};
use crate::session::{Call, CallResult, Cause, Incarnation, TaskId, forward_output};

/// The most of a tool's name that an error repeats, in characters.
const MAX_TOOL_CHARS: usize = 100;

/// Results of one session that settled nothing and whose answer waits for the store, at most.
const MAX_LATE: usize = 64;

/// The results that a device sent, or what stands for them.
pub(crate) enum Results {
    /// As they came.
    Read(Vec<CallResult>),
    /// They could not be read, and why: an answer all the same.
    Unreadable(String),
}

impl Results {
    fn of(self, call_ids: &[CallId]) -> Vec<CallResult> {
        match self {
            Self::Read(results) => in_order(call_ids, results),
            Self::Unreadable(error) => {
                call_ids.iter().map(|id| CallResult::failure(Some(id.clone()), &error)).collect()
            }
        }
    }
}

impl Hub {
    /// Takes the results of a command; the first ones settle it. Others are refused, as `refusal` words it, in front of
    /// what their device gets next.
    ///
    /// # Errors
    /// Why they settle nothing.
    pub(crate) fn handle_results(
        &mut self,
        moment: &Moment<'_>,
        via: Via,
        ids: (Option<&SessionId>, Option<&ResponseId>),
        results: Results,
        refusal: impl FnOnce(Unclaimed) -> Option<Bytes>,
    ) -> Result<(), Unclaimed> {
        let wants_ack = self.parties.current(via).is_some_and(|handle| handle.has(Feature::Ack));
        let (why, stopped) = match self.claim(via, ids) {
            Ok(command) if !command.is_stopping => {
                let results = results.of(&command.call_ids);
                self.take_step(moment, command.task, Settlement::Answered, results, None);
                return Ok(());
            }
            Ok(stopped) => (Unclaimed::Late, Some(stopped.task)),
            Err(why) => (why, None),
        };
        match ids {
            (Some(session_id), Some(response_id)) if wants_ack => {
                self.answer_late(moment, via, why, (session_id, response_id));
            }
            (Some(session_id), _) => {
                if let Some(frame) = refusal(why) {
                    self.send_about(via, session_id, frame);
                }
            }
            (None, _) => {}
        }
        if let Some(task) = stopped {
            self.free_place_of_ended(moment, via.identity, task);
        }
        Err(why)
    }

    fn claim(
        &mut self,
        via: Via,
        ids: (Option<&SessionId>, Option<&ResponseId>),
    ) -> Result<OpenCommand, Unclaimed> {
        self.parties.current(via).ok_or(Unclaimed::Unknown)?;
        let seat = self.parties.seat_mut(via.identity).ok_or(Unclaimed::Unknown)?;
        let command = seat.commands.claim(ids.0, ids.1)?;
        command.timer.into_iter().for_each(|timer| self.timers.clear(timer));
        Ok(command)
    }

    /// Passes on what a tool writes while its command runs, to a requester that wants to see it.
    pub(crate) fn handle_output(
        &mut self,
        moment: &Moment<'_>,
        via: Via,
        (session_id, response_id): (&SessionId, &ResponseId),
        lines: Vec<String>,
    ) {
        let current = self.parties.current(via).is_some();
        let seat = self.parties.seat(via.identity).filter(|_| current);
        let command = seat.and_then(|seat| seat.commands.get(response_id));
        let task = command
            .filter(|command| !command.is_stopping && command.session_id == *session_id)
            .map(|command| command.task);
        let Some(session) = task.and_then(|task| self.sessions.get_mut(&task)) else { return };
        let handle = session.task.terms.requester.and_then(|id| self.parties.handle(id));
        if let Some(handle) = handle.filter(|handle| handle.has(Feature::Progress)) {
            say(handle, session, forward_output(session_id, lines, moment.text()), true);
        }
    }

    /// An open command's time is over, or a stopping one's grace.
    pub(super) fn handle_command_due(
        &mut self,
        moment: &Moment<'_>,
        device: Incarnation,
        response_id: ResponseId,
    ) {
        let Some(seat) = self.parties.seat_mut(device) else { return };
        let Some(command) = seat.commands.get(&response_id) else { return };
        let task = command.task;
        if command.is_stopping {
            seat.commands.remove(&response_id);
            seat.commands.give_up(response_id);
            return self.free_place_of_ended(moment, device, task);
        }
        if !self.ask_for_proof(device) {
            self.settle_overdue(moment, device, &response_id);
        }
    }

    /// A command's time is over, and its device has not answered.
    pub(super) fn settle_overdue(
        &mut self,
        moment: &Moment<'_>,
        device: Incarnation,
        response_id: &ResponseId,
    ) {
        let seat = self.parties.seat(device);
        let command = seat.and_then(|seat| seat.commands.get(response_id));
        let Some(task) = command.map(|command| command.task) else { return };
        let reach = self.stop_command(moment, device, response_id);
        self.time_out(moment, task, reach);
    }

    /// Answers results that settle nothing: what settled their command instead must be in the store before.
    fn answer_late(
        &mut self,
        moment: &Moment<'_>,
        via: Via,
        why: Unclaimed,
        (session_id, response_id): (&SessionId, &ResponseId),
    ) {
        let taken = match why {
            Unclaimed::Late => Taken::Late,
            Unclaimed::Unknown => Taken::Unknown,
        };
        let open = self.open_ids.get(session_id).and_then(|id| self.sessions.get_mut(id));
        let unstored =
            open.filter(|session| session.device == via.identity && !session.journal.is_stored());
        match unstored {
            Some(session) if session.late.len() < MAX_LATE => {
                session.late.push((response_id.clone(), taken));
            }
            _ => self.tell_taken(moment, via.identity, session_id, response_id, taken),
        }
    }

    /// Tells a device what became of results that it sent, through its present connection.
    pub(super) fn tell_taken(
        &self,
        moment: &Moment<'_>,
        device: Incarnation,
        session_id: &SessionId,
        response_id: &ResponseId,
        taken: Taken,
    ) {
        let handle = self.parties.handle(device).filter(|handle| handle.has(Feature::Ack));
        let Some(handle) = handle else { return };
        let message = ServerMessage {
            session_id: Some(session_id.clone()),
            response_id: Some(response_id.clone()),
            timestamp: Some(moment.text()),
            result: ResultAck { result: taken }.to_payload(),
            ..ServerMessage::new(ServerMessageType::Heartbeat, Status::Ok)
        };
        queue_lazily(handle, message.encode());
    }

    fn time_out(&mut self, moment: &Moment<'_>, id: TaskId, reach: Reach) {
        let Some(session) = self.sessions.get(&id) else { return };
        let super::session::Phase::Running(sent) = &session.phase else { return };
        let limit = self.config.limit_in_words(session.task.command_timeout);
        let tool = sent.calls.first().map_or("tool", Call::plain_name);
        let tool: String = tool.chars().take(MAX_TOOL_CHARS).collect();
        let step = session.step_number();
        let broken = format!("Step {step} ({tool}) timed out after {limit}");
        let results = unknown(&sent.calls, &format!("No answer within {limit}"), reach);
        self.take_step(moment, id, Settlement::TimedOut, results, Some(Broken::Failed(broken)));
    }

    /// Settles a command without its answer. One that was sent keeps its place until its device confirms, for a
    /// while; one that was not is taken back.
    pub(super) fn stop_command(
        &mut self,
        moment: &Moment<'_>,
        device: Incarnation,
        response_id: &ResponseId,
    ) -> Reach {
        let handle = self.parties.handle(device).cloned();
        let grace = moment.now + self.config.stop_grace;
        let Some(seat) = self.parties.seat_mut(device) else { return Reach::NeverSent };
        let Some(command) = seat.commands.get_mut(response_id) else { return Reach::Sent };
        command.timer.into_iter().for_each(|timer| self.timers.clear(timer));
        let reach = command.withdraw(handle.as_ref().map(|handle| &*handle.outbox));
        match reach {
            Reach::NeverSent => {
                seat.commands.remove(response_id);
            }
            Reach::Sent => {
                command.is_stopping = true;
                let due = Due::Command(device, response_id.clone());
                command.timer = Some(self.timers.set(grace, due));
            }
        }
        reach
    }

    /// Settles every command of a device that is gone, whose queue was taken up to `taken`.
    pub(super) fn lose_commands(&mut self, moment: &Moment<'_>, device: Incarnation, taken: u64) {
        let Some(seat) = self.parties.seat_mut(device) else { return };
        for command in seat.commands.take_all().into_values() {
            command.timer.into_iter().for_each(|timer| self.timers.clear(timer));
            if command.is_stopping {
                self.free_place_of_ended(moment, device, command.task);
            } else {
                self.lose(moment, &command, taken);
            }
        }
    }

    fn lose(&mut self, moment: &Moment<'_>, command: &OpenCommand, taken: u64) {
        let Some(session) = self.sessions.get_mut(&command.task) else { return };
        session.is_device_gone = true;
        let super::session::Phase::Running(sent) = &session.phase else { return };
        let results = unknown(&sent.calls, "The device disconnected", command.reach(taken));
        let broken = Some(Broken::Stopped(Cause::DeviceGone));
        self.take_step(moment, command.task, Settlement::Lost, results, broken);
    }

    /// Stops what a device that is gone was executing or was to execute.
    pub(super) fn stop_lane(&mut self, moment: &Moment<'_>, device: Incarnation) {
        let Some(seat) = self.parties.seat(device) else { return };
        // Those that wait go first, so that none of them gets the place of another.
        let sessions = seat.lane.sessions();
        for task in sessions.into_iter().rev() {
            self.halt(moment, task, &Halt::Stopped(Cause::DeviceGone));
        }
    }

    /// Frees the place of a task that is over; one that is still ending frees it itself.
    pub(super) fn free_place_of_ended(
        &mut self,
        moment: &Moment<'_>,
        device: Incarnation,
        task: TaskId,
    ) {
        if !self.sessions.contains_key(&task) {
            self.free_place(moment, device, task);
        }
    }
}
