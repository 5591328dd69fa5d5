//! Outcomes that are kept until their requester acknowledges them, and what is known by a request's id.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use aip::codec::Wire;
use aip::machine::TaskRequest;
use aip::message::{Accepted, TaskSettings};
use aip::{RequestId, ResponseId, ServerMessage, ServerMessageType, SessionId, Status};
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};

use super::effect::Effect;
use super::parties::Via;
use super::{Hub, Moment, queue};
use crate::handle::Handle;
use crate::session::{Incarnation, KeyName, Task, TaskId, fresh_response_id};
use crate::store::Change;

/// How long a request's id names its task after it was accepted, in hours.
const REQUEST_HOURS: i64 = 24;

/// Most requests that are known by their ids; beyond it the oldest are forgotten before their time. As many as there are
/// ended tasks in the store, where it keeps what it keeps by default.
const MAX_REQUESTS: usize = 1_000_000;

/// A task that its requester sends again, or asks after.
pub(crate) struct Asked {
    pub(crate) via: Via,
    pub(crate) task: TaskId,
    /// What the answer names, if the task is not known.
    pub(crate) session_id: Option<SessionId>,
    pub(crate) request_id: Option<RequestId>,
}

/// Whose a request's id is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Owner {
    Client(Incarnation),
    /// Who uses the HTTP API with this key.
    Key(Arc<str>),
}

impl Owner {
    /// Of a task that an identity submitted, or that came with a key over HTTP.
    pub(super) fn new(requester: Option<Incarnation>, key: &KeyName) -> Self {
        let of_key = || Self::Key(key.id.as_ref().unwrap_or(&key.name).clone());
        requester.map_or_else(of_key, Self::Client)
    }
}

/// A request that was accepted.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) hash: Arc<str>,
    pub(super) task: TaskId,
}

/// The tasks that were accepted with a request's id, oldest first.
#[derive(Debug, Default)]
pub(super) struct Requests {
    known: HashMap<Owner, HashMap<RequestId, Known>>,
    order: VecDeque<(Timestamp, Owner, RequestId)>,
}

impl Requests {
    pub(super) fn get(&self, owner: &Owner, request_id: &RequestId) -> Option<&Known> {
        self.known.get(owner)?.get(request_id)
    }

    pub(super) fn insert(
        &mut self,
        at: Timestamp,
        owner: Owner,
        request_id: RequestId,
        known: Known,
    ) {
        self.order.push_back((at, owner.clone(), request_id.clone()));
        self.known.entry(owner).or_default().insert(request_id, known);
    }

    /// Those of an identity that nobody can come as any more.
    pub(super) fn forget(&mut self, owner: &Owner) {
        self.known.remove(owner);
    }

    pub(super) fn remove(&mut self, owner: &Owner, request_id: &RequestId) {
        if let Some(own) = self.known.get_mut(owner) {
            own.remove(request_id);
            if own.is_empty() {
                self.known.remove(owner);
            }
        }
    }

    /// Lets go of those that were accepted before this time, and of the oldest while there are more than `most`, but of
    /// none whose task is needed.
    fn forget_before(
        &mut self,
        oldest: Timestamp,
        most: usize,
        is_needed: impl Fn(&Owner, TaskId) -> bool,
    ) {
        for _ in 0..self.order.len() {
            let is_too_much = self.order.len() > most;
            let first = self.order.pop_front_if(|(at, ..)| is_too_much || *at <= oldest);
            let Some((at, owner, request_id)) = first else { break };
            let Some(known) = self.get(&owner, &request_id) else { continue };
            if is_needed(&owner, known.task) {
                self.order.push_back((at, owner, request_id));
            } else {
                self.remove(&owner, &request_id);
            }
        }
    }
}

/// What makes two requests the same: SHA-256 over all that was asked for, in hexadecimal digits.
pub(super) fn hash(request: &TaskRequest) -> Arc<str> {
    let settings = TaskSettings {
        command_timeout_s: request.command_timeout.map(|timeout| timeout.as_secs_f64()),
        on_disconnect: Some(request.on_disconnect),
        ..TaskSettings::default()
    };
    let settings = settings.to_metadata();
    let mut hash = Sha256::new();
    let parts = [
        Some(request.target_id.as_str()),
        Some(request.request.as_str()),
        request.task_name.as_ref().map(|name| name.as_str()),
        request.session_id.as_ref().map(SessionId::as_str),
        settings.as_ref().map(|settings| settings.as_str()),
    ];
    for part in parts {
        // An absent one differs from an empty one, and none runs into the next.
        let length = part.map_or(u64::MAX, |part| part.len() as u64);
        hash.update(length.to_le_bytes());
        hash.update(part.unwrap_or_default().as_bytes());
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>().into()
}

impl Hub {
    /// Keeps an outcome until its requester acknowledges it.
    pub(super) fn keep_undelivered(&mut self, moment: &Moment<'_>, task: &Task, bytes: usize) {
        let until = moment.at.checked_add(self.config.outcome_time).unwrap_or(moment.at);
        let owner = task.terms.requester.filter(|_| task.terms.is_acknowledged());
        if let Some(recall) = owner.and_then(|owner| self.recall_mut(owner)) {
            recall.undelivered.insert(task.id, (bytes, until));
            self.undelivered_bytes += bytes;
        }
    }

    /// Has outcomes sent to their requester, as far as it has not acknowledged them.
    pub(super) fn deliver(&mut self, via: Via, tasks: Vec<TaskId>) {
        if !tasks.is_empty() {
            self.effects.push(Effect::Deliver(via, tasks));
        }
    }

    /// A requester has an outcome: it is not sent again.
    pub(crate) fn handle_acknowledged(&mut self, via: Via, task: &ResponseId) {
        let Ok(task) = task.as_str().parse::<TaskId>() else { return };
        if self.parties.current(via).is_none() {
            return;
        }
        let known = self.recall_mut(via.identity).and_then(|own| own.undelivered.remove(&task));
        if let Some((bytes, _)) = known {
            self.undelivered_bytes -= bytes;
            self.effects.push(Effect::Keep(Change::Delivered(task), None));
        }
    }

    /// The connection that an effect came through, if it is still the present one.
    pub(crate) fn handle_of(&self, via: Via) -> Option<Arc<Handle>> {
        self.parties.current(via).cloned()
    }

    /// The ACK of a task.
    pub(crate) fn ack(moment: &Moment<'_>, task: &Task) -> Bytes {
        let accepted = task.terms.is_acknowledged().then(|| Accepted {
            task: task.id.to_string(),
            request_id: task.terms.request_id.clone(),
        });
        let message = ServerMessage {
            session_id: Some(task.session_id.clone()),
            timestamp: Some(moment.text()),
            response_id: Some(fresh_response_id(moment.ambient)),
            result: accepted.and_then(|accepted| accepted.to_payload()),
            ..ServerMessage::new(ServerMessageType::Heartbeat, Status::Ok)
        };
        message.encode()
    }

    /// Answers for a task that was accepted before: with its ACK once that is stored, and with its outcome if it has one.
    pub(super) fn repeat(&mut self, moment: &Moment<'_>, asked: Asked) {
        match self.sessions.get(&asked.task) {
            Some(session) if session.is_accepted => {
                if let Some(handle) = self.parties.current(asked.via) {
                    queue(handle, Self::ack(moment, &session.task));
                }
            }
            // Its ACK goes to its requester's present connection once it is stored.
            Some(_) => {}
            None => self.effects.push(Effect::Repeat(Box::new(asked))),
        }
    }

    /// A requester asks after a task. One that is open is answered at once, any other is looked for.
    pub(crate) fn handle_asked(&mut self, moment: &Moment<'_>, asked: Asked) {
        let open = self.sessions.get(&asked.task);
        if open.is_some_and(|own| own.task.terms.requester != Some(asked.via.identity)) {
            return self.effects.push(Effect::Repeat(Box::new(asked)));
        }
        self.repeat(moment, asked);
    }

    /// Lets go of requests that have had their time, but of none whose task is open or whose outcome is to be fetched.
    pub(super) fn forget_requests(&mut self, moment: &Moment<'_>) {
        let kept = SignedDuration::from_hours(REQUEST_HOURS);
        let oldest = moment.at.checked_sub(kept).unwrap_or(Timestamp::MIN);
        let mut requests = std::mem::take(&mut self.requests);
        requests.forget_before(oldest, MAX_REQUESTS, |owner, task| {
            let is_undelivered = matches!(owner, Owner::Client(id)
                if self.recall(*id).is_some_and(|own| own.undelivered.contains_key(&task)));
            is_undelivered || self.sessions.contains_key(&task)
        });
        self.requests = requests;
    }
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan;

    use super::*;

    #[test]
    fn requests_go_when_they_are_old_or_too_many_but_not_while_they_are_needed() {
        let (mut requests, begin) = (Requests::default(), Timestamp::UNIX_EPOCH);
        let id = |n: u8| RequestId::new(&n.to_string()).unwrap();
        let task = |n: u8| TaskId::from_bytes([n; 16]);
        let owner = |n: u8| Owner::Client(Incarnation(u64::from(n % 2)));
        for n in 0..8 {
            let known = Known { hash: "hash".into(), task: task(n) };
            requests.insert(begin + i64::from(n).hours(), owner(n), id(n), known);
        }
        let left = |requests: &Requests| {
            (0..8).filter(|n| requests.get(&owner(*n), &id(*n)).is_some()).collect::<Vec<_>>()
        };
        let is_needed = |_: &Owner, one: TaskId| one == task(0);
        requests.forget_before(begin + 1.hours(), 100, is_needed);
        assert_eq!(left(&requests), [0, 2, 3, 4, 5, 6, 7]);
        requests.forget_before(begin, 3, is_needed);
        assert_eq!(left(&requests), [0, 6, 7]);
        assert_eq!((requests.order.len(), requests.known.len()), (3, 2));
    }
}
