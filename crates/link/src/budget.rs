//! One bound for the bytes of large messages that are in flight, over all connections.
//!
//! Room is taken by who reads a large message, as its bytes come, and *kept* by what was made of it: results
//! of tasks that are not over, messages that wait to be sent. Reading waits for room, in turn. What is kept
//! is there already, so it is always counted, beyond the limit too; reading waits until it is less.
//!
//! Several messages that are half read may fill the budget together, and none could be read to its end. So
//! the first in line may *overdraw* while what is kept leaves room: it reads its message to the end, and is
//! the only one. In all there is at most: the limit and one message, beside what is kept.
//!
//! Memory for a large frame is taken when it is announced, before its bytes come. So the frames that come together are
//! no larger than the limit either, or there is only one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::connection::now;

/// A message up to this size takes no room, in bytes: heartbeats and other small messages always pass.
pub const SMALL_MESSAGE_BYTES: usize = 64 * 1024;

/// How many times its own size a message takes while it is read and handled: itself, and what is made of it.
const COPIES: usize = 2;

/// What keeping a message takes beside its bytes.
const KEPT_OVERHEAD: usize = 128;

/// The least that a sender of a large message must send while others wait for room, in bytes a second.
pub const MIN_BYTES_PER_SECOND: usize = 64 * 1024;

/// How long a sender is watched before it counts as slow.
const PACE: Duration = Duration::from_secs(5);

/// The room for the large messages of all connections. Its clones are the same budget.
#[derive(Clone)]
pub struct Budget(Arc<Shared>);

struct Shared {
    limit: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What messages that are read or handled take, in bytes.
    reading: usize,
    /// What was made of messages, in bytes.
    kept: usize,
    /// Who waits, in the order of their turns.
    line: VecDeque<Waiter>,
    /// Those whose turn it is and who have not noticed yet. Their room is taken.
    served: Vec<(u64, usize)>,
    /// Who may read beyond the limit.
    overdrawing: Option<u64>,
    /// The sizes of the large frames that come, in bytes.
    announced: usize,
    /// Who waits until its frame may come, in the order of their turns.
    announcing: VecDeque<Waiter>,
    readers: u64,
}

struct Waiter {
    reader: u64,
    bytes: usize,
    waker: Waker,
}

/// How much of a budget is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes in flight.
    pub bytes: usize,
    /// Connections that are not read from until there is room.
    pub waiting: usize,
}

impl Budget {
    /// Room for this many bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Shared { limit, state: Mutex::default() }))
    }

    /// The bytes that there is room for.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.0.limit
    }

    /// What is taken of it right now.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let state = self.lock();
        Usage { bytes: state.taken(), waiting: state.waiting() }
    }

    /// Whether others wait for room that only comes from what is kept.
    pub(crate) fn is_kept_wanted(&self) -> bool {
        let state = self.lock();
        !state.line.is_empty() && state.kept >= self.limit()
    }

    /// Nothing yet, to be kept.
    #[must_use]
    pub fn nothing(&self) -> Kept {
        Kept { budget: self.clone(), bytes: 0 }
    }

    /// Counts a message for as long as its bytes live, wherever they go.
    #[must_use]
    pub fn keep(&self, message: Bytes) -> Bytes {
        let mut kept = self.nothing();
        kept.grow(message.len() + KEPT_OVERHEAD);
        Bytes::from_owner(Counted { message, _kept: kept })
    }

    /// The same if what is kept does not exceed the limit with it.
    #[must_use]
    pub fn try_keep(&self, message: &Bytes) -> Option<Bytes> {
        let kept = self.lock().kept;
        let fits = kept.saturating_add(message.len() + KEPT_OVERHEAD) <= self.limit();
        fits.then(|| self.keep(message.clone()))
    }

    pub(crate) fn reader(&self) -> Reader {
        let mut state = self.lock();
        state.readers += 1;
        let id = state.readers;
        Reader {
            budget: self.clone(),
            id,
            bytes: 0,
            is_waiting: false,
            announced: 0,
            is_announcing: false,
            pace: (now(), 0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn taken(&self) -> usize {
        self.reading.saturating_add(self.kept)
    }

    fn waiting(&self) -> usize {
        self.line.len() + self.announcing.len()
    }

    /// Whether a reader's frame may come. Those that wait for room wait for the one that overdraws, which must
    /// not wait for their frames.
    fn may_announce(&self, limit: usize, reader: u64, frame: usize) -> bool {
        self.overdrawing == Some(reader)
            || self.announced == 0
            || self.announced.saturating_add(frame) <= limit
    }

    /// Whether a reader may take this much more.
    fn may_take(&mut self, limit: usize, reader: u64, bytes: usize) -> bool {
        if self.overdrawing == Some(reader) || self.taken().saturating_add(bytes) <= limit {
            return true;
        }
        let may_overdraw = self.overdrawing.is_none() && self.kept < limit;
        if may_overdraw {
            self.overdrawing = Some(reader);
        }
        may_overdraw
    }

    /// The room that a reader waited for, if it has it.
    fn take_served(&mut self, reader: u64) -> Option<usize> {
        let at = self.served.iter().position(|(served, _)| *served == reader)?;
        Some(self.served.swap_remove(at).1)
    }

    /// A reader waits no more. Returns the room that it was given meanwhile.
    fn leave(&mut self, reader: u64) -> usize {
        self.line.retain(|waiter| waiter.reader != reader);
        self.take_served(reader).unwrap_or(0)
    }

    /// Gives room to those whose turn it is.
    fn serve(&mut self, limit: usize) {
        while let Some((reader, bytes)) = self.line.front().map(|first| (first.reader, first.bytes))
            && self.may_take(limit, reader, bytes)
            && let Some(first) = self.line.pop_front()
        {
            self.reading += bytes;
            self.served.push((reader, bytes));
            first.waker.wake();
        }
        while let Some((reader, frame)) =
            self.announcing.front().map(|first| (first.reader, first.bytes))
            && self.may_announce(limit, reader, frame)
            && let Some(first) = self.announcing.pop_front()
        {
            self.announced += frame;
            first.waker.wake();
        }
    }

    /// Whether a reader's frame may not come yet. Its waker is this one from now on.
    fn is_announcing(&mut self, reader: u64, waker: &Waker) -> bool {
        let waiter = self.announcing.iter_mut().find(|waiter| waiter.reader == reader);
        waiter.map(|waiter| waiter.waker.clone_from(waker)).is_some()
    }
}

struct Counted {
    message: Bytes,
    _kept: Kept,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.message
    }
}

/// Room that is kept; dropping it gives it back.
pub struct Kept {
    budget: Budget,
    bytes: usize,
}

impl Kept {
    /// Keeps this many bytes more.
    pub fn grow(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.budget.lock().kept += bytes;
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if self.bytes > 0 {
            let mut state = self.budget.lock();
            state.kept -= self.bytes;
            state.serve(self.budget.limit());
        }
    }
}

/// The room of a large message while it is read and handled; dropping it gives it back.
pub(crate) struct Reader {
    budget: Budget,
    id: u64,
    bytes: usize,
    is_waiting: bool,
    /// The size of the large frame that comes, or is to, in bytes.
    announced: usize,
    /// Whether it may not come yet.
    is_announcing: bool,
    /// What came since when.
    pace: (Instant, usize),
}

impl Reader {
    /// Waits until there is room for a message of which this many bytes came or come next.
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>, message: usize) -> Poll<()> {
        let more = message.saturating_mul(COPIES).saturating_sub(self.bytes);
        if more == 0 {
            return Poll::Ready(());
        }
        let (budget, limit) = (self.budget.clone(), self.budget.limit());
        let mut state = budget.lock();
        if self.is_waiting {
            return self.poll_turn(cx, &mut state);
        }
        let may = state.overdrawing == Some(self.id) || state.line.is_empty();
        if may && state.may_take(limit, self.id, more) {
            state.reading += more;
            self.bytes += more;
            return Poll::Ready(());
        }
        // Who has waited for its turn has the whole frame in it, and does not stand in line for each piece.
        let whole = self.announced.saturating_mul(COPIES).saturating_sub(self.bytes);
        let (bytes, waker) = (more.max(whole), cx.waker().clone());
        state.line.push_back(Waiter { reader: self.id, bytes, waker });
        self.is_waiting = true;
        state.serve(limit);
        Poll::Pending
    }

    fn poll_turn(&mut self, cx: &mut Context<'_>, state: &mut State) -> Poll<()> {
        if let Some(bytes) = state.take_served(self.id) {
            self.bytes += bytes;
            self.is_waiting = false;
            // Its sender could not be faster than it was read.
            self.pace = (now(), 0);
            return Poll::Ready(());
        }
        if let Some(waiter) = state.line.iter_mut().find(|waiter| waiter.reader == self.id) {
            waiter.waker.clone_from(cx.waker());
        }
        Poll::Pending
    }

    /// Waits until a frame with a payload of this size may come.
    pub(crate) fn poll_announced(&mut self, cx: &mut Context<'_>, frame: usize) -> Poll<()> {
        let (budget, limit) = (self.budget.clone(), self.budget.limit());
        let mut state = budget.lock();
        if self.is_announcing {
            self.is_announcing = state.is_announcing(self.id, cx.waker());
        } else {
            // A message may have several large frames.
            state.announced -= std::mem::replace(&mut self.announced, frame);
            let may = state.overdrawing == Some(self.id) || state.announcing.is_empty();
            if may && state.may_announce(limit, self.id, frame) {
                state.announced += frame;
            } else {
                let waiter = Waiter { reader: self.id, bytes: frame, waker: cx.waker().clone() };
                state.announcing.push_back(waiter);
                self.is_announcing = true;
                state.serve(limit);
                self.is_announcing = state.is_announcing(self.id, cx.waker());
            }
        }
        if self.is_announcing {
            return Poll::Pending;
        }
        self.pace = (now(), 0);
        Poll::Ready(())
    }

    /// Whether it waits for room, or until its frame may come.
    pub(crate) fn is_waiting(&self) -> bool {
        self.is_waiting || self.is_announcing
    }

    /// Notes that bytes came.
    pub(crate) fn note_bytes(&mut self, bytes: usize) {
        self.pace.1 += bytes;
    }

    /// Whether its message comes so slowly that it keeps its room from others who wait.
    pub(crate) fn is_slow(&mut self, now: Instant) -> bool {
        let (since, came) = self.pace;
        let took = now.saturating_duration_since(since);
        if took < PACE {
            return false;
        }
        self.pace = (now, 0);
        if self.is_waiting() {
            return false;
        }
        let least = took.as_secs_f64() * MIN_BYTES_PER_SECOND as f64;
        (came as f64) < least && self.budget.lock().waiting() > 0
    }

    /// When to ask that again.
    pub(crate) fn look_at(&self) -> Instant {
        self.pace.0 + PACE
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let limit = self.budget.limit();
        let mut state = self.budget.lock();
        let unused = if self.is_waiting { state.leave(self.id) } else { 0 };
        state.reading -= self.bytes + unused;
        let waiting = state.announcing.len();
        state.announcing.retain(|waiter| waiter.reader != self.id);
        // What never stood in line, or stands there no more, is announced.
        if state.announcing.len() == waiting {
            state.announced -= self.announced;
        }
        if state.overdrawing == Some(self.id) {
            state.overdrawing = None;
        }
        state.serve(limit);
    }
}

#[cfg(test)]
mod tests;
