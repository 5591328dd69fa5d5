//! DEVICE_INFO: what is known of a device, and who may ask.

use serde_json::{Value, json};

use crate::row::*;

pub(crate) fn group() -> Group {
    let rows = [asking(), telling(), merging()].into_iter().flatten().collect();
    Group { title: "Device information", rows }
}

/// Constellation `link` asks about a device, and this is the answer.
fn asked(link: Link, target: &str, result: Value) -> [Step; 2] {
    let id = "$Q";
    [
        say(link, "device_info_request", json!({"target_id": target, "request_id": id})),
        hear(
            link,
            "device_info_response",
            json!({"status": "ok", "response_id": id, "error": null, "result": result}),
        ),
    ]
}

fn unknown(device: &str) -> Value {
    exactly(json!({"error": format!("Device {device} not found or no system info available")}))
}

fn asking() -> Vec<Row> {
    let facts = json!({"device_id": "$d", "platform": "linux", "cpu_count": 2, "hostname": "h"});
    let ask = |link: Link, target: &str| {
        say(link, "device_info_request", json!({"target_id": target, "request_id": "$Q"}))
    };
    const SCOPE: &str = "Not authorized to request device info for this device";
    vec![
        same(
            "A constellation gets a device's facts, under the id of its question",
            then(vec![device("d"), galaxy("g", "$d")], asked("g", "$d", exactly(facts.clone()))),
        )
        .golden(&["device_info_ok"]),
        same(
            "A constellation without a declared target may ask about every device",
            then(vec![device("d"), constellation("g")], asked("g", "$d", exactly(facts))),
        ),
        same(
            "An unknown device is answered with `ok` and an `error` in the result",
            then(vec![constellation("g")], asked("g", "$nobody", unknown("$nobody"))),
        )
        .golden(&["device_info_unknown_device"]),
        same(
            "A device without facts, or one that left, counts as unknown",
            [
                vec![device_with("d", json!({})), device("e"), constellation("g")],
                asked("g", "$d", unknown("$d")).to_vec(),
                vec![hang_up("e")],
                asked("g", "$e", unknown("$e")).to_vec(),
            ]
            .concat(),
        ),
        ours(
            "A device's facts come back byte for byte",
            "UFO reads and writes them anew",
            [
                open("d"),
                say_text(
                    "d",
                    format!(
                        r#"{{"type":"register","status":"ok","client_id":"$d","metadata":{{"system_info":{ODD}}}}}"#
                    ),
                ),
                hear("d", "heartbeat", json!({"status": "ok"})),
                constellation("g"),
                ask("g", "$d"),
                hear_text("g", format!("\"result\":{ODD}")),
            ],
        ),
        same(
            "Only a constellation may ask about a device",
            [
                device("d"),
                ask("d", "$d"),
                hear_error("d", "DEVICE_INFO_REQUEST is permitted only for constellation clients"),
            ],
        )
        .golden(&["device_info_from_device"]),
        same(
            "A constellation with a declared target may ask about that one only",
            [
                device("d"),
                device("e"),
                galaxy("g", "$d"),
                ask("g", "$e"),
                hear_error("g", SCOPE),
                ask("g", "$nobody"),
                hear_error("g", SCOPE),
            ],
        )
        .golden(&["device_info_out_of_scope"]),
    ]
}

fn telling() -> Vec<Row> {
    let facts = json!({"device_id": "$somebody", "cpu_count": 64, "flightdeck": {"version": 1}});
    vec![
        ours(
            "A device may send its facts anew; its `device_id` stays the one it registered",
            "UFO only logs them",
            [
                vec![
                    device("d"),
                    galaxy("g", "$d"),
                    say("d", "device_info_response", json!({"metadata": facts})),
                    silence("d"),
                ],
                asked("g", "$d", exactly(json!({"device_id": "$d", "cpu_count": 64}))).to_vec(),
            ]
            .concat(),
        ),
        ours(
            "A constellation has no facts to send",
            "UFO only logs them",
            [
                constellation("g"),
                say("g", "device_info_response", json!({"metadata": {"cpu_count": 64}})),
                hear_error("g", contains("DEVICE_INFO_RESPONSE")),
            ],
        ),
    ]
}

/// What the operator says of device `d`.
const SETTINGS: &str = r#"
[devices."$d"]
location = "lab"
slots = 2
tags = ["gpu"]
additional_features = ["cuda", "gui"]
"#;

fn merging() -> Vec<Row> {
    let system_info = json!({"device_id": "$d", "supported_features": ["cli", "gui"],
        "custom_metadata": {"owner": "me", "location": "?"}});
    let configured = json!({"owner": "me", "location": "lab", "slots": 2, "tags": ["gpu"],
        "additional_features": ["cuda", "gui"]});
    let merged = json!({"device_id": "$d", "tags": ["gpu"],
        "supported_features": in_any_order(json!(["cli", "cuda", "gui"])),
        "custom_metadata": exactly(configured)});
    let join = || {
        [
            device_with("d", json!({"platform": "linux", "system_info": system_info})),
            device("e"),
            constellation("g"),
        ]
    };
    vec![
        same(
            "What the server's settings say of a device is merged into its facts, and of that one only",
            [
                join().to_vec(),
                asked("g", "$d", merged).to_vec(),
                asked("g", "$e", json!({"device_id": "$e", "custom_metadata": null, "tags": null})).to_vec(),
            ]
            .concat(),
        )
        .file(SETTINGS),
        ours(
            "Facts that a device sends anew are merged with the settings too",
            "UFO only logs them",
            [
                join().to_vec(),
                vec![
                    say("d", "device_info_response", json!({"metadata": {"cpu_count": 64}})),
                    silence("d"),
                ],
                asked("g", "$d", json!({"device_id": "$d", "cpu_count": 64, "tags": ["gpu"],
                    "custom_metadata": {"location": "lab"}})).to_vec(),
            ]
            .concat(),
        )
        .file(SETTINGS),
    ]
}
