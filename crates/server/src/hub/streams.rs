//! What passes between a command and its requester while it runs: output, input, and how far each end has taken them.
//! None of it is stored. Both windows are counted: who sends more than the other end has room for is cut.
//!
//! While its requester stays away from a task that goes on, the server takes its place, so that the command is not held
//! up for as long: what it takes then is lost to the requester, who sees that by the lowest offset that is still held.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use aip::message::{
    Chunk, CommandNote, Downstream, Feature, Input, MAX_CHUNK_BYTES, MAX_WINDOW_BYTES,
    MIN_WINDOW_BYTES, OutputTaken, Streams, Upstream,
};
use aip::{CloseCode, ResponseId, SessionId};

use super::parties::Via;
use super::session::Phase;
use super::timers::Due;
use super::{Hub, Moment, SubmitError, queue};
use crate::handle::Handle;
use crate::session::{Call, Incarnation, Task, TaskId, to_device};

/// How long a command waits for a requester that is away before the server takes its place.
const UNREAD_WAIT: Duration = Duration::from_secs(10);

/// Which part of a requester's room one more task may have.
const SHARE: u64 = 4;

/// The streams of a command that runs, as they pass.
#[derive(Debug)]
pub(super) struct Relay {
    step: u32,
    window: u64,
    output: [Position; 2],
    input: Position,
    /// Whether the server takes the output in its requester's place, and whether it is to look soon whether it must.
    stands_in: bool,
    is_watched: bool,
}

/// How far one stream is.
#[derive(Debug, Default)]
struct Position {
    /// Up to which offset its receiver has taken it; not known before the first word of it, as after a restart.
    taken: Option<u64>,
    /// Up to which offset it was passed on.
    sent: u64,
}

/// A chunk is more than its receiver has room for, or cannot be read.
struct Excess;

/// Where what a requester says is to be passed on to.
pub(crate) struct PassDown<'a> {
    pub(crate) handle: Arc<Handle>,
    pub(crate) session_id: SessionId,
    pub(crate) response_id: ResponseId,
    pub(crate) downstream: Cow<'a, Downstream>,
}

/// Where what a device says is to be passed on to.
pub(crate) struct Pass {
    pub(crate) handle: Arc<Handle>,
    pub(crate) task: TaskId,
    pub(crate) step: u32,
}

impl Position {
    fn pass(&mut self, offset: u64, length: Option<u64>, window: u64) -> Result<(), Excess> {
        let length = length.filter(|length| *length <= MAX_CHUNK_BYTES as u64).ok_or(Excess)?;
        let end = offset.checked_add(length).ok_or(Excess)?;
        let taken = *self.taken.get_or_insert(offset);
        if end > taken.saturating_add(window) {
            return Err(Excess);
        }
        self.sent = self.sent.max(end);
        Ok(())
    }

    /// Its receiver has taken it up to here. What was never passed on it cannot have; where nothing was since a restart,
    /// only its sender knows how far it is. Returns what counts of it: what its sender hears of must be what is known here.
    fn take(&mut self, offset: Option<u64>) -> Option<u64> {
        let offset = offset.filter(|offset| *offset <= self.sent)?;
        if let Some(taken) = &mut self.taken {
            *taken = offset.max(*taken);
        }
        Some(offset)
    }
}

impl Relay {
    /// The relay of a command, if its task has streams.
    pub(super) fn of(task: &Task, calls: &[Call], step: u32) -> Option<Box<Self>> {
        let streams = task.terms.streams.filter(|own| own.is_live() && calls.len() == 1)?;
        Some(Box::new(Self {
            step,
            window: streams.window().into(),
            output: Default::default(),
            input: Position::default(),
            stands_in: false,
            is_watched: false,
        }))
    }

    fn pass(&mut self, chunk: &Chunk) -> Result<(), Excess> {
        self.output[chunk.stream as usize].pass(chunk.offset, chunk.data.len(), self.window)
    }

    /// What is told to the device in the requester's place: all that was passed is taken.
    fn take_all(&mut self, again: bool) -> Downstream {
        let [stdout, stderr] = self.output.each_mut().map(|position| {
            if !again {
                position.taken = Some(position.sent);
            }
            position.taken
        });
        Downstream::Taken(OutputTaken { step: self.step, stdout, stderr, again })
    }

    fn pass_input(&mut self, input: &Input) -> Result<bool, Excess> {
        // Before the device has said where it is, nobody may send.
        if self.input.taken.is_none() {
            return Ok(false);
        }
        self.input.pass(input.offset, input.data.len(), self.window).map(|()| true)
    }
}

impl Hub {
    /// The streams that a task gets of those that it asks for: output that its device cannot give is left out.
    ///
    /// # Errors
    /// When it wants to send input, and its device takes none.
    pub(super) fn grant_streams(
        &self,
        via: Via,
        device: Incarnation,
        asked: Option<Streams>,
    ) -> Result<Option<Streams>, SubmitError> {
        let Some(asked) = asked.filter(Streams::is_any) else { return Ok(None) };
        let device = self.parties.get(device);
        let can = |feature| {
            let connection = device.and_then(|device| device.connection());
            connection.is_some_and(|connection| connection.has(feature))
        };
        let is_heard = |feature| self.parties.current(via).is_some_and(|own| own.has(feature));
        if asked.input && !(can(Feature::Input) && is_heard(Feature::Input)) {
            let id = device.map(|device| device.client_id.clone());
            return Err(id.map_or(SubmitError::NotADevice, SubmitError::NoInput));
        }
        let [output, spool] =
            [asked.output, asked.spool].map(|is_asked| is_asked && can(Feature::Output));
        let streams = Streams { output, spool, ..asked };
        let window = streams.is_live().then(|| asked.window().min(self.window_of(via.identity)));
        Ok(Some(Streams { window, ..streams }).filter(Streams::is_any))
    }

    /// The window of one more task of a requester: all of them together shall fit into half of its outgoing queue.
    fn window_of(&self, requester: Incarnation) -> u32 {
        let mut room = self.config.outbox_bytes as u64 / 2;
        let tasks = self.parties.get(requester).map(|own| &own.requested);
        for task in tasks.into_iter().flatten() {
            let terms = self.sessions.get(task).map(|session| &session.task.terms);
            let streams = terms.and_then(|terms| terms.streams).filter(Streams::is_live);
            room = room.saturating_sub(streams.map_or(0, |own| u64::from(own.window()) * 2));
            if room < u64::from(MIN_WINDOW_BYTES) {
                break;
            }
        }
        let window = u32::try_from(room / 2 / SHARE).unwrap_or(MAX_WINDOW_BYTES);
        window.clamp(MIN_WINDOW_BYTES, MAX_WINDOW_BYTES)
    }

    /// What a COMMAND says beside its actions: of its streams, where its device can give them, and to one that knows what
    /// `env` is, which came with that, who wants it.
    pub(crate) fn note_of(&self, task: &Task, calls: &[Call]) -> Option<CommandNote> {
        let session = self.sessions.get(&task.id);
        let device = session.map_or(task.terms.device, |session| session.device);
        let connection = self.parties.get(device)?.connection()?;
        let is_one = calls.len() == 1 && connection.has(Feature::Output);
        let streams = task.terms.streams.filter(|_| is_one);
        if !connection.has(Feature::Env) {
            return streams.map(|own| CommandNote { streams: Some(own), ..CommandNote::default() });
        }
        let (requester, key) = (task.requester.to_string(), task.key.name.to_string());
        Some(CommandNote { streams, requester: Some(requester), key: Some(key) })
    }

    /// A device says something of a command's streams. Returns to whom it is to be passed on.
    pub(crate) fn handle_upstream(
        &mut self,
        moment: &Moment<'_>,
        via: Via,
        (session_id, response_id): (&SessionId, &ResponseId),
        upstream: &Upstream,
    ) -> Option<Pass> {
        let device = self.parties.current(via)?.clone();
        let seat = self.parties.seat_mut(via.identity)?;
        let command = seat.commands.get_mut(response_id)?;
        if command.is_stopping || command.session_id != *session_id {
            return None;
        }
        let (task, relay) = (command.task, command.relay.as_mut()?);
        match upstream {
            Upstream::Chunks(chunks) => {
                if chunks.iter().any(|chunk| relay.pass(chunk).is_err()) {
                    let reason = "it sends more output than its requester has room for";
                    device.outbox.abort(CloseCode::POLICY, reason);
                    return None;
                }
                if relay.stands_in {
                    let taken = relay.take_all(false);
                    queue(&device, to_device(session_id, response_id, &taken, moment.text()));
                    return None;
                }
            }
            Upstream::Taken(taken) => {
                relay.input.taken = relay.input.taken.max(Some(taken.stdin));
            }
        }
        let step = relay.step;
        let requester = self.sessions.get(&task)?.task.terms.requester?;
        let handle = self.parties.handle(requester).filter(|handle| handle.has(Feature::Output));
        match handle {
            Some(handle) => Some(Pass { handle: handle.clone(), task, step }),
            None => {
                self.watch_unread(moment, via.identity, response_id);
                None
            }
        }
    }

    /// Output has nobody who takes it: looks again in a while.
    fn watch_unread(&mut self, moment: &Moment<'_>, device: Incarnation, response_id: &ResponseId) {
        let Some(seat) = self.parties.seat_mut(device) else { return };
        let Some(command) = seat.commands.get_mut(response_id) else { return };
        let Some(relay) = command.relay.as_mut().filter(|relay| !relay.is_watched) else { return };
        relay.is_watched = true;
        let due = Due::Unread(device, response_id.clone());
        self.timers.set(moment.now + UNREAD_WAIT, due);
    }

    /// The time is over for a requester that is away to come back and take a command's output itself.
    pub(super) fn handle_unread(
        &mut self,
        moment: &Moment<'_>,
        device: Incarnation,
        response_id: &ResponseId,
    ) {
        let Some(seat) = self.parties.seat_mut(device) else { return };
        let Some(command) = seat.commands.get_mut(response_id) else { return };
        let Some(relay) = &mut command.relay else { return };
        relay.is_watched = false;
        let task = command.task;
        let requester = self.sessions.get(&task).and_then(|own| own.task.terms.requester);
        let is_back = requester.is_some_and(|own| self.parties.handle(own).is_some());
        if !is_back
            && let Some(seat) = self.parties.seat_mut(device)
            && let Some(command) = seat.commands.get_mut(response_id)
            && let Some(relay) = &mut command.relay
        {
            (relay.stands_in, relay.is_watched) = (true, true);
            self.ask_for_output(moment, task);
        }
    }

    /// Asks the device for what it said of a task's output while nobody was there to take it.
    pub(super) fn ask_for_output(&mut self, moment: &Moment<'_>, task: TaskId) {
        let Some(session) = self.sessions.get(&task) else { return };
        let Phase::Running(sent) = &session.phase else { return };
        let (device, response_id) = (session.device, sent.response_id.clone());
        let Some(seat) = self.parties.seat_mut(device) else { return };
        let Some(command) = seat.commands.get_mut(&response_id) else { return };
        let Some(relay) = command.relay.as_mut().filter(|relay| relay.is_watched) else { return };
        relay.is_watched = false;
        let again = relay.take_all(true);
        let frame = to_device(&command.session_id, &response_id, &again, moment.text());
        if let Some(handle) = self.parties.handle(device) {
            queue(handle, frame);
        }
    }

    /// A requester says something of a task's streams. Returns to whom it is to be passed on, and what of it.
    pub(crate) fn handle_downstream<'a>(
        &mut self,
        via: Via,
        task: TaskId,
        downstream: &'a Downstream,
    ) -> Option<PassDown<'a>> {
        let requester = self.parties.current(via)?.clone();
        let session = self.sessions.get(&task)?;
        let Phase::Running(sent) = &session.phase else { return None };
        let is_its = session.task.terms.requester == Some(via.identity);
        if !is_its || session.step_number() != downstream.step() {
            return None;
        }
        let (device, response_id) = (session.device, sent.response_id.clone());
        let session_id = session.task.session_id.clone();
        let command = self.parties.seat_mut(device)?.commands.get_mut(&response_id)?;
        let relay = command.relay.as_mut()?;
        let downstream = match downstream {
            Downstream::Taken(taken) => {
                relay.stands_in = false;
                let [stdout, stderr] = &mut relay.output;
                let (stdout, stderr) = (stdout.take(taken.stdout), stderr.take(taken.stderr));
                Cow::Owned(Downstream::Taken(OutputTaken { stdout, stderr, ..*taken }))
            }
            Downstream::Input(input) => match relay.pass_input(input) {
                Ok(true) => Cow::Borrowed(downstream),
                Ok(false) => return None,
                Err(Excess) => {
                    let reason = "it sends more input than its command has room for";
                    requester.outbox.abort(CloseCode::POLICY, reason);
                    return None;
                }
            },
        };
        let handle = self.parties.handle(device)?.clone();
        Some(PassDown { handle, session_id, response_id, downstream })
    }
}
