//! An in-memory connection for tests: two sockets that are each other's peer, and a switch that cuts
//! the wire or makes it a black hole.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use aip::CloseCode;
use tokio::time::Instant;

use crate::socket::{Closed, Frame, Incoming, Socket};

/// Frames that fit one direction before its writer waits.
const CAPACITY: usize = 64;

/// Two connected sockets and the switch of the wire between them.
#[must_use]
pub fn pair() -> (Socket, Socket, KillSwitch) {
    let wire = Arc::new(Mutex::new(Wire::default()));
    let end =
        |me| MemoryEnd { wire: wire.clone(), me, heard: Instant::now(), max_message: usize::MAX };
    (Socket::memory(end(0)), Socket::memory(end(1)), KillSwitch { wire: wire.clone() })
}

/// Breaks the wire of a [`pair`].
#[derive(Clone)]
pub struct KillSwitch {
    wire: Arc<Mutex<Wire>>,
}

impl KillSwitch {
    /// Cuts the wire: both ends notice at once.
    pub fn cut(&self) {
        let mut wire = lock(&self.wire);
        wire.cut = true;
        wire.wake_all();
    }

    /// Makes the wire a black hole: what is sent from now on vanishes, and neither end notices.
    pub fn swallow(&self) {
        lock(&self.wire).swallows = true;
    }
}

#[derive(Default)]
struct Wire {
    /// What is on its way to each end.
    to: [VecDeque<Frame>; 2],
    readers: [Option<Waker>; 2],
    writers: [Option<Waker>; 2],
    cut: bool,
    swallows: bool,
}

impl Wire {
    fn wake_all(&mut self) {
        let sleepers = self.readers.iter_mut().chain(&mut self.writers).filter_map(Option::take);
        sleepers.for_each(Waker::wake);
    }
}

pub(crate) struct MemoryEnd {
    wire: Arc<Mutex<Wire>>,
    me: usize,
    heard: Instant,
    max_message: usize,
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
        if wire.cut {
            return Poll::Ready(Err(Closed::lost("cut")));
        }
        if wire.to[1 - self.me].len() < CAPACITY {
            return Poll::Ready(Ok(()));
        }
        wire.writers[self.me] = Some(cx.waker().clone());
        Poll::Pending
    }

    pub(crate) fn start_send(&mut self, frame: Frame) -> Result<(), Closed> {
        let mut wire = lock(&self.wire);
        if wire.cut {
            return Err(Closed::lost("cut"));
        }
        if !wire.swallows {
            wire.to[1 - self.me].push_back(frame);
            if let Some(reader) = wire.readers[1 - self.me].take() {
                reader.wake();
            }
        }
        Ok(())
    }

    pub(crate) fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Incoming> {
        let mut wire = lock(&self.wire);
        while let Some(frame) = wire.to[self.me].pop_front() {
            self.heard = Instant::now();
            if let Some(writer) = wire.writers[1 - self.me].take() {
                writer.wake();
            }
            match frame {
                Frame::Text(text) if text.len() > self.max_message => {
                    let reason = format!("a message may have at most {} bytes", self.max_message);
                    let closed = Closed { code: CloseCode::TOO_BIG, reason, by_us: true };
                    return Poll::Ready(Incoming::Closed(closed));
                }
                Frame::Text(text) => return Poll::Ready(Incoming::Text(text)),
                Frame::Close(code, reason) => {
                    let closed = Closed { code, reason, by_us: false };
                    return Poll::Ready(Incoming::Closed(closed));
                }
                // As a WebSocket does: the pong is a sign of life and nothing else.
                Frame::Ping if !wire.swallows => {
                    wire.to[1 - self.me].push_back(Frame::Pong);
                    if let Some(reader) = wire.readers[1 - self.me].take() {
                        reader.wake();
                    }
                }
                Frame::Ping | Frame::Pong => {}
            }
        }
        if wire.cut {
            return Poll::Ready(Incoming::Closed(Closed::lost("cut")));
        }
        wire.readers[self.me] = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for MemoryEnd {
    fn drop(&mut self) {
        let mut wire = lock(&self.wire);
        wire.cut = true;
        wire.wake_all();
    }
}

fn lock(wire: &Mutex<Wire>) -> MutexGuard<'_, Wire> {
    wire.lock().unwrap_or_else(PoisonError::into_inner)
}
