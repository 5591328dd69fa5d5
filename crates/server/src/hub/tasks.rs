//! How a task begins: what is wanted is checked, and gets its place in the queue of its device.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aip::machine::TaskRequest;
use aip::message::Feature;
use aip::{ClientId, SessionId};
use link::Kept;
use tokio::sync::oneshot;

use super::effect::Effect;
use super::lane::{Share, Turn};
use super::parties::Via;
use super::session::{Journal, Origin, Phase, Session};
use super::{Hub, Moment, say};
use crate::auth::Principal;
use crate::session::{
    Incarnation, KeyName, Requester, Task, TaskId, Terms, fresh_session_id, fresh_task_name, waits,
};
use crate::store::{Record, StoreError};

/// Why a session cannot begin. Texts go to the requester.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CannotBegin {
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

/// Why a task is refused. Texts go to the requester.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SubmitError {
    #[error("Constellation tasks may only target device clients")]
    NotADevice,
    #[error("Target device '{0}' is not connected")]
    NotConnected(ClientId),
    #[error("Not authorized to run tasks on this device")]
    NotAuthorized,
    #[error("Task content of {bytes} bytes is over the limit of {limit} bytes")]
    TooLong { bytes: usize, limit: usize },
    #[error("command_timeout_s must be more than 0 and at most {}", longest.as_secs_f64())]
    Timeout { longest: Duration },
    #[error("This connection was replaced by a newer one")]
    Replaced,
    #[error("The key was revoked or has expired")]
    KeyGone,
    #[error(transparent)]
    CannotBegin(#[from] CannotBegin),
}

impl SubmitError {
    /// Whether the refusal itself says that the session id names a task that is not over.
    pub(crate) const fn names_open_task(&self) -> bool {
        use CannotBegin::{AlreadyRunning, OwnedByAnother};
        matches!(self, Self::CannotBegin(AlreadyRunning(_) | OwnedByAnother(_)))
    }
}

/// A task that is wanted, and by whom.
pub(crate) struct Submission {
    pub(crate) request: TaskRequest,
    pub(crate) holder: Arc<Principal>,
    pub(crate) address: Option<SocketAddr>,
    pub(crate) from: From,
}

/// Where a task comes in.
pub(crate) enum From {
    /// A connection.
    Client(Via),
    /// The HTTP API, which waits until the task is stored.
    Http(oneshot::Sender<Result<(), StoreError>>),
}
impl Hub {
    /// Accepts a task: checks where it comes from and its target, and gives it its place in the queue.
    pub(crate) fn submit(
        &mut self,
        moment: &Moment<'_>,
        submission: Submission,
    ) -> Result<Arc<Task>, SubmitError> {
        let (origin, requester) = self.origin(&submission)?;
        let device = self.target(&submission.request.target_id)?;
        let timeout = self.check(&submission.request)?;
        if self.is_closed {
            return Err(CannotBegin::ShuttingDown.into());
        }
        let Submission { request, holder, from, .. } = submission;
        let task = self.task(moment, request, requester, timeout, &holder);
        self.check_session_id(&task.session_id, &origin, &holder)?;
        let turn = self.join_lane(device, &task, &origin)?;
        let task = Arc::new(task);
        let stored = match from {
            From::Client(_) => None,
            From::Http(stored) => Some(stored),
        };
        let kept = self.budget.nothing();
        self.enter(Session::new(moment, &task, origin, holder, device, stored, kept));
        self.begin(moment, task.id, turn);
        Ok(task)
    }

    fn origin(&self, submission: &Submission) -> Result<(Origin, Requester), SubmitError> {
        let address = submission.address;
        match &submission.from {
            From::Client(via) => {
                let handle = self.parties.current(*via).ok_or(SubmitError::Replaced)?;
                let client = Some((handle.id().clone(), handle.peer.client_type));
                let identity = Some(via.identity);
                let requester = Requester::Client(handle.id().clone());
                Ok((Origin { identity, client, address }, requester))
            }
            From::Http(_) => {
                let requester = Requester::Http(submission.holder.name().into());
                Ok((Origin { identity: None, client: None, address }, requester))
            }
        }
    }

    fn target(&self, target: &ClientId) -> Result<Incarnation, SubmitError> {
        let known = self.parties.incarnation(target);
        let device = known.ok_or_else(|| SubmitError::NotConnected(target.clone()))?;
        self.parties.seat(device).map(|_| device).ok_or(SubmitError::NotADevice)
    }

    /// Checks what is asked for. Returns the longest time for one command.
    fn check(&self, request: &TaskRequest) -> Result<Duration, SubmitError> {
        let config = &self.config;
        let (bytes, limit) = (request.request.len(), config.max_request_bytes);
        if bytes > limit {
            return Err(SubmitError::TooLong { bytes, limit });
        }
        let timeout = request.command_timeout.unwrap_or(config.command_timeout);
        let longest = config.max_command_timeout.max(config.command_timeout);
        if timeout.is_zero() || timeout > longest {
            return Err(SubmitError::Timeout { longest });
        }
        Ok(timeout)
    }

    fn check_session_id(
        &self,
        id: &SessionId,
        origin: &Origin,
        holder: &Principal,
    ) -> Result<(), CannotBegin> {
        let known = self.open_ids.get(id).and_then(|task| self.sessions.get(task));
        match known {
            None => Ok(()),
            Some(known) if known.is_of(origin, holder) => {
                Err(CannotBegin::AlreadyRunning(id.clone()))
            }
            Some(_) => Err(CannotBegin::OwnedByAnother(id.clone())),
        }
    }

    fn task(
        &self,
        moment: &Moment<'_>,
        request: TaskRequest,
        requester: Requester,
        command_timeout: Duration,
        holder: &Principal,
    ) -> Task {
        let device = self.parties.by_id(&request.target_id).and_then(|device| device.handle());
        let platform = device.map_or("", |handle| handle.platform.as_str());
        let ambient = moment.ambient;
        Task {
            id: TaskId::new(ambient.uuid_v7()),
            session_id: request.session_id.unwrap_or_else(|| fresh_session_id(ambient)),
            task_name: request.task_name.unwrap_or_else(|| fresh_task_name(ambient)),
            request: request.request,
            requester,
            device: request.target_id,
            agent_name: self.config.agent_name(platform).to_owned(),
            command_timeout,
            created_at: moment.at,
            key: KeyName { name: holder.name().into(), id: holder.key_id().map(Into::into) },
            terms: Terms::default(),
        }
    }

    fn join_lane(
        &mut self,
        device: Incarnation,
        task: &Task,
        origin: &Origin,
    ) -> Result<Turn, SubmitError> {
        let key = task.key.id.as_ref().unwrap_or(&task.key.name).clone();
        let share = Share { key, client: origin.identity.map_or(0, |id| id.0) };
        let (places, capacity) = (self.config.sessions_per_device, self.config.queue_per_device);
        let seat = self.parties.seat_mut(device).ok_or(SubmitError::NotADevice)?;
        seat.lane.join(share, task.id, places, capacity).map_err(|full| {
            CannotBegin::QueueFull { device: task.device.clone(), waiting: full.waiting }.into()
        })
    }

    fn enter(&mut self, session: Session) {
        let (id, session_id) = (session.task.id, session.task.session_id.clone());
        if let Some(identity) = session.origin.identity.and_then(|id| self.parties.get_mut(id)) {
            identity.requested.insert(id);
        }
        self.effects.push(Effect::Accepted(session.task.clone(), session.origin.clone()));
        self.open_ids.insert(session_id, id);
        self.sessions.insert(id, Box::new(session));
    }

    fn begin(&mut self, moment: &Moment<'_>, id: TaskId, turn: Turn) {
        match turn {
            Turn::Now => self.ask(moment, id),
            Turn::After(ahead) => {
                self.show(id, |task| {
                    vec![waits(&task.session_id, task.device.as_str(), ahead, moment.text())]
                });
                self.commit(id);
            }
        }
    }

    /// Shows a requester that wants to see it what happens.
    pub(super) fn show(&mut self, id: TaskId, frames: impl FnOnce(&Task) -> Vec<bytes::Bytes>) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let handle = session.origin.identity.and_then(|id| self.parties.handle(id));
        if let Some(handle) = handle.filter(|handle| handle.has(Feature::Progress)) {
            let task = session.task.clone();
            frames(&task).into_iter().for_each(|frame| say(handle, session, frame, true));
        }
    }
}

impl Session {
    fn new(
        moment: &Moment<'_>,
        task: &Arc<Task>,
        origin: Origin,
        holder: Arc<Principal>,
        device: Incarnation,
        stored: Option<oneshot::Sender<Result<(), StoreError>>>,
        kept: Kept,
    ) -> Self {
        let mut journal = Journal::default();
        journal.push(Record::Created(task.clone()));
        Self {
            task: task.clone(),
            origin,
            holder,
            device,
            phase: Phase::Queued,
            journal,
            is_accepted: false,
            held: std::collections::VecDeque::new(),
            history: Arc::default(),
            tools: None,
            memo: None,
            bytes: 0,
            kept,
            accepted_at: moment.now,
            deadline: None,
            is_device_gone: false,
            stored,
            waiters: Vec::new(),
        }
    }

    /// Whether it has the same requester: the same identity, or the same key over HTTP.
    fn is_of(&self, origin: &Origin, holder: &Principal) -> bool {
        self.origin.identity == origin.identity
            && (origin.identity.is_some() || self.holder.has_key_of(holder))
    }
}
