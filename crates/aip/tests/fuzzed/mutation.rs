//! What is done to recorded frames: bytes flipped, pieces cut, doubled and spliced, fields swapped, values
//! replaced by huge, deep and odd ones.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::Value;

/// One change to a frame.
#[derive(Debug, Clone)]
pub(crate) enum Mutation {
    /// Another byte.
    Flip(Index, u8),
    /// Without a piece.
    Cut(Index, Index),
    /// A piece twice.
    Double(Index, Index),
    /// Its beginning, and the end of another frame.
    Splice(Index, Index, Index),
    /// Two of its values change places.
    Swap(Index, Index),
    /// One of its values becomes this text.
    Replace(Index, String),
}

/// Any change.
pub(crate) fn mutation() -> impl Strategy<Value = Mutation> {
    let index = any::<Index>;
    prop_oneof![
        2 => (index(), byte()).prop_map(|(at, byte)| Mutation::Flip(at, byte)),
        2 => (index(), index()).prop_map(|(a, b)| Mutation::Cut(a, b)),
        1 => (index(), index()).prop_map(|(a, b)| Mutation::Double(a, b)),
        1 => (index(), index(), index()).prop_map(|(frame, a, b)| Mutation::Splice(frame, a, b)),
        3 => (index(), index()).prop_map(|(a, b)| Mutation::Swap(a, b)),
        5 => (index(), odd_value()).prop_map(|(at, text)| Mutation::Replace(at, text)),
    ]
}

/// A frame with changes made to it; `others` is what it is spliced with.
pub(crate) fn mutated(frame: &Bytes, mutations: &[Mutation], others: &[Bytes]) -> Bytes {
    let mut frame = frame.to_vec();
    for mutation in mutations {
        frame = mutation.apply(frame, others);
    }
    frame.into()
}

impl Mutation {
    fn apply(&self, mut frame: Vec<u8>, others: &[Bytes]) -> Vec<u8> {
        let piece = |a: &Index, b: &Index| {
            let (a, b) = (a.index(frame.len() + 1), b.index(frame.len() + 1));
            a.min(b)..a.max(b)
        };
        match self {
            Self::Flip(at, byte) => {
                if !frame.is_empty() {
                    let at = at.index(frame.len());
                    frame[at] = *byte;
                }
            }
            Self::Cut(a, b) => drop(frame.drain(piece(a, b))),
            Self::Double(a, b) => frame.extend_from_within(piece(a, b)),
            Self::Splice(other, a, b) => {
                let other: &Bytes = other.get(others);
                frame.truncate(a.index(frame.len() + 1));
                frame.extend_from_slice(&other[b.index(other.len() + 1)..]);
            }
            Self::Swap(a, b) => return with_values(frame, |value, paths| swap(value, paths, a, b)),
            Self::Replace(at, text) => return replaced(frame, at, text),
        }
        frame
    }
}

/// Changes a frame that is JSON; `paths` are those of all values in it.
fn with_values(frame: Vec<u8>, change: impl FnOnce(&mut Value, &[String])) -> Vec<u8> {
    let Ok(mut value) = serde_json::from_slice::<Value>(&frame) else { return frame };
    let mut paths = Vec::new();
    note_paths(&value, "", &mut paths);
    if paths.is_empty() {
        return frame;
    }
    change(&mut value, &paths);
    value.to_string().into_bytes()
}

fn note_paths(value: &Value, path: &str, paths: &mut Vec<String>) {
    let mut note = |name: &str, inner: &Value| {
        let path = format!("{path}/{}", name.replace('~', "~0").replace('/', "~1"));
        note_paths(inner, &path, paths);
        paths.push(path);
    };
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, inner)| note(name, inner)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(n, inner)| note(&n.to_string(), inner));
        }
        _ => {}
    }
}

fn swap(value: &mut Value, paths: &[String], a: &Index, b: &Index) {
    let (a, b): (&String, &String) = (a.get(paths), b.get(paths));
    let Some(was_a) = value.pointer(a).cloned() else { return };
    let Some(was_b) = value.pointer_mut(b).map(|at_b| std::mem::replace(at_b, was_a)) else {
        return;
    };
    if let Some(at_a) = value.pointer_mut(a) {
        *at_a = was_b;
    }
}

/// Puts a text in the place of a value; it need not be JSON.
fn replaced(frame: Vec<u8>, at: &Index, text: &str) -> Vec<u8> {
    const MARK: &str = "a place that is marked";
    let marked = with_values(frame, |value, paths| {
        if let Some(place) = value.pointer_mut(at.get::<String>(paths)) {
            *place = MARK.into();
        }
    });
    match String::from_utf8(marked) {
        Ok(marked) => marked.replace(&format!("\"{MARK}\""), text).into_bytes(),
        Err(no_text) => no_text.into_bytes(),
    }
}

fn byte() -> impl Strategy<Value = u8> {
    prop_oneof![any::<u8>(), select(br#"{}[]":,\0n"#.to_vec())]
}

/// Numbers that fit nothing, nesting around and beyond every limit, strings that are none.
fn odd_value() -> impl Strategy<Value = String> {
    let odd = [
        "null",
        "true",
        "0",
        "-1",
        "1.5",
        "1e308",
        "1e999999",
        "-0",
        "18446744073709551616",
        "{}",
        "[]",
        "[{}]",
        "[null]",
        r#""""#,
        r#""\u0000""#,
        r#""\ud800""#,
        r#""\ud83d\ude00""#,
        "nul",
        r#"{"a":1,"a":2}"#,
        r#"{"commands":[{"tool_name":"t"}]}"#,
        r#""device""#,
        r#""TASK""#,
        r#"{"flightdeck":{"command_timeout_s":1e300}}"#,
        r#"{"flightdeck":{"command_timeout_s":-1}}"#,
    ];
    let nested = (190..220_usize, select(vec![("[", "]"), (r#"{"a":"#, "}")]));
    prop_oneof![
        8 => select(odd.to_vec()).prop_map(str::to_owned),
        1 => vec(select(b"0123456789".to_vec()), 1..500)
            .prop_map(|digits| format!("1{}", String::from_utf8_lossy(&digits))),
        2 => nested.prop_map(|(n, (open, close))| format!("{}1{}", open.repeat(n), close.repeat(n))),
        1 => (1..100_000_usize).prop_map(|n| "[".repeat(n)),
        1 => (250..70_000_usize).prop_map(|n| format!("\"{}\"", "x".repeat(n))),
    ]
}
