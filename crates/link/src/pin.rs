//! How a client knows a server again that no authority vouches for: by the hash of its public key.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use ring::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use webpki::EndEntityCert;

/// Bytes of a hash.
const BYTES: usize = 32;

/// The SHA-256 of a public key, as a certificate holds it (SPKI, DER). It is no secret.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Pin([u8; BYTES]);

/// What a text should be that is no pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the hash of a public key has 43 characters: letters, digits, - and _")]
pub struct InvalidPin;

impl Pin {
    /// The pin of a certificate; `None` when it is not a valid one.
    #[must_use]
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Option<Self> {
        let certificate = EndEntityCert::try_from(certificate).ok()?;
        let key = certificate.subject_public_key_info();
        digest(&SHA256, &key).as_ref().try_into().ok().map(Self)
    }

    /// The pin of the first certificate of a text in PEM; `None` when it is not a valid one.
    #[must_use]
    pub fn of_pem(pem: &[u8]) -> Option<Self> {
        Self::of_certificate(&CertificateDer::from_pem_slice(pem).ok()?)
    }

    /// The hash itself.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; BYTES] {
        &self.0
    }
}

impl FromStr for Pin {
    type Err = InvalidPin;

    fn from_str(text: &str) -> Result<Self, InvalidPin> {
        let bytes = BASE64.decode(text).map_err(|_| InvalidPin)?;
        bytes.try_into().map(Self).map_err(|_| InvalidPin)
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(self.0))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The public keys by which a server is known again: its present one, and the next one once it was announced. Cheap to
/// clone; all clones are the same.
#[derive(Clone)]
pub struct Pins(Arc<Shared>);

struct Shared {
    known: Mutex<Known>,
    keep: Box<dyn Fn(Pin, Pin) + Send + Sync>,
    /// Says what the present key is by now.
    again: Option<Box<dyn Fn() -> Option<Pin> + Send + Sync>>,
}

struct Known {
    present: Pin,
    next: Option<Pin>,
    /// The one that the server showed last.
    shown: Option<Pin>,
}

impl Pins {
    /// A server's present key, and the one that it has announced. Has `keep` keep both when it announces another one.
    pub fn new(
        present: Pin,
        next: Option<Pin>,
        keep: impl Fn(Pin, Pin) + Send + Sync + 'static,
    ) -> Self {
        let known = Mutex::new(Known { present, next, shown: None });
        Self(Arc::new(Shared { known, keep: Box::new(keep), again: None }))
    }

    /// A server whose key can be looked up: `again` does, when it shows another one than the present one. It may read a
    /// small file.
    pub fn looked_up(
        present: Pin,
        again: impl Fn() -> Option<Pin> + Send + Sync + 'static,
    ) -> Self {
        let known = Mutex::new(Known { present, next: None, shown: None });
        let (keep, again): (_, Box<dyn Fn() -> Option<Pin> + Send + Sync>) =
            (Box::new(|_, _| {}), Box::new(again));
        Self(Arc::new(Shared { known, keep, again: Some(again) }))
    }

    /// A server that will not be asked for a next key.
    #[must_use]
    pub fn fixed(present: Pin) -> Self {
        Self::new(present, None, |_, _| {})
    }

    /// Whether a server with this key is the one.
    pub(crate) fn is_shown(&self, pin: Pin) -> bool {
        let mut known = self.lock();
        let mut is_it = pin == known.present || Some(pin) == known.next;
        if !is_it && self.0.again.as_ref().is_some_and(|again| again() == Some(pin)) {
            (known.present, is_it) = (pin, true);
        }
        known.shown = is_it.then_some(pin);
        is_it
    }

    /// The server says which key it will have: the one that it has now and that one count from now on.
    pub(crate) fn announce(&self, next: Pin) {
        let mut known = self.lock();
        let present = known.shown.unwrap_or(known.present);
        if (known.present, known.next) != (present, Some(next)) {
            (known.present, known.next) = (present, Some(next));
            drop(known);
            (self.0.keep)(present, next);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Pins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = self.lock();
        f.debug_tuple("Pins").field(&known.present).field(&known.next).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_another_by_now_is_looked_up() {
        let pin = |byte| Pin([byte; BYTES]);
        let now = Arc::new(Mutex::new(pin(1)));
        let place = now.clone();
        let pins = Pins::looked_up(pin(1), move || Some(*place.lock().unwrap()));
        assert!(pins.is_shown(pin(1)) && !pins.is_shown(pin(2)));
        *now.lock().unwrap() = pin(2);
        assert!(pins.is_shown(pin(2)) && !pins.is_shown(pin(1)));
    }

    #[test]
    fn the_key_that_is_in_use_and_the_one_that_was_announced_last_are_known() {
        let pin = |byte| Pin([byte; BYTES]);
        let kept = Arc::new(Mutex::new(Vec::new()));
        let keeper = kept.clone();
        let keep = move |present, next| keeper.lock().unwrap().push((present, next));
        let pins = Pins::new(pin(1), None, keep);
        assert!(pins.is_shown(pin(1)) && !pins.is_shown(pin(2)));
        // The last one that was shown is none of its own.
        pins.announce(pin(2));
        pins.announce(pin(2));
        assert!(pins.is_shown(pin(1)));
        pins.announce(pin(3));
        assert!(!pins.is_shown(pin(2)) && pins.is_shown(pin(3)));
        pins.announce(pin(4));
        assert!(!pins.is_shown(pin(1)) && pins.is_shown(pin(3)) && pins.is_shown(pin(4)));
        let expected = [(1, 2), (1, 3), (3, 4)].map(|(one, two)| (pin(one), pin(two)));
        assert_eq!(*kept.lock().unwrap(), expected);
    }

    #[test]
    fn it_is_that_of_the_key_and_not_of_the_certificate() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let certificate = |name: &str| {
            let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
            params.self_signed(&pair).unwrap().der().clone()
        };
        let pin = Pin::of_certificate(&certificate("old")).unwrap();
        assert_eq!(Some(pin), Pin::of_certificate(&certificate("new")));
        let own = digest(&SHA256, &rcgen::PublicKeyData::subject_public_key_info(&pair));
        assert_eq!(own.as_ref(), pin.as_bytes());
        assert_eq!(pin.to_string().parse(), Ok(pin));
        assert!(Pin::of_certificate(&CertificateDer::from(vec![1, 2, 3])).is_none());
    }

    #[test]
    fn other_texts_are_none() {
        for text in ["", "abc", &"A".repeat(42), &"A".repeat(44), &"+".repeat(43)] {
            assert_eq!(text.parse::<Pin>(), Err(InvalidPin), "{text}");
        }
    }
}
