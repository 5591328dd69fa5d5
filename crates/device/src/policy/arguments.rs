//! The arguments of a call, as rules look at them.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use aip::Payload;
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use wildmatch::WildMatch;

/// How much of a name is repeated to whoever sent it, in characters.
const NAME_HEAD_CHARS: usize = 40;

/// The arguments of a call; `null` where there are none, or nobody looks at them.
pub(super) struct Arguments(Value);

impl Arguments {
    /// Checks the arguments, and reads them if some rule looks at them.
    ///
    /// # Errors
    /// When one object has a name twice, at any depth. What JSON means then is up to each reader: the tool
    /// might see another value than the one that was judged, or that the owner was shown.
    pub(super) fn read(parameters: Option<&Payload>, is_looked_at: bool) -> Result<Self, String> {
        let Some(parameters) = parameters else { return Ok(Self(Value::Null)) };
        let unfit = |error: serde_json::Error| format!("unclear arguments: {error}");
        parameters.parse::<Unambiguous>().map_err(unfit)?;
        let read = is_looked_at.then(|| parameters.parse().map_err(unfit));
        Ok(Self(read.transpose()?.unwrap_or_default()))
    }

    /// Whether the argument is there and its text fits. Of a list, every item must or any item may.
    pub(super) fn fit(&self, name: &str, pattern: &WildMatch, every: bool) -> bool {
        fits(&self.0, Some(name), pattern, every)
    }
}

fn fits(value: &Value, name: Option<&str>, pattern: &WildMatch, every: bool) -> bool {
    match (value, name) {
        (Value::Array(items), name) => {
            quantified(every, items.iter().map(|item| fits(item, name, pattern, every)))
        }
        (Value::Object(members), Some(name)) => {
            let meant = ways(name).filter_map(|(key, rest)| Some((members.get(key)?, rest)));
            quantified(every, meant.map(|(member, rest)| fits(member, rest, pattern, every)))
        }
        (_, Some(_)) => false,
        (value, None) => pattern.matches(&text(value)),
    }
}

/// Whether all fit, of which there must be some, or any.
fn quantified(every: bool, mut fit: impl Iterator<Item = bool>) -> bool {
    if every { fit.next() == Some(true) && fit.all(|fits| fits) } else { fit.any(|fits| fits) }
}

/// Each way to read a name with dots: `a.b` is the member `a.b`, or `b` inside `a`.
fn ways(name: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    let inside = name.match_indices('.').map(|(at, _)| (&name[..at], Some(&name[at + 1..])));
    inside.chain([(name, None)])
}

/// What a pattern is held against. Escapes are decoded; a whole number looks the same however it is
/// written.
fn text(value: &Value) -> Cow<'_, str> {
    /// Up to here each whole number is one float.
    const EXACT: f64 = 9_007_199_254_740_992.0;

    match value {
        Value::String(text) => Cow::Borrowed(text),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() <= EXACT => {
                Cow::Owned((float as i64).to_string())
            }
            _ => Cow::Owned(number.to_string()),
        },
        value => Cow::Owned(value.to_string()),
    }
}

/// Any JSON in which no object has a name twice. Nothing of it is kept.
struct Unambiguous;

impl<'de> Deserialize<'de> for Unambiguous {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Names).map(|()| Self)
    }
}

struct Names;

impl<'de> Visitor<'de> for Names {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut names = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            map.next_value::<Unambiguous>()?;
            if let Some(name) = names.replace(name) {
                let head: String = name.chars().take(NAME_HEAD_CHARS).collect();
                return Err(A::Error::custom(format_args!("{head:?} is there twice")));
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element::<Unambiguous>()?.is_some() {}
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}
