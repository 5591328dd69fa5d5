//! From an HTTP upgrade to a registered connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aip::codec::{MAX_FIRST_MESSAGE_BYTES, MAX_MESSAGE_BYTES};
use aip::machine::{Refusal, Registration, confirm};
use aip::message::{Confirmed, Feature, Refused, ResumeRefused, Resumed, TaskRefused, VERSION};
use aip::{ClientId, ClientMessage, CloseCode, DecodeError, ServerMessage};
use axum::http::{Method, Request, Response, StatusCode, Version, header};
use base64::Engine;
use bytes::Bytes;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use link::connection::now;
use link::{Alive, Connection, Event, Socket};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_rustls::server::TlsStream;
use tracing::{Instrument, Span};

use crate::audit;
use crate::auth::Principal;
use crate::connection::{self, Registered};
use crate::facts;
use crate::handle::{ConnectionId, Handle};
use crate::hub::{Entered, Newcomer};
use crate::patient::Patient;
use crate::server::{OpenSocket, Server};
use crate::session::fresh_response_id;
use crate::spans;

/// What a WebSocket key is hashed with, from RFC 6455.
const WEB_SOCKET_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// How long a connection whose id a newcomer with the same key wants may be silent after a ping,
/// before it counts as dead.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// A peer that comes in: the holder of the key that it showed, and its address.
pub(crate) struct Visitor {
    pub(crate) holder: Arc<Principal>,
    pub(crate) address: Option<SocketAddr>,
}

/// The `Sec-WebSocket-Key` of a request, when it asks for a WebSocket as RFC 6455, 4.1 says.
pub(crate) fn upgrade_key<B>(request: &Request<B>) -> Option<&[u8]> {
    let headers = request.headers();
    let names = |name: header::HeaderName, word: &str| {
        headers.get_all(name).iter().any(|value| {
            let words = value.to_str().unwrap_or_default().split(',');
            words.into_iter().any(|found| found.trim().eq_ignore_ascii_case(word))
        })
    };
    let asks = request.method() == Method::GET
        && request.version() >= Version::HTTP_11
        && names(header::CONNECTION, "upgrade")
        && names(header::UPGRADE, "websocket")
        && names(header::SEC_WEBSOCKET_VERSION, "13");
    headers.get(header::SEC_WEBSOCKET_KEY).filter(|_| asks).map(|key| key.as_bytes())
}

/// The answer that turns a request into a WebSocket.
pub(crate) fn switch(key: &[u8]) -> Response<axum::body::Body> {
    let mut hash = sha1_smol::Sha1::new();
    hash.update(key);
    hash.update(WEB_SOCKET_GUID.as_bytes());
    let accept = base64::engine::general_purpose::STANDARD.encode(hash.digest().bytes());
    let mut response = Response::new(axum::body::Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, header::HeaderValue::from_static("websocket"));
    if let Ok(accept) = header::HeaderValue::from_str(&accept) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    response
}

/// Waits until hyper lets go of the stream, and serves it.
pub(crate) async fn upgraded(
    server: Server,
    upgrade: OnUpgrade,
    visitor: Visitor,
    opened: OpenSocket,
) {
    match upgrade.await {
        Ok(upgraded) => accept(server, socket(upgraded), visitor, opened).await,
        Err(error) => tracing::debug!(%error, "an upgrade came to nothing"),
    }
}

/// The stream itself where there is one, since hyper's wrapper costs memory for each connection.
fn socket(upgraded: Upgraded) -> Socket {
    let limit = MAX_FIRST_MESSAGE_BYTES;
    let upgraded = match upgraded.downcast::<TokioIo<Patient<TcpStream>>>() {
        Ok(parts) => {
            let stream = parts.io.into_inner().into_inner();
            return Socket::server(stream, parts.read_buf, limit);
        }
        Err(upgraded) => upgraded,
    };
    match upgraded.downcast::<TokioIo<Patient<TlsStream<TcpStream>>>>() {
        Ok(parts) => Socket::server(parts.io.into_inner().into_inner(), parts.read_buf, limit),
        Err(upgraded) => Socket::server(TokioIo::new(upgraded), Bytes::new(), limit),
    }
}

/// Registers the peer on a socket, and returns once it is registered or refused. A registered connection
/// continues in a task of its own, whose memory is its own future and no more.
pub(crate) async fn accept(server: Server, socket: Socket, visitor: Visitor, opened: OpenSocket) {
    let id = server.next_connection_id();
    let span = spans::connection(id, visitor.address, None);
    take_in(server, id, socket, visitor, opened).instrument(span).await;
}

async fn take_in(
    server: Server,
    id: ConnectionId,
    mut socket: Socket,
    visitor: Visitor,
    opened: OpenSocket,
) {
    socket.set_max_message(MAX_FIRST_MESSAGE_BYTES);
    socket.set_budget(server.budget().clone());
    let outbox = Arc::new(link::Outbox::new(server.config().outbox()));
    let mut connection =
        Connection::new(socket, outbox, server.config().watch(), Some(server.metrics().tap()));
    let mut client_id = None;
    let refusal = match first_message(&server, &mut connection).await {
        Ok(registration) => {
            client_id = Some(registration.client_id.clone());
            match register(&server, id, registration, &visitor).await {
                Ok((client, resumed)) => {
                    return serve(&server, connection, client, resumed, opened);
                }
                Err(refusal) => refusal,
            }
        }
        Err(Some(refusal)) => refusal,
        Err(None) => return connection.close(CloseCode::NORMAL, "").await,
    };
    server.metrics().count_refusal(&refusal);
    let text = refusal.to_string();
    tracing::info!(
        client = client_id.as_ref().map(tracing::field::display),
        key = visitor.holder.name(),
        refusal = text,
        "registration refused"
    );
    server.audit().record(audit::Entry {
        client: client_id.as_ref().map(ClientId::as_str),
        key: Some(visitor.holder.name()),
        address: visitor.address,
        reason: Some(&text),
        ..audit::Entry::new(audit::Event::Refused)
    });
    let mismatch = refusal.mismatch().map(|resume| ResumeRefused { resume });
    let retry = || TaskRefused { request_id: None, refused: Refused::Retry }.to_payload();
    let error = ServerMessage {
        result: match mismatch {
            Some(mismatch) => mismatch.to_result(),
            None => refusal.may_retry().then(retry).flatten(),
        },
        ..stamped(&server, ServerMessage::error(text.clone(), None))
    };
    if refusal.close_code() == CloseCode::TOO_BIG {
        return connection.refuse(&error, CloseCode::TOO_BIG, &text).await;
    }
    connection.reply(&error);
    connection.close(refusal.close_code(), &text).await;
}

/// Waits for REGISTER. `Err(None)` when the peer went away without a word.
async fn first_message(
    server: &Server,
    connection: &mut Connection<ClientMessage>,
) -> Result<Registration, Option<Refusal>> {
    let timeout = server.config().registration_timeout;
    let event = tokio::select! {
        biased;
        event = connection.next_event(Some(now() + timeout)) => event,
        () = server.shutting_down() => return Err(Some(Refusal::ShuttingDown)),
    };
    server.metrics().count_received(&event);
    match event {
        Event::Message(message) => Registration::read(message).map_err(Some),
        Event::Unreadable(error, _) => Err(Some(error.into())),
        Event::Binary => Err(Some(Refusal::Binary)),
        Event::Due => Err(Some(Refusal::TooLate(timeout.as_secs()))),
        Event::Closed(closed) if closed.code == CloseCode::TOO_BIG && closed.by_us => {
            let limit = MAX_FIRST_MESSAGE_BYTES;
            Err(Some(DecodeError::TooBig { bytes: limit + 1, limit }.into()))
        }
        Event::Closed(_) => Err(None),
    }
}

/// Registers a newcomer. Its key is checked first, so that a peer learns nothing that its key does not
/// let it see.
async fn register(
    server: &Server,
    id: ConnectionId,
    mut registration: Registration,
    visitor: &Visitor,
) -> Result<(Registered, Option<Resumed>), Refusal> {
    check_key(server, &registration, &visitor.holder)?;
    let (config, metrics) = (server.config(), server.metrics());
    let outbox = link::Outbox::new(config.outbox())
        .counting_dropped_progress(metrics.dropped_progress())
        .patient(server.budget().clone(), config.slow_after);
    let own = registration.system_info.clone();
    let facts = own.map(|own| facts::of_newcomer(own, &registration.client_id, config));
    let claim = registration.extension.as_mut().and_then(|asked| asked.resume.take());
    let at = server.ambient().timestamp();
    let handle = Arc::new(Handle::new(id, registration, visitor, outbox, at));
    let enter = || {
        let (facts, claim) = (facts.clone(), claim.as_ref());
        let newcomer = Newcomer { handle: &handle, facts, claim };
        server.act(|hub, moment| hub.register(moment, newcomer))
    };
    let mut entered = enter();
    if let Err(Refusal::AlreadyRegistered(_) | Refusal::InUse(_)) = entered
        && replace_dead(server, &handle).await
    {
        entered = enter();
    }
    let (via, answer) = match entered? {
        Entered::Here(via) => (via, None),
        Entered::Confirming(via, answer) => (via, Some(answer)),
    };
    let registered = Registered { server: server.clone(), via, handle: handle.clone() };
    let resumed = match answer {
        Some(answer) => Some(confirmed(server, answer).await?),
        None => None,
    };
    // A key that was revoked since we looked does not know of this client; it is taken out again, and any task that it
    // was sent meanwhile ends.
    if !server.keyring().is_valid(&registered.handle.holder) {
        return Err(Refusal::NotAllowed("This key was revoked or has expired".to_owned()));
    }
    metrics.count_registration(registered.handle.peer.client_type);
    Span::current().record("client", tracing::field::display(registered.handle.id()));
    Ok((registered, resumed))
}

/// Waits until all that was settled before for a newcomer's identity is stored. Nothing is read from it meanwhile.
async fn confirmed(
    server: &Server,
    answer: oneshot::Receiver<Resumed>,
) -> Result<Resumed, Refusal> {
    tokio::select! {
        biased;
        answer = tokio::time::timeout(server.config().liveness_timeout, answer) => match answer {
            Ok(answer) => answer.map_err(|_| Refusal::Overtaken),
            Err(_) => Err(Refusal::NotStored),
        },
        () = server.shutting_down() => Err(Refusal::ShuttingDown),
    }
}

fn check_key(
    server: &Server,
    registration: &Registration,
    holder: &Principal,
) -> Result<(), Refusal> {
    let (role, id) = (registration.client_type, &registration.client_id);
    holder
        .may_register(role, id)
        .and_then(|()| server.keyring().check_bound(holder, role, id))
        .map_err(Refusal::NotAllowed)?;
    match &registration.target_id {
        Some(target) if !holder.may_reach(target) => {
            Err(Refusal::NotAllowed("Not authorized to run tasks on this device".to_owned()))
        }
        _ => Ok(()),
    }
}

/// Whether the connection that has the newcomer's id was dead and is gone now. It is looked at only
/// for a newcomer with the same key, and a live one stays.
async fn replace_dead(server: &Server, newcomer: &Handle) -> bool {
    let Some((via, old)) = server.hub().client(newcomer.id()) else { return true };
    if !old.holder.has_key_of(&newcomer.holder) {
        return false;
    }
    let alive = tokio::time::timeout(PROBE_TIMEOUT, old.outbox.probe()).await;
    match alive {
        Ok(Ok(Alive)) => false,
        // Without an answer it is dead; if its actor has ended, it is gone.
        Ok(Err(_)) => true,
        Err(_) => {
            tracing::warn!(
                client = %old.id(),
                replaced = %old.connection,
                silent_s = old.outbox.silence().as_secs(),
                "a dead connection is replaced by a new one with the same key"
            );
            old.outbox.abort(CloseCode::REPLACED, "replaced: no sign of life, and you came anew");
            server.act(|hub, moment| hub.disconnect(moment, via, false));
            true
        }
    }
}

fn serve(
    server: &Server,
    mut connection: Connection<ClientMessage>,
    client: Registered,
    resumed: Option<Resumed>,
    opened: OpenSocket,
) {
    connection.set_max_message(MAX_MESSAGE_BYTES);
    if client.handle.has(Feature::Resume) {
        connection.set_watch(server.config().resume_watch());
    }
    connection.set_outbox(client.handle.outbox.clone());
    let (id, at) = (fresh_response_id(server.ambient()), server.ambient().time_text());
    connection.reply(&confirm(id, at, granted(server, &client.handle, resumed).as_ref()));
    server.audit().record(client.handle.entry(audit::Event::Registered));
    let span = spans::around(&client.handle);
    let running = connection::run(server.clone(), connection, client, opened);
    // Without a span the future is not wrapped: the wrapper would take memory of each connection.
    match span {
        Some(span) => server.spawn(running.instrument(span)),
        None => server.spawn(running),
    }
}

/// What a peer that asked for the extension gets of it.
fn granted(server: &Server, client: &Handle, resumed: Option<Resumed>) -> Option<Confirmed> {
    let next_key = server.config().next_pin.map(|pin| pin.to_string());
    client.is_flightdeck.then(|| Confirmed {
        version: VERSION,
        features: client.peer.features.list(),
        server: concat!("flightdeck/", env!("CARGO_PKG_VERSION")).to_owned(),
        connection: client.connection.to_string(),
        next_key,
        resumed,
    })
}

/// A message with the time of day.
pub(crate) fn stamped(server: &Server, message: ServerMessage) -> ServerMessage {
    let ambient = server.ambient();
    ServerMessage {
        response_id: message.response_id.or_else(|| Some(fresh_response_id(ambient))),
        timestamp: Some(ambient.time_text()),
        ..message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_get_of_http_1_1_becomes_a_web_socket() {
        let asks = |method: &str, version: Version| {
            let mut request = Request::new(());
            *request.method_mut() = method.parse().unwrap();
            *request.version_mut() = version;
            for (name, value) in [
                (header::CONNECTION, "keep-alive, Upgrade"),
                (header::UPGRADE, "WebSocket"),
                (header::SEC_WEBSOCKET_VERSION, "13"),
                (header::SEC_WEBSOCKET_KEY, "k"),
            ] {
                request.headers_mut().insert(name, value.parse().unwrap());
            }
            upgrade_key(&request).is_some()
        };
        assert!(asks("GET", Version::HTTP_11));
        assert!(!asks("HEAD", Version::HTTP_11), "it has no answer but a head");
        assert!(!asks("GET", Version::HTTP_10));
    }

    #[test]
    fn the_accept_key_is_the_rfcs_own_example() {
        let response = switch(b"dGhlIHNhbXBsZSBub25jZQ==");
        let accept = response.headers().get(header::SEC_WEBSOCKET_ACCEPT).unwrap();
        assert_eq!(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
