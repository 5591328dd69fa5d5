//! The actor of one registered connection: takes each message, decides, answers.

use std::collections::BTreeMap;
use std::sync::Arc;

use aip::codec::{About, MAX_FIRST_MESSAGE_BYTES};
use aip::machine::{CommandResults, Rejection, Request};
use aip::{
    ClientId, ClientMessage, CloseCode, DecodeError, Payload, RequestId, ResponseId, ServerMessage,
    ServerMessageType, SessionId, Status,
};
use link::connection::now;
use link::{Bound, Closed, Connection, Event, Overflow};

use crate::accept::stamped;
use crate::audit;
use crate::dispatch::Unclaimed;
use crate::facts;
use crate::registry::Client;
use crate::server::{OpenSocket, Server};
use crate::session;

/// Runs a registered connection until it ends, and cleans up after it.
pub(crate) async fn run(
    server: Server,
    mut connection: Connection<ClientMessage>,
    client: Arc<Client>,
    _opened: OpenSocket,
) {
    tracing::info!(
        client = %client.id(),
        role = %client.peer.client_type,
        connection = %client.connection,
        platform = client.is_device().then_some(client.platform.as_str()),
        address = client.address.map(tracing::field::display),
        "connected"
    );
    let actor = Actor { server, client };
    let closed = loop {
        match connection.next_event_or(|| actor.client.next_deadline()).await {
            Event::Closed(closed) => break closed,
            event => actor.handle_event(&mut connection, event),
        }
    };
    actor.handle_closed(&closed);
    // On the heap, so that a connection that is open does not carry the room for its end.
    Box::pin(connection.close(closed.code, &closed.reason)).await;
}

struct Actor {
    server: Server,
    client: Arc<Client>,
}

impl Actor {
    fn handle_event(
        &self,
        connection: &mut Connection<ClientMessage>,
        event: Event<ClientMessage>,
    ) {
        self.server.metrics().count_received(&event);
        // What is about a session goes the way of the session's own messages, behind its ACK.
        let mut reply = |message: ServerMessage| match message.session_id {
            Some(_) => self.client.send(&stamped(message)),
            None => connection.reply(&stamped(message)),
        };
        match event {
            Event::Message(message) => match self.client.peer.admit(message) {
                Ok(request) => self.handle_request(request, &mut reply),
                Err(rejection) => self.reject(rejection, &mut reply),
            },
            Event::Unreadable(error, about) => {
                self.handle_unreadable(&error, &about);
                let is_task = about.is("task");
                let refused = self.unreadable(&error, about.session_id.clone());
                if !(is_task && self.refuse_oddly_named(&refused, &about)) {
                    self.refuse(refused, is_task, &mut reply);
                }
            }
            Event::Binary => {
                let error = DecodeError::Invalid("binary frames are not AIP".to_owned());
                reply(self.unreadable(&error, None));
            }
            Event::Due => self.client.commands.handle_deadline(now(), self.client.outbox.taken()),
            Event::Closed(_) => {}
        }
    }

    fn unreadable(&self, error: &DecodeError, session_id: Option<SessionId>) -> ServerMessage {
        tracing::debug!(client = %self.client.id(), %error, "unreadable message");
        ServerMessage::error(error.to_string(), session_id)
    }

    /// Results that cannot be read are an answer all the same: nobody shall wait for better ones.
    fn handle_unreadable(&self, error: &DecodeError, about: &About) {
        if about.is("command_results") {
            let text = format!("The device's results could not be read: {error}");
            self.client.commands.handle_unreadable(about, &text);
        }
    }

    fn handle_request(&self, request: Request, reply: &mut impl FnMut(ServerMessage)) {
        match request {
            Request::Heartbeat => {
                self.client.note_heartbeat();
                reply(ServerMessage::new(ServerMessageType::Heartbeat, Status::Ok));
            }
            // Nobody waits for an answer, and who did not ask for the extension is not to be heard.
            Request::Output { session_id, response_id, output } => {
                if self.client.wants_progress {
                    self.client.commands.handle_output(&session_id, &response_id, output.lines);
                }
            }
            Request::Task(task) => {
                let session_id = task.session_id.clone();
                if let Err(error) = session::submit_for(&self.server, &self.client, task) {
                    let is_task = !error.names_open_task();
                    self.reject(Rejection { text: error.to_string(), session_id, is_task }, reply);
                }
            }
            Request::Results(results) => self.handle_results(results, reply),
            Request::DeviceInfo { target_id, request_id } => {
                reply(self.device_info(&target_id, request_id));
            }
            Request::DeviceFacts(facts) => self.store_facts(facts, reply),
            Request::Error { text, session_id } => {
                let session = session_id.as_ref().map(SessionId::as_str);
                tracing::warn!(client = %self.client.id(), session, "a client reports an error");
                tracing::trace!(client = %self.client.id(), error = ?text, "what it reports");
                reply(ServerMessage::error(text, session_id));
            }
        }
    }

    /// Tells why a message was refused. The requester of a refused task waits for nothing but a
    /// TASK_END, so it gets one, unless that would look like the end of a task that is running.
    fn reject(&self, rejection: Rejection, reply: &mut impl FnMut(ServerMessage)) {
        tracing::debug!(client = %self.client.id(), error = rejection.text, "refused");
        let Rejection { text, session_id, is_task } = rejection;
        self.refuse(ServerMessage::error(text, session_id), is_task, reply);
    }

    fn refuse(&self, error: ServerMessage, is_task: bool, reply: &mut impl FnMut(ServerMessage)) {
        let session_id = error.session_id.clone().filter(|_| is_task);
        let text = error.error.clone().unwrap_or_default();
        if is_task {
            self.note_refused(session_id.as_ref(), &text);
        }
        reply(error);
        if let Some(session_id) = session_id
            && !self.server.sessions().is_open(&session_id)
        {
            reply(ServerMessage::task_failed(text, session_id));
        }
    }

    /// Refuses a TASK for a session whose id can be none, under that id as it came: its requester listens for
    /// no other. `false` if it names no such session.
    fn refuse_oddly_named(&self, error: &ServerMessage, about: &About) -> bool {
        let text = error.error.clone();
        let failed = ServerMessage {
            error: text.clone(),
            ..ServerMessage::new(ServerMessageType::TaskEnd, Status::Failed)
        };
        let [Some(error), Some(failed)] =
            [error, &failed].map(|message| about.in_odd_session(&stamped(message.clone())))
        else {
            return false;
        };
        self.note_refused(None, text.as_deref().unwrap_or_default());
        for frame in [error, failed] {
            let _cut_if_it_overflows = self.client.outbox.push(frame);
        }
        true
    }

    fn note_refused(&self, session_id: Option<&SessionId>, why: &str) {
        self.server.audit().record(audit::Entry {
            session: session_id.map(SessionId::as_str),
            reason: Some(why),
            ..self.client.entry(audit::Event::Refused)
        });
    }

    fn handle_results(&self, results: CommandResults, reply: &mut impl FnMut(ServerMessage)) {
        let (session_id, response_id) = (results.session_id.clone(), results.response_id.clone());
        if let Err(unclaimed) = self.client.commands.handle_results(results) {
            self.server.metrics().count_dropped_results(unclaimed);
            tracing::info!(
                client = %self.client.id(),
                session = session_id.as_ref().map(SessionId::as_str),
                command = response_id.as_ref().map(ResponseId::as_str),
                reason = %unclaimed,
                "results dropped"
            );
            // A device that stops when it is told to answers late by design.
            if !(self.client.is_flightdeck && unclaimed == Unclaimed::Late) {
                reply(ServerMessage::error(unclaimed.to_string(), session_id));
            }
        }
    }

    fn device_info(&self, target_id: &ClientId, request_id: Option<RequestId>) -> ServerMessage {
        if !self.client.may_reach(target_id) {
            let text = "Not authorized to request device info for this device";
            return ServerMessage::error(text.to_owned(), None);
        }
        let device = self.server.registry().device(target_id);
        let facts = device.and_then(|device| facts::of(&device, self.server.config()));
        let result = facts.or_else(|| {
            let error = format!("Device {target_id} not found or no system info available");
            Payload::from_value(&BTreeMap::from([("error", error)])).ok()
        });
        // The id of the request is the id of the answer: both are ids of a peer's choice.
        let response_id = request_id.and_then(|id| ResponseId::new(id.as_str()).ok());
        ServerMessage {
            response_id,
            result,
            ..ServerMessage::new(ServerMessageType::DeviceInfoResponse, Status::Ok)
        }
    }

    /// Stores a device's facts, under the id it is pinned to.
    fn store_facts(&self, facts: Option<Payload>, reply: &mut impl FnMut(ServerMessage)) {
        let facts = facts
            .filter(|facts| facts.len() <= MAX_FIRST_MESSAGE_BYTES)
            .and_then(|facts| facts::with_id(&facts, self.client.id()));
        match facts {
            Some(facts) => self.client.set_facts(facts),
            None => {
                let error = format!(
                    "DEVICE_INFO_RESPONSE requires metadata of at most {MAX_FIRST_MESSAGE_BYTES} \
                     bytes"
                );
                reply(ServerMessage::error(error, None));
            }
        }
    }

    fn handle_closed(&self, closed: &Closed) {
        self.server.metrics().count_disconnect(closed);
        let is_cut =
            closed.by_us && !matches!(closed.code, CloseCode::NORMAL | CloseCode::GOING_AWAY);
        let event = if is_cut { audit::Event::Cut } else { audit::Event::Disconnected };
        let reason = closed.to_string();
        self.server
            .audit()
            .record(audit::Entry { reason: Some(&reason), ..self.client.entry(event) });
        take_leave(&self.server, &self.client);
        if let Some(overflow) = self.client.outbox.overflow() {
            self.report_slow_consumer(overflow);
        }
        tracing::info!(
            client = %self.client.id(),
            connection = %self.client.connection,
            by = if closed.by_us { "server" } else { "peer" },
            closed = reason,
            "disconnected"
        );
    }

    fn report_slow_consumer(&self, overflow: Overflow) {
        self.server.metrics().count_slow_consumer();
        let config = self.server.config();
        let (setting, limit) = match overflow.bound {
            Bound::Messages => ("outbox_messages", config.outbox_messages),
            Bound::Bytes => ("outbox_bytes", config.outbox_bytes),
        };
        tracing::warn!(
            client = %self.client.id(),
            connection = %self.client.connection,
            queued_messages = overflow.messages,
            queued_bytes = overflow.bytes,
            refused_bytes = overflow.refused,
            setting,
            limit,
            "a client was cut because it reads too slowly"
        );
    }
}

/// Frees the id, and ends at once whatever depended on this connection. Doing so again changes
/// nothing.
pub(crate) fn take_leave(server: &Server, client: &Client) {
    server.registry().unregister(client);
    let taken = client.outbox.taken();
    client.outbox.abort(CloseCode::NORMAL, "closed");
    server.sessions().handle_gone(client);
    client.commands.handle_lost(taken);
}
