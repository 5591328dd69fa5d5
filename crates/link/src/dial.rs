//! Where a server is, and how to reach it.

mod challenge;

use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use secrecy::{ExposeSecret, SecretString};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use url::{Host, Url};

use crate::handshake::{self, Fault};
use crate::pin::Pin;
use crate::proof::{CHALLENGE_PATH, DeviceKey};
use crate::proxy::{Proxy, ProxyError};
use crate::socket::Socket;
use crate::tcp;
use crate::tls::{self, Trust};
use crate::transport::Stream;

/// The port of a server that does not say, as UFO's.
pub const DEFAULT_PORT: u16 = 5000;

/// Where a server is. Takes `http(s)://HOST:PORT`, `ws(s)://HOST:PORT[/ws]` or `HOST:PORT`, also with
/// `?token=KEY`; shows itself without the key.
#[derive(Debug, Clone)]
pub struct ServerUrl {
    host: Host<String>,
    port: u16,
    tls: bool,
    path: String,
    token: Option<SecretString>,
}

/// Why a text is no server URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}; use ws://HOST:PORT or http://HOST:PORT, such as ws://127.0.0.1:{DEFAULT_PORT}")]
pub struct UrlError(String);

impl Default for ServerUrl {
    fn default() -> Self {
        Self {
            host: Host::Ipv4(std::net::Ipv4Addr::LOCALHOST),
            port: DEFAULT_PORT,
            tls: false,
            path: "/ws".to_owned(),
            token: None,
        }
    }
}

impl FromStr for ServerUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let with_scheme =
            if text.contains("://") { text.to_owned() } else { format!("ws://{text}") };
        let url = Url::parse(&with_scheme).map_err(|error| UrlError(error.to_string()))?;
        let tls = match url.scheme() {
            "ws" | "http" => false,
            "wss" | "https" => true,
            scheme => return Err(UrlError(format!("unknown scheme '{scheme}'"))),
        };
        // `url` leaves the host of an unknown scheme as text; these four are known to it.
        let host = url.host().ok_or_else(|| UrlError("no host".to_owned()))?.to_owned();
        if !url.username().is_empty() || url.password().is_some() {
            return Err(UrlError("a user and password in the URL are not supported".to_owned()));
        }
        let token = url.query_pairs().find(|(key, _)| key == "token").map(|(_, token)| token);
        let path = if url.path().len() > 1 { url.path().to_owned() } else { "/ws".to_owned() };
        Ok(Self {
            host,
            port: explicit_port(&with_scheme).unwrap_or(if tls { 443 } else { DEFAULT_PORT }),
            tls,
            path,
            token: token.map(|token| SecretString::from(token.into_owned())),
        })
    }
}

/// The port that the text names. `Url::port` hides one that is the scheme's own default, which is not
/// ours.
fn explicit_port(url: &str) -> Option<u16> {
    let authority = url.split("://").nth(1)?.split(['/', '?', '#']).next()?;
    let after_host = authority.rsplit(']').next()?;
    after_host.rsplit_once(':').and_then(|(_, port)| port.parse().ok())
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "wss" } else { "ws" };
        write!(f, "{scheme}://{}:{}{}", self.host, self.port, self.path)
    }
}

impl ServerUrl {
    /// A server on this machine.
    #[must_use]
    pub fn local(port: u16) -> Self {
        Self { port, ..Self::default() }
    }

    /// The key that the URL carried.
    #[must_use]
    pub fn token(&self) -> Option<&SecretString> {
        self.token.as_ref()
    }

    /// Whether the server is to be reached over TLS.
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        self.tls
    }

    /// The name or address of its machine.
    #[must_use]
    pub const fn host(&self) -> &Host<String> {
        &self.host
    }

    /// Whether the server is on this machine.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        match &self.host {
            Host::Domain(name) => name == "localhost",
            Host::Ipv4(address) => address.is_loopback(),
            Host::Ipv6(address) => address.is_loopback(),
        }
    }

    /// The address of a route of the server's HTTP API.
    #[must_use]
    pub fn http(&self, path: &str) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}:{}{}", self.host, self.port, self.path_of(path))
    }

    /// The path of such a route.
    fn path_of(&self, path: &str) -> String {
        format!("{}{path}", self.path.strip_suffix("/ws").unwrap_or_default())
    }
}

/// Why a server could not be reached. Texts complete "failed to connect: …".
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// TLS came to nothing.
    #[error("no TLS connection to {0}: {1}")]
    Tls(String, String),
    /// The server's certificate is not one to trust.
    #[error("the certificate of {0} is refused: {1}")]
    Certificate(String, String),
    /// The network said no.
    #[error("no server answers at {0}: {1}")]
    Unreachable(String, #[source] io::Error),
    /// Nothing answered in time.
    #[error("no server answered at {0} within {1} s")]
    TimedOut(String, f64),
    /// The server knows no such key.
    #[error("the server at {0} refused the key (HTTP {1})")]
    Unauthorized(String, u16),
    /// The server refuses the connection, and says why.
    #[error("the server at {place} refuses the connection (HTTP {status}): {reason}")]
    Refused {
        /// Which server.
        place: String,
        /// The status of its answer.
        status: u16,
        /// What it says.
        reason: String,
    },
    /// There is no way through the proxy.
    #[error("{0}")]
    Proxy(ProxyError),
    /// Something answered that is no AIP server.
    #[error("what answers at {0} is no agent server: {1}")]
    NotAServer(String, String),
}

impl DialError {
    /// Whether trying again with the same settings cannot help.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        match self {
            Self::Unauthorized(..) | Self::Certificate(..) => true,
            Self::Refused { status, .. } => matches!(status, 401 | 403),
            Self::Proxy(error) => error.is_final(),
            _ => false,
        }
    }
}

/// The way to a server: through what, with which key, and whom to trust.
pub(crate) struct Way<'a> {
    pub(crate) server: &'a ServerUrl,
    pub(crate) token: Option<&'a SecretString>,
    /// What a device proves itself with, instead of a key.
    pub(crate) device_key: Option<&'a DeviceKey>,
    /// A server behind TLS needs it.
    pub(crate) trust: Option<&'a Trust>,
    pub(crate) proxy: Option<&'a Proxy>,
}

/// Connects to a server's WebSocket. The key goes into the URL, where every UFO server looks for it.
///
/// # Errors
/// When nothing answers in time, or what answers does not take us.
pub(crate) async fn dial(
    way: &Way<'_>,
    timeout: Duration,
    max_message: usize,
) -> Result<Socket, DialError> {
    match tokio::time::timeout(timeout, connect(way, max_message)).await {
        Ok(connected) => connected,
        Err(_) => {
            let through = way.proxy.map(|proxy| format!(" through the proxy {proxy}"));
            let place = format!("{}{}", way.server, through.unwrap_or_default());
            Err(DialError::TimedOut(place, timeout.as_secs_f64()))
        }
    }
}

async fn connect(way: &Way<'_>, max_message: usize) -> Result<Socket, DialError> {
    let server = way.server;
    let stream = match way.proxy {
        Some(proxy) => {
            let digging = Box::pin(proxy.tunnel(&server.host, server.port));
            digging.await.map_err(DialError::Proxy)?
        }
        None => tcp::connect(&server.host, server.port)
            .await
            .map_err(|error| DialError::Unreachable(server.to_string(), error))?,
    };
    if server.tls {
        // In a box of its own, so that a plain connection does not pay for it.
        let mut stream = Box::pin(shake_hands(server, way.trust, stream)).await?;
        let certificates = stream.get_ref().1.peer_certificates();
        let pin = certificates.and_then(|all| Pin::of_certificate(all.first()?));
        let read_ahead = Box::pin(upgrade(way, &mut stream, pin)).await?;
        Ok(Socket::client(stream, read_ahead, max_message))
    } else {
        let mut stream = stream;
        let read_ahead = upgrade(way, &mut stream, None).await?;
        Ok(Socket::client(stream, read_ahead, max_message))
    }
}

/// Upgrades to WebSocket, with the answer to the server's challenge where it is a device that proves itself. `pin` is
/// the server's public key. Returns what came behind the answer.
async fn upgrade(
    way: &Way<'_>,
    stream: &mut impl Stream,
    pin: Option<Pin>,
) -> Result<Bytes, DialError> {
    let server = way.server;
    let host = host(server);
    let proof = match way.device_key {
        Some(key) => {
            let asked = challenge::ask(stream, &host, &server.path_of(CHALLENGE_PATH)).await;
            Some(key.authorization(&asked.map_err(|fault| refused(server, fault))?, pin))
        }
        None => None,
    };
    let target = request_target(server, way.token);
    let upgraded = handshake::upgrade(stream, &host, &target, proof.as_ref()).await;
    upgraded.map_err(|fault| refused(server, fault))
}

async fn shake_hands(
    server: &ServerUrl,
    trust: Option<&Trust>,
    stream: TcpStream,
) -> Result<Box<TlsStream<TcpStream>>, DialError> {
    let failed = |why: String| DialError::Tls(server.to_string(), why);
    let trust = trust.ok_or_else(|| failed("this client was told to trust nobody".to_owned()))?;
    trust.connect(&server.host, stream).await.map(Box::new).map_err(|error| {
        tls::explain(server, &error).unwrap_or_else(|| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                failed("it hung up in the middle of the handshake".to_owned())
            }
            _ => failed(error.to_string()),
        })
    })
}

/// What goes into the header `Host`.
fn host(server: &ServerUrl) -> String {
    format!("{}:{}", server.host, server.port)
}

/// What the request is for, with the key.
fn request_target(server: &ServerUrl, token: Option<&SecretString>) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    if let Some(token) = token {
        query.append_pair("token", token.expose_secret());
    }
    let query = query.finish();
    let separator = if query.is_empty() { "" } else { "?" };
    format!("{}{separator}{query}", server.path)
}

fn refused(server: &ServerUrl, fault: Fault) -> DialError {
    let place = server.to_string();
    match fault {
        Fault::Status { status: status @ (401 | 403), reason: None } => {
            DialError::Unauthorized(place, status)
        }
        Fault::Status { status: status @ (401 | 403 | 429 | 503), reason: Some(reason) } => {
            DialError::Refused { place, status, reason }
        }
        Fault::Io(error) => DialError::Unreachable(place, error),
        // What a server behind TLS answers to plain HTTP: that it is a bad request, or noise.
        Fault::Status { status: 400, .. } | Fault::NotHttp(_) if !server.tls => {
            let why = format!("{fault}; if it speaks TLS, use wss:// or https://");
            DialError::NotAServer(place, why)
        }
        fault => DialError::NotAServer(place, fault.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_server_is_read() {
        let shown = |text: &str| text.parse::<ServerUrl>().map(|url| url.to_string());
        for (text, expected) in [
            ("ws://10.0.0.5:5000/ws", "ws://10.0.0.5:5000/ws"),
            ("http://10.0.0.5:5000", "ws://10.0.0.5:5000/ws"),
            ("10.0.0.5:5001", "ws://10.0.0.5:5001/ws"),
            ("box", "ws://box:5000/ws"),
            ("ws://box:80", "ws://box:80/ws"),
            ("[::1]", "ws://[::1]:5000/ws"),
            ("https://box", "wss://box:443/ws"),
            ("ws://[::1]:7000/agents/ws", "ws://[::1]:7000/agents/ws"),
            ("ws://box:5000/ws?token=s%26cret", "ws://box:5000/ws"),
        ] {
            assert_eq!(shown(text).as_deref(), Ok(expected), "{text}");
        }
        for text in ["", "ftp://box", "ws://", "ws://u:p@box", "ws://box:99999"] {
            assert!(shown(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_api_of_a_mounted_server_is_below_the_same_path() {
        let api = |text: &str| text.parse::<ServerUrl>().unwrap().http("/api/v1/devices");
        assert_eq!(api("ws://box:1/agents/ws"), "http://box:1/agents/api/v1/devices");
        assert_eq!(api("box:1"), "http://box:1/api/v1/devices");
    }

    #[test]
    fn the_key_of_a_url_is_found_and_not_shown() {
        let url: ServerUrl = "ws://box/ws?token=hunter%262".parse().unwrap();
        assert_eq!(url.token().map(ExposeSecret::expose_secret), Some("hunter&2"));
        assert!(!format!("{url} {url:?}").contains("hunter"));
        assert_eq!(request_target(&url, url.token()), "/ws?token=hunter%262");
    }

    #[test]
    fn it_knows_what_is_on_this_machine() {
        for (text, local) in
            [("localhost", true), ("[::1]:1", true), ("127.9.9.9", true), ("box", false)]
        {
            assert_eq!(text.parse::<ServerUrl>().unwrap().is_loopback(), local, "{text}");
        }
    }
}
