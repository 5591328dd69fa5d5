//! The one place that decides: who is connected, where each task stands, whose turn it is, who gets which command and
//! which answer settles it.
//!
//! It is synchronous, under one lock, and takes the time and the source of ids as arguments. What may take a while
//! goes out as [`Effect`]s, which `drive` carries out without the lock. Messages it puts into the connections'
//! outgoing queues itself, so that their order is the order of its decisions.
//!
//! It must not know: sockets, tasks of the runtime, the store, the agent, the clock.

mod cancels;
mod commands;
mod effect;
mod endings;
mod identity;
mod lane;
mod outcomes;
mod parties;
mod recovery;
mod replies;
mod requests;
mod resuming;
mod returning;
mod session;
mod spool;
mod steps;
mod storing;
mod streams;
mod tasks;
mod timers;
mod views;

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aip::{ClientId, CloseCode, Payload, SessionId};
use bytes::Bytes;
use jiff::Timestamp;
use link::{Ambient, Budget};

pub(crate) use commands::{Settlement, Unclaimed};
pub(crate) use effect::{DeviceGoodbye, Effect, Over, Writing};
pub(crate) use identity::StoreName;
pub(crate) use lane::Limits;
pub(crate) use outcomes::Asked;
pub(crate) use parties::Via;
pub(crate) use recovery::Found;
pub(crate) use replies::Results;
pub(crate) use returning::{Entered, Newcomer};
pub(crate) use session::{Goodbyes, Prepared, Session};
pub(crate) use spool::{CannotAsk, SpoolPlace};
pub(crate) use steps::{Advice, Next};
pub(crate) use streams::{Pass, PassDown};
pub(crate) use tasks::{CannotBegin, From, Submission, SubmitError, Submitted};
pub(crate) use views::{Away, SessionState};

use self::parties::Parties;
use self::requests::Requests;
use self::session::{Halt, Held};
use self::timers::{Due, Timers};
use crate::config::Config;
use crate::handle::Handle;
use crate::session::{Cause, LowHalf, TaskId};

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
    /// What the store is called.
    store: StoreName,
    /// Whether what is stored outlives the server.
    is_durable: bool,
    /// Whether the store has lost commits, as far as is known.
    has_lost: bool,
    requests: Requests,
    /// What the outcomes take that were not acknowledged, in bytes.
    undelivered_bytes: usize,
    sessions: HashMap<TaskId, Box<Session>, BuildHasherDefault<LowHalf>>,
    open_ids: HashMap<SessionId, TaskId>,
    timers: Timers,
    questions: spool::Questions,
    budget: Budget,
    /// The results of tasks that are not over or ending, in bytes.
    result_bytes: usize,
    effects: Vec<Effect>,
    /// Whether no more tasks and clients are taken.
    is_closed: bool,
    /// When to look for identities that have had their time.
    tidy_at: Option<Instant>,
    /// When the server looks for what is due, at the latest.
    armed: Option<Instant>,
}

impl Hub {
    pub(crate) fn new(config: Arc<Config>, budget: Budget) -> Self {
        Self {
            config,
            parties: Parties::default(),
            store: StoreName::default(),
            is_durable: false,
            has_lost: false,
            requests: Requests::default(),
            undelivered_bytes: 0,
            sessions: HashMap::default(),
            open_ids: HashMap::new(),
            timers: Timers::default(),
            questions: spool::Questions::default(),
            budget,
            result_bytes: 0,
            effects: Vec::new(),
            is_closed: false,
            tidy_at: None,
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
                Due::Session(task) => self.handle_out_of_time(moment, task),
                Due::Retry(task) => self.handle_retry(task),
                Due::Window(device) => self.handle_window(moment, device),
                Due::Leave(task) => {
                    self.halt(moment, task, &Halt::Stopped(Cause::RequesterGone));
                }
                Due::Cancel(task) => self.handle_cancel_due(moment, task),
                Due::Keep(id) => self.keep(id),
                Due::Unread(device, response_id) => {
                    self.handle_unread(moment, device, &response_id);
                }
            }
        }
    }

    /// A session's time is over. One from before a restart ends only once its device is back or given up.
    fn handle_out_of_time(&mut self, moment: &Moment<'_>, id: TaskId) {
        let Some(session) = self.sessions.get(&id) else { return };
        let is_away = self.parties.handle(session.device).is_none();
        if !(session.is_recovered && is_away) {
            self.halt(moment, id, &Halt::OutOfTime);
        }
    }

    /// Sends a message that names a session to a client, behind the ACK of that session if it is the client's own.
    pub(crate) fn send_about(&mut self, via: Via, session_id: &SessionId, frame: Bytes) {
        let Some(handle) = self.parties.current(via) else { return };
        let session = self.open_ids.get(session_id).and_then(|id| self.sessions.get_mut(id));
        match session.filter(|session| session.task.terms.requester == Some(via.identity)) {
            Some(session) => say(handle, session, frame, false),
            None => queue(handle, frame),
        }
    }

    /// Whether this session id names a task that is not over.
    pub(crate) fn is_open(&self, id: &SessionId) -> bool {
        self.open_ids.contains_key(id)
    }

    /// Takes no more tasks and clients, and stops the tasks that have not started, but for those that go on after a
    /// restart.
    pub(crate) fn close(&mut self, moment: &Moment<'_>) {
        self.is_closed = true;
        let is_durable = self.is_durable;
        self.stop_where(moment, &Cause::Shutdown, |session| {
            let is_queued = matches!(session.phase, session::Phase::Queued);
            is_queued && !(is_durable && session.outlives_the_server())
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
