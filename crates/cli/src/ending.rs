//! How a task ended: what is known of it, in words, for programs, and as an exit code.
//!
//! The wire says it in the texts of a task's error and of its results, which are read here and nowhere else.

use aip::message::Refused;
use aip::{ActionResult, Payload};
use constellation::Outcome;
use serde::Deserialize;

use crate::Code;

/// How a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    Completed,
    Failed,
    Cancelled,
    /// A time limit was over.
    TimedOut,
    /// The server did not take it; perhaps it does later.
    Refused {
        may_retry: bool,
    },
    /// The server cannot be asked any more, or has forgotten it.
    Lost,
}

/// What is known of a command that was cut, or of a cancel, where it is not the results that say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// It may have run, wholly or in part, or not at all.
    OutcomeUnknown,
    /// It did not run.
    NeverSent,
    /// It was to be cancelled, and the device did not say in time what became of it.
    NotConfirmed,
    /// The device stopped it.
    Stopped,
    /// It had finished when the cancel came.
    Finished,
    /// The device could not stop it.
    CouldNotStop,
}

impl Known {
    /// For programs, and as the wire says it of a cancel.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::OutcomeUnknown => "outcome_unknown",
            Self::NeverSent => "never_sent",
            Self::NotConfirmed => "not_confirmed",
            Self::Stopped => "stopped",
            Self::Finished => "finished",
            Self::CouldNotStop => "could_not_stop",
        }
    }

    const fn in_words(self) -> &'static str {
        match self {
            Self::OutcomeUnknown => "its outcome is unknown",
            Self::NeverSent => "it was never sent",
            Self::NotConfirmed => "the device did not confirm that it stopped",
            Self::Stopped => "the device stopped it",
            Self::Finished => "it had finished before",
            Self::CouldNotStop => "the device could not stop it",
        }
    }

    /// In front of all that a text ends with, the word of a cancel counts.
    fn of(text: &str, is_cancelled: bool) -> Option<Self> {
        let text = text.trim_end_matches(['.', ' ']);
        let ends = |end| text.ends_with(end);
        if ends("outcome is unknown") || ends("outcome unknown") {
            return Some(Self::OutcomeUnknown);
        }
        // Its device says the latter of what it was sent and did not begin.
        if ends("never sent") || ends("it did not run") {
            return Some(Self::NeverSent);
        }
        let words = text.rsplit(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let cancels = [Self::NotConfirmed, Self::Stopped, Self::Finished, Self::CouldNotStop];
        let mut said =
            words.filter_map(|word| cancels.into_iter().find(|one| one.as_str() == word));
        said.next().filter(|_| is_cancelled)
    }
}

/// The end of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) how: How,
    pub(crate) known: Option<Known>,
    pub(crate) error: Option<String>,
}

impl Ending {
    /// Of an outcome that came over the wire.
    pub(crate) fn of(outcome: &Outcome) -> Self {
        let error = outcome.error.clone();
        match outcome {
            Outcome { completed: true, .. } => Self::completed(),
            Outcome { is_lost: true, .. } => {
                Self { how: How::Lost, known: Some(Known::OutcomeUnknown), error }
            }
            Outcome { refused: Some(how), .. } => {
                let how = How::Refused { may_retry: *how == Refused::Retry };
                Self { how, known: Some(Known::NeverSent), error }
            }
            _ => Self::failed(error, &results(value(outcome).as_ref())),
        }
    }

    pub(crate) const fn completed() -> Self {
        Self { how: How::Completed, known: None, error: None }
    }

    /// A task that did not complete, by its error and what its steps returned.
    pub(crate) fn failed(error: Option<String>, results: &[Vec<ActionResult>]) -> Self {
        let text = error.as_deref().unwrap_or_default();
        let last = results.iter().flatten().rfind(|result| result.error.is_some());
        let last = last.and_then(|result| result.error.as_deref()).unwrap_or_default();
        let how = if is_cancelled(text) {
            How::Cancelled
        } else if is_timeout(text) || is_timeout(last) {
            How::TimedOut
        } else {
            How::Failed
        };
        let is_cancel = how == How::Cancelled;
        // A task that the server ends before its first step had nothing sent.
        let nothing = results.is_empty() && text.starts_with("Task was cancelled");
        let known = Known::of(text, is_cancel)
            .or_else(|| Known::of(last, is_cancel))
            .or_else(|| nothing.then_some(Known::NeverSent));
        Self { how, known, error }
    }

    /// The word for programs.
    pub(crate) const fn status(&self) -> &'static str {
        match self.how {
            How::Completed => "completed",
            How::Cancelled => "cancelled",
            _ => "failed",
        }
    }

    /// Whether it was refused for good or for now, for programs.
    pub(crate) const fn refused(&self) -> Option<&'static str> {
        match self.how {
            How::Refused { may_retry: true } => Some("retry"),
            How::Refused { may_retry: false } => Some("final"),
            _ => None,
        }
    }

    /// Why it failed, for people; not yet safe for a terminal.
    pub(crate) fn why(&self) -> String {
        let error = self.error.as_deref().unwrap_or("the server gave no reason");
        match self.known {
            Some(known) if self.refused().is_none() && !says(error, known) => {
                format!("{error}; {}", known.in_words())
            }
            _ => error.to_owned(),
        }
    }

    /// The exit code of `run` and of what looks at a task afterwards.
    pub(crate) const fn code(&self) -> Code {
        match self.how {
            How::Completed => Code::COMPLETED,
            How::Cancelled => Code::CANCELLED,
            How::Refused { .. } | How::Lost => Code::UNREACHABLE,
            How::Failed | How::TimedOut => Code::FAILED,
        }
    }

    /// The exit code of `exec` for a command that has none of its own.
    pub(crate) const fn exec_code(&self) -> Code {
        match (self.how, self.known) {
            (How::Cancelled, _) => Code::EXEC_CANCELLED,
            (How::TimedOut, _) => Code::EXEC_TIMED_OUT,
            (How::Refused { .. }, _) => Code::EXEC_UNREACHABLE,
            (How::Lost, _) | (_, Some(Known::OutcomeUnknown)) => Code::EXEC_UNKNOWN,
            (_, Some(Known::NeverSent)) => Code::EXEC_NEVER_SENT,
            _ => Code::EXEC_OTHER,
        }
    }
}

/// Whether a text says it already.
fn says(text: &str, known: Known) -> bool {
    Known::of(text, true) == Some(known)
}

/// Whether a task's error says that somebody cancelled it, or that its requester stayed away.
fn is_cancelled(error: &str) -> bool {
    ["Task was cancelled by ", "Task was cancelled due to client disconnection"]
        .iter()
        .any(|beginning| error.starts_with(beginning))
}

/// Whether an error, of a task or of a result, says that a time limit was over. UFO's devices have a word of their own.
pub(crate) fn is_timeout(error: &str) -> bool {
    let of_task = error.strip_prefix("Task did not end within ");
    let of_task = of_task.is_some_and(|limit| limit.split(' ').nth(1) == Some("s"));
    let of_step = error.starts_with("Step ") && error.contains(") timed out after ");
    let of_command = ["Timed out after ", "Timeout after ", "No answer within "];
    of_task || of_step || of_command.iter().any(|beginning| error.starts_with(beginning))
}

/// What stands in an outcome's `[{"request", "result"}]`.
#[derive(Deserialize)]
struct Item {
    #[serde(default)]
    result: Option<Payload>,
}

/// The value that the task returned.
pub(crate) fn value(outcome: &Outcome) -> Option<Payload> {
    let items: Vec<Item> = outcome.result.as_ref()?.parse_carried().ok()?;
    items.into_iter().next()?.result
}

/// The results of a plan, one array a step.
pub(crate) fn results(value: Option<&Payload>) -> Vec<Vec<ActionResult>> {
    value.and_then(|value| value.parse_carried().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(error: &str, result: Option<&str>) -> Ending {
        let result = result.map(|error| {
            serde_json::from_value(serde_json::json!({"status": "failure", "error": error}))
                .unwrap()
        });
        Ending::failed(
            Some(error.to_owned()),
            &result.map(|result| vec![result]).into_iter().collect::<Vec<_>>(),
        )
    }

    #[test]
    fn exec_says_by_its_code_what_is_known() {
        let gone = "Task was cancelled because target device disconnected ('d')";
        for (error, result, code, known) in [
            (
                gone,
                Some("The device disconnected; its outcome is unknown"),
                121,
                Some("outcome_unknown"),
            ),
            (gone, Some("The device disconnected; it was never sent"), 122, Some("never_sent")),
            (gone, None, 122, Some("never_sent")),
            (
                "Step 1 failed: execute_command: interrupted, outcome unknown",
                Some("interrupted, outcome unknown"),
                121,
                Some("outcome_unknown"),
            ),
            (
                "Step 1 failed: execute_command: This device is stopping: stopped",
                Some("This device is stopping: stopped; its outcome is unknown"),
                121,
                Some("outcome_unknown"),
            ),
            (
                "Step 1 failed: execute_command: stopped: no server for 5 s: it did not run",
                Some("stopped: no server for 5 s: it did not run"),
                122,
                Some("never_sent"),
            ),
            ("Task was cancelled by 'g': stopped", Some("stopped"), 120, Some("stopped")),
            ("Task was cancelled by 'g' (not_confirmed)", None, 120, Some("not_confirmed")),
            ("Task was cancelled by 'stopped'; it was never sent", None, 120, Some("never_sent")),
            ("Task was cancelled due to client disconnection", None, 120, Some("never_sent")),
            (
                "Step 1 (execute_command) timed out after 5 s",
                Some("No answer within 5 s; its outcome is unknown"),
                124,
                Some("outcome_unknown"),
            ),
            (
                "Step 1 failed: execute_command: Timed out after 1 s and was stopped",
                Some("Timed out after 1 s and was stopped"),
                124,
                None,
            ),
            ("Task did not end within 600 s", None, 124, None),
            ("Task did not end within 600 s (the server's session_timeout)", None, 124, None),
            (
                "Step 1 (execute_command) timed out after 5 s (the server's command_timeout)",
                Some("No answer within 5 s (the server's command_timeout); its outcome is unknown"),
                124,
                Some("outcome_unknown"),
            ),
            ("Task did not end within 50 steps", None, 125, None),
            ("Step 1 failed: execute_command: Blocked: rm", Some("Blocked: rm"), 125, None),
            ("Step 1 failed: t: I stopped", Some("I stopped"), 125, None),
        ] {
            let ending = failed(error, result);
            assert_eq!(ending.exec_code(), Code(code), "{error}");
            assert_eq!(ending.known.map(Known::as_str), known, "{error}");
        }
    }

    #[test]
    fn every_text_of_the_server_that_says_so_is_understood() {
        let mut folders = vec![format!("{}/../server/src", env!("CARGO_MANIFEST_DIR")).into()];
        let mut read = 0;
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir::<std::path::PathBuf>(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.file_stem().is_some_and(|name| name == "tests") {
                    continue;
                }
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let source = std::fs::read_to_string(&path).unwrap();
                let code = source.lines().filter(|line| !line.trim_start().starts_with("//"));
                let texts = code.flat_map(|line| line.split('"').skip(1).step_by(2));
                let tells = |text: &&str| {
                    text.split_once("outcome").is_some_and(|(_, what)| what.contains(" unknown"))
                };
                for text in texts.filter(tells) {
                    assert_eq!(Known::of(text, false), Some(Known::OutcomeUnknown), "{text}");
                    assert!(says(text, Known::OutcomeUnknown), "{text}");
                    read += 1;
                }
            }
        }
        assert!(read >= 7, "{read}");
    }

    #[test]
    fn what_is_known_is_said_once() {
        let why = |error, result| failed(error, result).why();
        let unknown = "The device left; its outcome is unknown";
        assert_eq!(why("Cut", Some(unknown)), "Cut; its outcome is unknown");
        assert_eq!(why(unknown, Some(unknown)), unknown);
        let cancelled = "Task was cancelled by 'g': could_not_stop";
        assert_eq!(why(cancelled, None), cancelled);
    }
}
