//! The bounded queue through which everybody else hands messages to a connection's actor.
//!
//! It allocates nothing while it is empty. It takes one message of any legal size; beside that its bounds
//! hold, and overflow is a named outcome: progress is dropped first, then the connection is closed as too
//! slow. A *patient* queue takes more than its bounds, within a [`Budget`](crate::Budget), for as long as its peer takes
//! bytes: who reads as fast as it can is not cut for what others send it at once.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use aip::CloseCode;
use bytes::Bytes;
use tokio::sync::{Notify, oneshot};

use crate::connection::now;

mod patience;
mod queue;

use patience::Patience;
use queue::Manner;

/// How long a message that nobody waits for may wait for another to go with.
pub(crate) const LAZY: Duration = Duration::from_millis(5);

/// Bounds of an outgoing queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutboxLimits {
    /// Most messages that wait.
    pub messages: usize,
    /// Most bytes that wait, beside one message of any size.
    pub bytes: usize,
}

impl Default for OutboxLimits {
    fn default() -> Self {
        Self { messages: 1024, bytes: 16 * 1024 * 1024 }
    }
}

/// The peer reads too slowly. The connection is being closed with 4003.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer reads too slowly: {}", self.bound.why())]
pub struct Overflow {
    /// Messages that waited.
    pub messages: usize,
    /// Bytes that waited.
    pub bytes: usize,
    /// The size of the message that found no room, in bytes; 0 when the peer took none for too long.
    pub refused: usize,
    /// The bound that it would have broken.
    pub bound: Bound,
}

/// Why a message was not queued. It is not sent, and will not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotQueued {
    /// The connection is closing or gone.
    #[error("the connection is closed")]
    Closed,
    /// The queue is full.
    #[error(transparent)]
    Full(#[from] Overflow),
}

/// One of the bounds of [`OutboxLimits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// `messages`.
    Messages,
    /// `bytes`.
    Bytes,
    /// The limit of the [`Budget`](crate::Budget), within which the queue of a patient one may be over its bounds.
    Budget,
    /// None, but others wait for the room of the [`Budget`](crate::Budget) that its messages keep.
    Room,
}

impl Bound {
    const fn why(self) -> &'static str {
        match self {
            Self::Messages | Self::Bytes => "its outgoing queue overflowed",
            Self::Budget => "its outgoing queue overflowed, and there is no more room for it",
            Self::Room => "others wait for the room that its messages take",
        }
    }
}

/// What the actor finds in its queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Send this.
    Frame(Bytes),
    /// Close with this, now.
    Close(CloseCode, String),
}

/// The most who ask at the same time whether a peer is alive; one more is told that it is.
const MAX_PROBES: usize = 64;

/// A connection's outgoing queue. Shared by reference between its actor and everybody who sends, and
/// where they see whether the peer is alive.
pub struct Outbox {
    queue: Mutex<Queue>,
    limits: OutboxLimits,
    since: Instant,
    /// When the last byte came in, in nanoseconds after `since`.
    heard: AtomicU64,
    /// Whether somebody asks whether the peer is alive.
    is_probed: AtomicBool,
    /// When messages that wait for others to go with go by themselves, in nanoseconds after `since`; 0 while
    /// there are none.
    lazy_until: AtomicU64,
    dropped_progress: Option<Arc<AtomicU64>>,
    patience: Option<Patience>,
    /// Whether the queue is over its bounds.
    is_over: AtomicBool,
    /// Whether it is over them by the number of its messages.
    is_crowded: AtomicBool,
    /// Told when a message was taken, or the queue is closed.
    moved: Notify,
}

#[derive(Default)]
struct Queue {
    items: VecDeque<Item>,
    bytes: usize,
    /// Whether any of them goes as soon as it can, and those before it with it.
    is_pressing: bool,
    close: Option<(CloseCode, String)>,
    overflow: Option<Overflow>,
    /// Since when it is over its bounds, if it is.
    over_since: Option<Instant>,
    /// The place that the next message gets.
    next_place: u64,
    /// The place behind the last message that the actor took.
    taken: u64,
    actor: Option<Waker>,
    probes: Vec<Probe>,
    /// Since when the actor is asked for a proof of life, and whether it has pinged for it.
    proof: Option<(u64, bool)>,
    /// Whether somebody may wait for room.
    is_awaited: bool,
}

/// Somebody who asks whether the peer is alive.
struct Probe {
    /// When it asked, as [`Outbox::heard`] counts.
    asked: u64,
    is_pinged: bool,
    alive: oneshot::Sender<Alive>,
}

/// The peer has given a sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alive;

struct Item {
    frame: Bytes,
    place: u64,
    progress: bool,
}

impl Outbox {
    /// An empty queue.
    #[must_use]
    pub fn new(limits: OutboxLimits) -> Self {
        Self {
            queue: Mutex::default(),
            limits,
            since: now(),
            heard: AtomicU64::new(0),
            is_probed: AtomicBool::new(false),
            lazy_until: AtomicU64::new(0),
            dropped_progress: None,
            patience: None,
            is_over: AtomicBool::new(false),
            is_crowded: AtomicBool::new(false),
            moved: Notify::new(),
        }
    }

    /// How long ago the last byte came from the peer.
    #[must_use]
    pub fn silence(&self) -> Duration {
        let heard = Duration::from_nanos(self.heard.load(Ordering::Relaxed));
        now().saturating_duration_since(self.since).saturating_sub(heard)
    }

    /// Asks whether the peer is alive: it is pinged at once, and the answer comes with the first byte
    /// from it, or never. It fails as soon as the connection is closed.
    pub fn probe(&self) -> oneshot::Receiver<Alive> {
        let (alive, answer) = oneshot::channel();
        let mut queue = self.lock();
        if queue.close.is_some() {
            return answer;
        }
        if queue.probes.len() >= MAX_PROBES {
            // Nobody listens only when the asker is gone already.
            let _asker_is_gone = alive.send(Alive);
            return answer;
        }
        let asked = self.nanos(now());
        queue.probes.retain(|probe| !probe.alive.is_closed());
        queue.probes.push(Probe { asked, is_pinged: false, alive });
        self.is_probed.store(true, Ordering::Relaxed);
        queue.wake();
        answer
    }

    /// Asks for a proof of life in order: the peer is pinged at once, and once a byte of it came and all that came in
    /// front was handed out, the connection yields [`Event::Due`](crate::Event::Due). To ask again before that changes
    /// nothing.
    pub fn ask_in_order(&self) {
        let asked = self.nanos(now());
        let mut queue = self.lock();
        if queue.close.is_none() && queue.proof.is_none() {
            queue.proof = Some((asked, false));
            self.is_probed.store(true, Ordering::Relaxed);
            queue.wake();
        }
    }

    /// For the actor, when it has handed out all that came: whether that is the proof that was asked for.
    pub(crate) fn take_proof(&self, heard: Instant) -> bool {
        if !self.is_probed.load(Ordering::Relaxed) {
            return false;
        }
        let heard = self.nanos(heard);
        self.lock().proof.take_if(|(asked, _)| heard >= *asked).is_some()
    }

    /// For the actor: notes when the last byte came in, and answers who asked. `is_busy` says that
    /// bytes of the peer are being worked on right now. `true` when the peer shall be pinged.
    pub(crate) fn note_heard(&self, heard: Instant, is_busy: bool) -> bool {
        let heard = self.nanos(heard);
        // Most of the time nothing new was heard, and a store would be felt by those who read beside it.
        if self.heard.load(Ordering::Relaxed) != heard {
            self.heard.store(heard, Ordering::Relaxed);
        }
        if !self.is_probed.load(Ordering::Relaxed) {
            return false;
        }
        let mut queue = self.lock();
        let asking = std::mem::take(&mut queue.probes);
        let (alive, mut waiting): (Vec<_>, Vec<_>) =
            asking.into_iter().partition(|probe| is_busy || heard >= probe.asked);
        for probe in alive {
            let _asker_is_gone = probe.alive.send(Alive);
        }
        let is_new = |is_pinged: &mut bool| !std::mem::replace(is_pinged, true);
        let mut pings = false;
        waiting.iter_mut().for_each(|probe| pings |= is_new(&mut probe.is_pinged));
        if let Some((_, is_pinged)) = &mut queue.proof {
            pings |= is_new(is_pinged);
        }
        self.is_probed.store(!waiting.is_empty() || queue.proof.is_some(), Ordering::Relaxed);
        queue.probes = waiting;
        pings
    }

    fn nanos(&self, at: Instant) -> u64 {
        let nanos = at.saturating_duration_since(self.since).as_nanos();
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }

    /// Adds each progress message that is dropped to a count, which many queues may share.
    #[must_use]
    pub fn counting_dropped_progress(self, count: Arc<AtomicU64>) -> Self {
        Self { dropped_progress: Some(count), ..self }
    }

    /// Queues a message. Returns its place, to compare with what [`Self::abort`] returns.
    ///
    /// # Errors
    /// When the connection is closing, or the queue is full even without its progress messages; the
    /// connection closes then. A patient queue is full when the budget is.
    pub fn push(&self, frame: Bytes) -> Result<u64, NotQueued> {
        self.queue(frame, Manner::Prompt)
    }

    /// Queues a message that its peer does not wait for. It goes with the next one, which saves a system call, or
    /// by itself after a moment.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn push_lazily(&self, frame: Bytes) -> Result<u64, NotQueued> {
        self.queue(frame, Manner::Lazy)
    }

    fn queue(&self, frame: Bytes, manner: Manner) -> Result<u64, NotQueued> {
        let mut queue = self.lock();
        if queue.close.is_some() {
            return Err(NotQueued::Closed);
        }
        if !queue.has_room(frame.len(), self.limits) {
            self.count_dropped_progress(queue.drop_progress());
        }
        let frame = if queue.has_room(frame.len(), self.limits) {
            self.within(frame)
        } else {
            match self.beyond(&mut queue, &frame) {
                Ok(frame) => frame,
                Err(overflow) => {
                    self.overflow_now(&mut queue, overflow);
                    return Err(overflow.into());
                }
            }
        };
        if manner == Manner::Lazy && self.lazy_until.load(Ordering::Relaxed) == 0 {
            self.lazy_until.store(self.nanos(now() + LAZY), Ordering::Relaxed);
        }
        Ok(queue.append(frame, manner))
    }

    /// For the actor: when it must [hurry](Self::hurry).
    pub(crate) fn lazy_until(&self) -> Option<Instant> {
        let nanos = self.lazy_until.load(Ordering::Relaxed);
        (nanos > 0).then(|| self.since + Duration::from_nanos(nanos))
    }

    /// For the actor: what waits for another goes as soon as the socket takes it.
    pub(crate) fn hurry(&self) {
        let mut queue = self.lock();
        queue.is_pressing = !queue.items.is_empty();
        self.lazy_until.store(0, Ordering::Relaxed);
    }

    /// Takes a message back that the socket does not have yet. `true` when it is never sent.
    pub fn withdraw(&self, place: u64) -> bool {
        let mut queue = self.lock();
        let Some(at) = queue.items.iter().position(|item| item.place == place) else {
            return place >= queue.taken;
        };
        let item = queue.items.remove(at);
        queue.bytes -= item.map_or(0, |item| item.frame.len());
        self.note_bounds(&mut queue);
        true
    }

    /// Queues a message once there is room for it, or drops it when the queue is closed: for who can wait, and
    /// has much to say. `queued` is called just before, so that it is done when the peer has the message.
    pub async fn push_in_turn(&self, frame: Bytes, queued: impl FnOnce()) {
        loop {
            // From here on nothing is missed.
            let moved = self.moved.notified();
            {
                let mut queue = self.lock();
                if !queue.has_room(frame.len(), self.limits) {
                    self.count_dropped_progress(queue.drop_progress());
                }
                if queue.close.is_some() || queue.has_room(frame.len(), self.limits) {
                    queued();
                    if queue.close.is_none() {
                        queue.append(frame, Manner::Prompt);
                    }
                    return;
                }
                queue.is_awaited = true;
            }
            moved.await;
        }
    }

    /// Queues a progress message, or drops it when there is no room.
    pub fn push_progress(&self, frame: Bytes) {
        let mut queue = self.lock();
        if queue.close.is_some() {
            return;
        }
        if queue.has_room(frame.len(), self.limits) {
            queue.append(frame, Manner::Progress);
        } else {
            self.count_dropped_progress(1);
        }
    }

    fn count_dropped_progress(&self, messages: u64) {
        if let Some(count) = &self.dropped_progress {
            count.fetch_add(messages, Ordering::Relaxed);
        }
    }

    /// Closes the connection after everything that is queued already was sent.
    pub fn close(&self, code: CloseCode, reason: &str) {
        let mut queue = self.lock();
        if queue.close.is_none() {
            queue.close = Some((code, reason.to_owned()));
            queue.wake();
            self.moved.notify_waiters();
        }
    }

    /// Closes the connection at once: what is queued is dropped, and who asks whether the peer is alive gets
    /// no answer. The code and the reason are those of the first close. Returns the place behind the last
    /// message that was handed to the socket, which is final: a message from that place on was never sent.
    pub fn abort(&self, code: CloseCode, reason: &str) -> u64 {
        let mut queue = self.lock();
        queue.close_now(code, reason);
        self.note_bounds(&mut queue);
        self.moved.notify_waiters();
        queue.taken
    }

    /// Whether the connection is open: neither closed by us nor gone.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.lock().close.is_none()
    }

    /// How the queue overflowed, if it did.
    #[must_use]
    pub fn overflow(&self) -> Option<Overflow> {
        self.lock().overflow
    }

    /// How many messages wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().items.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// For the actor, while it works: it looks into the queue afterwards, and need not be woken.
    pub(crate) fn forget_waker(&self) {
        self.lock().actor = None;
    }

    /// For the actor: waits for the next thing to do.
    pub(crate) fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Next> {
        let mut queue = self.lock();
        let goes = queue.is_pressing || queue.close.is_some();
        if let Some(item) = goes.then(|| queue.items.pop_front()).flatten() {
            queue.bytes -= item.frame.len();
            queue.taken = item.place + 1;
            if queue.items.is_empty() {
                queue.is_pressing = false;
                self.lazy_until.store(0, Ordering::Relaxed);
            }
            if queue.items.is_empty() && queue.items.capacity() > 16 {
                queue.items = VecDeque::new();
            }
            self.note_bounds(&mut queue);
            if std::mem::take(&mut queue.is_awaited) {
                self.moved.notify_waiters();
            }
            return Poll::Ready(Next::Frame(item.frame));
        }
        if let Some((code, reason)) = &queue.close {
            return Poll::Ready(Next::Close(*code, reason.clone()));
        }
        queue.register(cx);
        Poll::Pending
    }

    /// For the actor, at the end: everything that still waits.
    pub(crate) fn take_frames(&self) -> Vec<Bytes> {
        let mut queue = self.lock();
        queue.bytes = 0;
        let items = std::mem::take(&mut queue.items);
        self.note_bounds(&mut queue);
        queue.taken = items.back().map_or(queue.taken, |last| last.place + 1);
        self.moved.notify_waiters();
        items.into_iter().map(|item| item.frame).collect()
    }

    /// For the actor, while its socket takes nothing more: waits for a close that does not wait for
    /// what is queued.
    pub(crate) fn poll_abort(&self, cx: &mut Context<'_>) -> Poll<(CloseCode, String)> {
        let mut queue = self.lock();
        match &queue.close {
            Some(close) if queue.items.is_empty() => Poll::Ready(close.clone()),
            _ => {
                queue.register(cx);
                Poll::Pending
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
