//! Which characters leave no mark, so that ids and names that differ look different wherever they are shown or logged.

use std::borrow::Cow;
use std::fmt::Write;

/// Whether a character leaves no mark, or changes the direction of the text around it: zero-width ones, those that are
/// instructions to who lays out text, and tags. Control characters are another matter: see [`char::is_control`].
#[must_use]
pub const fn is_hidden(c: char) -> bool {
    matches!(
        c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
    )
}

/// JSON with such characters, and control characters beyond those that JSON itself has escaped, written as `\uXXXX`: it
/// stays equal. Outside of strings valid JSON has none of them.
#[must_use]
pub fn escape_json(json: &str) -> Cow<'_, str> {
    // What comes before is the space between two tokens.
    let is_bad = |c: char| (c > '\u{1f}' && c.is_control()) || is_hidden(c);
    if !json.contains(is_bad) {
        return json.into();
    }
    let mut escaped = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if is_bad(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing into a string cannot fail.
                let _written = write!(escaped, "\\u{unit:04x}");
            }
        } else {
            escaped.push(c);
        }
    }
    escaped.into()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn what_hides_is_escaped_in_json_that_stays_equal() {
        let id = "web\u{200b}-\u{202e}1\u{2066}\u{feff}\u{e0041}\u{7f}\u{9b}";
        let json = serde_json::to_string_pretty(&json!({ "id": id, "é": "日\n\u{1b}😀" })).unwrap();
        let escaped = escape_json(&json);
        let expected = r"web\u200b-\u202e1\u2066\ufeff\udb40\udc41\u007f\u009b";
        assert!(escaped.contains(expected) && escaped.contains("日\\n\\u001b😀"), "{escaped}");
        let equal = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!(equal(&escaped), equal(&json));
        let spaced = "{\r\n\t\"a\": \"é\" }";
        assert_eq!(escape_json(spaced), spaced);
    }
}
