//! The network between the parties and the server: wires that are slow, lose what is on its way, and die. For some parties
//! it takes the extension out of what they ask for, which makes them legacy peers.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use link::memory::{KillSwitch, Network as Courier, pair_over};
use link::{Connector, DialError, Frame, Socket};
use serde_json::Value;
use tokio::time::Instant;

use crate::history::{History, What, said};
use crate::site::Site;

/// Of a hundred tries to connect, how many find nobody.
const UNREACHABLE: u8 = 5;

/// The end of a wire that is the server's.
const SERVER_END: usize = 0;

/// Every wire, and the chance of all of them.
#[derive(Clone)]
pub(crate) struct Network(Arc<Mutex<Inner>>);

struct Inner {
    chance: fastrand::Rng,
    wires: usize,
    /// The newest wire of each party.
    switches: BTreeMap<String, (usize, KillSwitch)>,
    legacy: BTreeSet<&'static str>,
    /// Whose wires to the server are slow.
    slow: Option<Slow>,
    is_calm: bool,
    history: History,
}

struct Slow {
    party: String,
    until: Instant,
    /// Whether results are on their way since.
    has_results: bool,
}

impl Network {
    pub(crate) fn new(seed: u64, legacy: BTreeSet<&'static str>, history: &History) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            chance: fastrand::Rng::with_seed(seed),
            wires: 0,
            switches: BTreeMap::new(),
            legacy,
            slow: None,
            is_calm: false,
            history: history.clone(),
        })))
    }

    /// What a party connects with.
    pub(crate) fn connector(&self, party: &str, site: &Site) -> Connector {
        let (network, party, site) = (self.clone(), party.to_owned(), site.clone());
        Arc::new(move || {
            let (network, party, site) = (network.clone(), party.clone(), site.clone());
            Box::pin(async move { network.connect(&party, &site).await })
        })
    }

    async fn connect(&self, party: &str, site: &Site) -> Result<Socket, DialError> {
        let takes = self.lock().takes();
        tokio::time::sleep(takes).await;
        let refused = || {
            let error = io::Error::from(io::ErrorKind::ConnectionRefused);
            DialError::Unreachable("the server".to_owned(), error)
        };
        let (near, far) = {
            let mut inner = self.lock();
            let is_lost = !inner.is_calm && inner.chance.u8(..100) < UNREACHABLE;
            if is_lost || !site.is_up() {
                return Err(refused());
            }
            inner.wires += 1;
            let (wire, is_legacy) = (inner.wires, inner.legacy.contains(party));
            let (near, far, switch) = pair_over(self.courier(wire, party, is_legacy));
            inner.switches.insert(party.to_owned(), (wire, switch));
            inner.history.push(What::Opened { wire, party: party.to_owned() });
            (near, far)
        };
        if site.accept(near) { Ok(far) } else { Err(refused()) }
    }

    /// Carries the frames of one wire, and writes them down.
    fn courier(&self, wire: usize, party: &str, is_legacy: bool) -> Courier {
        let (network, party) = (self.clone(), party.to_owned());
        Box::new(move |to, frame: &mut Frame| {
            let to_server = to == SERVER_END;
            if is_legacy && to_server {
                take_extension_out(frame);
            }
            let mut inner = network.lock();
            let takes = inner.takes_on(&party, to_server, frame);
            inner.history.push(What::Sent { wire, to_server, frame: frame.clone(), takes });
            takes
        })
    }

    /// What the wires do when the server dies: its end is noticed, or, with the whole machine, is not.
    pub(crate) fn lose_server(&self, with_machine: bool) {
        let switches: Vec<_> = self.lock().switches.values().cloned().collect();
        if with_machine {
            switches.iter().for_each(|(_, switch)| switch.swallow());
        }
    }

    /// Cuts the wire of a party.
    pub(crate) fn cut(&self, party: &str) {
        self.break_wire(party, "cut", KillSwitch::cut);
    }

    /// Makes the wire of a party a black hole, in one direction or both.
    pub(crate) fn swallow(&self, party: &str) {
        let which = self.lock().chance.u8(..3);
        match which {
            0 => self.break_wire(party, "dead", KillSwitch::swallow),
            1 => self.break_wire(party, "deaf at the server's end", |wire| {
                wire.swallow_to(SERVER_END);
            }),
            _ => self.break_wire(party, "deaf at the party's end", |wire| {
                wire.swallow_to(1 - SERVER_END);
            }),
        }
    }

    /// What a wire does when its party crashes: with the whole machine its end is not noticed; else it is, at once, or once
    /// all that is on its way has arrived.
    pub(crate) fn crash(&self, party: &str, with_machine: bool) {
        let is_cut = self.lock().chance.bool();
        match with_machine {
            true => self.break_wire(party, "dead", KillSwitch::swallow),
            false if is_cut => self.break_wire(party, "cut", KillSwitch::cut),
            false => self.break_wire(party, "left alone", |_| ()),
        }
    }

    /// Has nothing go to a party for now, or ends that.
    pub(crate) fn jam(&self, party: &str, is_jammed: bool) {
        let how = if is_jammed { "jammed" } else { "free again" };
        self.break_wire(party, how, |wire| wire.jam_to(1 - SERVER_END, is_jammed));
    }

    /// For a while what a party sends takes very long.
    pub(crate) fn slow_down(&self, party: &str, time: Duration) {
        let until = Instant::now() + time;
        self.lock().slow = Some(Slow { party: party.to_owned(), until, has_results: false });
    }

    /// Whether the party that was slowed down has sent results since.
    pub(crate) fn has_slow_results(&self) -> bool {
        self.lock().slow.as_ref().is_some_and(|slow| slow.has_results)
    }

    fn break_wire(&self, party: &str, how: &'static str, act: impl Fn(&KillSwitch)) {
        let inner = self.lock();
        if let Some((wire, switch)) = inner.switches.get(party) {
            inner.history.push(What::Broken { wire: *wire, how });
            let switch = switch.clone();
            drop(inner);
            act(&switch);
        }
    }

    /// From here on everybody can connect, and every wire is quick.
    pub(crate) fn calm(&self) {
        self.lock().is_calm = true;
    }

    /// Lets go of the wires, each of which has a hold on the network.
    pub(crate) fn forget_wires(&self) {
        let wires = std::mem::take(&mut self.lock().switches);
        drop(wires);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// How long the next frame on a wire of this party takes.
    fn takes_on(&mut self, party: &str, to_server: bool, frame: &Frame) -> Duration {
        let is_slow = |slow: &&mut Slow| slow.party == party && Instant::now() < slow.until;
        match self.slow.as_mut().filter(is_slow) {
            Some(slow) if to_server && !self.is_calm => {
                slow.has_results |=
                    said(to_server, frame).is_some_and(|said| said.kind == "command_results");
                Duration::from_millis(self.chance.u64(500..8000))
            }
            _ => self.takes(),
        }
    }

    /// How long the next frame takes: mostly little, now and then so long that what waits for it gives up.
    fn takes(&mut self) -> Duration {
        let millis = match self.chance.u8(..100) {
            _ if self.is_calm => self.chance.u64(..20),
            0..90 => self.chance.u64(..50),
            90..99 => self.chance.u64(..1000),
            _ => self.chance.u64(..15_000),
        };
        Duration::from_millis(millis)
    }
}

/// What a party asks for of the extension does not get to the server.
fn take_extension_out(frame: &mut Frame) {
    let Frame::Text(text) = frame else { return };
    let Ok(mut message) = serde_json::from_slice::<Value>(text) else { return };
    if message["type"] == "register"
        && let Some(metadata) = message["metadata"].as_object_mut()
    {
        metadata.remove("flightdeck");
        *frame = Frame::Text(message.to_string().into());
    }
}
