//! Who is connected: one [`Client`] for each registered connection.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aip::machine::{Peer, Refusal, Registration};
use aip::message::Feature;
use aip::{ClientId, ClientType, Payload, ServerMessage};
use jiff::Timestamp;
use link::Outbox;
use link::connection::now;
use tokio::sync::Notify;

use crate::accept::Visitor;
use crate::audit::{Entry, Event};
use crate::auth::Principal;
use crate::config::Config;
use crate::dispatch::Commands;
use crate::facts;

/// The server's own number of a connection; never used twice while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConnectionId(pub(crate) u64);

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}", self.0)
    }
}

/// A registered connection, as everybody but its actor sees it.
pub(crate) struct Client {
    pub(crate) connection: ConnectionId,
    pub(crate) peer: Peer,
    /// Whose key it showed.
    pub(crate) holder: Arc<Principal>,
    pub(crate) platform: String,
    /// Whether it speaks the extension; a legacy peer does not.
    pub(crate) is_flightdeck: bool,
    /// Whether it wants to see each step.
    pub(crate) wants_progress: bool,
    pub(crate) connected_at: Timestamp,
    since: Instant,
    /// When its last HEARTBEAT came, in milliseconds after `since`, plus one; 0 for never.
    heartbeat: AtomicU64,
    pub(crate) address: Option<SocketAddr>,
    pub(crate) outbox: Arc<Outbox>,
    /// The commands that it was sent and has not answered.
    pub(crate) commands: Commands,
    facts: Mutex<Option<Payload>>,
}

impl Client {
    pub(crate) fn new(
        connection: ConnectionId,
        registration: Registration,
        visitor: &Visitor,
        outbox: Outbox,
        config: &Config,
    ) -> Self {
        let Visitor { holder, address } = visitor;
        let features = registration.extension.as_ref().map(|asked| asked.features.as_slice());
        Self {
            connection,
            is_flightdeck: features.is_some(),
            wants_progress: features.is_some_and(|asked| asked.contains(&Feature::Progress)),
            platform: registration.platform,
            facts: Mutex::new(
                registration.system_info.map(|own| facts::pinned(own, &registration.client_id)),
            ),
            peer: Peer {
                client_id: registration.client_id,
                client_type: registration.client_type,
                target_id: registration.target_id,
                is_bound: !holder.names_targets(),
            },
            holder: holder.clone(),
            connected_at: Timestamp::now(),
            since: now(),
            heartbeat: AtomicU64::new(0),
            address: *address,
            outbox: Arc::new(outbox),
            commands: Commands::new(config),
        }
    }

    pub(crate) fn id(&self) -> &ClientId {
        &self.peer.client_id
    }

    pub(crate) fn is_device(&self) -> bool {
        self.peer.client_type == ClientType::Device
    }

    /// What the audit log says of it.
    pub(crate) fn entry(&self, event: Event) -> Entry<'_> {
        Entry {
            client: Some(self.id().as_str()),
            role: Some(self.peer.client_type.as_str()),
            key: Some(self.holder.name()),
            address: self.address,
            ..Entry::new(event)
        }
    }

    /// Whether it may work with this device, as far as its key says.
    pub(crate) fn may_reach(&self, device: &ClientId) -> bool {
        device == self.id() || self.holder.may_reach(device)
    }

    /// Notes that a HEARTBEAT came.
    pub(crate) fn note_heartbeat(&self) {
        let millis = now().saturating_duration_since(self.since).as_millis();
        self.heartbeat.store(u64::try_from(millis).unwrap_or(u64::MAX - 1) + 1, Ordering::Relaxed);
    }

    /// How long ago its last HEARTBEAT came.
    pub(crate) fn heartbeat_age(&self) -> Option<Duration> {
        let at = self.heartbeat.load(Ordering::Relaxed).checked_sub(1)?;
        let since = now().saturating_duration_since(self.since);
        Some(since.saturating_sub(Duration::from_millis(at)))
    }

    /// What is known of a device: a JSON object.
    pub(crate) fn facts(&self) -> Option<Payload> {
        self.lock_facts().clone()
    }

    pub(crate) fn set_facts(&self, facts: Payload) {
        *self.lock_facts() = Some(facts);
    }

    fn lock_facts(&self) -> MutexGuard<'_, Option<Payload>> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a message. A peer that is gone or too slow is cut by its own connection, which everybody
    /// who waits for it learns from there; so there is nothing to do about it here.
    pub(crate) fn send(&self, message: &ServerMessage) {
        use aip::codec::Wire;
        let _cut_if_it_overflows = self.outbox.push(message.encode());
    }

    /// When its actor has something to do on its own.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.commands.next_deadline()
    }
}

/// Everybody who is connected, by the id they registered.
#[derive(Default)]
pub(crate) struct Registry {
    clients: Mutex<HashMap<ClientId, Arc<Client>>>,
    /// Rung when somebody leaves.
    left: Notify,
}

impl Registry {
    /// Stores a newcomer, if its target is there and its id is free.
    pub(crate) fn register(&self, client: &Arc<Client>) -> Result<(), Refusal> {
        let mut clients = self.lock();
        if let Some(target) = &client.peer.target_id
            && !clients.get(target).is_some_and(|target| target.is_device())
        {
            return Err(Refusal::TargetNotConnected(target.clone()));
        }
        if clients.contains_key(client.id()) {
            return Err(Refusal::AlreadyRegistered(client.id().clone()));
        }
        clients.insert(client.id().clone(), client.clone());
        Ok(())
    }

    /// Takes a client out, unless its id belongs to a newer connection by now.
    pub(crate) fn unregister(&self, client: &Client) {
        let mut clients = self.lock();
        if clients.get(client.id()).is_some_and(|known| known.connection == client.connection) {
            clients.remove(client.id());
            self.left.notify_waiters();
        }
    }

    /// Waits until only clients are left that `may_stay`.
    pub(crate) async fn wait_until(&self, may_stay: impl Fn(&Client) -> bool) {
        loop {
            let left = self.left.notified();
            if self.lock().values().all(|client| may_stay(client)) {
                return;
            }
            left.await;
        }
    }

    pub(crate) fn client(&self, id: &ClientId) -> Option<Arc<Client>> {
        self.lock().get(id).cloned()
    }

    pub(crate) fn device(&self, id: &ClientId) -> Option<Arc<Client>> {
        self.client(id).filter(|client| client.is_device())
    }

    /// Everybody, by id.
    pub(crate) fn all(&self) -> Vec<Arc<Client>> {
        let mut all: Vec<_> = self.lock().values().cloned().collect();
        all.sort_by(|a, b| a.id().cmp(b.id()));
        all
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ClientId, Arc<Client>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn client(
        number: u64,
        id: &str,
        role: ClientType,
        target: Option<&str>,
    ) -> Arc<Client> {
        let registration = Registration {
            client_id: ClientId::new(id).unwrap(),
            client_type: role,
            target_id: target.map(|id| ClientId::new(id).unwrap()),
            platform: "linux".to_owned(),
            system_info: None,
            extension: None,
        };
        let holder = Arc::new(Principal::Shared { name: "local" });
        let visitor = Visitor { holder, address: None };
        let config = Config::default();
        let outbox = Outbox::new(config.outbox());
        Arc::new(Client::new(ConnectionId(number), registration, &visitor, outbox, &config))
    }

    #[test]
    fn an_id_belongs_to_one_connection_and_a_late_goodbye_evicts_nobody() {
        let registry = Registry::default();
        let old = client(1, "d", ClientType::Device, None);
        let new = client(2, "d", ClientType::Device, None);
        assert_eq!(registry.register(&old), Ok(()));
        let taken = Refusal::AlreadyRegistered(old.id().clone());
        assert_eq!(registry.register(&new), Err(taken));
        registry.unregister(&old);
        assert_eq!(registry.register(&new), Ok(()));
        registry.unregister(&old);
        assert_eq!(
            registry.device(new.id()).map(|client| client.connection),
            Some(ConnectionId(2))
        );
    }

    #[test]
    fn a_declared_target_must_be_a_connected_device() {
        let registry = Registry::default();
        let free = client(1, "g1", ClientType::Constellation, None);
        let bound = client(2, "g2", ClientType::Constellation, Some("g1"));
        registry.register(&free).unwrap();
        let refused = registry.register(&bound).unwrap_err();
        assert_eq!(refused.to_string(), "Target device 'g1' is not connected");
        registry.register(&client(3, "d", ClientType::Device, None)).unwrap();
        registry.register(&client(4, "g3", ClientType::Constellation, Some("d"))).unwrap();
        assert_eq!(registry.all().len(), 3);
    }
}
