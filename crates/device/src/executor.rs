//! Takes each COMMAND, runs its actions in order, and answers every one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aip::codec::{MAX_MESSAGE_BYTES, Wire};
use aip::message::{MAX_RESULTS, Output, Status};
use aip::{
    ActionResult, ClientId, ClientMessage, ClientMessageType, ClientType, Command, Payload,
    ServerMessage, SessionId,
};
use link::Outbox;
use link::connection::timestamp;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::info::Offers;
use crate::progress::Progress;
use crate::state::StateKeeper;
use crate::tools::{Call, Caller, Toolbox};

/// Least time between two messages of progress of one command.
const PROGRESS_PAUSE: Duration = Duration::from_millis(100);

/// The most lines of one message of progress. Who tells bounds their length.
const MAX_PROGRESS_LINES: usize = 1000;

/// The longest error of a result, in bytes. Servers keep no more of it.
const MAX_ERROR_BYTES: usize = 63 * 1024;

/// What an action before its turn is told when those before it fill the answer.
const NO_ROOM: &str = "Not run: the results before it fill the message";

/// Room in a message beside the results.
const ENVELOPE_BYTES: usize = 64 * 1024;

/// Runs COMMANDs: a few at a time, the others wait for a place. The server sends the next one of a
/// session only when it has the answer to the one before.
#[derive(Clone)]
pub(crate) struct Executor(Arc<Inner>);

struct Inner {
    client_id: ClientId,
    tools: Toolbox,
    places: Semaphore,
    /// Most COMMANDs that may run or wait.
    capacity: usize,
    jobs: Mutex<Jobs>,
    tasks: TaskTracker,
    state: Arc<StateKeeper>,
}

#[derive(Default)]
struct Jobs {
    next: u64,
    running: HashMap<u64, Job>,
    /// Nothing new is taken.
    is_leaving: bool,
}

struct Job {
    session_id: Option<SessionId>,
    stop: CancellationToken,
}

impl Executor {
    pub(crate) fn new(
        client_id: ClientId,
        tools: Toolbox,
        places: usize,
        capacity: usize,
        state: Arc<StateKeeper>,
    ) -> Self {
        let places = Semaphore::new(places);
        Self(Arc::new(Inner {
            client_id,
            tools,
            places,
            capacity,
            jobs: Mutex::default(),
            tasks: TaskTracker::new(),
            state,
        }))
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
        let (executor, outbox) = (self.clone(), outbox.clone());
        if actions(&command).len() > MAX_RESULTS {
            // One result says it for all: the others count as missing.
            let error = format!("A COMMAND has at most {MAX_RESULTS} actions");
            executor.answer(&command, vec![ActionResult::failure(None, error)], &outbox);
            return answered();
        }
        let added = self.lock().add(command.session_id.clone(), self.0.capacity);
        let (number, stop) = match added {
            Ok(added) => added,
            Err(error) => {
                executor.answer(&command, all_failed(actions(&command), &error), &outbox);
                return answered();
            }
        };
        self.0.tasks.spawn(async move {
            let command = Arc::new(command);
            let (runner, asked) = (executor.clone(), command.clone());
            let progress = match tells {
                true => executor.progress(&asked, outbox.clone()),
                false => Progress::default(),
            };
            let run = async move { runner.run(number, &asked, &stop, &progress).await };
            let ran = tokio::spawn(run).await;
            // A tool that panics is a failed tool: its COMMAND is answered like every other.
            let results = ran.unwrap_or_else(|_| {
                all_failed(actions(&command), "the tool failed inside the device")
            });
            executor.lock().running.remove(&number);
            executor.answer(&command, results, &outbox);
            answered();
        });
    }

    /// Takes nothing new, lets what runs finish for a while, and stops the rest. Every COMMAND is
    /// answered by then, unless a program outlasts `limit` although it was told to stop.
    pub(crate) async fn wind_down(&self, grace: Duration, limit: Duration) {
        self.lock().is_leaving = true;
        if tokio::time::timeout(grace, self.finished()).await.is_err() {
            self.stop_all();
            let _stuck = tokio::time::timeout(limit, self.finished()).await;
        }
    }

    /// Stops what runs or waits for a session. Its COMMANDs are still answered.
    pub(crate) fn stop_session(&self, session_id: &SessionId) {
        for job in self.lock().running.values() {
            if job.session_id.as_ref() == Some(session_id) {
                job.stop.cancel();
            }
        }
    }

    /// Stops everything: nobody is there to take the results.
    pub(crate) fn stop_all(&self) {
        for job in self.lock().running.values() {
            job.stop.cancel();
        }
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

    /// Runs the actions of one COMMAND in order; after a failure the rest is skipped.
    async fn run(
        &self,
        number: u64,
        command: &ServerMessage,
        stop: &CancellationToken,
        progress: &Progress,
    ) -> Vec<ActionResult> {
        let actions = actions(command);
        let waits = self.0.state.waits();
        let _place = tokio::select! {
            place = self.0.places.acquire() => place,
            () = stop.cancelled() => return all_failed(actions, "stopped"),
        };
        drop(waits);
        let _runs = self.0.state.runs(number, command);
        let caller = Caller {
            agent_name: command.agent_name.clone(),
            root_name: command.root_name.clone(),
            session_id: command.session_id.clone(),
        };
        let (mut results, mut failed) = (Vec::new(), false);
        let mut room = MAX_MESSAGE_BYTES - ENVELOPE_BYTES;
        for action in actions {
            let result = match failed {
                true => ActionResult::skipped(action.call_id.clone()),
                // They wait in memory for the last one.
                false if room == 0 => ActionResult::failure(action.call_id.clone(), NO_ROOM),
                false => self.call(action, &caller, stop, progress).await,
            };
            failed |= result.status == aip::ResultStatus::Failure;
            room = room.saturating_sub(result.bytes());
            results.push(result);
        }
        results
    }

    async fn call(
        &self,
        action: &Command,
        caller: &Caller,
        stop: &CancellationToken,
        progress: &Progress,
    ) -> ActionResult {
        if stop.is_cancelled() {
            return ActionResult::failure(action.call_id.clone(), "stopped");
        }
        let call = Call { parameters: action.parameters.as_ref(), caller, stop, progress };
        match self.0.tools.call(action, &call).await {
            Ok(returned) => {
                ActionResult::success(action.call_id.clone(), returned.namespace, returned.result)
            }
            Err(error) => ActionResult::failure(action.call_id.clone(), error),
        }
    }

    /// Sends what the tools of a command tell, as HEARTBEATs that the server passes on, not too often.
    fn progress(&self, command: &ServerMessage, outbox: Arc<Outbox>) -> Progress {
        let client_id = self.0.client_id.clone();
        let (session_id, response_id) = (command.session_id.clone(), command.response_id.clone());
        let last = Mutex::new(None::<Instant>);
        Progress::to(move |text| {
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.is_some_and(|last| last.elapsed() < PROGRESS_PAUSE) {
                return;
            }
            *last = Some(Instant::now());
            let lines = text.lines().take(MAX_PROGRESS_LINES).map(str::to_owned);
            let output = Output { lines: lines.collect() };
            let message = ClientMessage {
                status: Status::Continue,
                client_id: Some(client_id.clone()),
                session_id: session_id.clone(),
                prev_response_id: response_id.clone(),
                metadata: output.to_metadata(),
                timestamp: Some(timestamp()),
                ..ClientMessage::new(ClientMessageType::Heartbeat, ClientType::Device)
            };
            outbox.push_progress(message.encode());
        })
    }

    fn answer(&self, command: &ServerMessage, results: Vec<ActionResult>, outbox: &Outbox) {
        let is_failure = |result: &ActionResult| result.status == aip::ResultStatus::Failure;
        self.0.state.answered(results.iter().any(is_failure));
        let answer = ClientMessage {
            status: command.status,
            session_id: command.session_id.clone(),
            client_id: Some(self.0.client_id.clone()),
            action_results: Some(within(results, MAX_MESSAGE_BYTES - ENVELOPE_BYTES)),
            timestamp: Some(timestamp()),
            prev_response_id: command.response_id.clone(),
            ..ClientMessage::new(ClientMessageType::CommandResults, ClientType::Device)
        };
        if outbox.push(answer.encode()).is_err() {
            tracing::warn!("the server reads too slowly; the connection is cut");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Jobs {
    /// Makes room for one more, or says why there is none.
    fn add(
        &mut self,
        session_id: Option<SessionId>,
        capacity: usize,
    ) -> Result<(u64, CancellationToken), String> {
        if self.is_leaving {
            return Err("This device is stopping".to_owned());
        }
        if self.running.len() >= capacity {
            return Err(format!("This device has {capacity} commands to do already"));
        }
        let (number, stop) = (self.next, CancellationToken::new());
        self.next += 1;
        self.running.insert(number, Job { session_id, stop: stop.clone() });
        Ok((number, stop))
    }
}

fn actions(command: &ServerMessage) -> &[Command] {
    command.actions.as_deref().unwrap_or_default()
}

fn all_failed(actions: &[Command], error: &str) -> Vec<ActionResult> {
    actions.iter().map(|action| ActionResult::failure(action.call_id.clone(), error)).collect()
}

/// Replaces results that do not fit into the room of a message by failures that name their size.
fn within(mut results: Vec<ActionResult>, mut room: usize) -> Vec<ActionResult> {
    for result in &mut results {
        if let Some(error) = result.error.as_mut().filter(|error| error.len() > MAX_ERROR_BYTES) {
            *error = head(error);
        }
        if result.bytes() > room {
            let bytes = result.result.as_ref().map_or(0, Payload::len);
            let error = format!("The result of {bytes} bytes does not fit into a message");
            *result = ActionResult::failure(result.call_id.clone(), error);
        }
        room = room.saturating_sub(result.bytes());
    }
    results
}

/// The beginning of an error that is longer than anybody reads.
fn head(error: &str) -> String {
    let end = (0..=MAX_ERROR_BYTES).rev().find(|at| error.is_char_boundary(*at)).unwrap_or(0);
    format!("{}… ({} bytes in all)", &error[..end], error.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_any_length_fits_into_a_message() {
        let error = "é".repeat(MAX_ERROR_BYTES);
        let results = within(vec![ActionResult::failure(None, error.as_str())], 100_000);
        let told = results[0].error.as_deref().unwrap_or_default();
        assert!(told.len() < MAX_ERROR_BYTES + 100 && told.ends_with("(129024 bytes in all)"));
    }

    #[test]
    fn a_result_that_fits_no_message_is_a_failure_that_names_its_size() {
        let result = |bytes| ActionResult::success(None, None, Payload::string(&"x".repeat(bytes)));
        let results = within(vec![result(5), result(1000), result(7)], 1000);
        let texts: Vec<_> = results.iter().map(|result| result.error.as_deref()).collect();
        let error = "The result of 1002 bytes does not fit into a message".to_owned();
        assert_eq!(texts, [None, Some(error.as_str()), None]);
    }
}
