//! What is said on each wire: who is confirmed, replaced and hung up on, and what requesters hear of their sessions.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aip::CloseCode;
use aip::message::JournalId;

use super::is_ack;
use crate::history::{More, Said, short};
use crate::parties::SILENCE;

/// The code of an end that came without one: its party let go of the wire.
const LOST: CloseCode = CloseCode(1006);

/// What is known of a wire.
#[derive(Default)]
pub(super) struct Wire {
    pub(super) party: String,
    /// Which journal or file its client keeps; none of a client without the extension.
    pub(super) journal: Option<JournalId>,
    /// The commands that its client has said it has.
    pub(super) listed: BTreeSet<String>,
    /// The commands that were sent on it.
    pub(super) commands: BTreeSet<String>,
    /// Results of commands that were sent on it, and when they arrive.
    pub(super) results: Vec<(String, Duration)>,
    pub(super) confirmed: Option<Duration>,
    /// When a newer wire of its party was confirmed, or took over before that.
    pub(super) replaced: Option<Duration>,
    /// When the server gets the REGISTER of a client that shows a key, which takes over at once.
    takes_over: Option<Duration>,
    /// From when on it is not to be relied on.
    pub(super) broken: Option<Duration>,
    has_hung_up: bool,
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

#[derive(Default)]
pub(super) struct Wires {
    all: BTreeMap<usize, Wire>,
    /// What each client submitted, on whichever wire.
    owned: BTreeMap<String, BTreeSet<String>>,
}

impl Wires {
    pub(super) fn get(&self, wire: usize) -> Option<&Wire> {
        self.all.get(&wire)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Wire> {
        self.all.values()
    }

    pub(super) fn open(&mut self, wire: usize, party: &str) {
        self.all.insert(wire, Wire { party: party.to_owned(), ..Wire::default() });
    }

    pub(super) fn break_off(&mut self, wire: usize, at: Duration) {
        if let Some(wire) = self.all.get_mut(&wire) {
            wire.broken.get_or_insert(at);
        }
    }

    pub(super) fn break_all(&mut self, at: Duration) {
        for wire in self.all.values_mut() {
            wire.broken.get_or_insert(at);
        }
    }

    /// The server hangs up on nobody who is alive, is not replaced, and has not hung up itself. Nothing need be wrong
    /// with a wire that either end gives up: a frame may take longer than it waits for a sign of life.
    pub(super) fn close(
        &mut self,
        at: Duration,
        wire: usize,
        to_server: bool,
        code: CloseCode,
    ) -> Option<String> {
        let state = self.all.get_mut(&wire)?;
        let mut wrong = None;
        if code == CloseCode::NO_LIFE && state.broken.is_none() {
            let arrivals = state.arrivals.get(&!to_server).into_iter().flatten();
            let heard = arrivals.filter(|arrival| **arrival <= at).max().copied();
            if at.saturating_sub(heard.unwrap_or_default()) < SILENCE {
                wrong = Some(format!("w{wire} is given up, and was heard at {heard:?}"));
            }
            state.broken = Some(at);
        }
        state.has_hung_up |= to_server;
        let is_told = [CloseCode::REPLACED, LOST].contains(&code);
        let may_end = state.has_hung_up || state.broken.is_some() || is_told;
        state.broken.get_or_insert(at);
        if state.confirmed.is_some() && !may_end {
            wrong = Some(format!("w{wire} is hung up on: {code}"));
        }
        wrong
    }

    /// Notes a frame. Returns when it arrives: none overtakes another.
    pub(super) fn send(&mut self, wire: usize, to_server: bool, arrives: Duration) -> Duration {
        let Some(wire) = self.all.get_mut(&wire) else { return arrives };
        let arrivals = wire.arrivals.entry(to_server).or_default();
        let arrives = arrivals.last().map_or(arrives, |last| arrives.max(*last));
        arrivals.push(arrives);
        arrives
    }

    /// The server is sent something.
    pub(super) fn hear(&mut self, wire: usize, said: &Said, arrives: Duration) {
        let Some(state) = self.all.get_mut(&wire) else { return };
        if let More::Comes(resume) = &said.more {
            state.journal = Some(resume.journal.clone());
            state.takes_over = resume.key.is_some().then_some(arrives);
            let listed = resume.commands.iter().map(|held| held.response_id.to_string());
            state.listed = listed.collect();
        }
        if said.kind == "command_results" {
            let command = said.command.clone().unwrap_or_default();
            state.results.push((command, arrives));
        }
        let Some(session) = said.session.clone().filter(|_| said.kind == "task") else { return };
        let owned = self.owned.entry(state.owner(wire)).or_default();
        let is_again = !owned.insert(session.clone());
        let submitted = state.sessions.entry(session).or_default();
        submitted.times += 1;
        submitted.is_again |= is_again && submitted.times == 1;
    }

    /// The first that a server sends is its confirmation: the older wires of the party are replaced then.
    pub(super) fn confirm(&mut self, at: Duration, wire: usize) {
        let Some(state) = self.all.get_mut(&wire) else { return };
        if state.confirmed.is_some() {
            return;
        }
        state.confirmed = Some(at);
        let (party, since) = (state.party.clone(), state.takes_over.unwrap_or(at).min(at));
        let same = |state: &Wire| state.confirmed.is_some() && state.party == party;
        for (_, older) in self.all.range_mut(..wire).filter(|(_, older)| same(older)) {
            older.replaced.get_or_insert(since);
        }
    }

    /// The server says something. Returns what is wrong with that.
    pub(super) fn tell(&mut self, at: Duration, wire: usize, said: Said) -> Option<String> {
        let state = self.all.get_mut(&wire)?;
        let mut wrong = None;
        if state.replaced.is_some_and(|replaced| replaced < at) {
            wrong = Some(format!("w{wire} was replaced, and is sent: {said}"));
        }
        if said.kind == "command" {
            state.commands.extend(said.command.clone());
        }
        let Some(session) = said.session.clone().filter(|_| state.is_requesters()) else {
            return wrong;
        };
        let owned = self.owned.get(&state.owner(wire));
        if !owned.is_some_and(|owned| owned.contains(&session)) {
            wrong = Some(format!("w{wire} never submitted it, and is sent: {said}"));
        }
        if let Some(submitted) = state.sessions.get_mut(&session) {
            submitted.heard.push(said);
        }
        wrong
    }

    /// What is wrong with what the requesters heard.
    pub(super) fn check(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (wire, state) in &self.all {
            for (session, submitted) in &state.sessions {
                if let Some(what) = state.wrong_with(submitted) {
                    wrong.push(format!("w{wire}, S={}: {what}", short(session)));
                }
            }
        }
        wrong
    }
}

impl Wire {
    pub(super) fn is_requesters(&self) -> bool {
        self.party.starts_with('g')
    }

    /// Whether its client has the extension, which all ask for who have a journal or a file.
    pub(super) const fn is_extended(&self) -> bool {
        self.journal.is_some()
    }

    /// What was said last of a session.
    pub(super) fn last_heard(&self, session: &str) -> Option<&Said> {
        self.sessions.get(session)?.heard.last()
    }

    /// Names its client: one without the extension is another one on each wire.
    fn owner(&self, wire: usize) -> String {
        let file = self.journal.as_ref().map(|journal| journal.file().to_owned());
        file.unwrap_or_else(|| format!("w{wire}"))
    }

    /// Whether it was the present connection of its client at some moment, and could be relied on.
    pub(super) fn is_good_at(&self, at: Duration) -> bool {
        self.confirmed.is_some_and(|confirmed| confirmed <= at)
            && self.broken.is_none_or(|broken| at < broken)
            && self.replaced.is_none_or(|replaced| at < replaced)
    }

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
            let is_all = is_refusal && self.is_extended();
            let end = heard.iter().position(|said| is_all || said.kind == "task_end");
            let (answer, rest) = heard.split_at(end.map_or(heard.len(), |end| end + 1));
            if answer[1..].iter().any(is_ack) {
                return Some(format!("the ACK comes after: {first}"));
            }
            if end.is_none() && self.broken.is_none() && self.replaced.is_none() {
                return Some("it has no outcome".to_owned());
            }
            (heard, answers) = (rest, answers + 1);
        }
        (answers > submitted.times).then(|| {
            format!("it was submitted {} times and has {answers} outcomes", submitted.times)
        })
    }
}
