//! What is known of a device: what it says itself, and what the server's configuration adds.

use std::collections::{BTreeMap, BTreeSet};

use aip::{ClientId, Payload};
use serde::Deserialize;

use crate::config::Config;

/// The fields of a JSON object.
type Fields = BTreeMap<String, Payload>;

/// What a device that registers says of itself, as it is kept.
pub(crate) fn of_newcomer(facts: Payload, id: &ClientId, config: &Config) -> Payload {
    merged(pinned(facts, id), id, config)
}

/// A device's facts, merged with the server's configuration for it.
pub(crate) fn merged(facts: Payload, id: &ClientId, config: &Config) -> Payload {
    match config.devices.get(id.as_str()) {
        Some(configured) => merge(&facts, configured).unwrap_or(facts),
        None => facts,
    }
}

/// What is known of a device that has said nothing since the server's start.
pub(crate) fn configured(id: &ClientId, config: &Config) -> Payload {
    Payload::from_value(&Fields::new())
        .map_or_else(|_| Payload::string(""), |own| merged(own, id, config))
}

/// What a device says of itself, under the id that it is pinned to. What names no other is kept as it
/// came.
fn pinned(facts: Payload, id: &ClientId) -> Payload {
    #[derive(Deserialize)]
    struct Named {
        device_id: Option<Payload>,
    }

    let own = Payload::string(id.as_str());
    let named = facts.parse::<Named>().ok().and_then(|named| named.device_id);
    if named.is_none_or(|named| named == own) {
        return facts;
    }
    with_id(&facts, id).unwrap_or(facts)
}

/// The same with the id that the device is pinned to; `None` when it is no object.
pub(crate) fn with_id(facts: &Payload, id: &ClientId) -> Option<Payload> {
    let mut fields: Fields = facts.parse().ok()?;
    fields.remove("flightdeck");
    fields.insert("device_id".to_owned(), Payload::string(id.as_str()));
    Payload::from_value(&fields).ok()
}

/// Every key of the configuration goes into `custom_metadata`, `additional_features` is united with
/// `supported_features`, and `tags` also stands at the top: as UFO's server merges them. Tags that the device gives
/// itself, in its `custom_metadata`, stay among them.
fn merge(facts: &Payload, configured: &Fields) -> Option<Payload> {
    let mut merged: Fields = facts.parse().ok()?;
    let mut custom: Fields =
        merged.get("custom_metadata").and_then(|own| own.parse().ok()).unwrap_or_default();
    let own_tags = custom.get("tags").map(words).unwrap_or_default();
    custom.extend(configured.clone());
    if let Some(tags) = configured.get("tags").filter(|_| !own_tags.is_empty()) {
        let tags = Payload::from_value(&union(own_tags, words(tags))).ok()?;
        custom.insert("tags".to_owned(), tags);
    }
    if let Some(additional) = configured.get("additional_features") {
        let supported = merged.get("supported_features");
        let features = union(supported.map(words).unwrap_or_default(), words(additional));
        merged.insert("supported_features".to_owned(), Payload::from_value(&features).ok()?);
    }
    if let Some(tags) = custom.get("tags").filter(|_| configured.contains_key("tags")) {
        merged.insert("tags".to_owned(), tags.clone());
    }
    merged.insert("custom_metadata".to_owned(), Payload::from_value(&custom).ok()?);
    Payload::from_value(&merged).ok()
}

/// The words by which a device can be chosen: those that the configuration gives it, and its own.
pub(crate) fn tags(facts: &Payload) -> Vec<String> {
    #[derive(Default, Deserialize)]
    struct Tagged {
        tags: Option<Payload>,
        custom_metadata: Option<Payload>,
    }

    let top: Tagged = facts.parse().unwrap_or_default();
    let custom: Tagged =
        top.custom_metadata.and_then(|custom| custom.parse().ok()).unwrap_or_default();
    let words = |tags: Option<Payload>| tags.as_ref().map(words).unwrap_or_default();
    union(words(custom.tags), words(top.tags))
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
    fn tags_are_those_of_the_device_and_of_the_configuration() {
        let own = object(r#"{"custom_metadata":{"tags":["gpu","lab"]}}"#);
        let configured = object(r#"{"tags":["lab","eu"]}"#);
        let merged = merge(&own, &configured.parse().unwrap()).unwrap();
        let all = r#"["gpu","lab","eu"]"#;
        let expected = format!(r#"{{"custom_metadata":{{"tags":{all}}},"tags":{all}}}"#);
        assert_eq!(merged.as_str(), expected);
        assert_eq!(tags(&merged), ["gpu", "lab", "eu"]);
        assert_eq!(tags(&own), ["gpu", "lab"]);
        for none in ["{}", "[]", r#"{"tags":"gpu"}"#, r#"{"custom_metadata":null,"tags":null}"#] {
            assert!(tags(&object(none)).is_empty(), "{none}");
        }
    }

    #[test]
    fn nobody_says_to_be_another_device() {
        let id = ClientId::new("d").unwrap();
        for own in [r#"{"z":1,"device_id":"d"}"#, r#"{"z":1,"a":2}"#] {
            assert_eq!(pinned(object(own), &id).as_str(), own);
        }
        for other in [r#"{"device_id":"e","a":1.0}"#, r#"{"a":1.0,"device_id":7}"#] {
            assert_eq!(pinned(object(other), &id).as_str(), r#"{"a":1.0,"device_id":"d"}"#);
        }
    }

    #[test]
    fn a_configuration_without_features_leaves_them_alone() {
        let merged = merge(&object(r#"{"a":1}"#), &object(r#"{"x":2}"#).parse().unwrap()).unwrap();
        assert_eq!(merged.as_str(), r#"{"a":1,"custom_metadata":{"x":2}}"#);
    }
}
