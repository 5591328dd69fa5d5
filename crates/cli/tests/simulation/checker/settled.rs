//! What became of each command: results that its device sent, or why there are none.

use std::time::Duration;

use jiff::Timestamp;
use server::{CallResult, Task};

use super::Checker;

impl Checker<'_> {
    /// What is wrong with how a command was settled.
    pub(super) fn wrong_with_results(
        &self,
        task: &Task,
        command: &str,
        results: &[CallResult],
        at: Timestamp,
    ) -> Option<String> {
        let at = Duration::try_from(at.duration_since(self.rules.epoch)).unwrap_or_default();
        let error = results.iter().find_map(|result| result.error.as_deref()).unwrap_or("");
        if error.ends_with("it was never sent") {
            let what = "is called never sent, and a device received it";
            let was_received = self.received.contains(command) && !self.mirror.has_lost;
            return was_received.then(|| what.to_owned());
        }
        if let Some(why) = error.strip_suffix("; its outcome is unknown") {
            return self.wrong_with_unknown(task, command, why, at);
        }
        self.wrong_with_taken(task, command, error, at)
    }

    /// Results come from the device, through what was its present connection when they were taken.
    fn wrong_with_taken(
        &self,
        task: &Task,
        command: &str,
        error: &str,
        at: Duration,
    ) -> Option<String> {
        let mut sent = self.results_of(command).peekable();
        if sent.peek().is_none() {
            return Some("has invented results".to_owned());
        }
        let is_present = |(arrived, replaced): (Duration, Option<Duration>)| {
            arrived <= at && replaced.is_none_or(|replaced| arrived <= replaced)
        };
        if !sent.any(is_present) {
            return Some("was settled by a replaced connection".to_owned());
        }
        let crashes = self.crashes.get(task.device.as_str());
        let crashed = || crashes.into_iter().flatten().any(|crash| *crash <= at);
        let is_made_up = error.ends_with("interrupted, outcome unknown") && !crashed();
        is_made_up.then(|| "is called interrupted, and its device never died".to_owned())
    }

    /// When results of a command arrived, and when their wire was replaced.
    fn results_of(&self, command: &str) -> impl Iterator<Item = (Duration, Option<Duration>)> {
        self.wires.all().flat_map(move |wire| {
            let own = wire.results.iter().filter(move |(answered, _)| answered == command);
            own.map(|(_, arrived)| (*arrived, wire.replaced))
        })
    }

    /// Nobody knows what became of a command only if there is a reason for that.
    fn wrong_with_unknown(
        &self,
        task: &Task,
        command: &str,
        why: &str,
        at: Duration,
    ) -> Option<String> {
        if let Some(arrived) = self.arrived(command, at) {
            return Some(format!("is unknown ({why}), and its results were there at {arrived:?}"));
        }
        let journal = self.mirror.command(command).and_then(|command| command.journal.as_ref());
        // Of what was sent to a device without a journal nothing more is promised.
        let journal = journal?;
        let of_device = || self.wires.all().filter(|wire| wire.party == task.device.as_str());
        let is_excused = match why {
            "The device disconnected" => {
                let same = of_device().filter(|wire| {
                    wire.journal.as_ref().is_some_and(|own| own.file() == journal.file())
                });
                let mut confirmed = same.filter_map(|wire| wire.confirmed);
                let after = at.saturating_sub(self.rules.window);
                !confirmed.any(|confirmed| after < confirmed && confirmed <= at)
            }
            "The device came back without its journal" => {
                of_device().any(|wire| wire.journal.as_ref() != Some(journal))
            }
            "The server restarted" => {
                self.mirror.has_lost || !task.terms.is_acknowledged() && !self.deaths.is_empty()
            }
            _ => true,
        };
        (!is_excused).then(|| format!("is unknown ({why}), and nothing says why"))
    }

    /// When results of a command arrived at a server that lived on until it settled the command otherwise.
    fn arrived(&self, command: &str, at: Duration) -> Option<Duration> {
        let good = self.wires.all().flat_map(|wire| {
            let own = wire.results.iter().filter(|(answered, _)| answered == command);
            own.map(|(_, arrived)| *arrived).filter(|arrived| wire.is_good_at(*arrived))
        });
        good.filter(|arrived| *arrived < at)
            .find(|arrived| !self.deaths.iter().any(|death| *arrived <= *death && *death <= at))
    }
}
