//! Which ids a key is for.

use std::fmt;
use std::str::FromStr;

use aip::ClientId;
use serde::{Deserialize, Serialize};

/// The longest pattern, in characters: as long as the longest id.
const MAX_CHARS: usize = 256;

/// Ids by their form: `*` stands for any characters, also none, and everything else for itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(String);

impl Pattern {
    /// Whether an id is of this form.
    #[must_use]
    pub fn matches(&self, id: &ClientId) -> bool {
        let mut parts = self.0.split('*');
        let Some(mut rest) = parts.next().and_then(|head| id.as_str().strip_prefix(head)) else {
            return false;
        };
        let Some(tail) = parts.next_back() else { return rest.is_empty() };
        for part in parts {
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
        rest.ends_with(tail)
    }

    /// Whether one id alone is of this form.
    pub(crate) fn is_exact(&self) -> bool {
        !self.0.contains('*')
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.chars().count() > MAX_CHARS {
            return Err(format!("a pattern has 1 to {MAX_CHARS} characters"));
        }
        if text.chars().any(char::is_control) {
            return Err("a pattern has no control characters".to_owned());
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.0
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything_and_all_else_for_itself() {
        for (pattern, yes, no) in [
            ("lab-1", &["lab-1"][..], &["lab-10", "lab", "Lab-1"][..]),
            ("lab-*", &["lab-", "lab-1", "lab-*"], &["lab", "xlab-1"]),
            ("*", &["a", "*", "é"], &[]),
            ("*-pc", &["-pc", "a-pc", "-pc-pc"], &["a-pc-1"]),
            ("a*b*c", &["abc", "a1b2c", "abbc", "abcbc"], &["ab", "acb", "abcb"]),
            ("ab*ba", &["abba", "ab-ba"], &["aba", "ab"]),
            ("a?.[b]", &["a?.[b]"], &["ax.b"]),
        ] {
            let pattern: Pattern = pattern.parse().unwrap();
            let matches = |id: &&str| pattern.matches(&ClientId::new(id).unwrap());
            assert!(yes.iter().all(matches), "{pattern}");
            assert!(!no.iter().any(matches), "{pattern}");
        }
    }

    #[test]
    fn a_pattern_is_short_and_plain() {
        for bad in ["", "a\n", &"x".repeat(257)] {
            assert!(bad.parse::<Pattern>().is_err());
        }
    }
}
