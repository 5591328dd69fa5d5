//! What no peer should send, and some do.

use fastrand::Rng;
use serde_json::json;

/// A text frame that is no message, or none that this peer may send. `id` is who sends it.
pub(crate) fn text(rng: &mut Rng, id: &str) -> String {
    let kinds =
        ["register", "heartbeat", "task", "command_results", "task_end", "error", "teleport"];
    let kind = *rng.choice(&kinds).unwrap();
    let whole = json!({"type": kind, "client_id": id, "session_id": "garbage", "target_id": "d1",
        "request": "{", "action_results": [{"status": "success", "call_id": "c"}]})
    .to_string();
    match rng.u8(..100) {
        0..15 => noise(rng, 200),
        15..30 => whole[..rng.usize(..whole.len())].to_owned(),
        30..40 => whole.replace("garbage", &"s".repeat(rng.usize(200..400))),
        40..50 => whole.replace('"', "'"),
        50..58 => whole.replace(&format!("\"{id}\""), "\"somebody-else\""),
        58..66 => whole.replace("[{", &"[".repeat(rng.usize(1..5000))),
        66..74 => whole.replace("\"garbage\"", "1e999999"),
        74..82 => format!("[{whole}]"),
        82..90 => whole.replace("success", "weird"),
        90..97 => whole,
        97 => json!({"type": "error", "error": "x".repeat(rng.usize(..3_000_000))}).to_string(),
        98 => json!({"type": "device_info_response", "client_type": "device",
            "metadata": {"x": "x".repeat(rng.usize(..200_000))}})
        .to_string(),
        _ => noise(rng, 500_000),
    }
}

/// Bytes that are no whole WebSocket frame, or none that a client may send.
pub(crate) fn frames(rng: &mut Rng) -> Vec<u8> {
    let mask = [1, 2, 3, 4];
    let frame =
        |first: u8, length: &[u8], payload: &[u8]| [&[first], length, &mask, payload].concat();
    let payload: Vec<u8> = (0..rng.usize(..300)).map(|_| rng.u8(..)).collect();
    match rng.u8(..7) {
        // The beginning of a message of 64 KiB, and of one of 200 MiB.
        0 => frame(0x81, &[0xfe, 0xff, 0xff], &payload),
        1 => frame(0x81, &[0xff, 0, 0, 0, 0, 0x0c, 0x80, 0, 0], &payload),
        // A reserved opcode, a continuation of nothing, text that is not UTF-8, and no mask.
        2 => frame(0x83, &[0x82], &payload),
        3 => frame(0x80, &[0x82], &payload),
        4 => frame(0x81, &[0x82], &[0xff ^ 1, 0xff ^ 2]),
        5 => vec![0x81, 0x02, b'h', b'i'],
        _ => payload,
    }
}

/// The beginning of an HTTP request, or what is none.
pub(crate) fn head(rng: &mut Rng) -> Vec<u8> {
    let head = "GET /ws?token=x HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n";
    match rng.u8(..3) {
        0 => head.as_bytes()[..rng.usize(..head.len())].to_vec(),
        1 => (0..rng.usize(..2000)).map(|_| rng.u8(..)).collect(),
        _ => format!("{head}X: {}", "x".repeat(rng.usize(..40_000))).into_bytes(),
    }
}

fn noise(rng: &mut Rng, most: usize) -> String {
    let letters = ['{', '}', '[', ']', '"', ':', ',', '\\', '0', 'e', 'é', '\u{0}', '\n'];
    (0..rng.usize(..most)).map(|_| *rng.choice(&letters).unwrap()).collect()
}
