//! The state machines of the pure core, simulated: more than a million steps under a seed, no
//! runtime, no real time, and a checker that reads the history.
//!
//! **The model.** A requester asks an executor over a link. The requester keeps its questions in
//! [`Pending`], each with a deadline, cancels some, watches the link with [`Liveness`] and comes back
//! with [`Backoff`]. The executor answers after a while, sometimes twice, sometimes never, sometimes
//! to a question that nobody asked, and over whichever connection there is by then. The link delays
//! frames, also past each other. Each connection ends in one of two ways: it is cut, which both ends
//! notice at once and which loses what is on its way; or it becomes a black hole, which swallows
//! everything until the silence is noticed.
//!
//! Time is a number that jumps to the next event. Events lie on a coarse grid, so that many fall on
//! the same instant; a timer then goes first, so that a reply at its deadline is late.
//!
//! **What is checked.** Each question is settled exactly once: by its reply, its deadline, a cancel
//! or a disconnect. Nothing is settled that was not asked, no late reply settles anything, no reply
//! is dropped while somebody waits for it, no entry is left behind. A black hole is noticed in time
//! and a living link never given up. No wait is over the cap, and after a success they start over.
//!
//! A failure prints its seed; `AIP_SIM_SEED=that` plays the same episode first.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::env;
use std::thread;
use std::time::{Duration, Instant};

use aip::machine::{Backoff, Liveness, Pending, Sign};
use fastrand::Rng;

const EPISODES: u64 = 600;
const STEPS: u64 = 2_000;

/// The grid on which events lie.
const TICK: Duration = Duration::from_millis(100);
const CAPACITY: usize = 16;
const PING_EVERY: Duration = Duration::from_secs(20);
const TIMEOUT: Duration = Duration::from_secs(60);
const BACKOFF_BASE: Duration = Duration::from_secs(1);
const BACKOFF_CAP: Duration = Duration::from_secs(60);

#[test]
fn every_question_is_settled_once_whatever_the_link_does() {
    let first =
        env::var("AIP_SIM_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    let mut tally = Tally::default();
    for seed in (0..EPISODES).map(|n| first.wrapping_add(n)) {
        let _guard = SaysSeed(seed);
        Checker::read(&World::play(seed), &mut tally).unwrap();
    }
    let _guard = SaysSeed(first);
    tally.assert_that_everything_happened();
}

#[test]
fn the_same_seed_plays_the_same_episode() {
    assert_eq!(World::play(7), World::play(7));
    assert_ne!(World::play(7), World::play(8));
}

#[test]
fn a_question_is_not_lost_when_its_id_is_used_again() {
    let now = Instant::now();
    let mut pending = Pending::new(CAPACITY);
    pending.insert("R", 1, now + TIMEOUT).unwrap();
    let again = pending.insert("R", 2, now + TIMEOUT);
    assert!(again.is_err(), "the first one is gone in silence: {:?}", pending.take("R"));
}

/// Prints the seed of the episode that panics.
struct SaysSeed(u64);

impl Drop for SaysSeed {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("to see this again: AIP_SIM_SEED={}", self.0);
        }
    }
}

// --- The world ---

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The requester asks something, and again later, as long as this connection lasts.
    Ask { connection: u64 },
    /// The requester is no longer interested.
    Cancel { id: u64 },
    /// The executor has an answer.
    Answer { id: u64 },
    /// A frame comes out of the link.
    Arrive { connection: u64, frame: Frame },
    /// The connection breaks.
    Cut,
    /// The connection becomes a black hole.
    Swallow,
    /// The requester tries to connect.
    Connect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Frame {
    Question { id: u64 },
    Reply { id: u64 },
    Ping,
    Pong,
}

struct World {
    rng: Rng,
    start: Instant,
    now: Instant,
    events: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    scheduled: u64,
    history: Vec<Record>,

    /// The number of the latest connection.
    connection: u64,
    swallows: bool,

    next_id: u64,
    /// What was asked, by its id; the value is made from the id, so that a mix-up shows.
    pending: Pending<u64, u64>,
    /// Present while connected, as far as the requester knows.
    liveness: Option<Liveness>,
    backoff: Backoff,
}

impl World {
    /// Plays one episode.
    fn play(seed: u64) -> Vec<Record> {
        let mut world = Self::new(seed, Instant::now());
        world.at(world.start, Event::Connect);
        for _ in 0..STEPS {
            world.step();
        }
        world.end();
        world.history
    }

    fn new(seed: u64, start: Instant) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            start,
            now: start,
            events: BinaryHeap::new(),
            scheduled: 0,
            history: Vec::new(),
            connection: 0,
            swallows: false,
            next_id: 0,
            pending: Pending::new(CAPACITY),
            liveness: None,
            backoff: Backoff::new(BACKOFF_BASE, BACKOFF_CAP),
        }
    }

    /// Goes to whatever happens next: a timer, or else an event.
    fn step(&mut self) {
        let event = self.events.peek().map(|Reverse((at, ..))| *at);
        match self.next_timer() {
            Some(timer) if event.is_none_or(|event| timer <= event) => {
                self.now = timer;
                self.handle_timers();
            }
            _ => {
                let Reverse((at, _, event)) = self.events.pop().unwrap();
                self.now = at;
                self.handle_event(event);
            }
        }
    }

    /// Ends the episode: by a disconnect, or by waiting until nothing is open (for so long).
    fn end(&mut self) {
        if self.rng.bool() {
            self.disconnect();
        }
        for _ in 0..STEPS {
            if self.pending.is_empty() {
                break;
            }
            self.step();
        }
        let left = self.pending.len() + usize::from(self.pending.next_deadline().is_some());
        self.record(What::Ended { left });
    }

    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Ask { connection } if connection == self.connection => self.ask(),
            Event::Ask { .. } => {}
            Event::Cancel { id } => self.settle(id, How::Cancel),
            Event::Answer { id } => self.send(Frame::Reply { id }),
            Event::Arrive { connection, frame } if self.carries(connection) => self.receive(frame),
            Event::Arrive { .. } => {}
            Event::Cut => {
                self.record(What::Cut);
                self.disconnect();
            }
            Event::Swallow => {
                self.swallows = true;
                self.record(What::Swallowed);
            }
            Event::Connect => self.connect(),
        }
    }

    fn record(&mut self, what: What) {
        self.history.push(Record { at: self.now - self.start, what });
    }

    fn at(&mut self, at: Instant, event: Event) {
        self.scheduled += 1;
        self.events.push(Reverse((at, self.scheduled, event)));
    }

    /// Lets something happen within the next `seconds`.
    fn within(&mut self, seconds: u32, event: Event) {
        let at = self.now + self.some_time(seconds);
        self.at(at, event);
    }

    fn some_time(&mut self, seconds: u32) -> Duration {
        TICK * self.rng.u32(0..=seconds * 10)
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.rng.u32(0..n) == 0
    }
}

/// The link.
impl World {
    fn carries(&self, connection: u64) -> bool {
        self.liveness.is_some() && self.connection == connection && !self.swallows
    }

    fn send(&mut self, frame: Frame) {
        let connection = self.connection;
        if self.carries(connection) {
            self.within(2, Event::Arrive { connection, frame });
        }
    }

    fn receive(&mut self, frame: Frame) {
        match frame {
            Frame::Question { id } => self.work_on(id),
            Frame::Ping => self.send(Frame::Pong),
            Frame::Reply { id } => {
                self.hear();
                self.settle(id, How::Reply);
            }
            Frame::Pong => self.hear(),
        }
    }
}

/// The executor.
impl World {
    /// Answers once, twice, never, or something that nobody asked.
    fn work_on(&mut self, id: u64) {
        let answers = self.rng.choice([0, 1, 1, 1, 2]).unwrap();
        for _ in 0..answers {
            self.within(30, Event::Answer { id });
        }
        if self.one_in(20) {
            let id = self.rng.u64(..);
            self.within(30, Event::Answer { id });
        }
    }
}

/// The requester.
impl World {
    fn next_timer(&self) -> Option<Instant> {
        let silence = self.liveness.as_ref().map(Liveness::deadline);
        self.pending.next_deadline().into_iter().chain(silence).min()
    }

    fn handle_timers(&mut self) {
        let expired = self.pending.take_expired(self.now);
        self.record_settled(expired, How::Deadline);
        let now = self.now;
        match self.liveness.as_mut().map(|liveness| liveness.poll_sign(now)) {
            None | Some(Sign::Fine) => {}
            Some(Sign::Ping) => self.send(Frame::Ping),
            Some(Sign::Dead) => {
                self.record(What::GaveUp);
                self.disconnect();
            }
        }
    }

    fn hear(&mut self) {
        if let Some(liveness) = &mut self.liveness {
            liveness.handle_bytes(self.now);
        }
    }

    fn ask(&mut self) {
        let id = self.next_id;
        self.next_id += 1;
        let deadline = self.now + self.some_time(40);
        match self.pending.insert(id, value_of(id), deadline) {
            Ok(()) => {
                self.record(What::Asked { id, deadline: deadline - self.start });
                self.send(Frame::Question { id });
                if self.one_in(8) {
                    self.within(40, Event::Cancel { id });
                }
            }
            Err(_) => self.record(What::Refused),
        }
        let connection = self.connection;
        let pause = if self.one_in(20) { 200 } else { 2 };
        self.within(pause, Event::Ask { connection });
    }

    fn settle(&mut self, id: u64, how: How) {
        match self.pending.take(&id) {
            Some(value) => self.record(What::Settled { id, value, how }),
            None => self.record(What::TooLate { id }),
        }
    }

    fn connect(&mut self) {
        if !self.one_in(4) {
            return self.wait();
        }
        self.record(What::Connected);
        self.backoff.reset();
        self.connection += 1;
        self.swallows = false;
        self.liveness = Some(Liveness::new(PING_EVERY, TIMEOUT, self.now));
        self.within(2, Event::Ask { connection: self.connection });
        let fate = if self.rng.bool() { Event::Cut } else { Event::Swallow };
        self.within(600, fate);
    }

    fn disconnect(&mut self) {
        self.liveness = None;
        let lost = self.pending.take_all().collect();
        self.record_settled(lost, How::Disconnect);
        self.wait();
    }

    /// In the order of their ids, so that a seed always gives the same history.
    fn record_settled(&mut self, mut entries: Vec<(u64, u64)>, how: How) {
        entries.sort_unstable();
        for (id, value) in entries {
            self.record(What::Settled { id, value, how });
        }
    }

    fn wait(&mut self) {
        let any = self.rng.f64();
        let chance = self.rng.choice([0.0, any, 1.0]).unwrap();
        let wait = self.backoff.next_wait(chance);
        self.record(What::Waits(wait));
        self.at(self.now + wait, Event::Connect);
    }
}

fn value_of(id: u64) -> u64 {
    !id
}

// --- The history ---

/// Times are counted from the start of the episode.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Record {
    at: Duration,
    what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Asked {
        id: u64,
        deadline: Duration,
    },
    /// The table was full.
    Refused,
    Settled {
        id: u64,
        value: u64,
        how: How,
    },
    /// A reply or a cancel found nothing to settle.
    TooLate {
        id: u64,
    },
    Connected,
    Cut,
    Swallowed,
    /// The requester closed the connection, because of its silence.
    GaveUp,
    Waits(Duration),
    /// With so many entries that nobody will settle.
    Ended {
        left: usize,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum How {
    Reply,
    Deadline,
    Cancel,
    Disconnect,
}

// --- The checker ---

#[derive(Default)]
struct Checker {
    /// The deadline of each open question.
    open: HashMap<u64, Duration>,
    settled: HashMap<u64, How>,
    swallowed: Option<Duration>,
    waits: u32,
}

/// What happened how often, over all episodes: a check that never had anything to check is none.
#[derive(Default)]
struct Tally {
    settled: HashMap<How, u64>,
    too_late: u64,
    refused: u64,
    given_up: u64,
    longest_waits: u64,
}

impl Checker {
    fn read(history: &[Record], tally: &mut Tally) -> Result<(), String> {
        let mut checker = Self::default();
        for record in history {
            checker.see(record, tally).map_err(|complaint| format!("{complaint}: {record:?}"))?;
        }
        Ok(())
    }

    fn see(&mut self, Record { at, what }: &Record, tally: &mut Tally) -> Result<(), &'static str> {
        let noticed = self.swallowed.is_none_or(|since| *at <= since + TIMEOUT + PING_EVERY);
        ensure(noticed, "a black hole was not noticed in time")?;
        match what {
            What::Asked { id, deadline } => self.see_asked(*id, *deadline),
            What::Refused => {
                tally.refused += 1;
                ensure(self.open.len() == CAPACITY, "refused although there was room")
            }
            What::Settled { id, value, how } => {
                *tally.settled.entry(*how).or_default() += 1;
                self.see_settled(*at, *id, *value, *how)
            }
            What::TooLate { id } => {
                tally.too_late += u64::from(self.settled.contains_key(id));
                ensure(!self.open.contains_key(id), "dropped although somebody waited")
            }
            What::Connected => {
                (self.waits, self.swallowed) = (0, None);
                Ok(())
            }
            What::Cut => ensure(self.swallowed.is_none(), "a black hole was cut"),
            What::Swallowed => {
                self.swallowed = Some(*at);
                Ok(())
            }
            What::GaveUp => {
                tally.given_up += 1;
                ensure(self.swallowed.take().is_some(), "a living link was given up")
            }
            What::Waits(wait) => {
                tally.longest_waits += u64::from(*wait == BACKOFF_CAP);
                self.see_wait(*wait)
            }
            What::Ended { left } => {
                ensure(*left == 0 && self.open.is_empty(), "an entry was left behind")
            }
        }
    }

    fn see_asked(&mut self, id: u64, deadline: Duration) -> Result<(), &'static str> {
        let is_new = self.open.insert(id, deadline).is_none() && !self.settled.contains_key(&id);
        ensure(is_new, "asked twice")?;
        ensure(self.open.len() <= CAPACITY, "over the bound")
    }

    fn see_settled(
        &mut self,
        at: Duration,
        id: u64,
        value: u64,
        how: How,
    ) -> Result<(), &'static str> {
        ensure(self.settled.insert(id, how).is_none(), "settled twice")?;
        let deadline = self.open.remove(&id).ok_or("settled but never asked")?;
        ensure(value == value_of(id), "mixed up with another")?;
        match how {
            How::Deadline => ensure(at == deadline, "expired at another time than its deadline"),
            How::Disconnect => ensure(at <= deadline, "settled after its deadline"),
            How::Reply | How::Cancel => ensure(at < deadline, "settled after its deadline"),
        }
    }

    /// The n-th wait since the last success is at most the n-th doubling, and never over the cap.
    fn see_wait(&mut self, wait: Duration) -> Result<(), &'static str> {
        let most = BACKOFF_BASE * 2_u32.pow(self.waits.min(10));
        self.waits += 1;
        ensure(wait <= most.min(BACKOFF_CAP), "waits too long")
    }
}

impl Tally {
    fn assert_that_everything_happened(&self) {
        for how in [How::Reply, How::Deadline, How::Cancel, How::Disconnect] {
            assert!(self.settled.get(&how).is_some_and(|n| *n > 1000), "{how:?}");
        }
        let rare = [self.too_late, self.refused, self.given_up, self.longest_waits];
        assert!(rare.iter().all(|n| *n > 20), "{rare:?}");
    }
}

fn ensure(holds: bool, complaint: &'static str) -> Result<(), &'static str> {
    if holds { Ok(()) } else { Err(complaint) }
}

#[test]
fn the_checker_complains() {
    let complaint = |history: &[(u64, What)]| {
        let record =
            |(at, what): &(u64, What)| Record { at: Duration::from_secs(*at), what: what.clone() };
        let history: Vec<Record> = history.iter().map(record).collect();
        Checker::read(&history, &mut Tally::default()).unwrap_err()
    };
    let asked = || (0, What::Asked { id: 1, deadline: Duration::from_secs(5) });
    let settled = |at, how| (at, What::Settled { id: 1, value: value_of(1), how });
    let cases: [(&[(u64, What)], &str); 11] = [
        (&[asked(), (9, What::Ended { left: 0 })], "an entry was left behind"),
        (&[(0, What::Ended { left: 1 })], "an entry was left behind"),
        (&[settled(1, How::Reply)], "settled but never asked"),
        (&[asked(), settled(1, How::Reply), settled(2, How::Cancel)], "settled twice"),
        (&[asked(), settled(5, How::Reply)], "settled after its deadline"),
        (&[asked(), settled(6, How::Deadline)], "expired at another time"),
        (&[asked(), (1, What::TooLate { id: 1 })], "dropped although somebody waited"),
        (&[(0, What::Refused)], "refused although there was room"),
        (&[(0, What::Swallowed), (81, What::GaveUp)], "not noticed in time"),
        (&[(0, What::GaveUp)], "a living link was given up"),
        (&[(0, What::Waits(2 * BACKOFF_BASE))], "waits too long"),
    ];
    for (history, expected) in cases {
        let complaint = complaint(history);
        assert!(complaint.contains(expected), "{expected}: {complaint}");
    }
}
