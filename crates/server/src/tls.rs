//! TLS on the server's side: the certificate, which may be replaced while the server runs, and the
//! handshake. Reading files is for `cli`.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use link::Pin;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use webpki::{EndEntityCert, KeyUsage};

/// The first byte of a TLS connection, from RFC 8446: a record of the type handshake.
const HANDSHAKE: u8 = 22;

/// What is read of a plain request before it is refused, in bytes: as much as a head may have.
const PLAIN_BYTES: usize = 16 * 1024;

/// The answer to a client that speaks plain HTTP to us.
const PLAIN_REFUSAL: &str = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\
    Content-Type: text/plain\r\nContent-Length: 54\r\n\r\n\
    This server speaks TLS: use https:// or wss:// for it\n";

/// Why a certificate and its key cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// There is no certificate, or not a whole and valid one.
    #[error("the certificate cannot be used: {0}")]
    Certificate(String),
    /// There is no private key, or not a whole and valid one.
    #[error("the key cannot be used: {0}")]
    Key(String),
    /// Each may be good, but they are no pair.
    #[error("the key does not belong to the certificate")]
    Mismatch,
}

/// A certificate with its key, for connections from now on. Cheap to clone; all clones are the same,
/// also after [`Self::replace`].
#[derive(Clone)]
pub struct Tls(Arc<Mutex<Loaded>>);

#[derive(Clone)]
struct Loaded {
    config: Arc<ServerConfig>,
    certificate: CertificateDer<'static>,
    pin: Pin,
}

impl Tls {
    /// Takes a certificate, followed by those between it and its root, and its private key, both in
    /// PEM.
    ///
    /// # Errors
    /// When one of them cannot be used, or they do not belong together.
    pub fn new(certificates: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        Ok(Self(Arc::new(Mutex::new(Loaded::read(certificates, key)?))))
    }

    /// Shows another certificate to connections from now on; those that are open go on.
    ///
    /// # Errors
    /// As [`Self::new`]; the one in force then stays.
    pub fn replace(&self, certificates: &[u8], key: &[u8]) -> Result<(), TlsError> {
        let loaded = Loaded::read(certificates, key)?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = loaded;
        Ok(())
    }

    /// Whether the certificate is valid for a host: a name or an IP address, which may stand in
    /// brackets.
    #[must_use]
    pub fn names(&self, host: &str) -> bool {
        let Ok(name) = ServerName::try_from(host.trim_matches(['[', ']'])) else { return false };
        let loaded = self.loaded();
        loaded.leaf().is_some_and(|leaf| leaf.verify_is_valid_for_subject_name(&name).is_ok())
    }

    /// The first host name of the certificate, if there is one that is no wildcard.
    #[must_use]
    pub fn host_name(&self) -> Option<String> {
        let loaded = self.loaded();
        let leaf = loaded.leaf()?;
        leaf.valid_dns_names().find(|name| !name.starts_with('*')).map(str::to_owned)
    }

    /// What tells the public key of the certificate from others.
    #[must_use]
    pub fn pin(&self) -> Pin {
        self.loaded().pin
    }

    /// Whether the certificate will have expired after this time.
    #[must_use]
    pub fn ends_within(&self, time: Duration) -> bool {
        let loaded = self.loaded();
        let at = SystemTime::now() + time;
        loaded.leaf().is_none_or(|leaf| {
            matches!(verify(&leaf, &[], at), Err(webpki::Error::CertExpired { .. }))
        })
    }

    /// Shakes hands with a client that has connected, and tells which public key it was shown. `None` when that came to
    /// nothing, or not in time.
    pub(crate) async fn accept(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        timeout: Duration,
    ) -> Option<(TlsStream<TcpStream>, Pin)> {
        let Loaded { config, pin, .. } = self.loaded();
        let acceptor = TlsAcceptor::from(config);
        let accepting = async {
            if is_handshake(&stream).await? {
                return acceptor.accept(stream).await;
            }
            refuse_plain(stream).await?;
            Err(std::io::Error::other("it does not speak TLS"))
        };
        match tokio::time::timeout(timeout, accepting).await {
            Ok(Ok(stream)) => return Some((stream, pin)),
            Ok(Err(error)) => tracing::debug!(%address, %error, "a TLS handshake failed"),
            Err(_) => tracing::debug!(%address, "a TLS handshake took too long"),
        }
        None
    }

    fn loaded(&self) -> Loaded {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Loaded {
    fn read(certificates: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let chain = CertificateDer::pem_slice_iter(certificates)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| TlsError::Certificate(pem_text(&error).to_owned()))?;
        let Some(certificate) = chain.first().cloned() else {
            return Err(TlsError::Certificate(pem_text(&pem::Error::NoItemsFound).to_owned()));
        };
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| {
            let hint = if matches!(error, pem::Error::NoItemsFound) {
                " (one with a passphrase cannot be read)"
            } else {
                ""
            };
            TlsError::Key(format!("{}{hint}", pem_text(&error)))
        })?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = Arc::new(config(chain.clone(), key, provider)?);
        warn_of_refusal(&chain);
        let pin = Pin::of_certificate(&certificate)
            .ok_or_else(|| TlsError::Certificate("it is not valid".to_owned()))?;
        Ok(Self { config, certificate, pin })
    }

    fn leaf(&self) -> Option<EndEntityCert<'_>> {
        EndEntityCert::try_from(&self.certificate).ok()
    }
}

fn config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    provider: Arc<CryptoProvider>,
) -> Result<ServerConfig, TlsError> {
    let key = provider
        .key_provider
        .load_private_key(key)
        .map_err(|_| TlsError::Key("it is not RSA, ECDSA (P-256, P-384) or Ed25519".to_owned()))?;
    let pair = CertifiedKey::new(chain, key);
    match pair.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
        Err(rustls::Error::InconsistentKeys(_)) => return Err(TlsError::Mismatch),
        Err(error) => return Err(TlsError::Certificate(error.to_string())),
    }
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Key(error.to_string()))?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(pair)));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Says what of a file in PEM is wrong, without showing any of it.
fn pem_text(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::NoItemsFound => "there is none in the file",
        pem::Error::MissingSectionEnd { .. } => "the file ends in the middle of it",
        _ => "it is not valid PEM",
    }
}

/// Warns of a certificate that every client refuses whomever it trusts, above all of what `openssl
/// req -x509` makes by itself: a certificate authority's.
fn warn_of_refusal(chain: &[CertificateDer<'static>]) {
    let Some((leaf, intermediates)) = chain.split_first() else { return };
    let Ok(leaf) = EndEntityCert::try_from(leaf) else { return };
    let why = match verify(&leaf, intermediates, SystemTime::now()) {
        Err(webpki::Error::CaUsedAsEndEntity) => {
            "it is a certificate authority's own; make one with basicConstraints CA:FALSE"
        }
        Err(webpki::Error::CertExpired { .. }) => "it has expired",
        Err(webpki::Error::CertNotValidYet { .. }) => "it is not valid yet",
        _ => return,
    };
    tracing::warn!("clients will refuse the TLS certificate: {why}");
}

/// Verifies a certificate as of this time. Without a root the chain ends nowhere, so it always fails; what is looked at
/// before that is what matters here.
fn verify(
    leaf: &EndEntityCert<'_>,
    intermediates: &[CertificateDer<'_>],
    at: SystemTime,
) -> Result<(), webpki::Error> {
    let provider = rustls::crypto::ring::default_provider();
    leaf.verify_for_usage(
        provider.signature_verification_algorithms.all,
        &[],
        intermediates,
        UnixTime::since_unix_epoch(at.duration_since(UNIX_EPOCH).unwrap_or_default()),
        KeyUsage::server_auth(),
        None,
        None,
    )
    .map(|_| ())
}

/// Whether what has connected begins as TLS does. Nothing is taken from the stream.
async fn is_handshake(stream: &TcpStream) -> std::io::Result<bool> {
    let mut first = [0];
    let n = stream.peek(&mut first).await?;
    Ok(n == 0 || first[0] == HANDSHAKE)
}

/// Answers a client that speaks plain HTTP with what to do instead.
async fn refuse_plain(mut stream: TcpStream) -> std::io::Result<()> {
    // What is left unread would turn the answer into a reset.
    let _request = stream.read(&mut vec![0; PLAIN_BYTES]).await?;
    stream.write_all(PLAIN_REFUSAL.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, CertifiedKey, KeyPair};

    use super::*;

    fn pair(names: &[&str]) -> (String, String) {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(names).unwrap();
        (cert.pem(), signing_key.serialize_pem())
    }

    fn error(certificate: &str, key: &str) -> String {
        let tls = Tls::new(certificate.as_bytes(), key.as_bytes());
        tls.err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn it_is_valid_for_the_names_of_its_certificate_and_no_others() {
        let (certificate, key) = pair(&["Fleet.example", "*.wild.example", "10.0.0.5", "::1"]);
        let tls = Tls::new(certificate.as_bytes(), key.as_bytes()).unwrap();
        for host in ["fleet.example", "FLEET.example", "a.wild.example", "10.0.0.5", "[::1]", "::1"]
        {
            assert!(tls.names(host), "{host}");
        }
        for host in ["example", "a.b.wild.example", "10.0.0.6", "::2", "", "a b", "fleet.example:1"]
        {
            assert!(!tls.names(host), "{host}");
        }
        assert_eq!(tls.host_name().as_deref(), Some("Fleet.example"));
    }

    #[test]
    fn replacing_changes_all_clones_and_a_bad_pair_changes_nothing() {
        let (certificate, key) = pair(&["old.example"]);
        let tls = Tls::new(certificate.as_bytes(), key.as_bytes()).unwrap();
        let clone = tls.clone();
        let (new_certificate, new_key) = pair(&["new.example"]);
        let mixed = tls.replace(new_certificate.as_bytes(), key.as_bytes());
        assert_eq!(mixed, Err(TlsError::Mismatch));
        assert!(clone.names("old.example"));
        tls.replace(new_certificate.as_bytes(), new_key.as_bytes()).unwrap();
        assert!(clone.names("new.example") && !clone.names("old.example"));
    }

    #[test]
    fn what_is_wrong_with_a_pair_is_said_without_showing_any_of_it() {
        let (certificate, key) = pair(&["box"]);
        let half = |text: &str| text[..text.len() / 2].to_owned();
        assert!(error("", &key).contains("certificate cannot be used: there is none"));
        assert!(error(&key, &key).contains("certificate cannot be used: there is none"));
        assert!(error(&half(&certificate), &key).contains("ends in the middle"));
        let encrypted = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
        assert!(error(&certificate, &encrypted).contains("passphrase"));
        assert!(error(&certificate, &half(&key)).contains("key cannot be used: the file ends"));
        let garbled = key.replace("\nM", "\n!secret!");
        let text = error(&certificate, &garbled);
        assert!(text.contains("not valid PEM") && !text.contains("secret"), "{text}");
        assert!(error(&certificate, &pair(&["box"]).1).contains("does not belong"));
        let empty = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(
            error(empty, &key).contains("certificate cannot be used"),
            "{}",
            error(empty, &key)
        );
    }

    #[test]
    fn a_chain_is_taken_with_the_certificate_first() {
        let authority_key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = authority.self_signed(&authority_key).unwrap();
        let issuer = rcgen::Issuer::new(authority, authority_key);
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["box".to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &issuer).unwrap();
        let key = key.serialize_pem();
        let chain = format!("{}{}", leaf.pem(), root.pem());
        assert!(Tls::new(chain.as_bytes(), key.as_bytes()).is_ok_and(|tls| tls.names("box")));
        let turned = format!("{}{}", root.pem(), leaf.pem());
        assert!(error(&turned, &key).contains("does not belong"));
    }

    #[test]
    fn the_refusal_of_plain_http_is_as_long_as_it_says() {
        let (head, body) = PLAIN_REFUSAL.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("Content-Length: {}", body.len())), "{}", body.len());
    }
}
