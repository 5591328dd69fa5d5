//! A raw peer on an in-memory link, and what tests of sessions do with one. Time is paused.

use std::sync::Arc;
use std::time::Duration;

use aip::codec::Wire;
use aip::{ClientMessage, CloseCode, ServerMessage};
use bytes::Bytes;
use link::connection::{Watch, now};
use link::memory::{KillSwitch, pair};
use link::{Closed, Connection, Event, Outbox, OutboxLimits};
use serde_json::{Value, json};
use server::{Server, Snapshot};

/// Longer than any wait of these tests: what does not come by then never comes.
pub(crate) const NEVER: Duration = Duration::from_secs(24 * 3600);

/// A raw peer on its end of a link.
pub(crate) struct Peer {
    pub(crate) id: &'static str,
    pub(crate) role: &'static str,
    pub(crate) connection: Connection<ServerMessage>,
    pub(crate) switch: KillSwitch,
}

impl Peer {
    pub(crate) async fn join(server: &Server, id: &'static str, role: &'static str) -> Self {
        let (peer, confirmation) = Self::come(server, id, role).await;
        assert_eq!(confirmation["status"], "ok", "{confirmation}");
        peer
    }

    /// Registers. Returns the server's answer too, which may take a while.
    pub(crate) async fn come(
        server: &Server,
        id: &'static str,
        role: &'static str,
    ) -> (Self, Value) {
        Self::come_with(server, id, role, json!({"platform": "linux"})).await
    }

    /// The same, with this metadata.
    pub(crate) async fn come_with(
        server: &Server,
        id: &'static str,
        role: &'static str,
        metadata: Value,
    ) -> (Self, Value) {
        Self::come_for(server, id, role, metadata, None).await
    }

    /// The same, with a target that it declares.
    pub(crate) async fn come_for(
        server: &Server,
        id: &'static str,
        role: &'static str,
        metadata: Value,
        target: Option<&str>,
    ) -> (Self, Value) {
        let (theirs, ours, switch) = pair();
        let outbox = Arc::new(Outbox::new(OutboxLimits::default()));
        let watch = Watch { ping_every: Duration::from_secs(20), timeout: NEVER };
        let connection = Connection::new(ours, outbox, watch, None);
        let mut peer = Self { id, role, connection, switch };
        peer.say(json!({"type": "register", "metadata": metadata, "target_id": target}));
        let ((), answer) = tokio::join!(server.accept(theirs, None), peer.hear());
        (peer, answer)
    }

    pub(crate) fn say(&mut self, mut message: Value) {
        message["client_id"] = json!(self.id);
        message["client_type"] = json!(self.role);
        let text = Bytes::from(message.to_string());
        self.connection.reply(&ClientMessage::decode(&text).unwrap());
    }

    /// The next message, as JSON.
    pub(crate) async fn hear(&mut self) -> Value {
        match self.connection.next_event(Some(now() + NEVER)).await {
            Event::Message(message) => serde_json::from_slice(&message.encode()).unwrap(),
            event => panic!("{}: {event:?}", self.id),
        }
    }

    /// The next message, which must be of this type.
    pub(crate) async fn expect(&mut self, kind: &str) -> Value {
        let message = self.hear().await;
        assert_eq!(message["type"], kind, "{}: {message}", self.id);
        message
    }

    pub(crate) async fn closed(&mut self) -> Closed {
        match self.connection.next_event(Some(now() + NEVER)).await {
            Event::Closed(closed) => closed,
            event => panic!("{}: {event:?}", self.id),
        }
    }

    /// Lets the link work until nothing comes for a while.
    pub(crate) async fn expect_silence(&mut self, duration: Duration) {
        match self.connection.next_event(Some(now() + duration)).await {
            Event::Due => {}
            event => panic!("{}: {event:?}", self.id),
        }
    }

    /// The same, where the connection may also be found to be over.
    pub(crate) async fn expect_silence_or_end(&mut self, duration: Duration) {
        match self.connection.next_event(Some(now() + duration)).await {
            Event::Due | Event::Closed(_) => {}
            event => panic!("{}: {event:?}", self.id),
        }
    }

    pub(crate) fn submit(&mut self, session: &str, target: &str, request: &str) {
        self.say(
            json!({"type": "task", "session_id": session, "target_id": target, "request": request}),
        );
    }

    pub(crate) fn answer(&mut self, command: &Value, result: &str) {
        let call_id = &command["actions"][0]["call_id"];
        let result = json!({"status": "success", "result": result, "call_id": call_id});
        self.say(json!({
            "type": "command_results",
            "session_id": command["session_id"],
            "prev_response_id": command["response_id"],
            "action_results": [result],
        }));
        self.say(json!({"type": "heartbeat"}));
    }

    /// Answers a command, and takes the answer to the heartbeat that follows it.
    pub(crate) async fn answer_and_flush(&mut self, command: &Value, result: &str) {
        self.answer(command, result);
        self.expect("heartbeat").await;
    }

    pub(crate) async fn leave(self) {
        self.connection.close(CloseCode::NORMAL, "").await;
    }
}

pub(crate) async fn device_and_requester(server: &Server) -> (Peer, Peer) {
    let device = Peer::join(server, "d", "device").await;
    (device, Peer::join(server, "g", "constellation").await)
}

/// Submits a task for the device, and takes its ACK. Returns its first COMMAND.
pub(crate) async fn begin(
    requester: &mut Peer,
    device: &mut Peer,
    session: &str,
    plan: &str,
) -> Value {
    requester.submit(session, "d", plan);
    requester.expect("heartbeat").await;
    device.expect("command").await
}

/// Waits until the server is at rest.
pub(crate) async fn at_rest(server: &Server) -> Snapshot {
    for _ in 0..1000 {
        let snapshot = server.snapshot();
        if snapshot.sessions + snapshot.clients + snapshot.lanes + snapshot.sockets == 0 {
            return snapshot;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{:?}", server.snapshot());
}
