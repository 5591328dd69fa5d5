//! What the audit log says, and what it never says.

use std::os::unix::fs::PermissionsExt;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::{Peer, http_client, plan, until};
use crate::fleet::{Fleet, SHARED, answer, has, http_task};

/// A word in every payload.
const PAYLOAD: &str = "s3cret-payload";

/// The names of a line's fields, in their order.
fn fields(line: &Value) -> Vec<&str> {
    let mut names: Vec<_> = line.as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn who_did_what_from_where_and_how_it_ended_is_written_down() {
    let mut fleet = Fleet::start(&[
        "lab --role device --client lab-*",
        "galaxy --role constellation --target lab-*",
        "boss --role operator",
    ])
    .await;
    let mut device = fleet.device("lab", "lab-1").await;
    let mut galaxy = fleet.constellation("galaxy", "g", Value::Null).await;

    // One task over the WebSocket that ends well.
    let session = galaxy.submit("lab-1", &plan(PAYLOAD)).await;
    galaxy.expect_ack(&session).await;
    let command = device.expect("command").await;
    let results = json!([{"status": "success", "result": PAYLOAD}]);
    device.answer(&command, results).await;
    galaxy.expect_end(&session, "completed").await;
    device.expect_end(&session, "completed").await;
    // One over HTTP that is cancelled by somebody else.
    let (_, task) = fleet.post("galaxy", "/api/v1/tasks", &http_task("lab-1", "t")).await;
    device.expect("command").await;
    let cancel = format!("/api/v1/tasks/{}/cancel", task["id"].as_str().unwrap());
    assert_eq!(fleet.post("boss", &cancel, &json!({})).await.0, 202);
    device.expect("task_end").await;
    // Refusals, one of each kind.
    let refused = galaxy.submit("office-1", &plan(PAYLOAD)).await;
    galaxy.expect_error().await;
    galaxy.expect_end(&refused, "failed").await;
    assert_eq!(fleet.post("galaxy", "/api/v1/tasks", &http_task("office-1", "t")).await.0, 403);
    assert_eq!(fleet.get("lab", "/api/v1/devices").await.0, 403);
    let mut thief = fleet.peer("lab").await;
    thief.say_device("office-1").await;
    thief.expect_error().await;
    thief.expect_close().await;
    let wrong = http_client().get(fleet.http("/api/clients")).bearer_auth("wr0ng");
    assert_eq!(answer(wrong).await.0, 401);
    assert_eq!(Peer::connect(fleet.server.port, "wr0ng").await.err(), Some(403));
    // A copy of the store, and one that cannot be made: its folder is not empty any more.
    let copy = fleet.server.state_file("copy").to_str().unwrap().to_owned();
    for status in [200, 503] {
        let (answer, said) = fleet.post("boss", "/api/v1/backup", &json!({"folder": copy})).await;
        assert_eq!(answer, status, "{said}");
    }
    // Goodbyes: its own, and the server's.
    galaxy.close().await;
    fleet.audited(json!({"event": "disconnected", "client": "g"})).await;
    fleet.revoke("lab").await;
    device.expect_close().await;
    fleet.audited(json!({"event": "cut"})).await;
    fleet.server.process.signal(Signal::TERM);
    until("the last line", || fleet.audit().last().is_some_and(|line| line["event"] == "stopped"))
        .await;

    let lines = fleet.audit();
    let count = |wanted: &Value| lines.iter().filter(|line| has(line, wanted)).count();
    let who = ["at", "event", "client", "role", "key", "address"];
    let of_task = |more: &[&'static str]| [&["task", "session", "device"], more].concat();
    let http = ["at", "event", "key", "address"];
    let task_id = &task["id"];
    for (wanted, names, times) in [
        (json!({"event": "started"}), vec!["at", "event"], 1),
        (
            json!({"event": "key_created", "key": "boss", "role": "operator"}),
            vec!["at", "event", "key", "role"],
            1,
        ),
        (
            json!({"event": "key_revoked", "key": "lab", "role": "device"}),
            vec!["at", "event", "key", "role"],
            1,
        ),
        (
            json!({"event": "backup", "key": "boss", "outcome": "completed", "folder": copy}),
            [&http[..], &["folder", "outcome"]].concat(),
            1,
        ),
        (
            json!({"event": "backup", "key": "boss", "outcome": "failed"}),
            [&http[..], &["folder", "outcome", "reason"]].concat(),
            1,
        ),
        (
            json!({"event": "registered", "client": "lab-1", "role": "device", "key": "lab"}),
            who.to_vec(),
            1,
        ),
        (
            json!({"event": "registered", "client": "g", "role": "constellation", "key": "galaxy"}),
            who.to_vec(),
            1,
        ),
        (
            json!({"event": "submitted", "client": "g", "key": "galaxy", "session": session, "device": "lab-1"}),
            [&who[..], &of_task(&[])].concat(),
            1,
        ),
        (
            json!({"event": "step", "client": "g", "session": session, "device": "lab-1", "step": 1, "tool": "execute_command"}),
            [&who[..], &of_task(&["step", "tool"])].concat(),
            1,
        ),
        (
            json!({"event": "ended", "client": "g", "session": session, "outcome": "completed"}),
            [&who[..], &of_task(&["outcome"])].concat(),
            1,
        ),
        (
            json!({"event": "submitted", "key": "galaxy", "task": task_id}),
            [&http[..], &of_task(&[])].concat(),
            1,
        ),
        (
            json!({"event": "cancelled", "key": "boss", "task": task_id}),
            [&http[..], &of_task(&[])].concat(),
            1,
        ),
        (
            json!({"event": "ended", "task": task_id, "outcome": "failed", "reason": "Task was cancelled by 'boss': not_confirmed"}),
            [&http[..], &of_task(&["outcome", "reason"])].concat(),
            1,
        ),
        (
            json!({"event": "refused", "client": "g", "session": refused}),
            [&who[..], &["session", "reason"]].concat(),
            1,
        ),
        (
            json!({"event": "refused", "key": "galaxy", "device": "office-1"}),
            [&http[..], &["device", "reason"]].concat(),
            1,
        ),
        (
            json!({"event": "refused", "key": "lab", "reason": "The role of this key does not allow it"}),
            [&http[..], &["reason"]].concat(),
            1,
        ),
        (
            json!({"event": "refused", "client": "office-1", "key": "lab"}),
            vec!["at", "event", "client", "key", "address", "reason"],
            1,
        ),
        (json!({"event": "key_refused"}), vec!["at", "event", "address"], 2),
        (json!({"event": "disconnected", "client": "g"}), [&who[..], &["reason"]].concat(), 1),
        (json!({"event": "cut", "client": "lab-1"}), [&who[..], &["reason"]].concat(), 1),
        (json!({"event": "stopped"}), vec!["at", "event"], 1),
    ] {
        assert_eq!(count(&wanted), times, "{wanted} in {lines:#?}");
        let line = lines.iter().find(|line| has(line, &wanted)).unwrap();
        let mut expected = names;
        expected.sort_unstable();
        assert_eq!(fields(line), expected, "{line}");
        if let Some(address) = line["address"].as_str() {
            assert!(address.starts_with("127.0.0.1:"), "{line}");
        }
    }
    let times: Vec<_> = lines.iter().map(|line| line["at"].as_str().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");

    let path = fleet.server.state_file("audit.jsonl");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let text = std::fs::read_to_string(path).unwrap();
    for secret in [PAYLOAD, "wr0ng", fleet.key("lab"), fleet.key("galaxy")] {
        assert!(!text.contains(secret), "{secret} is in {text}");
    }
}

#[tokio::test]
async fn the_arguments_of_a_step_are_written_down_where_the_owner_wants_them() {
    let fleet = Fleet::start_with(&[], &["--audit-arguments"]).await;
    let mut device = fleet.device(SHARED, "lab-1").await;
    let mut galaxy = fleet.constellation(SHARED, "g", Value::Null).await;
    galaxy.submit("lab-1", &plan(PAYLOAD)).await;
    device.expect("command").await;
    fleet.audited(json!({"event": "step", "tool": "execute_command"})).await;
    let lines = fleet.audit();
    let line = lines.iter().find(|line| line["event"] == "step").unwrap();
    let arguments: Value = serde_json::from_str(line["arguments"].as_str().unwrap()).unwrap();
    assert_eq!(arguments["command"], PAYLOAD, "{line}");
}

#[tokio::test]
async fn a_server_that_is_killed_has_a_line_for_each_task_that_somebody_was_told_of() {
    for flags in [&[][..], &["--memory"]] {
        let mut fleet = Fleet::start_with(&[], flags).await;
        let mut told = Vec::new();
        for n in 0..10 {
            let _device = fleet.device(SHARED, "lab-1").await;
            let mut galaxy = fleet.constellation(SHARED, "g", Value::Null).await;
            let session = galaxy.submit("lab-1", &plan("pwd")).await;
            galaxy.expect_ack(&session).await;
            told.push(json!({"event": "submitted", "session": session}));
            if n % 2 == 0 {
                let task = http_task("lab-1", &format!("t{n}"));
                let (status, task) = fleet.post(SHARED, "/api/v1/tasks", &task).await;
                assert_eq!(status, 201, "{task}");
                told.push(json!({"event": "submitted", "task": task["id"]}));
            }
            fleet.server.process.kill().await;
            let lines = fleet.audit();
            for one in &told {
                let times = lines.iter().filter(|line| has(line, one)).count();
                assert_eq!(times, 1, "{one} in {lines:#?}");
            }
            fleet.server = fleet.server.start_again_with(flags).await;
        }
    }
}

#[tokio::test]
async fn a_task_whose_line_was_lost_with_its_server_gets_it_at_the_next_start() {
    let mut fleet = Fleet::start(&[]).await;
    let _device = fleet.device(SHARED, "lab-1").await;
    let (_, task) = fleet.post(SHARED, "/api/v1/tasks", &http_task("lab-1", "t")).await;
    fleet.server.process.kill().await;
    // As if the server had been killed right behind the commit.
    let log = fleet.server.state_file("audit.jsonl");
    let text = std::fs::read_to_string(&log).unwrap();
    let kept = text.split_inclusive('\n').filter(|line| !line.contains("submitted"));
    std::fs::write(&log, kept.collect::<String>()).unwrap();
    for _ in 0..2 {
        fleet.server = fleet.server.start_again().await;
        let submitted = json!({"event": "submitted", "task": task["id"], "device": "lab-1"});
        let lines = fleet.audit();
        let found: Vec<_> = lines.iter().filter(|line| has(line, &submitted)).collect();
        assert_eq!(found.len(), 1, "{lines:#?}");
        assert!(found[0]["reason"].as_str().unwrap().contains("killed"), "{found:?}");
        fleet.server.process.kill().await;
    }
}

#[tokio::test]
async fn a_line_stays_a_line_whatever_a_peer_is_called() {
    let fleet = Fleet::start(&["lab --role device"]).await;
    let name = "x\u{2028}{\"event\":\"forged\"}\u{202e}\",\"event\":\"forged";
    let _device = fleet.device("lab", name).await;
    fleet.audited(json!({"event": "registered", "client": name})).await;
    assert!(!fleet.audit().iter().any(|line| line["event"] == "forged"));
}
