//! Takes each COMMAND, runs its actions in order, and answers every one. What tools tell meanwhile is sent as
//! HEARTBEATs.

mod jobs;
mod results;
#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests;

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aip::codec::{MAX_MESSAGE_BYTES, Wire};
use aip::message::{MAX_RESULTS, Output, Status};
use aip::{
    ActionResult, ClientId, ClientMessage, ClientMessageType, ClientType, Command, ResultStatus,
    ServerMessage, SessionId,
};
use bytes::Bytes;
use futures_util::FutureExt;
use link::connection::now;
use link::{Ambient, Outbox};
use tokio_util::task::TaskTracker;

pub use self::jobs::Capacity;
use self::jobs::{Job, Jobs, Stop};
use self::results::{all_failed, content, room, within};
use crate::info::Offers;
use crate::progress::Progress;
use crate::state::StateKeeper;
use crate::tools::{Call, Returned, Toolbox};

/// Least time between two messages of progress of one command.
const PROGRESS_PAUSE: Duration = Duration::from_millis(100);

/// The most lines of one message of progress. Who tells bounds their length.
const MAX_PROGRESS_LINES: usize = 1000;

/// What an action before its turn is told when those before it fill the answer.
const NO_ROOM: &str = "Not run: the results before it fill the message";

/// What an action is told that was stopped before its turn.
const NOT_RUN: &str = "it did not run";

/// Why nothing new is taken and what runs is stopped: the device leaves.
pub(crate) const LEAVING: &str = "This device is stopping";

/// Why a COMMAND is stopped: nobody is there to take its results.
pub(crate) const LOST: &str = "The connection to the server was lost";

/// Why a COMMAND is stopped: the server says so.
const TASK_OVER: &str = "Its task has ended";

/// Runs COMMANDs side by side; their calls wait for each other where there are many. The server sends the
/// next one of a session only when it has the answer to the one before.
#[derive(Clone)]
pub(crate) struct Executor(Arc<Inner>);

struct Inner {
    client_id: ClientId,
    tools: Toolbox,
    jobs: Mutex<Jobs>,
    tasks: TaskTracker,
    state: Arc<StateKeeper>,
    ambient: Ambient,
}

impl Executor {
    pub(crate) fn new(
        client_id: ClientId,
        tools: Toolbox,
        capacity: Capacity,
        state: Arc<StateKeeper>,
        ambient: Ambient,
    ) -> Self {
        let (jobs, tasks) = (Mutex::new(Jobs::new(capacity)), TaskTracker::new());
        Self(Arc::new(Inner { client_id, tools, jobs, tasks, state, ambient }))
    }

    /// What the tools can do.
    pub(crate) fn offers(&self) -> Offers {
        self.0.tools.offers()
    }

    /// Takes a COMMAND; its answer goes to `outbox`, and with `tells` so does what its tools tell on
    /// the way. Once the answer is there, `answered` is called.
    pub(crate) fn start(
        &self,
        command: ServerMessage,
        outbox: &Arc<Outbox>,
        tells: bool,
        answered: impl FnOnce() + Send + 'static,
    ) {
        let job = Job::of(command);
        let (number, stop) = match self.take(&job) {
            Ok(taken) => taken,
            Err(refusal) => {
                if outbox.push(self.answer(&job, refusal)).is_err() {
                    tracing::warn!("the server reads too slowly; the connection is cut");
                }
                return answered();
            }
        };
        let (executor, outbox) = (self.clone(), outbox.clone());
        let running = async move {
            let progress = match tells {
                true => executor.progress(&job, outbox.clone()),
                false => Progress::default(),
            };
            let results = executor.run(number, &job, &stop, &progress).await;
            let answer = executor.answer(&job, results);
            // Several large ones wait for each other, so that none takes the connection down.
            outbox.push_in_turn(answer, || executor.jobs().remove(number)).await;
            answered();
        };
        self.0.ambient.spawn(self.0.tasks.track_future(running));
    }

    /// Takes nothing new, lets what runs finish for a while, and stops the rest. Every COMMAND is
    /// answered by then, unless a program outlasts `limit` although it was told to stop.
    pub(crate) async fn wind_down(&self, grace: Duration, limit: Duration) {
        self.jobs().close();
        if tokio::time::timeout(grace, self.finished()).await.is_err() {
            self.stop_all(LEAVING);
            let _stuck = tokio::time::timeout(limit, self.finished()).await;
        }
    }

    /// Stops what runs or waits for a session. Its COMMANDs are still answered.
    pub(crate) fn stop_session(&self, session_id: &SessionId) {
        self.jobs().stop_session(session_id, TASK_OVER);
    }

    /// Stops everything, and says why.
    pub(crate) fn stop_all(&self, why: &'static str) {
        self.jobs().stop_all(why);
    }

    /// Waits until nothing runs any more. Nothing may be started after this.
    pub(crate) async fn finished(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// Ends what the tools keep running.
    pub(crate) async fn stop_tools(&self) {
        self.0.tools.stop().await;
    }

    /// Makes room for a COMMAND, or says in its results why there is none.
    fn take(&self, job: &Job) -> Result<(u64, Stop), Vec<ActionResult>> {
        if job.actions.len() > MAX_RESULTS {
            // One result says it for all: the others count as missing.
            let error = format!("A COMMAND has at most {MAX_RESULTS} actions");
            return Err(vec![ActionResult::failure(None, error)]);
        }
        self.jobs().add(job).map_err(|error| all_failed(&job.actions, &error))
    }

    /// Runs the actions of one COMMAND in order; after a failure the rest is skipped.
    async fn run(
        &self,
        number: u64,
        job: &Job,
        stop: &Stop,
        progress: &Progress,
    ) -> Vec<ActionResult> {
        let (mut results, mut bytes, mut failed) = (Vec::new(), 0, false);
        for action in &job.actions {
            let call_id = action.call_id.clone();
            let result = if failed {
                ActionResult::skipped(call_id)
            } else if let Err(why) = self.keep_results(number, bytes, job.actions.len()) {
                ActionResult::failure(call_id, why)
            } else {
                match self.call_safely(number, job, action, stop, progress).await {
                    Ok(Returned { namespace, result }) => {
                        ActionResult::success(call_id, namespace, result)
                    }
                    Err(error) => ActionResult::failure(call_id, error),
                }
            };
            failed |= result.status == ResultStatus::Failure;
            bytes += content(&result);
            results.push(result);
        }
        results
    }

    /// Whether the results so far leave room for the next action: they wait in memory for the last one.
    fn keep_results(&self, number: u64, bytes: usize, actions: usize) -> Result<(), &'static str> {
        if bytes >= room(actions) {
            return Err(NO_ROOM);
        }
        self.jobs().keep_results(number, bytes)
    }

    /// Calls a tool. One that panics is a failed tool; what was stopped says why.
    async fn call_safely(
        &self,
        number: u64,
        job: &Job,
        action: &Command,
        stop: &Stop,
        progress: &Progress,
    ) -> Result<Returned, String> {
        let parameters = action.parameters.as_ref();
        let call = Call { parameters, caller: &job.caller, stop: &stop.token, progress };
        let calling = AssertUnwindSafe(self.call(number, job, action, &call)).catch_unwind();
        let called = calling.await;
        let called = called.unwrap_or_else(|_| Err("the tool failed inside the device".to_owned()));
        called.map_err(|error| match stop.why() {
            Some(why) => format!("{why}: {error}"),
            None => error,
        })
    }

    async fn call(
        &self,
        number: u64,
        job: &Job,
        action: &Command,
        call: &Call<'_>,
    ) -> Result<Returned, String> {
        let not_run = || NOT_RUN.to_owned();
        if call.stop.is_cancelled() {
            return Err(not_run());
        }
        let waits = self.0.state.waits();
        let turn = self.0.tools.turn(action, call).await;
        let turn = turn.map_err(|error| match call.stop.is_cancelled() {
            true => not_run(),
            false => error,
        })?;
        drop(waits);
        let _runs = self.0.state.runs(number, job.caller.session_id.as_ref(), &job.actions);
        self.0.tools.run(turn, call).await
    }

    /// Sends what the tools of a command tell, as HEARTBEATs that the server passes on, not too often.
    fn progress(&self, job: &Job, outbox: Arc<Outbox>) -> Progress {
        let client_id = self.0.client_id.clone();
        let (session_id, response_id) = (job.caller.session_id.clone(), job.response_id.clone());
        let (last, ambient) = (Mutex::new(None::<Instant>), self.0.ambient.clone());
        Progress::to(move |text| {
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.is_some_and(|last| now() < last + PROGRESS_PAUSE) {
                return;
            }
            *last = Some(now());
            let lines = text.lines().take(MAX_PROGRESS_LINES).map(str::to_owned);
            let output = Output { lines: lines.collect() };
            let message = ClientMessage {
                status: Status::Continue,
                client_id: Some(client_id.clone()),
                session_id: session_id.clone(),
                prev_response_id: response_id.clone(),
                metadata: output.to_metadata(),
                timestamp: Some(ambient.time_text()),
                ..ClientMessage::new(ClientMessageType::Heartbeat, ClientType::Device)
            };
            outbox.push_progress(message.encode());
        })
    }

    /// The text of the answer to a COMMAND, which fits into a message.
    fn answer(&self, job: &Job, results: Vec<ActionResult>) -> Bytes {
        let is_failure = |result: &ActionResult| result.status == ResultStatus::Failure;
        self.0.state.answered(results.iter().any(is_failure));
        let answer = self.message(job, within(results, room(job.actions.len()))).encode();
        if answer.len() <= MAX_MESSAGE_BYTES {
            return answer;
        }
        // Names and ids may be that long, and escapes make texts longer.
        let error = format!("The results of {} bytes do not fit into a message", answer.len());
        self.message(job, all_failed(&job.actions, &error)).encode()
    }

    fn message(&self, job: &Job, results: Vec<ActionResult>) -> ClientMessage {
        ClientMessage {
            status: job.status,
            session_id: job.caller.session_id.clone(),
            client_id: Some(self.0.client_id.clone()),
            action_results: Some(results),
            timestamp: Some(self.0.ambient.time_text()),
            prev_response_id: job.response_id.clone(),
            ..ClientMessage::new(ClientMessageType::CommandResults, ClientType::Device)
        }
    }

    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
