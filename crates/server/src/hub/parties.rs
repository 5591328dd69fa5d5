//! Who there is: an identity for each client, with its connection, and a seat for each device.
//!
//! An identity outlives its connection for as long as something of it is not over. Two clients that use one id one
//! after the other are two identities.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use aip::machine::Refusal;
use aip::{ClientId, Payload};

use super::commands::Commands;
use super::lane::Lane;
use crate::handle::{ConnectionId, Handle};
use crate::session::{Incarnation, Task, TaskId};

/// The connection that an effect comes through. The effect counts only while that is the identity's present one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Via {
    pub(crate) identity: Incarnation,
    pub(crate) connection: ConnectionId,
}

/// Where an identity is.
pub(super) enum Presence {
    Here(Arc<Handle>),
    Away { since: Instant },
}

/// A client, whichever connection it has.
pub(super) struct Identity {
    pub(super) client_id: ClientId,
    pub(super) presence: Presence,
    /// The tasks that it asked for and that are not over.
    pub(super) requested: BTreeSet<TaskId>,
    /// What is kept for a device.
    pub(super) seat: Option<Seat>,
}

/// What is kept for a device: who waits for it holds its seat, never a connection.
#[derive(Default)]
pub(super) struct Seat {
    /// What is known of the device: a JSON object.
    pub(super) facts: Option<Payload>,
    /// A device that has nothing to do takes no room for it.
    work: Option<Box<Work>>,
}

/// What a device has to do.
#[derive(Default)]
pub(super) struct Work {
    pub(super) commands: Commands,
    pub(super) lane: Lane,
    /// Tasks that are over and still have their place, since their command has not stopped yet.
    pub(super) stopping: BTreeMap<TaskId, Arc<Task>>,
}

/// What a device has to do that has nothing to do.
static NO_WORK: LazyLock<Work> = LazyLock::new(Work::default);

impl Deref for Seat {
    type Target = Work;

    fn deref(&self) -> &Work {
        self.work.as_deref().unwrap_or(&NO_WORK)
    }
}

impl DerefMut for Seat {
    fn deref_mut(&mut self) -> &mut Work {
        self.work.get_or_insert_default()
    }
}

impl Seat {
    pub(super) fn is_empty(&self) -> bool {
        self.lane.is_empty() && self.commands.len() == 0
    }

    /// Gives back the room of a device that has nothing to do any more.
    pub(super) fn rest(&mut self) {
        if self.is_empty() && self.commands.is_forgetful() {
            self.work = None;
        }
    }
}

impl Identity {
    /// Its connection, while it has one.
    pub(super) fn handle(&self) -> Option<&Arc<Handle>> {
        match &self.presence {
            Presence::Here(handle) => Some(handle),
            Presence::Away { .. } => None,
        }
    }

    fn is_needed(&self) -> bool {
        self.handle().is_some()
            || !self.requested.is_empty()
            || self.seat.as_ref().is_some_and(|seat| !seat.is_empty())
    }
}

/// All identities, and who has which id now.
#[derive(Default)]
pub(super) struct Parties {
    /// Boxed, since a node of the tree has room for twice as many as it holds.
    identities: BTreeMap<Incarnation, Box<Identity>>,
    present: BTreeMap<ClientId, Incarnation>,
    last: u64,
}

impl Parties {
    /// Makes an identity for a newcomer, if its target is there and its id is free.
    pub(super) fn register(
        &mut self,
        handle: Arc<Handle>,
        facts: Option<Payload>,
    ) -> Result<Via, Refusal> {
        if let Some(target) = &handle.peer.target_id
            && self.by_id(target).is_none_or(|target| target.seat.is_none())
        {
            return Err(Refusal::TargetNotConnected(target.clone()));
        }
        let client_id = handle.id().clone();
        if self.present.contains_key(&client_id) {
            return Err(Refusal::AlreadyRegistered(client_id));
        }
        self.last += 1;
        let (identity, connection) = (Incarnation(self.last), handle.connection);
        let seat = handle.is_device().then(|| Seat { facts, ..Seat::default() });
        self.present.insert(client_id.clone(), identity);
        let presence = Presence::Here(handle);
        let requested = BTreeSet::new();
        let newcomer = Identity { client_id, presence, requested, seat };
        self.identities.insert(identity, Box::new(newcomer));
        Ok(Via { identity, connection })
    }

    /// Takes an identity's connection away, if this is its present one, and frees its id.
    pub(super) fn leave(&mut self, via: Via, now: Instant) -> Option<Arc<Handle>> {
        let handle = self.current(via)?.clone();
        let identity = self.identities.get_mut(&via.identity)?;
        identity.presence = Presence::Away { since: now };
        if self.present.get(&identity.client_id) == Some(&via.identity) {
            self.present.remove(&identity.client_id);
        }
        Some(handle)
    }

    /// Forgets an identity that is away and of which nothing is open.
    pub(super) fn forget_unneeded(&mut self, id: Incarnation, now: Instant) {
        let Some(identity) = self.identities.get(&id).filter(|identity| !identity.is_needed())
        else {
            return;
        };
        if let Presence::Away { since } = identity.presence {
            let away_ms = now.saturating_duration_since(since).as_millis();
            tracing::debug!(identity = %id, of = %identity.client_id, away_ms, "forgotten");
        }
        self.identities.remove(&id);
    }

    /// The connection that an effect came through, if it is still the present one.
    pub(super) fn current(&self, via: Via) -> Option<&Arc<Handle>> {
        let handle = self.identities.get(&via.identity)?.handle()?;
        (handle.connection == via.connection).then_some(handle)
    }

    pub(super) fn get(&self, id: Incarnation) -> Option<&Identity> {
        self.identities.get(&id).map(|identity| &**identity)
    }

    pub(super) fn get_mut(&mut self, id: Incarnation) -> Option<&mut Identity> {
        self.identities.get_mut(&id).map(|identity| &mut **identity)
    }

    pub(super) fn seat(&self, id: Incarnation) -> Option<&Seat> {
        self.get(id)?.seat.as_ref()
    }

    pub(super) fn seat_mut(&mut self, id: Incarnation) -> Option<&mut Seat> {
        self.get_mut(id)?.seat.as_mut()
    }

    /// The connection of an identity, while it has one.
    pub(super) fn handle(&self, id: Incarnation) -> Option<&Arc<Handle>> {
        self.get(id)?.handle()
    }

    /// Who has this id now.
    pub(super) fn incarnation(&self, id: &ClientId) -> Option<Incarnation> {
        self.present.get(id).copied()
    }

    pub(super) fn by_id(&self, id: &ClientId) -> Option<&Identity> {
        self.get(self.incarnation(id)?)
    }

    /// All connections, by client id.
    pub(super) fn handles(&self) -> impl Iterator<Item = &Arc<Handle>> {
        self.present.values().filter_map(|id| self.handle(*id))
    }

    /// All seats, also of devices that are away.
    pub(super) fn seats(&self) -> impl Iterator<Item = &Seat> {
        self.all().filter_map(|identity| identity.seat.as_ref())
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Identity> {
        self.identities.values().map(|identity| &**identity)
    }
}

#[cfg(test)]
mod tests {
    use aip::ClientType;

    use super::*;
    use crate::handle::tests::handle;

    #[test]
    fn an_id_belongs_to_one_identity_and_a_late_goodbye_evicts_none() {
        let (mut parties, now) = (Parties::default(), Instant::now());
        let old = parties.register(handle(1, "d", ClientType::Device, None), None).unwrap();
        let newcomer = || handle(2, "d", ClientType::Device, None);
        let id = newcomer().id().clone();
        let taken = Refusal::AlreadyRegistered(id.clone());
        assert_eq!(parties.register(newcomer(), None), Err(taken));
        assert!(parties.leave(old, now).is_some());
        let new = parties.register(newcomer(), None).unwrap();
        assert_ne!(old.identity, new.identity, "whoever comes without proof is another");
        assert!(parties.leave(old, now).is_none());
        assert_eq!(parties.incarnation(&id), Some(new.identity));
        parties.forget_unneeded(old.identity, now);
        parties.forget_unneeded(new.identity, now);
        assert_eq!(parties.all().count(), 1);
    }

    #[test]
    fn a_declared_target_must_be_a_connected_device() {
        let mut parties = Parties::default();
        let constellation = |n, id, target| handle(n, id, ClientType::Constellation, target);
        parties.register(constellation(1, "g1", None), None).unwrap();
        let refused = parties.register(constellation(2, "g2", Some("g1")), None).unwrap_err();
        assert_eq!(refused.to_string(), "Target device 'g1' is not connected");
        parties.register(handle(3, "d", ClientType::Device, None), None).unwrap();
        parties.register(constellation(4, "g3", Some("d")), None).unwrap();
        assert_eq!(parties.handles().count(), 3);
    }
}
