//! What is said at the end of an `exec` on several devices: where it went well, and where not.

use std::collections::HashMap;

use constellation::ClientId;
use serde_json::{Value, json};

use crate::Code;
use crate::output::{BOLD, GREEN, RED, safe_line};

/// The most devices that are named where it went well. All others are.
const MAX_OK_NAMED: usize = 100;

/// What became of an `exec` on each device.
#[derive(Debug, Default)]
pub(super) struct Recap {
    /// Of which it is not known yet, with whether it has begun there.
    open: HashMap<ClientId, bool>,
    ok: Vec<String>,
    failed: Vec<(String, String)>,
    unreachable: Vec<String>,
    not_started: Vec<String>,
    /// On how many it was tried and failed.
    failures: usize,
}

impl Recap {
    /// For these devices.
    pub(super) fn of(devices: &[ClientId]) -> Self {
        Self { open: devices.iter().map(|id| (id.clone(), false)).collect(), ..Self::default() }
    }

    /// It is submitted for this device.
    pub(super) fn begun(&mut self, device: &ClientId) {
        self.open.insert(device.clone(), true);
    }

    /// The command ran, or could not. `own` is the exit code that is its own.
    pub(super) fn ended(&mut self, device: &ClientId, code: Code, own: Option<i32>) {
        self.open.remove(device);
        let name = device.to_string();
        let how = match code {
            Code::COMPLETED => return self.ok.push(name),
            Code(code) if own == Some(code.into()) => format!("exit {code}"),
            Code::EXEC_UNREACHABLE => return self.unreachable.push(name),
            Code::EXEC_CANCELLED => "cancelled".to_owned(),
            Code::EXEC_UNKNOWN => "outcome unknown".to_owned(),
            Code::EXEC_NEVER_SENT => "never sent".to_owned(),
            Code::EXEC_TIMED_OUT => "timed out".to_owned(),
            _ => "failed".to_owned(),
        };
        self.failures += 1;
        self.failed.push((name, how));
    }

    /// It was not even submitted.
    pub(super) fn left_out(&mut self, device: &ClientId, code: Code) {
        self.open.remove(device);
        match code.of_exec() {
            Code::EXEC_UNREACHABLE => self.unreachable.push(device.to_string()),
            _ => self.failed.push((device.to_string(), "not run".to_owned())),
        }
    }

    /// It was the device's turn, and nobody waits for how it ends.
    pub(super) fn submitted(&mut self, device: &ClientId) {
        self.open.remove(device);
        self.ok.push(device.to_string());
    }

    /// Its turn did not come.
    pub(super) fn not_started(&mut self, device: &ClientId) {
        self.open.remove(device);
        self.not_started.push(device.to_string());
    }

    /// Nobody waits any longer. Returns the devices of which it was not known, with whether it had begun there.
    pub(super) fn leave(&mut self) -> Vec<(ClientId, bool)> {
        let mut left: Vec<_> = self.open.drain().collect();
        left.sort();
        for (device, has_begun) in &left {
            match has_begun {
                true => self.failed.push((device.to_string(), "outcome unknown".to_owned())),
                false => self.not_started.push(device.to_string()),
            }
        }
        left
    }

    /// On how many devices it was tried and failed. Those that cannot be reached do not count.
    pub(super) const fn failures(&self) -> usize {
        self.failures
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

    #[test]
    fn it_names_each_device_with_what_became_of_it() {
        let ids = ["a", "b\u{202e}", "c", "d", "e", "f", "g"].map(|id| id.parse().unwrap());
        let [a, b, c, d, e, f, g] = &ids;
        let mut recap = Recap::of(&ids);
        recap.left_out(b, Code::FAILED);
        recap.left_out(c, Code::UNREACHABLE);
        [a, d, e, f].into_iter().for_each(|device| recap.begun(device));
        recap.ended(a, Code::COMPLETED, Some(0));
        recap.ended(d, Code::EXEC_TIMED_OUT, None);
        recap.ended(e, Code::EXEC_TIMED_OUT, Some(124));
        assert_eq!(recap.failures(), 2, "what never began there does not count");
        assert_eq!(recap.leave(), [(f.clone(), true), (g.clone(), false)]);
        let line = anstream::adapter::strip_str(&recap.line("ok")).to_string();
        let expected = r"ok: a; failed: b\u{202e} (not run), d (timed out), e (exit 124), f (outcome unknown); unreachable: c; not started: g";
        assert_eq!(line, expected);
        assert_eq!(recap.json()["failed"], json!(["b\u{202e}", "d", "e", "f"]));
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
