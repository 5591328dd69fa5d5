//! A command, the device it goes to, and the one settlement it gets.
//!
//! A command is settled by whoever takes it out of the table: its results, its deadline, a cancel, or
//! the loss of the device, whichever is first. Everything later is counted and ignored. A command that
//! was settled without an answer stays in the table as *stopping* until the device confirms (by
//! answering after all), is gone, or its grace is over: until then its place on the device is taken.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aip::codec::{About, Wire};
use aip::machine::{CannotWait, CommandResults, Pending};
use aip::message::Status;
use aip::{ActionResult, CallId, Command, ResponseId, ServerMessage, ServerMessageType, SessionId};
use link::connection::{now, timestamp};
use tokio::sync::oneshot;

use crate::config::Config;
use crate::registry::Client;
use crate::session::{self, Task};

/// Commands of a device that are remembered after they were given up.
const MAX_GIVEN_UP: usize = 32;

/// How a command was settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Settlement {
    /// The device answered: one result for each action.
    Answered(Vec<ActionResult>),
    /// No answer came in time.
    TimedOut(Reach),
    /// The device is gone.
    Lost(Reach),
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

/// The commands that one device was sent and has not answered.
pub(crate) struct Commands {
    pending: Mutex<Pending<ResponseId, Waiting>>,
    /// The last ones that were given up, so that results that come even later are told from invented
    /// ones.
    given_up: Mutex<VecDeque<ResponseId>>,
    stop_grace: Duration,
}

struct Waiting {
    session_id: SessionId,
    /// Who wants to hear of it while it runs.
    watcher: Option<Arc<Client>>,
    /// Its place in the device's outgoing queue; `None` until it has one.
    place: Option<u64>,
    state: State,
}

impl Waiting {
    /// How far it came, when the queue stands at `taken`.
    fn reach(&self, taken: u64) -> Reach {
        match self.place {
            Some(place) if place >= taken => Reach::NeverSent,
            _ => Reach::Sent,
        }
    }
}

enum State {
    /// Its session waits for the settlement.
    Open { call_ids: Vec<CallId>, settle: oneshot::Sender<Settlement> },
    /// Settled without an answer; the sender wakes whoever waits for the device to be free, when it is
    /// dropped.
    Stopping { _free: Option<oneshot::Sender<()>> },
}

impl Commands {
    pub(crate) fn new(config: &Config) -> Self {
        // A stopping command still holds its place, so there is never more than one for each place.
        let pending = Mutex::new(Pending::new(config.sessions_per_device));
        Self { pending, given_up: Mutex::default(), stop_grace: config.stop_grace }
    }

    /// Puts a command in, before it is sent.
    fn open(
        &self,
        response_id: ResponseId,
        session_id: SessionId,
        watcher: Option<Arc<Client>>,
        call_ids: Vec<CallId>,
        timeout: Duration,
    ) -> Result<oneshot::Receiver<Settlement>, CannotWait> {
        let (settle, settled) = oneshot::channel();
        let state = State::Open { call_ids, settle };
        let waiting = Waiting { session_id, watcher, place: None, state };
        self.lock().insert(response_id, waiting, now() + timeout)?;
        Ok(settled)
    }

    /// Notes where in the device's queue a command stands.
    fn note_place(&self, response_id: &ResponseId, place: u64) {
        if let Some(waiting) = self.lock().peek_mut(response_id) {
            waiting.place = Some(place);
        }
    }

    /// Passes on what a tool tells while its command runs, to whoever wants to hear it.
    pub(crate) fn handle_output(
        &self,
        session_id: &SessionId,
        response_id: &ResponseId,
        lines: Vec<String>,
    ) {
        let watcher = match self.lock().peek_mut(response_id) {
            Some(Waiting { session_id: own, watcher, state: State::Open { .. }, .. })
                if own == session_id =>
            {
                watcher.clone()
            }
            _ => None,
        };
        if let Some(watcher) = watcher {
            session::told(&watcher, session_id, lines);
        }
    }

    /// Takes the results of a command; the first ones settle it.
    pub(crate) fn handle_results(&self, answer: CommandResults) -> Result<(), Unclaimed> {
        let CommandResults { session_id, response_id, results } = answer;
        self.settle(session_id.as_ref(), response_id.as_ref(), |ids| in_order(ids, results))
    }

    /// Settles a command whose results came and could not be read.
    pub(crate) fn handle_unreadable(&self, about: &About, error: &str) {
        let failed = |ids: &[CallId]| {
            ids.iter().map(|id| ActionResult::failure(Some(id.clone()), error)).collect()
        };
        let ids = (about.session_id.as_ref(), about.prev_response_id.as_ref());
        if let Err(unclaimed) = self.settle(ids.0, ids.1, failed) {
            tracing::debug!(%unclaimed, "unreadable results");
        }
    }

    fn settle(
        &self,
        session_id: Option<&SessionId>,
        response_id: Option<&ResponseId>,
        results: impl FnOnce(&[CallId]) -> Vec<ActionResult>,
    ) -> Result<(), Unclaimed> {
        let response_id = response_id.ok_or(Unclaimed::Unknown)?;
        let waiting = {
            let mut pending = self.lock();
            let known = pending.peek(response_id).ok_or_else(|| self.unclaimed(response_id))?;
            if session_id != Some(&known.session_id) {
                return Err(Unclaimed::Unknown);
            }
            pending.take(response_id).ok_or(Unclaimed::Unknown)?
        };
        match waiting.state {
            State::Open { call_ids, settle } => {
                // A session that ended in this moment does not wait any more.
                let answered = Settlement::Answered(results(&call_ids));
                settle.send(answered).map_err(|_| Unclaimed::Late)
            }
            State::Stopping { .. } => Err(Unclaimed::Late),
        }
    }

    /// Settles a command without its answer. Returns what wakes when the device is free again and how
    /// far the command came, or `None` when its answer or its loss was first.
    pub(crate) fn stop(
        &self,
        response_id: &ResponseId,
        taken: u64,
    ) -> Option<(oneshot::Receiver<()>, Reach)> {
        let mut pending = self.lock();
        let waiting = pending.take(response_id)?;
        let reach = waiting.reach(taken);
        let (free, freed) = oneshot::channel();
        let waiting = Waiting { state: State::Stopping { _free: Some(free) }, ..waiting };
        // Its place in the table was freed just now.
        let _has_room = pending.insert(response_id.clone(), waiting, now() + self.stop_grace);
        Some((freed, reach))
    }

    /// Forgets a command that nobody waits for any more.
    pub(crate) fn forget(&self, response_id: &ResponseId) {
        self.lock().take(response_id);
    }

    /// When something is due.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.lock().next_deadline()
    }

    /// Settles what is due: open commands time out, stopping ones are given up.
    pub(crate) fn handle_deadline(&self, now: Instant, taken: u64) {
        let mut pending = self.lock();
        for (response_id, waiting) in pending.take_expired(now) {
            let reach = waiting.reach(taken);
            let Waiting { session_id, place, state, .. } = waiting;
            match state {
                State::Open { settle, .. } => {
                    let _nobody_waits = settle.send(Settlement::TimedOut(reach));
                    let state = State::Stopping { _free: None };
                    let waiting = Waiting { session_id, watcher: None, place, state };
                    let _has_room = pending.insert(response_id, waiting, now + self.stop_grace);
                }
                State::Stopping { .. } => self.give_up(response_id),
            }
        }
    }

    /// Settles a command that found the connection closed.
    fn handle_never_sent(&self, response_id: &ResponseId) {
        let waiting = self.lock().take(response_id);
        if let Some(Waiting { state: State::Open { settle, .. }, .. }) = waiting {
            let _nobody_waits = settle.send(Settlement::Lost(Reach::NeverSent));
        }
    }

    /// Settles everything: the device is gone.
    pub(crate) fn handle_lost(&self, taken: u64) {
        for (_, waiting) in self.lock().take_all() {
            let reach = waiting.reach(taken);
            if let State::Open { settle, .. } = waiting.state {
                let _nobody_waits = settle.send(Settlement::Lost(reach));
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    fn give_up(&self, response_id: ResponseId) {
        let mut given_up = self.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        given_up.truncate(MAX_GIVEN_UP - 1);
        given_up.push_front(response_id);
    }

    /// Why nobody waits for the results of a command that is not in the table.
    fn unclaimed(&self, response_id: &ResponseId) -> Unclaimed {
        let given_up = self.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        if given_up.contains(response_id) { Unclaimed::Late } else { Unclaimed::Unknown }
    }

    fn lock(&self) -> MutexGuard<'_, Pending<ResponseId, Waiting>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts results into the order of the actions; a missing one counts as a failure.
fn in_order(call_ids: &[CallId], mut results: Vec<ActionResult>) -> Vec<ActionResult> {
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
    call_ids
        .iter()
        .map(|id| {
            let found = results.iter().position(|result| result.call_id.as_ref() == Some(id));
            found.map_or_else(
                || ActionResult::failure(Some(id.clone()), "no result"),
                |at| results.swap_remove(at),
            )
        })
        .collect()
}

/// Sends a command to its device and returns what its settlement will come through.
///
/// # Errors
/// When the device has more unanswered commands than it may.
pub(crate) fn send(
    device: &Client,
    task: &Task,
    watcher: Option<Arc<Client>>,
    response_id: &ResponseId,
    actions: &[Command],
) -> Result<oneshot::Receiver<Settlement>, CannotWait> {
    let call_ids = actions.iter().filter_map(|action| action.call_id.clone()).collect();
    let (session_id, timeout) = (task.session_id.clone(), task.command_timeout);
    let settled =
        device.commands.open(response_id.clone(), session_id, watcher, call_ids, timeout)?;
    let message = ServerMessage {
        agent_name: Some(task.agent_name.clone()),
        // As the Python server sends them: its devices choose a section by them.
        process_name: Some(String::new()),
        root_name: Some(String::new()),
        actions: Some(actions.to_vec()),
        session_id: Some(task.session_id.clone()),
        task_name: Some(task.task_name.to_string()),
        timestamp: Some(timestamp()),
        response_id: Some(response_id.clone()),
        ..ServerMessage::new(ServerMessageType::Command, Status::Continue)
    };
    match device.outbox.push(message.encode()) {
        Ok(place) if device.outbox.is_open() => device.commands.note_place(response_id, place),
        // Its connection is ending, and may have looked through the table already.
        _ => device.commands.handle_never_sent(response_id),
    }
    Ok(settled)
}
