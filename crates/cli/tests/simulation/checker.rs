//! What must be true of every history.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use server::store::{Ended, Record};
use server::{CallResult, Task};

use crate::history::{Event, Said, What, said, short};

/// A task, as the store has it.
pub(crate) type Journal = Vec<Record>;

/// What is known of a wire.
#[derive(Default)]
struct WireState {
    party: String,
    /// When a newer wire of its party was confirmed.
    replaced: Option<Duration>,
    is_confirmed: bool,
    is_broken: bool,
    /// Sessions that were submitted on it, and what the server said of each, in order.
    sessions: BTreeMap<String, Vec<Said>>,
}

/// Looks at a history, and at what the store has of its tasks. Returns what is wrong with it.
pub(crate) fn check(events: &[Event], journals: &[Journal]) -> Vec<String> {
    let mut checker = Checker::default();
    events.iter().for_each(|event| checker.look(event));
    checker.check_wires();
    journals.iter().for_each(|journal| checker.check_journal(journal));
    checker.wrong
}

#[derive(Default)]
struct Checker {
    wires: BTreeMap<usize, WireState>,
    /// COMMANDs that a device took off its wire.
    received: BTreeSet<String>,
    /// On which wire the results of each COMMAND were sent.
    answered: BTreeMap<String, BTreeSet<usize>>,
    wrong: Vec<String>,
}

impl Checker {
    fn look(&mut self, event: &Event) {
        match &event.what {
            What::Opened { wire, party } => {
                let state = WireState { party: party.clone(), ..WireState::default() };
                self.wires.insert(*wire, state);
            }
            What::Broken { wire, .. } => {
                if let Some(wire) = self.wires.get_mut(wire) {
                    wire.is_broken = true;
                }
            }
            What::Received { command, .. } => {
                self.received.insert(command.clone());
            }
            What::Sent { wire, to_server, frame } => {
                if let Some(said) = said(*to_server, frame) {
                    self.look_at(event.at, *wire, *to_server, said);
                }
            }
            What::Note(_) => {}
        }
    }

    fn look_at(&mut self, at: Duration, wire: usize, to_server: bool, said: Said) {
        if to_server && said.kind == "command_results" {
            let command = said.command.clone().unwrap_or_default();
            self.answered.entry(command).or_default().insert(wire);
        }
        if !to_server && said.status == "ok" && said.kind == "heartbeat" {
            self.confirm(at, wire);
        }
        let Some(state) = self.wires.get_mut(&wire) else { return };
        if !to_server && state.replaced.is_some_and(|replaced| replaced < at) {
            self.wrong.push(format!("w{wire} was replaced, and is sent: {said}"));
        }
        let Some(session) = said.session.clone() else { return };
        match (to_server, said.kind.as_str()) {
            (true, "task") => {
                state.sessions.entry(session).or_default();
            }
            (true, _) => {}
            // What is about a task of somebody else is what devices are for.
            (false, _) if !state.sessions.contains_key(&session) => {
                if state.party.starts_with('g') {
                    self.wrong.push(format!("w{wire} never submitted it, and is sent: {said}"));
                }
            }
            (false, _) => state.sessions.entry(session).or_default().push(said),
        }
    }

    /// The first that a server sends is its confirmation: the older wires of the party are replaced then.
    fn confirm(&mut self, at: Duration, wire: usize) {
        let Some(state) = self.wires.get_mut(&wire) else { return };
        if std::mem::replace(&mut state.is_confirmed, true) {
            return;
        }
        let party = state.party.clone();
        for (_, older) in self.wires.range_mut(..wire).filter(|(_, older)| older.party == party) {
            older.replaced.get_or_insert(at);
        }
    }

    fn check_wires(&mut self) {
        for (wire, state) in &self.wires {
            for (session, heard) in &state.sessions {
                if let Some(wrong) = state.wrong_with(heard) {
                    self.wrong.push(format!("w{wire}, S={}: {wrong}", short(session)));
                }
            }
        }
    }

    fn check_journal(&mut self, journal: &Journal) {
        let Some(Record::Created(task)) = journal.first() else {
            return self.wrong.push(format!("a journal has no beginning: {journal:?}"));
        };
        let ends = journal.iter().filter(|record| matches!(record, Record::Ended(_))).count();
        if ends != 1 || !matches!(journal.last(), Some(Record::Ended(_))) {
            self.wrong.push(format!("{} has {ends} outcomes", name(task)));
        }
        let mut open: Option<&str> = None;
        for record in journal {
            match record {
                Record::Decided { response_id, .. } => {
                    if let Some(open) = open.replace(response_id.as_str()) {
                        self.wrong.push(format!("{}: {open} was never settled", name(task)));
                    }
                }
                Record::Answered { results, .. } => match open.take() {
                    None => self.wrong.push(format!("{}: results were taken twice", name(task))),
                    Some(command) => self.check_results(task, command, results),
                },
                Record::Ended(ended) => self.check_end(task, ended, open),
                Record::Created(_) | Record::Noted { .. } => {}
            }
        }
    }

    fn check_results(&mut self, task: &Task, command: &str, results: &[CallResult]) {
        let says = |text: &str| {
            results.iter().any(|result| result.error.as_ref().is_some_and(|e| e.ends_with(text)))
        };
        if says("it was never sent") && self.received.contains(command) {
            self.wrong.push(format!(
                "{}: R={} is called never sent, and a device received it",
                name(task),
                short(command)
            ));
        }
        let unknown = says("its outcome is unknown") || says("it was never sent");
        if !unknown && !self.answered.contains_key(command) {
            self.wrong.push(format!("{}: R={} has invented results", name(task), short(command)));
        }
    }

    fn check_end(&mut self, task: &Task, ended: &Ended, open: Option<&str>) {
        if let Some(open) = open {
            self.wrong.push(format!("{} ended ({ended:?}) while {open} was open", name(task)));
        }
    }
}

impl WireState {
    /// What is wrong with what a requester heard of one of its sessions.
    fn wrong_with(&self, heard: &[Said]) -> Option<String> {
        let is_ack = |said: &Said| said.kind == "heartbeat" && said.status == "ok";
        let is_refused = heard.first().is_some_and(|first| first.kind == "error");
        let first_is_right = heard.first().is_none_or(|first| is_ack(first) || is_refused);
        if !first_is_right {
            return Some(format!("the first word is no ACK: {}", heard[0]));
        }
        if heard.iter().filter(|said| is_ack(said)).count() > 1 {
            return Some("it was acknowledged twice".to_owned());
        }
        if is_refused && heard.iter().any(is_ack) {
            return Some("the ACK comes after an ERROR".to_owned());
        }
        let ends = heard.iter().filter(|said| said.kind == "task_end").count();
        if ends > 1 {
            return Some(format!("it has {ends} outcomes"));
        }
        let is_last = heard.last().is_none_or(|last| ends == 0 || last.kind == "task_end");
        if !is_last {
            return Some("something comes after its outcome".to_owned());
        }
        let is_whole = !self.is_broken && self.replaced.is_none();
        (is_whole && !heard.is_empty() && ends == 0).then(|| "it has no outcome".to_owned())
    }
}

fn name(task: &Task) -> String {
    format!("S={} on {}", short(task.session_id.as_str()), task.device)
}
