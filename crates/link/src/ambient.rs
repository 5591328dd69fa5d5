//! What a party takes from its surroundings: the time of day, the boot of its machine, chance, fresh ids, and tasks of
//! its own.
//!
//! A program uses [`Ambient::system`]. A simulation gives each party one that comes from a seed, and ends all
//! tasks of a party at once, which is what a crash is. It knows nothing of messages.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use jiff::{SignedDuration, Timestamp};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::Instant;
use uuid::{Builder, Uuid};

/// Where Linux has its boot id.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The bits of a UUIDv7 below its time, version and variant, which count up within a millisecond.
const COUNTING_BITS: u32 = 62;

/// The surroundings of one party. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub struct Ambient(Arc<Inner>);

struct Inner {
    source: Source,
    /// The last UUIDv7.
    last: Mutex<u128>,
    /// Names the machine's present boot.
    boot: OnceLock<String>,
}

enum Source {
    System,
    Simulated(Simulated),
}

struct Simulated {
    chance: Mutex<fastrand::Rng>,
    /// The time of day at `start`.
    epoch: Timestamp,
    start: Instant,
    tasks: Mutex<Vec<AbortHandle>>,
}

impl Default for Ambient {
    fn default() -> Self {
        Self::system()
    }
}

impl Ambient {
    /// The system's clock and randomness, and the runtime's tasks.
    #[must_use]
    pub fn system() -> Self {
        Self::new(Source::System)
    }

    /// Surroundings that a seed decides. The time of day is `epoch` now, and goes by the runtime's clock, which
    /// a test can pause.
    #[must_use]
    pub fn simulated(seed: u64, epoch: Timestamp) -> Self {
        Self::new(Source::Simulated(Simulated {
            chance: Mutex::new(fastrand::Rng::with_seed(seed)),
            epoch,
            start: Instant::now(),
            tasks: Mutex::default(),
        }))
    }

    fn new(source: Source) -> Self {
        Self(Arc::new(Inner { source, last: Mutex::new(0), boot: OnceLock::new() }))
    }

    /// Names the boot of its machine, in a simulation: one that is named otherwise has lost power in between. Has no
    /// effect once the name was asked for.
    #[must_use]
    pub fn in_boot(self, boot: &str) -> Self {
        let _named_already = self.0.boot.set(boot.to_owned());
        self
    }

    /// What names the present boot of the machine: the kernel's boot id. Where there is none, and in a simulation that
    /// names none, it is random and a new one for each party: a crash of the program counts as a loss of power then.
    #[must_use]
    pub fn boot(&self) -> &str {
        self.0.boot.get_or_init(|| {
            let kernels = match &self.0.source {
                Source::System => std::fs::read_to_string(BOOT_ID).ok(),
                Source::Simulated(_) => None,
            };
            let kernels = kernels.map(|id| id.trim().to_owned()).filter(|id| !id.is_empty());
            kernels.unwrap_or_else(|| self.uuid().to_string())
        })
    }

    /// The time of day.
    #[must_use]
    pub fn timestamp(&self) -> Timestamp {
        match &self.0.source {
            Source::System => Timestamp::now(),
            Source::Simulated(own) => {
                let passed = SignedDuration::try_from(own.start.elapsed()).unwrap_or_default();
                own.epoch.checked_add(passed).unwrap_or(Timestamp::MAX)
            }
        }
    }

    /// The time of day, as AIP writes it.
    #[must_use]
    pub fn time_text(&self) -> String {
        aip::timestamp::format(self.timestamp())
    }

    /// A random UUID.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        match &self.0.source {
            Source::System => Uuid::new_v4(),
            Source::Simulated(own) => {
                Builder::from_random_bytes(lock(&own.chance).u128(..).to_be_bytes()).into_uuid()
            }
        }
    }

    /// A secret of 244 random bits, in hexadecimal digits.
    #[must_use]
    pub fn secret(&self) -> String {
        format!("{}{}", self.uuid().simple(), self.uuid().simple())
    }

    /// Has every UUIDv7 from now on be above this one, which an earlier process made.
    pub fn go_on_after(&self, uuid: Uuid) {
        let mut last = lock(&self.0.last);
        *last = (*last).max(uuid.as_u128());
    }

    /// The greatest UUIDv7 so far.
    #[must_use]
    pub fn newest_uuid(&self) -> Uuid {
        Uuid::from_u128(*lock(&self.0.last))
    }

    /// A UUIDv7 above all that came before it, also when the clock went back.
    #[must_use]
    pub fn uuid_v7(&self) -> Uuid {
        let millis = u64::try_from(self.timestamp().as_millisecond()).unwrap_or(0);
        let [random @ .., _, _, _, _, _, _] = self.uuid().into_bytes();
        let fresh = Builder::from_unix_timestamp_millis(millis, &random).into_uuid().as_u128();
        let mut last = lock(&self.0.last);
        *last = if fresh > *last { fresh } else { following(*last) };
        Uuid::from_u128(*last)
    }

    /// A random number from 0 to 1.
    #[must_use]
    pub fn chance(&self) -> f64 {
        match &self.0.source {
            Source::System => fastrand::f64(),
            Source::Simulated(own) => lock(&own.chance).f64(),
        }
    }

    /// Runs a task of this party.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let spawned = tokio::spawn(task);
        if let Source::Simulated(own) = &self.0.source {
            let mut tasks = lock(&own.tasks);
            tasks.retain(|task| !task.is_finished());
            tasks.push(spawned.abort_handle());
        }
        spawned
    }

    /// Ends all tasks of this party where they stand, as a crash would; in a simulation only. Cut its wires
    /// first, so that nothing of the end is seen.
    pub fn crash(&self) {
        if let Source::Simulated(own) = &self.0.source {
            lock(&own.tasks).drain(..).for_each(|task| task.abort());
        }
    }
}

/// The UUIDv7 after this one: it counts up below the time, and goes to the next millisecond from the end.
fn following(last: u128) -> u128 {
    let counting = (1_u128 << COUNTING_BITS) - 1;
    if last & counting != counting {
        return last + 1;
    }
    let millis = u64::try_from(last >> 80).unwrap_or(0) + 1;
    Builder::from_unix_timestamp_millis(millis, &[0; 10]).into_uuid().as_u128()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_seed_gives_one_course_of_things() {
        let course = || {
            let ambient = Ambient::simulated(7, Timestamp::UNIX_EPOCH);
            let ids = [ambient.uuid(), ambient.uuid_v7(), ambient.uuid_v7()];
            (ids, ambient.chance().to_bits(), ambient.time_text())
        };
        assert_eq!(course(), course());
    }

    #[tokio::test(start_paused = true)]
    async fn ids_in_order_grow_also_within_a_millisecond() {
        let ambient = Ambient::simulated(1, Timestamp::UNIX_EPOCH);
        let ids: Vec<Uuid> = (0..1000).map(|_| ambient.uuid_v7()).collect();
        assert!(ids.is_sorted_by(|a, b| a < b));
        assert!(ids.iter().all(|id| id.get_version_num() == 7));
        let last = Uuid::from_u128(following(
            Builder::from_unix_timestamp_millis(5, &[0xff; 10]).into_uuid().as_u128(),
        ));
        assert_eq!((last.get_version_num(), last.as_u128() >> 80), (7, 6));
    }

    #[tokio::test(start_paused = true)]
    async fn a_crash_ends_all_tasks_of_a_party_and_no_others() {
        let [one, two] = [1, 2].map(|seed| Ambient::simulated(seed, Timestamp::UNIX_EPOCH));
        let [first, second, other] =
            [&one, &one, &two].map(|party| party.spawn(std::future::pending::<()>()));
        one.crash();
        assert!(
            first.await.unwrap_err().is_cancelled() && second.await.unwrap_err().is_cancelled()
        );
        assert!(!other.is_finished());
    }
}
