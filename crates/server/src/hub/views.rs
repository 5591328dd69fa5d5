//! What others may see of the hub: who is there, and where each task stands. Nothing here changes anything.

use std::sync::Arc;

use aip::ClientId;
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::oneshot;
use utoipa::ToSchema;

use super::parties::{Identity, Presence, Seat, Via};
use super::session::{Phase, Session};
use super::{Hub, Moment};
use crate::handle::Handle;
use crate::session::{Cause, Task, TaskId};

/// Whether a session has its place on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = DeviceTaskState)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SessionState {
    /// It has its place.
    Running,
    /// It waits for it.
    Queued,
    /// It is over, and its device has not confirmed yet that it stopped.
    Stopping,
}

/// How many sessions are in which state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Levels {
    pub(crate) running: usize,
    pub(crate) queued: usize,
    /// Over, but their devices have not confirmed yet.
    pub(crate) stopping: usize,
    /// Most that wait for one device.
    pub(crate) longest_queue: usize,
    /// Those of which the store would not take something.
    pub(crate) unstored: usize,
}

/// How many entries each table has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) identities: usize,
    pub(crate) sessions: usize,
    pub(crate) session_ids: usize,
    pub(crate) lanes: usize,
    pub(crate) requesters: usize,
    pub(crate) commands: usize,
    pub(crate) timers: usize,
}

/// A device that is away.
pub(crate) struct Away {
    pub(crate) id: ClientId,
    pub(crate) since: Timestamp,
    /// Whether its tasks wait for it.
    pub(crate) is_expected: bool,
    pub(crate) platform: String,
    /// The label of the key that it showed last.
    pub(crate) key: String,
}

impl Hub {
    /// What the store is called.
    pub(crate) fn store_id(&self) -> &str {
        &self.store.id
    }

    /// Whether a client has this id, or had it and would be known again.
    pub(crate) fn is_known(&self, id: &ClientId) -> bool {
        self.parties.incarnation(id).is_some() || self.parties.known(id).next().is_some()
    }

    /// The connection of a client, with the proof that it is the present one.
    pub(crate) fn client(&self, id: &ClientId) -> Option<(Via, Arc<Handle>)> {
        let identity = self.parties.incarnation(id)?;
        let handle = self.parties.handle(identity)?;
        Some((Via { identity, connection: handle.connection }, handle.clone()))
    }

    pub(crate) fn device(&self, id: &ClientId) -> Option<Arc<Handle>> {
        self.client(id).map(|(_, handle)| handle).filter(|handle| handle.is_device())
    }

    /// Whether a device has the extension, as ours do. One that is not there may be ours.
    pub(crate) fn may_be_ours(&self, id: &ClientId) -> bool {
        self.device(id).is_none_or(|device| device.is_flightdeck)
    }

    /// Every connection, by client id.
    pub(crate) fn handles(&self) -> Vec<Arc<Handle>> {
        self.parties.handles().cloned().collect()
    }

    /// The devices that are away and known again when they come back.
    pub(crate) fn away(&self) -> Vec<Away> {
        let away = |identity: &Identity| {
            let (recall, Presence::Away { at, .. }) =
                (identity.recall.as_ref()?, &identity.presence)
            else {
                return None;
            };
            identity.seat.as_ref()?;
            let record = &recall.record;
            let has_successor = self
                .parties
                .by_id(&identity.client_id)
                .is_some_and(|one| one.connection().is_some());
            (!has_successor).then(|| Away {
                id: identity.client_id.clone(),
                since: *at,
                is_expected: identity.is_expected(),
                platform: record.platform.clone(),
                key: record.key_name.clone(),
            })
        };
        self.parties.all().filter_map(away).collect()
    }

    /// Whether a session that is not over has its place on its device.
    pub(crate) fn state(&self, id: TaskId) -> Option<SessionState> {
        let is_queued = matches!(self.sessions.get(&id)?.phase, Phase::Queued);
        Some(if is_queued { SessionState::Queued } else { SessionState::Running })
    }

    /// How many sessions come before this one on its device, as it stands.
    pub(crate) fn ahead(&self, id: TaskId) -> Option<usize> {
        let seat = self.parties.seat(self.sessions.get(&id)?.device)?;
        seat.lane.sessions().iter().position(|known| *known == id)
    }

    /// What a device is busy with, in the order of the lane.
    pub(crate) fn busy(&self, device: &ClientId) -> Vec<(Arc<Task>, SessionState)> {
        let seat = self.parties.by_id(device).and_then(|identity| identity.seat.as_ref());
        let Some(seat) = seat else { return Vec::new() };
        seat.lane.sessions().into_iter().filter_map(|id| self.busy_with(seat, id)).collect()
    }

    fn busy_with(&self, seat: &Seat, id: TaskId) -> Option<(Arc<Task>, SessionState)> {
        match self.sessions.get(&id) {
            Some(session) => Some((session.task.clone(), self.state(id)?)),
            None => Some((seat.stopping.get(&id)?.clone(), SessionState::Stopping)),
        }
    }

    pub(crate) fn levels(&self) -> Levels {
        let waiting = || self.parties.seats().map(|seat| seat.lane.waiting_len());
        let queued = waiting().sum();
        let unstored = self.sessions.values().filter(|own| own.journal.is_failing).count();
        Levels {
            running: self.sessions.len().saturating_sub(queued),
            queued,
            stopping: self.parties.seats().map(|seat| seat.stopping.len()).sum(),
            longest_queue: waiting().max().unwrap_or(0),
            unstored,
        }
    }

    pub(crate) fn sizes(&self) -> Sizes {
        let seats = || self.parties.seats();
        Sizes {
            identities: self.parties.all().count(),
            sessions: self.sessions.len(),
            session_ids: self.open_ids.len(),
            lanes: seats().filter(|seat| !seat.lane.is_empty()).count(),
            requesters: self.parties.all().filter(|own| !own.requested.is_empty()).count(),
            commands: seats().map(|seat| seat.commands.len()).sum(),
            timers: self.timers.len(),
        }
    }

    /// What fails when a session is over; `None` when there is no such session.
    pub(crate) fn watch(&mut self, id: TaskId) -> Option<oneshot::Receiver<()>> {
        let session = self.sessions.get_mut(&id)?;
        session.waiters.retain(|waiter| !waiter.is_closed());
        let (waiter, watch) = oneshot::channel();
        session.waiters.push(waiter);
        Some(watch)
    }

    /// Stops a session because the holder of the key with this name cancels it; to do so again changes nothing. `None`
    /// when it is over, or as good as.
    pub(crate) fn cancel(
        &mut self,
        moment: &Moment<'_>,
        id: TaskId,
        by: &str,
    ) -> Option<Arc<Task>> {
        let session = self.sessions.get(&id).filter(|session| session.may_be_cancelled())?;
        let found = session.task.clone();
        let cause = Cause::Cancelled(by.into());
        self.halt(moment, id, &super::session::Halt::Stopped(cause));
        Some(found)
    }
}

impl Session {
    pub(crate) const fn task(&self) -> &Arc<Task> {
        &self.task
    }

    pub(crate) fn holder(&self) -> &crate::auth::Principal {
        &self.holder
    }

    /// When it was accepted.
    pub(crate) const fn accepted_at(&self) -> std::time::Instant {
        self.accepted_at
    }
}
