//! How a task begins: what is wanted is checked, and gets its place in the queue of its device.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aip::machine::TaskRequest;
use aip::message::{Feature, Features, Refused};
use aip::{ClientId, RequestId, SessionId};
use link::Kept;
use tokio::sync::oneshot;

use super::lane::{Entrant, Manner, Share, Turn};
use super::outcomes::Asked;
use super::parties::Via;
use super::requests::{Known, Owner, hash};
use super::session::{Journal, Phase, Session};
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
    #[error("{0}")]
    NotGranted(&'static str),
    #[error("Task content of {bytes} bytes is over the limit of {limit} bytes")]
    TooLong { bytes: usize, limit: usize },
    #[error("command_timeout_s must be more than 0 and at most {}", longest.as_secs_f64())]
    Timeout { longest: Duration },
    #[error("This connection was replaced by a newer one")]
    Replaced,
    #[error("Target device '{0}' is away and expected back; try again later")]
    Away(ClientId),
    #[error("Device '{0}' takes no input")]
    NoInput(ClientId),
    #[error("request_id '{0}' was used for another task")]
    RequestUsed(RequestId),
    #[error("The task was sent to another store than this server has: its outcome is unknown")]
    Lost,
    #[error("This key has {0}, which is as much as may be; try again later")]
    TooMuch(String),
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

    /// What the refusal means to a requester that may send the task again.
    pub(crate) const fn means(&self) -> Refused {
        use CannotBegin::{QueueFull, ShuttingDown};
        match self {
            Self::Lost => Refused::Lost,
            Self::Away(_)
            | Self::TooMuch(_)
            | Self::CannotBegin(QueueFull { .. } | ShuttingDown) => Refused::Retry,
            _ => Refused::Final,
        }
    }
}

/// A task that is wanted, and by whom.
pub(crate) struct Submission {
    pub(crate) request: TaskRequest,
    pub(crate) holder: Arc<Principal>,
    pub(crate) address: Option<SocketAddr>,
    pub(crate) from: From,
    /// Whether its agent says that it shares its device with its like.
    pub(crate) shares: bool,
}

/// What became of a submission.
pub(crate) enum Submitted {
    New(Arc<Task>),
    /// It was accepted before, as this task.
    Known(TaskId),
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
    ) -> Result<Submitted, SubmitError> {
        let requester = self.requester(&submission)?;
        let key = key_name(&submission.holder);
        let named = submission.request.request_id.clone();
        let named = named.map(|id| (Owner::new(requester, &key), id));
        // Before anything else: what was accepted once is not refused when it comes again.
        if let Some((owner, request_id)) = &named {
            let known = self.requests.get(owner, request_id);
            if let Some(known) = known {
                if known.hash != hash(&submission.request) {
                    return Err(SubmitError::RequestUsed(request_id.clone()));
                }
                let id = known.task;
                self.answer_again(moment, submission, id);
                return Ok(Submitted::Known(id));
            }
            let store = submission.request.store.as_ref();
            if store.is_some_and(|store| *store != self.store.id) {
                return Err(SubmitError::Lost);
            }
        }
        self.check_reach(&submission)?;
        let device = self.target(&submission.request.target_id)?;
        let timeout = self.check(&submission.request)?;
        if self.is_closed {
            return Err(CannotBegin::ShuttingDown.into());
        }
        self.check_undelivered(&submission.holder).map_err(SubmitError::TooMuch)?;
        let streams = match submission.from {
            From::Client(via) => self.grant_streams(via, device, submission.request.streams)?,
            From::Http(_) => None,
        };
        let (requester, terms) = self.terms(&submission, device);
        let terms = Terms { streams, ..terms };
        let Submission { request, holder, from, shares, .. } = submission;
        let task = self.task(moment, request, requester, (timeout, terms), key);
        self.check_session_id(&task, &holder)?;
        let turn = self.join_lane(device, &task, manner(shares))?;
        let task = Arc::new(task);
        let stored = match from {
            From::Client(_) => Vec::new(),
            From::Http(stored) => vec![stored],
        };
        if let (Some((owner, request_id)), Some(hash)) = (named, task.terms.request_hash) {
            let known = Known { hash, task: task.id };
            self.requests.insert(moment.at, &owner, &request_id, known);
        }
        let kept = self.budget.nothing();
        self.enter(Session { stored, ..Session::new(moment, &task, holder, kept) });
        self.begin(moment, task.id, turn);
        Ok(Submitted::New(task))
    }

    /// Answers for a task that was accepted before.
    fn answer_again(&mut self, moment: &Moment<'_>, submission: Submission, id: TaskId) {
        match submission.from {
            From::Client(via) => {
                let (session_id, request_id) =
                    (submission.request.session_id, submission.request.request_id);
                self.repeat(moment, Asked { via, task: id, session_id, request_id });
            }
            From::Http(stored) => match self.sessions.get_mut(&id) {
                Some(session) if !session.is_accepted => session.stored.push(stored),
                _ => {
                    let _asker_is_gone = stored.send(Ok(()));
                }
            },
        }
    }

    /// Whether the client may ask for this, and its key reaches the device: a device's its own.
    fn check_reach(&self, submission: &Submission) -> Result<(), SubmitError> {
        let target = &submission.request.target_id;
        let may = match &submission.from {
            From::Client(via) => {
                let handle = self.parties.current(*via).ok_or(SubmitError::Replaced)?;
                let granted = handle.peer.may_submit(&submission.request);
                granted.map_err(SubmitError::NotGranted)?;
                handle.may_reach(target)
            }
            From::Http(_) => submission.holder.may_reach(target),
        };
        if may { Ok(()) } else { Err(SubmitError::NotAuthorized) }
    }

    /// Whose task it is; the HTTP API has no identity.
    fn requester(&self, submission: &Submission) -> Result<Option<Incarnation>, SubmitError> {
        match &submission.from {
            From::Client(via) if self.parties.current(*via).is_none() => Err(SubmitError::Replaced),
            From::Client(via) => Ok(Some(via.identity)),
            From::Http(_) => Ok(None),
        }
    }

    fn terms(&self, submission: &Submission, device: Incarnation) -> (Requester, Terms) {
        let (handle, requester) = match &submission.from {
            From::Client(via) => (self.parties.current(*via), Some(via.identity)),
            From::Http(_) => (None, None),
        };
        let request = &submission.request;
        let terms = Terms {
            requester,
            role: handle.map(|handle| handle.peer.client_type),
            address: submission.address,
            device,
            device_key: self
                .parties
                .get(device)
                .and_then(|device| device.connection()?.holder.key_id().map(Into::into)),
            // What a device is granted is about its work for others.
            features: handle
                .filter(|handle| !handle.is_device())
                .map_or_else(Features::default, |handle| handle.peer.features),
            on_disconnect: request.on_disconnect,
            no_time_limit: request.no_time_limit,
            request_id: request.request_id.clone(),
            request_hash: request.request_id.as_ref().map(|_| hash(request)),
            streams: None,
        };
        let of_key = || Requester::Http(submission.holder.name().into());
        (handle.map_or_else(of_key, |handle| Requester::Client(handle.id().clone())), terms)
    }

    fn target(&self, target: &ClientId) -> Result<Incarnation, SubmitError> {
        let known = self.parties.incarnation(target);
        let device = known.ok_or_else(|| SubmitError::NotConnected(target.clone()))?;
        let identity = self.parties.get(device);
        if identity.is_some_and(|identity| identity.is_expected()) {
            return Err(SubmitError::Away(target.clone()));
        }
        self.parties.seat(device).map(|_| device).ok_or(SubmitError::NotADevice)
    }

    /// Checks what is asked for. Returns the longest time for one command.
    fn check(&self, request: &TaskRequest) -> Result<Duration, SubmitError> {
        let config = &self.config;
        let (bytes, limit) = (request.request.len(), config.max_request_bytes);
        if bytes > limit {
            return Err(SubmitError::TooLong { bytes, limit });
        }
        let usual = || config.command_limit(request.no_time_limit);
        let timeout = request.command_timeout.unwrap_or_else(usual);
        let longest = config.longest_command();
        if timeout.is_zero() || timeout > longest {
            return Err(SubmitError::Timeout { longest });
        }
        Ok(timeout)
    }

    fn check_session_id(&self, task: &Task, holder: &Principal) -> Result<(), CannotBegin> {
        let id = &task.session_id;
        let known = self.open_ids.get(id).and_then(|task| self.sessions.get(task));
        match known {
            None => Ok(()),
            Some(known) if known.is_of(task, holder) => {
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
        (command_timeout, terms): (Duration, Terms),
        key: KeyName,
    ) -> Task {
        let device = self.parties.by_id(&request.target_id).and_then(|device| device.connection());
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
            key,
            terms,
        }
    }

    fn join_lane(
        &mut self,
        device: Incarnation,
        task: &Task,
        manner: Manner,
    ) -> Result<Turn, SubmitError> {
        let (share, entrant) = (share(task), Entrant { task: task.id, manner });
        let seat = self.parties.seat_mut(device).ok_or(SubmitError::NotADevice)?;
        let (limits, capacity) = (self.config.places(seat.at_once), self.config.queue_per_device);
        seat.lane.join(share, entrant, limits, capacity).map_err(|full| {
            CannotBegin::QueueFull { device: task.device.clone(), waiting: full.waiting }.into()
        })
    }

    pub(super) fn enter(&mut self, session: Session) {
        let (id, session_id) = (session.task.id, session.task.session_id.clone());
        if let Some(identity) = session.task.terms.requester.and_then(|id| self.parties.get_mut(id))
        {
            identity.requested.insert(id);
        }
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
        let handle = session.task.terms.requester.and_then(|id| self.parties.handle(id));
        if let Some(handle) = handle.filter(|handle| handle.has(Feature::Progress)) {
            let task = session.task.clone();
            frames(&task).into_iter().for_each(|frame| say(handle, session, frame, true));
        }
    }
}

/// Whose a task's place is.
pub(super) fn share(task: &Task) -> Share {
    let key = task.key.id.as_ref().unwrap_or(&task.key.name).clone();
    Share { key, client: task.terms.requester.map_or(0, |id| id.0) }
}

/// How a task uses its device.
pub(super) const fn manner(shares: bool) -> Manner {
    if shares { Manner::Together } else { Manner::Alone }
}

fn key_name(holder: &Principal) -> KeyName {
    KeyName { name: holder.name().into(), id: holder.key_id().map(Into::into) }
}

impl Session {
    pub(super) fn new(
        moment: &Moment<'_>,
        task: &Arc<Task>,
        holder: Arc<Principal>,
        kept: Kept,
    ) -> Self {
        let mut journal = Journal::default();
        journal.push(Record::Created(task.clone()));
        Self {
            task: task.clone(),
            holder,
            device: task.terms.device,
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
            is_recovered: false,
            cancel: None,
            last_command: None,
            leave: None,
            settling: std::collections::VecDeque::new(),
            late: Vec::new(),
            stored: Vec::new(),
            waiters: Vec::new(),
        }
    }

    /// Whether it has the same requester as another task: the same identity, or the same key over HTTP.
    fn is_of(&self, task: &Task, holder: &Principal) -> bool {
        let requester = self.task.terms.requester;
        requester == task.terms.requester && (requester.is_some() || self.holder.has_key_of(holder))
    }
}
