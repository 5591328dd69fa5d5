//! Keys that stop to open.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::{Value, json};

use crate::common::{Peer, http_client, plan, until};
use crate::fleet::{Fleet, SHARED, answer, has, http_task, refused};

const KEYS: [&str; 4] = [
    "lab --role device",
    "office --role device",
    "galaxy --role constellation",
    "boss --role operator",
];

const GONE: &str = "the key was revoked or has expired";

#[tokio::test]
async fn a_key_that_is_created_while_the_server_runs_opens_at_once() {
    let mut fleet = Fleet::start(&[]).await;
    fleet.create("late --role device --client late-*").await;
    fleet.device("late", "late-1").await.beat().await;
}

#[tokio::test]
async fn revoking_a_devices_key_closes_its_connections_and_ends_its_task() {
    let mut fleet = Fleet::start(&KEYS).await;
    let mut first = fleet.device("lab", "lab-1").await;
    let mut second = fleet.device("lab", "lab-2").await;
    let mut bystander = fleet.device("office", "office-1").await;
    let mut galaxy = fleet.constellation("galaxy", "g", Value::Null).await;
    let session = galaxy.submit("lab-1", &plan("pwd")).await;
    galaxy.expect_ack(&session).await;
    first.expect("command").await;

    fleet.revoke("lab").await;
    for peer in [&mut first, &mut second] {
        assert_eq!(peer.expect_close().await, (1008, GONE.to_owned()));
    }
    let end = galaxy.expect_end(&session, "failed").await;
    let why = "Task was cancelled because target device disconnected ('lab-1')";
    assert_eq!(end["error"], why);
    bystander.beat().await;
    galaxy.beat().await;
    assert_eq!(Peer::connect(fleet.server.port, fleet.key("lab")).await.err(), Some(403));
    let cut = fleet.audited(json!({"event": "cut", "client": "lab-1"})).await;
    assert!(cut["reason"].as_str().unwrap().contains(GONE), "{cut}");
    let counts = fleet.counts().await;
    assert!(has(&counts, &json!({"devices": 1, "tasks_running": 0})), "{counts}");
}

#[tokio::test]
async fn revoking_a_requesters_key_ends_its_tasks_also_those_that_came_over_http() {
    let mut fleet = Fleet::start(&KEYS).await;
    let mut devices = [fleet.device("lab", "lab-1").await, fleet.device("lab", "lab-2").await];
    let mut galaxy = fleet.constellation("galaxy", "g", Value::Null).await;
    let session = galaxy.submit("lab-1", &plan("pwd")).await;
    galaxy.expect_ack(&session).await;
    let (_, running) = fleet.post("galaxy", "/api/v1/tasks", &http_task("lab-2", "running")).await;
    let (_, queued) = fleet.post("galaxy", "/api/v1/tasks", &http_task("lab-2", "queued")).await;
    for device in &mut devices {
        device.expect("command").await;
    }
    let wait = format!("/api/v1/tasks/{}/wait?timeout_s=300", running["id"].as_str().unwrap());
    let waiting = http_client().get(fleet.http(&wait)).bearer_auth(fleet.key("galaxy"));
    let waiting = tokio::spawn(answer(waiting));

    fleet.revoke("galaxy").await;
    // Its task's end may come before.
    let closed = loop {
        if let Err(closed) = galaxy.next().await {
            break closed;
        }
    };
    assert_eq!(closed, (1008, GONE.to_owned()));
    let why = "Task was cancelled because the key that it was submitted with was revoked or has \
               expired";
    // The second device is told of both its tasks.
    for (device, ends) in devices.iter_mut().zip([1, 2]) {
        for _ in 0..ends {
            let end = device.expect("task_end").await;
            assert_eq!((&end["status"], &end["error"]), (&json!("failed"), &json!(why)));
        }
        device.beat().await;
    }
    // Whoever waits for it with the old key hears no more of it, and has waited long enough.
    assert_eq!(waiting.await.unwrap().0, 401);
    for task in [running, queued] {
        let path = format!("/api/v1/tasks/{}", task["id"].as_str().unwrap());
        let (_, task) = fleet.get("boss", &path).await;
        assert!(has(&task, &json!({"state": "failed", "error": why})), "{task}");
    }
    assert_eq!(fleet.get("galaxy", "/api/v1/devices").await.0, 401);
}

#[tokio::test]
async fn who_has_not_registered_yet_when_its_key_is_revoked_is_refused() {
    let mut fleet = Fleet::start(&KEYS).await;
    let mut peer = fleet.peer("lab").await;
    fleet.revoke("lab").await;
    peer.say_device("lab-1").await;
    let (error, code) = refused(&mut peer).await;
    assert!(error.contains("revoked") && code == 1008, "{error} {code}");
    let (_, clients) = fleet.get(SHARED, "/api/clients").await;
    assert_eq!(clients["online_clients"], json!([]));
}

#[tokio::test]
async fn an_expired_key_is_as_good_as_a_revoked_one() {
    let mut fleet = Fleet::start(&KEYS).await;
    let mut galaxy = fleet.constellation("galaxy", "g", Value::Null).await;
    // A slow machine needs a longer life to see the key while it lives.
    let mut lifetime = 2;
    let (mut device, session) = loop {
        let key = format!("k{lifetime}");
        fleet.create(&format!("{key} --role device --expires {lifetime}s")).await;
        lifetime *= 2;
        let Ok(mut peer) = Peer::connect(fleet.server.port, fleet.key(&key)).await else {
            continue;
        };
        peer.say_device(&key).await;
        if peer.next().await.is_ok_and(|answer| answer["type"] == "heartbeat") {
            let session = galaxy.submit(&key, &plan("pwd")).await;
            if galaxy.next().await.unwrap()["type"] == "heartbeat" {
                break (peer, session);
            }
            galaxy.expect_end(&session, "failed").await;
        }
    };
    let close = loop {
        if let Err(close) = device.next().await {
            break close;
        }
    };
    assert_eq!(close, (1008, GONE.to_owned()));
    galaxy.expect_end(&session, "failed").await;
    let expired = fleet.key(&device.id);
    assert_eq!(Peer::connect(fleet.server.port, expired).await.err(), Some(403));
    let list = fleet.run(&["key", "list"]).await.stdout;
    let row = list.lines().find(|line| line.starts_with(&device.id)).unwrap();
    assert!(row.contains(" expired "), "{list}");
    // It is there until it is revoked, and is no hindrance.
    assert_eq!(fleet.run(&["key", "revoke", &device.id]).await.code, 0);
}

#[tokio::test]
async fn a_key_that_is_narrowed_in_the_file_closes_what_it_had_opened() {
    let fleet = Fleet::start(&KEYS).await;
    let mut device = fleet.device("lab", "lab-1").await;
    let path = fleet.server.state_file("keys.json");
    let text = fs::read_to_string(&path).unwrap();
    let narrow =
        text.replacen("\"role\": \"device\"", "\"role\": \"device\", \"client\": \"x\"", 1);
    fs::write(&path, narrow).unwrap();
    assert_eq!(device.expect_close().await.0, 1008);
    let mut again = fleet.peer("lab").await;
    again.say_device("lab-1").await;
    assert!(refused(&mut again).await.0.contains("'x'"));
}

#[tokio::test]
async fn keys_that_cannot_be_read_any_more_stay_in_force_until_they_can() {
    let mut fleet = Fleet::start(&KEYS).await;
    let mut device = fleet.device("lab", "lab-1").await;
    let path = fleet.server.state_file("keys.json");
    let good = fs::read_to_string(&path).unwrap();
    fs::write(&path, "{\"keys\": [").unwrap();
    fleet.server.process.says("the created keys stay as they were").await;
    let log = fleet.server.process.stderr();
    let line = log.lines().find(|line| line.contains("stay as they were")).unwrap();
    assert!(line.contains("ERROR") && line.contains("keys.json"), "{line}");
    device.beat().await;
    fleet.device("lab", "lab-2").await.beat().await;
    fs::write(&path, good).unwrap();
    fleet.revoke("office").await;
    device.beat().await;
    assert_eq!(Peer::connect(fleet.server.port, fleet.key("office")).await.err(), Some(403));
}

#[tokio::test]
async fn a_real_device_whose_key_is_revoked_says_so_and_does_not_hammer_the_server() {
    let mut fleet = Fleet::start(&KEYS).await;
    let home = crate::common::Home::new();
    let url = fleet.server.url();
    let args = ["device", "--id", "real", "--server", &url, "--max-retries", "3"];
    let mut device = crate::common::Process::start(
        home.command(&args).env("FLIGHTDECK_TOKEN", fleet.key("lab")),
    );
    device.says("connected to").await;
    fleet.revoke("lab").await;
    let done = device.done().await;
    assert_ne!(done.code, 0, "{done:?}");
    assert!(done.stderr.contains("revoked"), "{done:?}");
    until("the id to be free", || {
        fleet.audit().iter().any(|line| has(line, &json!({"event": "cut", "client": "real"})))
    })
    .await;
}

#[tokio::test]
async fn to_remove_the_file_revokes_all_created_keys() {
    let fleet = Fleet::start(&KEYS).await;
    let mut device = fleet.device("lab", "lab-1").await;
    let mut shared = fleet.device(SHARED, "s").await;
    fs::remove_file(fleet.server.state_file("keys.json")).unwrap();
    assert_eq!(device.expect_close().await, (1008, GONE.to_owned()));
    assert_eq!(Peer::connect(fleet.server.port, fleet.key("boss")).await.err(), Some(403));
    shared.beat().await;
}

/// From now on what this thread starts has one core.
fn keep_to_one_core() {
    let mut core = CpuSet::new();
    core.set(rustix::thread::sched_getcpu());
    sched_setaffinity(None, &core).unwrap();
}

#[tokio::test]
async fn a_disk_that_hangs_with_the_keys_holds_up_no_server() {
    keep_to_one_core();
    let mut fleet = Fleet::start(&KEYS).await;
    let mut device = fleet.device("lab", "lab-1").await;
    let (pipe, path) = (fleet.server.state_file("pipe"), fleet.server.state_file("keys.json"));
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    fs::rename(&pipe, &path).unwrap();
    // Without a reader, which the server is from its look on, it cannot be opened to be written.
    let mut options = fs::File::options();
    options.write(true).custom_flags(OFlags::NONBLOCK.bits() as i32);
    let mut file = None;
    until("the server's look", || {
        file = options.open(&path).ok();
        file.is_some()
    })
    .await;
    device.beat().await;
    fleet.device("lab", "lab-2").await.beat().await;
    drop(file);
    fleet.server.process.says("the created keys stay as they were").await;
}
