//! Whether the machine slept. Timers do not show it: the clock they go by stands still meanwhile, so that a
//! connection that died in its sleep would be waited on for minutes.

use std::time::Duration;

use crate::connection::now;

/// How often to look, in time awake.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(5);

/// After a sleep, how long the server may take for a sign of life.
pub(crate) const PROOF_TIME: Duration = Duration::from_secs(10);

/// What counts as a sleep. Clocks that are read one after the other differ by less.
const SHORTEST_SLEEP: Duration = Duration::from_secs(3);

/// Waits this long, on a clock that runs while the machine sleeps: when it wakes up too late, that is noticed within
/// a few seconds.
pub async fn elapse(time: Duration) {
    let (clock, start) = (clock(), now());
    let asleep = clock();
    loop {
        let slept = clock().saturating_sub(asleep);
        let left = time.saturating_sub(now().saturating_duration_since(start) + slept);
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(LOOK_EVERY)).await;
    }
}

/// Reads how long the machine has slept in all since some moment.
pub(crate) type Clock = Box<dyn Fn() -> Duration + Send>;

/// Notices that the machine has slept.
pub(crate) struct SleepWatch {
    clock: Clock,
    /// What the clock said at the last look.
    seen: Duration,
}

impl SleepWatch {
    /// Watches the machine's clocks.
    pub(crate) fn new() -> Self {
        Self::with_clock(clock())
    }

    pub(crate) fn with_clock(clock: Clock) -> Self {
        let seen = clock();
        Self { clock, seen }
    }

    /// How long the machine has slept since the last look, if it has.
    pub(crate) fn look(&mut self) -> Option<Duration> {
        let asleep = (self.clock)();
        let slept = asleep.saturating_sub(self.seen);
        self.seen = asleep;
        (slept >= SHORTEST_SLEEP).then_some(slept)
    }
}

/// The time since the machine started, without the time awake. Neither changes when the time of day is set.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn clock() -> Clock {
    use rustix::time::{ClockId, clock_gettime};

    let read = |id| Duration::try_from(clock_gettime(id)).unwrap_or_default();
    Box::new(move || read(ClockId::Boottime).saturating_sub(read(ClockId::Monotonic)))
}

/// The time of day that passed, without the time awake. A user that sets the time of day forward
/// causes a ping too many.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn clock() -> Clock {
    use std::time::{Instant, SystemTime};

    let (day, awake) = (SystemTime::now(), Instant::now());
    Box::new(move || day.elapsed().unwrap_or_default().saturating_sub(awake.elapsed()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn a_sleep_is_noticed_once() {
        let asleep = Arc::new(AtomicU64::new(100));
        let read = asleep.clone();
        let clock = move || Duration::from_secs(read.load(Ordering::Relaxed));
        let mut watch = SleepWatch::with_clock(Box::new(clock));
        let mut look_at = |seconds| {
            asleep.store(seconds, Ordering::Relaxed);
            watch.look().map(|slept| slept.as_secs())
        };
        assert_eq!(look_at(100), None, "what was before does not count");
        assert_eq!(look_at(102), None, "too short to matter");
        assert_eq!(look_at(3702), Some(3600));
        assert_eq!(look_at(3702), None);
        assert_eq!(look_at(0), None, "set backwards");
        assert_eq!(look_at(0), None);
    }

    #[test]
    fn a_machine_that_is_awake_has_not_slept() {
        assert_eq!(SleepWatch::new().look(), None);
    }
}
