//! Connections that are dead and do not know it, and newcomers that say they are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_websockets::{Config, Message};

use crate::common::{Peer, plan, within};
use crate::fleet::{Fleet, SHARED, refused};
use crate::proxy::Proxy;

const KEYS: [&str; 3] = ["lab --role device", "thief --role device", "galaxy --role constellation"];

/// How long the server waits for a sign of life.
const PROBE: Duration = Duration::from_secs(2);

const PIECE: usize = 64 * 1024;

/// A device behind a proxy, with this key.
async fn behind(proxy: &Proxy, fleet: &Fleet, key: &str, id: &str) -> Peer {
    let mut peer = Peer::connect(proxy.port, fleet.key(key)).await.unwrap();
    peer.register_device(id).await;
    peer
}

fn already(id: &str) -> (String, u16) {
    let text =
        format!("client_id '{id}' is already registered; duplicate registrations are not allowed");
    (text, 1008)
}

#[tokio::test]
async fn a_dead_connection_gives_way_to_its_own_key_and_does_nothing_any_more() {
    let fleet = Fleet::start(&KEYS).await;
    let proxy = Proxy::start(fleet.server.port, PIECE, Duration::ZERO).await;
    let mut old = behind(&proxy, &fleet, "lab", "d").await;
    let mut galaxy = fleet.constellation("galaxy", "g", json!("d")).await;
    let session = galaxy.submit("d", &plan("pwd")).await;
    galaxy.expect_ack(&session).await;
    let command = old.expect("command").await;
    proxy.swallow();

    let started = Instant::now();
    let mut new = galaxy.alive_while(fleet.peer("lab")).await;
    new.say_device("d").await;
    let end = galaxy.expect_end(&session, "failed").await;
    let why = "Task was cancelled because target device disconnected ('d')";
    assert_eq!(end["error"], why);
    new.expect("heartbeat").await;
    assert!(started.elapsed() >= PROBE, "it was not asked: {:?}", started.elapsed());
    let cut = fleet.audited(json!({"event": "cut", "client": "d"})).await;
    assert!(cut["reason"].as_str().unwrap().contains("4001"), "{cut}");

    // What the old one still says changes nothing: not for the task, not for the newcomer.
    old.answer_well(&command).await;
    old.say("device_info_response", json!({"metadata": {"hostname": "forged"}})).await;
    let task = json!({"session_id": "forged", "request": plan("pwd"), "target_id": "d"});
    old.say("task", task).await;
    proxy.heal();
    let (code, reason) = loop {
        if let Err(closed) = old.next().await {
            break closed;
        }
    };
    assert_eq!(code, 4001, "{reason}");
    galaxy.beat().await;
    new.beat().await;
    galaxy.say("device_info_request", json!({"target_id": "d", "request_id": "r"})).await;
    let facts = galaxy.expect("device_info_response").await;
    assert_eq!(facts["result"]["hostname"], "h");
    fleet.works(&mut galaxy, &mut new).await;
    assert!(!fleet.audit().iter().any(|line| line["session"] == "forged"));
}

#[tokio::test]
async fn a_dead_connection_does_not_give_way_to_another_key() {
    let fleet = Fleet::start(&KEYS).await;
    let proxy = Proxy::start(fleet.server.port, PIECE, Duration::ZERO).await;
    let mut old = behind(&proxy, &fleet, "lab", "d").await;
    let mut galaxy = fleet.constellation("galaxy", "g", json!("d")).await;
    proxy.swallow();
    for key in ["thief", SHARED] {
        let mut thief = fleet.peer(key).await;
        thief.say_device("d").await;
        assert_eq!(refused(&mut thief).await, already("d"), "{key}");
    }
    // It was not even asked: when the network is back, all is as it was.
    proxy.heal();
    fleet.works(&mut galaxy, &mut old).await;
}

#[tokio::test]
async fn a_live_device_that_says_nothing_stays_whoever_comes() {
    let fleet = Fleet::start(&KEYS).await;
    for (owner, id) in [("lab", "own"), (SHARED, "everybodys")] {
        let mut quiet = fleet.device(owner, id).await;
        for key in ["lab", "thief", SHARED] {
            let trying = async {
                let mut thief = fleet.peer(key).await;
                thief.say_device(id).await;
                refused(&mut thief).await
            };
            let told = quiet.alive_while(trying).await;
            assert_eq!(told, already(id), "{key} at {id}");
        }
        quiet.beat().await;
    }
}

#[tokio::test]
async fn a_refused_thief_leaves_the_owners_task_and_bookkeeping_whole() {
    let fleet = Fleet::start(&KEYS).await;
    let mut device = fleet.device(SHARED, "d").await;
    let mut galaxy = fleet.constellation("galaxy", "g", Value::Null).await;
    let session = galaxy.submit("d", &plan("pwd")).await;
    galaxy.expect_ack(&session).await;
    let command = device.expect("command").await;
    for _ in 0..3 {
        let trying = async {
            let mut thief = fleet.peer(SHARED).await;
            thief.say_device("d").await;
            assert_eq!(refused(&mut thief).await, already("d"));
        };
        device.alive_while(trying).await;
    }
    device.answer_well(&command).await;
    galaxy.expect_end(&session, "completed").await;
    device.expect_end(&session, "completed").await;
    fleet.works(&mut galaxy, &mut device).await;
}

/// The size of the result, in bytes.
const LARGE: usize = 100_000_000;

/// Tries to take an id over, again and again, until told to stop. Returns how often it was refused.
async fn thief(fleet: Arc<Fleet>, id: &'static str, stop: watch::Receiver<bool>) -> usize {
    let mut times = 0;
    while !*stop.borrow() {
        let mut thief = fleet.peer(SHARED).await;
        thief.say_device(id).await;
        assert_eq!(refused(&mut thief).await, already(id));
        times += 1;
    }
    times
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_busy_sending_a_hundred_megabytes_stays_whoever_comes() {
    let fleet = Arc::new(Fleet::start(&KEYS).await);
    // About five seconds for all of it, so that it is slower than a probe.
    let proxy = Proxy::start(fleet.server.port, 1024 * 1024, Duration::from_millis(50)).await;
    let mut device = behind(&proxy, &fleet, SHARED, "busy").await;
    let mut galaxy = fleet.constellation("galaxy", "g", json!("busy")).await;
    let session = galaxy.submit("busy", &plan("pwd")).await;
    galaxy.expect_ack(&session).await;
    let command = device.expect("command").await;
    let result =
        json!([{"status": "success", "result": "", "call_id": command["actions"][0]["call_id"]}]);
    let answer = json!({"session_id": session, "prev_response_id": command["response_id"],
        "action_results": result});
    let answer = device.message("command_results", &answer);
    let (before, after) = answer.split_once("\"result\":\"\"").unwrap();
    let answer = Bytes::from(format!("{before}\"result\":\"{}\"{after}", "x".repeat(LARGE)));

    let (stop, stopped) = watch::channel(false);
    let thieves: Vec<_> =
        (0..3).map(|_| tokio::spawn(thief(fleet.clone(), "busy", stopped.clone()))).collect();
    // It only writes, as simple clients do: no ping is answered meanwhile.
    let (id, role) = (device.id.clone(), device.role);
    let frames = Config::default().frame_size(usize::MAX);
    let builder = tokio_websockets::ClientBuilder::new().config(frames);
    let socket = builder.limits(tokio_websockets::Limits::unlimited());
    let (mut write, read) = socket.take_over(device.socket.into_inner()).split();
    let sending = async { write.send(Message::text(answer)).await.unwrap() };
    let galaxys = async { galaxy.next_text().await.unwrap() };
    let (end, ()) = tokio::join!(galaxys, sending);
    stop.send_replace(true);
    let mut device = Peer { socket: write.reunite(read).unwrap(), id, role };
    device.expect_end(&session, "completed").await;
    for thief in thieves {
        let times = device.alive_while(within("the end of a thief", thief)).await.unwrap();
        assert!(times > 1, "a thief tried {times} times");
    }
    assert!(end.contains(r#""status":"completed""#), "{}", &end[..200]);
    let xs = end.bytes().filter(|byte| *byte == b'x').count();
    assert!((LARGE..LARGE + 100).contains(&xs), "{xs} of {LARGE} bytes arrived");
    device.beat().await;
}
