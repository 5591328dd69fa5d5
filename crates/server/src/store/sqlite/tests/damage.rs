//! Damage is noticed, and shown as what it is.

use std::fs;

use aip::Payload;

use super::*;
use crate::store::Ending;

/// An open task, number 1, and one that ended, number 2, each with a batch in `records`.
async fn two_tasks(folder: &Path) {
    let store = open(folder);
    append(&store, id(1), vec![created(id(1)), decided(1, Incarnation(3))]).await;
    append(&store, id(1), vec![answered("one"), decided(2, Incarnation(3))]).await;
    append(&store, id(1), vec![answered("two")]).await;
    whole_task(&store, 2, "two").await;
}

#[tokio::test]
async fn an_open_task_with_a_damaged_or_missing_row_is_known_as_such() {
    for damage in [
        "UPDATE records SET body = CAST(replace(body, 'one', 'eno') AS BLOB) WHERE at = (1 << 20) + 1",
        "UPDATE records SET body = CAST('x' AS BLOB) WHERE at = (1 << 20) + 2",
        "DELETE FROM records WHERE at = (1 << 20) + 1",
        "UPDATE tasks SET body = CAST('[]' AS BLOB) WHERE num = 1",
    ] {
        let folder = tempfile::tempdir().unwrap();
        two_tasks(folder.path()).await;
        change(folder.path(), damage);
        let recovered = open(folder.path()).recover().unwrap();
        assert!(recovered.open[0].is_damaged, "{damage}");
        assert_eq!(recovered.open[0].records, [created(id(1))], "{damage}");
    }
}

#[tokio::test]
async fn a_task_whose_acceptance_is_damaged_ends_with_an_unknown_outcome() {
    let folder = tempfile::tempdir().unwrap();
    two_tasks(folder.path()).await;
    change(folder.path(), "UPDATE tasks SET task = CAST('x' AS BLOB) WHERE num = 1");
    let store = open(folder.path());
    assert!(store.recover().unwrap().open.is_empty());
    let found = store.tasks(Query { limit: 9, ..Query::default() }).await.unwrap();
    assert_eq!(found.len(), 2);
    let ended = found[1].ended.as_ref().unwrap();
    assert_eq!(ended.ending, Ending::Failed);
    assert!(ended.error.as_deref().unwrap().ends_with("its outcome is unknown"));
    assert_eq!((found[1].task.id, found[1].task.device.as_str()), (id(1), "d"));
}

#[tokio::test]
async fn damaged_payloads_of_an_ended_task_are_shown_as_damaged() {
    let folder = tempfile::tempdir().unwrap();
    two_tasks(folder.path()).await;
    change(
        folder.path(),
        "UPDATE records SET body = CAST(replace(body, 'two', 'owt') AS BLOB) WHERE at = (2 << 20) + 1",
    );
    let store = open(folder.path());
    let read = store.journal(id(2)).await.unwrap().unwrap();
    let Record::Answered { results, .. } = &read[2] else { panic!("{read:?}") };
    assert_eq!(results[0].result.as_ref().map(Payload::as_str), Some(r#"{"damaged":true}"#));
    drop(store);
    change(folder.path(), "UPDATE records SET body = CAST('x' AS BLOB) WHERE at = (2 << 20) + 1");
    let read = open(folder.path()).journal(id(2)).await.unwrap().unwrap();
    assert!(matches!(&read[3], Record::Ended(ended) if ended.error.as_deref() == Some("why")));
    let Record::Answered { results, .. } = &read[2] else { panic!("{read:?}") };
    assert_eq!(results[0].error.as_deref(), Some("This part of the journal is damaged"));
}

#[tokio::test]
async fn a_damaged_file_is_shown_as_damaged_and_one_without_a_row_goes() {
    let folder = tempfile::tempdir().unwrap();
    let payloads = folder.path().join("payloads");
    let store = open(folder.path());
    whole_task(&store, 1, &"x".repeat(300_000)).await;
    drop(store);
    fs::write(payloads.join("0190.abc"), "left by a server that was killed").unwrap();
    let store = open(folder.path());
    let files: Vec<_> = fs::read_dir(&payloads).unwrap().map(|file| file.unwrap().path()).collect();
    assert_eq!(files.len(), 1);
    fs::write(&files[0], "else").unwrap();
    let read = store.journal(id(1)).await.unwrap().unwrap();
    let Record::Answered { results, .. } = &read[2] else { panic!("{read:?}") };
    let marker = r#"{"damaged":true,"bytes":300002}"#;
    assert_eq!(results[0].result.as_ref().map(Payload::as_str), Some(marker));
}

#[tokio::test]
async fn a_database_that_calls_itself_damaged_refuses_the_start() {
    let folder = tempfile::tempdir().unwrap();
    two_tasks(folder.path()).await;
    let path = folder.path().join("flightdeck.db");
    let whole = fs::read(&path).unwrap();
    for at in [0, 100] {
        let mut bytes = whole.clone();
        bytes[at..at + 50].fill(0x55);
        fs::write(&path, bytes).unwrap();
        let error = refusal(&settings(folder.path()));
        assert!(matches!(error, OpenError::Damaged(_)), "{at} {error}");
    }
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    two_tasks(folder.path()).await;
    let connection = Connection::open(folder.path().join("flightdeck.db")).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let error = refusal(&settings(folder.path()));
    assert!(matches!(error, OpenError::Newer { found: 99, .. }), "{error}");
}

/// One for each version that was released: what `sqlite3 flightdeck.db .dump` says of a store with an open task, one
/// that ended, and one whose outcome was not acknowledged, with the line that sets the version behind it.
const RELEASED: [&str; 1] = [include_str!("../fixtures/version_1.sql")];

#[tokio::test]
async fn a_database_of_every_released_version_opens() {
    for (dump, version) in RELEASED.iter().zip(1..) {
        let folder = tempfile::tempdir().unwrap();
        let connection = Connection::open(folder.path().join("flightdeck.db")).unwrap();
        connection.execute_batch(dump).unwrap();
        drop(connection);
        assert_eq!(sql::<i64>(folder.path(), "PRAGMA user_version"), version);
        let store = open(folder.path());
        let recovered = store.recover().unwrap();
        assert_eq!(recovered.open.len(), 1);
        assert!(!recovered.open[0].is_damaged);
        assert_eq!(recovered.open[0].records.len(), 4);
        assert_eq!(recovered.undelivered.len(), 1);
        assert_eq!(recovered.identities.len(), 1);
        let found = store.tasks(Query { limit: 9, ..Query::default() }).await.unwrap();
        assert_eq!(found.len(), 3);
        for task in found {
            assert!(store.journal(task.task.id).await.unwrap().is_some());
        }
        assert_eq!(sql::<i64>(folder.path(), "PRAGMA user_version"), 1, "the newest");
    }
}

/// Makes the dump of this version: `cargo test -p server --lib dumps_this_version -- --ignored`, with `sqlite3` at hand.
#[tokio::test]
#[ignore = "writes a fixture"]
async fn dumps_this_version() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    crate::store::tests::fill_a_fixture(&store).await;
    store.close().unwrap();
    let dump =
        Command::new("sqlite3").arg(folder.path().join("flightdeck.db")).arg(".dump").output();
    let version: i64 = sql(folder.path(), "PRAGMA user_version");
    let dump = String::from_utf8(dump.unwrap().stdout).unwrap();
    let text = format!("{dump}PRAGMA user_version = {version};\n");
    let to = concat!(env!("CARGO_MANIFEST_DIR"), "/src/store/sqlite/fixtures");
    fs::create_dir_all(to).unwrap();
    fs::write(format!("{to}/version_{version}.sql"), text).unwrap();
}
