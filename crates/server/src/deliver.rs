//! Sends outcomes out of the store: again, until their requester acknowledges them, and when it asks after them.

use aip::codec::Wire;
use aip::message::{Refused, TaskRefused};
use aip::{ServerMessage, SessionId};
use bytes::Bytes;
use link::connection::OFFLOAD_BYTES;

use crate::accept::stamped;
use crate::drive::end_id;
use crate::hub::{Asked, Hub, Via};
use crate::server::Server;
use crate::session::{Outcome, Stamp, Task, TaskId, fresh_response_id, steps};
use crate::store::{Record, Summary};

impl Server {
    /// Sends a requester an outcome through this connection, once there is room for it.
    pub(crate) async fn deliver(&self, via: Via, id: TaskId) {
        match self.store().journal(id).await {
            Ok(records) => self.deliver_records(via, records.unwrap_or_default()).await,
            // It is delivered when its requester comes the next time.
            Err(error) => tracing::error!(task = %id, %error, "an outcome could not be read"),
        }
    }

    async fn deliver_records(&self, via: Via, records: Vec<Record>) {
        let Some(Summary { task, ended: Some(ended), .. }) = Summary::of(&records) else { return };
        if task.terms.requester != Some(via.identity) {
            return;
        }
        let stamp = Stamp {
            response_id: end_id(&task).unwrap_or_else(|| fresh_response_id(self.ambient())),
            at: self.ambient().time_text(),
        };
        let bytes: usize = records.iter().map(Record::bytes).sum();
        let encode = move || Outcome::of(&ended).encode(&task, &steps(&records), stamp).0;
        let frame: Option<Bytes> = if bytes > OFFLOAD_BYTES {
            tokio::task::spawn_blocking(encode).await.ok()
        } else {
            Some(encode())
        };
        let handle = self.hub().handle_of(via);
        if let (Some(handle), Some(frame)) = (handle, frame) {
            handle.outbox.push_in_turn(frame, || ()).await;
        }
    }

    /// Answers for a task that is over: with its ACK and its outcome, or that it is not known.
    pub(crate) async fn answer_again(&self, asked: Asked) {
        let Asked { via, task, session_id, request_id } = asked;
        let records = match self.store().journal(task).await {
            Ok(journal) => journal.unwrap_or_default(),
            Err(error) => {
                // Its requester asks again when it comes the next time.
                return tracing::error!(%task, %error, "a task that is asked after could not be read");
            }
        };
        let is_own = |task: &Task| task.terms.requester == Some(via.identity);
        let known = Summary::of(&records).map(|known| known.task).filter(|task| is_own(task));
        let Some(handle) = self.hub().handle_of(via) else { return };
        match known {
            Some(known) => {
                let ack = self.act(|_, moment| Hub::ack(moment, &known));
                let _cut_if_it_overflows = handle.outbox.push(ack);
                self.deliver_records(via, records).await;
            }
            None => {
                let lost = TaskRefused { request_id, refused: Refused::Lost };
                let error = unknown(task, session_id);
                let error = ServerMessage { result: lost.to_payload(), ..error };
                let _cut_if_it_overflows = handle.outbox.push(stamped(self, error).encode());
            }
        }
    }
}

fn unknown(task: TaskId, session_id: Option<SessionId>) -> ServerMessage {
    let text = format!("Task {task} is not known here: its outcome is unknown");
    ServerMessage::error(text, session_id)
}
