//! The list of an MCP server's tools as it was sent, read entry by entry: one that cannot be read spoils no
//! other.

use std::borrow::Cow;
use std::fmt;

use rmcp::model::ToolAnnotations;
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::message;

/// The most tools of one server.
pub(super) const MAX_TOOLS: usize = 1000;

/// A page of the list.
#[derive(Deserialize)]
pub(super) struct Page<'a> {
    /// At most one more than there may be.
    #[serde(borrow, rename = "tools", deserialize_with = "entries")]
    pub(super) entries: Vec<&'a RawValue>,
    /// What to ask for the next page with, if there is one.
    #[serde(default, rename = "nextCursor")]
    pub(super) next: Option<String>,
}

impl<'a> Page<'a> {
    /// Reads a page.
    ///
    /// # Errors
    /// Why it is none.
    pub(super) fn read(text: &'a str) -> Result<Self, String> {
        serde_json::from_str(text)
            .map_err(|error| message::unreadable_text(&message::why(&error, text.as_bytes())))
    }
}

fn entries<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<&'de RawValue>, D::Error> {
    struct Entries;

    impl<'de> Visitor<'de> for Entries {
        type Value = Vec<&'de RawValue>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of tools")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut entries = Vec::new();
            while entries.len() <= MAX_TOOLS {
                match list.next_element()? {
                    Some(entry) => entries.push(entry),
                    None => return Ok(entries),
                }
            }
            while list.next_element::<IgnoredAny>()?.is_some() {}
            Ok(entries)
        }
    }

    deserializer.deserialize_seq(Entries)
}

/// What an entry says of a tool. What is optional and no such thing as it should be is left out.
pub(super) struct Sent {
    pub(super) name: String,
    pub(super) title: Option<String>,
    pub(super) description: Option<String>,
    pub(super) input_schema: Value,
    pub(super) output_schema: Option<Value>,
    pub(super) meta: Option<Value>,
    pub(super) annotations: Option<ToolAnnotations>,
}

impl Sent {
    /// Reads an entry. Without `inputSchema` the tool has no arguments.
    ///
    /// # Errors
    /// Why it is no tool.
    pub(super) fn read(entry: &RawValue) -> Result<Self, String> {
        let mut fields: Map<String, Value> = serde_json::from_str(entry.get())
            .map_err(|error| message::why(&error, entry.get().as_bytes()))?;
        let input_schema = match fields.remove("inputSchema") {
            None | Some(Value::Null) => json!({"type": "object", "properties": {}}),
            Some(schema @ Value::Object(_)) => schema,
            Some(_) => return Err("its inputSchema is no object".to_owned()),
        };
        let annotations = fields.remove("annotations");
        Ok(Self {
            name: text(&mut fields, "name").ok_or("it has no name, or one that is no text")?,
            title: text(&mut fields, "title"),
            description: text(&mut fields, "description"),
            input_schema,
            output_schema: object(&mut fields, "outputSchema"),
            meta: object(&mut fields, "_meta"),
            annotations: annotations.and_then(|hints| serde_json::from_value(hints).ok()),
        })
    }
}

fn text(fields: &mut Map<String, Value>, key: &str) -> Option<String> {
    match fields.remove(key) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    }
}

fn object(fields: &mut Map<String, Value>, key: &str) -> Option<Value> {
    fields.remove(key).filter(Value::is_object)
}

/// The name in an entry, also in one that cannot be read.
pub(super) fn name_of(entry: &RawValue) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Named<'a> {
        #[serde(borrow)]
        name: Cow<'a, str>,
    }

    serde_json::from_str::<Named<'_>>(entry.get()).ok().map(|named| named.name)
}
