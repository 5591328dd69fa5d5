//! What waits for the store: records go in batches, one of a session at a time, and what others see of them goes out when
//! they are in.

use std::sync::Arc;

use aip::codec::Wire;
use aip::{ServerMessage, ServerMessageType, Status};

use super::effect::Effect;
use super::session::Phase;
use super::timers::Due;
use super::{Hub, Moment, RETRY_STORE, queue, queue_lazily};
use crate::session::{TaskId, fresh_response_id};
use crate::store::{Batch, StoreError};

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
        match committed {
            Ok(()) => {
                if session.journal.arrived() {
                    self.effects.push(Effect::StoreFails(session.task.clone(), None));
                }
                if !session.is_accepted {
                    self.acknowledge(moment, batch.task);
                }
                self.proceed(moment, batch.task);
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
        if let Some(stored) = session.stored.take() {
            // The asker may be gone; the task runs all the same.
            let _asker_is_gone = stored.send(Ok(()));
        }
        let Some(handle) = session.origin.identity.and_then(|id| self.parties.handle(id)) else {
            return;
        };
        let ack = ServerMessage {
            session_id: Some(session.task.session_id.clone()),
            timestamp: Some(moment.text()),
            response_id: Some(fresh_response_id(moment.ambient)),
            ..ServerMessage::new(ServerMessageType::Heartbeat, Status::Ok)
        };
        queue_lazily(handle, ack.encode());
        for held in std::mem::take(&mut session.held) {
            held.queue(handle);
        }
    }

    /// Refuses a task whose acceptance could not be stored: no party has seen anything of it.
    fn refuse(&mut self, moment: &Moment<'_>, id: TaskId, error: StoreError) {
        let Some(mut session) = self.remove(moment, id) else { return };
        let text = format!("The task could not be stored: {error}; try again later");
        let handle = session.origin.identity.and_then(|id| self.parties.handle(id));
        if let Some(handle) = handle {
            let session_id = session.task.session_id.clone();
            let stamp = |message: ServerMessage| ServerMessage {
                timestamp: Some(moment.text()),
                response_id: Some(fresh_response_id(moment.ambient)),
                ..message
            };
            let refusal = ServerMessage::error(text.clone(), Some(session_id.clone()));
            let end = ServerMessage::task_failed(text, session_id);
            let held = std::mem::take(&mut session.held).into_iter();
            queue(handle, stamp(refusal).encode());
            for held in held.filter(|held| !held.is_progress) {
                queue(handle, held.frame);
            }
            queue(handle, stamp(end).encode());
        }
        if let Some(stored) = session.stored.take() {
            let _asker_is_gone = stored.send(Err(error.clone()));
        }
        self.free_place(moment, session.device, id);
        self.effects.push(Effect::NotStored(session, error));
    }
}
