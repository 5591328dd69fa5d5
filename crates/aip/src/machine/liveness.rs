//! Whether the other end is alive: pings it, and notices silence.

use std::time::{Duration, Instant};

/// The longest wait: a hundred years. A clock can go so far, and a longer wait would be no different.
pub const LONGEST_WAIT: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

/// What to do about the other end now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// Nothing.
    Fine,
    /// Send a ping.
    Ping,
    /// Close: it has been silent for too long.
    Dead,
}

/// Watches one connection for silence. Any byte is life, also in the middle of a large frame.
#[derive(Debug, Clone)]
pub struct Liveness {
    ping_every: Duration,
    timeout: Duration,
    heard: Instant,
    pinged: Instant,
}

impl Liveness {
    /// Starts watching: pings each `ping_every`, gives up after `timeout` without a byte.
    #[must_use]
    pub fn new(ping_every: Duration, timeout: Duration, now: Instant) -> Self {
        let (ping_every, timeout) = (ping_every.min(LONGEST_WAIT), timeout.min(LONGEST_WAIT));
        Self { ping_every, timeout, heard: now, pinged: now }
    }

    /// Something came in at `at`.
    pub fn handle_bytes(&mut self, at: Instant) {
        self.heard = self.heard.max(at);
    }

    /// When something last came in.
    #[must_use]
    pub const fn heard(&self) -> Instant {
        self.heard
    }

    /// What to do now. A ping that it asks for counts as sent.
    pub fn poll_sign(&mut self, now: Instant) -> Sign {
        if now >= self.heard + self.timeout {
            Sign::Dead
        } else if now >= self.pinged + self.ping_every {
            self.pinged = now;
            Sign::Ping
        } else {
            Sign::Fine
        }
    }

    /// When to ask again.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        (self.heard + self.timeout).min(self.pinged + self.ping_every)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn silence_is_pinged_and_then_given_up() {
        let start = Instant::now();
        let mut liveness = Liveness::new(30 * S, 90 * S, start);
        let mut signs = Vec::new();
        loop {
            let now = liveness.deadline();
            match liveness.poll_sign(now) {
                Sign::Dead => break signs.push(((now - start).as_secs(), Sign::Dead)),
                sign => signs.push(((now - start).as_secs(), sign)),
            }
        }
        assert_eq!(signs, [(30, Sign::Ping), (60, Sign::Ping), (90, Sign::Dead)]);
    }

    #[test]
    fn any_byte_is_life() {
        let start = Instant::now();
        let mut liveness = Liveness::new(30 * S, 90 * S, start);
        liveness.handle_bytes(start + 89 * S);
        assert_eq!(liveness.poll_sign(start + 91 * S), Sign::Ping);
        assert_eq!(liveness.poll_sign(start + 92 * S), Sign::Fine);
        assert_eq!(liveness.poll_sign(start + 179 * S), Sign::Dead);
    }
}
