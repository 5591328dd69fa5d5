//! What one constellation was told about the tasks it submitted: one ACK or one ERROR for each TASK, and
//! exactly one TASK_END for each ACK.

use std::collections::HashMap;

use serde_json::Value;

/// Texts of refusals that no TASK_END follows, since one is still to come for the task that runs.
const NAMES_AN_OPEN_TASK: [&str; 2] = ["is already running", "is owned by another client"];

/// How session ids begin that several constellations use.
pub(crate) const SHARED: &str = "shared";

/// The runs of one session id, which may be used again.
#[derive(Debug, Default)]
struct Runs {
    submitted: u32,
    acked: u32,
    refused: u32,
    ended: u32,
    /// TASK_ENDs that must come, and that may.
    owed: u32,
    allowed: u32,
    is_open: bool,
}

impl Runs {
    fn is_settled(&self) -> bool {
        self.submitted == self.acked + self.refused && self.ended >= self.owed && !self.is_open
    }
}

/// How many tasks came to which end.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Ends {
    pub(crate) acked: u64,
    pub(crate) refused: u64,
    pub(crate) completed: u64,
    pub(crate) failed: u64,
}

impl std::ops::AddAssign for Ends {
    fn add_assign(&mut self, more: Self) {
        self.acked += more.acked;
        self.refused += more.refused;
        self.completed += more.completed;
        self.failed += more.failed;
    }
}

/// The books of one constellation.
#[derive(Debug, Default)]
pub(crate) struct Account {
    runs: HashMap<String, Runs>,
    pub(crate) ends: Ends,
}

impl Account {
    /// Notes that a TASK is on its way.
    pub(crate) fn note_submitted(&mut self, session: &str) {
        self.runs.entry(session.to_owned()).or_default().submitted += 1;
    }

    /// Notes what the server says. Session ids that were never submitted are of garbage.
    pub(crate) fn handle(&mut self, message: &Value) {
        let Some(session) = message["session_id"].as_str() else { return };
        let Some(runs) = self.runs.get_mut(session) else { return };
        match message["type"].as_str() {
            Some("heartbeat") if message["status"] == "continue" => {
                assert!(runs.is_open, "progress of a task that does not run: {message}");
            }
            Some("heartbeat") => {
                assert!(!runs.is_open, "two ACKs without an end between them: {message}");
                (runs.acked, runs.is_open) = (runs.acked + 1, true);
                (runs.owed, runs.allowed) = (runs.owed + 1, runs.allowed + 1);
                self.ends.acked += 1;
            }
            Some("error") => {
                runs.refused += 1;
                self.ends.refused += 1;
                let text = message["error"].as_str().unwrap();
                if !NAMES_AN_OPEN_TASK.iter().any(|end| text.ends_with(end)) {
                    runs.allowed += 1;
                    // Of a shared id it cannot be told from here whether somebody's task runs under it.
                    runs.owed += u32::from(!runs.is_open && !session.starts_with(SHARED));
                }
            }
            Some("task_end") => {
                runs.ended += 1;
                assert!(runs.ended <= runs.allowed, "an end too many: {message}, {runs:?}");
                runs.is_open = false;
                match message["status"].as_str() {
                    Some("completed") => self.ends.completed += 1,
                    _ => self.ends.failed += 1,
                }
            }
            _ => {}
        }
    }

    /// Whether nothing is to come any more.
    pub(crate) fn is_settled(&self) -> bool {
        self.runs.values().all(Runs::is_settled)
    }

    /// What is still to come, for people.
    pub(crate) fn unsettled(&self) -> String {
        let unsettled = self.runs.iter().filter(|(_, runs)| !runs.is_settled());
        format!("{:?}", unsettled.collect::<Vec<_>>())
    }
}
