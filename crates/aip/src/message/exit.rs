//! How a command exited, read out of what its tool returned.

use std::cell::Cell;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};

use crate::payload::Payload;

/// The key under which `execute_command`, and tools like it, return it.
const KEY: &str = "exit_code";

/// How much of a result is looked at, in bytes: our devices write the code before the output.
const MAX_BYTES: usize = 64 * 1024;

/// The exit code in what a tool returned. `None` where it is no object that has one within its first 64 KiB.
#[must_use]
pub fn exit_code(result: &Payload) -> Option<i64> {
    let text = result.as_bytes();
    let mut json = serde_json::Deserializer::from_slice(&text[..text.len().min(MAX_BYTES)]);
    let found = Cell::new(None);
    // It ends with an error in any case: where the code is found, or where the text is cut.
    let _read = Finder(&found).deserialize(&mut json);
    found.get()
}

/// Notes the first exit code of an object, and reads no further.
struct Finder<'a>(&'a Cell<Option<i64>>);

impl<'de> DeserializeSeed<'de> for Finder<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Finder<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("what a command returned")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            if key == KEY {
                self.0.set(Some(map.next_value()?));
                return Err(A::Error::custom("found"));
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: String) -> Option<i64> {
        exit_code(&Payload::from_text(text).unwrap())
    }

    #[test]
    fn it_is_found_wherever_it_stands_in_the_beginning_of_a_result() {
        for (text, expected) in [
            (r#"{"success":false,"exit_code":3,"stdout":"x"}"#, Some(3)),
            (r#"{"stdout":"{\"exit_code\":1}","exit_code":-1}"#, Some(-1)),
            (r#"{"exit_code":0}"#, Some(0)),
            (r#"{"exit_code":"1"}"#, None),
            (r#"{"exit_code":null}"#, None),
            (r#"{"a":{"exit_code":1}}"#, None),
            (r#"[{"exit_code":1}]"#, None),
            (r#""exit_code""#, None),
            ("{}", None),
        ] {
            assert_eq!(code(text.to_owned()), expected, "{text}");
        }
    }

    #[test]
    fn a_long_output_behind_it_is_not_read_and_one_before_it_hides_it() {
        let long = "é".repeat(1_000_000);
        assert_eq!(code(format!(r#"{{"exit_code":3,"stdout":"{long}"}}"#)), Some(3));
        assert_eq!(code(format!(r#"{{"stdout":"{long}","exit_code":3}}"#)), None);
    }
}
