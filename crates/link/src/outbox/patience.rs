//! A patient queue: what it takes beyond its bounds, and for how long.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use aip::CloseCode;
use bytes::Bytes;

use super::{Bound, Outbox, Overflow, Queue};
use crate::budget::{Budget, SMALL_MESSAGE_BYTES};
use crate::connection::now;

/// A queue that is over its bounds may have one of this many parts of the budget.
const SHARE: usize = 4;

/// What lets a queue be over its bounds.
pub(super) struct Patience {
    budget: Budget,
    /// How long the peer may take no byte then.
    slow_after: Duration,
}

impl Outbox {
    /// Lets the queue be over its bounds, within the budget, while the peer takes a byte every now and then.
    /// Large messages in the queue, and those beyond its bounds, take room from the budget.
    #[must_use]
    pub fn patient(self, budget: Budget, slow_after: Duration) -> Self {
        Self { patience: Some(Patience { budget, slow_after }), ..self }
    }

    /// Whether more waits than the bounds allow.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// Whether more messages wait than the bounds allow, whatever their size.
    pub(crate) fn is_crowded(&self) -> bool {
        self.is_crowded.load(Ordering::Relaxed)
    }

    /// When a peer that last took a byte at `taken` has taken none for too long, if the queue is over its
    /// bounds.
    pub(crate) fn slow_at(&self, taken: Instant) -> Option<Instant> {
        let patience = self.patience.as_ref().filter(|_| self.is_over())?;
        let since = self.lock().over_since?.max(taken);
        Some(since + patience.slow_after)
    }

    /// How long a peer may take nothing of what waits for it, while others wait for the room that it keeps. `sending`
    /// says that a message which keeps some is on its way; one that waits does, too.
    pub(crate) fn may_keep_room(&self, sending: bool) -> Option<Duration> {
        let patience = self.patience.as_ref()?;
        (sending || self.lock().is_keeping()).then_some(patience.slow_after)
    }

    /// Whether others wait for the room that is kept.
    pub(crate) fn is_room_wanted(&self) -> bool {
        self.patience.as_ref().is_some_and(|patience| patience.budget.is_kept_wanted())
    }

    /// Gives up a peer that has taken nothing for too long.
    pub(crate) fn give_up(&self) -> Overflow {
        let mut queue = self.lock();
        let overflow = match self.is_over() {
            true => queue.overflow_by(0, self.limits),
            false => Overflow { bound: Bound::Room, ..queue.overflow_by(0, self.limits) },
        };
        self.overflow_now(&mut queue, overflow);
        overflow
    }

    pub(super) fn overflow_now(&self, queue: &mut Queue, overflow: Overflow) {
        queue.overflow = Some(overflow);
        queue.close_now(CloseCode::TOO_SLOW, &overflow.to_string());
        self.note_bounds(queue);
        self.moved.notify_waiters();
    }

    /// A message as it is queued within the bounds.
    pub(super) fn within(&self, frame: Bytes) -> Bytes {
        match &self.patience {
            Some(patience) if frame.len() > SMALL_MESSAGE_BYTES => patience.budget.keep(frame),
            _ => frame,
        }
    }

    /// A message as it is queued beyond the bounds.
    ///
    /// # Errors
    /// When there is no room for it.
    pub(super) fn beyond(&self, queue: &mut Queue, frame: &Bytes) -> Result<Bytes, Overflow> {
        let overflow = queue.overflow_by(frame.len(), self.limits);
        let Some(patience) = &self.patience else { return Err(overflow) };
        let share = patience.budget.limit() / SHARE;
        let has_share = queue.bytes.saturating_add(frame.len()) <= share;
        let kept = has_share.then(|| patience.budget.try_keep(frame)).flatten();
        let kept = kept.ok_or(Overflow { bound: Bound::Budget, ..overflow })?;
        queue.over_since.get_or_insert_with(now);
        self.is_over.store(true, Ordering::Relaxed);
        self.is_crowded.fetch_or(overflow.bound == Bound::Messages, Ordering::Relaxed);
        Ok(kept)
    }

    /// Notes when the queue is within its bounds again.
    pub(super) fn note_bounds(&self, queue: &mut Queue) {
        if queue.over_since.is_some() && queue.has_room(0, self.limits) {
            queue.over_since = None;
            self.is_over.store(false, Ordering::Relaxed);
            self.is_crowded.store(false, Ordering::Relaxed);
        }
    }
}
