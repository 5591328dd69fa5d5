//! The one place that decides: who is connected, where each task stands, whose turn it is, who gets which command and
//! which answer settles it.
//!
//! It is synchronous, under one lock, and takes the time and the source of ids as arguments. What may take a while
//! goes out as [`Effect`]s, which `drive` carries out without the lock. Messages it puts into the connections'
//! outgoing queues itself, so that their order is the order of its decisions.
//!
//! It must not know: sockets, tasks of the runtime, the store, the agent, the clock.

mod commands;
mod effect;
mod endings;
mod lane;
mod parties;
mod replies;
mod session;
mod steps;
mod storing;
mod tasks;
mod timers;
mod views;

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aip::machine::Refusal;
use aip::{ClientId, CloseCode, Payload, SessionId};
use bytes::Bytes;
use jiff::Timestamp;
use link::{Ambient, Budget};

pub(crate) use commands::{Settlement, Unclaimed};
pub(crate) use effect::{DeviceGoodbye, Effect, Over, Writing};
pub(crate) use parties::Via;
pub(crate) use replies::Results;
pub(crate) use session::{Goodbyes, Origin, Prepared, Session};
pub(crate) use steps::{Advice, Next};
pub(crate) use tasks::{CannotBegin, From, Submission, SubmitError};
pub(crate) use views::SessionState;

use self::parties::Parties;
use self::session::{Halt, Held};
use self::timers::{Due, Timers};
use crate::config::Config;
use crate::handle::Handle;
use crate::session::{Cause, TaskId, TaskIdHasher};

/// Messages for a requester that may wait behind the ACK of one session.
const MAX_HELD: usize = 1024;

/// How long to wait before the store is tried again.
const RETRY_STORE: Duration = Duration::from_secs(1);

/// When something happens, and where ids come from.
pub(crate) struct Moment<'a> {
    pub(crate) now: Instant,
    pub(crate) at: Timestamp,
    pub(crate) ambient: &'a Ambient,
}

impl Moment<'_> {
    /// The time of day, as AIP writes it.
    fn text(&self) -> String {
        aip::timestamp::format(self.at)
    }
}

/// Everything that the server decides about.
pub(crate) struct Hub {
    config: Arc<Config>,
    parties: Parties,
    sessions: HashMap<TaskId, Box<Session>, BuildHasherDefault<TaskIdHasher>>,
    open_ids: HashMap<SessionId, TaskId>,
    timers: Timers,
    budget: Budget,
    /// The results of tasks that are not over or ending, in bytes.
    result_bytes: usize,
    effects: Vec<Effect>,
    /// Whether no more tasks and clients are taken.
    is_closed: bool,
    /// When the server looks for what is due, at the latest.
    armed: Option<Instant>,
}

impl Hub {
    pub(crate) fn new(config: Arc<Config>, budget: Budget) -> Self {
        Self {
            config,
            parties: Parties::default(),
            sessions: HashMap::default(),
            open_ids: HashMap::new(),
            timers: Timers::default(),
            budget,
            result_bytes: 0,
            effects: Vec::new(),
            is_closed: false,
            armed: None,
        }
    }

    /// What is to be done outside, in this order.
    pub(crate) fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Whether something is due earlier than the server looks; it must look anew then.
    pub(crate) fn must_rearm(&mut self) -> bool {
        let next = self.timers.next();
        let must = next.is_some_and(|next| self.armed.is_none_or(|armed| next < armed));
        if must {
            self.armed = next;
        }
        must
    }

    /// When to look for what is due.
    pub(crate) fn rearm(&mut self) -> Option<Instant> {
        self.armed = self.timers.next();
        self.armed
    }

    /// Does what is due.
    pub(crate) fn handle_due(&mut self, moment: &Moment<'_>) {
        while let Some(due) = self.timers.take_due(moment.now) {
            match due {
                Due::Command(device, response_id) => {
                    self.handle_command_due(moment, device, response_id);
                }
                Due::Session(task) => self.halt(moment, task, &Halt::OutOfTime),
                Due::Retry(task) => self.handle_retry(task),
            }
        }
    }

    /// Takes a newcomer in, if its target is there and its id is free.
    pub(crate) fn register(
        &mut self,
        handle: Arc<Handle>,
        facts: Option<Payload>,
    ) -> Result<Via, Refusal> {
        if self.is_closed {
            return Err(Refusal::ShuttingDown);
        }
        self.parties.register(handle, facts)
    }

    /// The connection is over, or is given up: frees its id, and ends at once what depended on it. Doing so again
    /// changes nothing.
    pub(crate) fn disconnect(&mut self, moment: &Moment<'_>, via: Via) {
        let Some(handle) = self.parties.leave(via, moment.now) else { return };
        // From here on nothing more is handed to the socket.
        let taken = handle.outbox.abort(CloseCode::NORMAL, "closed");
        self.lose_commands(moment, via.identity, taken);
        self.stop_lane(moment, via.identity);
        let requested = self.parties.get(via.identity).map(|identity| identity.requested.clone());
        for task in requested.into_iter().flatten() {
            self.halt(moment, task, &Halt::Stopped(Cause::RequesterGone));
        }
        self.parties.forget_unneeded(via.identity, moment.now);
        self.effects.push(Effect::Moved);
    }

    /// Sends a message that names a session to a client, behind the ACK of that session if it is the client's own.
    pub(crate) fn send_about(&mut self, via: Via, session_id: &SessionId, frame: Bytes) {
        let Some(handle) = self.parties.current(via) else { return };
        let session = self.open_ids.get(session_id).and_then(|id| self.sessions.get_mut(id));
        match session.filter(|session| session.origin.identity == Some(via.identity)) {
            Some(session) => say(handle, session, frame, false),
            None => queue(handle, frame),
        }
    }

    /// Whether this session id names a task that is not over.
    pub(crate) fn is_open(&self, id: &SessionId) -> bool {
        self.open_ids.contains_key(id)
    }

    /// Takes no more tasks and clients, and stops the tasks that have not started.
    pub(crate) fn close(&mut self, moment: &Moment<'_>) {
        self.is_closed = true;
        self.stop_where(moment, &Cause::Shutdown, |session| {
            matches!(session.phase, session::Phase::Queued)
        });
    }

    /// Stops the sessions that are meant.
    pub(crate) fn stop_where(
        &mut self,
        moment: &Moment<'_>,
        cause: &Cause,
        is_meant: impl Fn(&Session) -> bool,
    ) {
        let meant = self.sessions.iter().filter(|(_, session)| is_meant(session));
        let mut meant: Vec<TaskId> = meant.map(|(id, _)| *id).collect();
        // The order in which they end shows.
        meant.sort_unstable();
        for task in meant {
            self.halt(moment, task, &Halt::Stopped(cause.clone()));
        }
    }

    /// Notes what a device says of itself.
    pub(crate) fn set_facts(&mut self, via: Via, facts: Payload) {
        if self.parties.current(via).is_some()
            && let Some(seat) = self.parties.seat_mut(via.identity)
        {
            seat.facts = Some(facts);
        }
    }

    /// What is known of a device that is connected: a JSON object.
    pub(crate) fn facts(&self, device: &ClientId) -> Option<Payload> {
        self.parties.by_id(device)?.seat.as_ref()?.facts.clone()
    }
}

/// Sends a session's requester a message, behind its ACK.
fn say(handle: &Handle, session: &mut Session, frame: Bytes, is_progress: bool) {
    let held = Held { frame, is_progress };
    if session.is_accepted {
        held.queue(handle);
    } else if session.held.len() < MAX_HELD {
        session.held.push_back(held);
    } else if !is_progress {
        handle.outbox.abort(CloseCode::TOO_SLOW, "too many messages wait behind an ACK");
    }
}

impl Held {
    fn queue(self, handle: &Handle) {
        if self.is_progress {
            handle.outbox.push_progress(self.frame);
        } else {
            queue(handle, self.frame);
        }
    }
}

/// Queues a message. A peer that is gone or too slow is cut by its own connection, and what depends on it learns that
/// from there; so there is nothing to do about it here.
fn queue(handle: &Handle, frame: Bytes) {
    let _cut_if_it_overflows = handle.outbox.push(frame);
}

/// The same for a message that its peer does not wait for.
fn queue_lazily(handle: &Handle, frame: Bytes) {
    let _cut_if_it_overflows = handle.outbox.push_lazily(frame);
}
