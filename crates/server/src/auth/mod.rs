//! Who may talk to the server, and what each key lets its holder do.

mod challenges;
mod join;
mod keyring;
mod looks;
mod pattern;
mod record;

use std::io;

use axum::http::{HeaderMap, Uri, header};
use secrecy::SecretString;

pub(crate) use challenges::Challenges;
pub use join::{FirstUse, JoinToken, KeyBook, NewJoinToken};
pub(crate) use join::{JoinRefused, Joining};
pub use keyring::Keys;
pub(crate) use keyring::{Keyring, NotProved, Principal};
pub use looks::KeyLook;
pub(crate) use looks::Looks;
pub use pattern::Pattern;
pub use record::{KeyRecord, NewKey, Role, generate_key};

/// Where the keys are kept, for a server that makes some itself: when somebody joins.
pub trait KeyStore: Send + Sync {
    /// Has `change` change what is kept, which nobody else does meanwhile, and returns it as it is kept then; nothing if
    /// `change` says that it did not. Waits for the disk.
    ///
    /// # Errors
    /// When the keys cannot be read or kept.
    fn change(&self, change: BookChange<'_>) -> io::Result<Option<KeyBook>>;
}

/// Changes a book, and says whether it did.
pub type BookChange<'a> = &'a mut dyn FnMut(&mut KeyBook) -> bool;

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

/// The token that a request shows as `Authorization: Bearer`.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<SecretString> {
    let (scheme, token) =
        headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_at_checked(BEARER.len())?;
    scheme.as_bytes().eq_ignore_ascii_case(BEARER).then(|| token.trim().to_owned().into())
}

fn query_token(uri: &Uri) -> Option<String> {
    let query = uri.query()?.as_bytes();
    url::form_urlencoded::parse(query)
        .find(|(name, _)| name == "token")
        .map(|(_, token)| token.into_owned())
}
