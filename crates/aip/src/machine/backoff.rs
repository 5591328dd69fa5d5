//! How long to wait before the next attempt to connect.

use std::time::{Duration, Instant};

use crate::ServerMessageType;

/// A link that lived for so long was a success, whatever passed on it.
const SOUND_AFTER: Duration = Duration::from_secs(60);

/// How long the waits stay short after the end of a link that was a success.
const QUICK_TIME: Duration = Duration::from_secs(60);

/// The longest wait meanwhile, unless the first one is longer.
const QUICK_WAIT: Duration = Duration::from_secs(2);

/// The waits after one refusal, two, three.
const FIRST_REFUSAL_WAITS: [Duration; 3] =
    [Duration::from_secs(2), Duration::from_secs(10), Duration::from_secs(60)];

/// The wait after each further refusal.
const REFUSAL_WAIT: Duration = Duration::from_secs(300);

/// The largest part of its wait that a refused client waits in addition, so that a fleet does not come
/// back in the same instant.
const REFUSAL_JITTER: f64 = 0.1;

/// Exponential backoff with full jitter: the n-th wait is anything from nothing up to
/// `base * 2^n`, at most `cap`, so that a thousand devices do not come back in the same instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    /// What the next wait is at most, unless it is capped.
    longest: Duration,
}

impl Backoff {
    /// Starts with waits up to `base`.
    #[must_use]
    pub const fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, longest: base }
    }

    /// The next wait; `chance` is a random number from 0 to 1.
    pub fn next_wait(&mut self, chance: f64) -> Duration {
        self.next_wait_within(self.cap, chance)
    }

    fn next_wait_within(&mut self, cap: Duration, chance: f64) -> Duration {
        let longest = self.longest.min(cap);
        self.longest = longest.saturating_mul(2);
        longest.mul_f64(sound(chance))
    }

    /// Starts over, after a success.
    pub fn reset(&mut self) {
        self.longest = self.base;
    }
}

/// A chance from 0 to 1; not a number is no chance.
fn sound(chance: f64) -> f64 {
    if chance > 0.0 { chance.min(1.0) } else { 0.0 }
}

/// When a client tries again whose link has ended, or could not be made.
///
/// The waits are those of a [`Backoff`]. A link was a success, and they start over, once it lived for
/// 60 s or carried work: a server that confirms its clients and closes is not asked every second. For a
/// minute after the end of such a link no wait is over 2 s, since the server is likely to be back soon.
///
/// A refused client without a limit on its tries waits for 2, 10 and 60 s, and then 5 minutes each time.
#[derive(Debug, Clone)]
pub struct Reconnect {
    backoff: Backoff,
    max_retries: Option<u32>,
    tries: u32,
    refusals: usize,
    link: Option<Link>,
    /// Until when the waits stay short.
    quick_until: Option<Instant>,
}

/// A link that the server has confirmed.
#[derive(Debug, Clone)]
struct Link {
    since: Instant,
    has_carried_work: bool,
}

impl Reconnect {
    /// The first wait is at most `first_wait`, all are at most `max_wait`. The client gives up when it
    /// tried again `max_retries` times without success, or is refused; without them it never does.
    #[must_use]
    pub const fn new(first_wait: Duration, max_wait: Duration, max_retries: Option<u32>) -> Self {
        let backoff = Backoff::new(first_wait, max_wait);
        Self { backoff, max_retries, tries: 0, refusals: 0, link: None, quick_until: None }
    }

    /// How many tries in a row were no success.
    #[must_use]
    pub const fn tries(&self) -> u32 {
        self.tries
    }

    /// The server has confirmed the client.
    pub fn handle_confirmed(&mut self, now: Instant) {
        self.link = Some(Link { since: now, has_carried_work: false });
    }

    /// A message came from the server. A COMMAND is work, with the results that answer it, and so is the
    /// outcome of a task.
    pub fn handle_message(&mut self, kind: ServerMessageType) {
        if let Some(link) = &mut self.link {
            link.has_carried_work |=
                matches!(kind, ServerMessageType::Command | ServerMessageType::TaskEnd);
        }
    }

    /// The link has ended, or could not be made: how long to wait, or `None` to give up. `is_refused` when
    /// the same client will be refused again; `chance` is a random number from 0 to 1.
    pub fn next_try(&mut self, is_refused: bool, now: Instant, chance: f64) -> Option<Duration> {
        self.end_link(now);
        self.tries = self.tries.saturating_add(1);
        match self.max_retries {
            Some(limit) if is_refused || self.tries > limit => None,
            _ if is_refused => Some(self.wait_refused(chance)),
            _ => Some(self.backoff.next_wait_within(self.longest_wait(now), chance)),
        }
    }

    /// What was tried until now says nothing about the next try.
    pub fn reset(&mut self) {
        self.backoff.reset();
        (self.tries, self.refusals) = (0, 0);
    }

    fn end_link(&mut self, now: Instant) {
        let Some(link) = self.link.take() else { return };
        if link.has_carried_work || now >= link.since + SOUND_AFTER {
            self.reset();
            self.quick_until = Some(now + QUICK_TIME);
        }
    }

    /// The longest wait now. Where the tries are numbered, they are not used up in the first seconds.
    fn longest_wait(&self, now: Instant) -> Duration {
        let Backoff { base, cap, .. } = self.backoff;
        let is_quick = self.quick_until.is_some_and(|until| now < until);
        if is_quick && self.max_retries.is_none() { cap.min(QUICK_WAIT.max(base)) } else { cap }
    }

    fn wait_refused(&mut self, chance: f64) -> Duration {
        let wait = FIRST_REFUSAL_WAITS.get(self.refusals).unwrap_or(&REFUSAL_WAIT);
        self.refusals = self.refusals.saturating_add(1);
        wait.mul_f64(1.0 + REFUSAL_JITTER * sound(chance))
    }
}

#[cfg(test)]
mod tests;
