//! Outcomes that are kept until their requester acknowledges them, and what is known by a request's id.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use aip::codec::Wire;
use aip::machine::TaskRequest;
use aip::message::Accepted;
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
}

/// What makes two requests the same: SHA-256 over all that was asked for, in hexadecimal digits. Each part counts as it
/// was written.
pub(super) fn hash(request: &TaskRequest) -> Arc<str> {
    let mut hash = Sha256::new();
    // An absent part differs from an empty one, and none runs into the next.
    let mut add = |part: Option<&str>| {
        let length = part.map_or(u64::MAX, |part| part.len() as u64);
        hash.update(length.to_le_bytes());
        hash.update(part.unwrap_or_default().as_bytes());
    };
    add(Some(request.target_id.as_str()));
    add(Some(&request.request));
    add(request.as_sent.task_name.as_deref());
    add(request.session_id.as_ref().map(SessionId::as_str));
    for (name, value) in request.as_sent.settings.iter().flatten() {
        add(Some(name));
        add(Some(value.as_str()));
    }
    add(request.as_sent.settings.as_ref().map(|_| ""));
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
        for _ in 0..self.requests.order.len() {
            let is_old = |at: Timestamp| moment.at.duration_since(at) >= kept;
            let first = self.requests.order.pop_front_if(|(at, ..)| is_old(*at));
            let Some((at, owner, request_id)) = first else { break };
            let Some(known) = self.requests.get(&owner, &request_id) else { continue };
            let task = known.task;
            let is_undelivered = matches!(&owner, Owner::Client(id)
                if self.recall(*id).is_some_and(|own| own.undelivered.contains_key(&task)));
            if is_undelivered || self.sessions.contains_key(&task) {
                self.requests.order.push_back((at, owner, request_id));
            } else {
                self.requests.remove(&owner, &request_id);
            }
        }
    }
}
