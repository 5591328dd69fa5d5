//! The arguments of a call, as rules look at them.

use std::borrow::Cow;
use std::fmt;
use std::hash::{BuildHasher, RandomState};

use aip::Payload;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use wildmatch::WildMatch;

/// How much of a name is repeated to whoever sent it, in characters.
const NAME_HEAD_CHARS: usize = 40;

/// The arguments of a call, as far as rules look at them; `null` where there are none.
pub(super) struct Arguments(Value);

impl Arguments {
    /// Checks the arguments, and keeps those that `looked_at` names, with dots for those inside others.
    ///
    /// # Errors
    /// When one object has a name twice, at any depth. What JSON means then is up to each reader: the tool
    /// might see another value than the one that was judged, or that the owner was shown.
    pub(super) fn read<'a>(
        parameters: Option<&Payload>,
        looked_at: impl Iterator<Item = &'a str>,
    ) -> Result<Self, String> {
        let Some(parameters) = parameters else { return Ok(Self(Value::Null)) };
        let (wanted, mut names) = (Wanted::Inside(looked_at.collect()), Names::default());
        let mut read = names.read(parameters, &wanted);
        if names.twice.is_some() {
            // Once more, to say which it is.
            read = names.read(parameters, &wanted);
        }
        read.map(Self).map_err(|error| format!("unclear arguments: {error}"))
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

/// The names of the objects that are being read, by their hashes: arguments may be nothing but names, and
/// must not take much more memory than their text.
#[derive(Default)]
struct Names {
    /// Made anew for each call, so that nobody can choose names that look the same. Of ten million names two
    /// look the same once in a hundred thousand calls, and the call is refused.
    key: RandomState,
    /// Those of the outermost object first.
    seen: Vec<u64>,
    /// One that was found twice.
    twice: Option<u64>,
}

impl Names {
    fn read(
        &mut self,
        parameters: &Payload,
        wanted: &Wanted<'_>,
    ) -> Result<Value, serde_json::Error> {
        self.seen.clear();
        let mut json = serde_json::Deserializer::from_str(parameters.as_str());
        // The codec has bounded the depth.
        json.disable_recursion_limit();
        Look { names: self, wanted }.deserialize(&mut json)
    }

    /// Takes note of a name.
    fn note<E: Error>(&mut self, name: &str) -> Result<(), E> {
        let hash = self.key.hash_one(name);
        if self.twice == Some(hash) {
            let head: String = name.chars().take(NAME_HEAD_CHARS).collect();
            return Err(E::custom(format_args!("{head:?} is there twice")));
        }
        self.seen.push(hash);
        Ok(())
    }

    /// Forgets the names of an object, which come after the first `outer`, and must all differ.
    fn close<E: Error>(&mut self, outer: usize) -> Result<(), E> {
        let names = &mut self.seen[outer..];
        names.sort_unstable();
        let twice = names.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0]);
        self.seen.truncate(outer);
        if twice.is_some() {
            self.twice = twice;
            return Err(E::custom("a name is there twice"));
        }
        Ok(())
    }
}

/// What of a value is kept.
enum Wanted<'a> {
    Whole,
    /// Members with these names, with dots for those inside others.
    Inside(Vec<&'a str>),
}

impl<'a> Wanted<'a> {
    /// What is kept of a member.
    fn of(&self, member: &str) -> Self {
        let Self::Inside(names) = self else { return Self::Whole };
        if names.contains(&member) {
            return Self::Whole;
        }
        let inside = |name: &&'a str| name.strip_prefix(member)?.strip_prefix('.');
        Self::Inside(names.iter().filter_map(inside).collect())
    }

    fn is_nothing(&self) -> bool {
        matches!(self, Self::Inside(names) if names.is_empty())
    }
}

/// Reads any JSON, and keeps what is wanted of it.
struct Look<'a> {
    names: &'a mut Names,
    wanted: &'a Wanted<'a>,
}

impl Look<'_> {
    /// A plain value.
    fn keep<E>(&self, value: impl Into<Value>) -> Result<Value, E> {
        Ok(if self.wanted.is_nothing() { Value::Null } else { value.into() })
    }
}

impl<'de> DeserializeSeed<'de> for Look<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Look<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let (Self { names, wanted }, mut kept) = (self, Map::new());
        let outer = names.seen.len();
        while let Some(member) = map.next_key_seed(Name { names, wanted })? {
            let (name, wanted) = member.unwrap_or((String::new(), Wanted::Inside(Vec::new())));
            let value = map.next_value_seed(Look { names, wanted: &wanted })?;
            if !wanted.is_nothing() {
                kept.insert(name, value);
            }
        }
        names.close(outer)?;
        Ok(Value::Object(kept))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let (Self { names, wanted }, mut kept) = (self, Vec::new());
        while let Some(item) = items.next_element_seed(Look { names, wanted })? {
            if !wanted.is_nothing() {
                kept.push(item);
            }
        }
        Ok(Value::Array(kept))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        self.keep(text)
    }

    fn visit_bool<E>(self, is: bool) -> Result<Value, E> {
        self.keep(is)
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        self.keep(number)
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        self.keep(number)
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        self.keep(number)
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

/// Reads the name of a member; gives it back with what is kept of the member, if anything is.
struct Name<'a, 'w> {
    names: &'a mut Names,
    wanted: &'a Wanted<'w>,
}

impl<'de, 'w> DeserializeSeed<'de> for Name<'_, 'w> {
    type Value = Option<(String, Wanted<'w>)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'w> Visitor<'_> for Name<'_, 'w> {
    type Value = Option<(String, Wanted<'w>)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        self.names.note(name)?;
        let wanted = self.wanted.of(name);
        Ok((!wanted.is_nothing()).then(|| (name.to_owned(), wanted)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_names_take_less_memory_than_their_text() {
        let members: Vec<_> = (0..100_000).map(|number| format!("\"{number}\":0")).collect();
        let rows = format!("{{\"rows\":[{}]}}", vec![r#"{"a":1,"b":2}"#; 10_000].join(","));
        for (text, most) in [(format!("{{{}}}", members.join(",")), 1 << 17), (rows, 8)] {
            let (mut names, wanted) = (Names::default(), Wanted::Inside(vec!["path"]));
            let kept = names.read(&Payload::from_text(text).unwrap(), &wanted).unwrap();
            assert!(names.seen.capacity() <= most, "{}", names.seen.capacity());
            assert_eq!(kept, serde_json::json!({}), "no rule looks at any");
        }
    }
}
