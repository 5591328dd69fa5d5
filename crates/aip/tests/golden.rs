//! Every frame that real Python peers sent, as recorded, decodes and re-encodes without losing a
//! field it carried.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::Path;

use aip::codec::Wire;
use aip::{ClientMessage, ServerMessage};
use bytes::Bytes;
use serde_json::Value;

/// Frames that are broken on purpose, or of a type that does not exist.
fn is_garbage(frame: &str) -> bool {
    let Ok(value) = serde_json::from_str::<Value>(frame) else { return true };
    !value.get("type").is_some_and(Value::is_string)
}

fn events() -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut events = Vec::new();
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        for line in fs::read_to_string(&path).unwrap().lines() {
            events.push((name.clone(), serde_json::from_str(line).unwrap()));
        }
    }
    events
}

/// What is left of a frame without its unset fields: `null` and missing mean the same.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key, without_nulls(value)))
            .collect(),
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        value => value,
    }
}

/// What Flightdeck always writes, and what it reads in any letter case.
fn normal(frame: &str, client: bool) -> Value {
    let mut value = without_nulls(serde_json::from_str(frame).unwrap());
    let fields = value.as_object_mut().unwrap();
    fields.entry("status").or_insert("ok".into());
    if client {
        fields.entry("client_type").or_insert("device".into());
    }
    if fields["type"] == "HEARTBEAT" {
        fields["type"] = "heartbeat".into();
    }
    value
}

fn recoded<M: Wire>(name: &str, frame: &str) -> Value {
    let decoded = M::decode(&Bytes::copy_from_slice(frame.as_bytes()));
    let message = decoded.unwrap_or_else(|error| panic!("{name}: {error}: {frame}"));
    let text = message.encode();
    without_nulls(serde_json::from_slice(&text).unwrap())
}

#[test]
fn every_recorded_frame_round_trips() {
    let (mut clients, mut servers, mut refused) = (0, 0, 0);
    for (name, event) in events() {
        let Some(frame) = event.get("frame").and_then(Value::as_str) else { continue };
        let client = event["dir"] == "c2s";
        if client && is_garbage(frame) {
            let bytes = Bytes::copy_from_slice(frame.as_bytes());
            assert!(ClientMessage::decode(&bytes).is_err(), "{name}: {frame}");
            refused += 1;
        } else if client {
            assert_eq!(recoded::<ClientMessage>(&name, frame), normal(frame, true), "{name}");
            clients += 1;
        } else {
            assert_eq!(recoded::<ServerMessage>(&name, frame), normal(frame, false), "{name}");
            servers += 1;
        }
    }
    assert!(clients > 100 && servers > 100 && refused > 8, "{clients} {servers} {refused}");
}
