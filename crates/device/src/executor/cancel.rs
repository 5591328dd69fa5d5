//! The end of a session on the device: its commands are stopped, and a server that asked for it is told what became
//! of each.

use std::time::Duration;

use aip::codec::Wire;
use aip::message::{Cancel, Word};
use aip::{ClientMessage, ClientMessageType, ClientType, ResponseId, SessionId};

use super::Executor;
use super::jobs::Stop;

/// How long a tool may take to stop before the server is told that it could not be stopped. Servers wait for 10 s.
const STOP_TIME: Duration = Duration::from_secs(9);

/// Why a command is stopped where the server is told so.
pub(super) const CANCELLED: &str = "stopped, since its task has ended";

impl Executor {
    /// The server says that a session has ended; nothing of it goes on. When it failed, and may have been cancelled, a
    /// server that asked for it is told within [`STOP_TIME`] what became of each of its commands. They are answered
    /// all the same.
    pub(crate) fn end_session(&self, session_id: &SessionId, has_failed: bool) {
        let line = self.line().filter(|line| has_failed && line.confirms);
        let Some(line) = line else { return self.stop_session(session_id) };
        let mut held = Vec::new();
        if let Some(journal) = line.journal {
            held = self.desk().journals.of_session(journal, session_id);
        }
        // One that was never started is over as well, and has to be answered.
        for (ticket, _) in held.iter().filter(|(_, word)| word.is_none()) {
            self.start_held(*ticket, Some(CANCELLED));
        }
        let stopping = self.jobs().stop_session(session_id, CANCELLED);
        for (ticket, word) in held {
            let id = ticket.id.to_response_id();
            let is_stopping = stopping.iter().any(|(stopping, _)| Some(stopping) == id.as_ref());
            if let Some((word, id)) = word.zip(id).filter(|_| !is_stopping) {
                self.tell(session_id, id, word);
            }
        }
        for (id, stop) in stopping {
            self.confirm(session_id.clone(), id, stop);
        }
    }

    /// Tells what became of a command once it is over, or that it could not be stopped.
    fn confirm(&self, session_id: SessionId, id: ResponseId, stop: Stop) {
        if stop.set_awaited(true) {
            return;
        }
        let executor = self.clone();
        self.0.ambient.spawn(async move {
            let over = tokio::time::timeout(STOP_TIME, stop.over.cancelled()).await;
            stop.set_awaited(false);
            let word = match over {
                Err(_) => Word::CouldNotStop,
                Ok(()) if stop.has_hit() => Word::Stopped,
                Ok(()) => Word::Finished,
            };
            executor.tell(&session_id, id, word);
        });
    }

    /// Tells it on the connection of the moment. Where there is none, the server asks again on the next one.
    fn tell(&self, session_id: &SessionId, id: ResponseId, word: Word) {
        let Some(line) = self.line().filter(|line| line.confirms) else { return };
        let message = ClientMessage {
            client_id: Some(self.0.client_id.clone()),
            session_id: Some(session_id.clone()),
            prev_response_id: Some(id),
            metadata: Cancel { cancel: word }.to_payload(),
            timestamp: Some(self.0.ambient.time_text()),
            ..ClientMessage::new(ClientMessageType::TaskEnd, ClientType::Device)
        };
        let _cut_if_it_overflows = line.outbox.push(message.encode());
    }
}
