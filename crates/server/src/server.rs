//! The server as a whole: start, accept, supervise, shut down.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use aip::CloseCode;
use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use link::Socket;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::accept::{self, Visitor};
use crate::agent::{Agent, Auto};
use crate::auth::{KeyRecord, Keyring, Keys};
use crate::config::Config;
use crate::http;
use crate::metrics::Metrics;
use crate::registry::{ConnectionId, Registry};
use crate::session::Sessions;
use crate::store::{MemoryStore, Store};
use crate::tls::Tls;

/// Connections that the kernel keeps for us until they are accepted: ten thousand devices may come
/// back in the same second.
const LISTEN_BACKLOG: u32 = 4096;

/// The largest head of an HTTP request, in bytes.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// How often to look for keys that have expired.
const KEY_CHECK: Duration = Duration::from_secs(1);

/// After an accept that failed for want of a resource, how long to wait for it.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// At shutdown, how long each group of peers may take to read what is queued for it.
const GOODBYE: Duration = Duration::from_secs(3);

/// Why serving ended with an error.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, #[source] io::Error),
}

/// An agent server. Cheap to clone; all clones are the same server.
#[derive(Clone)]
pub struct Server(Arc<Inner>);

struct Inner {
    config: Config,
    keyring: Keyring,
    started_at: Timestamp,
    registry: Registry,
    sessions: Sessions,
    store: Arc<dyn Store>,
    agent: Arc<dyn Agent>,
    connections: TaskTracker,
    next_connection: AtomicU64,
    metrics: Metrics,
    http_places: Arc<Semaphore>,
    stopping: CancellationToken,
    open_sockets: AtomicUsize,
}

/// How much of everything there is, for tests and for the curious: a server at rest has zeros.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Registered clients.
    pub clients: usize,
    /// Tasks that are not over.
    pub sessions: usize,
    /// Session ids in use.
    pub session_ids: usize,
    /// Devices with a queue.
    pub lanes: usize,
    /// Clients with open tasks.
    pub requesters: usize,
    /// Commands without a settlement.
    pub commands: usize,
    /// Messages that wait to be sent.
    pub queued_messages: usize,
    /// WebSockets, registered or not.
    pub sockets: usize,
    /// Results that answered no open command, since the start.
    pub dropped_results: u64,
}

/// Listens on an address, with room for a crowd.
///
/// # Errors
/// When the address is taken or not ours.
pub fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(LISTEN_BACKLOG)
    };
    listen().map_err(|error| ServeError::Listen(address, error))
}

impl Server {
    /// A server that keeps its journals in memory and opens to these keys.
    #[must_use]
    pub fn new(config: Config, keys: Keys) -> Self {
        let store = MemoryStore::new(config.history_tasks, config.history_bytes);
        Self::with(config, keys, Arc::new(store), Arc::new(Auto))
    }

    /// A server with a store and an agent of the caller's.
    #[must_use]
    pub fn with(config: Config, keys: Keys, store: Arc<dyn Store>, agent: Arc<dyn Agent>) -> Self {
        let max_connections = config.max_connections.min(Semaphore::MAX_PERMITS);
        Self(Arc::new(Inner {
            config: config.sound(),
            keyring: Keyring::new(keys),
            started_at: Timestamp::now(),
            registry: Registry::default(),
            sessions: Sessions::default(),
            store,
            agent,
            connections: TaskTracker::new(),
            next_connection: AtomicU64::new(1),
            metrics: Metrics::new(),
            http_places: Arc::new(Semaphore::new(max_connections)),
            stopping: CancellationToken::new(),
            open_sockets: AtomicUsize::new(0),
        }))
    }

    /// The routes: `/ws` and the HTTP API, to be served or merged into another program's.
    pub fn router(&self) -> Router {
        http::router(self.clone())
    }

    /// The OpenAPI description of the HTTP API, as JSON.
    #[must_use]
    pub fn openapi(&self) -> String {
        http::description(self)
    }

    /// Serves whoever connects until `stop`, then shuts down: lets running commands finish within the
    /// grace time, ends the rest with an outcome each, and says goodbye to every peer.
    pub async fn serve(&self, listener: TcpListener, stop: CancellationToken) {
        self.serve_with(listener, None, stop).await;
    }

    /// The same over TLS.
    pub async fn serve_tls(&self, listener: TcpListener, tls: Tls, stop: CancellationToken) {
        self.serve_with(listener, Some(tls), stop).await;
    }

    async fn serve_with(&self, listener: TcpListener, tls: Option<Tls>, stop: CancellationToken) {
        let router = self.router();
        let mut key_check = tokio::time::interval(KEY_CHECK);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => break,
                _ = key_check.tick() => {
                    if self.0.keyring.has_expired() {
                        self.close_invalid();
                    }
                    continue;
                }
            };
            match accepted {
                Ok((stream, address)) => {
                    self.serve_stream(stream, address, tls.clone(), router.clone());
                }
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        self.shut_down().await;
    }

    fn serve_stream(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        tls: Option<Tls>,
        router: Router,
    ) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "failed to set TCP_NODELAY");
        }
        let header_timeout = self.0.config.header_timeout;
        let Ok(place) = self.0.http_places.clone().try_acquire_owned() else {
            return tracing::warn!(%address, "too many HTTP connections; one was dropped");
        };
        let Some(tls) = tls else {
            tokio::spawn(serve_http(stream, address, header_timeout, router, place));
            return;
        };
        tokio::spawn(async move {
            if let Some(stream) = tls.accept(stream, address, header_timeout).await {
                serve_http(stream, address, header_timeout, router, place).await;
            }
        });
    }

    /// Puts other created keys into force, and closes at once the connections of those that are gone,
    /// changed or expired.
    pub fn set_keys(&self, created: Vec<KeyRecord>) {
        self.0.keyring.replace(created);
        self.close_invalid();
    }

    fn close_invalid(&self) {
        for client in self.0.registry.all() {
            if !self.0.keyring.is_valid(&client.holder) {
                tracing::warn!(
                    client = %client.id(),
                    key = client.holder.name(),
                    "cut: its key was revoked or has expired"
                );
                client.outbox.abort(CloseCode::POLICY, "the key was revoked or has expired");
            }
        }
    }

    /// Takes a peer in, with the rights of the shared key, on a socket that has passed authentication
    /// already. Returns when it is registered or refused; a registered one is served in a task of its
    /// own.
    pub async fn accept(&self, socket: Socket, address: Option<SocketAddr>) {
        let opened = OpenSocket::new(self.clone());
        let visitor = Visitor { holder: self.0.keyring.holder_of_shared().clone(), address };
        let accepting = accept::accept(self.clone(), socket, visitor, opened);
        self.0.connections.track_future(accepting).await;
    }

    /// Serves one peer as soon as its upgrade is through.
    pub(crate) fn spawn_upgraded(&self, upgrade: hyper::upgrade::OnUpgrade, visitor: Visitor) {
        let opened = OpenSocket::new(self.clone());
        self.spawn(accept::upgraded(self.clone(), upgrade, visitor, opened));
    }

    /// Runs a part of a connection's life; shutdown waits for it.
    pub(crate) fn spawn(&self, part: impl Future<Output = ()> + Send + 'static) {
        self.0.connections.spawn(part);
    }

    /// Shuts down, as [`Self::serve`] does at its end: for programs that serve the router themselves.
    pub async fn shut_down(&self) {
        self.0.sessions.close();
        self.0.stopping.cancel();
        let grace = self.0.config.shutdown_grace;
        if tokio::time::timeout(grace, self.0.sessions.wait_empty()).await.is_err() {
            self.0.sessions.stop_all();
            let _told = tokio::time::timeout(GOODBYE, self.0.sessions.wait_empty()).await;
        }
        // A legacy client may not come back, so it keeps its link for as long as there is anything.
        for legacy in [false, true] {
            let leaving = self.0.registry.all().into_iter();
            for client in leaving.filter(|client| legacy || client.is_flightdeck) {
                client.outbox.close(CloseCode::GOING_AWAY, "the server is shutting down");
            }
            let gone = self.0.registry.wait_until(|client| !legacy && !client.is_flightdeck);
            let _read_it = tokio::time::timeout(GOODBYE, gone).await;
        }
        self.0.connections.close();
        let _read_it = tokio::time::timeout(GOODBYE, self.0.connections.wait()).await;
    }

    /// How much of everything there is right now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let clients = self.0.registry.all();
        let [sessions, session_ids, lanes, requesters] = self.0.sessions.sizes();
        Snapshot {
            clients: clients.len(),
            sessions,
            session_ids,
            lanes,
            requesters,
            commands: clients.iter().map(|client| client.commands.len()).sum(),
            queued_messages: clients.iter().map(|client| client.outbox.len()).sum(),
            sockets: self.open_sockets(),
            dropped_results: self.0.metrics.dropped_results(),
        }
    }

    pub(crate) fn config(&self) -> &Config {
        &self.0.config
    }

    pub(crate) fn keyring(&self) -> &Keyring {
        &self.0.keyring
    }

    pub(crate) fn started_at(&self) -> Timestamp {
        self.0.started_at
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.0.registry
    }

    pub(crate) fn sessions(&self) -> &Sessions {
        &self.0.sessions
    }

    pub(crate) fn store(&self) -> &dyn Store {
        &*self.0.store
    }

    pub(crate) fn agent(&self) -> &dyn Agent {
        &*self.0.agent
    }

    pub(crate) fn next_connection_id(&self) -> ConnectionId {
        ConnectionId(self.0.next_connection.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// WebSockets, registered or not.
    pub(crate) fn open_sockets(&self) -> usize {
        self.0.open_sockets.load(Ordering::Relaxed)
    }

    /// Whether the shutdown has begun.
    pub(crate) fn is_stopping(&self) -> bool {
        self.0.stopping.is_cancelled()
    }

    /// Resolves when the server shuts down.
    pub(crate) async fn shutting_down(&self) {
        self.0.stopping.cancelled().await;
    }

    /// Whether another WebSocket fits.
    pub(crate) fn has_room(&self) -> bool {
        self.open_sockets() < self.0.config.max_connections
    }
}

/// Serves the requests of one connection, which keeps its place until then.
async fn serve_http(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    address: SocketAddr,
    header_timeout: Duration,
    router: Router,
    place: OwnedSemaphorePermit,
) {
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(address);
        let mut router = router.clone();
        async move { Ok::<_, Infallible>(http::call(&mut router, request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%address, %error, "an HTTP connection ended early");
    }
    drop(place);
}

/// Counts a WebSocket for as long as it lives.
pub(crate) struct OpenSocket(Server);

impl OpenSocket {
    pub(crate) fn new(server: Server) -> Self {
        server.0.open_sockets.fetch_add(1, Ordering::Relaxed);
        Self(server)
    }
}

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.0.0.open_sockets.fetch_sub(1, Ordering::Relaxed);
    }
}
