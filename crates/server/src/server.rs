//! The server as a whole: start, accept, supervise, shut down.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use aip::{CloseCode, KEY_GONE};
use axum::Router;
use axum::http::{HeaderMap, header};
use jiff::Timestamp;
use link::proof::Shown;
use link::{Ambient, Budget, Pin, Socket};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::{Notify, OwnedMutexGuard, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::accept::{self, Visitor};
use crate::agent::{Agent, Auto};
use crate::audit::{Audit, Entry, Event};
use crate::auth::{
    Challenges, KeyBook, KeyLook, KeyStore, Keyring, Keys, Looks, NotProved, Principal,
};
use crate::config::Config;
use crate::front;
use crate::handle::{ConnectionId, Handle};
use crate::http;
use crate::hub::{Found, Hub, Session, StoreName};
use crate::limits::{Addresses, FailedKeys, MAX_FAILED_ADDRESSES};
use crate::metrics::Metrics;
use crate::session::{Cause, Requester, Task};
use crate::store::{MAX_GROUP, MemoryStore, Query, Recovered, Store, StoreError};
use crate::tls::Tls;

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

pub(crate) struct Inner {
    config: Arc<Config>,
    keyring: Keyring,
    key_store: Option<Arc<dyn KeyStore>>,
    /// Who has it may change what is kept of the keys, and put others into force.
    book_turn: Arc<tokio::sync::Mutex<()>>,
    challenges: Challenges,
    /// The id of the store, once it was asked for.
    store_id: OnceLock<String>,
    started_at: Timestamp,
    budget: Budget,
    hub: Mutex<Hub>,
    /// Rung when something is due earlier than the upkeep looks.
    alarm: Arc<Notify>,
    /// Rung when a client left or a session is over.
    moved: Notify,
    is_kept_up: AtomicBool,
    ambient: Ambient,
    store: Arc<dyn Store>,
    agent: Arc<dyn Agent>,
    connections: TaskTracker,
    next_connection: AtomicU64,
    metrics: Metrics,
    http_places: Arc<Semaphore>,
    key_looks: Looks,
    failed_keys: FailedKeys,
    addresses: Arc<Addresses>,
    audit: Audit,
    stopping: CancellationToken,
    tasks_over: CancellationToken,
    open_sockets: AtomicUsize,
}

/// How much of everything there is, for tests and programs that mount the server: a server at rest has zeros.
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
    /// Identities: clients, and those that left something open.
    pub identities: usize,
    /// Timers of commands and sessions.
    pub timers: usize,
    /// Messages that wait to be sent.
    pub queued_messages: usize,
    /// WebSockets, registered or not.
    pub sockets: usize,
    /// Bytes of large messages in flight.
    pub bytes_in_flight: usize,
    /// Results that answered no open command, since the start.
    pub dropped_results: u64,
}

/// What a server works with, beside its settings and keys.
pub struct Services {
    /// Where the journals go.
    pub store: Arc<dyn Store>,
    /// What decides the next steps.
    pub agent: Arc<dyn Agent>,
    /// Where the server writes down who did what.
    pub audit: Audit,
    /// The time of day, chance, ids and tasks.
    pub ambient: Ambient,
    /// Where the keys are kept; without it nobody can join.
    pub key_store: Option<Arc<dyn KeyStore>>,
}

impl Services {
    /// Journals in memory, plans only, and no audit log.
    #[must_use]
    pub fn in_memory(config: &Config) -> Self {
        let store = MemoryStore::new(config.history());
        let (audit, ambient) = (Audit::none(), Ambient::system());
        let (store, agent) = (Arc::new(store), Arc::new(Auto));
        Self { store, agent, audit, ambient, key_store: None }
    }
}

impl Server {
    /// A server that opens to these keys and works with [`Services::in_memory`].
    #[must_use]
    pub fn new(config: Config, keys: Keys) -> Self {
        let services = Services::in_memory(&config);
        Self::with(config, keys, services)
    }

    /// A server that opens to these keys.
    #[must_use]
    pub fn with(config: Config, keys: Keys, services: Services) -> Self {
        let Services { store, agent, audit, ambient, key_store } = services;
        let config = Arc::new(config.sound());
        let max_connections = config.max_connections.min(Semaphore::MAX_PERMITS);
        let budget = Budget::new(config.max_bytes_in_flight);
        let per_minute = config.failed_keys_per_minute;
        let mut hub = Hub::new(config.clone(), budget.clone());
        store.set_audit(audit.clone());
        // What is durable is taken in by `recover`; a store that begins with its process has but a name.
        if !store.is_durable()
            && let Ok(Recovered { store: id, former, .. }) = store.recover()
        {
            hub.set_store(StoreName { id, former }, false);
        }
        Self(Arc::new(Inner {
            keyring: Keyring::new(keys),
            key_store,
            book_turn: Arc::default(),
            store_id: OnceLock::new(),
            challenges: Challenges::new(),
            started_at: ambient.timestamp(),
            hub: Mutex::new(hub),
            budget,
            alarm: Arc::default(),
            moved: Notify::new(),
            is_kept_up: AtomicBool::new(false),
            ambient,
            store,
            agent,
            audit,
            connections: TaskTracker::new(),
            next_connection: AtomicU64::new(1),
            metrics: Metrics::new(),
            http_places: Arc::new(Semaphore::new(max_connections)),
            key_looks: Looks::new(),
            failed_keys: FailedKeys::new(per_minute, per_minute, MAX_FAILED_ADDRESSES),
            addresses: Arc::new(Addresses::new(config.max_unproven_per_address)),
            stopping: CancellationToken::new(),
            tasks_over: CancellationToken::new(),
            open_sockets: AtomicUsize::new(0),
            config,
        }))
    }

    /// Takes in what its store remembers: must be done once, before anything connects. Returns when every task that does
    /// not go on has its outcome stored.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn recover(&self) -> Result<(), StoreError> {
        let server = self.clone();
        let reading = tokio::task::spawn_blocking(move || server.0.store.recover());
        let recovered = reading.await.map_err(|_| StoreError::Closed)??;
        self.complete_audit().await?;
        let newest = recovered.newest_id();
        self.0.ambient.go_on_after(newest);
        let open = recovered.open.len();
        let holder = |task: &Task| {
            let holder = self.0.keyring.by_id(task.key.id.as_deref())?;
            let own = task.requester == Requester::Client(task.device.clone());
            (own || holder.may_reach(&task.device)).then_some(holder)
        };
        let shares = |task: &Task| self.agent().shares_device(&task.request);
        let found = Found {
            recovered,
            is_durable: self.0.store.is_durable(),
            holder: &holder,
            nobody: self.0.keyring.holder_of_shared().clone(),
            shares: &shares,
        };
        self.act(|hub, moment| hub.recover(moment, found));
        self.start_upkeep();
        self.wait_for(Hub::is_recovered).await;
        if open > 0 {
            let left = self.snapshot().sessions;
            tracing::info!(open, go_on = left, "tasks of before the restart were taken over");
        }
        Ok(())
    }

    /// Writes down which tasks a server that was killed had accepted, as far as it did not come to that.
    async fn complete_audit(&self) -> Result<(), StoreError> {
        let audit = self.0.audit.clone();
        let end = tokio::task::spawn_blocking(move || audit.end()).await;
        let Some(end) = end.map_err(|_| StoreError::Closed)? else { return Ok(()) };
        // Those that are open may be older than others that were accepted and ended meanwhile.
        let query = Query { limit: 2 * MAX_GROUP, ..Query::default() };
        let mut newest = self.0.store.tasks(query).await?;
        newest.retain(|known| end.misses(&known.task));
        let audit = self.0.audit.clone();
        let writing = move || audit.write_missing(newest.iter().rev().map(|known| &*known.task));
        // It says so itself when it panics.
        let _written = tokio::task::spawn_blocking(writing).await;
        Ok(())
    }

    /// Waits until what was recorded is in the audit log.
    pub(crate) async fn flush_audit(&self) {
        let audit = self.0.audit.clone();
        // It says so itself when it panics.
        let _flushed = tokio::task::spawn_blocking(move || audit.flush()).await;
    }

    /// The routes: `/ws` and the HTTP API, to be served or merged into another program's. Host and
    /// Origin of a request are checked by [`Self::serve`] before it gets here; a program that serves the
    /// routes itself knows its own names, and checks them itself.
    pub fn router(&self) -> Router {
        http::router(self.clone())
    }

    /// The OpenAPI description of the HTTP API, as JSON.
    #[must_use]
    pub fn openapi(&self) -> String {
        http::description(self)
    }

    /// Serves all that connect until `stop`, then shuts down: lets running commands finish within the
    /// grace time, ends the rest with an outcome each, and says goodbye to every peer.
    pub async fn serve(&self, listener: TcpListener, stop: CancellationToken) {
        front::serve(self, listener, None, stop).await;
    }

    /// The same over TLS.
    pub async fn serve_tls(&self, listener: TcpListener, tls: Tls, stop: CancellationToken) {
        front::serve(self, listener, Some(tls), stop).await;
    }

    /// Puts other created keys and join tokens into force. Of those keys that are gone, changed or expired the
    /// connections are closed at once, and the tasks end; so are those of clients whose id was bound to another's key
    /// pair. Who may change what is kept has to have its turn meanwhile, so that nothing older comes into force later.
    pub(crate) fn set_book(&self, book: KeyBook) {
        self.0.keyring.replace(book);
        self.close_invalid();
    }

    /// Waits until a key is shown that is not known, and that may be new: who keeps the keys looks for it then, see
    /// [`Self::begin_key_look`]. Who shows it waits meanwhile, for a second at most, if anybody ever asked here.
    pub async fn key_look_wanted(&self) {
        self.0.key_looks.wanted().await;
    }

    /// Begins a look for new keys, which are put into force by [`KeyLook::set`] before it is dropped. Waits until nobody
    /// changes them. How often that may be is for the caller to bound.
    pub async fn begin_key_look(&self) -> KeyLook<'_> {
        let turn = self.book_turn().await;
        KeyLook::new(self, self.0.key_looks.begin(), turn)
    }

    /// Has new keys looked for, if anybody does that.
    pub(crate) async fn look_for_keys(&self) {
        self.0.key_looks.next().await;
    }

    /// When each created key or key pair was last used since the server started, by its public id; to within a minute.
    #[must_use]
    pub fn key_uses(&self) -> HashMap<String, Timestamp> {
        self.0.keyring.uses()
    }

    /// The device that proves by the headers of its upgrade that it has a key pair; `None` when they show no signature.
    /// `pin` is the public key that its connection was shown.
    pub(crate) fn prove(
        &self,
        headers: &HeaderMap,
        pin: Option<Pin>,
    ) -> Option<Result<Arc<Principal>, NotProved>> {
        let shown = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
        Shown::is_meant_by(shown).then(|| {
            let shown = Shown::read(shown).ok_or(NotProved::Form)?;
            let number = self.0.challenges.number(&shown.nonce, Instant::now());
            let number = number.ok_or(NotProved::Challenge)?;
            let Config { proxy_pin, next_pin, .. } = *self.0.config;
            let own = [pin, proxy_pin, proxy_pin.and(next_pin)];
            self.0.keyring.prove(&shown, number, self.store_id(), own)
        })
    }

    /// Does what is due every second: closes the connections whose keys expired meanwhile, and lets go of
    /// history.
    pub(crate) fn tidy(&self) {
        self.0.store.tidy(self.0.ambient.timestamp());
        self.act(Hub::tidy);
        if self.0.keyring.has_expired() {
            self.close_invalid();
        }
    }

    fn close_invalid(&self) {
        // Those that came in over HTTP have no connection to end with.
        let is_meant = |session: &Session| !self.0.keyring.is_valid(session.holder());
        self.act(|hub, moment| hub.stop_where(moment, &Cause::KeyGone, is_meant));
        for client in self.handles() {
            let (holder, keyring) = (&client.holder, &self.0.keyring);
            let is_own = || keyring.check_bound(holder, client.role(), client.id()).is_ok();
            if !(keyring.is_valid(holder) && is_own()) {
                client.span().in_scope(|| {
                    let key = client.holder.name();
                    tracing::warn!(key, "cut: its key was revoked or has expired");
                });
                client.forbid();
                client.outbox.abort(CloseCode::POLICY, KEY_GONE);
            }
        }
    }

    /// Takes a peer in, with the rights of the shared key, on a socket that has passed authentication
    /// already. Returns when it is registered or refused; a registered one is served in a task of its
    /// own.
    pub async fn accept(&self, socket: Socket, address: Option<SocketAddr>) {
        self.start_upkeep();
        let opened = OpenSocket::new(self.clone());
        let visitor = Visitor { holder: self.0.keyring.holder_of_shared().clone(), address };
        let accepting = accept::accept(self.clone(), socket, visitor, opened);
        self.0.connections.track_future(accepting).await;
    }

    /// Serves one peer as soon as its upgrade is through.
    pub(crate) fn spawn_upgraded(&self, upgrade: hyper::upgrade::OnUpgrade, visitor: Visitor) {
        self.start_upkeep();
        let opened = OpenSocket::new(self.clone());
        self.spawn(accept::upgraded(self.clone(), upgrade, visitor, opened));
    }

    /// Runs a part of a connection's life; shutdown waits for it.
    pub(crate) fn spawn(&self, part: impl Future<Output = ()> + Send + 'static) {
        self.0.ambient.spawn(self.0.connections.track_future(part));
    }

    /// Shuts down, as [`Self::serve`] does at its end: for programs that serve the router themselves.
    pub async fn shut_down(&self) {
        self.act(Hub::close);
        self.0.stopping.cancel();
        let grace = self.0.config.shutdown_grace;
        if tokio::time::timeout(grace, self.wait_for(Hub::is_at_rest)).await.is_err() {
            self.act(Hub::suspend);
            if tokio::time::timeout(GOODBYE, self.wait_for(Hub::may_be_left)).await.is_err() {
                let open = self.snapshot().sessions;
                tracing::error!(open, "tasks are left whose outcome could not be stored");
            }
        }
        self.0.tasks_over.cancel();
        // A legacy client may not come back, so it keeps its link for as long as there is anything.
        for legacy in [false, true] {
            let leaving = self.handles().into_iter();
            for client in leaving.filter(|client| legacy || client.is_flightdeck) {
                client.outbox.close(CloseCode::GOING_AWAY, "the server is shutting down");
            }
            let gone = self.wait_until(|client| !legacy && !client.is_flightdeck);
            let _read_it = tokio::time::timeout(GOODBYE, gone).await;
        }
        self.0.connections.close();
        let _read_it = tokio::time::timeout(GOODBYE, self.0.connections.wait()).await;
        self.0.audit.record(Entry::new(Event::Stopped));
        let audit = self.0.audit.clone();
        // It waits for the disk. A thread of its own that fails has lost nothing but its answer.
        let _closed = tokio::task::spawn_blocking(move || audit.close()).await;
    }

    /// How much of everything there is right now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let clients = self.handles();
        let sizes = self.hub().sizes();
        Snapshot {
            clients: clients.len(),
            sessions: sizes.sessions,
            session_ids: sizes.session_ids,
            lanes: sizes.lanes,
            requesters: sizes.requesters,
            commands: sizes.commands,
            identities: sizes.identities,
            timers: sizes.timers,
            queued_messages: clients.iter().map(|client| client.outbox.len()).sum(),
            sockets: self.open_sockets(),
            bytes_in_flight: self.0.budget.usage().bytes,
            dropped_results: self.0.metrics.dropped_results(),
        }
    }

    pub(crate) fn config(&self) -> &Config {
        &self.0.config
    }

    /// The room for large messages.
    pub(crate) fn budget(&self) -> &Budget {
        &self.0.budget
    }

    pub(crate) fn keyring(&self) -> &Keyring {
        &self.0.keyring
    }

    pub(crate) fn key_store(&self) -> Option<&Arc<dyn KeyStore>> {
        self.0.key_store.as_ref()
    }

    /// Waits until nobody else changes what is kept of the keys.
    pub(crate) async fn book_turn(&self) -> OwnedMutexGuard<()> {
        self.0.book_turn.clone().lock_owned().await
    }

    /// The id of the store, which stays.
    pub(crate) fn store_id(&self) -> &str {
        self.0.store_id.get_or_init(|| self.hub().store_id().to_owned())
    }

    pub(crate) fn challenges(&self) -> &Challenges {
        &self.0.challenges
    }

    pub(crate) fn audit(&self) -> &Audit {
        &self.0.audit
    }

    pub(crate) fn failed_keys(&self) -> &FailedKeys {
        &self.0.failed_keys
    }

    pub(crate) fn addresses(&self) -> &Arc<Addresses> {
        &self.0.addresses
    }

    pub(crate) fn http_places(&self) -> &Arc<Semaphore> {
        &self.0.http_places
    }

    pub(crate) fn started_at(&self) -> Timestamp {
        self.0.started_at
    }

    /// The place that decides, locked: for a look. What changes something goes through [`Self::act`].
    pub(crate) fn hub(&self) -> MutexGuard<'_, Hub> {
        self.0.hub.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every connection, by client id.
    pub(crate) fn handles(&self) -> Vec<Arc<Handle>> {
        self.hub().handles()
    }

    pub(crate) fn alarm(&self) -> &Arc<Notify> {
        &self.0.alarm
    }

    pub(crate) fn moved(&self) -> &Notify {
        &self.0.moved
    }

    pub(crate) fn ambient(&self) -> &Ambient {
        &self.0.ambient
    }

    /// Whether this is asked for the first time.
    pub(crate) fn is_first_connection(&self) -> bool {
        !self.0.is_kept_up.load(Ordering::Relaxed)
            && !self.0.is_kept_up.swap(true, Ordering::Relaxed)
    }

    pub(crate) fn downgrade(&self) -> Weak<Inner> {
        Arc::downgrade(&self.0)
    }

    pub(crate) fn upgrade(server: &Weak<Inner>) -> Option<Self> {
        server.upgrade().map(Self)
    }

    /// Waits until the hub stands so.
    async fn wait_for(&self, stands_so: impl Fn(&Hub) -> bool) {
        loop {
            let moved = self.0.moved.notified();
            if stands_so(&self.hub()) {
                return;
            }
            moved.await;
        }
    }

    /// Waits until only clients are left that `may_stay`.
    async fn wait_until(&self, may_stay: impl Fn(&Handle) -> bool) {
        loop {
            let moved = self.0.moved.notified();
            if self.handles().iter().all(|client| may_stay(client)) {
                return;
            }
            moved.await;
        }
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

    /// Resolves when the server shuts down and all tasks are over: an HTTP request that waits
    /// for one gets its answer, and no further request is taken.
    pub(crate) async fn answering_last(&self) {
        self.0.tasks_over.cancelled().await;
    }

    /// Whether another WebSocket fits.
    pub(crate) fn has_room(&self) -> bool {
        self.open_sockets() < self.0.config.max_connections
    }
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
