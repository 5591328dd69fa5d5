//! A full disk: nothing is told that is not stored, as much as possible is, and it goes on by itself.

use std::collections::BTreeSet;

use super::queue::Next;
use super::*;
use crate::audit::{Audit, AuditSettings};
use crate::session::TaskId;
use crate::store::tests::audited;

/// A writer that is driven by hand, whose database has room for so many more pages.
fn writer(folder: &Path, pages: i64) -> (Writer, Connection) {
    drop(open(folder));
    let settings = settings(folder);
    let held = Folder::take(folder).unwrap();
    let connection = schema::open_writer(&held.database(), Durability::Process).unwrap();
    let meta = Meta::read(&connection).unwrap();
    let mark = Side::read(&held.side()).unwrap().unwrap();
    let payloads = held.payloads();
    let loaded = recover::load(&connection, &payloads, &meta, now()).unwrap();
    let writer = Writer {
        queue: Arc::new(Queue::new(settings.queue_bytes, Courier::default())),
        ledger: loaded.ledger,
        side: Side::begin(&held.side(), mark).unwrap(),
        payloads,
        reserve: Reserve::make(&held.reserve(), settings.reserve_bytes),
        retention: settings.retention,
        trouble: Trouble::default(),
        audit: Arc::default(),
        deletions: Deletions::default(),
        unchecked: 0,
    };
    limit(&connection, pages);
    (writer, connection)
}

/// Lets the database grow by so many pages from here.
fn limit(connection: &Connection, pages: i64) {
    let now: i64 = connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
    connection.pragma_update_and_check(None, "max_page_count", now + pages, |_| Ok(())).unwrap();
}

fn stored(connection: &Connection) -> BTreeSet<TaskId> {
    let mut statement = connection.prepare("SELECT id FROM tasks").unwrap();
    let found = statement.query_map([], |row| row.get(0).map(TaskId::from_bytes)).unwrap();
    found.map(Result::unwrap).collect()
}

#[tokio::test]
async fn of_a_group_that_does_not_fit_what_is_told_is_stored_and_the_smallest_come_first() {
    let folder = tempfile::tempdir().unwrap();
    let (mut writer, connection) = writer(folder.path(), 12);
    let path = folder.path().join("audit.jsonl");
    let log = AuditSettings { path: path.clone(), max_bytes: 1 << 20, files: 1 };
    writer.audit.set(Audit::open(log).unwrap()).unwrap();
    let text = |n| "x".repeat(if n == 3 { 100_000 } else { 100 });
    let batch = |n| Batch { task: id(n), records: vec![created(id(n)), answered(&text(n))] };
    let commits: Vec<_> =
        (0..8).map(|n| (id(n), writer.queue.append(&Arc::new(batch(n))))).collect();
    writer.serve(&connection);
    let mut told = BTreeSet::new();
    for (task, commit) in commits {
        if commit.wait().await.is_ok() {
            told.insert(task);
        }
    }
    let small: BTreeSet<_> = (0..8).filter(|n| *n != 3).map(id).collect();
    assert_eq!(told, small);
    assert_eq!(stored(&connection), told);
    assert!(audited(&path).into_iter().eq(told), "what was refused has no line");
    assert!(connection.is_autocommit());
}

#[tokio::test]
async fn on_a_full_disk_new_tasks_are_refused_and_open_ones_end() {
    let folder = tempfile::tempdir().unwrap();
    let (mut writer, connection) = writer(folder.path(), 40);
    let mut append = |n, records| {
        let commit = writer.queue.append(&Arc::new(Batch { task: id(n), records }));
        writer.serve(&connection);
        (commit, writer.trouble.why(), writer.reserve.is_given_up())
    };
    let (open, ..) = append(1, vec![created(id(1))]);
    open.wait().await.unwrap();
    let (large, why, is_given_up) = append(2, vec![created(id(2)), answered(&"x".repeat(200_000))]);
    assert!(large.wait().await.is_err());
    assert_eq!((why.as_deref(), is_given_up), (Some("the store failed: the disk is full"), true));
    let (small, ..) = append(3, vec![created(id(3))]);
    let refused = small.wait().await.unwrap_err();
    assert_eq!(refused.to_string(), "the store failed: the disk is full");
    let (end, ..) = append(1, vec![answered("fits"), ended(None)]);
    end.wait().await.unwrap();
    assert!(!folder.path().join("reserve").exists());

    limit(&connection, 1000);
    writer.queue.tidy(now());
    let Next::Tidy(at) = writer.queue.next(true) else { panic!() };
    writer.tidy(&connection, at);
    assert_eq!(writer.trouble.why(), None);
    let commit =
        writer.queue.append(&Arc::new(Batch { task: id(3), records: vec![created(id(3))] }));
    writer.serve(&connection);
    commit.wait().await.unwrap();
    assert!(folder.path().join("reserve").exists());
}

/// A small disk of its own; only root can make one.
#[cfg(target_os = "linux")]
struct SmallDisk(tempfile::TempDir);

#[cfg(target_os = "linux")]
impl SmallDisk {
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"]).arg(folder.path());
        let is_mounted = mount.output().is_ok_and(|output| output.status.success());
        is_mounted.then_some(Self(folder))
    }

    fn enlarge(&self) {
        let mut mount = Command::new("mount");
        mount.args(["-o", "remount,size=64m"]).arg(self.0.path());
        assert!(mount.status().unwrap().success());
    }
}

#[cfg(target_os = "linux")]
impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _it_may_be_busy = Command::new("umount").arg(self.0.path()).status();
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_real_disk_that_is_full_and_then_enlarged() {
    let Some(disk) = SmallDisk::mount() else {
        return println!("skipped: only root can mount a disk of 4 MB");
    };
    let folder = disk.0.path().join("data");
    let store = open(&folder);
    append(&store, id(0), vec![created(id(0))]).await;
    let text = "x".repeat(50_000);
    let mut told = vec![0];
    let mut n = 0;
    let refused = loop {
        n += 1;
        let records = vec![created(id(n)), answered(&text)];
        match store.append(&Arc::new(Batch { task: id(n), records })).wait().await {
            Ok(()) => told.push(n),
            Err(error) => break error,
        }
        assert!(n < 1000);
    };
    assert!(matches!(refused, StoreError::Failed(_)), "{refused}");
    assert!(store.health().trouble.is_some());
    // What was open still ends: the reserve was for that.
    append(&store, id(0), vec![answered(&"x".repeat(300_000)), ended(None)]).await;
    tidy(&store, now()).await;
    assert!(store.health().trouble.is_some(), "there is no room for the reserve");

    disk.enlarge();
    tidy(&store, now()).await;
    assert_eq!(store.health().trouble, None);
    append(&store, id(2000), vec![created(id(2000)), answered(&text)]).await;
    drop(store);
    let store = open(&folder);
    for n in told {
        assert!(store.journal(id(n)).await.unwrap().is_some(), "{n}");
    }
    let journal = store.journal(id(n)).await.unwrap();
    assert_eq!(journal, None, "what was refused is not there");
}
