//! A crowd, all at once: each task has its ACK and then its one outcome, and nothing of it stays.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::HashMap;
use std::sync::Arc;

use common::{Peer, plan, until, within};
use secrecy::SecretString;
use serde_json::{Value, json};
use server::{Config, Keys, Server};
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const DEVICES: usize = 200;
const CONSTELLATIONS: usize = 200;
const TASKS: usize = 20;
const KEY: &str = "crowd";

/// Does what it is told until it has done its share.
async fn device(port: u16, number: usize, ready: Arc<Barrier>) -> Peer {
    let mut peer = Peer::connect(port, KEY).await.unwrap();
    peer.register_device(&format!("d{number}")).await;
    ready.wait().await;
    let mut ended = HashMap::<String, bool>::new();
    // A Python device is told of the end of each task, after its command.
    while ended.values().filter(|ended| **ended).count() < CONSTELLATIONS * TASKS / DEVICES {
        let message = peer.next().await.unwrap();
        let session = message["session_id"].as_str().unwrap().to_owned();
        match message["type"].as_str().unwrap() {
            "command" => {
                assert_eq!(ended.insert(session, false), None, "a command twice");
                peer.answer_well(&message).await;
            }
            "task_end" => assert_eq!(ended.insert(session, true), Some(false)),
            other => panic!("{other} for a device: {message}"),
        }
    }
    peer
}

/// Submits all its tasks, to as many devices, and waits for each.
async fn constellation(port: u16, number: usize, ready: Arc<Barrier>) -> Peer {
    let mut peer = Peer::connect(port, KEY).await.unwrap();
    peer.register_constellation(&format!("g{number}"), Value::Null).await;
    ready.wait().await;
    let session = |n: usize| format!("s{number}-{n}");
    for n in 0..TASKS {
        let target = format!("d{}", (number + n * 7) % DEVICES);
        let task = json!({"session_id": session(n), "target_id": target, "request": plan("pwd")});
        peer.say("task", task).await;
    }
    let mut told = HashMap::<String, Vec<Value>>::new();
    for _ in 0..TASKS * 2 {
        let message = peer.next().await.unwrap();
        let session = message["session_id"].as_str().unwrap_or_else(|| panic!("{message}"));
        told.entry(session.to_owned()).or_default().push(message.clone());
    }
    for n in 0..TASKS {
        let [ack, end] = &told[&session(n)][..] else { panic!("{told:?}") };
        assert_eq!((&ack["type"], &ack["status"]), (&json!("heartbeat"), &json!("ok")));
        assert_eq!((&end["type"], &end["status"]), (&json!("task_end"), &json!("completed")));
        assert_eq!(end["result"][0]["result"][0][0]["result"]["stdout"], "ok");
    }
    // Nothing came twice.
    peer.beat().await;
    peer
}

/// A server on a free port.
fn start() -> (Server, u16) {
    let server = Server::new(Config::default(), Keys::local(SecretString::from(KEY.to_owned())));
    let listener = server::listen(([127, 0, 0, 1], 0).into()).unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = server.clone();
    tokio::spawn(async move { serving.serve(listener, CancellationToken::new()).await });
    (server, port)
}

async fn until_at_rest(server: &Server) {
    let nothing_left = || {
        let left = serde_json::to_value(server.snapshot()).unwrap();
        left.as_object().unwrap().values().all(|count| *count == 0)
    };
    until("a server at rest", nothing_left).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_task_of_a_crowd_has_its_one_outcome_and_nothing_stays() {
    let (server, port) = start();
    let ready = Arc::new(Barrier::new(DEVICES + CONSTELLATIONS));
    let mut peers = JoinSet::new();
    for number in 0..DEVICES {
        peers.spawn(device(port, number, ready.clone()));
    }
    for number in 0..CONSTELLATIONS {
        peers.spawn(constellation(port, number, ready.clone()));
    }
    let peers = within("the end of all tasks", peers.join_all()).await;
    assert_eq!(server.snapshot().clients, DEVICES + CONSTELLATIONS);

    // Half of them say goodbye, the others just leave.
    for (n, peer) in peers.into_iter().enumerate() {
        if n % 2 == 0 {
            peer.close().await;
        }
    }
    until_at_rest(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_that_leaves_in_the_middle_of_its_tasks_leaves_nothing_behind() {
    const EACH: usize = 50;
    let (server, port) = start();
    let mut peers = Vec::new();
    for number in 0..EACH {
        let mut device = Peer::connect(port, KEY).await.unwrap();
        device.register_device(&format!("d{number}")).await;
        peers.push(device);
    }
    for number in 0..EACH {
        let mut requester = Peer::connect(port, KEY).await.unwrap();
        requester.register_constellation(&format!("g{number}"), Value::Null).await;
        for n in 0..TASKS {
            requester.submit(&format!("d{}", (number + n) % EACH), &plan("pwd")).await;
            // No device answers, so none of them ends.
            assert_eq!(requester.expect("heartbeat").await["status"], "ok");
        }
        peers.push(requester);
    }
    assert_eq!(server.snapshot().sessions, EACH * TASKS);
    fastrand::shuffle(&mut peers);
    drop(peers);
    until_at_rest(&server).await;
}
