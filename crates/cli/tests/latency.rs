//! A busy device does not slow the others: heartbeats are answered while 50 MB pass through.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::process::until_running;
use common::{Server, long_sleep, plan, within};
use serde_json::json;

/// The size of the result.
const LARGE: usize = 50 * 1024 * 1024;

/// Time between two heartbeats.
const PACE: Duration = Duration::from_millis(1);

/// Sends heartbeats from a thread of its own until it is told to stop. Returns how long each answer
/// took.
fn beat_until(
    stop: Arc<AtomicBool>,
    port: u16,
    key: String,
) -> std::thread::JoinHandle<Vec<Duration>> {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut peer = common::Peer::connect(port, &key).await.unwrap();
            peer.register_device("heart").await;
            let mut latencies = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let sent = Instant::now();
                peer.beat().await;
                latencies.push(sent.elapsed());
                tokio::time::sleep(PACE).await;
            }
            latencies
        })
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_does_not_wait_for_a_large_result() {
    let server = Server::start().await;
    let mut device = server.raw_device("large").await;
    let mut galaxy = server.raw_constellation("g").await;
    let _slow = server.device("slow", &["--exec", "shell"]).await;
    let slow = long_sleep();
    galaxy.submit("slow", &plan(&slow)).await;
    galaxy.expect("heartbeat").await;
    until_running(&slow).await;

    let session = galaxy.submit("large", &plan("cat large")).await;
    galaxy.expect_ack(&session).await;
    let command = device.expect("command").await;
    // Written beforehand, so that writing it takes nobody's time.
    let result =
        json!({"status": "success", "result": {"success": true, "stdout": "x".repeat(LARGE)}});
    let fields = json!({"session_id": session, "action_results": [result],
        "prev_response_id": command["response_id"]});
    let answer = device.message("command_results", &fields);

    let stop = Arc::new(AtomicBool::new(false));
    let heart = beat_until(stop.clone(), server.port, server.key());
    let started = Instant::now();
    device.send(answer).await;
    let (to_galaxy, to_device) =
        within("both ends", async { tokio::join!(galaxy.next_text(), device.next_text()) }).await;
    let took = started.elapsed();
    stop.store(true, Ordering::Relaxed);
    let mut latencies = within("the last heartbeat", async {
        tokio::task::spawn_blocking(|| heart.join().unwrap()).await.unwrap()
    })
    .await;

    for end in [to_galaxy.unwrap(), to_device.unwrap()] {
        assert!(end.len() > LARGE && end.starts_with(r#"{"type":"task_end","status":"completed""#));
    }
    latencies.sort_unstable();
    let at = |percent: usize| latencies[(latencies.len() - 1) * percent / 100];
    println!(
        "{} heartbeats in {took:?}: median {:?}, 95th percentile {:?}, worst {:?}",
        latencies.len(),
        at(50),
        at(95),
        at(100)
    );
    assert!(at(95) <= Duration::from_millis(20), "{latencies:?}");
}
