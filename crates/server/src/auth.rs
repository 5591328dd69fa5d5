//! Who may talk to the server at all: the holders of its key.

use axum::http::{HeaderMap, Uri, header};
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

/// The scheme of a key in an `Authorization` header.
const BEARER: &[u8] = b"Bearer ";

/// The key that every peer must show.
pub(crate) struct Key(SecretString);

impl Key {
    pub(crate) fn new(key: SecretString) -> Self {
        Self(key)
    }

    /// Whether a request shows the key: as `Authorization: Bearer`, as `X-API-Key`, or as `?token=`,
    /// which is what UFO's clients send.
    pub(crate) fn admits(&self, headers: &HeaderMap, uri: &Uri) -> bool {
        header_keys(headers).any(|shown| self.is(shown))
            || query_token(uri).is_some_and(|shown| self.is(shown.as_bytes()))
    }

    /// Compared in constant time, on bytes.
    fn is(&self, shown: &[u8]) -> bool {
        // An empty key is a mistake, never a door.
        !shown.is_empty() && bool::from(self.0.expose_secret().as_bytes().ct_eq(shown))
    }
}

fn header_keys(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let bearer = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.as_bytes().split_at_checked(BEARER.len()))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(BEARER))
        .map(|(_, key)| key);
    let api_key = headers.get("x-api-key").map(|value| value.as_bytes());
    bearer.into_iter().chain(api_key)
}

fn query_token(uri: &Uri) -> Option<String> {
    let query = uri.query()?.as_bytes();
    url::form_urlencoded::parse(query)
        .find(|(name, _)| name == "token")
        .map(|(_, token)| token.into_owned())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn admits(uri: &str, headers: &[(&'static str, &[u8])]) -> bool {
        let key = Key::new(SecretString::from("s&crét".to_owned()));
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, HeaderValue::from_bytes(value).unwrap());
        }
        key.admits(&map, &uri.parse().unwrap())
    }

    #[test]
    fn the_key_is_taken_in_each_form_and_nothing_else_is() {
        assert!(admits("/ws?token=s%26cr%C3%A9t", &[]));
        assert!(admits("/ws", &[("x-api-key", "s&crét".as_bytes())]));
        assert!(admits("/ws", &[("authorization", "bearer s&crét".as_bytes())]));
        for uri in ["/ws", "/ws?token=", "/ws?token=x", "/ws?tok=s%26cr%C3%A9t"] {
            assert!(!admits(uri, &[]), "{uri}");
        }
        assert!(!admits("/ws", &[("x-api-key", b"\xff\xfe")]));
        assert!(!admits("/ws", &[("authorization", b"Basic abc")]));
    }
}
