//! The upgrade of a client's stream to WebSocket, up to the first frame: the request, and what the server answers.
//!
//! The WebSocket library would read a head of any length, and keep nothing of what a refusal says.

use std::io;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::transport::Stream;

/// The longest head of an answer that is read, in bytes.
pub(crate) const MAX_HEAD_BYTES: usize = 64 * 1024;

/// The status of an upgrade.
const SWITCHING: u16 = 101;

/// The most answers of status 1xx before the one that counts.
const MAX_INTERIM: usize = 8;

/// The most fields of such a head.
const MAX_FIELDS: usize = 128;

/// How much of the body of a refusal is read, in bytes, and how long it is waited for.
const MAX_BODY_BYTES: usize = 4 * 1024;
const BODY_WAIT: Duration = Duration::from_secs(2);

/// What ends a body in chunks.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// The longest reason that is told of a refusal, in characters.
const MAX_REASON_CHARS: usize = 300;

/// How much is read at once.
const PIECE_BYTES: usize = 4 * 1024;

/// What every answer to a handshake is made with (RFC 6455, section 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Why there is no WebSocket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the head of its answer is longer than {MAX_HEAD_BYTES} bytes")]
    TooLong,
    #[error("its answer is no HTTP: {0}")]
    NotHttp(String),
    #[error("it answers HTTP {status} instead of a WebSocket")]
    Status {
        status: u16,
        /// Why, as far as it says so, on one line.
        reason: Option<String>,
    },
    #[error("it switches to something else than a WebSocket")]
    NotWebSocket,
    #[error("it gives devices with a key pair of their own no challenge (HTTP {0})")]
    NoChallenge(u16),
}

/// Asks the server for a WebSocket. `host` and `target` are what the request is for, `authorization` goes with it.
/// Returns what came behind the head of the answer. The caller bounds the time for it.
pub(crate) async fn upgrade(
    stream: &mut impl Stream,
    host: &str,
    target: &str,
    authorization: Option<&SecretString>,
) -> Result<Bytes, Fault> {
    let key = STANDARD.encode(fastrand::u128(..).to_be_bytes());
    let authorization = authorization.map(|shown| shown.expose_secret());
    let authorization = authorization.map(|shown| format!("Authorization: {shown}\r\n"));
    let request = format!(
        "GET {target} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{}\r\n",
        authorization.unwrap_or_default()
    );
    let answer = ask(stream, &request).await?;
    match answer.status {
        SWITCHING if answer.is_upgrade(&key) => Ok(answer.body.freeze()),
        SWITCHING => Err(Fault::NotWebSocket),
        _ => Err(answer.refusal(stream).await),
    }
}

/// Sends a request, and reads the head of its answer.
pub(crate) async fn ask(stream: &mut impl Stream, request: &str) -> Result<Answer, Fault> {
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut read = BytesMut::new();
    // What comes before the answer, such as a proxy's early hints, is none.
    for _ in 0..=MAX_INTERIM {
        let end = head_end(stream, &mut read).await?;
        let body = read.split_off(end);
        let answer = Answer::read(&read, body)?;
        if answer.status == SWITCHING || !(100..200).contains(&answer.status) {
            return Ok(answer);
        }
        read = answer.body;
    }
    Err(Fault::NotHttp("it never comes to its answer".to_owned()))
}

/// Reads until the end of the head, and says where that is.
async fn head_end(stream: &mut impl Stream, read: &mut BytesMut) -> Result<usize, Fault> {
    const END: &[u8] = b"\r\n\r\n";
    let mut seen: usize = 0;
    loop {
        if !b"HTTP/".starts_with(&read[..read.len().min(5)]) {
            return Err(Fault::NotHttp("it begins with something else".to_owned()));
        }
        let found = read[seen..].windows(END.len()).position(|window| window == END);
        if let Some(at) = found.map(|at| seen + at + END.len()).filter(|at| *at <= MAX_HEAD_BYTES) {
            return Ok(at);
        }
        if read.len() > MAX_HEAD_BYTES {
            return Err(Fault::TooLong);
        }
        seen = read.len().saturating_sub(END.len() - 1);
        read.reserve(PIECE_BYTES);
        if stream.read_buf(read).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}

/// The head of an answer, and what came behind it so far.
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The fields whose values are text.
    fields: Vec<(String, String)>,
    pub(crate) body: BytesMut,
}

impl Answer {
    fn read(head: &[u8], body: BytesMut) -> Result<Self, Fault> {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut response = httparse::Response::new(&mut fields);
        let not_http = |why: String| Fault::NotHttp(why);
        response.parse(head).map_err(|error| not_http(error.to_string()))?;
        let status = response.code.ok_or_else(|| not_http("it has no status".to_owned()))?;
        let fields = response.headers.iter().filter_map(|field| {
            let value = str::from_utf8(field.value).ok()?;
            Some((field.name.to_owned(), value.trim().to_owned()))
        });
        Ok(Self { status, fields: fields.collect(), body })
    }

    /// The value of a field.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// Whether it answers a request with this key.
    fn is_upgrade(&self, key: &str) -> bool {
        let mut hash = sha1_smol::Sha1::new();
        hash.update(key.as_bytes());
        hash.update(GUID);
        let expected = STANDARD.encode(hash.digest().bytes());
        self.field("upgrade").is_some_and(|word| word.eq_ignore_ascii_case("websocket"))
            && self.field("sec-websocket-accept") == Some(&expected)
    }

    /// What it says against us.
    pub(crate) async fn refusal(self, stream: &mut impl Stream) -> Fault {
        Fault::Status { status: self.status, reason: self.reason(stream).await }
    }

    /// What its body says; `None` if there is none.
    async fn reason(mut self, stream: &mut impl Stream) -> Option<String> {
        let is_chunked = self.field("transfer-encoding").is_some();
        // Without a length it goes up to the end of the connection.
        let length = self.field("content-length").and_then(|length| length.parse().ok());
        let length = length.unwrap_or(MAX_BODY_BYTES).min(MAX_BODY_BYTES);
        let body = &mut self.body;
        let reading = async {
            while body.len() < length && !(is_chunked && body.ends_with(LAST_CHUNK)) {
                body.reserve(PIECE_BYTES);
                if stream.read_buf(body).await.unwrap_or(0) == 0 {
                    break;
                }
            }
        };
        // What has come by then is said.
        let is_whole = tokio::time::timeout(BODY_WAIT, reading).await.is_ok();
        body.truncate(length);
        let said = if is_chunked { unchunked(body) } else { body.to_vec() };
        let late = (!is_whole && said.is_empty()).then(|| "it does not say why in time".to_owned());
        in_words(&String::from_utf8_lossy(&said)).or(late)
    }
}

/// The bytes of a body in chunks (RFC 9112, section 7.1), as many as are there.
fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(at) = rest.windows(2).position(|window| window == b"\r\n") {
        let (head, behind) = (&rest[..at], &rest[at + 2..]);
        let size =
            head.split(|byte| *byte == b';').next().and_then(|size| str::from_utf8(size).ok());
        let size = size.and_then(|size| usize::from_str_radix(size.trim(), 16).ok()).unwrap_or(0);
        let chunk = &behind[..size.min(behind.len())];
        bytes.extend_from_slice(chunk);
        rest = behind.get(size.saturating_add(2)..).unwrap_or_default();
        if size == 0 {
            break;
        }
    }
    bytes
}

/// A reason as a text: the `detail` of JSON, as UFO's servers and ours write it, or the text itself.
fn in_words(body: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Detailed {
        detail: String,
    }

    let body = body.trim();
    if body.is_empty() {
        return None;
    }
    if body.starts_with('<') {
        return Some("it says why with a web page, as proxies do".to_owned());
    }
    let text = serde_json::from_str(body).map_or(body.to_owned(), |Detailed { detail }| detail);
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MAX_REASON_CHARS) {
        Some((end, _)) => Some(format!("{}…", &line[..end])),
        None => Some(line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of an answer, and how much of it was read.
    async fn answered(answer: &[u8]) -> Result<Bytes, Fault> {
        let (mut ours, mut theirs) = tokio::io::duplex(MAX_HEAD_BYTES * 4);
        theirs.write_all(answer).await.unwrap();
        theirs.shutdown().await.unwrap();
        upgrade(&mut ours, "box:1", "/ws", None).await
    }

    async fn fault(answer: &str) -> String {
        match answered(answer.as_bytes()).await {
            Err(Fault::Status { status, reason }) => format!("{status} {reason:?}"),
            Err(fault) => fault.to_string(),
            Ok(_) => "none".to_owned(),
        }
    }

    #[test]
    fn the_answer_proves_that_the_request_was_understood() {
        let head = |accept: &str| {
            let text = format!(
                "HTTP/1.1 101 x\r\nupgrade: WebSocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
            );
            Answer::read(text.as_bytes(), BytesMut::new()).unwrap()
        };
        // The example of RFC 6455.
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        assert!(head("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=").is_upgrade(key));
        assert!(!head("s3pPLMBiTxaQ9kYGzzhZRbK+xOp=").is_upgrade(key));
    }

    #[tokio::test]
    async fn a_refusal_is_told_with_its_own_reason() {
        let with = |body: &str| {
            format!("HTTP/1.1 403 Forbidden\r\ncontent-length: {}\r\n\r\n{body}", body.len())
        };
        let long = "x".repeat(100_000);
        for (body, expected) in [
            ("", "403 None".to_owned()),
            ("no such\n name", "403 Some(\"no such name\")".to_owned()),
            (r#"{"detail":"gone","x":1}"#, "403 Some(\"gone\")".to_owned()),
            ("<html>", "403 Some(\"it says why with a web page, as proxies do\")".to_owned()),
            (&long, format!("403 Some(\"{}…\")", "x".repeat(300))),
        ] {
            assert_eq!(fault(&with(body)).await, expected);
        }
        let chunked = "HTTP/1.1 403 x\r\ntransfer-encoding: chunked\r\n\r\n5;x=y\r\nno su\r\n7\r\nch name\r\n0\r\n\r\n";
        assert_eq!(fault(chunked).await, "403 Some(\"no such name\")");
        let endless = "HTTP/1.0 403 Forbidden\r\n\r\nuntil the end";
        assert_eq!(fault(endless).await, "403 Some(\"until the end\")");
    }

    #[tokio::test]
    async fn what_is_no_upgrade_is_none() {
        for (answer, expected) in [
            ("", "unexpected end of file"),
            ("HTTP/1.1 200 OK\r\n", "unexpected end of file"),
            ("SSH-2.0-OpenSSH", "its answer is no HTTP: it begins with something else"),
            ("HTTP/1.1 zwei\r\n\r\n", "its answer is no HTTP: invalid response status"),
            ("HTTP/1.1 101 x\r\nupgrade: websocket\r\n\r\n", "it switches to something else"),
        ] {
            let fault = fault(answer).await;
            assert!(fault.starts_with(expected), "{answer:?}: {fault}");
        }
    }

    #[tokio::test]
    async fn a_head_of_any_length_takes_bounded_memory() {
        let field = format!("x: {}\r\n", "y".repeat(1000));
        let long = format!("HTTP/1.1 101 x\r\n{}", field.repeat(100));
        assert_eq!(fault(&long).await, "the head of its answer is longer than 65536 bytes");
        let line = format!("HTTP/1.1 101 {}", "x".repeat(100_000));
        assert_eq!(fault(&line).await, "the head of its answer is longer than 65536 bytes");
        let many = format!("HTTP/1.1 101 x\r\n{}\r\n", "a: b\r\n".repeat(200));
        assert!(fault(&many).await.contains("too many headers"));
    }
}
