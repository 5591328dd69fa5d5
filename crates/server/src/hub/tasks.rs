//! The life of a task: accepted, its turn, step by step, its one outcome.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aip::codec::Wire;
use aip::machine::TaskRequest;
use aip::{ClientId, Payload, ResultStatus, ServerMessage, ServerMessageType, SessionId, Status};
use tokio::sync::oneshot;
use tokio_util::sync::DropGuard;

use super::commands::{OpenCommand, Reach};
use super::effect::{DeviceGoodbye, Effect, Over, Writing};
use super::lane::{Share, Turn};
use super::parties::{Incarnation, Via};
use super::session::Session;
use super::session::{Broken, Farewell, Goodbyes, Halt, Journal, Origin, Phase, Prepared, Sent};
use super::timers::Due;
use super::{Hub, Moment, RETRY_STORE, Settlement, queue, say};
use crate::agent::{Memo, Question, Remaining, Usage};
use crate::auth::Principal;
use crate::session::{
    Call, CallResult, Cause, Finish, KeyName, Outcome, Requester, Step, Task, TaskId,
    fresh_response_id, fresh_session_id, fresh_task_name, step_ended, step_runs, waits,
};
use crate::store::{Batch, Ended, Record, StoreError};

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

/// What an agent advises, made ready to be carried out.
pub(crate) struct Advice {
    pub(crate) next: Next,
    pub(crate) notes: Vec<Payload>,
    pub(crate) usage: Usage,
    pub(crate) memo: Memo,
}

/// What comes next in a task.
pub(crate) enum Next {
    Send(Prepared),
    Finish(Finish),
    Fail(String),
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
        self.enter(Session::new(moment, &task, origin, holder, device, stored));
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
        }
    }

    fn join_lane(
        &mut self,
        device: Incarnation,
        task: &Task,
        origin: &Origin,
    ) -> Result<Turn, SubmitError> {
        let key = task.key.id.as_ref().unwrap_or(&task.key.name).clone();
        let share = Share { key, client: origin.identity.map_or(0, Incarnation::number) };
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
    fn show(&mut self, id: TaskId, frames: impl FnOnce(&Task) -> Vec<bytes::Bytes>) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let handle = session.origin.identity.and_then(|id| self.parties.handle(id));
        if let Some(handle) = handle.filter(|handle| handle.wants_progress) {
            let task = session.task.clone();
            frames(&task).into_iter().for_each(|frame| say(handle, session, frame, true));
        }
    }

    /// Has the agent asked what comes next.
    fn ask(&mut self, moment: &Moment<'_>, id: TaskId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.phase = Phase::Thinking(None);
        let limit = self.config.session_timeout;
        let (deadline, _) = *session.deadline.get_or_insert_with(|| {
            let at = moment.now + limit;
            (at, self.timers.set(at, Due::Session(id)))
        });
        let steps = u32::try_from(session.history.len()).unwrap_or(u32::MAX);
        let remaining = Remaining {
            steps: self.config.max_steps.saturating_sub(steps),
            time: deadline.saturating_duration_since(moment.now),
        };
        let question = Question {
            task: session.task.clone(),
            facts: self.parties.seat(session.device).and_then(|seat| seat.facts.clone()),
            tools: session.tools.clone(),
            history: session.history.clone(),
            remaining,
            memo: session.memo.clone(),
        };
        self.effects.push(Effect::Ask(Box::new(question)));
    }

    /// The agent takes a while; dropping the guard cancels its thought.
    pub(crate) fn handle_thinking(&mut self, id: TaskId, guard: DropGuard) {
        if let Some(Phase::Thinking(thinking)) =
            self.sessions.get_mut(&id).map(|session| &mut session.phase)
        {
            *thinking = Some(guard);
            self.commit(id);
        }
    }

    /// Takes what the agent advises. Advice that comes when the session goes no further is dropped.
    pub(crate) fn handle_advice(&mut self, moment: &Moment<'_>, id: TaskId, advice: Advice) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if !matches!(session.phase, Phase::Thinking(_)) {
            return;
        }
        let Advice { next, notes, usage, memo } = advice;
        session.memo = memo;
        if !notes.is_empty() || usage != Usage::default() {
            let notes = notes.into();
            session.journal.push(Record::Noted { at: moment.at, notes, usage });
        }
        match next {
            Next::Send(prepared) => self.prepare(moment, id, prepared),
            Next::Finish(finish) => self.end(id, Outcome::completed(finish)),
            Next::Fail(error) => self.end(id, Outcome::given_up(error)),
        }
    }

    /// Notes a decided step, which is sent once that is stored.
    fn prepare(&mut self, moment: &Moment<'_>, id: TaskId, prepared: Prepared) {
        if let Some(broken) = self.limit(moment, id) {
            return self.end_broken(id, broken);
        }
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.journal.push(Record::Decided {
            at: moment.at,
            response_id: prepared.response_id.clone(),
            calls: prepared.calls.clone(),
            is_discovery: prepared.is_discovery,
        });
        session.phase = Phase::Prepared(prepared);
        self.commit(id);
    }

    /// Why a session may take no further step.
    fn limit(&self, moment: &Moment<'_>, id: TaskId) -> Option<Broken> {
        let session = self.sessions.get(&id)?;
        if session.deadline.is_some_and(|(deadline, _)| deadline <= moment.now) {
            return Some(self.out_of_time());
        }
        if self.is_closed {
            return Some(Broken::Stopped(Cause::Shutdown));
        }
        let max_steps = self.config.max_steps;
        let is_over = session.history.len() >= max_steps as usize;
        is_over.then(|| Broken::Failed(format!("Task did not end within {max_steps} steps")))
    }

    fn out_of_time(&self) -> Broken {
        let limit = self.config.session_timeout.as_secs();
        Broken::Failed(format!("Task did not end within {limit} s"))
    }

    /// Sends what a session has to store, if nothing of it is on its way.
    fn commit(&mut self, id: TaskId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if let Some(records) = session.journal.take() {
            let batch = Arc::new(Batch { task: id, records });
            self.effects.push(Effect::Commit(session.task.clone(), batch));
        }
    }

    /// The store has a batch, or would not have it.
    pub(crate) fn handle_committed(
        &mut self,
        moment: &Moment<'_>,
        batch: &Batch,
        committed: Result<(), StoreError>,
    ) {
        let Some(session) = self.sessions.get_mut(&batch.task) else { return };
        match committed {
            Ok(()) => {
                if session.journal.arrived() {
                    self.effects.push(Effect::StoreFails(session.task.clone(), None));
                }
                if !session.is_accepted {
                    self.acknowledge(moment, batch.task);
                }
                self.proceed(moment, batch.task);
            }
            Err(error) if !session.is_accepted => self.refuse(moment, batch.task, error),
            Err(error) => {
                let at = moment.now + RETRY_STORE;
                let retry = self.timers.set(at, Due::Retry(batch.task));
                if session.journal.failed(batch, retry) {
                    self.effects.push(Effect::StoreFails(session.task.clone(), Some(error)));
                }
            }
        }
    }

    pub(super) fn handle_retry(&mut self, id: TaskId) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.journal.retry = None;
            self.commit(id);
        }
    }

    /// Does what waited for the store.
    fn proceed(&mut self, moment: &Moment<'_>, id: TaskId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if !session.journal.is_stored() {
            return self.commit(id);
        }
        match &session.phase {
            Phase::Prepared(_) => self.dispatch(moment, id),
            Phase::Ending(farewell) if farewell.goodbyes.is_some() => self.finish(moment, id),
            _ => {}
        }
    }

    /// Sends the requester the ACK of its task, and what came up meanwhile.
    fn acknowledge(&mut self, moment: &Moment<'_>, id: TaskId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.is_accepted = true;
        if let Some(stored) = session.stored.take() {
            // The asker may be gone; the task runs all the same.
            let _asker_is_gone = stored.send(Ok(()));
        }
        let Some(handle) = session.origin.identity.and_then(|id| self.parties.handle(id)) else {
            return;
        };
        let ack = ServerMessage {
            session_id: Some(session.task.session_id.clone()),
            timestamp: Some(moment.text()),
            response_id: Some(fresh_response_id(moment.ambient)),
            ..ServerMessage::new(ServerMessageType::Heartbeat, Status::Ok)
        };
        queue(handle, ack.encode(), false);
        for held in std::mem::take(&mut session.held) {
            queue(handle, held.frame, held.is_progress);
        }
    }

    /// Refuses a task whose acceptance could not be stored: no party has seen anything of it.
    fn refuse(&mut self, moment: &Moment<'_>, id: TaskId, error: StoreError) {
        let Some(mut session) = self.remove(moment, id) else { return };
        let text = format!("The task could not be stored: {error}; try again later");
        let handle = session.origin.identity.and_then(|id| self.parties.handle(id));
        if let Some(handle) = handle {
            let session_id = session.task.session_id.clone();
            let stamp = |message: ServerMessage| ServerMessage {
                timestamp: Some(moment.text()),
                response_id: Some(fresh_response_id(moment.ambient)),
                ..message
            };
            let refusal = ServerMessage::error(text.clone(), Some(session_id.clone()));
            let end = ServerMessage::task_failed(text, session_id);
            let held = std::mem::take(&mut session.held).into_iter();
            queue(handle, stamp(refusal).encode(), false);
            for held in held.filter(|held| !held.is_progress) {
                queue(handle, held.frame, false);
            }
            queue(handle, stamp(end).encode(), false);
        }
        if let Some(stored) = session.stored.take() {
            let _asker_is_gone = stored.send(Err(error.clone()));
        }
        self.free_place(moment, session.device, id);
        self.effects.push(Effect::NotStored(session, error));
    }

    /// Sends a decided step, now that it is stored.
    fn dispatch(&mut self, moment: &Moment<'_>, id: TaskId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let phase = std::mem::replace(&mut session.phase, Phase::Queued);
        let Phase::Prepared(prepared) = phase else { return session.phase = phase };
        let Prepared { response_id, calls, is_discovery, frame } = prepared;
        let sent = Sent { response_id, calls, is_discovery, at: moment.now };
        session.phase = Phase::Running(sent.clone());
        let (device, timeout) = (session.device, session.task.command_timeout);
        let n = session.step_number();
        self.show(id, |task| {
            let shown = |call| step_runs(&task.session_id, n, call, moment.text());
            sent.calls.iter().map(shown).collect()
        });
        // The queue decides once whether it is sent.
        let place = self.parties.handle(device).and_then(|handle| handle.outbox.push(frame).ok());
        let (Some(place), Some(seat)) = (place, self.parties.seat_mut(device)) else {
            let results = unknown(&sent.calls, "The device disconnected", Reach::NeverSent);
            let broken = Some(Broken::Stopped(Cause::DeviceGone));
            return self.take_step(moment, id, Settlement::Lost, results, broken);
        };
        let due = Due::Command(device, sent.response_id.clone());
        let timer = self.timers.set(moment.now + timeout, due);
        let Some(session) = self.sessions.get(&id) else { return };
        let command = OpenCommand {
            task: id,
            session_id: session.task.session_id.clone(),
            call_ids: sent.calls.iter().filter_map(|call| call.call_id.clone()).collect(),
            place,
            is_stopping: false,
            timer,
        };
        seat.commands.insert(sent.response_id, command);
    }

    /// Puts a settled step into the history, and goes on or ends.
    pub(super) fn take_step(
        &mut self,
        moment: &Moment<'_>,
        id: TaskId,
        settlement: Settlement,
        results: Vec<CallResult>,
        broken: Option<Broken>,
    ) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Phase::Running(sent) = &session.phase else { return };
        let sent = sent.clone();
        let took = moment.now.saturating_duration_since(sent.at);
        self.effects.push(Effect::Settled(settlement, took));
        session.bytes += results.iter().map(CallResult::bytes).sum::<usize>();
        let results = Arc::<[CallResult]>::from(results);
        session.journal.push(Record::Answered { at: moment.at, results: results.clone() });
        if sent.is_discovery {
            session.note_tools(&results);
        }
        let (n, calls) = (session.step_number(), sent.calls.clone());
        let step = Step { calls, results: results.clone(), is_discovery: sent.is_discovery };
        Arc::make_mut(&mut session.history).push(step);
        let elapsed = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.show(id, |task| {
            let shown = |step| step_ended(&task.session_id, n, step, elapsed, moment.text());
            sent.calls.iter().zip(results.iter()).map(shown).collect()
        });
        match broken.or_else(|| self.too_much(id)) {
            None => self.ask(moment, id),
            Some(broken) => self.end_broken(id, broken),
        }
    }

    /// Why a task may collect no more, if it has too much.
    fn too_much(&self, id: TaskId) -> Option<Broken> {
        let limit = self.config.max_task_bytes;
        let is_over = self.sessions.get(&id).is_some_and(|session| session.bytes > limit);
        is_over.then(|| Broken::Failed(format!("Task has more than {limit} bytes of results")))
    }

    /// Ends a session early, wherever it stands.
    pub(super) fn halt(&mut self, moment: &Moment<'_>, id: TaskId, halt: &Halt) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if matches!(halt, Halt::Stopped(Cause::DeviceGone)) {
            session.is_device_gone = true;
        }
        let broken = match halt {
            Halt::Stopped(cause) => Broken::Stopped(cause.clone()),
            Halt::OutOfTime => self.out_of_time(),
            Halt::Broken => Broken::Failed(Outcome::broken().error.unwrap_or_default().to_string()),
        };
        let Some(session) = self.sessions.get_mut(&id) else { return };
        match &session.phase {
            Phase::Ending(_) => {}
            Phase::Queued => {
                let device = session.device;
                self.end_broken(id, broken);
                self.free_place(moment, device, id);
            }
            Phase::Thinking(_) => self.end_broken(id, broken),
            Phase::Prepared(prepared) => {
                let (calls, response_id) = (prepared.calls.clone(), prepared.response_id.clone());
                let is_discovery = prepared.is_discovery;
                let results = unknown(&calls, "Stopped", Reach::NeverSent);
                let sent = Sent { response_id, calls, is_discovery, at: moment.now };
                session.phase = Phase::Running(sent);
                self.take_step(moment, id, Settlement::Stopped, results, Some(broken));
            }
            Phase::Running(sent) => {
                let sent = sent.clone();
                let device = session.device;
                let reach = self.stop_command(moment, device, &sent.response_id);
                let results = unknown(&sent.calls, "Stopped", reach);
                self.take_step(moment, id, Settlement::Stopped, results, Some(broken));
            }
        }
    }

    pub(super) fn end_broken(&mut self, id: TaskId, broken: Broken) {
        let Some(session) = self.sessions.get(&id) else { return };
        let outcome = match broken {
            Broken::Stopped(cause) => Outcome::stopped(&cause, &session.task),
            Broken::Failed(error) => Outcome::failed(error),
        };
        self.end(id, outcome);
    }

    /// The outcome is known: it is written, stored, and only then sent.
    fn end(&mut self, id: TaskId, outcome: Outcome) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if let Some((_, timer)) = session.deadline.take() {
            self.timers.clear(timer);
        }
        let farewell = Farewell { outcome: outcome.clone(), goodbyes: None };
        session.phase = Phase::Ending(Box::new(farewell));
        session.memo = None;
        let device = self.parties.handle(session.device);
        let for_device = match device {
            None => DeviceGoodbye::Nothing,
            _ if session.is_device_gone || session.is_own_task() => DeviceGoodbye::Nothing,
            Some(handle) if handle.is_flightdeck => DeviceGoodbye::WithoutResult,
            Some(_) => DeviceGoodbye::Whole,
        };
        let requester = session.origin.identity.and_then(|id| self.parties.handle(id));
        let writing = Writing {
            task: session.task.clone(),
            outcome,
            history: session.history.clone(),
            for_requester: requester.is_some(),
            for_device,
        };
        self.effects.push(Effect::Write(Box::new(writing)));
    }

    /// The TASK_END is written: the outcome is stored now.
    pub(crate) fn handle_goodbyes(&mut self, moment: &Moment<'_>, id: TaskId, goodbyes: Goodbyes) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Phase::Ending(farewell) = &mut session.phase else { return };
        if farewell.goodbyes.is_some() {
            return;
        }
        let Outcome { ending, error, finish, .. } = farewell.outcome.clone();
        let is_unfetched = session.origin.identity.is_none() || !goodbyes.is_whole;
        let ended = Ended { at: moment.at, ending, error, finish, is_unfetched };
        farewell.goodbyes = Some(goodbyes);
        session.journal.push(Record::Ended(Arc::new(ended)));
        self.commit(id);
    }

    /// Something failed inside the server while it worked on this task.
    pub(crate) fn handle_panic(&mut self, moment: &Moment<'_>, id: TaskId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if let Phase::Ending(farewell) = &mut session.phase {
            if farewell.goodbyes.is_none() {
                farewell.outcome = Outcome::broken();
            }
            return;
        }
        self.halt(moment, id, &Halt::Broken);
    }

    /// The outcome is stored: the TASK_ENDs go out, and everything of the session goes.
    fn finish(&mut self, moment: &Moment<'_>, id: TaskId) {
        let Some(mut session) = self.remove(moment, id) else { return };
        let phase = std::mem::replace(&mut session.phase, Phase::Queued);
        let Phase::Ending(farewell) = phase else { return };
        let Farewell { outcome, goodbyes } = *farewell;
        let (for_device, for_requester) =
            goodbyes.map_or((None, None), |goodbyes| (goodbyes.device, goodbyes.requester));
        let say = |party: Option<Incarnation>, frame: Option<bytes::Bytes>| {
            let handle = party.and_then(|id| self.parties.handle(id));
            if let (Some(handle), Some(frame)) = (handle, frame) {
                queue(handle, frame, false);
            }
        };
        say(Some(session.device).filter(|_| !session.is_device_gone), for_device);
        say(session.origin.identity, for_requester);
        if let Some(seat) = self.parties.seat_mut(session.device)
            && seat.commands.has_of(id)
        {
            seat.stopping.insert(id, session.task.clone());
        }
        self.free_place(moment, session.device, id);
        let ended = moment.now;
        self.effects.push(Effect::Over(Box::new(Over { session, outcome, ended })));
    }

    /// Takes a session out of the tables.
    fn remove(&mut self, moment: &Moment<'_>, id: TaskId) -> Option<Box<Session>> {
        let session = self.sessions.remove(&id)?;
        self.open_ids.remove(&session.task.session_id);
        for timer in
            session.deadline.map(|(_, timer)| timer).into_iter().chain(session.journal.retry)
        {
            self.timers.clear(timer);
        }
        if let Some(identity) = session.origin.identity {
            if let Some(identity) = self.parties.get_mut(identity) {
                identity.requested.remove(&id);
            }
            self.parties.forget_unneeded(identity, moment.now);
        }
        Some(session)
    }

    /// Gives a task's place on its device to the next, unless a command of it has still to stop.
    pub(super) fn free_place(&mut self, moment: &Moment<'_>, device: Incarnation, id: TaskId) {
        let Some(seat) = self.parties.seat_mut(device) else { return };
        if seat.commands.has_of(id) {
            return;
        }
        seat.stopping.remove(&id);
        let next = seat.lane.leave(id);
        if let Some(next) = next
            && self.sessions.get(&next).is_some_and(|next| matches!(next.phase, Phase::Queued))
        {
            self.ask(moment, next);
        }
        self.parties.forget_unneeded(device, moment.now);
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

    /// Notes the device's tools, if that is what came.
    fn note_tools(&mut self, results: &[CallResult]) {
        let found = results.first().filter(|found| found.status == ResultStatus::Success.into());
        if let Some(tools) = found.and_then(|found| found.result.clone()) {
            self.tools = Some(tools);
        }
    }
}

/// The results of a command without an answer: what happened, and what is known of it.
pub(super) fn unknown(calls: &[Call], what: &str, reach: Reach) -> Vec<CallResult> {
    let known = match reach {
        Reach::NeverSent => "it was never sent",
        Reach::Sent => "its outcome is unknown",
    };
    let error = format!("{what}; {known}");
    calls.iter().map(|call| CallResult::failure(call.call_id.clone(), &error)).collect()
}
