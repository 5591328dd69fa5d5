//! The role of a constellation on its link: what each message of the server means, with *ack* and without.

use std::sync::Arc;
use std::time::Duration;

use aip::codec::About;
use aip::message::{
    Confirmed, ConstellationMetadata, Extension, Feature, Features, Passed, Refused, ResumeRefused,
    Resumed, Step, VERSION,
};
use aip::{
    ClientId, ClientMessage, ClientMessageType, ClientType, DecodeError, Payload, ServerMessage,
    ServerMessageType, Status,
};
use link::client::error_report;
use link::{Outbox, Role};

use crate::client::{RequestError, Shared, State};
use crate::ledger::acknowledgement;
use crate::task::{Outcome, TaskEvent};

/// What it asks every server for.
const WANTED: [Feature; 7] = [
    Feature::Progress,
    Feature::Ack,
    Feature::RequestId,
    Feature::Cancel,
    Feature::Detach,
    Feature::Output,
    Feature::Input,
];

/// The role of a constellation on its link.
pub(crate) struct Orchestrator {
    shared: Arc<Shared>,
    was_connected: bool,
}

impl Orchestrator {
    pub(crate) const fn new(shared: Arc<Shared>) -> Self {
        Self { shared, was_connected: false }
    }
}

impl Role for Orchestrator {
    fn identity(&self) -> (&ClientId, ClientType) {
        (&self.shared.id, ClientType::Constellation)
    }

    fn register(&mut self) -> ClientMessage {
        let resume = self.shared.lock().identity.present();
        let metadata = ConstellationMetadata {
            kind: "constellation_client",
            registration_time: self.shared.ambient.time_text(),
            flightdeck: Extension {
                version: VERSION,
                features: WANTED.to_vec(),
                at_once: None,
                resume: Some(resume),
            },
        };
        ClientMessage {
            metadata: Payload::from_value(&metadata).ok(),
            ..self.shared.message(ClientMessageType::Register)
        }
    }

    fn handle_refused(&mut self, refusal: &ServerMessage) -> bool {
        let refused = ResumeRefused::of(refusal.result.as_ref());
        refused.is_some_and(|refused| self.shared.lock().identity.handle_refused(&refused.resume))
    }

    /// Its tasks wait for it where the server gives out their outcomes until they are acknowledged.
    fn comes_back(&self, is_final: bool) -> bool {
        !is_final && self.shared.lock().granted.has(Feature::Ack)
    }

    fn handle_connected(&mut self, outbox: &Arc<Outbox>, granted: Option<&Confirmed>) {
        {
            let mut state = self.shared.lock();
            state.outbox = Some(outbox.clone());
            state.is_flightdeck = granted.is_some();
            let resumed = granted.and_then(|granted| granted.resumed.as_ref());
            // Without an identity there is nobody to give outcomes to.
            let features = resumed.and(granted).map(|granted| granted.features.as_slice());
            state.granted =
                Features::granted(features.unwrap_or_default(), ClientType::Constellation);
            if std::mem::replace(&mut self.was_connected, true) {
                state.ledger.put_all(&TaskEvent::Reconnected);
            }
            match resumed.filter(|_| state.granted.has(Feature::Ack)) {
                Some(resumed) => self.come_back(&mut state, resumed),
                None => state.ledger.lose_connection("the server now keeps no outcomes"),
            }
        }
        self.shared.connected.send_replace(true);
    }

    fn handle_message(&mut self, message: ServerMessage) {
        match message.kind {
            ServerMessageType::Heartbeat => self.handle_heartbeat(message),
            ServerMessageType::TaskEnd => self.handle_task_end(message),
            ServerMessageType::Error => self.handle_error(message),
            ServerMessageType::DeviceInfoResponse => self.handle_info(message),
            // A Python server's dispatch may push these to anybody; they are not for us.
            ServerMessageType::Task
            | ServerMessageType::Command
            | ServerMessageType::DeviceInfoRequest => {
                tracing::debug!(kind = %message.kind, "not for a constellation");
            }
        }
    }

    fn handle_unreadable(&mut self, error: &DecodeError, about: &About) {
        if about.is("task_end") {
            let mut state = self.shared.lock();
            if let Some(request_id) = state.ledger.by_session(about.session_id.as_ref()) {
                let error = format!("the outcome could not be read: {error}");
                self.settle(&mut state, &request_id, Outcome::failed(&error));
            }
        }
        let at = self.shared.ambient.time_text();
        let report =
            error_report(&self.shared.id, ClientType::Constellation, error.to_string(), at);
        if let Err(error) = self.shared.send(&report) {
            tracing::debug!(%error, "failed to report an unreadable message");
        }
    }

    fn handle_disconnected(&mut self, why: &str, retry: Option<Duration>) {
        let mut state = self.shared.lock();
        let had_connection = state.outbox.take().is_some();
        why.clone_into(&mut state.why);
        match retry {
            None => state.ledger.lose_connection(why),
            Some(_) if had_connection => {
                state.ledger.put_all(&TaskEvent::Disconnected { why: why.to_owned() });
            }
            Some(_) => {}
        }
        // Whoever waits for facts learns it from the dropped sender.
        drop(state.infos.take_all().collect::<Vec<_>>());
        drop(state);
        self.shared.connected.send_replace(false);
    }
}

impl Orchestrator {
    /// The server with *ack* knows us, or does not: what is open is said again.
    fn come_back(&self, state: &mut State, resumed: &Resumed) {
        let former = state.identity.handle_confirmed(resumed);
        let open = state.ledger.come_back(&resumed.store, former.as_deref(), resumed.resumed);
        state.start_repeats(open, &self.shared.base());
    }

    /// An ACK or progress of a task, or the answer to our own heartbeat.
    fn handle_heartbeat(&self, message: ServerMessage) {
        let mut state = self.shared.lock();
        let Some(session_id) = &message.session_id else { return };
        if message.status == Status::Continue
            && let Some(passed) = Passed::of(message.result.as_ref())
        {
            let answers = state.ledger.passed(passed, &self.shared.base());
            return answers.iter().for_each(|answer| state.push_or_repeat(answer));
        }
        if message.status == Status::Continue {
            let step = Step::of(message.result.as_ref()).map(Box::new);
            let line = message.messages.unwrap_or_default().join("\n");
            return state.ledger.put(Some(session_id), TaskEvent::Progress { line, step });
        }
        if !state.granted.has(Feature::Ack) {
            return state.ledger.accept_session(session_id);
        }
        if let Some(request_id) = state.ledger.accept(&message) {
            state.handle_answered(&request_id, &self.shared.base());
        }
    }

    fn handle_task_end(&self, message: ServerMessage) {
        let mut state = self.shared.lock();
        if state.granted.has(Feature::Ack) {
            match state.ledger.end(message) {
                Some(delivered) => {
                    state.push_or_repeat(&acknowledgement(delivered, &self.shared.base()));
                }
                None => tracing::debug!("an outcome that is not ours, or not kept, is left alone"),
            }
        } else if let Some(request_id) = state.ledger.by_session(message.session_id.as_ref()) {
            self.settle(&mut state, &request_id, Outcome::of(message));
        }
    }

    /// Ends a task whose outcome is known otherwise than by a TASK_END of a server with *ack*.
    fn settle(&self, state: &mut State, request_id: &aip::RequestId, outcome: Outcome) {
        let delivered = state.ledger.delivered(request_id);
        let is_kept = state.ledger.settle(request_id, outcome);
        if let Some(delivered) = delivered.filter(|_| is_kept) {
            state.push_or_repeat(&acknowledgement(delivered, &self.shared.base()));
        }
    }

    /// A refused task: a server without *ack* of ours follows up with a TASK_END, a Python server with nothing.
    fn handle_error(&self, message: ServerMessage) {
        let mut state = self.shared.lock();
        if state.granted.has(Feature::Ack) {
            if let Some(request_id) = state.ledger.refuse(&message) {
                return state.handle_answered(&request_id, &self.shared.base());
            }
        } else {
            let is_python = !state.is_flightdeck;
            let oldest = || if is_python { state.ledger.oldest_unaccepted() } else { None };
            let named = state.ledger.by_session(message.session_id.as_ref());
            if let Some(request_id) = named.or_else(oldest) {
                let text = message.error.as_deref().unwrap_or("Unknown error");
                let outcome = match state.ledger.is_accepted(&request_id) {
                    true => Outcome::failed(text),
                    false => Outcome::refused(Refused::Final, text),
                };
                state.ledger.settle(&request_id, outcome);
                return;
            }
        }
        let text = message.error.unwrap_or_else(|| "Unknown error".to_owned());
        // An ERROR names no request either; one question at a time is the only safe guess.
        if state.infos.len() == 1 {
            let asked = state.infos.take_all().next();
            let refused = Err(RequestError::Refused(text));
            let _nobody_waits = asked.map(|(_, answer)| answer.send(refused));
        } else {
            tracing::warn!(error = ?text, "the server reports an error");
        }
    }

    fn handle_info(&self, message: ServerMessage) {
        let answer = message.response_id.and_then(|id| self.shared.lock().infos.take(id.as_str()));
        if let Some(answer) = answer {
            let _nobody_waits = answer.send(Ok(message.result));
        }
    }
}
