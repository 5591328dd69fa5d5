//! What a device takes in of a refused REGISTER, and what it refuses itself.

use std::time::Duration;

use aip::CloseCode;
use aip::message::{HeldState, Instruction, Mismatch};
use jiff::Timestamp;
use link::Ambient;
use serde_json::json;

use super::bench::{ALL, Bench, r};
use crate::DeviceError;

#[tokio::test(start_paused = true)]
async fn a_key_that_is_unknown_is_forgotten() {
    let mut bench = Bench::new().await;
    bench.connect().await.cut().await;
    let wire = bench.accept().await;
    assert_eq!(wire.resume.key.as_deref(), Some("key-1"));
    wire.refuse(
        Mismatch { key: Some("unknown".to_owned()), ..Mismatch::default() },
        CloseCode::NORMAL,
    )
    .await;
    let wire = bench.accept().await;
    assert_eq!((wire.resume.store.as_deref(), wire.resume.key), (Some("S"), None));
}

#[tokio::test(start_paused = true)]
async fn a_number_that_was_used_is_passed_and_that_is_not_final() {
    let mut bench = Bench::new().await;
    let wire = bench.accept().await;
    wire.refuse(Mismatch { n: Some(40), ..Mismatch::default() }, CloseCode::REPLACED).await;
    assert_eq!(bench.accept().await.resume.n, 41);
}

#[tokio::test(start_paused = true)]
async fn a_device_comes_again_with_what_it_holds_for_the_store_it_meets() {
    let mut bench = Bench::new().await;
    let mut wire = bench.connect().await;
    wire.command(&r(1), "s", json!({}));
    wire.error(&r(1)).await;
    wire.cut().await;
    let mut wire = bench.accept().await;
    wire.confirm_as(ALL, "B", false, &[]);
    wire.cut().await;
    let wire = bench.accept().await;
    assert_eq!(wire.listed(), []);
    wire.refuse(Mismatch { store: Some("S".to_owned()), ..Mismatch::default() }, CloseCode::NORMAL)
        .await;
    let wire = bench.accept().await;
    assert_eq!(wire.resume.store.as_deref(), Some("S"));
    assert_eq!(wire.listed(), [(r(1), HeldState::Done)]);
}

#[tokio::test(start_paused = true)]
async fn a_full_journal_refuses_commands_until_something_is_forgotten() {
    let mut bench = Bench::off();
    bench.journal.commands = 2;
    bench.start().await;
    let mut wire = bench.connect().await;
    for n in [1, 2] {
        wire.command(&r(n), "s", json!({}));
        assert_eq!(wire.error(&r(n)).await, "");
    }
    wire.command(&r(3), "s", json!({}));
    assert_eq!(wire.error(&r(3)).await, "journal full");
    wire.acknowledge(&r(1), aip::message::Taken::Accepted);
    wire.command(&r(3), "s", json!({}));
    assert_eq!(wire.error(&r(3)).await, "");
    assert_eq!(bench.lines().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn results_that_do_not_fit_are_a_failure_that_names_their_size() {
    let mut bench = Bench::off();
    bench.journal.bytes = 10_000;
    bench.start().await;
    let mut wire = bench.connect().await;
    wire.command(&r(1), "s", json!({"bytes": 20_000}));
    let error = wire.error(&r(1)).await;
    assert!(
        error.starts_with("executed, but its 20")
            && error.ends_with(" bytes of results did not fit"),
        "{error}"
    );
    wire.cut().await;
    let mut wire = bench.accept().await;
    wire.confirm(&[(&r(1), Instruction::Send)]);
    assert_eq!(wire.error(&r(1)).await, error);
}

#[tokio::test(start_paused = true)]
async fn a_journal_that_cannot_be_written_refuses_commands() {
    let mut bench = Bench::new().await;
    let mut wire = bench.connect().await;
    std::fs::remove_dir_all(bench.folder.path()).unwrap();
    wire.command(&r(1), "s", json!({}));
    let error = wire.error(&r(1)).await;
    assert!(error.starts_with("this device cannot write its journal"), "{error}");
    std::fs::create_dir(bench.folder.path()).unwrap();
    wire.command(&r(1), "s", json!({}));
    assert_eq!(wire.error(&r(1)).await, "");
    assert_eq!(bench.lines().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_command_without_a_uuid_is_refused_where_a_journal_is_kept() {
    let mut bench = Bench::new().await;
    let mut wire = bench.connect().await;
    let id = "any".parse().unwrap();
    wire.command(&id, "s", json!({}));
    assert!(wire.error(&id).await.contains("is no UUID"));
    assert!(bench.lines().is_empty());
}

#[tokio::test(start_paused = true)]
async fn two_devices_cannot_have_one_folder() {
    let mut bench = Bench::new().await;
    let ambient = Ambient::simulated(9, Timestamp::UNIX_EPOCH);
    let error = bench.device(&ambient).err().unwrap();
    assert!(matches!(error, DeviceError::Identity(_)), "{error}");
    assert!(error.to_string().contains("another client uses"), "{error}");
    bench.kill().await;
    // A child that another test has forked holds the lock as well, until its own program starts.
    let mut tries = (0..100).map(|_| {
        std::thread::sleep(Duration::from_millis(20));
        bench.device(&ambient)
    });
    assert!(tries.any(|tried| tried.is_ok()));
}
