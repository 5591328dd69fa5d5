//! Whether a newcomer is who it says it is, in the order of the protocol's page on identities. Nothing here changes
//! anything.

use std::time::Duration;

use aip::ResponseId;
use aip::machine::Refusal;
use aip::message::Resume;
use subtle::ConstantTimeEq;

use super::parties::Recall;
use super::{Hub, Moment};
use crate::handle::Handle;
use crate::session::{Incarnation, KeyHash};

/// How far ahead of this server's clock and ids a device's newest command may be.
const LONGEST_AHEAD: Duration = Duration::from_secs(24 * 60 * 60);

/// What a server's store is called, and was.
#[derive(Debug, Clone, Default)]
pub(crate) struct StoreName {
    pub(crate) id: String,
    pub(crate) former: Vec<String>,
}

/// Who a newcomer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Recognized {
    /// The identity that it has proved to be; without one it is a new one.
    pub(super) identity: Option<Incarnation>,
    /// Whether it showed a resume key, which takes over a connection that is alive.
    pub(super) has_key: bool,
    /// Whether it named a store id that was this store's once.
    pub(super) is_former: bool,
}

impl Recognized {
    /// Nobody that is known.
    pub(super) const NEW: Self = Self { identity: None, has_key: false, is_former: false };
}

impl Hub {
    /// Checks what a newcomer says of its identity.
    ///
    /// # Errors
    /// Why it is not taken so.
    pub(super) fn recognize(
        &self,
        newcomer: &Handle,
        claim: Option<&Resume>,
    ) -> Result<Recognized, Refusal> {
        let is_former = self.check_store(claim)?;
        let by_key = self.by_key(newcomer, claim)?;
        let of_file = self.of_file(newcomer, claim);
        let never_presented =
            of_file.filter(|id| self.recall(*id).is_some_and(|own| own.record.presented.is_none()));
        let bound = || {
            let is_bound = newcomer.holder.opens_for_one_client();
            let has_role = |id: &Incarnation| {
                self.recall(*id).is_some_and(|own| own.record.role == newcomer.peer.client_type)
            };
            self.parties.known(newcomer.id()).filter(has_role).last().filter(|_| is_bound)
        };
        let identity = by_key.or(never_presented).or_else(bound);
        let highest = identity.or(of_file).and_then(|id| self.recall(id)).map(|own| own.n);
        match (claim, highest) {
            (Some(claim), Some(highest)) if claim.n <= highest => Err(Refusal::Outdated(highest)),
            _ => Ok(Recognized { identity, has_key: by_key.is_some(), is_former }),
        }
    }

    /// Whether the store id that it names was this store's once.
    fn check_store(&self, claim: Option<&Resume>) -> Result<bool, Refusal> {
        let Some(named) = claim.and_then(|claim| claim.store.as_ref()) else { return Ok(false) };
        if *named == self.store.id {
            return Ok(false);
        }
        if self.store.former.contains(named) {
            return Ok(true);
        }
        Err(Refusal::OtherStore(self.store.id.clone()))
    }

    fn by_key(
        &self,
        newcomer: &Handle,
        claim: Option<&Resume>,
    ) -> Result<Option<Incarnation>, Refusal> {
        let Some(key) = claim.and_then(|claim| claim.key.as_deref()) else { return Ok(None) };
        let hash = KeyHash::of(key);
        let opens = |known: &Option<KeyHash>| {
            known.as_ref().is_some_and(|known| bool::from(known.as_bytes().ct_eq(hash.as_bytes())))
        };
        let found = self.parties.known(newcomer.id()).find(|id| {
            self.recall(*id).is_some_and(|own| {
                own.record.role == newcomer.peer.client_type
                    && (opens(&own.record.presented) || opens(&own.record.issued))
            })
        });
        found.map(Some).ok_or(Refusal::UnknownKey)
    }

    /// The identity with this client's file: the newest, since the store may still have one that has left for good.
    fn of_file(&self, newcomer: &Handle, claim: Option<&Resume>) -> Option<Incarnation> {
        let file = claim?.journal.file();
        let has_file = |id: &Incarnation| {
            self.recall(*id).is_some_and(|own| {
                own.record.role == newcomer.peer.client_type
                    && own.record.journal.as_ref().is_some_and(|journal| journal.file() == file)
            })
        };
        self.parties.known(newcomer.id()).filter(has_file).last()
    }

    pub(super) fn recall(&self, id: Incarnation) -> Option<&Recall> {
        self.parties.get(id)?.recall.as_deref()
    }

    pub(super) fn recall_mut(&mut self, id: Incarnation) -> Option<&mut Recall> {
        self.parties.get_mut(id)?.recall.as_deref_mut()
    }
}

/// All ids from now on are to be above the one that a device has a receipt for, so it must be one that a store of this
/// server may have made, also when a clock was wrong.
pub(super) fn check_newest(moment: &Moment<'_>, newest: &ResponseId) -> Result<(), Refusal> {
    let wrong = |what| Refusal::BadExtension(format!(".resume.newest {what}"));
    let id: uuid::Uuid = newest.as_str().parse().map_err(|_| wrong("is no UUID"))?;
    let made_at = id.as_u128() >> 80;
    let latest = (moment.ambient.newest_uuid().as_u128() >> 80)
        .max(u128::try_from(moment.at.as_millisecond()).unwrap_or(0));
    if made_at > latest + LONGEST_AHEAD.as_millis() {
        return Err(wrong("lies in the future"));
    }
    Ok(())
}
