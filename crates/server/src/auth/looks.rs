//! A look for keys that were created just now, when one is shown that is not known.
//!
//! It must not know where keys are kept: whoever puts them into force looks there, and says so.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, OwnedMutexGuard, watch};

use super::KeyBook;
use crate::server::Server;

/// Longest wait for such a look.
const LONGEST_LOOK: Duration = Duration::from_secs(1);

/// Who waits for a look, and how many there were.
pub(crate) struct Looks {
    wanted: Notify,
    /// Whether anybody looks when it is wanted.
    has_looker: AtomicBool,
    begun: AtomicU64,
    done: watch::Sender<u64>,
}

/// A look that has begun: who waits for it goes on when it is dropped.
pub(crate) struct Look<'a> {
    looks: &'a Looks,
    number: u64,
}

/// A look for new keys; nobody else changes them meanwhile.
pub struct KeyLook<'a> {
    server: &'a Server,
    _look: Look<'a>,
    _turn: OwnedMutexGuard<()>,
}

impl<'a> KeyLook<'a> {
    pub(crate) const fn new(server: &'a Server, look: Look<'a>, turn: OwnedMutexGuard<()>) -> Self {
        Self { server, _look: look, _turn: turn }
    }

    /// Puts what was found into force. Of keys that are gone, changed or expired the connections are closed at once, and
    /// the tasks end; so are those of clients whose id was bound to another's key pair.
    pub fn set(&self, book: KeyBook) {
        self.server.set_book(book);
    }
}

impl Looks {
    pub(crate) fn new() -> Self {
        Self {
            wanted: Notify::new(),
            has_looker: AtomicBool::new(false),
            begun: AtomicU64::new(0),
            done: watch::Sender::new(0),
        }
    }

    /// Waits for a look that begins from now on, if anybody looks: many wait for the same one.
    pub(crate) async fn next(&self) {
        if !self.has_looker.load(Ordering::Relaxed) {
            return;
        }
        let next = self.begun.load(Ordering::SeqCst) + 1;
        let mut done = self.done.subscribe();
        self.wanted.notify_one();
        // A disk that hangs refuses the key, as before.
        let _looked = tokio::time::timeout(LONGEST_LOOK, done.wait_for(|done| *done >= next)).await;
    }

    /// Waits until a look is wanted.
    pub(crate) async fn wanted(&self) {
        self.has_looker.store(true, Ordering::Relaxed);
        self.wanted.notified().await;
    }

    pub(crate) fn begin(&self) -> Look<'_> {
        Look { looks: self, number: self.begun.fetch_add(1, Ordering::SeqCst) + 1 }
    }
}

impl Drop for Look<'_> {
    fn drop(&mut self) {
        self.looks.done.send_replace(self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_asks_waits_for_a_look_that_began_afterwards_and_not_for_ever() {
        let looks = Arc::new(Looks::new());
        let start = Instant::now();
        looks.next().await;
        assert_eq!(start.elapsed(), Duration::ZERO, "nobody looks");

        let (own, waiting) = (looks.clone(), looks.clone());
        let looker = tokio::spawn(async move { own.wanted().await });
        tokio::task::yield_now().await;
        let earlier = looks.begin();
        let asking = tokio::spawn(async move { waiting.next().await });
        looker.await.unwrap();
        drop(earlier);
        tokio::task::yield_now().await;
        assert!(!asking.is_finished(), "it began before");
        drop(looks.begin());
        asking.await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);

        looks.next().await;
        assert_eq!(start.elapsed(), LONGEST_LOOK);
    }
}
