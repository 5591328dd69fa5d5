//! The actor of one registered connection: takes each message, decides, answers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use aip::codec::{About, MAX_FIRST_MESSAGE_BYTES, Wire};
use aip::machine::{CommandResults, Rejection, Request, TaskRequest};
use aip::message::{Downstream, Feature, Passed, Refused, TaskRefused, Upstream};
use aip::{
    ClientId, ClientMessage, CloseCode, DecodeError, Payload, RequestId, ResponseId, ServerMessage,
    ServerMessageType, SessionId, Status,
};
use link::{Bound, Closed, Connection, Event, Overflow};

use crate::accept::stamped;
use crate::audit::{self, Event as Audited};
use crate::drive;
use crate::facts;
use crate::handle::Handle;
use crate::hub::{Asked, From, Pass, PassDown, Results, Submission, SubmitError, Unclaimed, Via};
use crate::server::{OpenSocket, Server};
use crate::session::{TaskId, to_device, to_requester};

/// Runs a registered connection until it ends, and cleans up after it.
pub(crate) async fn run(
    server: Server,
    mut connection: Connection<ClientMessage>,
    client: Registered,
    _opened: OpenSocket,
) {
    let actor = Actor { client: client.handle.clone(), via: client.via, server };
    actor.report_connected();
    let closed = loop {
        match connection.next_event(None).await {
            Event::Closed(closed) => break closed,
            event => actor.handle_event(&mut connection, event),
        }
    };
    actor.handle_closed(&closed);
    drop(client);
    // On the heap, so that a connection that is open does not carry the room for its end.
    Box::pin(connection.close(closed.code, &closed.reason)).await;
}

/// A registered client. However its connection ends, also by a panic, it is taken out of the hub then.
pub(crate) struct Registered {
    pub(crate) server: Server,
    pub(crate) handle: Arc<Handle>,
    pub(crate) via: Via,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.server.act(|hub, moment| hub.disconnect(moment, self.via, false));
    }
}

struct Actor {
    server: Server,
    client: Arc<Handle>,
    via: Via,
}

impl Actor {
    /// Logs something about this connection in its span. That may be entered already, which changes nothing.
    fn log(&self, line: impl FnOnce()) {
        self.client.span().in_scope(line);
    }

    fn report_connected(&self) {
        let client = &self.client;
        let platform = client.is_device().then_some(client.platform.as_str());
        self.log(|| tracing::info!(role = %client.peer.client_type, platform, "connected"));
    }

    fn handle_event(
        &self,
        connection: &mut Connection<ClientMessage>,
        event: Event<ClientMessage>,
    ) {
        self.server.metrics().count_received(&event);
        let heard = connection.heard();
        // What is about a session goes the way of the session's own messages, behind its ACK.
        let mut reply = |message: ServerMessage| {
            let message = stamped(&self.server, message);
            match &message.session_id {
                Some(session_id) => self.send_about(session_id, message.encode()),
                None => connection.reply(&message),
            }
        };
        match event {
            Event::Message(message) => match self.client.peer.admit(message) {
                Ok(request) => self.handle_request(request, heard, &mut reply),
                Err(rejection) => self.reject(rejection, &mut reply),
            },
            Event::Unreadable(error, about) => {
                let is_task = about.is("task");
                let refused = self.unreadable(&error, about.session_id.clone());
                if is_task && self.acknowledges() {
                    let (text, session_id) = (error.to_string(), about.session_id.clone());
                    let rejection = Rejection { text, session_id, request_id: None, is_task };
                    self.reject_task(rejection, Refused::Final, &mut reply);
                } else if !(is_task && self.refuse_oddly_named(&refused, &about)) {
                    self.refuse(refused, is_task, &mut reply);
                }
                self.handle_unreadable(&error, &about);
            }
            Event::Binary => {
                let error = DecodeError::Invalid("binary frames are not AIP".to_owned());
                reply(self.unreadable(&error, None));
            }
            Event::Due => self.server.act(|hub, moment| hub.handle_proof(moment, self.via)),
            Event::Closed(_) => {}
        }
    }

    fn send_about(&self, session_id: &SessionId, frame: bytes::Bytes) {
        self.server.act(|hub, _| hub.send_about(self.via, session_id, frame));
    }

    fn unreadable(&self, error: &DecodeError, session_id: Option<SessionId>) -> ServerMessage {
        self.log(|| tracing::debug!(%error, "unreadable message"));
        ServerMessage::error(error.to_string(), session_id)
    }

    /// Settles a command by results that cannot be read: they are an answer all the same, and the device
    /// sends no better ones.
    fn handle_unreadable(&self, error: &DecodeError, about: &About) {
        if about.is("command_results") {
            let text = format!("The device's results could not be read: {error}");
            let ids = (about.session_id.as_ref(), about.prev_response_id.as_ref());
            if let Err(unclaimed) = self.settle(ids, Results::Unreadable(text), |_| None) {
                self.log(|| tracing::debug!(%unclaimed, "unreadable results"));
            }
        }
    }

    fn handle_request(
        &self,
        request: Request,
        heard: Instant,
        reply: &mut impl FnMut(ServerMessage),
    ) {
        match request {
            Request::Heartbeat => {
                self.client.note_heartbeat(heard);
                reply(ServerMessage::new(ServerMessageType::Heartbeat, Status::Ok));
            }
            // The device waits for no answer, and one that did not ask for the extension is not heard.
            Request::Output { session_id, response_id, output } => {
                if self.client.has(Feature::Progress) {
                    let ids = (&session_id, &response_id);
                    self.server.act(|hub, moment| {
                        hub.handle_output(moment, self.via, ids, output.lines);
                    });
                }
            }
            Request::Upstream { session_id, response_id, upstream } => {
                self.pass_upstream(&session_id, &response_id, upstream);
            }
            Request::Spooled(spooled) => {
                self.server.act(|hub, _| hub.handle_spooled(self.via, spooled));
            }
            Request::Downstream { task, downstream } => {
                self.pass_downstream(&task, &downstream);
            }
            Request::Task(task) => {
                let (session_id, request_id) = (task.session_id.clone(), task.request_id.clone());
                if let Err(error) = self.submit(task) {
                    // A TASK_END would end the open one, unless the requester tells tasks by their own ids.
                    let is_task = self.acknowledges() || !error.names_open_task();
                    let rejection =
                        Rejection { text: error.to_string(), session_id, request_id, is_task };
                    self.reject_task(rejection, error.means(), reply);
                }
            }
            Request::AskAfter { session_id, request_id, task } => {
                let session_id = Some(session_id);
                self.ask_after(&task, session_id, request_id);
            }
            Request::Acknowledge { task } => {
                self.server.act(|hub, _| hub.handle_acknowledged(self.via, &task));
            }
            Request::Cancel { task, request_id, .. } => {
                self.cancel(task.as_ref(), request_id.as_ref());
            }
            Request::Stopped { response_id, word } => {
                self.server.act(|hub, _| hub.handle_stopped(self.via, &response_id, word));
            }
            Request::Results(results) => self.handle_results(results, reply),
            Request::DeviceInfo { target_id, request_id } => {
                reply(self.device_info(&target_id, request_id));
            }
            Request::DeviceFacts(facts) => self.store_facts(facts, reply),
            Request::Error { text, session_id } => {
                self.report_error(&text, session_id.as_ref());
                reply(ServerMessage::error(text, session_id));
            }
        }
    }

    /// Passes on what a device says of a command's streams. Written without the lock, since it can be long.
    fn pass_upstream(&self, session_id: &SessionId, response_id: &ResponseId, upstream: Upstream) {
        let ids = (session_id, response_id);
        let pass =
            self.server.act(|hub, moment| hub.handle_upstream(moment, self.via, ids, &upstream));
        if let Some(Pass { handle, task, step }) = pass {
            let passed = Passed { task: task.to_string(), step, upstream };
            let frame = to_requester(session_id, &passed, self.server.ambient().time_text());
            let _cut_if_it_overflows = handle.outbox.push(frame);
        }
    }

    /// The same of what a requester says.
    fn pass_downstream(&self, task: &ResponseId, downstream: &Downstream) {
        let Ok(task) = task.as_str().parse() else { return };
        let pass = self.server.act(|hub, _| hub.handle_downstream(self.via, task, downstream));
        if let Some(PassDown { handle, session_id, response_id, downstream }) = pass {
            let at = self.server.ambient().time_text();
            let frame = to_device(&session_id, &response_id, &downstream, at);
            let _cut_if_it_overflows = handle.outbox.push(frame);
        }
    }

    fn report_error(&self, text: &str, session_id: Option<&SessionId>) {
        self.log(|| {
            let session = session_id.map(SessionId::as_str);
            tracing::warn!(session, "a client reports an error");
            tracing::trace!(error = ?text, "what it reports");
        });
    }

    /// Answers a message that is refused with why. The requester of a refused task waits for nothing but
    /// a TASK_END, so it gets one, unless that would look like the end of a task that is running.
    fn reject(&self, rejection: Rejection, reply: &mut impl FnMut(ServerMessage)) {
        self.log(|| tracing::debug!(error = rejection.text, "refused"));
        self.reject_task(rejection, Refused::Final, reply);
    }

    /// The same, with what the refusal means to a requester that may send the task again. One that acknowledges outcomes
    /// gets no TASK_END: its task was never accepted.
    fn reject_task(
        &self,
        rejection: Rejection,
        refused: Refused,
        reply: &mut impl FnMut(ServerMessage),
    ) {
        let Rejection { text, session_id, request_id, is_task } = rejection;
        let error = ServerMessage::error(text, session_id);
        if !(is_task && self.acknowledges()) {
            return self.refuse(error, is_task, reply);
        }
        let text = error.error.clone().unwrap_or_default();
        self.note_refused(error.session_id.as_ref(), &text);
        let result = TaskRefused { request_id, refused }.to_payload();
        reply(ServerMessage { result, ..error });
    }

    /// Whether it is a requester that acknowledges outcomes.
    fn acknowledges(&self) -> bool {
        !self.client.is_device() && self.client.has(Feature::Ack)
    }

    /// Answers for a task that was accepted before, or says that it is not known.
    fn ask_after(&self, task: &str, session_id: Option<SessionId>, request_id: Option<RequestId>) {
        // What is no id of ours names no task of ours.
        let task = task.parse().unwrap_or(TaskId::NONE);
        let asked = Asked { via: self.via, task, session_id, request_id };
        self.server.act(|hub, moment| hub.handle_asked(moment, asked));
    }

    fn cancel(&self, task: Option<&ResponseId>, request_id: Option<&RequestId>) {
        let id = task.and_then(|task| task.as_str().parse::<TaskId>().ok());
        let cancelled =
            self.server.act(|hub, moment| hub.cancel_of(moment, self.via, id, request_id));
        if let Some(task) = cancelled {
            self.server.audit().record(audit::Entry {
                key: Some(self.client.holder.name()),
                ..audit::Entry::of(&task, audit::Event::Cancelled)
            });
        }
    }

    fn refuse(&self, error: ServerMessage, is_task: bool, reply: &mut impl FnMut(ServerMessage)) {
        let session_id = error.session_id.clone().filter(|_| is_task);
        let text = error.error.clone().unwrap_or_default();
        if is_task {
            self.note_refused(session_id.as_ref(), &text);
        }
        reply(error);
        if let Some(session_id) = session_id
            && !self.server.hub().is_open(&session_id)
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
        let [Some(error), Some(failed)] = [error, &failed]
            .map(|message| about.in_odd_session(&stamped(&self.server, message.clone())))
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

    fn submit(&self, request: TaskRequest) -> Result<(), SubmitError> {
        let submission = Submission {
            shares: self.server.agent().shares_device(&request.request),
            request,
            holder: self.client.holder.clone(),
            address: self.client.address,
            from: From::Client(self.via),
        };
        drive::submit(&self.server, submission).map(|_submitted| ())
    }

    fn settle(
        &self,
        ids: (Option<&SessionId>, Option<&ResponseId>),
        results: Results,
        refusal: impl FnOnce(Unclaimed) -> Option<ServerMessage>,
    ) -> Result<(), Unclaimed> {
        let refusal = |why| refusal(why).map(|message| stamped(&self.server, message).encode());
        self.server.act(|hub, moment| hub.handle_results(moment, self.via, ids, results, refusal))
    }

    fn handle_results(&self, results: CommandResults, reply: &mut impl FnMut(ServerMessage)) {
        let CommandResults { session_id, response_id, results } = results;
        let results = Results::Read(results.into_iter().map(Into::into).collect());
        // A device that stops at a TASK_END answers late by design.
        let is_told = |why| !(self.client.is_flightdeck && why == Unclaimed::Late);
        let refusal = |why: Unclaimed| {
            is_told(why).then(|| ServerMessage::error(why.to_string(), session_id.clone()))
        };
        let settled = self.settle((session_id.as_ref(), response_id.as_ref()), results, refusal);
        if let Err(unclaimed) = settled {
            self.server.metrics().count_dropped_results(unclaimed);
            self.log(|| {
                let session = session_id.as_ref().map(SessionId::as_str);
                let command = response_id.as_ref().map(ResponseId::as_str);
                tracing::info!(session, command, reason = %unclaimed, "results dropped");
            });
            if session_id.is_none() {
                reply(ServerMessage::error(unclaimed.to_string(), None));
            }
        }
    }

    fn device_info(&self, target_id: &ClientId, request_id: Option<RequestId>) -> ServerMessage {
        if !self.client.may_reach(target_id) {
            let text = "Not authorized to request device info for this device";
            return ServerMessage::error(text.to_owned(), None);
        }
        let facts = self.server.hub().facts(target_id);
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
            .and_then(|facts| facts::with_id(&facts, self.client.id()))
            .map(|facts| facts::merged(facts, self.client.id(), self.server.config()));
        match facts {
            Some(facts) => self.server.act(|hub, _| hub.set_facts(self.via, facts)),
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
        let event = if is_cut { Audited::Cut } else { Audited::Disconnected };
        let reason = closed.to_string();
        self.server
            .audit()
            .record(audit::Entry { reason: Some(&reason), ..self.client.entry(event) });
        let is_goodbye = !closed.by_us && closed.code == CloseCode::NORMAL;
        self.server.act(|hub, moment| hub.disconnect(moment, self.via, is_goodbye));
        if let Some(overflow) = self.client.outbox.overflow() {
            self.report_slow_consumer(overflow);
        }
        let by = if closed.by_us { "server" } else { "peer" };
        self.log(|| tracing::info!(by, closed = reason, "disconnected"));
    }

    fn report_slow_consumer(&self, overflow: Overflow) {
        self.server.metrics().count_slow_consumer();
        let config = self.server.config();
        let (setting, limit) = match overflow.bound {
            Bound::Messages => ("outbox_messages", config.outbox_messages),
            Bound::Bytes => ("outbox_bytes", config.outbox_bytes),
            Bound::Budget | Bound::Room => ("max_bytes_in_flight", config.max_bytes_in_flight),
        };
        self.log(|| {
            tracing::warn!(
                queued_messages = overflow.messages,
                queued_bytes = overflow.bytes,
                refused_bytes = overflow.refused,
                setting,
                limit,
                "a client was cut because it reads too slowly"
            );
        });
    }
}
