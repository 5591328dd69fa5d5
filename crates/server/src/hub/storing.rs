//! What waits for the store: records go in batches, one of a session at a time, and what others see of them goes out when
//! they are in.

use std::sync::Arc;

use aip::ServerMessage;
use aip::codec::Wire;
use aip::message::{Refused, Taken, TaskRefused};

use super::effect::Effect;
use super::requests::Owner;
use super::session::Phase;
use super::timers::Due;
use super::{Hub, Moment, RETRY_STORE, queue, queue_lazily};
use crate::session::{TaskId, fresh_response_id};
use crate::store::{Batch, Record, StoreError};

impl Hub {
    /// Sends what a session has to store, if nothing of it is on its way.
    pub(super) fn commit(&mut self, id: TaskId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if let Some(records) = session.journal.take() {
            let batch = Arc::new(Batch { task: id, records });
            self.effects.push(Effect::Commit(session.task.clone(), batch));
        }
    }

    /// The store has a batch, or would not have it.
    pub(crate) fn handle_committed(
        &mut self,
        moment: &Moment<'_>,
        batch: &Batch,
        committed: Result<(), StoreError>,
    ) {
        let Some(session) = self.sessions.get_mut(&batch.task) else { return };
        let parties = [Some(session.device), session.task.terms.requester];
        match committed {
            Ok(()) => {
                if self.is_closed {
                    self.effects.push(Effect::Moved);
                }
                if session.journal.arrived() {
                    self.effects.push(Effect::StoreFails(session.task.clone(), None));
                }
                if !session.is_accepted {
                    self.acknowledge(moment, batch.task);
                }
                self.tell_settled(moment, batch);
                if batch.records.iter().any(|one| matches!(one, Record::Cancelling { .. })) {
                    self.handle_cancel_stored(moment, batch.task);
                }
                self.proceed(moment, batch.task);
                let session = self.sessions.get(&batch.task);
                if session.is_none_or(|session| session.is_settled_in_store()) {
                    self.note_stored(moment, batch.task, parties);
                }
            }
            Err(error) if !session.is_accepted => self.refuse(moment, batch.task, error),
            Err(error) => {
                let at = moment.now + RETRY_STORE;
                let retry = self.timers.set(at, Due::Retry(batch.task));
                if session.journal.failed(batch, retry) {
                    self.effects.push(Effect::StoreFails(session.task.clone(), Some(error)));
                }
            }
        }
    }

    /// Tells a device which of its results are in the store, and which came too late.
    fn tell_settled(&mut self, moment: &Moment<'_>, batch: &Batch) {
        let answered = batch.records.iter().filter(|one| matches!(one, Record::Answered { .. }));
        let answered = answered.count();
        let Some(session) = self.sessions.get_mut(&batch.task) else { return };
        let (device, session_id) = (session.device, session.task.session_id.clone());
        let settled: Vec<_> =
            session.settling.drain(..answered.min(session.settling.len())).collect();
        let is_stored = session.journal.is_stored();
        let late = if is_stored { std::mem::take(&mut session.late) } else { Vec::new() };
        let settled = settled.into_iter().flatten().map(|id| (id, Taken::Accepted));
        for (response_id, taken) in settled.chain(late) {
            self.tell_taken(moment, device, &session_id, &response_id, taken);
        }
    }

    pub(super) fn handle_retry(&mut self, id: TaskId) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.journal.retry = None;
            self.commit(id);
        }
    }

    /// Does what waited for the store.
    fn proceed(&mut self, moment: &Moment<'_>, id: TaskId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if !session.journal.is_stored() {
            return self.commit(id);
        }
        match &session.phase {
            Phase::Prepared(_) => self.dispatch(moment, id),
            Phase::Ending(farewell) if farewell.goodbyes.is_some() => self.finish(moment, id),
            _ => {}
        }
    }

    /// Sends the requester the ACK of its task, and what came up meanwhile.
    fn acknowledge(&mut self, moment: &Moment<'_>, id: TaskId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.is_accepted = true;
        self.effects.push(Effect::Accepted(session.task.clone()));
        for stored in session.stored.drain(..) {
            // The asker may be gone; the task runs all the same.
            let _asker_is_gone = stored.send(Ok(()));
        }
        let Some(handle) = session.task.terms.requester.and_then(|id| self.parties.handle(id))
        else {
            return session.held.clear();
        };
        queue_lazily(handle, Self::ack(moment, &session.task));
        for held in std::mem::take(&mut session.held) {
            held.queue(handle);
        }
    }

    /// Refuses a task whose acceptance could not be stored: no party has seen anything of it.
    fn refuse(&mut self, moment: &Moment<'_>, id: TaskId, error: StoreError) {
        let Some(mut session) = self.remove(moment, id) else { return };
        let text = format!("The task could not be stored: {error}; try again later");
        let handle = session.task.terms.requester.and_then(|id| self.parties.handle(id));
        if let Some(handle) = handle {
            let session_id = session.task.session_id.clone();
            let stamp = |message: ServerMessage| ServerMessage {
                timestamp: Some(moment.text()),
                response_id: Some(fresh_response_id(moment.ambient)),
                ..message
            };
            let terms = &session.task.terms;
            let refused = terms.is_acknowledged().then(|| TaskRefused {
                request_id: terms.request_id.clone(),
                refused: Refused::Retry,
            });
            let refusal = ServerMessage {
                result: refused.as_ref().and_then(TaskRefused::to_payload),
                ..ServerMessage::error(text.clone(), Some(session_id.clone()))
            };
            let end = ServerMessage::task_failed(text, session_id);
            let held = std::mem::take(&mut session.held).into_iter();
            queue(handle, stamp(refusal).encode());
            for held in held.filter(|held| !held.is_progress) {
                queue(handle, held.frame);
            }
            if refused.is_none() {
                queue(handle, stamp(end).encode());
            }
        }
        if let Some(request_id) = &session.task.terms.request_id {
            let owner = Owner::new(session.task.terms.requester, &session.task.key);
            self.requests.remove(&owner, request_id);
        }
        for stored in session.stored.drain(..) {
            let _asker_is_gone = stored.send(Err(error.clone()));
        }
        self.free_place(moment, session.device, id);
        self.effects.push(Effect::NotStored(session, error));
    }
}
