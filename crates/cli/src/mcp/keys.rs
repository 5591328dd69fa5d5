//! One table of a file, whose keys are taken one by one: what is of the wrong type or left over is a fault.
//!
//! No fault repeats a value: it may be a secret.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::expand::{Place, is_literal};

/// Most texts in one list, such as arguments.
const MAX_TEXTS: usize = 256;

/// Most entries of one table, such as variables or headers.
const MAX_ENTRIES: usize = 256;

/// The longest key that a message repeats, in bytes: beyond it something is in the wrong place.
const MAX_SHOWN: usize = 32;

/// How like an unknown key is to the one that was probably meant.
const LIKENESS: f64 = 0.75;

pub(super) struct Keys<'a> {
    values: Map<String, Value>,
    known: Vec<&'static str>,
    place: &'a Place<'a>,
    faults: Vec<String>,
    has_secret: bool,
}

impl<'a> Keys<'a> {
    pub(super) fn new(values: Map<String, Value>, place: &'a Place<'a>) -> Self {
        Self { values, known: Vec::new(), place, faults: Vec::new(), has_secret: false }
    }

    /// Takes a value as it stands there; null is none.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.values.remove(key).filter(|value| !value.is_null())
    }

    pub(super) fn flag(&mut self, key: &'static str, default: bool) -> bool {
        match self.take(key) {
            None => default,
            Some(Value::Bool(flag)) => flag,
            Some(_) => self.fault(format!("{key} must be true or false")),
        }
    }

    pub(super) fn text(&mut self, key: &'static str) -> Option<String> {
        let value = self.take(key)?;
        Some(self.expanded(key, &value))
    }

    /// A number, or a text that is one once its variables are put in.
    pub(super) fn port(&mut self, key: &'static str) -> Option<u16> {
        let port = match self.take(key)? {
            Value::Number(number) => number.as_u64().and_then(|number| number.try_into().ok()),
            value => self.expanded(key, &value).parse().ok(),
        };
        match port {
            Some(port @ 1..) => Some(port),
            _ => self.fault(format!("{key} must be a number from 1 to 65535")),
        }
    }

    /// A list of texts; none without it.
    pub(super) fn texts(&mut self, key: &'static str) -> Vec<String> {
        match self.take(key) {
            None => Vec::new(),
            Some(Value::Array(items)) if items.len() > MAX_TEXTS => {
                self.fault(format!("{key} has more than {MAX_TEXTS} entries"))
            }
            Some(Value::Array(items)) => {
                let numbered = items.iter().enumerate();
                numbered.map(|(at, item)| self.expanded(&format!("{key}[{at}]"), item)).collect()
            }
            Some(_) => self.fault(format!("{key} must be a list of texts")),
        }
    }

    /// A table of texts whose values may be secret; none without it.
    pub(super) fn table(&mut self, key: &'static str) -> BTreeMap<String, String> {
        match self.take(key) {
            None => BTreeMap::new(),
            Some(Value::Object(entries)) if entries.len() > MAX_ENTRIES => {
                self.fault(format!("{key} has more than {MAX_ENTRIES} entries"))
            }
            Some(Value::Object(entries)) => {
                self.has_secret |= entries.values().filter_map(Value::as_str).any(is_literal);
                let expanded = |(name, value): (String, Value)| {
                    let label = format!("{key}.{}", shown_with(&name, &value));
                    let value = self.expanded(&label, &value);
                    (name, value)
                };
                entries.into_iter().map(expanded).collect()
            }
            Some(_) => self.fault(format!("{key} must be a table of texts")),
        }
    }

    fn expanded(&mut self, label: &str, value: &Value) -> String {
        let Value::String(text) = value else {
            return self.fault(format!("{label} must be text; put it in quotes"));
        };
        self.place.expand(text).unwrap_or_else(|why| self.fault(format!("{label}: {why}")))
    }

    /// Notes a fault; what it returns is not used, since a server with faults is left out.
    pub(super) fn fault<T: Default>(&mut self, fault: String) -> T {
        self.faults.push(fault);
        T::default()
    }

    /// All faults, with the keys that nobody asked for; and whether a value that may be secret stands in
    /// the file itself.
    pub(super) fn finish(mut self) -> (Vec<String>, bool) {
        for (key, value) in &self.values {
            self.faults.push(unknown(shown_with(key, value), &self.known));
        }
        (self.faults, self.has_secret)
    }
}

/// What to say of a key that does not exist.
pub(super) fn unknown(key: &str, known: &[&str]) -> String {
    match nearest(key, known) {
        Some(near) => format!("unknown key '{}'; did you mean '{near}'?", shown(key)),
        None => format!("unknown key '{}'; there are: {}", shown(key), known.join(", ")),
    }
}

/// The key that was probably meant.
pub(super) fn nearest<'k>(key: &str, known: &[&'k str]) -> Option<&'k str> {
    let plain = |key: &str| key.to_lowercase().replace(['_', '-'], "");
    let likeness = |near: &str| strsim::jaro_winkler(&plain(near), &plain(key));
    let best = known.iter().copied().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(best) > LIKENESS).then_some(best)
}

/// A key, if it looks like a name. In `{KEY:value}`, where YAML wants a space, all of it is the key.
pub(super) fn shown(key: &str) -> &str {
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
    if key.len() <= MAX_SHOWN && key.chars().all(is_plain) { key } else { "…" }
}

/// The key of this value. One without a value may be a value that lost its key.
fn shown_with<'k>(key: &'k str, value: &Value) -> &'k str {
    if value.is_null() { "…" } else { shown(key) }
}
