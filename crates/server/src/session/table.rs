//! Which sessions there are, whose they are, and who waits for which device.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aip::{ClientId, SessionId};
use serde::Serialize;
use tokio::sync::Notify;
use utoipa::ToSchema;

use super::lane::{Lane, Turn};
use super::{Cause, Requester, Session, Task, TaskId};
use crate::config::Config;
use crate::registry::Client;

/// Why a session cannot begin. Texts go to the requester.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("session_id '{0}' is owned by another client")]
    OwnedByAnother(SessionId),
    #[error("session_id '{0}' is already running")]
    AlreadyRunning(SessionId),
    #[error(
        "Device '{device}' has {waiting} tasks waiting already, which is as many as may; \
         try again later"
    )]
    QueueFull { device: ClientId, waiting: usize },
    #[error("The server is shutting down; try again later")]
    ShuttingDown,
}

impl Refused {
    /// Whether the session id that was asked for names a task that is not over.
    pub(super) const fn names_open_task(&self) -> bool {
        matches!(self, Self::OwnedByAnother(_) | Self::AlreadyRunning(_))
    }
}

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
}

/// Every session that is not over.
#[derive(Default)]
pub(crate) struct Sessions {
    table: Mutex<Table>,
    /// Rung when the last session is over.
    empty: Notify,
}

#[derive(Default)]
struct Table {
    sessions: HashMap<TaskId, Arc<Session>>,
    open_ids: HashMap<SessionId, TaskId>,
    /// By device. A place may be taken a while longer than its session lasts.
    lanes: HashMap<ClientId, Lane>,
    by_requester: HashMap<Requester, HashSet<TaskId>>,
    /// Sessions that are over and still have their place.
    stopping: HashMap<TaskId, Arc<Session>>,
    closed: bool,
}

impl Sessions {
    /// Takes a session in and queues it for its device.
    pub(super) fn begin(&self, session: &Arc<Session>, config: &Config) -> Result<Turn, Refused> {
        let mut table = self.lock();
        if table.closed {
            return Err(Refused::ShuttingDown);
        }
        let (id, session_id) = (session.task.id, &session.task.session_id);
        if let Some(known) = table.open_ids.get(session_id).and_then(|id| table.sessions.get(id)) {
            let same = known.task.requester == session.task.requester;
            return Err(if same {
                Refused::AlreadyRunning(session_id.clone())
            } else {
                Refused::OwnedByAnother(session_id.clone())
            });
        }
        let turn = table.join_lane(session, config)?;
        table.sessions.insert(id, session.clone());
        table.open_ids.insert(session_id.clone(), id);
        table.by_requester.entry(session.task.requester.clone()).or_default().insert(id);
        Ok(turn)
    }

    /// Takes a session out and tells of its end, as one: whoever hears of it finds the id free, and
    /// whoever uses the id anew is answered after it.
    pub(super) fn end(&self, session: &Session, tell: impl FnOnce()) {
        let mut table = self.lock();
        tell();
        table.sessions.remove(&session.task.id);
        table.open_ids.remove(&session.task.session_id);
        session.over.notify_waiters();
        if let Some(ids) = table.by_requester.get_mut(&session.task.requester) {
            ids.remove(&session.task.id);
            if ids.is_empty() {
                table.by_requester.remove(&session.task.requester);
            }
        }
        if table.sessions.is_empty() {
            self.empty.notify_waiters();
        }
    }

    /// Notes that a session that is over keeps its place for a while.
    pub(super) fn keep_place(&self, session: &Arc<Session>) {
        self.lock().stopping.insert(session.task.id, session.clone());
    }

    /// Gives a session's place on its device to the next.
    pub(super) fn leave_lane(&self, session: &Session) {
        let mut table = self.lock();
        table.stopping.remove(&session.task.id);
        let device = &session.task.device;
        let Some(lane) = table.lanes.get_mut(device) else { return };
        let next = lane.leave(session.task.id);
        if lane.is_empty() {
            table.lanes.remove(device);
        }
        if let Some(next) = next.and_then(|id| table.sessions.get(&id)) {
            next.turn.notify_one();
        }
    }

    /// A session that is not over.
    pub(crate) fn get(&self, id: TaskId) -> Option<Arc<Session>> {
        self.lock().sessions.get(&id).cloned()
    }

    /// Waits until a session is over.
    pub(crate) async fn wait_over(&self, session: &Session) {
        let over = session.over.notified();
        tokio::pin!(over);
        // From here on no end is missed.
        over.as_mut().enable();
        if self.get(session.task.id).is_some() {
            over.await;
        }
    }

    /// Whether a session that is not over has its place on its device.
    pub(crate) fn state(&self, id: TaskId) -> Option<SessionState> {
        let table = self.lock();
        let session = table.sessions.get(&id)?;
        let lane = table.lanes.get(&session.task.device);
        let is_running = lane.is_some_and(|lane| lane.running().contains(&id));
        Some(if is_running { SessionState::Running } else { SessionState::Queued })
    }

    /// How many sessions come before this one on its device, as it stands.
    pub(crate) fn ahead(&self, id: TaskId) -> Option<usize> {
        let table = self.lock();
        let lane = table.lanes.get(&table.sessions.get(&id)?.task.device)?;
        lane.sessions().position(|known| known == id)
    }

    /// Whether this session id names a task that is not over.
    pub(crate) fn is_open(&self, id: &SessionId) -> bool {
        self.lock().open_ids.contains_key(id)
    }

    /// Stops whatever a client that is gone was executing or had asked for.
    pub(crate) fn handle_gone(&self, client: &Client) {
        let table = self.lock();
        let executed = table.lanes.get(client.id()).into_iter().flat_map(Lane::sessions);
        for session in executed.filter_map(|id| table.sessions.get(&id)) {
            if session.device.connection == client.connection {
                session.stop(Cause::DeviceGone);
            }
        }
        let requester = Requester::Client(client.id().clone());
        let requested = table.by_requester.get(&requester).into_iter().flatten();
        for session in requested.filter_map(|id| table.sessions.get(id)) {
            if session.requester().is_some_and(|own| own.connection == client.connection) {
                session.stop(Cause::RequesterGone);
            }
        }
    }

    /// Takes no more sessions, and stops those that have not started.
    pub(crate) fn close(&self) {
        let mut table = self.lock();
        table.closed = true;
        let running: HashSet<&TaskId> =
            table.lanes.values().flat_map(|lane| lane.running()).collect();
        for (id, session) in &table.sessions {
            if !running.contains(id) {
                session.stop(Cause::Shutdown);
            }
        }
    }

    /// Stops every session.
    pub(crate) fn stop_all(&self) {
        self.stop_where(&Cause::Shutdown, |_| true);
    }

    /// Stops the sessions of some tasks.
    pub(crate) fn stop_where(&self, cause: &Cause, is_meant: impl Fn(&Task) -> bool) {
        for session in self.lock().sessions.values().filter(|session| is_meant(&session.task)) {
            session.stop(cause.clone());
        }
    }

    /// Whether no more sessions are taken.
    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Waits until every session is over.
    pub(crate) async fn wait_empty(&self) {
        loop {
            let empty = self.empty.notified();
            if self.lock().sessions.is_empty() {
                return;
            }
            empty.await;
        }
    }

    /// What a device is busy with, in the order of the lane.
    pub(crate) fn busy(&self, device: &ClientId) -> Vec<(Arc<Task>, SessionState)> {
        let table = self.lock();
        let Some(lane) = table.lanes.get(device) else { return Vec::new() };
        let running = lane.running().len();
        let ordered = lane.sessions().enumerate();
        ordered
            .filter_map(|(n, id)| {
                let open = table.sessions.get(&id).map(|session| match n < running {
                    true => (session, SessionState::Running),
                    false => (session, SessionState::Queued),
                });
                let stopping = || Some((table.stopping.get(&id)?, SessionState::Stopping));
                open.or_else(stopping)
            })
            .map(|(session, state)| (session.task.clone(), state))
            .collect()
    }

    /// How many sessions are in which state.
    pub(crate) fn levels(&self) -> Levels {
        let table = self.lock();
        let waiting = || table.lanes.values().map(Lane::waiting_len);
        let queued = waiting().sum();
        Levels {
            running: table.sessions.len().saturating_sub(queued),
            queued,
            stopping: table.stopping.len(),
            longest_queue: waiting().max().unwrap_or(0),
        }
    }

    /// How many entries each map has: sessions, their ids, lanes, requesters.
    pub(crate) fn sizes(&self) -> [usize; 4] {
        let table = self.lock();
        [table.sessions.len(), table.open_ids.len(), table.lanes.len(), table.by_requester.len()]
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn join_lane(&mut self, session: &Session, config: &Config) -> Result<Turn, Refused> {
        let device = &session.task.device;
        let lane = self.lanes.entry(device.clone()).or_default();
        lane.join(
            &session.task.requester,
            session.task.id,
            config.sessions_per_device,
            config.queue_per_device,
        )
        .map_err(|full| Refused::QueueFull { device: device.clone(), waiting: full.waiting })
    }
}
