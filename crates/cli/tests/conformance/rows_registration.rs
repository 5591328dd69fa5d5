//! Getting in: the key, the first message, who is who.

use serde_json::{Value, json};

use crate::row::*;

const TOLD: &str = "UFO leaves a bad first message unanswered and the socket open for ever";
const TOKEN_ONLY: &str = "programs can keep the key out of the URL";

pub(crate) fn group() -> Group {
    let rows = [keys(), good(), refusals(), bounds(), names()].into_iter().flatten().collect();
    Group { title: "Getting in", rows }
}

fn keys() -> Vec<Row> {
    vec![
        same(
            "The key is `?token=` in the URL; without the right one the answer is 403",
            [
                upgrade("/ws?token=$KEY", &[], 101),
                upgrade("/ws?token=wrong", &[], 403),
                upgrade("/ws?token=", &[], 403),
                upgrade("/ws?token=x$KEY", &[], 403),
                upgrade("/ws", &[], 403),
            ],
        )
        .golden(&["token_wrong"]),
        ours(
            "A key that is not ASCII is a wrong one",
            "UFO answers 500",
            [upgrade("/ws?token=%C3%A9", &[], 403), upgrade("/ws", &[("X-API-Key", "é")], 403)],
        ),
        ours(
            "The key may come as `Authorization: Bearer` or `X-API-Key`",
            TOKEN_ONLY,
            [
                upgrade("/ws", &[("Authorization", "Bearer $KEY")], 101),
                upgrade("/ws", &[KEY], 101),
                upgrade("/ws", &[("Authorization", "Bearer wrong")], 403),
                upgrade("/ws", &[("X-API-Key", "wrong")], 403),
            ],
        ),
        same(
            "`/ws` without an upgrade is not found",
            [get("/ws", 404, json!({"detail": "Not Found"}))],
        )
        .golden(&["http"]),
    ]
}

fn good() -> Vec<Row> {
    let confirmed = || {
        json!({"status": "ok", "response_id": "$id", "timestamp": some_text(), "result": null,
            "session_id": null, "error": null})
    };
    vec![
        same(
            "A device registers with its facts and is confirmed",
            [
                open("d"),
                say(
                    "d",
                    "register",
                    json!({"metadata": {"platform": "linux", "system_info": {"device_id": "$d"},
                        "registration_time": "2026-01-01T00:00:00+00:00"}}),
                ),
                hear("d", "heartbeat", confirmed()),
            ],
        )
        .golden(&["register_device_ok"]),
        same(
            "A device needs no more than its `client_id`",
            [
                open("d"),
                say_text("d", r#"{"type": "register", "status": "ok", "client_id": "$d"}"#),
                hear("d", "heartbeat", confirmed()),
            ],
        )
        .golden(&["register_device_minimal"]),
        same(
            "A constellation registers with a connected device as its target",
            [
                device("d"),
                open("g"),
                say(
                    "g",
                    "register",
                    json!({"client_type": "constellation", "target_id": "$d",
                        "metadata": {"type": "constellation_client"}}),
                ),
                hear("g", "heartbeat", confirmed()),
            ],
        )
        .golden(&["register_constellation_ok"]),
        same("A constellation registers without a target", [constellation("g"), silence("g")])
            .golden(&["register_constellation_no_target"]),
        ours(
            "Who asks for the extension is told what it has of it, and nobody else sees it",
            "UFO's clients never ask",
            [
                device_with("d", json!({"platform": "linux"})),
                open("e"),
                say("e", "register", json!({"metadata": {"flightdeck": {"version": 1}}})),
                hear(
                    "e",
                    "heartbeat",
                    json!({"status": "ok", "result": {"flightdeck": {"version": 1}}}),
                ),
            ],
        ),
        same(
            "An id is free again as soon as its connection is gone",
            [device("d"), hang_up("d"), device("d"), Step::Cut("d"), device("d")],
        ),
        ours(
            "A refused registration leaves no trace: its id is free",
            "a failure never keeps an id, wherever it happens",
            [
                open("g"),
                say("g", "register", json!({"client_type": "constellation", "target_id": "$x"})),
                hear_error("g", "Target device '$x' is not connected"),
                closed("g", 1000, ""),
                device("g"),
            ],
        ),
    ]
}

/// A first message that is refused.
fn refused(first: Step, error: impl Into<Value>, code: u16) -> [Step; 4] {
    [open("x"), first, hear_error("x", error), closed("x", code, "")]
}

fn refusals() -> Vec<Row> {
    let register = |fields: Value| say("x", "register", fields);
    vec![
        same(
            "A declared target that is not connected is refused",
            refused(
                register(json!({"client_type": "constellation", "target_id": "$nobody"})),
                "Target device '$nobody' is not connected",
                1000,
            ),
        )
        .golden(&["register_constellation_unconnected_target"]),
        same(
            "A declared target must be a device",
            then(
                vec![constellation("g")],
                refused(
                    register(json!({"client_type": "constellation", "target_id": "$g"})),
                    "Target device '$g' is not connected",
                    1000,
                ),
            ),
        ),
        ours(
            "An id that is taken by a live connection is refused, and that one stays",
            "the words are UFO's, but the close is 1008 (do not come back like this), not 1000",
            [
                device("d"),
                open("x"),
                register(json!({"client_id": "$d"})),
                hear_error("x", "client_id '$d' is already registered; duplicate registrations are not allowed"),
                closed("x", 1008, "client_id '$d' is already registered"),
                open("x"),
                register(json!({"client_id": "$d", "client_type": "constellation"})),
                hear_error("x", "client_id '$d' is already registered; duplicate registrations are not allowed"),
                closed("x", 1008, ""),
                silence("d"),
            ],
        )
        .golden(&["register_duplicate"]),
        ours(
            "The first message must name a `client_id`",
            TOLD,
            [
                register(json!({"client_id": null})),
                register(json!({"client_id": ""})),
                say_text("x", r#"{"type":"register","status":"ok"}"#),
            ]
            .into_iter()
            .flat_map(|first| {
                refused(first, "Client ID is required for WebSocket registration", 1008)
            }),
        ),
        ours(
            "The first message must be a REGISTER",
            TOLD,
            ["heartbeat", "task", "command_results", "task_end", "error", "teleport"]
                .into_iter()
                .flat_map(|kind| {
                    let first = say("x", kind, json!({}));
                    refused(first, "First message must be a registration message", 1008)
                }),
        ),
        ours(
            "Of several faults the first counts: `client_id`, type, target, taken id",
            "as UFO's handler checks them, where it gets that far",
            [
                vec![device("d")],
                refused(
                    say("x", "heartbeat", json!({"client_id": null})),
                    "Client ID is required for WebSocket registration",
                    1008,
                )
                .to_vec(),
                refused(
                    say("x", "task", json!({"client_id": "$d", "client_type": "constellation", "target_id": "$nobody"})),
                    "First message must be a registration message",
                    1008,
                )
                .to_vec(),
                refused(
                    register(json!({"client_id": "$d", "client_type": "constellation", "target_id": "$nobody"})),
                    "Target device '$nobody' is not connected",
                    1000,
                )
                .to_vec(),
                vec![silence("d")],
            ]
            .concat(),
        ),
        ours(
            "A first message that cannot be read is told so",
            TOLD,
            ["{not json", "", "[]", "42", "{}", r#"{"type":"register","client_id":7}"#,
                r#"{"type":"register","client_id":"$x","metadata":[]}"#]
            .into_iter()
            .flat_map(|text| refused(say_text("x", text), some_text(), 1008)),
        ),
        ours(
            "A binary first message is refused",
            TOLD,
            refused(Step::SayBinary("x", b"\xff\x00"), some_text(), 1008),
        ),
        ours(
            "Who says nothing within the registration timeout (10 s) is refused",
            "UFO waits for ever",
            [open("x"), hear_error("x", "No registration within 1 s"), closed("x", 4002, "")],
        )
        .flags(&["--registration-timeout", "1"]),
    ]
}

fn register_of(bytes: usize) -> Step {
    let facts = json!({"x": "y".repeat(bytes)});
    say("x", "register", json!({"metadata": {"platform": "linux", "system_info": facts}}))
}

fn bounds() -> Vec<Row> {
    vec![ours(
        "Before it is registered a client may send 64 KiB",
        "strangers cost little",
        [
            open("x"),
            register_of(70 * 1024),
            hear_error("x", contains("65536")),
            closed("x", 1009, "65536"),
            open("x"),
            register_of(60 * 1024),
            hear("x", "heartbeat", json!({"status": "ok"})),
        ],
    )]
}

fn names() -> Vec<Row> {
    let long = "ä".repeat(250);
    vec![
        ours(
            "An id has at most 256 characters and no control characters",
            "an id is read by people and written to logs",
            [
                open("x"),
                say("x", "register", json!({"client_id": format!("$x{long}ü")})),
                hear("x", "heartbeat", json!({"status": "ok"})),
                open("y"),
                say("y", "register", json!({"client_id": format!("$y{long}{long}")})),
                hear_error("y", contains("client_id")),
                closed("y", 1008, ""),
                open("z"),
                say("z", "register", json!({"client_id": "$z\n"})),
                hear_error("z", contains("client_id")),
                closed("z", 1008, ""),
            ],
        ),
        same(
            "Unknown fields are ignored",
            [
                open("d"),
                say_text(
                    "d",
                    r#"{"type":"register","status":"ok","client_id":"$d","surprise":[1]}"#,
                ),
                hear("d", "heartbeat", json!({"status": "ok"})),
                say_text("d", r#"{"surprise":{},"type":"heartbeat","status":"ok"}"#),
                hear("d", "heartbeat", json!({"status": "ok"})),
            ],
        ),
        ours(
            "Fields that are not set are left out",
            "UFO writes them as `null`, and reads missing ones as `null`",
            // This is looked at in every message that is heard in any row.
            [device("d"), silence("d")],
        ),
        ours(
            "Words such as `HEARTBEAT` are read in any letter case",
            "UFO's documents show them so, while its server refuses them",
            [
                open("d"),
                say_text(
                    "d",
                    r#"{"type":"REGISTER","status":"OK","client_type":"Device","client_id":"$d"}"#,
                ),
                hear("d", "heartbeat", json!({"status": "ok"})),
                say_text("d", r#"{"type":"HEARTBEAT","status":"ok","client_id":"$d"}"#),
                hear("d", "heartbeat", json!({"status": "ok"})),
            ],
        ),
        ours(
            "A missing `status` reads as `ok`",
            "it is safe to guess; UFO refuses the message",
            [
                open("d"),
                say_text("d", r#"{"type":"register","client_id":"$d"}"#),
                hear("d", "heartbeat", json!({"status": "ok"})),
                say_text("d", r#"{"type":"heartbeat"}"#),
                hear("d", "heartbeat", json!({"status": "ok"})),
            ],
        ),
    ]
}
