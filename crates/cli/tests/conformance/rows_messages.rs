//! Once registered: heartbeats, who may speak for whom, and what cannot be read.

use serde_json::{Value, json};

use crate::row::*;

const CLIENT_ID: &str = "client_id does not match the registered connection";
const CLIENT_TYPE: &str = "client_type does not match the registered connection";

pub(crate) fn group() -> Group {
    let rows = [heartbeats(), identity(), unreadable(), reports()].into_iter().flatten().collect();
    Group { title: "Saying something", rows }
}

fn heartbeats() -> Vec<Row> {
    let answer = |id: &str| json!({"status": "ok", "response_id": id, "session_id": null, "timestamp": some_text()});
    vec![
        same(
            "A heartbeat is answered with a fresh `response_id`, with or without a `client_id`",
            [
                device("d"),
                say("d", "heartbeat", json!({})),
                hear("d", "heartbeat", answer("$first")),
                say("d", "heartbeat", json!({})),
                hear("d", "heartbeat", answer("$second")),
                say_text("d", r#"{"type": "heartbeat", "status": "ok"}"#),
                hear("d", "heartbeat", answer("$third")),
            ],
        )
        .golden(&["heartbeat_ack"]),
        ours(
            "A heartbeat is answered whatever `client_type` it claims",
            "Galaxy's say `device` on a constellation's link, and UFO answers each with an error",
            [
                constellation("g"),
                say(
                    "g",
                    "heartbeat",
                    json!({"client_type": "device", "metadata": {"device_id": "d"}}),
                ),
                hear("g", "heartbeat", answer("$first")),
                device("d"),
                say("d", "heartbeat", json!({"client_type": "constellation"})),
                hear("d", "heartbeat", answer("$second")),
            ],
        )
        .golden(&["real_constellation_heartbeat", "client_type_spoof"]),
    ]
}

fn identity() -> Vec<Row> {
    let kinds = ["heartbeat", "task", "command_results", "device_info_response", "error"];
    let spoofed = kinds.into_iter().flat_map(|kind| {
        [say("d", kind, json!({"client_id": "$somebody"})), hear_error("d", CLIENT_ID)]
    });
    let pinned = ["task", "command_results", "device_info_request"];
    let in_another_role = pinned.into_iter().flat_map(|kind| {
        [
            say("d", kind, json!({"client_type": "constellation", "target_id": "$d"})),
            hear_error("d", CLIENT_TYPE),
            say("g", kind, json!({"client_type": "device", "target_id": "$d"})),
            hear_error("g", CLIENT_TYPE),
        ]
    });
    vec![
        same(
            "Nobody speaks in the name of another client",
            then(vec![device("d")], spoofed.chain([silence("d")])),
        )
        .golden(&["client_id_spoof"]),
        same(
            "A TASK, results and a question about a device need the role that was registered",
            then(
                vec![device("d"), constellation("g")],
                in_another_role.chain([silence("d"), silence("g")]),
            ),
        )
        .golden(&["client_type_spoof"]),
        same(
            "A missing `client_type` means `device`",
            [
                device("d"),
                say("d", "command_results", json!({"client_type": null})),
                hear_error("d", some_text()),
                constellation("g"),
                say("g", "device_info_request", json!({"client_type": null, "target_id": "$d"})),
                hear_error("g", CLIENT_TYPE),
            ],
        ),
        ours(
            "Messages of one connection are answered in the order they came",
            "UFO handles them at the same time",
            then(
                vec![device("d")],
                (0..8)
                    .map(|n| say("d", "error", json!({"error": format!("n{n}")})))
                    .chain((0..8).map(|n| hear_error("d", format!("n{n}")))),
            ),
        ),
    ]
}

/// Something that is answered with an ERROR, after which the connection goes on.
fn is_told(message: Step, error: impl Into<Value>) -> [Step; 3] {
    [message, hear_error("d", error), silence("d")]
}

/// A heartbeat of so many levels.
fn nested(levels: usize) -> Step {
    let (open, close) = ("[".repeat(levels - 1), "]".repeat(levels - 1));
    say_text("d", format!(r#"{{"type":"heartbeat","status":"ok","surprise":{open}{close}}}"#))
}

fn unreadable() -> Vec<Row> {
    let broken = [
        "{not json",
        "",
        "[]",
        "null",
        "42",
        "\"s\"",
        r#"{"type":"heartbeat","status":"ok""#,
        "\0",
        r#"{"type":"heartbeat","status":"ok"} trailing"#,
        r#"{"a":NaN}"#,
    ];
    let typeless = [r#"{"type":null,"status":"ok"}"#, r#"{"status":"ok"}"#];
    let with_wrong_fields = [
        (r#"{"type":"heartbeat","status":"sideways"}"#, "status"),
        (r#"{"type":"heartbeat","client_id":7}"#, "client_id"),
        (r#"{"type":"command_results","action_results":{}}"#, "action_results"),
    ];
    vec![
        ours(
            "A text that is no message is answered with an ERROR, and the connection stays",
            "as UFO does it; only the words are others",
            then(
                vec![device("d")],
                broken.into_iter().flat_map(|text| is_told(say_text("d", text), some_text())),
            ),
        )
        .golden(&["malformed_json"]),
        ours(
            "A field of the wrong shape is named",
            "as UFO does it; only the words are others",
            then(
                vec![device("d")],
                with_wrong_fields
                    .into_iter()
                    .flat_map(|(text, field)| is_told(say_text("d", text), contains(field))),
            ),
        ),
        ours(
            "An unknown or missing type is answered with an ERROR, and the connection stays",
            "a word that we do not know is named as it came",
            then(
                vec![device("d")],
                typeless
                    .into_iter()
                    .flat_map(|text| is_told(say_text("d", text), contains("type")))
                    .chain(is_told(
                        say("d", "teleport", json!({})),
                        "Unknown message type: teleport",
                    )),
            ),
        )
        .golden(&["unknown_type"]),
        ours(
            "A second REGISTER is an unknown message type",
            "UFO says `ClientMessageType.REGISTER`, Python's name for the word",
            then(
                vec![device("d")],
                is_told(say("d", "register", json!({})), "Unknown message type: register"),
            ),
        )
        .golden(&["register_again"]),
        ours(
            "A TASK_END from a client is an unknown message type",
            "UFO says `ClientMessageType.TASK_END`, Python's name for the word",
            then(
                vec![device("d")],
                is_told(
                    say("d", "task_end", json!({"status": "completed", "session_id": "$S"})),
                    "Unknown message type: task_end",
                ),
            ),
        )
        .golden(&["task_end_from_client"]),
        ours(
            "A binary frame is answered with an ERROR, and the connection stays",
            "UFO's handler breaks",
            then(
                vec![device("d")],
                [&b"\xff\xfe"[..], b"", br#"{"type":"heartbeat"}"#]
                    .into_iter()
                    .flat_map(|bytes| is_told(Step::SayBinary("d", bytes), contains("binary"))),
            ),
        ),
        ours(
            "JSON may be nested 200 levels deep, and no deeper",
            "deeper JSON breaks readers; nothing real comes near",
            [
                vec![device("d"), nested(200), hear("d", "heartbeat", json!({"status": "ok"}))],
                is_told(nested(201), contains("200 levels")).to_vec(),
            ]
            .concat(),
        ),
        ours(
            "A message over 100 MiB closes the connection with 1009, and the close is seen",
            "the server reads on for a while, or the client would see a reset instead",
            [
                device("d"),
                Step::SayBlanks("d", 100 * 1024 * 1024 + 1),
                closed("d", 1009, "104857600"),
            ],
        ),
    ]
}

fn reports() -> Vec<Row> {
    let report = |error: Value| say("d", "error", json!({"status": "error", "error": error}));
    vec![
        same(
            "An ERROR from a client comes back to it, \"Unknown error\" if it has no text",
            [
                device("d"),
                report(json!("it broke")),
                hear_error("d", "it broke"),
                report(Value::Null),
                hear_error("d", "Unknown error"),
                report(json!("")),
                hear_error("d", "Unknown error"),
                silence("d"),
            ],
        )
        .golden(&["error_from_client"]),
    ]
}
