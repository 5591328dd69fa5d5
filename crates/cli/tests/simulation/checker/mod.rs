//! What must be true of every history.
//!
//! - `beside`: how many tasks are at work on a device at the same time.
//! - `wires`: what is said on each connection, and in which order.
//! - `mirror`: what the store holds at each moment.
//! - `told`: nothing is told that is not stored, and no command is sent twice.
//! - `settled`: what became of each command, and why.
//! - `promise`: what the requesters and the devices know at the end.

mod beside;
mod mirror;
mod promise;
mod settled;
mod told;
mod wires;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use link::Frame;

use crate::history::{End, Event, Life, More, Said, What, said};
use beside::Beside;
use mirror::Mirror;
use wires::Wires;

/// What is checked against.
pub(crate) struct Rules {
    /// Where the clocks start.
    pub(crate) epoch: Timestamp,
    /// How long the server waits for a device.
    pub(crate) window: Duration,
    /// Who has no extension.
    pub(crate) legacy: BTreeSet<&'static str>,
    /// How many tasks may be at work on a device: of any kind, and of those that share it.
    pub(crate) places: (usize, usize),
    /// Whether nothing goes wrong by which a device may have more to do than was decided for it: devices keep what they
    /// know, and so does the store.
    pub(crate) keeps_places: bool,
}

/// Looks at a history. Returns what is wrong with it.
pub(crate) fn check(events: &[Event], rules: &Rules) -> Vec<String> {
    let mut checker = Checker {
        rules,
        wires: Wires::default(),
        mirror: Mirror::default(),
        beside: Beside::default(),
        received: BTreeSet::new(),
        leaving: BTreeSet::new(),
        ran: BTreeMap::new(),
        crashes: BTreeMap::new(),
        deaths: Vec::new(),
        submitted: Vec::new(),
        learned: BTreeMap::new(),
        wrong: Vec::new(),
    };
    events.iter().for_each(|event| checker.look(event));
    checker.check_wires();
    checker.check_journals();
    checker.check_promise();
    checker.wrong
}

struct Checker<'a> {
    rules: &'a Rules,
    wires: Wires,
    mirror: Mirror,
    beside: Beside,
    /// The COMMANDs that a device took off its wire to carry them out.
    received: BTreeSet<String>,
    /// The devices that were told to leave, and take no COMMAND.
    leaving: BTreeSet<String>,
    /// How often each order was carried out.
    ran: BTreeMap<String, usize>,
    /// When each device died.
    crashes: BTreeMap<String, Vec<Duration>>,
    /// When the server died.
    deaths: Vec<Duration>,
    /// Who waits for the outcome of which session.
    submitted: Vec<(String, String)>,
    /// What was learned of each session, and by whom.
    learned: BTreeMap<String, Vec<(String, End)>>,
    wrong: Vec<String>,
}

impl Checker<'_> {
    fn look(&mut self, event: &Event) {
        let at = event.at;
        match &event.what {
            What::Opened { wire, party } => self.wires.open(*wire, party),
            What::Broken { wire, .. } => self.wires.break_off(*wire, at),
            What::Received { device, command } => {
                if !self.leaving.contains(device) {
                    self.received.insert(command.clone());
                }
            }
            What::Ran { order, .. } => *self.ran.entry(order.clone()).or_default() += 1,
            What::Leaving { device } => {
                self.leaving.insert(device.clone());
            }
            What::Crashed { device } => {
                self.leaving.remove(device);
                self.crashes.entry(device.clone()).or_default().push(at);
            }
            What::Stored(batch) => {
                self.mirror.store(batch);
                let wrong = self.beside.store(batch, self.rules);
                self.wrong.extend(wrong.filter(|_| self.rules.keeps_places));
            }
            What::Forgotten { batches } => self.mirror.forget(*batches),
            What::Server(Life::Started) | What::Note(_) => {}
            What::Server(Life::Stopping) => self.wires.break_all(at),
            What::Server(Life::Killed | Life::LostPower) => {
                self.wires.break_all(at);
                self.deaths.push(at);
            }
            What::Submitted { party, session } => {
                self.submitted.push((party.clone(), session.clone()));
            }
            What::Garbled { party, session } => {
                self.wrong.push(format!("{party} got output of {session} that nobody wrote there"));
            }
            What::Learned { party, session, end } => {
                let learned = self.learned.entry(session.clone()).or_default();
                learned.push((party.clone(), end.clone()));
            }
            What::Sent { wire, to_server, frame, takes } => {
                self.look_at_frame(at, *wire, *to_server, frame, *takes);
            }
        }
    }

    fn look_at_frame(
        &mut self,
        at: Duration,
        wire: usize,
        to_server: bool,
        frame: &Frame,
        takes: Duration,
    ) {
        if let Frame::Close(code, _) = frame {
            let wrong = self.wires.close(at, wire, to_server, *code);
            self.wrong.extend(wrong);
        }
        let arrives = self.wires.send(wire, to_server, at + takes);
        let Some(said) = said(to_server, frame) else { return };
        if to_server {
            return self.wires.hear(wire, &said, arrives);
        }
        if said.status == "ok" && said.kind == "heartbeat" {
            self.wires.confirm(at, wire);
        }
        self.check_told(wire, &said);
        let wrong = self.wires.tell(at, wire, said);
        self.wrong.extend(wrong);
    }

    fn check_wires(&mut self) {
        let wrong = self.wires.check();
        self.wrong.extend(wrong);
    }
}

fn is_ack(said: &Said) -> bool {
    said.kind == "heartbeat" && said.status == "ok" && !matches!(said.more, More::Taken(_))
}
