//! How much an actor does before others get their turn.
//!
//! An actor whose peer always has something to say never has to wait. It counts what it does instead, and
//! pauses by itself: the runtime then runs everybody else, and looks for what has arrived meanwhile, before
//! it comes back. A turn takes about a fifth of a millisecond.

use std::pin::pin;
use std::task::Context;

/// The work of one turn, in bytes that are read or written.
const TURN: usize = 64 * 1024;

/// What reading, handling and answering a small message is worth beside its bytes.
pub(crate) const MESSAGE: usize = 2 * 1024;

/// The most that is handed to a stream, or taken from it, at once, in bytes: a piece of a large message is
/// work too.
pub(crate) const PIECE: usize = 64 * 1024;

/// What was done since others had their turn.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    spent: usize,
}

impl Turn {
    pub(crate) fn spend(&mut self, work: usize) {
        self.spent = self.spent.saturating_add(work);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.spent >= TURN
    }

    /// Others have their turn now.
    pub(crate) fn end(&mut self) {
        self.spent = 0;
    }
}

/// Has the task of this context run again, but only once all others that can run did so.
pub(crate) fn come_back(cx: &mut Context<'_>) {
    let _pending = pin!(tokio::task::yield_now()).poll(cx);
}
