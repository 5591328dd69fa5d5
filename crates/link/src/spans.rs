//! The spans of a client's log, by which a line says whose link it is about.
//!
//! They are at the level of errors, so that no filter which lets a line through drops what the line leaves to them.

use aip::message::Confirmed;
use aip::{ClientId, ClientType};
use tracing::Span;

/// The longest id of a connection that is shown, in bytes.
const MAX_ID_BYTES: usize = 64;

/// The span of all that a client does.
pub(crate) fn client(id: &ClientId, role: ClientType) -> Span {
    tracing::error_span!("client", client = %id, role = %role)
}

/// The span of one connection, by the server's id of it. There is none where the server gave no id, or one that
/// could break a line.
pub(crate) fn connection(granted: Option<&Confirmed>) -> Span {
    let id = granted.map(|granted| granted.connection.as_str());
    match id.filter(|id| is_showable(id)) {
        Some(id) => tracing::error_span!("connection", connection = %id),
        None => Span::none(),
    }
}

fn is_showable(id: &str) -> bool {
    (1..=MAX_ID_BYTES).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_a_connection_is_shown_only_if_it_breaks_no_line() {
        assert!(is_showable("c1") && is_showable(&"c".repeat(MAX_ID_BYTES)));
        for odd in ["", "c 1", "c\n1", "c\u{1b}[2J", "ä", &"c".repeat(MAX_ID_BYTES + 1)] {
            assert!(!is_showable(odd), "{odd:?}");
        }
    }
}
