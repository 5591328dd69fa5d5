//! How a device proves before each upgrade that it has the key pair that its id is bound to.
//!
//! 1. It asks for a challenge: [`CHALLENGE_PATH`] is answered with a nonce and the id of the server's store.
//! 2. It signs [`signed_text`], which names both, itself, and the public key of the server that it talks to, so that
//!    nobody in between can pass the signature on.
//! 3. It shows the signature in the `Authorization` of its upgrade, as [`Shown`] reads it.

use std::fmt;

use aip::ClientId;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use secrecy::{ExposeSecret, SecretSlice, SecretString};

use crate::pin::Pin;

/// Where challenges are to be had.
pub const CHALLENGE_PATH: &str = "/api/v1/challenge";

/// The header of an answer with the nonce.
pub const NONCE_HEADER: &str = "flightdeck-nonce";

/// The header of an answer with the id of the server's store.
pub const STORE_HEADER: &str = "flightdeck-store";

/// The scheme of the `Authorization` that shows a signature.
const SCHEME: &str = "Flightdeck-Signature ";

/// What no other use of these keys signs.
const LABEL: &[u8] = b"flightdeck device upgrade, version 1\0";

/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 32;

/// What a server wants signed, once.
pub type Nonce = [u8; NONCE_BYTES];

/// Stands for the pin of a server that is reached without TLS.
const NO_PIN: [u8; 32] = [0; 32];

/// What a server asks of a device before an upgrade.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// To be signed once, within 30 seconds.
    pub nonce: Nonce,
    /// The id of the server's store.
    pub store: String,
}

impl Challenge {
    /// Reads what an answer's headers say. `None` when they are not in that form.
    #[must_use]
    pub fn read(nonce: &str, store: &str) -> Option<Self> {
        Some(Self { nonce: read_nonce(nonce)?, store: store.to_owned() })
    }

    /// The nonce as it stands in a header.
    #[must_use]
    pub fn nonce_text(&self) -> String {
        BASE64.encode(self.nonce)
    }
}

fn read_nonce(text: &str) -> Option<Nonce> {
    BASE64.decode(text).ok()?.try_into().ok()
}

/// What a device signs: the label, then the store id and the device's id, each behind its length in bytes (32 bits, the
/// greatest first), then the nonce and the hash of the server's public key, 32 bytes each. The hash is zero without TLS.
#[must_use]
pub fn signed_text(store: &str, device: &ClientId, nonce: &Nonce, pin: Option<Pin>) -> Vec<u8> {
    let mut text = LABEL.to_vec();
    for part in [store, device.as_str()] {
        let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
        text.extend_from_slice(&length.to_be_bytes());
        text.extend_from_slice(part.as_bytes());
    }
    text.extend_from_slice(nonce);
    let pin: &[u8; 32] = pin.as_ref().map_or(&NO_PIN, Pin::as_bytes);
    text.extend_from_slice(pin);
    text
}

/// A key pair (Ed25519) that a device made itself.
pub struct KeyPair {
    pair: Ed25519KeyPair,
    private: SecretSlice<u8>,
}

/// Why there is no key pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyPairError {
    /// What was kept of one is none.
    #[error("it is no key pair (Ed25519, PKCS#8, base64)")]
    Invalid,
    /// The system gives no random bytes.
    #[error("the system gives no random bytes")]
    NoRandom,
}

impl KeyPair {
    /// Makes one.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn generate() -> Result<Self, KeyPairError> {
        let made = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new());
        Self::new(made.map_err(|_| KeyPairError::NoRandom)?.as_ref().to_vec())
    }

    /// The one that was kept as [`Self::private`] gives it.
    ///
    /// # Errors
    /// When the text is none.
    pub fn read(private: &SecretString) -> Result<Self, KeyPairError> {
        let bytes = BASE64.decode(private.expose_secret()).map_err(|_| KeyPairError::Invalid)?;
        Self::new(bytes)
    }

    fn new(private: Vec<u8>) -> Result<Self, KeyPairError> {
        let private = SecretSlice::from(private);
        let pair = Ed25519KeyPair::from_pkcs8(private.expose_secret());
        Ok(Self { pair: pair.map_err(|_| KeyPairError::Invalid)?, private })
    }

    /// All of it, to be kept.
    #[must_use]
    pub fn private(&self) -> SecretString {
        BASE64.encode(self.private.expose_secret()).into()
    }

    /// What others may know of it.
    #[must_use]
    pub fn public(&self) -> String {
        BASE64.encode(self.pair.public_key())
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyPair").field(&self.public()).finish()
    }
}

/// What a device proves itself with.
#[derive(Debug)]
pub struct DeviceKey {
    /// Its key pair.
    pub pair: KeyPair,
    /// The id that the key pair is bound to.
    pub device: ClientId,
    /// What the server calls the key pair.
    pub key_id: String,
}

impl DeviceKey {
    /// The `Authorization` that answers a challenge of the server with this public key, on this connection.
    #[must_use]
    pub fn authorization(&self, challenge: &Challenge, pin: Option<Pin>) -> SecretString {
        let text = signed_text(&challenge.store, &self.device, &challenge.nonce, pin);
        let pin = pin.as_ref().map_or(&NO_PIN, Pin::as_bytes);
        let signature = self.pair.pair.sign(&text);
        let parts = [&challenge.nonce[..], pin, signature.as_ref()].map(|part| BASE64.encode(part));
        format!("{SCHEME}{}.{}", self.key_id, parts.join(".")).into()
    }
}

/// What a device shows at its upgrade.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// What the server calls its key pair.
    pub key_id: String,
    /// The nonce that it signed.
    pub nonce: Nonce,
    /// The hash of the public key that it saw; none without TLS.
    pub pin: Option<Pin>,
    signature: Vec<u8>,
}

impl Shown {
    /// Whether an `Authorization` is meant to be one, whole or not.
    #[must_use]
    pub fn is_meant_by(authorization: &str) -> bool {
        authorization.starts_with(SCHEME)
    }

    /// Reads an `Authorization`. `None` when it is not in this form.
    #[must_use]
    pub fn read(authorization: &str) -> Option<Self> {
        let mut parts = authorization.strip_prefix(SCHEME)?.split('.');
        let (key_id, nonce) = (parts.next()?.to_owned(), read_nonce(parts.next()?)?);
        let pin: Pin = parts.next()?.parse().ok()?;
        let pin = Some(pin).filter(|pin| *pin.as_bytes() != NO_PIN);
        let signature = BASE64.decode(parts.next()?).ok()?;
        parts.next().is_none().then_some(Self { key_id, nonce, pin, signature })
    }

    /// Whether the holder of this public key signed it, as this device of this store.
    #[must_use]
    pub fn is_signed_by(&self, public: &str, device: &ClientId, store: &str) -> bool {
        let Ok(key) = BASE64.decode(public) else { return false };
        let text = signed_text(store, device, &self.nonce, self.pin);
        UnparsedPublicKey::new(&ED25519, key).verify(&text, &self.signature).is_ok()
    }
}

/// Whether a text is a public key, as [`KeyPair::public`] gives it.
#[must_use]
pub fn is_public_key(text: &str) -> bool {
    BASE64.decode(text).is_ok_and(|key| key.len() == ring::signature::ED25519_PUBLIC_KEY_LEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> ClientId {
        ClientId::new(text).unwrap()
    }

    fn pin(byte: u8) -> Pin {
        BASE64.encode([byte; 32]).parse().unwrap()
    }

    #[test]
    fn a_signature_is_good_for_what_it_names_and_nothing_else() {
        let pair = KeyPair::generate().unwrap();
        let public = pair.public();
        let key = DeviceKey { pair, device: id("lab-1"), key_id: "abc".to_owned() };
        let challenge = Challenge { nonce: [7; NONCE_BYTES], store: "store".to_owned() };
        for seen in [None, Some(pin(3))] {
            let shown = key.authorization(&challenge, seen);
            assert!(Shown::is_meant_by(shown.expose_secret()));
            let shown = Shown::read(shown.expose_secret()).unwrap();
            assert_eq!((shown.key_id.as_str(), shown.nonce, shown.pin), ("abc", [7; 32], seen));
            assert!(shown.is_signed_by(&public, &id("lab-1"), "store"));
            assert!(!shown.is_signed_by(&public, &id("lab-2"), "store"));
            assert!(!shown.is_signed_by(&public, &id("lab-1"), "other"));
            let other = KeyPair::generate().unwrap().public();
            assert!(!shown.is_signed_by(&other, &id("lab-1"), "store"));
            let later = Shown { nonce: [8; NONCE_BYTES], ..shown.clone() };
            assert!(!later.is_signed_by(&public, &id("lab-1"), "store"));
            let elsewhere = Shown { pin: Some(pin(4)), ..shown };
            assert!(!elsewhere.is_signed_by(&public, &id("lab-1"), "store"));
        }
        // Where one part ends and the next begins is part of what is signed.
        let one = signed_text("ab", &id("c"), &[0; 32], None);
        assert_ne!(one, signed_text("a", &id("bc"), &[0; 32], None));
    }

    #[test]
    fn a_key_pair_is_kept_and_does_not_show_itself() {
        let pair = KeyPair::generate().unwrap();
        let kept = KeyPair::read(&pair.private()).unwrap();
        assert_eq!(kept.public(), pair.public());
        assert!(is_public_key(&pair.public()) && !is_public_key("AAAA"));
        assert!(!format!("{pair:?}").contains(pair.private().expose_secret()));
        assert_eq!(KeyPair::read(&"AAAA".into()).err(), Some(KeyPairError::Invalid));
    }

    #[test]
    fn what_is_not_in_form_is_not_read() {
        let whole = format!("{SCHEME}a.{}.{}.AAAA", BASE64.encode([1; 32]), BASE64.encode([0; 32]));
        assert!(Shown::read(&whole).is_some_and(|shown| shown.pin.is_none()));
        for wrong in
            ["", SCHEME, "Bearer x", &whole[..whole.len() - 5], &format!("{whole}.x"), &whole[1..]]
        {
            assert_eq!(Shown::read(wrong), None, "{wrong}");
        }
    }
}
