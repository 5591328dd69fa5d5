//! The way through an HTTP proxy: it is asked, by CONNECT, for a tunnel to the server.
//!
//! It must not know where the proxy's address came from, nor what the tunnel carries.

use std::fmt;
use std::io;

use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use url::Host;

use crate::tcp;

/// The longest answer to CONNECT that is read, in bytes.
const MAX_ANSWER_BYTES: usize = 16 * 1024;

/// An HTTP proxy. Shows itself without its password.
#[derive(Debug, Clone)]
pub struct Proxy {
    host: Host<String>,
    port: u16,
    authorization: Option<SecretString>,
}

impl Proxy {
    /// A proxy at an address; `authorization` is what goes into the header `Proxy-Authorization`.
    ///
    /// # Errors
    /// When `host` is no host.
    pub fn new(
        host: &str,
        port: u16,
        authorization: Option<SecretString>,
    ) -> Result<Self, url::ParseError> {
        Ok(Self { host: Host::parse(host)?, port, authorization })
    }

    /// What goes into the header `Proxy-Authorization`.
    #[must_use]
    pub fn authorization(&self) -> Option<&SecretString> {
        self.authorization.as_ref()
    }

    /// Has a tunnel dug to a server. The caller bounds the time for it.
    ///
    /// # Errors
    /// Why there is none, with what to do where that is known.
    pub(crate) async fn tunnel(
        &self,
        host: &Host<String>,
        port: u16,
    ) -> Result<TcpStream, ProxyError> {
        let failed = |why| ProxyError { proxy: self.to_string(), why };
        let unreachable = |error| failed(Why::Unreachable(error));
        let mut stream = tcp::connect(&self.host, self.port).await.map_err(unreachable)?;
        let target = format!("{host}:{port}");
        stream.write_all(self.request(&target).as_bytes()).await.map_err(unreachable)?;
        match answer(&mut stream).await.map_err(failed)? {
            200..=299 => Ok(stream),
            407 if self.authorization.is_some() => Err(failed(Why::WrongPassword)),
            407 => Err(failed(Why::NoPassword)),
            403 => Err(failed(Why::Forbidden(target))),
            status @ 502..=504 => Err(failed(Why::NoServer(target, status))),
            status => Err(failed(Why::Status(target, status))),
        }
    }

    fn request(&self, target: &str) -> String {
        let authorization = self.authorization.as_ref().map_or_else(String::new, |value| {
            format!("Proxy-Authorization: {}\r\n", value.expose_secret())
        });
        format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{authorization}\r\n")
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}:{}", self.host, self.port)
    }
}

/// Why there is no way through a proxy.
#[derive(Debug, thiserror::Error)]
#[error("the proxy {proxy} {why}")]
pub struct ProxyError {
    proxy: String,
    why: Why,
}

impl ProxyError {
    /// Whether trying again with the same settings cannot help: wrong passwords lock people out.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(self.why, Why::NoPassword | Why::WrongPassword)
    }
}

#[derive(Debug, thiserror::Error)]
enum Why {
    #[error("does not answer: {0}")]
    Unreachable(io::Error),
    #[error(
        "wants a user and password (HTTP 407): put them into its address, http://USER:PASSWORD@HOST:PORT"
    )]
    NoPassword,
    #[error("refuses the user and password in its address (HTTP 407)")]
    WrongPassword,
    #[error(
        "lets nobody connect to {0} (HTTP 403); NO_PROXY names servers to be reached without it"
    )]
    Forbidden(String),
    #[error("cannot reach {0} (HTTP {1})")]
    NoServer(String, u16),
    #[error("does not connect to {0} (HTTP {1})")]
    Status(String, u16),
    #[error("is no HTTP proxy: {0}")]
    NoProxy(&'static str),
}

/// The status of the answer, read to the end of its head and no further.
async fn answer(stream: &mut TcpStream) -> Result<u16, Why> {
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    loop {
        let read = stream.read(&mut piece).await.map_err(Why::Unreachable)?;
        if read == 0 {
            return Err(Why::NoProxy("it hung up without an answer"));
        }
        head.extend_from_slice(&piece[..read]);
        if let Some(end) = head.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let status = status(&head).ok_or(Why::NoProxy("its answer is not HTTP"))?;
            // The server behind the tunnel waits for us to speak first.
            if (200..300).contains(&status) && head.len() > end + 4 {
                return Err(Why::NoProxy("it said more than it was asked"));
            }
            return Ok(status);
        }
        if head.len() > MAX_ANSWER_BYTES {
            return Err(Why::NoProxy("its answer does not end"));
        }
    }
}

fn status(head: &[u8]) -> Option<u16> {
    let line = head.split(|byte| *byte == b'\r').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    words.next()?.starts_with("HTTP/1.").then_some(())?;
    words.next()?.parse().ok().filter(|status| (100..600).contains(status))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpListener;

    use super::*;

    /// What a proxy that answers like this makes of a request, and the request.
    async fn asked(answer: &'static [u8], password: bool) -> (Result<(), ProxyError>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            // It may have hung up in the middle of an endless answer.
            let _written = stream.write_all(answer).await;
            String::from_utf8(request).unwrap()
        });
        let authorization = password.then(|| SecretString::from("Basic c2VjcmV0"));
        let proxy = Proxy::new("127.0.0.1", port, authorization).unwrap();
        assert!(!format!("{proxy} {proxy:?}").contains("c2VjcmV0"));
        let server = Host::Domain("box".to_owned());
        let tunnel = proxy.tunnel(&server, 443);
        let tunnel = tokio::time::timeout(Duration::from_secs(30), tunnel).await.unwrap();
        (tunnel.map(|_| ()), serving.await.unwrap())
    }

    #[tokio::test]
    async fn it_is_asked_for_the_server_and_shown_the_password() {
        let (tunnel, request) = asked(b"HTTP/1.1 200 Connection established\r\n\r\n", true).await;
        assert!(tunnel.is_ok());
        assert_eq!(
            request,
            "CONNECT box:443 HTTP/1.1\r\nHost: box:443\r\nProxy-Authorization: Basic c2VjcmV0\r\n\r\n"
        );
        let (tunnel, request) = asked(b"HTTP/1.0 200 OK\r\nVia: x\r\n\r\n", false).await;
        assert!(tunnel.is_ok() && !request.contains("Authorization"));
    }

    #[tokio::test]
    async fn each_refusal_says_what_to_do_and_none_shows_the_password() {
        let endless: &'static [u8] = Box::leak(vec![b'x'; 1024 * 1024].into_boxed_slice());
        for (answer, password, text, is_final) in [
            (&b"HTTP/1.1 407 Auth\r\n\r\n"[..], false, "wants a user and password", true),
            (b"HTTP/1.1 407 Auth\r\n\r\n", true, "refuses the user and password", true),
            (b"HTTP/1.1 403 No\r\n\r\nbody", true, "lets nobody connect to box:443", false),
            (b"HTTP/1.1 502 Bad\r\n\r\n", false, "cannot reach box:443 (HTTP 502)", false),
            (b"HTTP/1.1 301 Moved\r\n\r\n", false, "(HTTP 301)", false),
            (b"SSH-2.0-OpenSSH\r\n\r\n", false, "is no HTTP proxy", false),
            (b"HTTP/1.1 200 OK\r\n\r\nhello", false, "more than it was asked", false),
            (b"", false, "hung up", false),
            (endless, false, "does not end", false),
        ] {
            let error = asked(answer, password).await.0.unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
            assert!(!format!("{error} {error:?}").contains("c2VjcmV0"), "{error:?}");
            assert_eq!(error.is_final(), is_final, "{error}");
        }
    }
}
