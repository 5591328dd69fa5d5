//! What is known of a device: what it says itself, and what the server's configuration adds.

use std::collections::{BTreeMap, BTreeSet};

use aip::Payload;

use crate::config::Config;
use crate::registry::Client;

/// The fields of a JSON object.
type Fields = BTreeMap<String, Payload>;

/// A device's facts, merged with the server's configuration for it.
pub(crate) fn of(device: &Client, config: &Config) -> Option<Payload> {
    let facts = device.facts()?;
    match config.devices.get(device.id().as_str()) {
        Some(configured) => Some(merge(&facts, configured).unwrap_or(facts)),
        None => Some(facts),
    }
}

/// Every key of the configuration goes into `custom_metadata`, `additional_features` is united with
/// `supported_features`, and `tags` also stands at the top: as UFO's server merges them.
fn merge(facts: &Payload, configured: &Fields) -> Option<Payload> {
    let mut merged: Fields = facts.parse().ok()?;
    let mut custom: Fields =
        merged.get("custom_metadata").and_then(|own| own.parse().ok()).unwrap_or_default();
    custom.extend(configured.clone());
    merged.insert("custom_metadata".to_owned(), Payload::from_value(&custom).ok()?);
    if let Some(additional) = configured.get("additional_features") {
        let supported = merged.get("supported_features");
        let features = union(supported.map(words).unwrap_or_default(), words(additional));
        merged.insert("supported_features".to_owned(), Payload::from_value(&features).ok()?);
    }
    if let Some(tags) = configured.get("tags") {
        merged.insert("tags".to_owned(), tags.clone());
    }
    Payload::from_value(&merged).ok()
}

fn words(list: &Payload) -> Vec<String> {
    list.parse().unwrap_or_default()
}

/// The words of both, each once, in their order.
fn union(own: Vec<String>, more: Vec<String>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    own.into_iter().chain(more).filter(|word| seen.insert(word.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(text: &'static str) -> Payload {
        Payload::from_text(text).unwrap()
    }

    #[test]
    fn the_configuration_adds_to_what_the_device_says() {
        let facts = object(
            r#"{"hostname":"h","memory_total_gb":15.50,"supported_features":["cli","gui"],
                "custom_metadata":{"own":1,"room":"?"}}"#,
        );
        let configured =
            object(r#"{"room":"lab","additional_features":["gpu","cli"],"tags":["a","b"]}"#);
        let merged = merge(&facts, &configured.parse().unwrap()).unwrap();
        let expected = r#"{"custom_metadata":{"additional_features":["gpu","cli"],"own":1,"room":"lab","tags":["a","b"]},"hostname":"h","memory_total_gb":15.50,"supported_features":["cli","gui","gpu"],"tags":["a","b"]}"#;
        assert_eq!(merged.as_str(), expected);
    }

    #[test]
    fn a_configuration_without_features_leaves_them_alone() {
        let merged = merge(&object(r#"{"a":1}"#), &object(r#"{"x":2}"#).parse().unwrap()).unwrap();
        assert_eq!(merged.as_str(), r#"{"a":1,"custom_metadata":{"x":2}}"#);
    }
}
