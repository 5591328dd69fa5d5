//! Messages that take much more of the server's memory than they take of the wire.

use serde_json::json;

use crate::common::plan;
use crate::fleet::Fleet;

/// As many bytes as a message may have.
const MAX_MESSAGE: usize = 100 * 1024 * 1024;

/// The most memory that the server ever held, in bytes.
fn peak(fleet: &Fleet) -> usize {
    let path = format!("/proc/{}/status", fleet.server.process.id());
    let status = std::fs::read_to_string(path).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn millions_of_empty_results_neither_fill_the_memory_nor_leave_anybody_waiting() {
    let fleet = Fleet::start(&["lab --role device", "galaxy --role constellation"]).await;
    let mut device = fleet.device("lab", "d").await;
    let mut galaxy = fleet.constellation("galaxy", "g", json!("d")).await;
    let session = galaxy.submit("d", &plan("pwd")).await;
    galaxy.expect_ack(&session).await;
    let command = device.expect("command").await;
    let before = peak(&fleet);
    let fields = json!({"session_id": session, "prev_response_id": command["response_id"],
        "action_results": []});
    let message = device.message("command_results", &fields);
    let (start, end) = message.split_once("[]").unwrap();
    let empty = r#"{"status":"none"}"#;
    let number = (MAX_MESSAGE - message.len()) / (empty.len() + 1);
    device.send(format!("{start}[{}]{end}", vec![empty; number].join(","))).await;
    let failed = galaxy.expect_end(&session, "failed").await;
    assert!(failed["error"].as_str().unwrap().contains("more than 10000 results"), "{failed}");
    assert!(device.expect_error().await.contains("more than 10000 results"));
    device.expect_end(&session, "failed").await;
    // Three times the message is what a large one may cost.
    let grown = peak(&fleet) - before;
    assert!(grown < 3 * MAX_MESSAGE, "{grown} bytes");
    fleet.works(&mut galaxy, &mut device).await;
}

/// A word of the device's.
const SAID: &str = "s3cret-of-the-device";

#[tokio::test(flavor = "multi_thread")]
async fn a_device_with_long_reasons_fills_neither_the_outcome_nor_the_logs() {
    let fleet = Fleet::start(&["lab --role device", "galaxy --role constellation"]).await;
    let mut device = fleet.device("lab", "d").await;
    let mut galaxy = fleet.constellation("galaxy", "g", json!("d")).await;
    let reason = format!("{SAID} {}", "x".repeat(40_000_000));
    let pwd = json!({"tool_name": "pwd"});
    for keeps_going in [false, true] {
        let request = json!({"commands": [pwd, pwd], "keep_going": keeps_going}).to_string();
        let session = galaxy.submit("d", &request).await;
        galaxy.expect_ack(&session).await;
        for _ in 0..=usize::from(keeps_going) {
            let command = device.expect("command").await;
            let results = json!([{"status": "failure", "error": reason, "namespace": reason}]);
            device.answer(&command, results).await;
        }
        let end = galaxy.next_text().await.unwrap();
        assert!(end.len() < 1_000_000, "{} bytes", end.len());
        // The requester learns what was wrong; the audit log repeats nobody's words.
        assert!(end.contains(SAID));
        device.expect("task_end").await;
        fleet.audited(json!({"event": "ended", "session": session})).await;
    }
    let audit = std::fs::read_to_string(fleet.server.state_file("audit.jsonl")).unwrap();
    assert!(!audit.contains(SAID), "{audit}");
    let log = fleet.server.process.stderr();
    assert!(log.len() < 20_000, "{} bytes of log", log.len());
    fleet.works(&mut galaxy, &mut device).await;
}
