//! Who may talk to the server, and what each key lets its holder do.

mod keyring;
mod pattern;
mod record;

use axum::http::{HeaderMap, Uri, header};

pub use keyring::Keys;
pub(crate) use keyring::{Keyring, Principal};
pub use pattern::Pattern;
pub use record::{KeyRecord, NewKey, Role, generate_key};

/// The scheme of a key in an `Authorization` header.
const BEARER: &[u8] = b"Bearer ";

/// The keys that a request shows: as `Authorization: Bearer`, as `X-API-Key`, or as `?token=`, which
/// is what UFO's clients send.
fn shown_keys(headers: &HeaderMap, uri: &Uri, mut see: impl FnMut(&[u8]) -> bool) -> bool {
    header_keys(headers).any(&mut see)
        || query_token(uri).is_some_and(|shown| see(shown.as_bytes()))
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
