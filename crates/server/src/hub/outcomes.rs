//! Outcomes that are kept until their requester acknowledges them, and what is answered to a request that comes again.

use std::sync::Arc;

use aip::codec::Wire;
use aip::message::Accepted;
use aip::{RequestId, ResponseId, ServerMessage, ServerMessageType, SessionId, Status};
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};

use super::effect::Effect;
use super::parties::Via;
use super::{Hub, Moment, queue};
use crate::handle::Handle;
use crate::session::{Task, TaskId, fresh_response_id};
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
            streams: task.terms.streams,
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
        requests.forget_before(oldest, MAX_REQUESTS, |client, task| {
            let recall = client.and_then(|client| self.recall(client));
            let is_undelivered = recall.is_some_and(|own| own.undelivered.contains_key(&task));
            is_undelivered || self.sessions.contains_key(&task)
        });
        self.requests = requests;
    }
}
