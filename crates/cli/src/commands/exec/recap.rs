//! What is said at the end of an `exec` on several devices: where it went well, and where not.

use constellation::ClientId;
use serde_json::{Value, json};

use super::super::follow::Followed;
use crate::Code;
use crate::output::{BOLD, GREEN, RED, safe_line};

/// The most devices that are named where it went well. All others are.
const MAX_OK_NAMED: usize = 100;

/// What became of an `exec` on each device.
#[derive(Debug, Default)]
pub(super) struct Recap {
    ok: Vec<String>,
    failed: Vec<(String, String)>,
    unreachable: Vec<String>,
    not_started: Vec<String>,
}

impl Recap {
    /// The command ran, or could not.
    pub(super) fn ended(&mut self, device: &ClientId, followed: &Followed, code: Code) {
        let (name, has_run) = (device.to_string(), followed.outcome.completed);
        let how = match code {
            Code::COMPLETED => return self.ok.push(name),
            Code(code) if has_run => format!("exit {code}"),
            Code::EXEC_UNREACHABLE => return self.unreachable.push(name),
            Code::EXEC_CANCELLED => "cancelled".to_owned(),
            Code::EXEC_UNKNOWN => "outcome unknown".to_owned(),
            Code::EXEC_NEVER_SENT => "never sent".to_owned(),
            Code::EXEC_TIMED_OUT => "timed out".to_owned(),
            _ => "not run".to_owned(),
        };
        self.failed.push((name, how));
    }

    /// It was not even submitted.
    pub(super) fn left_out(&mut self, device: &ClientId, code: Code) {
        match code.of_exec() {
            Code::EXEC_UNREACHABLE => self.unreachable.push(device.to_string()),
            _ => self.failed.push((device.to_string(), "not run".to_owned())),
        }
    }

    /// It was the device's turn, and nobody waits for how it ends.
    pub(super) fn submitted(&mut self, device: &ClientId) {
        self.ok.push(device.to_string());
    }

    /// Its turn did not come.
    pub(super) fn not_started(&mut self, device: &ClientId) {
        self.not_started.push(device.to_string());
    }

    /// On how many devices it was tried and failed. Those that cannot be reached do not count.
    pub(super) const fn failures(&self) -> usize {
        self.failed.len()
    }

    /// One line for people.
    pub(super) fn line(&self, ok_word: &str) -> String {
        let names = |names: &[String]| {
            names.iter().map(|name| safe_line(name)).collect::<Vec<_>>().join(", ")
        };
        let first = self.ok.get(..MAX_OK_NAMED).unwrap_or(&self.ok);
        let more = match self.ok.len().saturating_sub(first.len()) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let failed = self.failed.iter().map(|(name, how)| format!("{} ({how})", safe_line(name)));
        let parts = [
            (GREEN, ok_word, names(first) + &more),
            (RED, "failed", failed.collect::<Vec<_>>().join(", ")),
            (RED, "unreachable", names(&self.unreachable)),
            (BOLD, "not started", names(&self.not_started)),
        ];
        let told = parts.iter().filter(|(_, _, names)| !names.is_empty());
        let told = told.map(|(style, word, names)| format!("{style}{word}{style:#}: {names}"));
        told.collect::<Vec<_>>().join("; ")
    }

    /// The same for programs.
    pub(super) fn json(&self) -> Value {
        let failed: Vec<_> = self.failed.iter().map(|(name, _)| name).collect();
        json!({
            "event": "recap",
            "ok": self.ok,
            "failed": failed,
            "unreachable": self.unreachable,
            "not_started": self.not_started,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Failure;

    #[test]
    fn it_names_each_device_with_what_became_of_it() {
        let mut recap = Recap::default();
        let [a, b, c] = ["a", "b\u{1b}", "c"].map(|id| id.replace('\u{1b}', "ü").parse().unwrap());
        recap.submitted(&a);
        recap.left_out(&b, Code::FAILED);
        recap.left_out(&c, Code::UNREACHABLE);
        let refused = Failure { code: Code::UNREACHABLE, error: anyhow::anyhow!("away") };
        recap.ended(&a, &Followed::not_submitted(&refused), Code::EXEC_TIMED_OUT);
        recap.not_started(&c);
        let line = anstream::adapter::strip_str(&recap.line("ok")).to_string();
        let expected = "ok: a; failed: bü (not run), a (timed out); unreachable: c; not started: c";
        assert_eq!(line, expected);
        assert_eq!(recap.failures(), 2);
        assert_eq!(recap.json()["failed"], json!(["bü", "a"]));
    }

    #[test]
    fn of_very_many_that_went_well_the_first_are_named() {
        let mut recap = Recap::default();
        for n in 0..250 {
            recap.submitted(&format!("d{n}").parse().unwrap());
        }
        let line = recap.line("ok");
        assert!(line.ends_with("d98, d99 and 150 more"), "{line}");
    }
}
