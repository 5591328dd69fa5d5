//! The streams of one task, as its requester has them: output in order and whole, and input until it is taken. Pure:
//! what is to be said is returned.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use aip::message::{
    Channel, Chunk, Data, Downstream, Input, InputTaken, MAX_CHUNK_BYTES, MAX_WINDOW_BYTES,
    OutputTaken, Streams,
};
use bytes::Bytes;

/// Chunks after which the device is told that they were dealt with, however small they are: it keeps each until then.
const TOLD_AFTER: u32 = 64;

/// Least time between two repeats of the same input.
const REPEAT_PAUSE: Duration = Duration::from_secs(1);

/// After how long input that was not taken is said again unasked: a connection may have lost it of which only the server
/// and the device know. Each time it is twice as long, since most commands that take nothing are merely slow.
const UNTAKEN_PAUSES: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(64)];

/// Some output of a task's command, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The number of the step whose command wrote it.
    pub step: u32,
    /// Which stream.
    pub channel: Channel,
    /// How many bytes in front of these nobody has any more.
    pub lost: u64,
    /// The bytes; none at the end of a stream.
    pub bytes: Bytes,
    /// Up to which offset they go.
    end: u64,
    is_end: bool,
}

impl Output {
    /// Where it stands, without its bytes.
    pub(crate) const fn position(&self) -> Self {
        Self { bytes: Bytes::new(), ..*self }
    }

    /// Whether it is the end of a stream of this step.
    pub(crate) const fn is_end_of(&self, step: u32) -> bool {
        self.is_end && self.step == step
    }

    /// Joins what follows at once, if it does.
    pub(crate) fn join(&mut self, next: Self) -> Option<Self> {
        let follows = next.step == self.step && next.channel == self.channel && next.lost == 0;
        if !follows || self.bytes.len() + next.bytes.len() > MAX_CHUNK_BYTES {
            return Some(next);
        }
        let mut joined = Vec::from(std::mem::take(&mut self.bytes));
        joined.extend_from_slice(&next.bytes);
        self.bytes = joined.into();
        (self.end, self.is_end) = (next.end, next.is_end);
        None
    }
}

/// How far the output of a task is read.
#[derive(Debug)]
pub(crate) struct Reading {
    window: u64,
    /// The step whose output comes.
    step: u32,
    sides: [Side; 2],
}

#[derive(Debug, Default)]
struct Side {
    /// Up to where it was taken in.
    at: u64,
    /// Up to where it was dealt with.
    done: u64,
    /// Up to where the device was told that it was.
    told: u64,
    /// How many times something was dealt with since.
    untold: u32,
    /// How much nobody has any more in front of what comes next.
    lost: u64,
    /// Whether it was asked for again since it last came on.
    has_asked: bool,
}

impl Reading {
    pub(crate) fn new(streams: Streams) -> Self {
        let window = if streams.window.is_some() { streams.window() } else { MAX_WINDOW_BYTES };
        Self { window: window.into(), step: 0, sides: Default::default() }
    }

    /// Takes a chunk in. Returns what is new of it, and what is to be said. Where there is no `room`, it is to come again.
    pub(crate) fn take(
        &mut self,
        step: u32,
        chunk: &Chunk,
        has_room: bool,
    ) -> (Option<Output>, Option<Downstream>) {
        if step > self.step {
            (self.step, self.sides) = (step, Default::default());
        }
        let side = &mut self.sides[chunk.stream as usize];
        let bytes = chunk.data.to_bytes().filter(|_| step == self.step);
        let Some(bytes) = bytes else { return (None, None) };
        if chunk.offset > side.at && chunk.held > side.at {
            let held = chunk.held.min(chunk.offset);
            side.lost += held - side.at;
            side.at = held;
        }
        let is_dealt_with = chunk.offset + (bytes.len() as u64) <= side.at && !bytes.is_empty();
        if chunk.offset < side.at || is_dealt_with {
            return (None, Some(self.told(false)));
        }
        if chunk.offset > side.at || !has_room {
            let is_first = !std::mem::replace(&mut side.has_asked, true);
            return (None, (is_first && has_room).then(|| self.told(true)));
        }
        side.has_asked = false;
        side.at += bytes.len() as u64;
        let (channel, end, is_end) = (chunk.stream, side.at, chunk.end);
        let lost = std::mem::take(&mut side.lost);
        (Some(Output { step, channel, lost, bytes, end, is_end }), None)
    }

    /// Some output was dealt with. Returns what is to be said of it; if another end `follows` that is there already,
    /// one word is for both.
    pub(crate) fn done(&mut self, output: &Output, follows: bool) -> Option<Downstream> {
        let side = &mut self.sides[output.channel as usize];
        if output.step != self.step {
            return None;
        }
        side.done = side.done.max(output.end);
        side.untold += 1;
        let again = side.has_asked;
        // At least each half window; sooner, so that the device does not run dry meanwhile.
        let is_much = side.done - side.told >= self.window / 4 || side.untold >= TOLD_AFTER;
        (is_much || output.is_end && !follows || again).then(|| self.told(again))
    }

    /// Says up to where all was dealt with; `None` before anything came.
    pub(crate) fn again(&mut self) -> Option<Downstream> {
        (self.step > 0).then(|| self.told(true))
    }

    fn told(&mut self, again: bool) -> Downstream {
        let [stdout, stderr] = self.sides.each_mut().map(|side| {
            (side.told, side.untold) = (side.done, 0);
            Some(side.done)
        });
        Downstream::Taken(OutputTaken { step: self.step, stdout, stderr, again })
    }
}

/// The input of a task, until it is taken.
#[derive(Debug)]
pub(crate) struct Feeding {
    window: u64,
    /// The step whose command reads it, once one does.
    step: Option<u32>,
    /// What was not taken, oldest first.
    kept: VecDeque<Input>,
    n: u64,
    sent: u64,
    taken: u64,
    has_end: bool,
    is_closed: bool,
    repeated_at: Option<Instant>,
    /// When it is said again unasked, and how long was waited for that.
    repeat_at: Option<Instant>,
    pause: Duration,
}

impl Feeding {
    pub(crate) fn new(streams: Streams) -> Self {
        let window = streams.window().into();
        Self {
            window,
            step: None,
            kept: VecDeque::new(),
            n: 0,
            sent: 0,
            taken: 0,
            has_end: false,
            is_closed: false,
            repeated_at: None,
            repeat_at: None,
            pause: UNTAKEN_PAUSES[0],
        }
    }

    /// Whether nobody reads it any more.
    pub(crate) const fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// How many bytes may be sent now.
    pub(crate) fn room(&self) -> usize {
        let room = (self.taken + self.window).saturating_sub(self.sent);
        let room = if self.step.is_some() && !self.has_end { room } else { 0 };
        usize::try_from(room).unwrap_or(MAX_CHUNK_BYTES).min(MAX_CHUNK_BYTES)
    }

    /// Sends so many bytes as there is room for, or the end.
    pub(crate) fn push(&mut self, bytes: &[u8], end: bool, now: Instant) -> Option<Downstream> {
        let step = self.step.filter(|_| !self.is_closed && !self.has_end)?;
        let input = Input { step, n: self.n, offset: self.sent, data: Data::of(bytes), end };
        self.n += 1;
        self.sent += bytes.len() as u64;
        self.has_end = end;
        self.kept.push_back(input.clone());
        self.repeat_at.get_or_insert(now + self.pause);
        Some(Downstream::Input(input))
    }

    /// The command has taken input. Returns what is to be said again, where it seems to be lost.
    pub(crate) fn taken(&mut self, step: u32, taken: &InputTaken, now: Instant) -> Vec<Downstream> {
        self.step = Some(step);
        self.is_closed |= taken.closed;
        let is_progress = taken.stdin > self.taken;
        if taken.stdin <= self.sent {
            self.taken = self.taken.max(taken.stdin);
        }
        let is_taken = |input: &Input| {
            let length = input.data.len().unwrap_or(0);
            input.offset + length <= self.taken && length > 0
        };
        while self.kept.front().is_some_and(is_taken) {
            self.kept.pop_front();
        }
        if self.is_closed {
            self.kept.clear();
        }
        if is_progress {
            self.pause = UNTAKEN_PAUSES[0];
            self.repeat_at = Some(now + self.pause);
        }
        self.repeat_at = self.repeat_at.filter(|_| !self.kept.is_empty());
        let is_soon = self.repeated_at.is_some_and(|at| now < at + REPEAT_PAUSE);
        if is_progress || self.kept.is_empty() || is_soon {
            self.repeated_at.get_or_insert(now);
            return Vec::new();
        }
        self.repeated_at = Some(now);
        self.repeat()
    }

    /// When [`Self::repeat_due`] has something.
    pub(crate) const fn repeat_at(&self) -> Option<Instant> {
        self.repeat_at
    }

    /// What has not been taken for so long that it is said again.
    pub(crate) fn repeat_due(&mut self, now: Instant) -> Vec<Downstream> {
        if self.repeat_at.is_none_or(|at| now < at) {
            return Vec::new();
        }
        self.pause = (self.pause * 2).min(UNTAKEN_PAUSES[1]);
        (self.repeat_at, self.repeated_at) = (Some(now + self.pause), Some(now));
        self.repeat()
    }

    /// All that was not taken, to be said again.
    pub(crate) fn repeat(&self) -> Vec<Downstream> {
        self.kept.iter().cloned().map(Downstream::Input).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn streams(window: u32) -> Streams {
        Streams { output: true, input: true, spool: false, window: Some(window) }
    }

    fn chunk(offset: u64, held: u64, bytes: &[u8], end: bool) -> Chunk {
        let (stream, data) = (Channel::Stdout, Data::of(bytes));
        Chunk { call_id: None, stream, n: 0, offset, held, data, end }
    }

    fn said(stdout: u64, again: bool) -> Option<Downstream> {
        let (stdout, stderr) = (Some(stdout), Some(0));
        Some(Downstream::Taken(OutputTaken { step: 1, stdout, stderr, again }))
    }

    #[test]
    fn output_is_taken_in_order_once_and_acknowledged_once_it_is_dealt_with() {
        let mut reading = Reading::new(streams(16_384));
        let (first, nothing) = reading.take(1, &chunk(0, 0, &[b'x'; 4000], false), true);
        assert_eq!(nothing, None);
        // Not a quarter of a window yet.
        assert_eq!(reading.done(&first.unwrap(), false), None);
        let (none, again) = reading.take(1, &chunk(0, 0, &[b'x'; 4000], false), true);
        assert_eq!((none, again), (None, said(4000, false)), "a repeat is acknowledged again");
        let (gap, again) = reading.take(1, &chunk(5000, 0, b"y", false), true);
        assert_eq!((gap, again), (None, said(4000, true)));
        let (gap, again) = reading.take(1, &chunk(5001, 0, b"y", false), true);
        assert_eq!((gap, again), (None, None), "once until it comes on");
        let (second, _) = reading.take(1, &chunk(4000, 0, &[b'y'; 4096], false), true);
        assert_eq!(reading.done(&second.unwrap(), false), said(8096, false));
        let (end, _) = reading.take(1, &chunk(8096, 0, b"", true), true);
        let end = end.unwrap();
        assert_eq!(reading.done(&end, true), None, "the other stream's end is there already");
        assert_eq!(reading.done(&end, false), said(8096, false), "so is the end");
    }

    #[test]
    fn many_small_chunks_are_acknowledged_before_they_are_much() {
        let mut reading = Reading::new(streams(1 << 20));
        let mut dealt_with = |offset| {
            let (output, _) = reading.take(1, &chunk(offset, 0, b"x", false), true);
            reading.done(&output.unwrap(), false)
        };
        let last = u64::from(TOLD_AFTER) - 1;
        assert!((0..last).all(|offset| dealt_with(offset).is_none()));
        assert_eq!(dealt_with(last), said(last + 1, false));
    }

    #[test]
    fn what_nobody_has_any_more_is_counted_as_lost() {
        let mut reading = Reading::new(streams(8192));
        // It says so only with what comes behind it.
        assert_eq!(reading.take(1, &chunk(950, 900, b"later", false), true).0, None);
        let (output, _) = reading.take(1, &chunk(900, 900, b"late", false), true);
        let output = output.unwrap();
        assert_eq!((output.lost, &*output.bytes), (900, b"late".as_slice()));
        assert_eq!(reading.again(), said(0, true));
        reading.done(&output, false);
        assert_eq!(reading.again(), said(904, true));
    }

    #[test]
    fn what_finds_no_room_is_asked_for_once_there_is_some() {
        let mut reading = Reading::new(streams(8192));
        let (first, _) = reading.take(1, &chunk(0, 0, b"one", false), true);
        let (none, nothing) = reading.take(1, &chunk(3, 0, b"two", false), false);
        assert_eq!((none, nothing), (None, None));
        assert_eq!(reading.done(&first.unwrap(), false), said(3, true));
    }

    #[test]
    fn the_next_step_has_streams_of_its_own() {
        let mut reading = Reading::new(streams(8192));
        reading.take(1, &chunk(0, 0, b"one", true), true);
        assert!(reading.take(2, &chunk(0, 0, b"two", false), true).0.is_some());
        assert_eq!(reading.take(1, &chunk(3, 0, b"old", false), true), (None, None));
    }

    #[test]
    fn input_goes_within_its_window_and_again_where_it_seems_lost() {
        let (mut feeding, now) = (Feeding::new(streams(4096)), Instant::now());
        assert_eq!(
            (feeding.room(), feeding.push(b"x", false, now)),
            (0, None),
            "nobody reads it yet"
        );
        let at = |stdin, closed| InputTaken { call_id: None, stdin, closed };
        assert_eq!(feeding.taken(1, &at(0, false), now), []);
        assert_eq!(feeding.room(), 4096);
        let first = feeding.push(&[b'x'; 4000], false, now).unwrap();
        let second = feeding.push(&[b'y'; 96], true, now).unwrap();
        assert_eq!(feeding.room(), 0);
        assert_eq!(feeding.taken(1, &at(4000, false), now), [], "it comes on");
        assert_eq!(feeding.repeat(), std::slice::from_ref(&second));
        let later = now + REPEAT_PAUSE;
        assert_eq!(feeding.taken(1, &at(4000, false), later), [second]);
        assert_eq!(feeding.taken(1, &at(4000, false), later), [], "not more than once a second");
        assert_ne!(first, feeding.repeat()[0]);
        feeding.taken(1, &at(4096, true), later);
        assert!(feeding.is_closed() && feeding.repeat().is_empty());
    }

    #[test]
    fn input_that_is_not_taken_is_said_again_unasked_more_and_more_rarely() {
        let (mut feeding, now) = (Feeding::new(streams(4096)), Instant::now());
        let at = |stdin| InputTaken { call_id: None, stdin, closed: false };
        assert_eq!(feeding.taken(1, &at(0), now), []);
        assert_eq!(feeding.repeat_at(), None, "nothing was said");
        feeding.push(b"one", false, now).unwrap();
        let two = feeding.push(b"two", false, now).unwrap();
        // The device comes back, and has taken a part that nobody had heard of; the rest was lost on the way.
        let later = now + Duration::from_secs(1);
        assert_eq!(feeding.taken(1, &at(3), later), []);
        let mut due = feeding.repeat_at().unwrap();
        assert_eq!((feeding.repeat_due(later), due - later), (Vec::new(), UNTAKEN_PAUSES[0]));
        let mut pauses = Vec::new();
        for _ in 0..7 {
            assert_eq!(feeding.repeat_due(due), std::slice::from_ref(&two));
            let next = feeding.repeat_at().unwrap();
            pauses.push((next - due).as_secs());
            due = next;
        }
        assert_eq!(pauses, [4, 8, 16, 32, 64, 64, 64]);
        assert_eq!(feeding.taken(1, &at(6), due), []);
        assert_eq!(feeding.repeat_at(), None, "it was taken");
        feeding.push(b"three", false, due).unwrap();
        assert_eq!(feeding.repeat_at(), Some(due + UNTAKEN_PAUSES[0]));
    }
}
