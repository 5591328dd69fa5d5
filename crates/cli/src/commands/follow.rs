//! What `demo`, `exec`, `run` and `task` share: following a task to its end, and showing it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aip::{ActionResult, Payload};
use constellation::{
    Constellation, OnDisconnect, Outcome, Output, Step, StepStatus, Task, TaskEvent,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::connect::Target;
use crate::ending::{Ending, How, Known};
use crate::output::{DIM, GREEN, RED, Spinner, human, indented, print_line, safe, safe_line};
use crate::{Failure, Interrupts};

/// How long a task goes on without us, in seconds, before the server cancels it.
const CANCEL_AFTER_S: u32 = 60;

/// Longest wait for the end of a task that is being cancelled. The server waits ten seconds for its device.
const CANCEL_WAIT: Duration = Duration::from_secs(12);

/// How long a server may be away before it is given up.
pub(super) const AWAY_WAIT: Duration = Duration::from_secs(600);

/// How a task that was followed ended.
pub(super) struct Followed {
    pub(super) ending: Ending,
    pub(super) outcome: Outcome,
    /// The server's id of it.
    pub(super) task: Option<String>,
}

impl Followed {
    pub(super) fn of(outcome: Outcome, task: &Task) -> Self {
        Self { ending: Ending::of(&outcome), outcome, task: task.id() }
    }

    /// One whose outcome is not waited for any longer.
    fn given_up(ending: Ending, task: &Task) -> Self {
        Self::without_result(ending, true, task.id())
    }

    /// One that was left.
    pub(super) fn left(ending: Ending) -> Self {
        Self::without_result(ending, true, None)
    }

    /// One that did not get as far as the server.
    pub(super) fn not_submitted(failure: &Failure) -> Self {
        let error = Some(format!("{:#}", failure.error));
        let ending = Ending { how: How::Failed, known: Some(Known::NeverSent), error };
        Self::without_result(ending, false, None)
    }

    fn without_result(ending: Ending, is_lost: bool, task: Option<String>) -> Self {
        let error = ending.error.clone();
        let outcome = Outcome { completed: false, error, result: None, is_lost, refused: None };
        Self { ending, outcome, task }
    }
}

/// Who hears what happens to a task on its way.
pub(super) trait Watcher {
    fn tell(&mut self, event: &TaskEvent);

    /// Shows some output. The next one waits for it, and the command for that.
    async fn show(&mut self, _output: &Output) {}
}

impl<F: FnMut(&TaskEvent)> Watcher for F {
    fn tell(&mut self, event: &TaskEvent) {
        self(event);
    }
}

/// Follows a task to its end, telling each event on the way; cancels it on `stop`.
pub(super) async fn follow(
    mut task: Task,
    stop: &CancellationToken,
    watcher: &mut impl Watcher,
) -> Followed {
    let (mut confirmed_by, mut back_by): (Option<Instant>, Option<Instant>) = (None, None);
    // Whether the server was there at the cancel, or came back since.
    let mut is_told = false;
    loop {
        let until = [confirmed_by, back_by].into_iter().flatten().min();
        let event = tokio::select! {
            biased;
            event = task.next_event() => event,
            () = stop.cancelled(), if confirmed_by.is_none() => {
                // Where it cannot be cancelled, nobody stops it this way.
                let _is_said_or_over = task.cancel();
                is_told = back_by.is_none();
                confirmed_by = Some(Instant::now() + CANCEL_WAIT);
                continue;
            }
            () = sleep_until(until) => {
                let ending = match confirmed_by {
                    Some(_) => cancelled_in_vain(is_told, task.id().as_deref()),
                    None => away_too_long(),
                };
                return Followed::given_up(ending, &task);
            }
        };
        if let TaskEvent::Output(output) = &event {
            let showing = watcher.show(output);
            tokio::pin!(showing);
            let is_shown = tokio::select! {
                biased;
                () = &mut showing => true,
                () = stop.cancelled() => false,
            };
            if !is_shown {
                let _is_said_or_over = task.cancel();
                is_told = back_by.is_none();
                let by = *confirmed_by.get_or_insert_with(|| Instant::now() + CANCEL_WAIT);
                if tokio::time::timeout_at(by, showing).await.is_err() {
                    let ending = cancelled_in_vain(is_told, task.id().as_deref());
                    return Followed::given_up(ending, &task);
                }
            }
            continue;
        }
        watcher.tell(&event);
        match event {
            TaskEvent::Disconnected { .. } => back_by = Some(Instant::now() + AWAY_WAIT),
            TaskEvent::Reconnected => (back_by, is_told) = (None, true),
            TaskEvent::Ended(outcome) => return Followed::of(outcome, &task),
            TaskEvent::Accepted { .. } | TaskEvent::Progress { .. } | TaskEvent::Output(_) => {}
        }
    }
}

/// Follows a task until the server has it, and returns its id there; on `stop` it is cancelled instead.
///
/// # Errors
/// How it ended, when it did so before, or was cancelled.
pub(super) async fn accepted(
    task: Task,
    stop: &CancellationToken,
    mut tell: impl FnMut(&TaskEvent),
) -> Result<String, Followed> {
    let (has_it, is_there) = oneshot::channel();
    let mut has_it = Some(has_it);
    let mut watcher = |event: &TaskEvent| {
        tell(event);
        if let TaskEvent::Accepted { task } = event
            && !stop.is_cancelled()
            && let Some(has_it) = has_it.take()
        {
            let _nobody_waits = has_it.send(task.clone().unwrap_or_default());
        }
    };
    let following = follow(task, stop, &mut watcher);
    tokio::select! {
        biased;
        Ok(id) = is_there => Ok(id),
        ended = following => Err(ended),
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The server did not say what became of a cancel. Only it can say that the task is cancelled: for all that is known
/// here the cancel did not reach it, and the task goes on.
fn cancelled_in_vain(is_told: bool, task: Option<&str>) -> Ending {
    let what = if is_told { "did not answer" } else { "could not be told of" };
    let show = match task {
        Some(task) => format!("flightdeck task show {task}"),
        None => "flightdeck tasks".to_owned(),
    };
    lost(format!(
        "the server {what} the cancel within {}; the task may go on (see `{show}`)",
        human(CANCEL_WAIT)
    ))
}

fn away_too_long() -> Ending {
    lost(format!("the server was not back within {}", human(AWAY_WAIT)))
}

fn lost(error: String) -> Ending {
    Ending { how: How::Lost, known: Some(Known::OutcomeUnknown), error: Some(error) }
}

/// Does something that Ctrl-C cancels by `stop`, if the server can; a second Ctrl-C leaves at once. Whoever submits a
/// task listens before: no Ctrl-C ends the program between the two.
///
/// # Errors
/// What is known of a task that was left: a server that can cancel none ends those whose requester is gone.
pub(super) async fn interruptible<T>(
    constellation: &Constellation,
    stop: &CancellationToken,
    mut interrupts: Interrupts,
    work: impl Future<Output = T>,
) -> Result<T, Ending> {
    tokio::pin!(work);
    tokio::select! {
        done = &mut work => return Ok(done),
        () = interrupts.next() => {}
    }
    if !constellation.may_cancel() {
        say!("Cancelled.");
        return Err(Ending { how: How::Cancelled, known: None, error: None });
    }
    say!("Cancelling. Ctrl-C again leaves without an answer.");
    stop.cancel();
    tokio::select! {
        done = &mut work => return Ok(done),
        () = interrupts.next() => {}
    }
    let ending =
        lost("left before the server had answered the cancel; see `flightdeck tasks`".to_owned());
    say!("{}", ending.why());
    Err(ending)
}

/// What shall become of a task without us: it waits a minute, or goes on if it is left on purpose.
pub(super) fn on_disconnect(
    constellation: &Constellation,
    target: &Target,
    is_detached: bool,
) -> Result<OnDisconnect, Failure> {
    match (is_detached, constellation.may_detach()) {
        (false, false) => Ok(OnDisconnect::Cancel),
        (false, true) => Ok(OnDisconnect::after(CANCEL_AFTER_S)),
        (true, true) => Ok(OnDisconnect::Continue),
        (true, false) => Err(Failure::unreachable(anyhow::anyhow!(
            "the server at {} cannot let a task go on without its requester, which --detach needs",
            target.server
        ))),
    }
}

/// Says once for all tasks of a connection that it was lost, and that it is back.
#[derive(Clone, Default)]
pub(super) struct Notices(Arc<AtomicBool>);

impl Notices {
    /// What to say about an event, if it is one of these and was not said yet.
    pub(super) fn of(&self, event: &TaskEvent) -> Option<String> {
        match event {
            TaskEvent::Disconnected { why } if !self.0.swap(true, Ordering::Relaxed) => {
                let why = safe_line(why);
                Some(format!("Lost the server ({why}); coming back, nothing is lost by it."))
            }
            TaskEvent::Reconnected if self.0.swap(false, Ordering::Relaxed) => {
                Some("The server is back.".to_owned())
            }
            _ => None,
        }
    }
}

/// An event before the outcome, for programs; of a connection that `notices` has told already none.
pub(super) fn event_json(event: &TaskEvent, notices: &Notices) -> Option<Value> {
    match event {
        TaskEvent::Accepted { task } => {
            let mut said = Map::from_iter([("event".to_owned(), json!("accepted"))]);
            said.extend(task.clone().map(|task| ("task".to_owned(), json!(task))));
            Some(Value::Object(said))
        }
        TaskEvent::Progress { line, step } => {
            Some(json!({"event": "progress", "line": line, "step": step}))
        }
        TaskEvent::Disconnected { why } => {
            notices.of(event).map(|_| json!({"event": "disconnected", "why": why}))
        }
        TaskEvent::Reconnected => notices.of(event).map(|_| json!({"event": "reconnected"})),
        TaskEvent::Output(_) | TaskEvent::Ended(_) => None,
    }
}

/// The end of a task, for programs, on one line. `result` is JSON.
pub(super) fn ended_line(ending: &Ending, task: Option<&str>, result: &str) -> String {
    let (status, is_lost) = (ending.status(), ending.how == How::Lost);
    let (task, known) = (json!(task), json!(ending.known.map(Known::as_str)));
    let (refused, error) = (json!(ending.refused()), json!(ending.error));
    format!(
        r#"{{"event":"ended","task":{task},"status":"{status}","known":{known},"lost":{is_lost},"refused":{refused},"error":{error},"result":{result}}}"#
    )
}

/// Shows how a task ended: what it returned on stdout, the rest on stderr.
pub(super) fn print_ending(ending: &Ending, value: Option<&Payload>) -> anyhow::Result<()> {
    match ending.how {
        How::Completed => say!("{GREEN}completed{GREEN:#}"),
        _ => say!("{RED}{}{RED:#}: {}", ending.status(), safe_line(&ending.why())),
    }
    if let Some(value) = value {
        // A text is printed as it is, anything else as JSON, so that it pipes.
        let text = value.parse::<String>().unwrap_or_else(|_| indented(value.as_str()));
        print_line(&safe(&text))?;
    }
    Ok(())
}

/// What `execute_command` returned.
#[derive(Debug, Default, Deserialize)]
pub(super) struct CommandOutput {
    #[serde(default)]
    pub(super) exit_code: Option<i32>,
    #[serde(default)]
    pub(super) stdout: String,
    #[serde(default)]
    pub(super) stderr: String,
    /// Why there is no exit code: what UFO's devices say of a command that they refuse, or that takes too long.
    #[serde(default)]
    pub(super) error: Option<String>,
    /// How many bytes it wrote, where the texts may be less.
    #[serde(default)]
    pub(super) stdout_bytes: Option<u64>,
    #[serde(default)]
    pub(super) stderr_bytes: Option<u64>,
    /// Whether the texts are.
    #[serde(default)]
    pub(super) truncated: bool,
}

impl CommandOutput {
    pub(super) fn of(result: &ActionResult) -> Option<Self> {
        Self::read(result.result.as_ref())
    }

    pub(super) fn read(result: Option<&Payload>) -> Option<Self> {
        result?.parse().ok()
    }
}

/// Shows a step on stderr, as it happens: the spinner says what runs, a line stays of what is over.
pub(super) fn show_step(spinner: &Spinner, step: &Step) {
    let what = describe(step);
    let exit = step.exit_code.map(|code| format!("exit {code}"));
    let (mark, style) = match step.status {
        StepStatus::Queued => return spinner.say("waiting for the device"),
        StepStatus::Running => return spinner.say(&what),
        StepStatus::Success => exit.as_deref().map_or(("✓", GREEN), |exit| (exit, RED)),
        StepStatus::Failure => ("✗", RED),
        StepStatus::Skipped | StepStatus::None => ("–", DIM),
    };
    let took = human(Duration::from_millis(step.elapsed_ms));
    spinner.line(&format!("{style}{mark}{style:#} {} {what} {DIM}({took}){DIM:#}", step.n));
}

/// A step in a few words: the command line where there is one.
pub(super) fn describe(step: &Step) -> String {
    let parameters = step.parameters.as_ref();
    match parameters.and_then(|parameters| parameters.parse::<CommandLine>().ok()) {
        Some(CommandLine { command }) => safe_line(&command),
        None => {
            let parameters = parameters.map_or("", Payload::as_str);
            safe_line(format!("{} {parameters}", step.tool_name).trim())
        }
    }
}

/// The arguments of a step that runs a command line.
#[derive(Deserialize)]
struct CommandLine {
    command: String,
}
