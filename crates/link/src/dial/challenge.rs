//! Asks a server for the challenge that a device answers with its upgrade, on the connection that is upgraded then.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{DialError, ServerUrl};
use crate::proof::{CHALLENGE_PATH, Challenge, NONCE_HEADER, STORE_HEADER};

/// The longest head of an answer that is read, in bytes.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// The most headers of an answer.
const MAX_HEADERS: usize = 64;

/// Asks for a challenge. The answer has no body, so the stream is where a next request begins.
///
/// # Errors
/// When the server gives none.
pub(super) async fn ask(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    server: &ServerUrl,
) -> Result<Challenge, DialError> {
    let path = server.path_of(CHALLENGE_PATH);
    let (host, port) = (&server.host, server.port);
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n");
    let unreachable = |error| DialError::Unreachable(server.to_string(), error);
    stream.write_all(request.as_bytes()).await.map_err(unreachable)?;
    stream.flush().await.map_err(unreachable)?;
    let head = head(stream).await.map_err(unreachable)?;
    let no_server = |why: &str| DialError::NotAServer(server.to_string(), why.to_owned());
    let (status, challenge) =
        read(&head).ok_or_else(|| no_server("its answer to the device is not HTTP"))?;
    match (status, challenge) {
        (204, Some(challenge)) => Ok(challenge),
        (403 | 401, _) => Err(DialError::Unauthorized(server.to_string(), status, "")),
        (404, _) => Err(no_server("it knows nothing of the key pairs of devices (HTTP 404)")),
        _ => Err(no_server(&format!("it gives the device no challenge (HTTP {status})"))),
    }
}

/// The head of an answer, read to its end and no further.
async fn head(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= MAX_HEAD_BYTES {
            return Err(std::io::Error::other("its answer does not end"));
        }
        // What stands behind the head is for who reads the next answer. Of a few hundred bytes each, this is no cost.
        head.push(stream.read_u8().await?);
    }
    Ok(head)
}

/// The status of an answer, and the challenge in it.
fn read(head: &[u8]) -> Option<(u16, Option<Challenge>)> {
    let mut lines = std::str::from_utf8(head).ok()?.split("\r\n");
    let mut words = lines.next()?.split(' ');
    words.next()?.starts_with("HTTP/1.").then_some(())?;
    let status = words.next()?.parse().ok()?;
    let headers: Vec<_> = lines.take(MAX_HEADERS).filter_map(|line| line.split_once(':')).collect();
    let header = |name: &str| {
        let found = headers.iter().find(|(found, _)| found.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim())
    };
    let challenge = header(NONCE_HEADER).zip(header(STORE_HEADER));
    Some((status, challenge.and_then(|(nonce, store)| Challenge::read(nonce, store))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is made of an answer, and what of the stream is left for the next one.
    async fn asked(answer: &str) -> (Result<Challenge, DialError>, String) {
        let (mut near, mut far) = tokio::io::duplex(64 * 1024);
        far.write_all(answer.as_bytes()).await.unwrap();
        let server: ServerUrl = "ws://box:1/agents/ws".parse().unwrap();
        let asked = ask(&mut near, &server).await;
        let mut request = vec![0; 1024];
        let n = far.read(&mut request).await.unwrap();
        let request = String::from_utf8_lossy(&request[..n]).into_owned();
        assert!(request.starts_with("GET /agents/api/v1/challenge HTTP/1.1\r\nHost: box:1\r\n"));
        drop(far);
        let mut left = String::new();
        near.read_to_string(&mut left).await.unwrap();
        (asked, left)
    }

    #[tokio::test]
    async fn the_challenge_stands_in_the_head_and_nothing_behind_it_is_taken() {
        let nonce = "A".repeat(43);
        let good = format!("HTTP/1.1 204 No Content\r\nFlightdeck-Nonce: {nonce}\r\n");
        let (asked, left) = asked(&format!("{good}flightdeck-store: s\r\n\r\nnext")).await;
        assert_eq!(asked.unwrap(), Challenge { nonce: [0; 32], store: "s".to_owned() });
        assert_eq!(left, "next");
    }

    #[tokio::test]
    async fn any_other_answer_is_an_error_that_says_so() {
        let endless = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(MAX_HEAD_BYTES));
        for (answer, says) in [
            ("HTTP/1.1 204 No Content\r\n\r\n", "no challenge (HTTP 204)"),
            ("HTTP/1.1 204 N\r\nflightdeck-nonce: AA\r\nflightdeck-store: s\r\n\r\n", "204"),
            ("HTTP/1.1 404 Not Found\r\n\r\n", "nothing of the key pairs"),
            ("HTTP/1.1 403 Forbidden\r\n\r\n", "HTTP 403"),
            ("SSH-2.0-OpenSSH\r\n\r\n", "not HTTP"),
            (&endless, "does not end"),
        ] {
            let error = asked(answer).await.0.unwrap_err().to_string();
            assert!(error.contains(says), "{answer}: {error}");
        }
    }
}
