//! The life of one task after it was accepted: its turn, step by step, its one outcome.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use aip::{ActionResult, Command, ResponseId};
use bytes::Bytes;
use jiff::Timestamp;
use link::connection::{OFFLOAD_BYTES, now};
use tokio::sync::oneshot;
use tokio::time::Sleep;

use super::lane::Turn;
use super::submit::{acknowledge, entry};
use super::{Cause, Outcome, Session, Step, fresh_call_id, fresh_response_id, progress};
use crate::agent::Decision;
use crate::audit::{self, Event};
use crate::dispatch::{self, Reach, Settlement};
use crate::server::Server;
use crate::store::{Commit, Entry, StoreError};

/// The most of a tool's name that an error repeats, in characters.
const MAX_TOOL_CHARS: usize = 100;

/// Runs a task that is accepted: to its turn, step by step, and to its outcome.
pub(super) async fn run(
    server: Server,
    session: Arc<Session>,
    created: Option<Commit>,
    turn: Turn,
) {
    let mut runner = Runner::new(server, session);
    let outcome = runner.live(created, turn).await;
    runner.end(&outcome).await;
}

/// Carries one session from beginning to end.
struct Runner {
    server: Server,
    session: Arc<Session>,
    history: Vec<Step>,
    /// The command that the device was sent and that is not settled yet.
    open: Option<ResponseId>,
    started: Instant,
    /// Bytes of results so far.
    bytes: usize,
    /// Whether the requester has its outcome.
    is_settled: bool,
}

/// Why a step did not end with its results.
enum Broken {
    Stopped(Cause),
    Failed(String),
}

/// Why a session goes no further.
#[derive(Clone)]
enum Halt {
    Stopped(Cause),
    OutOfTime,
}

/// What ends a session from outside, to be waited for again and again.
struct Limits<'a> {
    session: &'a Session,
    out_of_time: Pin<&'a mut Sleep>,
}

impl Limits<'_> {
    async fn halt(&mut self) -> Halt {
        tokio::select! {
            cause = self.session.stopped() => Halt::Stopped(cause),
            () = &mut self.out_of_time => Halt::OutOfTime,
        }
    }
}

impl From<StoreError> for Broken {
    fn from(error: StoreError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl Runner {
    fn new(server: Server, session: Arc<Session>) -> Self {
        Self {
            server,
            session,
            history: Vec::new(),
            open: None,
            started: now(),
            bytes: 0,
            is_settled: false,
        }
    }

    async fn live(&mut self, created: Option<Commit>, turn: Turn) -> Outcome {
        if let Some(created) = created {
            if let Err(error) = created.wait().await {
                return Outcome::failed(error.to_string());
            }
            acknowledge(&self.session);
        }
        if let Err(cause) = self.wait_turn(turn).await {
            return Outcome::stopped(&cause, &self.session.task);
        }
        self.work().await
    }

    async fn append(&self, entry: Entry) -> Result<(), StoreError> {
        self.server.store().append(self.session.task.id, entry).wait().await
    }

    async fn wait_turn(&self, turn: Turn) -> Result<(), Cause> {
        let Turn::After(ahead) = turn else { return Ok(()) };
        let (session, task) = (&self.session, &self.session.task);
        if let Some(watcher) = session.watcher() {
            progress::queued(watcher, &task.session_id, task.device.as_str(), ahead);
        }
        tokio::select! {
            () = session.turn.notified() => Ok(()),
            cause = session.stopped() => Err(cause),
        }
    }

    /// Decides and runs step after step until the agent is done or something breaks.
    async fn work(&mut self) -> Outcome {
        let session = self.session.clone();
        let out_of_time = tokio::time::sleep(self.server.config().session_timeout);
        tokio::pin!(out_of_time);
        let mut limits = Limits { session: &session, out_of_time };
        loop {
            let decided = self.decide(&mut limits).await;
            let stepped = match decided {
                Ok(Decision::Finish(finish)) => return Outcome::completed(finish),
                Ok(Decision::Fail(error)) => return Outcome::given_up(error),
                Ok(Decision::Commands(commands)) => self.step(commands, &mut limits).await,
                Err(halt) => Err(self.broken(halt)),
            };
            match stepped {
                Ok(()) => {}
                Err(Broken::Stopped(cause)) => return Outcome::stopped(&cause, &self.session.task),
                Err(Broken::Failed(error)) => return Outcome::failed(error),
            }
        }
    }

    fn broken(&self, halt: Halt) -> Broken {
        match halt {
            Halt::Stopped(cause) => Broken::Stopped(cause),
            Halt::OutOfTime => {
                let limit = self.server.config().session_timeout.as_secs();
                Broken::Failed(format!("Task did not end within {limit} s"))
            }
        }
    }

    /// Asks the agent. An agent that knows at once is heard also when the session shall stop: its task
    /// may be done.
    async fn decide(&self, limits: &mut Limits<'_>) -> Result<Decision, Halt> {
        tokio::select! {
            biased;
            decision = self.server.agent().next(&self.session.task, &self.history) => Ok(decision),
            halt = limits.halt() => Err(halt),
        }
    }

    async fn step(
        &mut self,
        mut commands: Vec<Command>,
        limits: &mut Limits<'_>,
    ) -> Result<(), Broken> {
        self.check_may_go_on(limits)?;
        for command in &mut commands {
            command.call_id = Some(fresh_call_id());
        }
        let (response_id, commands) = (fresh_response_id(), Arc::<[Command]>::from(commands));
        self.append(Entry::Decided {
            at: Timestamp::now(),
            response_id: response_id.clone(),
            commands: commands.clone(),
        })
        .await?;
        let sent = now();
        self.show_running(&commands);
        let (session, watcher) = (&self.session, self.session.watcher().cloned());
        let settled =
            dispatch::send(&session.device, &session.task, watcher, &response_id, &commands)
                .map_err(|full| Broken::Failed(full.to_string()))?;
        self.open = Some(response_id);
        let settlement = self.settlement(settled, limits).await;
        self.take(settlement, commands, sent).await
    }

    fn check_may_go_on(&self, limits: &Limits<'_>) -> Result<(), Broken> {
        if limits.out_of_time.is_elapsed() {
            return Err(self.broken(Halt::OutOfTime));
        }
        if let Some(cause) = self.session.stop.get() {
            return Err(Broken::Stopped(cause.clone()));
        }
        if self.server.sessions().is_closed() {
            return Err(Broken::Stopped(Cause::Shutdown));
        }
        let max_steps = self.server.config().max_steps;
        if self.history.len() >= max_steps as usize {
            return Err(Broken::Failed(format!("Task did not end within {max_steps} steps")));
        }
        Ok(())
    }

    /// Waits for the open command's settlement, or settles it because the session shall stop.
    async fn settlement(
        &self,
        mut settled: oneshot::Receiver<Settlement>,
        limits: &mut Limits<'_>,
    ) -> Result<Settlement, (Halt, Reach)> {
        let lost = Settlement::Lost(Reach::Sent);
        let halt = tokio::select! {
            biased;
            settled = &mut settled => return Ok(settled.unwrap_or(lost)),
            halt = limits.halt() => halt,
        };
        match self.open.as_ref().and_then(|id| self.stop(id)) {
            Some((_freed, reach)) => Err((halt, reach)),
            // Results that were faster than the stop count.
            None => Ok(settled.await.unwrap_or(lost)),
        }
    }

    /// Settles a command without its answer: see [`dispatch`].
    fn stop(&self, open: &ResponseId) -> Option<(oneshot::Receiver<()>, Reach)> {
        let device = &self.session.device;
        device.commands.stop(open, device.outbox.taken())
    }

    /// Puts a settled step into the history.
    async fn take(
        &mut self,
        settlement: Result<Settlement, (Halt, Reach)>,
        commands: Arc<[Command]>,
        sent: Instant,
    ) -> Result<(), Broken> {
        let took = now().saturating_duration_since(sent);
        self.server.metrics().count_command(settlement.as_ref().ok(), took);
        let (results, broken) = match settlement {
            Ok(Settlement::Answered(results)) => {
                self.open = None;
                let broken = self.check_bytes(&results);
                (results, broken)
            }
            Ok(Settlement::TimedOut(reach)) => {
                let timeout = self.session.task.command_timeout.as_secs_f64();
                let tool = commands.first().map_or("tool", |command| &command.tool_name);
                let tool: String = tool.chars().take(MAX_TOOL_CHARS).collect();
                let step = self.step_number();
                let broken = format!("Step {step} ({tool}) timed out after {timeout} s");
                let error = format!("No answer within {timeout} s");
                (unknown(&commands, &error, reach), Some(Broken::Failed(broken)))
            }
            Ok(Settlement::Lost(reach)) => {
                let results = unknown(&commands, "The device disconnected", reach);
                (results, Some(Broken::Stopped(Cause::DeviceGone)))
            }
            Err((halt, reach)) => (unknown(&commands, "Stopped", reach), Some(self.broken(halt))),
        };
        let results = Arc::<[ActionResult]>::from(results);
        self.append(Entry::Answered { at: Timestamp::now(), results: results.clone() }).await?;
        self.history.push(Step { commands, results });
        self.show_ended(sent);
        broken.map_or(Ok(()), Err)
    }

    /// Counts what a task collects, and stops it when that is too much.
    fn check_bytes(&mut self, results: &[ActionResult]) -> Option<Broken> {
        self.bytes += results.iter().map(ActionResult::bytes).sum::<usize>();
        let limit = self.server.config().max_task_bytes;
        let text = || format!("Task has more than {limit} bytes of results");
        (self.bytes > limit).then(|| Broken::Failed(text()))
    }

    fn show_running(&self, commands: &[Command]) {
        if let Some(watcher) = self.session.watcher() {
            let session_id = &self.session.task.session_id;
            progress::running(watcher, session_id, self.step_number(), commands);
        }
    }

    fn show_ended(&self, sent: Instant) {
        let session_id = &self.session.task.session_id;
        let (Some(watcher), Some(step)) = (self.session.watcher(), self.history.last()) else {
            return;
        };
        let elapsed = millis(now().saturating_duration_since(sent));
        let n = self.step_number() - 1;
        progress::ended(watcher, session_id, n, &step.commands, &step.results, elapsed);
    }

    /// The number of the step that comes next, from 1.
    fn step_number(&self) -> u32 {
        u32::try_from(self.history.len() + 1).unwrap_or(u32::MAX)
    }

    /// Ends the session: its outcome is stored, its id is freed, whoever is there is told, and its
    /// place on the device goes to the next one as soon as the device is done with it.
    async fn end(&mut self, outcome: &Outcome) {
        let ended = Entry::Ended {
            at: Timestamp::now(),
            status: outcome.status,
            error: outcome.error.clone(),
            finish: outcome.finish.clone(),
            is_unfetched: self.session.requester().is_none()
                || !outcome.fits_whole(&self.session.task, &self.history),
            is_cancelled: outcome.is_cancelled,
        };
        if let Err(error) = self.append(ended).await {
            tracing::error!(task = %self.session.task.id, %error, "failed to store an outcome");
        }
        let response_id = fresh_response_id();
        let frame = self.encode(outcome, &response_id).await;
        self.settle(outcome, frame, &response_id);
        if let Some(open) = self.open.take()
            && let Some((freed, _)) = self.stop(&open)
        {
            self.server.sessions().keep_place(&self.session);
            // Resolved when the device answers after all, is gone, or its grace is over.
            let _freed = freed.await;
        }
    }

    /// Writes the TASK_END; a large one on a thread of its own, so that nobody waits for it.
    async fn encode(&mut self, outcome: &Outcome, response_id: &ResponseId) -> Bytes {
        let results = self.history.iter().flat_map(|step| step.results.iter());
        let bytes: usize =
            results.filter_map(|result| result.result.as_ref()).map(aip::Payload::len).sum();
        let task = self.session.task.clone();
        if bytes + task.request.len() <= OFFLOAD_BYTES {
            return outcome.encode(&task, &self.history, response_id);
        }
        let (outcome, history) = (outcome.clone(), std::mem::take(&mut self.history));
        let id = response_id.clone();
        let encoded =
            tokio::task::spawn_blocking(move || outcome.encode(&task, &history, &id)).await;
        encoded.unwrap_or_else(|_| {
            let failed = Outcome::failed("The server failed to write the outcome");
            failed.encode_without_result(&self.session.task, response_id)
        })
    }

    fn settle(&mut self, outcome: &Outcome, frame: Bytes, response_id: &ResponseId) {
        self.is_settled = true;
        let (session, task) = (&self.session, &self.session.task);
        let own_task =
            session.requester().is_some_and(|own| own.connection == session.device.connection);
        let for_device = match session.stop.get() {
            Some(Cause::DeviceGone) => None,
            _ if own_task => None,
            _ if session.device.is_flightdeck => {
                Some(outcome.encode_without_result(task, response_id))
            }
            _ => Some(frame.clone()),
        };
        let took = now().saturating_duration_since(self.started);
        self.server.metrics().count_task(outcome.status, took);
        self.server.sessions().end(session, || {
            session.tell(frame);
            if let Some(frame) = for_device {
                let _cut_if_it_overflows = session.device.outbox.push(frame);
            }
        });
        self.server.audit().record(audit::Entry {
            outcome: Some(outcome.status.as_str()),
            reason: outcome.reason(),
            ..entry(session, Event::Ended)
        });
        tracing::info!(
            task = %task.id,
            session = %task.session_id,
            device = %task.device,
            requester = %task.requester,
            status = %outcome.status,
            elapsed_ms = millis(took),
            error = outcome.reason(),
            "task ended"
        );
        tracing::trace!(task = %task.id, error = outcome.error.as_deref(), "why it ended");
    }
}

impl Drop for Runner {
    /// The place goes to the next; and also a session whose own code failed has its outcome.
    fn drop(&mut self) {
        if !self.is_settled {
            let outcome = Outcome::failed("The server failed inside; see its log");
            let response_id = fresh_response_id();
            let frame = outcome.encode(&self.session.task, &[], &response_id);
            self.settle(&outcome, frame, &response_id);
        }
        if let Some(open) = &self.open {
            self.session.device.commands.forget(open);
        }
        self.server.sessions().leave_lane(&self.session);
    }
}

/// The results of a command without an answer: what happened, and what is known of it.
fn unknown(commands: &[Command], what: &str, reach: Reach) -> Vec<ActionResult> {
    let known = match reach {
        Reach::NeverSent => "it was never sent",
        Reach::Sent => "its outcome is unknown",
    };
    let error = format!("{what}; {known}");
    commands.iter().map(|c| ActionResult::failure(c.call_id.clone(), &error)).collect()
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
