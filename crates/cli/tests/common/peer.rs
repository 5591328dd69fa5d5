//! Raw WebSocket peers that say exactly what the Python ones say: all fields, unset ones as `null`.

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_websockets::{ClientBuilder, Error, Limits, Message, ServerBuilder, WebSocketStream};

use super::{unique, within};

/// The fields of a ClientMessage, in Python's order.
const CLIENT_FIELDS: [&str; 14] = [
    "type",
    "status",
    "client_type",
    "session_id",
    "task_name",
    "client_id",
    "target_id",
    "request",
    "action_results",
    "timestamp",
    "request_id",
    "prev_response_id",
    "error",
    "metadata",
];

/// The fields of a ServerMessage, in Python's order.
const SERVER_FIELDS: [&str; 14] = [
    "type",
    "status",
    "user_request",
    "agent_name",
    "process_name",
    "root_name",
    "actions",
    "messages",
    "error",
    "session_id",
    "task_name",
    "timestamp",
    "response_id",
    "result",
];

const TIMESTAMP: &str = "2026-01-01T00:00:00+00:00";

/// A message with all its fields, in their order.
fn python_text(order: &[&str], fields: &Value) -> String {
    let unknown: Vec<_> =
        fields.as_object().unwrap().keys().filter(|key| !order.contains(&key.as_str())).collect();
    assert!(unknown.is_empty(), "no such fields: {unknown:?}");
    let members = order.iter().map(|key| {
        let value = fields.get(key).unwrap_or(&Value::Null);
        format!("\"{key}\": {value}")
    });
    format!("{{{}}}", members.collect::<Vec<_>>().join(", "))
}

/// `b` over `a`.
fn merged(mut a: Value, b: &Value) -> Value {
    for (key, value) in b.as_object().unwrap() {
        a[key] = value.clone();
    }
    a
}

/// One end of a connection that says what it is told to say.
pub(crate) struct Peer {
    pub(crate) socket: WebSocketStream<TcpStream>,
    pub(crate) id: String,
    pub(crate) role: &'static str,
}

impl Peer {
    /// Connects to the server at a port. An HTTP status if it lets nobody in with this key.
    pub(crate) async fn connect(port: u16, key: &str) -> Result<Self, u16> {
        Self::connect_with(TcpSocket::new_v4().unwrap(), port, key).await
    }

    /// The same on a socket of the caller's.
    pub(crate) async fn connect_with(socket: TcpSocket, port: u16, key: &str) -> Result<Self, u16> {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        let connecting = async {
            let stream = socket.connect(address).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let uri = format!("ws://127.0.0.1:{port}/ws?token={key}");
            let builder = ClientBuilder::new().uri(&uri).unwrap().limits(Limits::unlimited());
            builder.connect_on(stream).await
        };
        match within("a connection", connecting).await {
            Ok((socket, _)) => Ok(Self { socket, id: String::new(), role: "device" }),
            Err(Error::Upgrade(tokio_websockets::upgrade::Error::DidNotSwitchProtocols(
                status,
            ))) => Err(status),
            Err(error) => panic!("no connection: {error}"),
        }
    }

    /// Registers as a Python device does.
    pub(crate) async fn register_device(&mut self, id: &str) {
        self.say_device(id).await;
        self.expect("heartbeat").await;
    }

    /// Says the REGISTER of a device.
    pub(crate) async fn say_device(&mut self, id: &str) {
        (self.id, self.role) = (id.to_owned(), "device");
        let facts = json!({"device_id": id, "platform": "linux", "cpu_count": 2, "hostname": "h"});
        let metadata = json!({"system_info": facts, "platform": "linux"});
        self.say("register", json!({"metadata": metadata})).await;
    }

    /// Registers as a Python constellation does.
    pub(crate) async fn register_constellation(&mut self, id: &str, target: Value) {
        self.say_constellation(id, target).await;
        self.expect("heartbeat").await;
    }

    /// Says the REGISTER of a constellation.
    pub(crate) async fn say_constellation(&mut self, id: &str, target: Value) {
        (self.id, self.role) = (id.to_owned(), "constellation");
        let metadata = json!({"type": "constellation_client"});
        self.say("register", json!({"target_id": target, "metadata": metadata})).await;
    }

    /// Registers as one of ours does that wants to hear of progress, or to tell it.
    pub(crate) async fn register_for_progress(&mut self, id: &str, role: &'static str) {
        (self.id, self.role) = (id.to_owned(), role);
        let asks = json!({"version": 1, "features": ["progress"]});
        self.say("register", json!({"metadata": {"platform": "linux", "flightdeck": asks}})).await;
        self.expect("heartbeat").await;
    }

    /// A ClientMessage of this peer, with what is set beyond the usual.
    pub(crate) fn message(&self, kind: &str, fields: &Value) -> String {
        let status = if matches!(kind, "task" | "command_results") { "continue" } else { "ok" };
        let usual = json!({"type": kind, "status": status, "client_type": self.role,
            "client_id": self.id, "timestamp": TIMESTAMP});
        python_text(&CLIENT_FIELDS, &merged(usual, fields))
    }

    /// Says a ClientMessage.
    pub(crate) async fn say(&mut self, kind: &str, fields: Value) {
        self.send(self.message(kind, &fields)).await;
    }

    /// Submits a task, as Galaxy does. Returns its session id.
    pub(crate) async fn submit(&mut self, target: &str, request: &str) -> String {
        let session = unique("session");
        let task = json!({"session_id": session, "task_name": "t", "target_id": target,
            "request": request, "request_id": unique("request")});
        self.say("task", task).await;
        session
    }

    /// Answers a COMMAND.
    pub(crate) async fn answer(&mut self, command: &Value, results: Value) {
        let fields = json!({"session_id": command["session_id"], "action_results": results,
            "prev_response_id": command["response_id"]});
        self.say("command_results", fields).await;
    }

    /// Answers a COMMAND well.
    pub(crate) async fn answer_well(&mut self, command: &Value) {
        let actions = command["actions"].as_array().unwrap();
        let results: Vec<_> =
            actions.iter().map(|action| super::good_result(&action["call_id"])).collect();
        self.answer(command, json!(results)).await;
    }

    /// Says a ServerMessage, as a Python server does.
    pub(crate) async fn say_as_server(&mut self, kind: &str, status: &str, fields: Value) {
        let usual = json!({"type": kind, "status": status, "timestamp": TIMESTAMP,
            "response_id": unique("response")});
        self.send(python_text(&SERVER_FIELDS, &merged(usual, &fields))).await;
    }

    /// Sends text as it is.
    pub(crate) async fn send(&mut self, text: impl Into<Bytes>) {
        let message = Message::text(text.into());
        within("sending", self.socket.send(message)).await.unwrap();
    }

    /// What comes next: a message, or the code and reason of the close.
    pub(crate) async fn next(&mut self) -> Result<Value, (u16, String)> {
        self.next_text().await.map(|text| parse(&text))
    }

    /// The same as it came.
    pub(crate) async fn next_text(&mut self) -> Result<String, (u16, String)> {
        within("the next frame", self.next_or_never()).await
    }

    /// Keeps the connection alive, as a real program does, while something else happens: it answers
    /// pings, and says and hears nothing.
    pub(crate) async fn alive_while<T>(&mut self, happens: impl Future<Output = T>) -> T {
        tokio::select! {
            frame = self.next_or_never() => panic!("{} got {frame:?}", self.id),
            happened = happens => happened,
        }
    }

    /// What comes next, without a limit on the wait.
    pub(crate) async fn next_or_never(&mut self) -> Result<String, (u16, String)> {
        loop {
            let frame = match self.socket.next().await {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Err((1006, error.to_string())),
                None => return Err((1006, "no close frame".to_owned())),
            };
            if let Some((code, reason)) = frame.as_close() {
                return Err((code.into(), reason.to_owned()));
            }
            if let Some(text) = frame.as_text() {
                return Ok(text.to_owned());
            }
        }
    }

    /// The next message, which must be of this kind.
    pub(crate) async fn expect(&mut self, kind: &str) -> Value {
        match self.next().await {
            Ok(message) if message["type"] == kind => message,
            other => panic!("{} expected {kind}, got {other:?}", self.id),
        }
    }

    /// The next message, which must be the ACK of this session.
    pub(crate) async fn expect_ack(&mut self, session: &str) {
        let ack = self.expect("heartbeat").await;
        assert_eq!((&ack["status"], &ack["session_id"]), (&json!("ok"), &json!(session)));
        assert!(ack["response_id"].is_string(), "{ack}");
    }

    /// The next message, which must be an ERROR. Returns its text.
    pub(crate) async fn expect_error(&mut self) -> String {
        let error = self.expect("error").await;
        assert_eq!(error["status"], "error");
        error["error"].as_str().unwrap().to_owned()
    }

    /// The next message, which must be the end of this session in this way.
    pub(crate) async fn expect_end(&mut self, session: &str, status: &str) -> Value {
        let end = self.expect("task_end").await;
        assert_eq!(
            (&end["session_id"], &end["status"]),
            (&json!(session), &json!(status)),
            "{end}"
        );
        end
    }

    /// The close, which must come next. Returns its code and reason.
    pub(crate) async fn expect_close(&mut self) -> (u16, String) {
        match self.next().await {
            Err(close) => close,
            Ok(message) => panic!("{} expected a close, got {message}", self.id),
        }
    }

    /// A heartbeat, which must be answered next: nothing else was on its way.
    pub(crate) async fn beat(&mut self) {
        self.say("heartbeat", json!({})).await;
        let answer = self.expect("heartbeat").await;
        assert_eq!((&answer["status"], &answer["session_id"]), (&json!("ok"), &Value::Null));
    }

    /// Hangs up, as a Python client that is done does.
    pub(crate) async fn close(mut self) {
        within("closing", self.socket.close()).await.unwrap();
    }
}

/// A message, without its unset fields: `null` and missing mean the same.
fn parse(text: &str) -> Value {
    let mut message: Value = serde_json::from_str(text).unwrap();
    if let Some(fields) = message.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    message
}

/// A server that behaves as the Python one does in the golden transcripts.
pub(crate) struct PythonServer(TcpListener);

impl PythonServer {
    pub(crate) async fn start() -> Self {
        Self::start_at("127.0.0.1:0").await
    }

    /// The same at an address.
    pub(crate) async fn start_at(address: &str) -> Self {
        Self(TcpListener::bind(address).await.unwrap())
    }

    pub(crate) fn port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }

    pub(crate) fn url(&self) -> String {
        format!("ws://127.0.0.1:{}/ws", self.port())
    }

    /// Waits for a client, takes its REGISTER and confirms it. Returns both.
    pub(crate) async fn accept(&self) -> (Peer, Value) {
        self.accept_granting(json!({})).await
    }

    /// The same with more than a Python server says in its confirmation.
    pub(crate) async fn accept_granting(&self, confirmation: Value) -> (Peer, Value) {
        let (stream, _) = within("a client", self.0.accept()).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let upgrade = ServerBuilder::new().limits(Limits::unlimited());
        let (_, socket) = within("an upgrade", upgrade.accept(stream)).await.unwrap();
        let mut peer = Peer { socket, id: "python server".to_owned(), role: "server" };
        let register = peer.expect("register").await;
        peer.say_as_server("heartbeat", "ok", confirmation).await;
        (peer, register)
    }
}
