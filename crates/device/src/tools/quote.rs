//! Strangers' text in our sentences.

/// The most characters of a stranger's text that a sentence repeats at once.
const MAX_QUOTED: usize = 200;

/// Puts `text` in quotes, with control characters escaped and what is too long cut off.
pub(super) fn quote(text: &str) -> String {
    let mut quoted = String::new();
    let mut length = 0;
    for character in text.chars() {
        let escaped = character.escape_debug();
        length += escaped.len();
        if length > MAX_QUOTED {
            return format!("\"{quoted}…\"");
        }
        quoted.extend(escaped);
    }
    format!("\"{quoted}\"")
}
