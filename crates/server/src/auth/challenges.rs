//! The challenges that devices answer. Nothing is kept of those that are open, so that nobody who asks for many of them
//! takes them away from others: each says itself when it was made, and is sealed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use link::proof::{NONCE_BYTES, Nonce};
use ring::hmac;
use ring::rand::SystemRandom;
use subtle::ConstantTimeEq;

/// How long one may be answered.
const VALID: Duration = Duration::from_secs(30);

/// Where the seal begins: behind a number, and the milliseconds since the server started.
const SEAL_AT: usize = 16;

/// Makes challenges, and knows them again.
pub(crate) struct Challenges {
    /// None when the system gives no random bytes.
    key: Option<hmac::Key>,
    start: Instant,
    made: AtomicU64,
}

impl Challenges {
    pub(crate) fn new() -> Self {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new());
        Self { key: key.ok(), start: Instant::now(), made: AtomicU64::new(0) }
    }

    /// A fresh one; none when the system gives no random bytes.
    pub(crate) fn issue(&self, now: Instant) -> Option<Nonce> {
        let number = self.made.fetch_add(1, Ordering::Relaxed) + 1;
        let age = now.saturating_duration_since(self.start).as_millis();
        self.sealed(number, u64::try_from(age).unwrap_or(u64::MAX))
    }

    /// The number of one that is answered, greater than those of all that were made before. `None` when it is none of
    /// ours, or too old. That each is answered once is for the caller to see to.
    pub(crate) fn number(&self, nonce: &Nonce, now: Instant) -> Option<u64> {
        let [number, made] = [0, 8].map(|at| nonce.get(at..at + 8)?.try_into().ok());
        let (number, made) = (u64::from_be_bytes(number?), u64::from_be_bytes(made?));
        let sealed = self.sealed(number, made)?;
        let is_ours = bool::from(sealed.ct_eq(nonce));
        let made = self.start.checked_add(Duration::from_millis(made)).filter(|_| is_ours)?;
        (now.saturating_duration_since(made) < VALID).then_some(number)
    }

    fn sealed(&self, number: u64, made: u64) -> Option<Nonce> {
        let mut nonce = [0; NONCE_BYTES];
        let (said, seal) = nonce.split_at_mut(SEAL_AT);
        said.copy_from_slice(&[number.to_be_bytes(), made.to_be_bytes()].concat());
        let whole = hmac::sign(self.key.as_ref()?, said);
        seal.copy_from_slice(whole.as_ref().get(..NONCE_BYTES - SEAL_AT)?);
        Some(nonce)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_known_again_in_time_and_by_who_made_it_alone() {
        let (challenges, start) = (Challenges::new(), Instant::now());
        let [first, second] = [(); 2].map(|()| challenges.issue(start).unwrap());
        let [one, two] = [first, second].map(|nonce| challenges.number(&nonce, start + VALID / 2));
        assert!(one.is_some() && one < two);
        assert_eq!(challenges.number(&first, start + VALID), None, "it is too old");
        assert_eq!(Challenges::new().number(&first, start), None, "it is another server's");
        for at in 0..NONCE_BYTES {
            let mut other = first;
            other[at] ^= 1;
            assert_eq!(challenges.number(&other, start), None, "byte {at} was changed");
        }
    }

    #[test]
    fn a_flood_of_questions_takes_no_challenge_away() {
        let (challenges, start) = (Challenges::new(), Instant::now());
        let first = challenges.issue(start).unwrap();
        assert!((0..100_000).all(|_| challenges.issue(start).is_some()));
        assert!(challenges.number(&first, start).is_some());
    }
}
