//! The challenges that devices have not answered yet.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use link::proof::{NONCE_BYTES, Nonce};
use ring::rand::{SecureRandom, SystemRandom};

/// How long one may be answered.
const VALID: Duration = Duration::from_secs(30);

/// The most that are open: a crowd of devices may come back in the same second. Beyond it the oldest are forgotten.
const MAX_OPEN: usize = 32_768;

/// The open challenges. Each is answered once.
pub(crate) struct Challenges {
    random: SystemRandom,
    open: Mutex<Open>,
    most: usize,
}

#[derive(Default)]
struct Open {
    /// When each was made.
    made: HashMap<Nonce, Instant>,
    /// In the order in which they were made, with those that were answered.
    order: VecDeque<(Nonce, Instant)>,
}

impl Challenges {
    pub(crate) fn new() -> Self {
        Self { random: SystemRandom::new(), open: Mutex::default(), most: MAX_OPEN }
    }

    /// A fresh one; none when the system gives no random bytes.
    pub(crate) fn issue(&self, now: Instant) -> Option<Nonce> {
        let mut nonce = [0; NONCE_BYTES];
        self.random.fill(&mut nonce).ok()?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        while open.order.len() >= self.most || open.has_old(now) {
            if let Some((old, _)) = open.order.pop_front() {
                open.made.remove(&old);
            }
        }
        open.made.insert(nonce, now);
        open.order.push_back((nonce, now));
        Some(nonce)
    }

    /// Takes one that is answered. `false` when it is none of ours, or too old, or was answered before.
    pub(crate) fn take(&self, nonce: &Nonce, now: Instant) -> bool {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let made = open.made.remove(nonce);
        made.is_some_and(|made| now.saturating_duration_since(made) < VALID)
    }
}

impl Open {
    fn has_old(&self, now: Instant) -> bool {
        let oldest = self.order.front();
        oldest.is_some_and(|(_, made)| now.saturating_duration_since(*made) >= VALID)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_answered_once_and_in_time() {
        let (challenges, start) = (Challenges::new(), Instant::now());
        let [first, second] = [(); 2].map(|()| challenges.issue(start).unwrap());
        assert_ne!(first, second);
        assert!(challenges.take(&first, start + VALID / 2));
        assert!(!challenges.take(&first, start + VALID / 2), "it was answered");
        assert!(!challenges.take(&second, start + VALID), "it is too old");
        assert!(!challenges.take(&[0; NONCE_BYTES], start), "it is none of ours");
    }

    #[test]
    fn a_flood_takes_bounded_memory_and_the_newest_stay() {
        let challenges = Challenges { most: 10, ..Challenges::new() };
        let start = Instant::now();
        let all: Vec<_> = (0..100).map(|_| challenges.issue(start).unwrap()).collect();
        let size = || {
            let open = challenges.open.lock().unwrap();
            (open.made.len(), open.order.len())
        };
        assert_eq!(size(), (10, 10));
        assert!(!challenges.take(&all[89], start) && challenges.take(&all[90], start));
        challenges.issue(start + VALID).unwrap();
        assert_eq!(size(), (1, 1), "what is too old is forgotten");
    }
}
