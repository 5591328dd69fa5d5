//! Trusts a server by its pinned public keys, by certificates that were named, or else as the system does.

use std::fmt;
use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
};

use super::system_roots;
use crate::pin::{Pin, Pins};

/// Neither the pinned key, nor one that the system trusts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its public key is another one than this machine was given for it")]
pub(super) struct OtherKey;

/// What takes a certificate with a pinned public key, whatever else it says, then those that somebody named vouches for,
/// and any other as usual.
pub(super) struct Trusted {
    pins: Option<Pins>,
    provider: Arc<CryptoProvider>,
    /// What is trusted beside what the system trusts.
    named: RootCertStore,
    by_named: Option<Arc<WebPkiServerVerifier>>,
    /// With what the system trusts, which takes a while to read, and is read only if it comes to that; nobody where it
    /// trusts nobody.
    by_all: OnceLock<Option<Arc<WebPkiServerVerifier>>>,
}

impl Trusted {
    pub(super) fn new(
        pins: Option<Pins>,
        named: RootCertStore,
        provider: Arc<CryptoProvider>,
    ) -> Self {
        let by_named = verifier(named.clone(), &provider);
        Self { pins, provider, named, by_named, by_all: OnceLock::new() }
    }

    fn by_all(&self) -> Option<&WebPkiServerVerifier> {
        let read = || {
            let mut roots = system_roots();
            roots.roots.extend(self.named.roots.iter().cloned());
            verifier(roots, &self.provider)
        };
        self.by_all.get_or_init(read).as_deref()
    }
}

fn verifier(
    roots: RootCertStore,
    provider: &Arc<CryptoProvider>,
) -> Option<Arc<WebPkiServerVerifier>> {
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().ok()
}

impl fmt::Debug for Trusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Trusted").field(&self.pins).finish()
    }
}

impl ServerCertVerifier for Trusted {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let is_shown =
            |pins: &Pins| Pin::of_certificate(end_entity).is_some_and(|pin| pins.is_shown(pin));
        if self.pins.as_ref().is_some_and(is_shown) {
            return Ok(ServerCertVerified::assertion());
        }
        let by = |verifier: &WebPkiServerVerifier| {
            verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
        };
        if let Some(Ok(verified)) = self.by_named.as_deref().map(by) {
            return Ok(verified);
        }
        let nobody = || Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        let usual = self.by_all().map_or_else(nobody, by);
        usual.map_err(|error| match self.pins {
            Some(_) => {
                Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(OtherKey))))
            }
            None => error,
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
