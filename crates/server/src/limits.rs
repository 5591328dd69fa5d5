//! How much one address may ask of the server before it has shown a valid key.
//!
//! Neither limit ever stops a valid key, nor a peer on this machine.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use governor::clock::{Clock, MonotonicClock, Reference};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::state::keyed::ShrinkableKeyedStateStore;
use governor::{Quota, RateLimiter};

/// The most addresses whose failures [`FailedKeys`] remembers, at about 60 bytes each.
pub(crate) const MAX_FAILED_ADDRESSES: usize = 10_000;

/// While it remembers as many as it may, how often it looks for those it can forget: looking takes as
/// long as there are many.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Under which all addresses count that there is no room for. No peer has this address.
const EVERYBODY_ELSE: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// What an address counts as: itself, or for IPv6 its /64, since a host that has one address there has
/// them all. `None` for this machine.
fn network(ip: IpAddr) -> Option<IpAddr> {
    match ip.to_canonical() {
        ip if ip.is_loopback() => None,
        IpAddr::V6(ip) => Some(Ipv6Addr::from_bits(ip.to_bits() & (!0 << 64)).into()),
        ip => Some(ip),
    }
}

/// What becomes of a request with a wrong key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is refused, logged and audited like any other.
    Count,
    /// There were too many: it is refused with 429 and nothing else happens, so that wrong keys cannot
    /// fill the logs.
    Limited {
        /// After which the address may fail again. Never zero.
        retry_after: Duration,
    },
}

/// Counts the wrong keys of each address. The server compares the keys before it asks here, so a valid
/// one always passes; for the same reason this does not make a short key safe to guess at.
pub(crate) struct FailedKeys<C: Clock = MonotonicClock> {
    limiter: RateLimiter<IpAddr, Failures, C, NoOpMiddleware<C::Instant>>,
    max_addresses: usize,
    swept: Mutex<C::Instant>,
}

impl FailedKeys {
    /// Allows each address `burst` failures at once and `per_minute` in the long run, both at least
    /// one, and remembers `max_addresses`.
    pub(crate) fn new(per_minute: u32, burst: u32, max_addresses: usize) -> Self {
        Self::with_clock(per_minute, burst, max_addresses, MonotonicClock)
    }
}

impl<C: Clock> FailedKeys<C> {
    fn with_clock(per_minute: u32, burst: u32, max_addresses: usize, clock: C) -> Self {
        let at_least_one = |number| NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_minute(at_least_one(per_minute)).allow_burst(at_least_one(burst));
        let swept = Mutex::new(clock.now());
        let failures = Failures { arrivals: Mutex::default(), max: max_addresses };
        Self { limiter: RateLimiter::new(quota, failures, clock), max_addresses, swept }
    }

    /// Notes that an address showed a wrong key.
    ///
    /// An address that has its whole burst back is forgotten once the room is needed. When all of it is
    /// taken by addresses that still fail, those that are new share one count: a flood from everywhere
    /// is limited as a whole, and the memory stays bounded.
    pub(crate) fn failed(&self, ip: IpAddr) -> Verdict {
        let Some(network) = network(ip) else { return Verdict::Count };
        self.make_room();
        match self.limiter.check_key(&network) {
            Ok(()) => Verdict::Count,
            Err(until) => {
                let wait = until.wait_time_from(self.limiter.clock().now());
                Verdict::Limited { retry_after: wait.max(Duration::from_millis(1)) }
            }
        }
    }

    fn make_room(&self) {
        if self.limiter.len() < self.max_addresses {
            return;
        }
        let now = self.limiter.clock().now();
        let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(*swept) >= SWEEP_EVERY.into() {
            *swept = now;
            self.limiter.retain_recent();
        }
    }
}

/// What the limiter knows of each address: when its next failure would be due at an even pace.
/// Governor's own stores grow without bound.
struct Failures {
    arrivals: Mutex<HashMap<IpAddr, Nanos>>,
    max: usize,
}

impl Failures {
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Nanos>> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StateStore for Failures {
    type Key = IpAddr;

    fn measure_and_replace<T, F, E>(&self, key: &IpAddr, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut arrivals = self.lock();
        let has_place = arrivals.len() < self.max || arrivals.contains_key(key);
        let key = if has_place { *key } else { EVERYBODY_ELSE };
        let (verdict, arrival) = decide(arrivals.get(&key).copied())?;
        arrivals.insert(key, arrival);
        Ok(verdict)
    }
}

impl ShrinkableKeyedStateStore<IpAddr> for Failures {
    fn retain_recent(&self, drop_below: Nanos) {
        self.lock().retain(|_, arrival| *arrival > drop_below);
    }

    fn len(&self) -> usize {
        self.lock().len()
    }

    fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }
}

/// Bounds the connections of each address that have not yet shown a valid key. It knows only addresses
/// with such connections, so it holds no more entries than there are connections.
pub(crate) struct Addresses {
    open: Mutex<HashMap<IpAddr, usize>>,
    per_address: usize,
}

impl Addresses {
    /// Gives each address `per_address` places, at least one.
    pub(crate) fn new(per_address: usize) -> Self {
        Self { open: Mutex::default(), per_address: per_address.max(1) }
    }

    /// A place for one more connection of an address, unless it has all of its places already. This
    /// machine always gets one.
    pub(crate) fn enter(self: &Arc<Self>, ip: IpAddr) -> Option<Place> {
        let Some(network) = network(ip) else { return Some(Place(None)) };
        let mut open = self.lock();
        let taken = open.entry(network).or_default();
        if *taken >= self.per_address {
            return None;
        }
        *taken += 1;
        Some(Place(Some((self.clone(), network))))
    }

    fn leave(&self, network: IpAddr) {
        let mut open = self.lock();
        if let Some(taken) = open.get_mut(&network) {
            *taken -= 1;
            if *taken == 0 {
                open.remove(&network);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of a connection among those of its address. It is given back on drop: when the
/// connection has shown a valid key, or is over.
#[must_use]
pub(crate) struct Place(Option<(Arc<Addresses>, IpAddr)>);

impl Drop for Place {
    fn drop(&mut self) {
        if let Some((addresses, network)) = self.0.take() {
            addresses.leave(network);
        }
    }
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// The address number `number` of many.
    fn nth(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(0x0a00_0000 + number).into()
    }

    fn failed_keys(max_addresses: usize) -> (FailedKeys<FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        (FailedKeys::with_clock(10, 10, max_addresses, clock.clone()), clock)
    }

    /// How many of `tries` failures in a row count before the limit.
    fn counted(keys: &FailedKeys<FakeRelativeClock>, ip: IpAddr, tries: usize) -> usize {
        (0..tries).filter(|_| keys.failed(ip) == Verdict::Count).count()
    }

    #[test]
    fn ten_wrong_keys_count_and_then_one_every_six_seconds() {
        let (keys, clock) = failed_keys(100);
        assert_eq!(counted(&keys, ip("192.0.2.7"), 10), 10);
        let Verdict::Limited { retry_after } = keys.failed(ip("192.0.2.7")) else { panic!() };
        assert_eq!(retry_after, Duration::from_secs(6));
        assert_eq!(counted(&keys, ip("192.0.2.8"), 10), 10, "another address is not to blame");
        clock.advance(retry_after);
        assert_eq!(counted(&keys, ip("192.0.2.7"), 5), 1);
        clock.advance(Duration::from_secs(60));
        assert_eq!(counted(&keys, ip("192.0.2.7"), 50), 10);
    }

    #[test]
    fn an_ipv6_peer_has_one_count_for_its_whole_network_and_a_mapped_one_its_ipv4_count() {
        let (keys, _clock) = failed_keys(100);
        assert_eq!(counted(&keys, ip("2001:db8:0:1::1"), 10), 10);
        assert_eq!(counted(&keys, ip("2001:db8:0:1:ffff::2"), 10), 0);
        assert_eq!(counted(&keys, ip("2001:db8:0:2::1"), 10), 10);
        assert_eq!(counted(&keys, ip("192.0.2.7"), 10), 10);
        assert_eq!(counted(&keys, ip("::ffff:192.0.2.7"), 10), 0);
    }

    #[test]
    fn this_machine_may_fail_as_often_as_it_likes() {
        let (keys, _clock) = failed_keys(100);
        for local in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(counted(&keys, ip(local), 1000), 1000, "{local}");
        }
        assert!(keys.limiter.is_empty());
    }

    #[test]
    fn a_flood_from_everywhere_takes_bounded_memory_and_is_limited_as_a_whole() {
        let (keys, clock) = failed_keys(100);
        let known = (0..100).filter(|n| keys.failed(nth(*n)) == Verdict::Count).count();
        let others = (100..100_000).filter(|n| keys.failed(nth(*n)) == Verdict::Count).count();
        assert_eq!((known, others), (100, 10));
        assert_eq!(keys.limiter.len(), 101);
        assert_eq!(counted(&keys, nth(5), 20), 9, "whoever was known keeps a count of its own");
        // What has recovered makes room.
        clock.advance(Duration::from_secs(15));
        assert_eq!(counted(&keys, nth(200_000), 20), 10);
        assert_eq!(keys.limiter.len(), 3, "the newcomer, the one that failed on, everybody else");
    }

    #[test]
    fn each_address_has_so_many_places_until_it_shows_a_key_or_leaves() {
        let addresses = Arc::new(Addresses::new(2));
        let first = addresses.enter(ip("192.0.2.7")).unwrap();
        let _second = addresses.enter(ip("::ffff:192.0.2.7")).unwrap();
        assert!(addresses.enter(ip("192.0.2.7")).is_none());
        let _other = addresses.enter(ip("192.0.2.8")).unwrap();
        drop(first);
        assert!(addresses.enter(ip("192.0.2.7")).is_some());
        let _places = ["2001:db8::1", "2001:db8::2"].map(|text| addresses.enter(ip(text)).unwrap());
        assert!(addresses.enter(ip("2001:db8::3")).is_none());
    }

    #[test]
    fn this_machine_always_gets_a_place_and_an_address_without_connections_is_forgotten() {
        let addresses = Arc::new(Addresses::new(1));
        let _local: Vec<_> = (0..1000).map(|_| addresses.enter(ip("::1")).unwrap()).collect();
        assert!(addresses.lock().is_empty());
        let places: Vec<_> = (0..1000).map(|n| addresses.enter(nth(n)).unwrap()).collect();
        assert_eq!(addresses.lock().len(), 1000);
        drop(places);
        assert!(addresses.lock().is_empty());
    }
}
