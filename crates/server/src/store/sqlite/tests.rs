//! What only a store on a disk can get wrong: full disks, lost commits, damage, copies.

mod damage;
mod full;
mod history;
mod loss;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rusqlite::Connection;

use super::*;
use crate::session::Incarnation;
use crate::store::tests::{answered, append, created, decided, ended, id, now};

/// The settings of these tests.
fn settings(folder: &Path) -> SqliteSettings {
    SqliteSettings { reserve_bytes: 1024 * 1024, ..SqliteSettings::new(folder.to_owned()) }
}

fn open(folder: &Path) -> SqliteStore {
    open_with(&settings(folder))
}

fn open_with(settings: &SqliteSettings) -> SqliteStore {
    try_open(settings).unwrap()
}

fn refusal(settings: &SqliteSettings) -> OpenError {
    match try_open(settings) {
        Ok(_) => panic!("it was opened"),
        Err(error) => error,
    }
}

/// Opens a store that nobody else has. A process that another test starts has its lock too, until it is another program.
fn try_open(settings: &SqliteSettings) -> Result<SqliteStore, OpenError> {
    let begun = std::time::Instant::now();
    loop {
        match SqliteStore::open(settings) {
            Err(OpenError::InUse { .. }) if begun.elapsed() < Duration::from_secs(10) => {
                thread::sleep(Duration::from_millis(1));
            }
            opened => return opened,
        }
    }
}

/// What would be on the disk if the server were killed now. Another process copies it: SQLite's locks go when this one
/// closes a file of the database.
fn killed(folder: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let mut cp = Command::new("cp");
    cp.arg("-r").arg(folder.join(".")).arg(copy.path());
    assert!(cp.status().unwrap().success());
    copy
}

/// Looks into a database, or changes it.
fn sql<T: rusqlite::types::FromSql>(folder: &Path, sql: &str) -> T {
    let connection = Connection::open(folder.join("flightdeck.db")).unwrap();
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

fn change(folder: &Path, sql: &str) {
    let connection = Connection::open(folder.join("flightdeck.db")).unwrap();
    assert!(connection.execute(sql, []).unwrap() > 0, "{sql}");
}

async fn whole_task(store: &SqliteStore, n: u128, text: &str) {
    append(store, id(n), vec![created(id(n)), decided(1, Incarnation(3))]).await;
    append(store, id(n), vec![answered(text), ended(None)]).await;
}

/// Ticks, and waits until the writer is done with it: only then it takes another tick.
async fn tidy(store: &SqliteStore, at: Timestamp) {
    for _ in 0..2 {
        store.tidy(at);
        while store.queue.has_tick() {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn a_task_of_one_command_takes_two_rows_and_no_task_of_one_more_than_four() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    whole_task(&store, 1, "one").await;
    let rows = "SELECT (SELECT count(*) FROM tasks) + (SELECT count(*) FROM records)";
    assert_eq!(sql::<i64>(folder.path(), rows), 2);
    for record in [created(id(2)), decided(1, Incarnation(3)), answered("two"), ended(None)] {
        append(&store, id(2), vec![record]).await;
    }
    assert_eq!(sql::<i64>(folder.path(), rows), 2 + 4);
}

#[tokio::test]
async fn what_is_ready_at_once_is_committed_together() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    while !store.queue.has_idle_writer() {
        tokio::task::yield_now().await;
    }
    let before: i64 = sql(folder.path(), "SELECT sequence FROM meta");
    let batch = |n| Arc::new(Batch { task: id(n), records: vec![created(id(n))] });
    let commits: Vec<_> = (0..100).map(|n| store.append(&batch(n))).collect();
    for commit in commits {
        commit.wait().await.unwrap();
    }
    assert_eq!(sql::<i64>(folder.path(), "SELECT sequence FROM meta"), before + 1);
}

#[tokio::test]
async fn a_second_server_on_the_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let Err(error) = SqliteStore::open(&settings(folder.path())) else { panic!("it was opened") };
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    assert!(error.to_string().starts_with("another server uses /"), "{error}");
    drop(store);
    open(folder.path());
}

#[cfg(target_os = "linux")]
#[test]
fn only_the_owner_may_look_into_the_folder() {
    use std::os::unix::fs::PermissionsExt;

    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("data");
    let _store = open(&folder);
    let mode = std::fs::metadata(folder).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[tokio::test]
async fn what_waits_to_be_written_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let store = open_with(&SqliteSettings { queue_bytes: 4096, ..settings(folder.path()) });
    let batch = |n| Arc::new(Batch { task: id(n), records: vec![created(id(n)); 6] });
    let commits: Vec<_> = (0..100).map(|n| store.append(&batch(n))).collect();
    let (mut kept, mut refused) = (0, 0);
    for commit in commits {
        match commit.wait().await {
            Ok(()) => kept += 1,
            Err(StoreError::Full { .. }) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(kept > 0 && refused > 0, "{kept} {refused}");
    append(&store, id(1000), vec![created(id(1000))]).await;
}

#[tokio::test]
async fn a_store_that_was_closed_refuses_everything() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let waiting = store.append(&Arc::new(Batch { task: id(1), records: vec![created(id(1))] }));
    store.close().unwrap();
    assert_eq!(waiting.wait().await, Ok(()), "what waited is written");
    let late = store.append(&Arc::new(Batch { task: id(2), records: vec![created(id(2))] }));
    assert_eq!(late.wait().await, Err(StoreError::Closed));
    assert_eq!(store.journal(id(1)).await, Err(StoreError::Closed));
    assert_eq!(store.backup(&folder.path().join("copy")).await, Err(StoreError::Closed));
    assert_eq!(store.close(), Ok(()));
}

#[tokio::test]
async fn with_power_everything_works_alike() {
    let folder = tempfile::tempdir().unwrap();
    let settings = SqliteSettings { durability: Durability::Power, ..settings(folder.path()) };
    let store = open_with(&settings);
    let large = "x".repeat(300_000);
    whole_task(&store, 1, &large).await;
    drop(store);
    let store = open_with(&settings);
    assert_eq!(store.journal(id(1)).await.unwrap().unwrap()[2], answered(&large));
}

#[test]
fn a_reader_cannot_turn_writer() {
    let folder = tempfile::tempdir().unwrap();
    let _store = open(folder.path());
    let reader = schema::open_reader(&folder.path().join("flightdeck.db")).unwrap();
    assert!(reader.execute("DELETE FROM meta", []).is_err());
}

#[tokio::test]
async fn the_database_gives_back_room_and_keeps_its_log_short() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    assert_eq!(sql::<i64>(folder.path(), "PRAGMA auto_vacuum"), 2);
    let text = "x".repeat(200_000);
    for n in 0..200 {
        whole_task(&store, n, &text).await;
    }
    let log = std::fs::metadata(folder.path().join("flightdeck.db-wal")).unwrap().len();
    assert!(log < 2 * 8 * 1024 * 1024, "{log}");
}

#[tokio::test]
async fn a_copy_is_its_owners_alone_and_not_among_what_is_copied() {
    let (folder, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(folder.path());
    let inside = store.backup(&folder.path().join("copy")).await.unwrap_err();
    assert!(inside.to_string().ends_with("is in the store's own folder"), "{inside}");
    assert!(!folder.path().join("copy").exists());
    store.backup(copy.path()).await.unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;

        let mode = std::fs::metadata(copy.path().join("flightdeck.db")).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
    }
}

#[tokio::test]
async fn a_copy_that_fails_leaves_nothing_and_one_that_was_cut_off_is_refused() {
    let (folder, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(folder.path());
    whole_task(&store, 1, &"x".repeat(300_000)).await;
    let payload = std::fs::read_dir(folder.path().join("payloads")).unwrap().next().unwrap();
    let (payload, aside) = (payload.unwrap().path(), folder.path().join("aside"));
    std::fs::rename(&payload, &aside).unwrap();
    std::fs::create_dir(&payload).unwrap();
    for to in [copy.path(), &copy.path().join("new")] {
        let failed = store.backup(to).await.unwrap_err();
        assert!(failed.to_string().starts_with("no copy was made: "), "{failed}");
        assert!(std::fs::read_dir(copy.path()).unwrap().next().is_none());
    }
    std::fs::remove_dir(&payload).unwrap();
    std::fs::rename(&aside, &payload).unwrap();
    store.backup(copy.path()).await.unwrap();
    let partial = copy.path().join("flightdeck.partial");
    std::fs::rename(copy.path().join("flightdeck.db"), &partial).unwrap();
    let refused = SqliteStore::open(&settings(copy.path())).err().unwrap();
    assert!(refused.to_string().contains("is an incomplete copy"), "{refused}");
    // Refused again, since nothing was made in it.
    let refused = SqliteStore::open(&settings(copy.path())).err().unwrap();
    assert!(matches!(refused, OpenError::Incomplete { .. }), "{refused}");
    std::fs::rename(&partial, copy.path().join("flightdeck.db")).unwrap();
    open(copy.path());
}

#[tokio::test]
async fn a_copy_has_what_was_there_and_is_another_store() {
    let folder = tempfile::tempdir().unwrap();
    let copy = tempfile::tempdir().unwrap();
    let copy = copy.path().join("copy");
    let store = open(folder.path());
    let before = store.recover().unwrap().store;
    let large = "x".repeat(300_000);
    for n in 0..2000 {
        let text = if n % 100 == 0 { &large } else { "small" };
        whole_task(&store, n, text).await;
    }
    append(&store, id(5000), vec![created(id(5000))]).await;
    let copying = store.backup(&copy);
    // Commits go on meanwhile.
    whole_task(&store, 6000, "late").await;
    assert!(copying.await.unwrap() > 20 * 300_000);
    let again = store.backup(&copy).await.unwrap_err();
    assert!(again.to_string().contains("is not empty"), "{again}");
    whole_task(&store, 6001, "later").await;

    let restored = open(&copy);
    let recovered = restored.recover().unwrap();
    assert!(recovered.has_lost && recovered.store != before);
    assert_eq!(recovered.former, [before]);
    // The late one may have been open when its rows were copied.
    let open = recovered
        .open
        .iter()
        .map(|journal| crate::store::Summary::of(&journal.records).unwrap().task.id);
    assert!(open.filter(|open| *open != id(6000)).eq([id(5000)]));
    for n in 0..2000 {
        let text = if n % 100 == 0 { &large } else { "small" };
        let read = restored.journal(id(n)).await.unwrap().unwrap();
        assert!(read[2] == answered(text), "{n}");
    }
    assert_eq!(restored.journal(id(6001)).await.unwrap(), None);
}
