//! Nothing is told that is not stored, and no command is sent twice.

use aip::message::Instruction;
use server::store::{Ending, Record};

use super::mirror::{Journal, ended};
use super::wires::Wire;
use super::{Checker, is_ack};
use crate::history::{More, Said, short};

impl Checker<'_> {
    /// The server says something on a wire.
    pub(super) fn check_told(&mut self, wire: usize, said: &Said) {
        let Some(state) = self.wires.get(wire) else { return };
        let wrong = match state.is_requesters() {
            true => self.wrong_to_requester(state, said),
            false => self.wrong_to_device(state, said),
        };
        if let Some(what) = wrong {
            self.wrong.push(format!("w{wire} is told what {what}: {said}"));
        }
    }

    fn wrong_to_requester(&self, wire: &Wire, said: &Said) -> Option<&'static str> {
        let session = said.session.as_deref()?;
        if is_ack(said) {
            let is_stored = match &said.more {
                More::Accepted(task) => self.mirror.has(task),
                _ => self.mirror.of_session(session).is_some(),
            };
            return (!is_stored).then_some("is not stored");
        }
        if said.kind != "task_end" {
            return None;
        }
        let is_refused = wire.last_heard(session).is_some_and(|last| last.kind == "error");
        if !wire.is_extended() && is_refused {
            return None;
        }
        let journal = match wire.is_extended() {
            true => self.mirror.journal(said.command.as_deref()?),
            false => self.mirror.of_session(session),
        };
        let Some(ended) = journal.and_then(ended) else { return Some("is not stored") };
        let is_completed = ended.ending == Ending::Completed;
        (is_completed != (said.status == "completed")).then_some("is stored otherwise")
    }

    fn wrong_to_device(&self, wire: &Wire, said: &Said) -> Option<&'static str> {
        let command = said.command.as_deref().unwrap_or_default();
        match (said.kind.as_str(), &said.more) {
            ("command", _) => self.wrong_to_send(wire, command),
            ("task_end", _) => {
                let journal = self.mirror.of_session(said.session.as_deref()?);
                let is_over = journal.is_some_and(|journal| journal.iter().any(is_end));
                (!is_over).then_some("is not stored")
            }
            (_, More::Taken(_)) => self.mirror.is_open(command).then_some("is not stored"),
            (_, More::Confirmed(told)) => {
                let mut discarded = told.iter().filter(|(_, what)| *what == Instruction::Discard);
                let is_early = discarded.any(|(id, _)| self.mirror.is_open(id.as_str()));
                is_early.then_some("is not settled")
            }
            _ => None,
        }
    }

    /// A command is sent once it is stored, to the journal that it goes to, unless that has it.
    fn wrong_to_send(&self, wire: &Wire, command: &str) -> Option<&'static str> {
        let Some(stored) = self.mirror.command(command) else { return Some("is not stored") };
        let was_sent = || self.wires.all().any(|other| other.commands.contains(command));
        match () {
            () if !stored.is_open => Some("is settled"),
            () if stored.journal != wire.journal => Some("goes to another journal"),
            () if wire.listed.contains(command) => Some("it has already"),
            () if wire.commands.contains(command) => Some("it was told already"),
            () if !wire.is_extended() && was_sent() => {
                Some("was sent to a device without a journal")
            }
            () => None,
        }
    }

    /// The journals of all tasks are whole, at the end.
    pub(super) fn check_journals(&mut self) {
        let mut wrong = Vec::new();
        for journal in self.mirror.tasks() {
            self.check_journal(journal, &mut wrong);
        }
        self.wrong.extend(wrong);
    }

    fn check_journal(&self, journal: &Journal, wrong: &mut Vec<String>) {
        let Some(Record::Created(task)) = journal.first() else {
            return wrong.push(format!("a journal has no beginning: {journal:?}"));
        };
        let name = format!("S={} on {}", short(task.session_id.as_str()), task.device);
        let ends = journal.iter().filter(|record| matches!(record, Record::Ended(_))).count();
        if ends != 1 || !matches!(journal.last(), Some(Record::Ended(_))) {
            wrong.push(format!("{name} has {ends} outcomes"));
        }
        let mut open: Option<&str> = None;
        for record in journal {
            match record {
                Record::Decided { response_id, .. } => {
                    if let Some(open) = open.replace(response_id.as_str()) {
                        wrong.push(format!("{name}: {open} was never settled"));
                    }
                }
                Record::Answered { at, results } => match open.take() {
                    None => wrong.push(format!("{name}: results were taken twice")),
                    Some(command) => {
                        let what = self.wrong_with_results(task, command, results, *at);
                        let named = |what| format!("{name}: R={} {what}", short(command));
                        wrong.extend(what.map(named));
                    }
                },
                Record::Ended(ended) => {
                    if let Some(open) = open {
                        wrong.push(format!("{name} ended ({ended:?}) while {open} was open"));
                    }
                }
                Record::Created(_)
                | Record::Noted { .. }
                | Record::Readdressed { .. }
                | Record::Cancelling { .. } => {}
            }
        }
    }
}

const fn is_end(record: &Record) -> bool {
    matches!(record, Record::Ended(_) | Record::Cancelling { .. })
}
