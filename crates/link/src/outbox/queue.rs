//! What waits in an outgoing queue, and its bounds.

use std::collections::VecDeque;
use std::task::Context;

use aip::CloseCode;
use bytes::Bytes;

use crate::budget::SMALL_MESSAGE_BYTES;

use super::{Bound, Item, OutboxLimits, Overflow, Queue};

/// How a message waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// It goes as soon as the socket takes it.
    Prompt,
    /// It waits a while for another to go with.
    Lazy,
    /// As soon, unless it is dropped for others.
    Progress,
}

impl Queue {
    pub(super) fn has_room(&self, bytes: usize, limits: OutboxLimits) -> bool {
        self.items.is_empty()
            || (self.items.len() < limits.messages
                && (self.bytes + bytes <= limits.bytes
                    || self.bytes + bytes - self.largest().max(bytes) <= limits.bytes))
    }

    /// The bytes of the largest message that waits.
    fn largest(&self) -> usize {
        self.items.iter().map(|item| item.frame.len()).max().unwrap_or(0)
    }

    pub(super) fn append(&mut self, frame: Bytes, manner: Manner) -> u64 {
        let place = self.next_place;
        self.next_place += 1;
        self.bytes += frame.len();
        self.items.push_back(Item { frame, place, progress: manner == Manner::Progress });
        self.is_pressing |= manner != Manner::Lazy;
        self.wake();
        place
    }

    pub(super) fn overflow_by(&self, refused: usize, limits: OutboxLimits) -> Overflow {
        let messages = self.items.len();
        let bound = if messages >= limits.messages { Bound::Messages } else { Bound::Bytes };
        Overflow { messages, bytes: self.bytes, refused, bound }
    }

    /// Whether a message waits that keeps room from others.
    pub(super) fn is_keeping(&self) -> bool {
        self.items.iter().any(|item| item.frame.len() > SMALL_MESSAGE_BYTES)
    }

    /// Returns how many messages it dropped.
    pub(super) fn drop_progress(&mut self) -> u64 {
        let before = self.items.len();
        self.items.retain(|item| !item.progress);
        let dropped = (before - self.items.len()) as u64;
        self.bytes = self.items.iter().map(|item| item.frame.len()).sum();
        dropped
    }

    pub(super) fn close_now(&mut self, code: CloseCode, reason: &str) {
        self.items = VecDeque::new();
        self.bytes = 0;
        self.probes = Vec::new();
        // Why it ends is what was said first.
        self.close.get_or_insert_with(|| (code, reason.to_owned()));
        self.wake();
    }

    pub(super) fn register(&mut self, cx: &Context<'_>) {
        if !self.actor.as_ref().is_some_and(|actor| actor.will_wake(cx.waker())) {
            self.actor = Some(cx.waker().clone());
        }
    }

    pub(super) fn wake(&mut self) {
        if let Some(actor) = self.actor.take() {
            actor.wake();
        }
    }
}
