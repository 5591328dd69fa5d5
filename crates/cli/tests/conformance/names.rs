//! Placeholders: `$name` in a row. One that is met first in what is said becomes a fresh id; one that
//! is met first in what is heard takes the value that came. From then on it stands for that value, and
//! different names stand for different values.

use std::collections::HashMap;

use serde_json::{Map, Value};
use uuid::Uuid;

/// The values of one row's placeholders.
#[derive(Clone)]
pub(crate) struct Names {
    row: usize,
    values: HashMap<String, String>,
}

impl Names {
    pub(crate) fn new(row: usize) -> Self {
        Self { row, values: HashMap::new() }
    }

    pub(crate) fn set(&mut self, name: &str, value: String) {
        self.values.insert(name.to_owned(), value);
    }

    /// The value of a name, a fresh one if it has none.
    pub(crate) fn value(&mut self, name: &str) -> &str {
        let row = self.row;
        self.values.entry(name.to_owned()).or_insert_with(|| format!("{name}-{row}"))
    }

    /// A text with its placeholders filled in.
    pub(crate) fn text(&mut self, text: &str) -> String {
        let mut pieces = text.split('$');
        let mut filled = pieces.next().unwrap_or_default().to_owned();
        for piece in pieces {
            let end = piece.find(|c: char| !is_name(c)).unwrap_or(piece.len());
            filled += self.value(&piece[..end]);
            filled += &piece[end..];
        }
        filled
    }

    /// The same for every text in a value.
    pub(crate) fn fill(&mut self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(text)),
            Value::Array(items) => items.iter().map(|item| self.fill(item)).collect(),
            Value::Object(fields) => {
                let filled = fields.iter().map(|(key, value)| (key.clone(), self.fill(value)));
                Value::Object(filled.collect::<Map<_, _>>())
            }
            other => other.clone(),
        }
    }

    /// Compares what came with what is stated. Missing and `null` are the same; fields that are not
    /// stated may be anything. The error says where it differs and how.
    pub(crate) fn check(&mut self, at: &str, stated: &Value, got: &Value) -> Result<(), String> {
        let differs =
            |expected: &dyn std::fmt::Display| Err(format!("{at}: expected {expected}, got {got}"));
        match stated {
            Value::String(text) => match text.strip_prefix('$').filter(|name| self.is_new(name)) {
                Some(name) => self.capture(at, name, got),
                None => {
                    let text = self.text(text);
                    if got == &Value::String(text.clone()) { Ok(()) } else { differs(&text) }
                }
            },
            Value::Array(items) => match got.as_array() {
                Some(found) if found.len() == items.len() => {
                    let mut pairs = items.iter().zip(found).enumerate();
                    pairs.try_for_each(|(n, (item, got))| {
                        self.check(&format!("{at}[{n}]"), item, got)
                    })
                }
                _ => differs(stated),
            },
            Value::Object(fields) => match fields.iter().next() {
                Some((rule, stated)) if rule.starts_with('$') => {
                    self.check_rule(at, rule, stated, got)
                }
                _ if !got.is_object() => differs(stated),
                _ => fields.iter().try_for_each(|(key, stated)| {
                    let got = got.get(key).unwrap_or(&Value::Null);
                    self.check(&format!("{at}.{key}"), stated, got)
                }),
            },
            _ if stated == got => Ok(()),
            _ => differs(stated),
        }
    }

    fn is_new(&self, name: &str) -> bool {
        name.chars().all(is_name) && !self.values.contains_key(name)
    }

    fn capture(&mut self, at: &str, name: &str, got: &Value) -> Result<(), String> {
        let Some(text) = got.as_str().filter(|text| !text.is_empty()) else {
            return Err(format!("{at}: expected a text for ${name}, got {got}"));
        };
        if let Some((other, _)) = self.values.iter().find(|(_, value)| *value == text) {
            return Err(format!("{at}: ${name} shall not be ${other}, but both are {text:?}"));
        }
        self.set(name, text.to_owned());
        Ok(())
    }

    fn check_rule(
        &mut self,
        at: &str,
        rule: &str,
        stated: &Value,
        got: &Value,
    ) -> Result<(), String> {
        let text = got.as_str().unwrap_or_default();
        let holds = match rule {
            "$some_text" => !text.is_empty(),
            "$uuid" => Uuid::parse_str(text).is_ok(),
            "$contains" => text.contains(&self.text(stated.as_str().unwrap_or_default())),
            "$exactly" => without_nulls(got) == without_nulls(&self.fill(stated)),
            "$in_any_order" => sorted(got) == sorted(&self.fill(stated)),
            other => panic!("no such rule: {other}"),
        };
        if holds { Ok(()) } else { Err(format!("{at}: expected {rule} {stated}, got {got}")) }
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The same without fields that are `null`, as Python reads it.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let set = fields.iter().filter(|(_, value)| !value.is_null());
            set.map(|(key, value)| (key.clone(), without_nulls(value))).collect()
        }
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

fn sorted(list: &Value) -> Option<Vec<String>> {
    let mut items: Vec<_> = list.as_array()?.iter().map(Value::to_string).collect();
    items.sort_unstable();
    Some(items)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(stated: Value, got: Value) -> Result<(), String> {
        let mut names = Names::new(1);
        names.set("known", "k".to_owned());
        names.check("message", &stated, &got)
    }

    #[test]
    fn what_is_stated_must_be_there_and_nothing_else_matters() {
        let got = json!({"a": 1, "b": [{"c": "x", "d": 2}], "e": "k", "n": null});
        for holds in [
            json!({}),
            json!({"a": 1, "z": null, "n": null}),
            json!({"b": [{"c": "x"}]}),
            json!({"b": [{"c": "$new"}], "e": "$known"}),
            json!({"b": {"$exactly": [{"d": 2, "c": "x", "y": null}]}}),
            json!({"b": [{"c": {"$contains": "x"}, "d": 2}], "e": {"$some_text": true}}),
        ] {
            assert_eq!(check(holds.clone(), got.clone()), Ok(()), "{holds}");
        }
        for (breaks, at) in [
            (json!({"a": 2}), "message.a: expected 2, got 1"),
            (json!({"a": null}), "message.a: expected null, got 1"),
            (json!({"b": []}), "message.b: expected [], got"),
            (json!({"b": [{"c": "y"}]}), "message.b[0].c: expected y, got \"x\""),
            (json!({"b": {"$exactly": [{"c": "x"}]}}), "message.b: expected $exactly"),
            (json!({"e": {"$contains": "x"}}), "message.e: expected $contains"),
            (json!({"e": "$new"}), "message.e: $new shall not be $known"),
            (json!({"z": "$new"}), "message.z: expected a text for $new, got null"),
            (json!({"e": {"$uuid": true}}), "message.e: expected $uuid"),
        ] {
            let error = check(breaks.clone(), got.clone()).unwrap_err();
            assert!(error.starts_with(at), "{breaks}: {error}");
        }
    }
}
