//! Commits that were lost are noticed.

use std::fs;

use super::*;

/// Has the side file say something else.
fn forge(folder: &Path, change: impl FnOnce(&mut Mark)) {
    let path = folder.join("committed");
    let mut mark = Side::read(&path).unwrap().unwrap();
    change(&mut mark);
    let is_clean = mark.is_clean;
    let side = Side::begin(&path, mark).unwrap();
    if is_clean {
        side.close().unwrap();
    }
}

#[tokio::test]
async fn a_server_that_was_killed_finds_the_same_store_and_all_it_had_told() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let before = store.recover().unwrap();
    whole_task(&store, 1, "one").await;
    append(&store, id(2), vec![created(id(2))]).await;
    let left = killed(folder.path());
    let found = open(left.path());
    let recovered = found.recover().unwrap();
    assert_eq!((recovered.store, recovered.has_lost), (before.store, false));
    assert_eq!(recovered.open.len(), 1);
    assert_eq!(found.journal(id(1)).await.unwrap().unwrap().len(), 4);
}

#[tokio::test]
async fn a_flipped_bit_in_the_log_is_noticed_on_the_same_boot() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let before = store.recover().unwrap().store;
    for n in 0..50 {
        append(&store, id(n), vec![created(id(n))]).await;
    }
    let left = killed(folder.path());
    let log = left.path().join("flightdeck.db-wal");
    let mut bytes = fs::read(&log).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&log, bytes).unwrap();

    let error = refusal(&settings(left.path()));
    assert!(matches!(error, OpenError::Behind { .. }), "{error}");
    assert!(error.to_string().contains("--accept-loss"), "{error}");
    let accepting = SqliteSettings { accept_loss: true, ..settings(left.path()) };
    let found = open_with(&accepting);
    let recovered = found.recover().unwrap();
    assert!(recovered.has_lost && found.health().has_lost);
    assert_eq!(recovered.former, [before]);
    assert!((1..50).contains(&recovered.open.len()), "{}", recovered.open.len());
    assert_eq!(sql::<String>(left.path(), "PRAGMA integrity_check"), "ok", "it notices nothing");
}

#[tokio::test]
async fn after_a_power_loss_open_tasks_are_lost_until_they_are_settled() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let before = store.recover().unwrap().store;
    append(&store, id(1), vec![created(id(1))]).await;
    drop(store);
    forge(folder.path(), |mark| mark.boot = "another".to_owned());
    let store = open(folder.path());
    let lost = store.recover().unwrap();
    assert!(lost.has_lost && lost.store != before);
    // The server is killed before it has settled them.
    drop(store);
    let store = open(folder.path());
    let again = store.recover().unwrap();
    assert!(again.has_lost);
    assert_eq!((&again.store, &again.former), (&lost.store, &vec![before]));
    append(&store, id(1), vec![ended(None)]).await;
    append(&store, id(2), vec![created(id(2))]).await;
    drop(store);
    let last = open(folder.path()).recover().unwrap();
    assert_eq!((last.has_lost, last.open.len(), last.store), (false, 1, lost.store));
}

#[tokio::test]
async fn with_power_a_power_loss_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let settings = SqliteSettings { durability: Durability::Power, ..settings(folder.path()) };
    let store = open_with(&settings);
    let before = store.recover().unwrap().store;
    append(&store, id(1), vec![created(id(1))]).await;
    drop(store);
    forge(folder.path(), |mark| mark.boot = "another".to_owned());
    let recovered = open_with(&settings).recover().unwrap();
    assert_eq!((recovered.has_lost, recovered.store), (false, before));
}

#[tokio::test]
async fn what_was_closed_cleanly_survives_a_new_boot_and_not_a_copy_from_before() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let before = store.recover().unwrap().store;
    append(&store, id(1), vec![created(id(1))]).await;
    let old = killed(folder.path());
    append(&store, id(2), vec![created(id(2))]).await;
    store.close().unwrap();
    drop(store);
    forge(folder.path(), |mark| mark.boot = "another".to_owned());
    let left = killed(folder.path());
    let recovered = open(folder.path()).recover().unwrap();
    assert_eq!((recovered.has_lost, recovered.store), (false, before));
    assert!(!Side::read(&folder.path().join("committed")).unwrap().unwrap().is_clean);

    for name in ["flightdeck.db", "flightdeck.db-wal", "flightdeck.db-shm"] {
        let _there_was_none = fs::remove_file(left.path().join(name));
        fs::copy(old.path().join(name), left.path().join(name)).unwrap();
    }
    let error = refusal(&settings(left.path()));
    assert!(matches!(error, OpenError::Behind { .. }), "{error}");
}

#[tokio::test]
async fn a_database_without_its_side_file_is_another_store() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    append(&store, id(1), vec![created(id(1))]).await;
    store.close().unwrap();
    drop(store);
    fs::remove_file(folder.path().join("committed")).unwrap();
    assert!(open(folder.path()).recover().unwrap().has_lost);
}

#[tokio::test]
async fn a_side_file_without_its_database_refuses_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let before = store.recover().unwrap().store;
    append(&store, id(1), vec![created(id(1))]).await;
    drop(store);
    fs::remove_file(folder.path().join("flightdeck.db")).unwrap();
    let error = refusal(&settings(folder.path()));
    assert!(matches!(error, OpenError::Behind { .. }), "{error}");
    let accepting = SqliteSettings { accept_loss: true, ..settings(folder.path()) };
    let recovered = open_with(&accepting).recover().unwrap();
    assert_eq!((recovered.has_lost, recovered.former), (true, vec![before]));
}
