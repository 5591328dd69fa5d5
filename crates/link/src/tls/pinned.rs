//! Trusts a server by its pinned public key, or else as the system does.

use std::fmt;
use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme};

use super::system_roots;
use crate::pin::Pin;

/// Neither the pinned key, nor one that the system trusts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its public key is another one than was given when this machine joined")]
pub(super) struct OtherKey;

/// What takes a certificate with the pinned public key, whatever else it says, and any other as usual.
pub(super) struct Pinned {
    pin: Pin,
    provider: Arc<CryptoProvider>,
    /// What the system trusts, which is read only if it comes to that; nobody where it trusts nobody.
    system: OnceLock<Option<Arc<WebPkiServerVerifier>>>,
}

impl Pinned {
    pub(super) const fn new(pin: Pin, provider: Arc<CryptoProvider>) -> Self {
        Self { pin, provider, system: OnceLock::new() }
    }

    fn system(&self) -> Option<&WebPkiServerVerifier> {
        let read = || {
            let roots = Arc::new(system_roots());
            let provider = self.provider.clone();
            WebPkiServerVerifier::builder_with_provider(roots, provider).build().ok()
        };
        self.system.get_or_init(read).as_deref()
    }
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pinned").field(&self.pin).finish()
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if Pin::of_certificate(end_entity) == Some(self.pin) {
            return Ok(ServerCertVerified::assertion());
        }
        let usual = self.system().ok_or(()).and_then(|system| {
            system
                .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
                .map_err(|_| ())
        });
        usual.map_err(|()| {
            Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(OtherKey))))
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
