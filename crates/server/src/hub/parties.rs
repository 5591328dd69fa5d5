//! Who there is: an identity for each client, with its connection, and a seat for each device.
//!
//! An identity outlives its connection for as long as something of it is not over. Two clients that use one id one
//! after the other are two identities.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use aip::message::{Held, Resumed};
use aip::{ClientId, Payload, ResponseId};
use jiff::Timestamp;
use tokio::sync::oneshot;

use super::Moment;
use super::commands::Commands;
use super::lane::{Lane, Limits};
use super::timers::TimerKey;
use crate::handle::{ConnectionId, Handle};
use crate::session::{IdentityRecord, Incarnation, Task, TaskId};

/// The connection that an effect comes through. The effect counts only while that is the identity's present one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Via {
    pub(crate) identity: Incarnation,
    pub(crate) connection: ConnectionId,
}

/// Where an identity is.
pub(super) enum Presence {
    Here(Arc<Handle>),
    /// On a connection that waits for its confirmation: nothing is sent to it, and nothing of it is read.
    Confirming(Arc<Handle>),
    Away {
        since: Instant,
        at: Timestamp,
    },
}

/// A client, whichever connection it has.
pub(super) struct Identity {
    pub(super) client_id: ClientId,
    pub(super) presence: Presence,
    /// The tasks that it asked for and that are not over.
    pub(super) requested: BTreeSet<TaskId>,
    /// What is kept for a device.
    pub(super) seat: Option<Seat>,
    /// What makes it known again when it comes back; a client without `ack` never is.
    pub(super) recall: Option<Box<Recall>>,
}

/// What makes an identity known again, and what is kept for it meanwhile.
pub(super) struct Recall {
    /// As the store has it.
    pub(super) record: IdentityRecord,
    /// The highest number of a connection that registered it.
    pub(super) n: u64,
    /// Its outcomes that it has not acknowledged, with their size in bytes and until when they are kept.
    pub(super) undelivered: BTreeMap<TaskId, (usize, Timestamp)>,
    /// What its newest connection waits for.
    pub(super) confirming: Option<Confirming>,
}

/// A connection that waits for its confirmation: until all that was settled or decided before is committed, and the key.
pub(super) struct Confirming {
    /// The key that it gets. A secret.
    pub(super) key: String,
    pub(super) is_former: bool,
    pub(super) is_resumed: bool,
    /// What a device listed.
    pub(super) listed: Vec<Held>,
    /// Whether the key is committed.
    pub(super) is_kept: bool,
    /// What it says that it had received last, where the store has lost that: known once it is settled.
    pub(super) newest: Option<ResponseId>,
    /// Tasks of which something is on its way into the store.
    pub(super) unstored: BTreeSet<TaskId>,
    /// Where the confirmation goes.
    pub(super) answer: oneshot::Sender<Resumed>,
}

impl Confirming {
    /// Whether all that it waits for is in the store.
    pub(super) fn is_ready(&self) -> bool {
        self.is_kept && self.unstored.is_empty()
    }
}

/// What is kept for a device: who waits for it holds its seat, never a connection.
#[derive(Default)]
pub(super) struct Seat {
    /// What is known of the device: a JSON object.
    pub(super) facts: Option<Payload>,
    /// How many tasks that go together the device takes at the same time; 0 while it has not said so.
    pub(super) at_once: usize,
    /// A device that has nothing to do takes no room for it.
    work: Option<Box<Work>>,
    /// While it is away and expected back: when that is over.
    pub(super) window: Option<TimerKey>,
    /// Of a device that keeps no journal and had this seat before the server restarted: the public id of the API key
    /// that it had shown; the shared key has none.
    pub(super) former_key: Option<Arc<str>>,
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

    pub(super) fn take_work(&mut self) -> Option<Box<Work>> {
        self.work.take()
    }

    /// Adds to what it has to do what another seat had.
    pub(super) fn add_work(&mut self, work: Option<Box<Work>>, limits: Limits) {
        match (&mut self.work, work) {
            (_, None) => {}
            (none @ None, work) => *none = work,
            (Some(own), Some(other)) => {
                let Work { commands, lane, stopping } = *other;
                own.commands.absorb(commands);
                let Work { commands, lane: own_lane, .. } = &mut **own;
                own_lane.absorb(lane, limits, |task| commands.has_of(task));
                own.stopping.extend(stopping);
            }
        }
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
            Presence::Confirming(_) | Presence::Away { .. } => None,
        }
    }

    /// Its connection, also while that waits for its confirmation.
    pub(super) fn connection(&self) -> Option<&Arc<Handle>> {
        match &self.presence {
            Presence::Here(handle) | Presence::Confirming(handle) => Some(handle),
            Presence::Away { .. } => None,
        }
    }

    /// Whether it is a device that is away, and for which others wait.
    pub(super) fn is_expected(&self) -> bool {
        self.connection().is_none() && self.seat.as_ref().is_some_and(|seat| seat.window.is_some())
    }

    /// Whether something of it is open, or it is to be known again.
    fn is_needed(&self) -> bool {
        self.connection().is_some()
            || self.recall.is_some()
            || self.is_expected()
            || !self.requested.is_empty()
            || self.seat.as_ref().is_some_and(|seat| !seat.is_empty())
    }
}

/// All identities, and who has which id now.
#[derive(Default)]
pub(super) struct Parties {
    /// Boxed, since a node of the tree has room for twice as many as it holds.
    identities: BTreeMap<Incarnation, Box<Identity>>,
    /// Who has an id: those with a connection, and devices that are expected back.
    present: BTreeMap<ClientId, Incarnation>,
    /// Who is to be known again, by client id.
    known: BTreeMap<ClientId, Vec<Incarnation>>,
    last: u64,
}

impl Parties {
    /// Makes an identity for a newcomer, who has the id from then on.
    pub(super) fn enter(&mut self, handle: &Arc<Handle>) -> Incarnation {
        self.last += 1;
        let id = Incarnation(self.last);
        let seat = handle.is_device().then(Seat::default);
        self.present.insert(handle.id().clone(), id);
        let newcomer = Identity {
            client_id: handle.id().clone(),
            presence: Presence::Here(handle.clone()),
            requested: BTreeSet::new(),
            seat,
            recall: None,
        };
        self.identities.insert(id, Box::new(newcomer));
        id
    }

    /// Numbers newcomers from here on.
    pub(super) fn count_from(&mut self, last: Incarnation) {
        self.last = self.last.max(last.0);
    }

    /// Puts an identity in as it was before a restart, without a connection.
    pub(super) fn put_back(&mut self, id: Incarnation, identity: Identity) {
        self.last = self.last.max(id.0);
        if identity.recall.is_some() {
            self.known.entry(identity.client_id.clone()).or_default().push(id);
        }
        self.identities.insert(id, Box::new(identity));
    }

    /// Makes an identity known again when it comes back.
    pub(super) fn remember(&mut self, id: Incarnation, recall: Box<Recall>) {
        if let Some(identity) = self.identities.get_mut(&id) {
            if identity.recall.is_none() {
                self.known.entry(identity.client_id.clone()).or_default().push(id);
            }
            identity.recall = Some(recall);
        }
    }

    /// An identity will not be known again. `true` when it would have been.
    pub(super) fn give_up(&mut self, id: Incarnation) -> bool {
        let Some(identity) = self.identities.get_mut(&id) else { return false };
        let known = self.known.entry(identity.client_id.clone()).or_default();
        known.retain(|one| *one != id);
        if known.is_empty() {
            self.known.remove(&identity.client_id);
        }
        identity.recall.take().is_some()
    }

    pub(super) fn len(&self) -> usize {
        self.identities.len()
    }

    /// Who is to be known again under this client id, newest last.
    pub(super) fn known(&self, client_id: &ClientId) -> impl Iterator<Item = Incarnation> {
        self.known.get(client_id).into_iter().flatten().copied()
    }

    /// Gives an id to an identity.
    pub(super) fn seize(&mut self, id: Incarnation) {
        if let Some(identity) = self.identities.get(&id) {
            self.present.insert(identity.client_id.clone(), id);
        }
    }

    /// Frees the id that an identity has.
    pub(super) fn release(&mut self, id: Incarnation) {
        if let Some(identity) = self.identities.get(&id)
            && self.present.get(&identity.client_id) == Some(&id)
        {
            self.present.remove(&identity.client_id);
        }
    }

    /// Takes an identity's connection away, if this is its present one.
    pub(super) fn leave(&mut self, moment: &Moment<'_>, via: Via) -> Option<Arc<Handle>> {
        let identity = self.identities.get_mut(&via.identity)?;
        let handle = identity.connection().filter(|own| own.connection == via.connection)?.clone();
        identity.presence = Presence::Away { since: moment.now, at: moment.at };
        if let Some(recall) = &mut identity.recall {
            recall.record.seen_at = moment.at;
            recall.record.is_here = false;
            recall.confirming = None;
        }
        Some(handle)
    }

    /// Forgets an identity that is away and of which nothing is open.
    pub(super) fn forget_unneeded(&mut self, id: Incarnation, now: Instant) {
        let Some(identity) = self.identities.get(&id).filter(|identity| !identity.is_needed())
        else {
            return;
        };
        if let Presence::Away { since, .. } = identity.presence {
            let away_ms = now.saturating_duration_since(since).as_millis();
            tracing::debug!(identity = %id, of = %identity.client_id, away_ms, "forgotten");
        }
        self.release(id);
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

    pub(super) fn ids(&self) -> Vec<Incarnation> {
        self.identities.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use aip::ClientType;
    use link::Ambient;

    use super::*;
    use crate::handle::tests::handle;

    #[test]
    fn an_id_belongs_to_one_identity_and_a_late_goodbye_evicts_none() {
        let (mut parties, ambient) = (Parties::default(), Ambient::system());
        let moment = Moment { now: Instant::now(), at: Timestamp::UNIX_EPOCH, ambient: &ambient };
        let enter = |parties: &mut Parties, handle: Arc<Handle>| {
            let identity = parties.enter(&handle);
            Via { identity, connection: handle.connection }
        };
        let old = enter(&mut parties, handle(1, "d", ClientType::Device, None));
        assert!(parties.leave(&moment, old).is_some());
        parties.release(old.identity);
        let newcomer = handle(2, "d", ClientType::Device, None);
        let id = newcomer.id().clone();
        let new = enter(&mut parties, newcomer);
        assert_ne!(old.identity, new.identity, "whoever comes without proof is another");
        assert!(parties.leave(&moment, old).is_none());
        assert_eq!(parties.incarnation(&id), Some(new.identity));
        parties.forget_unneeded(old.identity, moment.now);
        parties.forget_unneeded(new.identity, moment.now);
        assert_eq!(parties.all().count(), 1);
    }
}
