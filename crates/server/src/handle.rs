//! A registered connection, as everything but its actor sees it.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aip::machine::{Peer, Registration};
use aip::message::{Feature, Features};
use aip::{ClientId, ClientType};
use jiff::Timestamp;
use link::Outbox;
use link::connection::now;
use tracing::Span;

use crate::accept::Visitor;
use crate::audit::{Entry, Event};
use crate::auth::Principal;
use crate::spans;

/// The server's own number of a connection; never used twice while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConnectionId(pub(crate) u64);

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}", self.0)
    }
}

/// A registered connection: who is on it, and the queue that leads there.
pub(crate) struct Handle {
    pub(crate) connection: ConnectionId,
    pub(crate) peer: Peer,
    /// Whose key it showed.
    pub(crate) holder: Arc<Principal>,
    pub(crate) platform: String,
    /// How many tasks that go together a device takes at the same time; 0 of one that does not say.
    pub(crate) at_once: usize,
    /// Whether it speaks the extension; a legacy peer does not.
    pub(crate) is_flightdeck: bool,
    pub(crate) connected_at: Timestamp,
    since: Instant,
    /// When its last HEARTBEAT came, in milliseconds after `since`, plus one; 0 for never.
    heartbeat: AtomicU64,
    pub(crate) address: Option<SocketAddr>,
    pub(crate) outbox: Arc<Outbox>,
    /// Whether its key opens no more, so that it cannot come back.
    is_forbidden: AtomicBool,
}

impl Handle {
    pub(crate) fn new(
        connection: ConnectionId,
        registration: Registration,
        visitor: &Visitor,
        outbox: Outbox,
        connected_at: Timestamp,
    ) -> Self {
        let Visitor { holder, address } = visitor;
        let is_flightdeck = registration.extension.is_some();
        let at_once = registration.extension.as_ref().and_then(|asked| asked.at_once).unwrap_or(0);
        let asked = registration.extension.map_or_else(Vec::new, |asked| asked.features);
        let features = Features::granted(&asked, registration.client_type);
        Self {
            connection,
            at_once: usize::try_from(at_once).unwrap_or(usize::MAX),
            is_flightdeck,
            platform: registration.platform,
            peer: Peer {
                client_id: registration.client_id,
                client_type: registration.client_type,
                target_id: registration.target_id,
                is_bound: !holder.names_targets(),
                features,
            },
            holder: holder.clone(),
            connected_at,
            since: now(),
            heartbeat: AtomicU64::new(0),
            address: *address,
            outbox: Arc::new(outbox),
            is_forbidden: AtomicBool::new(false),
        }
    }

    pub(crate) fn id(&self) -> &ClientId {
        &self.peer.client_id
    }

    /// Whether it was granted this.
    pub(crate) fn has(&self, feature: Feature) -> bool {
        self.peer.features.has(feature)
    }

    /// Its key opens no more: nobody waits for it to come back.
    pub(crate) fn forbid(&self) {
        self.is_forbidden.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_forbidden(&self) -> bool {
        self.is_forbidden.load(Ordering::Relaxed)
    }

    pub(crate) fn role(&self) -> ClientType {
        self.peer.client_type
    }

    pub(crate) fn is_device(&self) -> bool {
        self.peer.client_type == ClientType::Device
    }

    /// A span of the connection, to be entered where something is logged about it.
    pub(crate) fn span(&self) -> Span {
        spans::connection(self.connection, self.address, Some(self.id()))
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

    /// Whether it may work with this device, as far as its key says: a device with itself.
    pub(crate) fn may_reach(&self, device: &ClientId) -> bool {
        (self.is_device() && device == self.id()) || self.holder.may_reach(device)
    }

    /// Notes that a HEARTBEAT came at this time.
    pub(crate) fn note_heartbeat(&self, at: Instant) {
        let millis = at.saturating_duration_since(self.since).as_millis();
        self.heartbeat.store(u64::try_from(millis).unwrap_or(u64::MAX - 1) + 1, Ordering::Relaxed);
    }

    /// How long ago its last HEARTBEAT came.
    pub(crate) fn heartbeat_age(&self) -> Option<Duration> {
        let at = self.heartbeat.load(Ordering::Relaxed).checked_sub(1)?;
        let since = now().saturating_duration_since(self.since);
        Some(since.saturating_sub(Duration::from_millis(at)))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn handle(
        number: u64,
        id: &str,
        role: ClientType,
        target: Option<&str>,
    ) -> Arc<Handle> {
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
        let (outbox, at) = (Outbox::new(link::OutboxLimits::default()), Timestamp::UNIX_EPOCH);
        Arc::new(Handle::new(ConnectionId(number), registration, &visitor, outbox, at))
    }
}
