//! How a client knows a server again that no authority vouches for: by the hash of its public key.

use std::fmt;
use std::str::FromStr;

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

#[cfg(test)]
mod tests {
    use super::*;

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
