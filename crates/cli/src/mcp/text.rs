//! The text of a file: read within a limit, and taken apart as JSON, YAML or TOML.
//!
//! What is wrong with it is said by line and column. No line is shown: any may hold a secret.

use std::fmt;
use std::io::Read;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use serde_saphyr::{DuplicateKeyPolicy, NonFiniteFloatPolicy};

use crate::state::check_is_file;

/// The largest file that is read, in bytes.
pub(super) const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// The deepest nesting of a YAML file; JSON and TOML are held to about as much by their readers.
const MAX_DEPTH: usize = 64;

/// Most values of a YAML file, with those that its aliases stand for.
const MAX_NODES: usize = 50_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    Yaml,
    Toml,
}

/// The file's text, without a mark of its encoding.
///
/// # Errors
/// When it cannot be read, or is too large.
pub(super) fn read(path: &Path) -> Result<String, String> {
    // Asked before it is opened: to open a pipe is to wait for its other end.
    if let Ok(found) = path.metadata()
        && !found.is_dir()
    {
        check_is_file(path, &found).map_err(|error| error.to_string())?;
    }
    let opened = std::fs::File::open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
        _ => format!("cannot read it: {error}"),
    })?;
    if opened.metadata().is_ok_and(|metadata| metadata.is_dir()) {
        return Err("it is a folder; name a file in it".to_owned());
    }
    let mut bytes = Vec::new();
    let read = opened.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|error| format!("cannot read it: {error}"))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("it is larger than {MAX_FILE_BYTES} bytes"));
    }
    let text = String::from_utf8(bytes).map_err(|_| "it is not text in UTF-8".to_owned())?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

impl Format {
    /// By the extension, else by the first line that says something.
    pub(super) fn of(path: &Path, text: &str) -> Self {
        let extension = path.extension().map(|extension| extension.to_ascii_lowercase());
        match extension.as_ref().and_then(|extension| extension.to_str()) {
            Some("json" | "jsonc") => Self::Json,
            Some("yaml" | "yml") => Self::Yaml,
            Some("toml") => Self::Toml,
            _ => Self::of_text(text),
        }
    }

    fn of_text(text: &str) -> Self {
        let says = |line: &&str| !line.is_empty() && !line.starts_with('#');
        let line = text.lines().map(str::trim).find(says).unwrap_or_default();
        let key = line.find(['=', ':']).and_then(|at| line.get(at..=at));
        match line.chars().next() {
            Some('{' | '/') => Self::Json,
            Some('[') => Self::Toml,
            _ if key == Some("=") => Self::Toml,
            _ => Self::Yaml,
        }
    }

    /// Takes a text apart.
    ///
    /// # Errors
    /// Where it is not valid, and why, without a word of it.
    pub(super) fn parse(self, text: &str) -> Result<Value, String> {
        match self {
            Self::Json => parse_json(text),
            Self::Yaml => parse_yaml(text),
            Self::Toml => parse_toml(text),
        }
    }
}

/// JSON; with comments and trailing commas, as editors write it.
fn parse_json(text: &str) -> Result<Value, String> {
    let mut stripped = text.to_owned();
    // It keeps the lines, and fails where a comment or text is not closed: the reader then says where.
    let text = match json_strip_comments::strip(&mut stripped) {
        Ok(()) => &stripped,
        Err(_) => text,
    };
    let parsed: Result<Unique, _> = serde_json::from_str(text);
    parsed.map(|unique| unique.0).map_err(|error| {
        let message = error.to_string();
        let why = message.rsplit_once(" at line ").map_or("", |(why, _)| why);
        invalid("JSON", Some((error.line() as u64, error.column() as u64)), why)
    })
}

fn parse_toml(text: &str) -> Result<Value, String> {
    toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        invalid("TOML", before.map(end), error.message())
    })
}

/// The line and column behind a text.
fn end(before: &str) -> (u64, u64) {
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line as u64, column as u64)
}

fn parse_yaml(text: &str) -> Result<Value, String> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_nodes: MAX_NODES,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        use serde_saphyr::Error;
        let why = match &error {
            // The texts of the reader itself, which repeat nothing.
            Error::ExternalMessage { msg, .. } => msg,
            Error::DuplicateMappingKey { .. } => TWICE,
            Error::UnknownAnchor { .. } => "there is no such anchor",
            Error::MultipleDocuments { .. } => "there is more than one document",
            Error::Budget { .. } | Error::AliasError { .. } => {
                "it is too deeply nested or too large, with what its aliases stand for"
            }
            _ => "",
        };
        invalid("YAML", error.location().map(|at| (at.line(), at.column())), why)
    })
}

fn invalid(format: &str, at: Option<(u64, u64)>, why: &str) -> String {
    let at = at.map(|(line, column)| format!(" at line {line}, column {column}"));
    let why = if why.is_empty() { String::new() } else { format!(": {why}") };
    format!("it is not valid {format}{}{why}", at.unwrap_or_default())
}

const TWICE: &str = "the same key stands twice";

/// A value none of whose objects has a key twice: the reader of JSON would drop the first in silence.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor).map(Self)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Unique(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some((key, Unique(value))) = entries.next_entry::<String, _>()? {
            if map.insert(key, value).is_some() {
                return Err(A::Error::custom(TWICE));
            }
        }
        Ok(map.into())
    }
}
