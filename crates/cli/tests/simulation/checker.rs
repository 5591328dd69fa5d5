//! What must be true of every history.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aip::CloseCode;
use jiff::Timestamp;
use link::Frame;
use server::store::{Ended, Record};
use server::{CallResult, Task};

use crate::history::{Event, Said, What, said, short};
use crate::parties::SILENCE;

/// A task, as the store has it.
pub(crate) type Journal = Vec<Record>;

/// The code of an end that came without one: its party let go of the wire.
const LOST: CloseCode = CloseCode(1006);

/// What is known of a wire.
#[derive(Default)]
struct WireState {
    party: String,
    /// When a newer wire of its party was confirmed.
    replaced: Option<Duration>,
    is_confirmed: bool,
    has_hung_up: bool,
    is_broken: bool,
    /// Whose wire it is, by the file that its client keeps.
    owner: String,
    acknowledges: bool,
    /// When what is sent arrives, to the server and to its party.
    arrivals: BTreeMap<bool, Vec<Duration>>,
    /// Sessions that were submitted on it.
    sessions: BTreeMap<String, Submitted>,
}

/// What is known of a session on its wire.
#[derive(Default)]
struct Submitted {
    /// How often.
    times: usize,
    /// Whether it was submitted on an older wire of the same client, and is only asked after.
    is_again: bool,
    /// What the server said of it, in order.
    heard: Vec<Said>,
}

/// Looks at a history, and at what the store has of its tasks. Returns what is wrong with it.
pub(crate) fn check(events: &[Event], journals: &[Journal], epoch: Timestamp) -> Vec<String> {
    let mut checker = Checker::default();
    events.iter().for_each(|event| checker.look(event));
    checker.check_wires();
    journals.iter().for_each(|journal| checker.check_journal(journal, epoch));
    checker.wrong
}

#[derive(Default)]
struct Checker {
    wires: BTreeMap<usize, WireState>,
    /// COMMANDs that a device took off its wire.
    received: BTreeSet<String>,
    /// On which wire the results of each COMMAND were sent.
    answered: BTreeMap<String, BTreeSet<usize>>,
    /// What each client submitted, on whichever wire.
    owned: BTreeMap<String, BTreeSet<String>>,
    /// How each task ended, as its requester was told first.
    outcomes: BTreeMap<(String, String), String>,
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
            What::Sent { wire, to_server, frame, takes } => {
                if let Frame::Close(code, _) = frame {
                    self.look_at_close(event.at, *wire, *to_server, *code);
                }
                if let Some(wire) = self.wires.get_mut(wire) {
                    let arrivals = wire.arrivals.entry(*to_server).or_default();
                    let before = arrivals.last().copied().unwrap_or_default();
                    arrivals.push(before.max(event.at + *takes));
                }
                if let Some(said) = said(*to_server, frame) {
                    self.look_at(event.at, *wire, *to_server, said);
                }
            }
            What::Note(_) => {}
        }
    }

    /// The server hangs up on nobody who is alive, is not replaced, and has not hung up itself. Nothing need be wrong
    /// with a wire that either end gives up: a frame may take longer than it waits for a sign of life.
    fn look_at_close(&mut self, at: Duration, wire: usize, to_server: bool, code: CloseCode) {
        let Some(state) = self.wires.get_mut(&wire) else { return };
        if code == CloseCode::NO_LIFE && !state.is_broken {
            let arrivals = state.arrivals.get(&!to_server).into_iter().flatten();
            let heard = arrivals.filter(|arrival| **arrival <= at).max().copied();
            if at.saturating_sub(heard.unwrap_or_default()) < SILENCE {
                self.wrong.push(format!("w{wire} is given up, and was heard at {heard:?}"));
            }
            state.is_broken = true;
        }
        state.has_hung_up |= to_server;
        let is_told = [CloseCode::REPLACED, LOST].contains(&code);
        let may_end = state.has_hung_up || state.is_broken || is_told;
        if state.is_confirmed && !may_end {
            self.wrong.push(format!("w{wire} is hung up on: {code}"));
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
        if to_server && said.kind == "register" {
            state.acknowledges = said.journal.is_some();
            // A client without the extension is another one on each wire.
            state.owner = said.journal.clone().unwrap_or_else(|| format!("w{wire}"));
        }
        if !to_server && state.replaced.is_some_and(|replaced| replaced < at) {
            self.wrong.push(format!("w{wire} was replaced, and is sent: {said}"));
        }
        let Some(session) = said.session.clone() else { return };
        match (to_server, said.kind.as_str()) {
            (true, "task") => {
                let owned = self.owned.entry(state.owner.clone()).or_default();
                let is_again = !owned.insert(session.clone());
                let submitted = state.sessions.entry(session).or_default();
                submitted.times += 1;
                submitted.is_again |= is_again && submitted.times == 1;
            }
            (true, _) => {}
            // What is about a task of somebody else is what devices are for.
            (false, _) if !state.party.starts_with('g') => {}
            (false, kind) => {
                let owned = self.owned.get(&state.owner);
                if !owned.is_some_and(|owned| owned.contains(&session)) {
                    self.wrong.push(format!("w{wire} never submitted it, and is sent: {said}"));
                }
                if let ("task_end", Some(task)) = (kind, &said.command) {
                    let known = self.outcomes.entry((session.clone(), task.clone()));
                    let first = known.or_insert_with(|| said.status.clone());
                    if *first != said.status {
                        self.wrong.push(format!("w{wire} is told another outcome: {said}"));
                    }
                }
                if let Some(submitted) = state.sessions.get_mut(&session) {
                    submitted.heard.push(said);
                }
            }
        }
    }

    /// The first that a server sends is its confirmation: the older wires of the party are replaced then.
    fn confirm(&mut self, at: Duration, wire: usize) {
        let Some(state) = self.wires.get_mut(&wire) else { return };
        if std::mem::replace(&mut state.is_confirmed, true) {
            return;
        }
        let party = state.party.clone();
        let same = |state: &WireState| state.is_confirmed && state.party == party;
        for (_, older) in self.wires.range_mut(..wire).filter(|(_, older)| same(older)) {
            older.replaced.get_or_insert(at);
        }
    }

    fn check_wires(&mut self) {
        for (wire, state) in &self.wires {
            for (session, submitted) in &state.sessions {
                if let Some(wrong) = state.wrong_with(submitted) {
                    self.wrong.push(format!("w{wire}, S={}: {wrong}", short(session)));
                }
            }
        }
    }

    fn check_journal(&mut self, journal: &Journal, epoch: Timestamp) {
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
                Record::Answered { at, results } => match open.take() {
                    None => self.wrong.push(format!("{}: results were taken twice", name(task))),
                    Some(command) => {
                        let at = Duration::try_from(at.duration_since(epoch)).unwrap_or_default();
                        self.check_results(task, command, results, at);
                    }
                },
                Record::Ended(ended) => self.check_end(task, ended, open),
                Record::Created(_)
                | Record::Noted { .. }
                | Record::Readdressed { .. }
                | Record::Cancelling { .. } => {}
            }
        }
    }

    fn check_results(&mut self, task: &Task, command: &str, results: &[CallResult], at: Duration) {
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
        if unknown {
            return;
        }
        let is_present = |wire: &usize| {
            let replaced = self.wires.get(wire).and_then(|wire| wire.replaced);
            replaced.is_none_or(|replaced| at <= replaced)
        };
        let what = match self.answered.get(command) {
            None => "has invented results",
            Some(wires) if !wires.iter().any(is_present) => "was settled by a replaced connection",
            Some(_) => return,
        };
        self.wrong.push(format!("{}: R={} {what}", name(task), short(command)));
    }

    fn check_end(&mut self, task: &Task, ended: &Ended, open: Option<&str>) {
        if let Some(open) = open {
            self.wrong.push(format!("{} ended ({ended:?}) while {open} was open", name(task)));
        }
    }
}

impl WireState {
    /// What is wrong with what a requester heard of one of its sessions.
    fn wrong_with(&self, submitted: &Submitted) -> Option<String> {
        if submitted.is_again {
            return None;
        }
        let mut heard = submitted.heard.as_slice();
        let mut answers = 0;
        while let Some(first) = heard.first() {
            let is_refusal = first.kind == "error";
            if !is_refusal && !is_ack(first) {
                return Some(format!("the first word is no ACK: {first}"));
            }
            // To a client that acknowledges outcomes a refusal is the ERROR alone.
            let is_all = is_refusal && self.acknowledges;
            let end = heard.iter().position(|said| is_all || said.kind == "task_end");
            let (answer, rest) = heard.split_at(end.map_or(heard.len(), |end| end + 1));
            if answer[1..].iter().any(is_ack) {
                return Some(format!("the ACK comes after: {first}"));
            }
            if end.is_none() && !self.is_broken && self.replaced.is_none() {
                return Some("it has no outcome".to_owned());
            }
            (heard, answers) = (rest, answers + 1);
        }
        (answers > submitted.times).then(|| {
            format!("it was submitted {} times and has {answers} outcomes", submitted.times)
        })
    }
}

fn is_ack(said: &Said) -> bool {
    said.kind == "heartbeat" && said.status == "ok"
}

fn name(task: &Task) -> String {
    format!("S={} on {}", short(task.session_id.as_str()), task.device)
}
