//! The address with which a machine joins: where the server is, a join token, and the server's public key.
//! `wss://HOST:PORT#TOKEN.PIN`, and without TLS `ws://HOST:PORT#TOKEN`.

use std::io::{BufRead, Read};

use anyhow::{Context, bail, ensure};
use link::{Pin, ServerUrl};
use secrecy::{ExposeSecret, SecretString};

/// The longest address that is read from standard input, in bytes.
const MAX_BYTES: u64 = 8 * 1024;

/// What is typed where the address comes by standard input, on one line.
const STANDARD_INPUT: &str = "-";

/// An invitation to join.
#[derive(Debug)]
pub(crate) struct Invitation {
    pub(crate) server: ServerUrl,
    pub(crate) token: SecretString,
    /// What tells the server's public key from others; none without TLS.
    pub(crate) pin: Option<Pin>,
}

impl Invitation {
    /// Reads what was typed: the address itself, the whole line that has it, or `-` for standard input.
    ///
    /// # Errors
    /// When it is no such address. What is said shows none of it.
    pub(crate) fn typed(text: &SecretString) -> anyhow::Result<Self> {
        if text.expose_secret() != STANDARD_INPUT {
            return Self::read(text.expose_secret());
        }
        let mut input = String::new();
        let read = std::io::stdin().lock().take(MAX_BYTES).read_line(&mut input);
        let count = read.context("cannot read the address to join at from standard input")?;
        ensure!(
            count > 0,
            "nothing came from standard input, where the address to join at was to be"
        );
        Self::read(SecretString::from(input).expose_secret())
    }

    fn read(text: &str) -> anyhow::Result<Self> {
        let address = text.split_whitespace().find(|word| word.contains("://")).unwrap_or_default();
        let address = address.trim_matches(['\'', '"']);
        let Some((server, secret)) = address.split_once('#') else {
            bail!(
                "this is no address to join at: `flightdeck join-token create` prints one on the server's machine"
            );
        };
        let server: ServerUrl = server.parse().context("the address to join at")?;
        let (token, pin) = match secret.split_once('.') {
            Some((token, pin)) => (token, Some(pin.parse().context("the address to join at")?)),
            None => (secret, None),
        };
        ensure!(!token.is_empty(), "the address to join at has no token behind its #");
        Ok(Self { server, token: token.to_owned().into(), pin })
    }

    /// All of it, as it is typed.
    pub(crate) fn address(&self) -> SecretString {
        quoted(&self.server, &self.token, self.pin).trim_matches('\'').to_owned().into()
    }

    /// Refuses to show the token where whoever is on the way could read it.
    pub(crate) fn check_way(&self, is_insecure: bool) -> anyhow::Result<()> {
        ensure!(
            self.server.is_tls() || self.server.is_loopback() || is_insecure,
            "will not join {} without TLS: whoever is on the way could join instead\n  if the network is \
             trusted, give --insecure too",
            self.server
        );
        Ok(())
    }

    /// The part of the token that names it and is no secret.
    pub(crate) fn token_id(&self) -> &str {
        self.token.expose_secret().split('_').nth(1).unwrap_or_default()
    }
}

/// The address, in single quotes, as a shell takes it.
pub(crate) fn quoted(server: &ServerUrl, token: &SecretString, pin: Option<Pin>) -> String {
    let address = server.to_string();
    let address = address.strip_suffix("/ws").unwrap_or(&address);
    let pin = pin.map(|pin| format!(".{pin}")).unwrap_or_default();
    format!("'{address}#{}{pin}'", token.expose_secret())
}

/// The line that joins a device.
pub(crate) fn device_line(server: &ServerUrl, token: &SecretString, pin: Option<Pin>) -> String {
    let is_open = server.is_tls() || server.is_loopback();
    let insecure = if is_open { "" } else { "--insecure " };
    format!("flightdeck device {insecure}--join {}", quoted(server, token, pin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_what_is_read() {
        let pin: Pin = "A".repeat(43).parse().unwrap();
        let token = SecretString::from("fdj_abc_secret");
        for (server, pin) in [("wss://10.0.0.5:5000", Some(pin)), ("ws://10.0.0.5:5000", None)] {
            let server: ServerUrl = server.parse().unwrap();
            let line = device_line(&server, &token, pin);
            for text in [line.as_str(), &format!("  {}\n", quoted(&server, &token, pin))] {
                let read = Invitation::read(text).unwrap();
                assert_eq!(read.server.to_string(), server.to_string());
                assert_eq!((read.token.expose_secret(), read.pin), ("fdj_abc_secret", pin));
                assert_eq!(read.token_id(), "abc");
                assert!(!format!("{read:?}").contains("secret"));
                assert_eq!(read.check_way(false).is_ok(), server.is_tls());
                assert!(read.check_way(true).is_ok());
            }
        }
    }

    #[test]
    fn what_is_no_address_is_refused_without_being_shown() {
        for text in [
            "",
            "fdj_a_secret",
            "wss://box:1",
            "wss://box:1#",
            "wss://box#fdj_a_secret.x",
            "ftp://b#fdj_a_secret",
        ] {
            let error = format!("{:#}", Invitation::read(text).unwrap_err());
            assert!(!error.contains("secret") && error.contains("join"), "{text}: {error}");
        }
    }
}
