//! TLS on the client's side: whose certificates are trusted, and what a failed handshake means.

mod pinned;

use std::error::Error;
use std::io;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, IpAddr, ServerName};
use rustls::{CertificateError, ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use url::Host;

use self::pinned::{OtherKey, Trusted};
use crate::dial::{DialError, ServerUrl};
use crate::pin::Pins;

/// Whose certificates a client trusts. Cheap to clone.
#[derive(Clone)]
pub struct Trust(Arc<ClientConfig>);

/// Why trusted certificates cannot be used. Texts stand behind the name of their file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// There is no certificate in PEM.
    #[error("there is no certificate in it (PEM: -----BEGIN CERTIFICATE-----)")]
    Empty,
    /// There is one that is broken.
    #[error("a certificate in it is not valid: {0}")]
    Invalid(String),
    /// The TLS library is not what it should be.
    #[error("TLS cannot be set up: {0}")]
    SetUp(String),
}

impl Trust {
    /// Trusts what the system trusts. Reads the system's files, so call it once, and only for a
    /// server behind TLS.
    ///
    /// # Errors
    /// When TLS cannot be set up at all. That the system trusts no authority is no error.
    pub fn system() -> Result<Self, TrustError> {
        Self::new(system_roots())
    }

    /// Trusts also the certificates of a text in PEM: those of authorities, or of servers that have
    /// signed their own.
    ///
    /// # Errors
    /// When there is no certificate in the text, or a broken one.
    pub fn system_and(pem: &[u8]) -> Result<Self, TrustError> {
        Self::trusted(None, named_roots(pem)?)
    }

    /// Trusts a certificate with one of these public keys, whatever its names and dates are, and any other one as
    /// [`Self::system`] does, or [`Self::system_and`] with the certificates of `pem`. The system's files are read only
    /// where a certificate has another key.
    ///
    /// # Errors
    /// When TLS cannot be set up at all, and as [`Self::system_and`].
    pub fn pinned(pins: Pins, pem: Option<&[u8]>) -> Result<Self, TrustError> {
        let named = pem.map_or_else(|| Ok(RootCertStore::empty()), named_roots)?;
        Self::trusted(Some(pins), named)
    }

    fn trusted(pins: Option<Pins>, named: RootCertStore) -> Result<Self, TrustError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = builder(provider.clone())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Trusted::new(pins, named, provider)))
            .with_no_client_auth();
        Ok(Self::of(config))
    }

    /// Trusts no certificate: for an HTTP client that must be given something and will not need it.
    ///
    /// # Errors
    /// When TLS cannot be set up at all.
    pub fn nobody() -> Result<Self, TrustError> {
        Self::new(RootCertStore::empty())
    }

    fn new(roots: RootCertStore) -> Result<Self, TrustError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        Ok(Self::of(builder(provider)?.with_root_certificates(roots).with_no_client_auth()))
    }

    fn of(mut config: ClientConfig) -> Self {
        // The upgrade to WebSocket is one of HTTP/1.1.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self(Arc::new(config))
    }

    /// The same for an HTTP client.
    #[must_use]
    pub fn config(&self) -> ClientConfig {
        ClientConfig::clone(&self.0)
    }

    /// Shakes hands with a server.
    pub(crate) async fn connect(
        &self,
        host: &Host<String>,
        stream: TcpStream,
    ) -> io::Result<TlsStream<TcpStream>> {
        let name = match host {
            Host::Domain(name) => ServerName::try_from(name.clone()).map_err(io::Error::other)?,
            Host::Ipv4(address) => ServerName::IpAddress(IpAddr::V4((*address).into())),
            Host::Ipv6(address) => ServerName::IpAddress(IpAddr::V6((*address).into())),
        };
        TlsConnector::from(self.0.clone()).connect(name, stream).await
    }
}

fn builder(
    provider: Arc<CryptoProvider>,
) -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, TrustError> {
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| TrustError::SetUp(error.to_string()))
}

/// The certificates of a text in PEM.
fn named_roots(pem: &[u8]) -> Result<RootCertStore, TrustError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| TrustError::Invalid(error.to_string()))?;
        roots.add(certificate).map_err(|error| TrustError::Invalid(error.to_string()))?;
    }
    if roots.is_empty() { Err(TrustError::Empty) } else { Ok(roots) }
}

/// What the system trusts. What of it cannot be read is not trusted.
fn system_roots() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    for error in found.errors {
        tracing::debug!(%error, "some of the system's certificates cannot be read");
    }
    let mut roots = RootCertStore::empty();
    let (read, broken) = roots.add_parsable_certificates(found.certs);
    tracing::debug!(read, broken, "the system's certificates");
    roots
}

/// What an error means that has something of TLS at its bottom, here or in an HTTP client.
#[must_use]
pub fn explain(server: &ServerUrl, error: &(dyn Error + 'static)) -> Option<DialError> {
    let server = server.to_string();
    Some(match bottom(error)? {
        rustls::Error::InvalidCertificate(error) => DialError::Certificate(server, refusal(error)),
        rustls::Error::InvalidMessage(_) => DialError::Tls(
            server,
            "what answers there speaks no TLS; a plain server is reached with ws:// or http://"
                .to_owned(),
        ),
        error => DialError::Tls(server, error.to_string()),
    })
}

/// The error of the TLS library that others are wrapped around.
fn bottom<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // The source of such an error is not what it wraps but the source of that.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = wrapped.map_or_else(|| error.source(), |wrapped| Some(wrapped));
    }
    None
}

/// Why a certificate is refused.
fn refusal(error: &CertificateError) -> String {
    match error {
        // A certificate with the name of one that is trusted, and not its signature, is a stranger's.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "it was signed by nobody who is trusted here".to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "it has expired".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "it is not valid yet, by this machine's clock".to_owned()
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names =
                if presented.is_empty() { "nothing".to_owned() } else { presented.join(", ") };
            format!("it is not for {}; it is for {names}", expected.to_str())
        }
        // The library has no word for it. `openssl req -x509` makes such ones by default.
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            "it is a certificate authority's own; a server needs one with basicConstraints CA:FALSE"
                .to_owned()
        }
        CertificateError::Other(other) if other.0.is::<OtherKey>() => OtherKey.to_string(),
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_trusted_besides_must_be_certificates() {
        let own = rcgen::generate_simple_self_signed(vec!["box".to_owned()]).unwrap();
        let pem = own.cert.pem();
        assert!(Trust::system_and(pem.as_bytes()).is_ok());
        assert_eq!(Trust::system_and(b"").err(), Some(TrustError::Empty));
        let key = own.signing_key.serialize_pem();
        assert_eq!(Trust::system_and(key.as_bytes()).err(), Some(TrustError::Empty));
        let half = &pem.as_bytes()[..pem.len() / 2];
        assert!(matches!(Trust::system_and(half), Err(TrustError::Invalid(_))));
    }

    #[test]
    fn the_error_of_the_library_is_found_under_whatever_wraps_it() {
        let server: ServerUrl = "wss://box:1".parse().unwrap();
        let unknown = || rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let twice = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, unknown()));
        let found = explain(&server, &twice).map(|error| error.to_string()).unwrap_or_default();
        assert!(
            found.contains("certificate of wss://box:1/ws") && found.contains("nobody"),
            "{found}"
        );
        assert!(explain(&server, &io::Error::other("cable")).is_none());
    }
}
