//! Which devices and tasks a key reaches.

use serde_json::{Value, json};

use crate::common::{Peer, plan, unique};
use crate::fleet::{Fleet, SHARED, http_task, refused};

const DEVICES: [&str; 2] = ["lab-1", "office-1"];

const NOT_YOURS: &str = "Not authorized to run tasks on this device";
const NO_INFO: &str = "Not authorized to request device info for this device";

/// A server with two devices.
async fn fleet() -> (Fleet, [Peer; 2]) {
    let fleet = Fleet::start(&[
        "devices --role device",
        "lab --role constellation --target lab-*",
        "other --role constellation --target lab-*",
        "all --role constellation",
        "boss --role operator",
    ])
    .await;
    let devices =
        [fleet.device("devices", DEVICES[0]).await, fleet.device("devices", DEVICES[1]).await];
    (fleet, devices)
}

/// Submits a task, which is refused and ends so.
async fn not_authorized(galaxy: &mut Peer, target: &str) {
    let session = galaxy.submit(target, &plan("pwd")).await;
    assert_eq!(galaxy.expect_error().await, NOT_YOURS);
    assert_eq!(galaxy.expect_end(&session, "failed").await["error"], NOT_YOURS);
}

/// What is known of a device, or the refusal.
async fn info(galaxy: &mut Peer, target: &str) -> Result<Value, Value> {
    let request_id = unique("info");
    let ask = json!({"target_id": target, "request_id": request_id});
    galaxy.say("device_info_request", ask).await;
    let answer = galaxy.next().await.unwrap();
    match answer["type"].as_str() {
        Some("error") => Err(answer["error"].clone()),
        _ => Ok(answer["result"].clone()),
    }
}

#[tokio::test]
async fn a_constellation_key_reaches_its_targets_over_the_websocket_and_no_others() {
    let (fleet, [mut lab, mut office]) = fleet().await;
    let mut galaxy = fleet.constellation("lab", "g", Value::Null).await;
    fleet.works(&mut galaxy, &mut lab).await;
    not_authorized(&mut galaxy, "office-1").await;
    // Whether such a device exists is not said either.
    not_authorized(&mut galaxy, "office-99").await;
    assert_eq!(info(&mut galaxy, "lab-1").await.unwrap()["device_id"], "lab-1");
    for id in ["office-1", "office-99"] {
        assert_eq!(info(&mut galaxy, id).await, Err(json!(NO_INFO)), "{id}");
    }
    office.beat().await;

    let mut declares = fleet.peer("lab").await;
    declares.say_constellation("h", json!("office-1")).await;
    assert_eq!(refused(&mut declares).await, (NOT_YOURS.to_owned(), 1008));
    let mut declares = fleet.constellation("lab", "h", json!("lab-1")).await;
    fleet.works(&mut declares, &mut lab).await;
}

#[tokio::test]
async fn a_constellation_key_reaches_its_targets_over_http_and_no_others() {
    let (fleet, [mut lab, mut office]) = fleet().await;
    let task = |device: &str| http_task(device, "t");
    let dispatch = |device: &str| json!({"client_id": device, "request": plan("pwd")});
    for (path, body, status) in [
        ("/api/v1/tasks", task("lab-1"), 201),
        ("/api/v1/tasks", task("office-1"), 403),
        ("/api/v1/tasks", task("office-99"), 403),
        ("/api/dispatch", dispatch("lab-1"), 200),
        ("/api/dispatch", dispatch("office-1"), 403),
        ("/api/dispatch", dispatch("office-99"), 403),
    ] {
        let (answered, answer) = fleet.post("lab", path, &body).await;
        assert_eq!(answered, status, "{path} {body}: {answer}");
    }
    lab.expect("command").await;
    office.beat().await;

    let (_, listed) = fleet.get("lab", "/api/v1/devices").await;
    let ids: Vec<_> =
        listed["devices"].as_array().unwrap().iter().map(|device| &device["id"]).collect();
    assert_eq!(ids, [&json!("lab-1")]);
    for (id, status) in [("lab-1", 200), ("office-1", 404), ("office-99", 404)] {
        let (answered, shown) = fleet.get("lab", &format!("/api/v1/devices/{id}")).await;
        assert_eq!(answered, status, "{id}: {shown}");
    }
    let _galaxy = fleet.constellation("all", "g", Value::Null).await;
    for path in ["/api/clients", "/api/health"] {
        let online = |ids: &[&str]| json!(ids);
        let (_, shown) = fleet.get("lab", path).await;
        assert_eq!(shown["online_clients"], online(&["lab-1"]), "{path}");
        let (_, shown) = fleet.get("boss", path).await;
        assert_eq!(shown["online_clients"], online(&["g", "lab-1", "office-1"]), "{path}");
    }
}

#[tokio::test]
async fn only_a_key_that_names_targets_itself_counts_more_than_the_declared_target() {
    let (fleet, [mut lab, _office]) = fleet().await;
    let mut second = fleet.device("devices", "lab-2").await;
    // Its own pattern names more.
    let mut galaxy = fleet.constellation("lab", "g", json!("lab-2")).await;
    fleet.works(&mut galaxy, &mut second).await;
    fleet.works(&mut galaxy, &mut lab).await;
    not_authorized(&mut galaxy, "office-1").await;
    assert!(info(&mut galaxy, "lab-1").await.is_ok());
    // A key without a pattern names nothing, and the shared key is everybody's.
    for key in ["all", "boss", SHARED] {
        let mut galaxy = fleet.constellation(key, key, json!("lab-2")).await;
        fleet.works(&mut galaxy, &mut second).await;
        not_authorized(&mut galaxy, "lab-1").await;
        assert_eq!(info(&mut galaxy, "lab-1").await, Err(json!(NO_INFO)), "{key}");
    }
}

#[tokio::test]
async fn a_constellation_that_takes_the_id_of_a_device_does_not_become_its_own_target() {
    let (fleet, _devices) = fleet().await;
    let mut galaxy = fleet.constellation("lab", "office-2", Value::Null).await;
    not_authorized(&mut galaxy, "office-2").await;
    assert_eq!(info(&mut galaxy, "office-2").await, Err(json!(NO_INFO)));
}

#[tokio::test]
async fn over_http_everybody_sees_and_cancels_their_own_tasks_and_an_operator_all() {
    let (fleet, [mut device, _office]) = fleet().await;
    let (status, task) = fleet.post("lab", "/api/v1/tasks", &http_task("lab-1", "mine")).await;
    assert_eq!(status, 201, "{task}");
    let command = device.expect("command").await;
    let id = task["id"].as_str().unwrap();
    let (show, wait) =
        (format!("/api/v1/tasks/{id}"), format!("/api/v1/tasks/{id}/wait?timeout_s=0"));
    let cancel = format!("/api/v1/tasks/{id}/cancel");

    for path in [&show, &wait] {
        assert_eq!(fleet.get("other", path).await.0, 404, "{path}");
        assert_eq!(fleet.get("boss", path).await.0, 200, "{path}");
    }
    assert_eq!(fleet.post("other", &cancel, &json!({})).await.0, 404);
    let names = |(_, tasks): (u16, Value)| tasks["tasks"].as_array().unwrap().len();
    assert_eq!(names(fleet.get("other", "/api/v1/tasks").await), 0);
    assert_eq!(names(fleet.get("lab", "/api/v1/tasks").await), 1);
    assert_eq!(names(fleet.get("boss", "/api/v1/tasks").await), 1);
    // Whoever looks at what the device is busy with learns that it is, and no more.
    for (key, is_seen) in [("other", false), ("lab", true), ("boss", true)] {
        let (_, shown) = fleet.get(key, "/api/v1/devices/lab-1").await;
        assert_eq!(shown["tasks"][0]["state"], "running", "{key}: {shown}");
        for part in [id, "mine", task["session_id"].as_str().unwrap(), "HTTP, key lab"] {
            assert_eq!(shown.to_string().contains(part), is_seen, "{key}, {part}: {shown}");
        }
    }

    device.answer_well(&command).await;
    device.expect("task_end").await;
    let pending = json!({"status": "pending"});
    assert_eq!(fleet.get("other", "/api/task_result/mine").await, (200, pending));
    assert_eq!(fleet.get("lab", "/api/task_result/mine").await.1["status"], "done");
    assert_eq!(fleet.post("lab", &cancel, &json!({})).await.0, 409);

    let (_, task) = fleet.post("lab", "/api/v1/tasks", &http_task("lab-1", "second")).await;
    device.expect("command").await;
    let cancel = format!("/api/v1/tasks/{}/cancel", task["id"].as_str().unwrap());
    assert_eq!(fleet.post("boss", &cancel, &json!({})).await.0, 202);
    let end = device.expect("task_end").await;
    assert_eq!(end["error"], "Task was cancelled by 'boss': not_confirmed");
}

#[tokio::test]
async fn a_key_of_the_same_name_does_not_see_the_tasks_of_the_one_before() {
    let (mut fleet, [mut device, _office]) = fleet().await;
    let (_, task) = fleet.post("lab", "/api/v1/tasks", &http_task("lab-1", "old")).await;
    let command = device.expect("command").await;
    device.answer_well(&command).await;
    device.expect("task_end").await;
    fleet.revoke("lab").await;
    fleet.create("lab --role constellation").await;
    let path = format!("/api/v1/tasks/{}", task["id"].as_str().unwrap());
    assert_eq!(fleet.get("lab", &path).await.0, 404);
    assert_eq!(fleet.get("lab", "/api/task_result/old").await.1["status"], "pending");
}
