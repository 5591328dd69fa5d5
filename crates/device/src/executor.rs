//! Takes each COMMAND, runs its actions in order, and answers every one. What tools tell meanwhile is sent as
//! HEARTBEATs.
//!
//! - `line`: the connection of the moment, and what becomes of commands when it comes and goes.
//! - `journaled`: commands that are in a journal, which outlive their connection.
//! - `cancel`: what is said when a session's commands are stopped.
//! - `jobs`: bounds on the commands that run or wait. `results`: the texts of answers.

mod cancel;
mod jobs;
mod journaled;
mod line;
mod results;
#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests;

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aip::codec::Wire;
use aip::message::{Downstream, MAX_RESULTS, Output, ReadSpool, Spooled, Status};
use aip::{
    ActionResult, ClientId, ClientMessage, ClientMessageType, ClientType, Command, ResponseId,
    ResultStatus, ServerMessage, SessionId,
};
use bytes::Bytes;
use futures_util::FutureExt;
use link::connection::now;
use link::{Ambient, Outbox};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use self::cancel::CANCELLED;
pub use self::jobs::Capacity;
use self::jobs::{Job, Jobs, Stop};
use self::journaled::DISCARDED;
use self::line::Desk;
pub(crate) use self::line::Line;
pub(crate) use self::results::interrupted;
use self::results::{all_failed, content, room};
use crate::flow::Flow;
use crate::info::Offers;
use crate::journal::{CommandId, Journals, Ticket};
use crate::progress::Progress;
use crate::spool::{Spool, Spools};
use crate::state::StateKeeper;
use crate::tools::{Call, Returned, Toolbox};

/// Least time between two messages of progress of one command.
const PROGRESS_PAUSE: Duration = Duration::from_millis(100);

/// How many questions for what was kept are answered at the same time. The server asks again for others.
const MAX_SPOOL_READERS: usize = 16;

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

/// Why a COMMAND is stopped: this device may do nothing for the server any more.
pub(crate) const FORBIDDEN: &str = "This device's key was revoked or has expired";

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
    desk: Mutex<Desk>,
    spools: Spools,
    /// For those that read them.
    spool_readers: Arc<Semaphore>,
    tasks: TaskTracker,
    state: Arc<StateKeeper>,
    ambient: Ambient,
}

impl Executor {
    pub(crate) fn new(
        client_id: ClientId,
        tools: Toolbox,
        capacity: Capacity,
        journals: Journals,
        spools: Spools,
        state: Arc<StateKeeper>,
        ambient: Ambient,
    ) -> Self {
        let (jobs, tasks) = (Mutex::new(Jobs::new(capacity)), TaskTracker::new());
        let desk = Mutex::new(Desk::new(journals));
        let spool_readers = Arc::new(Semaphore::new(MAX_SPOOL_READERS));
        Self(Arc::new(Inner {
            client_id,
            tools,
            jobs,
            desk,
            spools,
            spool_readers,
            tasks,
            state,
            ambient,
        }))
    }

    /// What the tools can do.
    pub(crate) fn offers(&self) -> Offers {
        self.0.tools.offers()
    }

    /// Takes a COMMAND that came on the connection of the moment. Once its answer is there, `answered` is called.
    pub(crate) fn start(&self, command: ServerMessage, answered: impl FnOnce() + Send + 'static) {
        let Some(line) = self.line() else { return };
        if let Some(journal) = line.journal {
            return self.start_journaled(journal, command, &line, answered);
        }
        let job = Job::of(command);
        match self.take(&job, None) {
            Ok((number, stop)) => {
                let way = Way::Direct { outbox: line.outbox, tells: line.tells };
                self.spawn(Run { number, job, stop, way }, answered);
            }
            Err(refusal) => {
                self.refuse(&line.outbox, &job, refusal);
                answered();
            }
        }
    }

    fn refuse(&self, outbox: &Outbox, job: &Job, refusal: Vec<ActionResult>) {
        if outbox.push(self.answer(job, refusal)).is_err() {
            tracing::warn!("the server reads too slowly; the connection is cut");
        }
    }

    fn spawn(&self, run: Run, answered: impl FnOnce() + Send + 'static) {
        let executor = self.clone();
        let running = async move {
            let results = executor.run(&run).await;
            executor.deliver(&run, results).await;
            answered();
        };
        self.0.ambient.spawn(self.0.tasks.track_future(running));
    }

    /// Answers a COMMAND that is over.
    async fn deliver(&self, run: &Run, results: Vec<ActionResult>) {
        let answer = self.answer(&run.job, results);
        let remove = || self.jobs().remove(run.number);
        let (outbox, answer) = match &run.way {
            Way::Direct { outbox, .. } => (Some(outbox.clone()), answer),
            Way::Journaled(ticket) => self.keep(*ticket, &run.job, answer, &run.stop).await,
        };
        run.stop.over.cancel();
        match outbox {
            // Several large ones wait for each other, so that none takes the connection down.
            Some(outbox) => outbox.push_in_turn(answer, remove).await,
            None => remove(),
        }
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
        let _nobody_waits_for_them = self.jobs().stop_session(session_id, TASK_OVER);
    }

    /// Whether any COMMAND runs or waits.
    pub(crate) fn is_busy(&self) -> bool {
        !self.jobs().is_empty()
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

    /// Ends what the tools keep running, and waits for no server any more.
    pub(crate) async fn stop_tools(&self) {
        self.forget_window();
        self.0.tools.stop().await;
    }

    /// Makes room for a COMMAND, or says in its results why there is none.
    fn take(&self, job: &Job, ticket: Option<Ticket>) -> Result<(u64, Stop), Vec<ActionResult>> {
        if job.actions.len() > MAX_RESULTS {
            // One result says it for all: the others count as missing.
            let error = format!("A COMMAND has at most {MAX_RESULTS} actions");
            return Err(vec![ActionResult::failure(None, error)]);
        }
        self.jobs().add(job, ticket).map_err(|error| all_failed(&job.actions, &error))
    }

    /// Runs the actions of one COMMAND in order; after a failure the rest is skipped.
    async fn run(&self, run: &Run) -> Vec<ActionResult> {
        let progress = self.progress(run).keeping(self.spool(run));
        let actions = &run.job.actions;
        let (mut results, mut bytes, mut failed) = (Vec::new(), 0, false);
        for (n, action) in actions.iter().enumerate() {
            let call_id = action.call_id.clone();
            let result = if failed {
                ActionResult::skipped(call_id)
            } else if let Err(why) = self.keep_results(run.number, bytes, actions.len()) {
                ActionResult::failure(call_id, why)
            } else {
                match self.call_safely(run, action, &progress).await {
                    Ok(Returned { namespace, result }) => {
                        ActionResult::success(call_id, namespace, result)
                    }
                    Err(error) => ActionResult::failure(call_id, error),
                }
            };
            failed |= result.status == ResultStatus::Failure;
            bytes += content(&result);
            if let Way::Journaled(ticket) = run.way
                && n + 1 < actions.len()
            {
                self.desk().journals.keep_action(ticket, &result);
            }
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
        run: &Run,
        action: &Command,
        progress: &Progress,
    ) -> Result<Returned, String> {
        let parameters = action.parameters.as_ref();
        let caller = &run.job.caller;
        let flow = run.job.flow.as_ref();
        let call = Call { parameters, caller, stop: &run.stop.token, progress, flow };
        let begun = self.0.tools.on_call().begin(action, call.caller);
        let calling = AssertUnwindSafe(self.call(run, action, &call)).catch_unwind();
        let called = calling.await;
        let called = called.unwrap_or_else(|_| Err("the tool failed inside the device".to_owned()));
        let called = called.map_err(|error| match run.stop.why() {
            Some(why) => {
                run.stop.hit();
                stopped(why, &error)
            }
            None => error,
        });
        if let Some(begun) = begun {
            begun.end(&called);
        }
        called
    }

    async fn call(&self, run: &Run, action: &Command, call: &Call<'_>) -> Result<Returned, String> {
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
        if call.stop.is_cancelled() {
            return Err(not_run());
        }
        if let Way::Journaled(ticket) = run.way {
            self.desk().journals.start(ticket)?;
        }
        let session_id = run.job.caller.session_id.as_ref();
        let _runs = self.0.state.runs(run.number, session_id, &run.job.actions);
        let running = self.0.tools.run(turn, call);
        match call.flow {
            Some(flow) => flow.carry(running, call.stop, self.pump(run, flow)).await,
            None => running.await,
        }
    }

    /// Says for ever what a command's streams have to say, on whichever connection there is.
    async fn pump(&self, run: &Run, flow: &Flow) -> Infallible {
        let outbox = || match &run.way {
            Way::Direct { outbox, .. } => Some(outbox.clone()),
            Way::Journaled(ticket) => self.line_of(ticket.journal).map(|line| line.outbox),
        };
        loop {
            if outbox().is_none() {
                flow.another_connection().await;
                continue;
            }
            let Some(upstream) = flow.next() else {
                flow.news().await;
                flow.gather().await;
                continue;
            };
            // Looked for after it was taken: a connection that comes in between has it said again.
            if let Some(outbox) = outbox() {
                let frame = upstream.encode(&self.about(&run.job));
                outbox.push_in_turn(frame, || {}).await;
            }
        }
    }

    /// A HEARTBEAT about a command that runs.
    fn about(&self, job: &Job) -> ClientMessage {
        self.about_command(job.caller.session_id.clone(), job.response_id.clone())
    }

    fn about_command(
        &self,
        session_id: Option<SessionId>,
        response_id: Option<ResponseId>,
    ) -> ClientMessage {
        ClientMessage {
            status: Status::Continue,
            client_id: Some(self.0.client_id.clone()),
            session_id,
            prev_response_id: response_id,
            timestamp: Some(self.0.ambient.time_text()),
            ..ClientMessage::new(ClientMessageType::Heartbeat, ClientType::Device)
        }
    }

    /// The requester of a command says something of its streams.
    pub(crate) fn handle_downstream(&self, response_id: &ResponseId, downstream: &Downstream) {
        let flow = self.jobs().flow(response_id);
        flow.iter().for_each(|flow| flow.handle(downstream));
    }

    /// Where what a command writes is kept, if that is asked for and a server may ask for it later.
    fn spool(&self, run: &Run) -> Option<Spool> {
        let Way::Journaled(ticket) = run.way else { return None };
        let is_wanted = run.job.is_spooled;
        is_wanted.then(|| self.0.spools.begin(ticket.id, |id| self.jobs().has_id(id))).flatten()
    }

    /// The server asks for what was kept of a command's output.
    pub(crate) fn handle_spool_question(
        &self,
        session_id: Option<SessionId>,
        response_id: ResponseId,
        asked: ReadSpool,
    ) {
        let Some((id, line)) = CommandId::of(&response_id).zip(self.line()) else { return };
        let Ok(place) = self.0.spool_readers.clone().try_acquire_owned() else { return };
        let executor = self.clone();
        self.0.ambient.spawn(async move {
            // Before it is read: what ends meanwhile is said to go on, and asked for again.
            let runs = executor.jobs().has_id(id);
            let own = executor.clone();
            let reading = move || own.0.spools.read(id, asked.stream, asked.from, runs);
            let chunks = tokio::task::spawn_blocking(reading).await.unwrap_or_default();
            let message = ClientMessage {
                metadata: Some(Spooled { id: asked.id, chunks }.to_metadata()),
                ..executor.about_command(session_id, Some(response_id))
            };
            line.outbox.push_in_turn(message.encode(), || {}).await;
            drop(place);
        });
    }

    /// Sends what the tools of a command tell, as HEARTBEATs that the server passes on, not too often. One that is in a
    /// journal tells it on whichever connection there is.
    fn progress(&self, run: &Run) -> Progress {
        if run.job.flow.as_ref().is_some_and(Flow::takes_output) {
            return Progress::default();
        }
        let executor = self.clone();
        let hears: Box<dyn Fn() -> Option<Arc<Outbox>> + Send + Sync> = match &run.way {
            Way::Direct { tells: false, .. } => return Progress::default(),
            Way::Direct { outbox, .. } => {
                let outbox = outbox.clone();
                Box::new(move || Some(outbox.clone()))
            }
            Way::Journaled(ticket) => {
                let journal = ticket.journal;
                Box::new(move || {
                    executor.line_of(journal).filter(|line| line.tells).map(|line| line.outbox)
                })
            }
        };
        let base = self.about(&run.job);
        let (last, ambient) = (Mutex::new(None::<Instant>), self.0.ambient.clone());
        Progress::to(move |text| {
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.is_some_and(|last| now() < last + PROGRESS_PAUSE) {
                return;
            }
            let Some(outbox) = hears() else { return };
            *last = Some(now());
            let lines = text.lines().take(MAX_PROGRESS_LINES).map(str::to_owned);
            let output = Output { lines: lines.collect() };
            let message = ClientMessage {
                metadata: output.to_metadata(),
                timestamp: Some(ambient.time_text()),
                ..base.clone()
            };
            outbox.push_progress(message.encode());
        })
    }

    /// The text of the answer to a COMMAND, which fits into a message.
    fn answer(&self, job: &Job, results: Vec<ActionResult>) -> Bytes {
        let is_failure = |result: &ActionResult| result.status == ResultStatus::Failure;
        self.0.state.answered(results.iter().any(is_failure));
        results::answer(&self.0.client_id, &self.0.ambient.time_text(), job, results)
    }

    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.0.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is said of an action that was stopped. Of a task that has ended the server has said what is known already.
fn stopped(why: &str, error: &str) -> String {
    if error == NOT_RUN || [TASK_OVER, CANCELLED, DISCARDED].contains(&why) {
        return format!("{why}: {error}");
    }
    format!("{why}: {}; its outcome is unknown", error.trim_end())
}

/// A COMMAND that runs or waits.
struct Run {
    number: u64,
    job: Job,
    stop: Stop,
    way: Way,
}

/// How the answer to a COMMAND goes to the server.
enum Way {
    /// Into the queue of the connection on which it came; with `tells` so does what its tools tell on the way.
    Direct { outbox: Arc<Outbox>, tells: bool },
    /// Into a journal, and out on whichever connection there is.
    Journaled(Ticket),
}
