//! Asks a server for the challenge that a device answers with its upgrade, on the connection that is upgraded then.

use crate::handshake::{self, Answer, Fault};
use crate::proof::{Challenge, NONCE_HEADER, STORE_HEADER};
use crate::transport::Stream;

/// Asks for a challenge. The answer has no body, so the stream is where a next request begins.
///
/// # Errors
/// When the server gives none.
pub(super) async fn ask(
    stream: &mut impl Stream,
    host: &str,
    target: &str,
) -> Result<Challenge, Fault> {
    let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let answer = handshake::ask(stream, &request).await?;
    let challenge = |answer: &Answer| {
        let (nonce, store) = (answer.field(NONCE_HEADER)?, answer.field(STORE_HEADER)?);
        Challenge::read(nonce, store)
    };
    match answer.status {
        204 if answer.body.is_empty() => challenge(&answer).ok_or(Fault::NoChallenge(204)),
        status @ (200..=299 | 404) => Err(Fault::NoChallenge(status)),
        _ => Err(answer.refusal(stream).await),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// What is made of an answer.
    async fn asked(answer: &str) -> Result<Challenge, Fault> {
        let (mut near, mut far) = tokio::io::duplex(128 * 1024);
        far.write_all(answer.as_bytes()).await.unwrap();
        let asked = ask(&mut near, "box:1", "/agents/api/v1/challenge").await;
        let mut request = vec![0; 1024];
        let n = far.read(&mut request).await.unwrap();
        let request = String::from_utf8_lossy(&request[..n]).into_owned();
        assert_eq!(request, "GET /agents/api/v1/challenge HTTP/1.1\r\nHost: box:1\r\n\r\n");
        asked
    }

    #[tokio::test]
    async fn the_challenge_stands_in_the_head() {
        let nonce = "A".repeat(43);
        let good = format!("HTTP/1.1 204 No Content\r\nFlightdeck-Nonce: {nonce}\r\n");
        let challenge = asked(&format!("{good}flightdeck-store: s\r\n\r\n")).await.unwrap();
        assert_eq!(challenge, Challenge { nonce: [0; 32], store: "s".to_owned() });
    }

    #[tokio::test]
    async fn any_other_answer_is_an_error_that_says_so() {
        let nonce = "A".repeat(43);
        let behind = format!(
            "HTTP/1.1 204 N\r\nflightdeck-nonce: {nonce}\r\nflightdeck-store: s\r\n\r\nmore"
        );
        for (answer, says) in [
            ("HTTP/1.1 204 No Content\r\n\r\n", "no challenge (HTTP 204)"),
            ("HTTP/1.1 204 N\r\nflightdeck-nonce: AA\r\nflightdeck-store: s\r\n\r\n", "204"),
            (&behind, "204"),
            ("HTTP/1.1 404 Not Found\r\n\r\n", "no challenge (HTTP 404)"),
            ("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n", "HTTP 403"),
            ("SSH-2.0-OpenSSH\r\n\r\n", "no HTTP"),
        ] {
            let fault = asked(answer).await.unwrap_err().to_string();
            assert!(fault.contains(says), "{answer}: {fault}");
        }
    }
}
