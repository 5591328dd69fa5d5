//! The life of one task: accepted, acknowledged, its turn, step by step, its one outcome.

use std::sync::Arc;
use std::time::Instant;

use aip::machine::TaskRequest;
use aip::{ActionResult, Command, ResponseId, ServerMessage, ServerMessageType, Status};
use bytes::Bytes;
use link::connection::{OFFLOAD_BYTES, now, timestamp};
use tokio::sync::oneshot;

use super::lane::Turn;
use super::table::Refused;
use super::{Cause, Outcome, Session, Step, fresh_call_id, fresh_response_id, progress};
use crate::agent::Decision;
use crate::dispatch::{self, Settlement};
use crate::registry::Client;
use crate::server::Server;
use crate::store::{Entry, StoreError};

/// Begins a task: checks its target, gives it its place in the queue, and runs it in a task of its
/// own, which answers with the ACK and later the TASK_END.
///
/// # Errors
/// The text for the requester, when it cannot begin.
pub(crate) fn submit(
    server: &Server,
    requester: &Arc<Client>,
    wanted: TaskRequest,
) -> Result<(), String> {
    let target = wanted.target_id.clone();
    let device = match server.registry().client(&target) {
        Some(client) if client.is_device() => client,
        Some(_) => return Err("Constellation tasks may only target device clients".to_owned()),
        None => return Err(format!("Target device '{target}' is not connected")),
    };
    let agent_name = server.config().agent_name(&device.platform);
    let session = Arc::new(Session::new(wanted, requester, &device, agent_name));
    let turn = server
        .sessions()
        .begin(&session, server.config())
        .map_err(|refused: Refused| refused.to_string())?;
    // Whoever left while we looked the other way was not told of this session.
    if !server.registry().device(&target).is_some_and(|now| now.connection == device.connection) {
        session.stop(Cause::DeviceGone);
    }
    tokio::spawn(run(server.clone(), session, turn));
    Ok(())
}

async fn run(server: Server, session: Arc<Session>, turn: Turn) {
    let mut runner = Runner {
        server,
        session,
        history: Vec::new(),
        open: None,
        started: now(),
        is_settled: false,
    };
    let outcome = runner.live(turn).await;
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
    /// Whether the requester has its outcome.
    is_settled: bool,
}

/// Why a step did not end with its results.
enum Broken {
    Stopped(Cause),
    Failed(String),
}

impl From<StoreError> for Broken {
    fn from(error: StoreError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl Runner {
    async fn live(&mut self, turn: Turn) -> Outcome {
        if let Err(error) = self.append(Entry::Created(self.session.task.clone())).await {
            return Outcome::failed(error.to_string());
        }
        self.acknowledge();
        if let Err(cause) = self.wait_turn(turn).await {
            return Outcome::stopped(cause, &self.session.task);
        }
        let limit = self.server.config().session_timeout;
        let worked = tokio::time::timeout(limit, self.work()).await;
        worked.unwrap_or_else(|_| {
            Outcome::failed(format!("Task did not end within {} s", limit.as_secs()))
        })
    }

    async fn append(&self, entry: Entry) -> Result<(), StoreError> {
        self.server.store().append(self.session.task.id, entry).wait().await
    }

    fn acknowledge(&self) {
        self.session.requester.send(&ServerMessage {
            session_id: Some(self.session.task.session_id.clone()),
            timestamp: Some(timestamp()),
            response_id: Some(fresh_response_id()),
            ..ServerMessage::new(ServerMessageType::Heartbeat, Status::Ok)
        });
    }

    async fn wait_turn(&self, turn: Turn) -> Result<(), Cause> {
        let Turn::After(ahead) = turn else { return Ok(()) };
        let (session, task) = (&self.session, &self.session.task);
        if session.requester.wants_progress {
            progress::queued(&session.requester, &task.session_id, task.device.as_str(), ahead);
        }
        tokio::select! {
            () = session.turn.notified() => Ok(()),
            cause = session.stopped() => Err(cause),
        }
    }

    /// Decides and runs step after step until the agent is done or something breaks.
    async fn work(&mut self) -> Outcome {
        loop {
            let decided = self.decide().await;
            let broken = match decided {
                Ok(Decision::Finish(finish)) => return Outcome::completed(finish),
                Ok(Decision::Fail(error)) => return Outcome::failed(error),
                Ok(Decision::Commands(commands)) => self.step(commands).await,
                Err(cause) => Err(Broken::Stopped(cause)),
            };
            match broken {
                Ok(()) => {}
                Err(Broken::Stopped(cause)) => return Outcome::stopped(cause, &self.session.task),
                Err(Broken::Failed(error)) => return Outcome::failed(error),
            }
        }
    }

    /// Asks the agent. An agent that knows at once is heard also when the session shall stop: its task
    /// may be done.
    async fn decide(&self) -> Result<Decision, Cause> {
        tokio::select! {
            biased;
            decision = self.server.agent().next(&self.session.task, &self.history) => Ok(decision),
            cause = self.session.stopped() => Err(cause),
        }
    }

    async fn step(&mut self, mut commands: Vec<Command>) -> Result<(), Broken> {
        self.check_may_go_on()?;
        for command in &mut commands {
            command.call_id = Some(fresh_call_id());
        }
        let (response_id, commands) = (fresh_response_id(), Arc::<[Command]>::from(commands));
        self.append(Entry::Decided {
            response_id: response_id.clone(),
            commands: commands.clone(),
        })
        .await?;
        let sent = now();
        self.show_running(&commands);
        let settled =
            dispatch::send(&self.session.device, &self.session.task, &response_id, &commands)
                .map_err(|full| Broken::Failed(full.to_string()))?;
        self.open = Some(response_id);
        let settlement = self.settlement(settled).await;
        self.take(settlement, commands, sent).await
    }

    fn check_may_go_on(&self) -> Result<(), Broken> {
        if let Some(cause) = self.session.stop.get() {
            return Err(Broken::Stopped(*cause));
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
    ) -> Result<Settlement, Cause> {
        let cause = tokio::select! {
            biased;
            settled = &mut settled => return Ok(settled.unwrap_or(Settlement::Lost)),
            cause = self.session.stopped() => cause,
        };
        let was_open =
            self.open.as_ref().is_some_and(|id| self.session.device.commands.stop(id).is_some());
        // Results that were faster than the stop count.
        if was_open { Err(cause) } else { Ok(settled.await.unwrap_or(Settlement::Lost)) }
    }

    /// Puts a settled step into the history.
    async fn take(
        &mut self,
        settlement: Result<Settlement, Cause>,
        commands: Arc<[Command]>,
        sent: Instant,
    ) -> Result<(), Broken> {
        let timeout = self.server.config().command_timeout.as_secs();
        let (results, broken) = match settlement {
            Ok(Settlement::Answered(results)) => {
                self.open = None;
                (results, None)
            }
            Ok(Settlement::TimedOut) => {
                let error = format!("No answer within {timeout} s; its outcome is unknown");
                let tool = commands.first().map_or("tool", |command| &command.tool_name);
                let broken =
                    format!("Step {} ({tool}) timed out after {timeout} s", self.history.len() + 1);
                (unknown(&commands, &error), Some(Broken::Failed(broken)))
            }
            Ok(Settlement::Lost) => {
                let error = "The device disconnected; its outcome is unknown";
                (unknown(&commands, error), Some(Broken::Stopped(Cause::DeviceGone)))
            }
            Err(cause) => {
                let error = "Stopped; its outcome is unknown";
                (unknown(&commands, error), Some(Broken::Stopped(cause)))
            }
        };
        let results = Arc::<[ActionResult]>::from(results);
        self.append(Entry::Answered { results: results.clone() }).await?;
        self.history.push(Step { commands, results });
        self.show_ended(sent);
        broken.map_or(Ok(()), Err)
    }

    fn show_running(&self, commands: &[Command]) {
        let requester = &self.session.requester;
        if requester.wants_progress {
            progress::running(
                requester,
                &self.session.task.session_id,
                self.step_number(),
                commands,
            );
        }
    }

    fn show_ended(&self, sent: Instant) {
        let (requester, session_id) = (&self.session.requester, &self.session.task.session_id);
        let Some(step) = self.history.last().filter(|_| requester.wants_progress) else { return };
        let elapsed = millis(now().saturating_duration_since(sent));
        let n = self.step_number() - 1;
        progress::ended(requester, session_id, n, &step.commands, &step.results, elapsed);
    }

    /// The number of the step that comes next, from 1.
    fn step_number(&self) -> u32 {
        u32::try_from(self.history.len() + 1).unwrap_or(u32::MAX)
    }

    /// Ends the session: its outcome is stored, its id is freed, whoever is there is told, and its
    /// place on the device goes to the next one as soon as the device is done with it.
    async fn end(&mut self, outcome: &Outcome) {
        let ended = Entry::Ended { status: outcome.status, error: outcome.error.clone() };
        if let Err(error) = self.append(ended).await {
            tracing::error!(task = %self.session.task.id, %error, "failed to store an outcome");
        }
        let response_id = fresh_response_id();
        let frame = self.encode(outcome, &response_id).await;
        self.settle(outcome, frame, &response_id);
        if let Some(open) = self.open.take()
            && let Some(freed) = self.session.device.commands.stop(&open)
        {
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
        let cause = session.stop.get();
        self.server.sessions().end(session);
        let own_task = session.requester.connection == session.device.connection;
        if !own_task && cause != Some(&Cause::DeviceGone) {
            let for_device = if session.device.is_flightdeck {
                outcome.encode_without_result(task, response_id)
            } else {
                frame.clone()
            };
            let _cut_if_it_overflows = session.device.outbox.push(for_device);
        }
        let _cut_if_it_overflows = session.requester.outbox.push(frame);
        tracing::info!(
            task = %task.id,
            session = %task.session_id,
            device = %task.device,
            requester = %task.requester,
            status = %outcome.status,
            elapsed_ms = millis(now().saturating_duration_since(self.started)),
            error = outcome.error.as_deref(),
            "task ended"
        );
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
        self.server.sessions().leave_lane(&self.session);
    }
}

/// Results that say that nothing is known.
fn unknown(commands: &[Command], error: &str) -> Vec<ActionResult> {
    commands.iter().map(|c| ActionResult::failure(c.call_id.clone(), error)).collect()
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
