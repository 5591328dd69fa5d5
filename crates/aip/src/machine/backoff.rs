//! How long to wait before the next attempt to connect.

use std::time::Duration;

/// Exponential backoff with full jitter: the n-th wait is anything from nothing up to
/// `base * 2^n`, at most `cap`, so that a thousand devices do not come back in the same instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    attempts: u32,
}

impl Backoff {
    /// Starts counting at the first attempt.
    #[must_use]
    pub const fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, attempts: 0 }
    }

    /// How many waits were asked for since the last [`Self::reset`].
    #[must_use]
    pub const fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The next wait; `chance` is a random number from 0 to 1.
    pub fn next_wait(&mut self, chance: f64) -> Duration {
        let doubled =
            self.base.saturating_mul(1_u32.checked_shl(self.attempts).unwrap_or(u32::MAX));
        self.attempts = self.attempts.saturating_add(1);
        // Not a number is no chance.
        doubled.min(self.cap).mul_f64(if chance > 0.0 { chance.min(1.0) } else { 0.0 })
    }

    /// Starts over, after a success.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap_and_start_over() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        let waits: Vec<u64> = (0..8).map(|_| backoff.next_wait(1.0).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        for _ in 0..1000 {
            assert!(backoff.next_wait(1.0) <= Duration::from_secs(60));
        }
        backoff.reset();
        assert_eq!(backoff.next_wait(0.5), Duration::from_millis(500));
        assert_eq!(backoff.next_wait(0.0), Duration::ZERO);
    }
}
