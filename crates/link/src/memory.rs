//! An in-memory connection for tests: two sockets that are each other's peer, and a switch that cuts
//! the wire or makes it a black hole, also in one direction. What is sent takes as long as the test says.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use aip::CloseCode;
use tokio::time::{Instant, Sleep};

use crate::socket::{Closed, Frame, Incoming, Socket};

/// Frames that fit one direction before its writer waits.
const CAPACITY: usize = 64;

/// Sees each frame, which it may change, and the end that it goes to, 0 or 1, and says how long it takes.
pub type Network = Box<dyn FnMut(usize, &mut Frame) -> Duration + Send>;

/// Two connected sockets and the switch of the wire between them. What is sent arrives at once.
#[must_use]
pub fn pair() -> (Socket, Socket, KillSwitch) {
    pair_over(Box::new(|_, _| Duration::ZERO))
}

/// The same over a network, where each frame takes its time. Frames of one direction stay in order.
#[must_use]
pub fn pair_over(network: Network) -> (Socket, Socket, KillSwitch) {
    let wire = Wire { network, directions: Default::default(), is_cut: false };
    let wire = Arc::new(Mutex::new(wire));
    let end = |me| {
        let wire = wire.clone();
        MemoryEnd { wire, me, heard: Instant::now(), max_message: usize::MAX, sleep: None }
    };
    (Socket::memory(end(0)), Socket::memory(end(1)), KillSwitch { wire: wire.clone() })
}

/// Breaks the wire of a pair.
#[derive(Clone)]
pub struct KillSwitch {
    wire: Arc<Mutex<Wire>>,
}

impl KillSwitch {
    /// Cuts the wire: what is on its way is lost, and both ends notice at once.
    pub fn cut(&self) {
        let mut wire = lock(&self.wire);
        wire.is_cut = true;
        let now = Instant::now();
        for direction in &mut wire.directions {
            direction.frames.retain(|(arrives, _)| *arrives <= now);
        }
        wire.wake_all();
    }

    /// Makes the wire a black hole: what is sent from now on vanishes, and neither end notices.
    pub fn swallow(&self) {
        self.swallow_to(0);
        self.swallow_to(1);
    }

    /// The same for what is sent to one end: 0 is the first socket of the pair, 1 the second.
    pub fn swallow_to(&self, end: usize) {
        lock(&self.wire).directions[end].swallows = true;
    }

    /// Has nothing go to one end for now, so that what is for it waits at its sender, as when a reader takes nothing; or
    /// ends that.
    pub fn jam_to(&self, end: usize, is_jammed: bool) {
        let mut wire = lock(&self.wire);
        wire.directions[end].is_jammed = is_jammed;
        wire.wake_all();
    }

    /// Whether the wire is cut.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        lock(&self.wire).is_cut
    }
}

struct Wire {
    network: Network,
    /// What goes to each end.
    directions: [Direction; 2],
    is_cut: bool,
}

/// What is on its way to one end.
#[derive(Default)]
struct Direction {
    frames: VecDeque<(Instant, Frame)>,
    /// Whether its sender has hung up: nothing follows.
    has_ended: bool,
    swallows: bool,
    /// Whether its sender has to wait.
    is_jammed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Wire {
    fn send(&mut self, to: usize, mut frame: Frame) {
        let arrives = Instant::now() + (self.network)(to, &mut frame);
        let direction = &mut self.directions[to];
        if direction.swallows {
            return;
        }
        // None overtakes another.
        let last = direction.frames.back().map_or(arrives, |(last, _)| *last);
        direction.frames.push_back((arrives.max(last), frame));
        if let Some(reader) = direction.reader.take() {
            reader.wake();
        }
    }

    fn wake_all(&mut self) {
        for direction in &mut self.directions {
            let sleepers = [direction.reader.take(), direction.writer.take()];
            sleepers.into_iter().flatten().for_each(Waker::wake);
        }
    }
}

/// What an end finds when it looks for the next frame.
enum Found {
    Frame(Frame),
    /// The next one arrives then.
    Later(Instant),
    Nothing,
    Ended(&'static str),
}

impl Direction {
    fn take(&mut self, is_cut: bool) -> Found {
        match self.frames.front() {
            Some((arrives, _)) if *arrives > Instant::now() => Found::Later(*arrives),
            Some(_) => {
                if let Some(writer) = self.writer.take() {
                    writer.wake();
                }
                self.frames.pop_front().map_or(Found::Nothing, |(_, frame)| Found::Frame(frame))
            }
            None if is_cut => Found::Ended("cut"),
            None if self.has_ended && !self.swallows => Found::Ended("the peer hung up"),
            None => Found::Nothing,
        }
    }
}

pub(crate) struct MemoryEnd {
    wire: Arc<Mutex<Wire>>,
    me: usize,
    heard: Instant,
    max_message: usize,
    /// Wakes the reader when the next frame arrives.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl MemoryEnd {
    pub(crate) fn heard(&self) -> Instant {
        self.heard
    }

    pub(crate) fn set_max_message(&mut self, bytes: usize) {
        self.max_message = bytes;
    }

    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        let mut wire = lock(&self.wire);
        if wire.is_cut {
            return Poll::Ready(Err(Closed::lost("cut")));
        }
        let direction = &mut wire.directions[1 - self.me];
        if direction.frames.len() < CAPACITY && !direction.is_jammed {
            return Poll::Ready(Ok(()));
        }
        direction.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    pub(crate) fn start_send(&mut self, frame: Frame) -> Result<(), Closed> {
        let mut wire = lock(&self.wire);
        if wire.is_cut {
            return Err(Closed::lost("cut"));
        }
        wire.send(1 - self.me, frame);
        Ok(())
    }

    pub(crate) fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Incoming> {
        loop {
            let found = {
                let mut wire = lock(&self.wire);
                let is_cut = wire.is_cut;
                let found = wire.directions[self.me].take(is_cut);
                if matches!(found, Found::Nothing | Found::Later(_)) {
                    wire.directions[self.me].reader = Some(cx.waker().clone());
                }
                found
            };
            match found {
                Found::Frame(frame) => {
                    if let Some(incoming) = self.read(frame) {
                        return Poll::Ready(incoming);
                    }
                }
                Found::Later(arrives) => {
                    if self.sleep_until(arrives, cx).is_pending() {
                        return Poll::Pending;
                    }
                }
                Found::Nothing => return Poll::Pending,
                Found::Ended(why) => return Poll::Ready(Incoming::Closed(Closed::lost(why))),
            }
        }
    }

    fn sleep_until(&mut self, arrives: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(arrives)));
        if sleep.deadline() != arrives {
            sleep.as_mut().reset(arrives);
        }
        sleep.as_mut().poll(cx)
    }

    fn read(&mut self, frame: Frame) -> Option<Incoming> {
        self.heard = Instant::now();
        match frame {
            Frame::Text(text) if text.len() > self.max_message => {
                let reason = format!("a message may have at most {} bytes", self.max_message);
                let closed = Closed { code: CloseCode::TOO_BIG, reason, by_us: true };
                Some(Incoming::Closed(closed))
            }
            Frame::Text(text) => Some(Incoming::Text(text)),
            Frame::Close(code, reason) => {
                Some(Incoming::Closed(Closed { code, reason, by_us: false }))
            }
            // As a WebSocket does: the pong is a sign of life and nothing else.
            Frame::Ping => {
                lock(&self.wire).send(1 - self.me, Frame::Pong);
                None
            }
            Frame::Pong => None,
        }
    }
}

impl Drop for MemoryEnd {
    fn drop(&mut self) {
        let mut wire = lock(&self.wire);
        wire.directions[1 - self.me].has_ended = true;
        wire.wake_all();
    }
}

fn lock(wire: &Mutex<Wire>) -> MutexGuard<'_, Wire> {
    wire.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    fn text(text: &'static str) -> Frame {
        Frame::Text(text.into())
    }

    async fn next(socket: &mut Socket) -> Incoming {
        poll_fn(|cx| socket.poll_recv(cx)).await
    }

    fn slow(seconds: u64) -> (Socket, Socket, KillSwitch) {
        pair_over(Box::new(move |_, _| Duration::from_secs(seconds)))
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_sent_takes_its_time_and_stays_in_order() {
        let mut delays = [3_u64, 1].into_iter();
        let network = move |_, _: &mut Frame| Duration::from_secs(delays.next().unwrap_or(0));
        let (mut near, mut far, _switch) = pair_over(Box::new(network));
        let start = Instant::now();
        near.start_send(text("a")).unwrap();
        near.start_send(text("b")).unwrap();
        assert_eq!(next(&mut far).await, Incoming::Text("a".into()));
        assert_eq!(start.elapsed().as_secs(), 3);
        assert_eq!(next(&mut far).await, Incoming::Text("b".into()));
        assert_eq!(start.elapsed().as_secs(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_loses_what_was_on_its_way() {
        let (mut near, mut far, switch) = slow(2);
        near.start_send(text("arrives")).unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        near.start_send(text("lost")).unwrap();
        switch.cut();
        assert_eq!(next(&mut far).await, Incoming::Text("arrives".into()));
        assert!(matches!(next(&mut far).await, Incoming::Closed(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_said_before_hanging_up_arrives_and_then_the_end() {
        let (mut near, mut far, _switch) = slow(2);
        near.start_send(Frame::Close(CloseCode::POLICY, "no".to_owned())).unwrap();
        drop(near);
        let Incoming::Closed(closed) = next(&mut far).await else { panic!() };
        assert_eq!(closed.code, CloseCode::POLICY);
        assert!(matches!(next(&mut far).await, Incoming::Closed(lost) if lost.code.0 == 1006));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_for_a_jammed_end_waits_at_its_sender() {
        let (mut near, mut far, switch) = slow(0);
        switch.jam_to(1, true);
        let mut sending = std::pin::pin!(poll_fn(|cx| near.poll_ready(cx)));
        let waited = tokio::time::timeout(Duration::from_secs(9), &mut sending).await;
        assert!(waited.is_err());
        switch.jam_to(1, false);
        sending.await.unwrap();
        near.start_send(text("comes")).unwrap();
        assert_eq!(next(&mut far).await, Incoming::Text("comes".into()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wire_can_be_dead_in_one_direction() {
        let (mut near, mut far, switch) = slow(0);
        switch.swallow_to(1);
        near.start_send(text("vanishes")).unwrap();
        far.start_send(text("comes")).unwrap();
        assert_eq!(next(&mut near).await, Incoming::Text("comes".into()));
        let waited = tokio::time::timeout(Duration::from_secs(9), next(&mut far)).await;
        assert!(waited.is_err());
    }
}
