//! What is let go of, and what not; and that much history costs nothing.

use std::fs;
use std::time::Instant;

use jiff::ToSpan;

use super::*;

async fn left(store: &SqliteStore) -> Vec<u128> {
    let all = store.tasks(Query { limit: 10_000, ..Query::default() }).await.unwrap();
    let n = |task: &Summary| (0..100).find(|n| id(*n) == task.task.id).unwrap();
    all.iter().rev().map(n).collect()
}

fn opened(folder: &Path, retention: Retention) -> SqliteStore {
    open_with(&SqliteSettings { retention, ..settings(folder) })
}

const MUCH: Retention =
    Retention { age: Duration::from_secs(3600), tasks: 1_000_000, bytes: usize::MAX };

#[tokio::test]
async fn of_too_many_tasks_the_oldest_go_and_what_is_needed_stays() {
    let folder = tempfile::tempdir().unwrap();
    let store = opened(folder.path(), Retention { tasks: 3, ..MUCH });
    append(&store, id(0), vec![created(id(0))]).await;
    append(&store, id(1), vec![created(id(1)), ended(Some(now() + 1.hour()))]).await;
    for n in 2..9 {
        whole_task(&store, n, "text").await;
    }
    tidy(&store, now()).await;
    assert_eq!(left(&store).await, [0, 1, 6, 7, 8]);
    store.keep(Change::Delivered(id(1))).wait().await.unwrap();
    tidy(&store, now()).await;
    assert_eq!(left(&store).await, [0, 6, 7, 8], "it is history now, and the oldest");
    let rows = "SELECT (SELECT count(*) FROM tasks) + (SELECT count(*) FROM records)";
    assert_eq!(sql::<i64>(folder.path(), rows), 1 + 3 * 2);
}

#[tokio::test]
async fn old_tasks_go() {
    let folder = tempfile::tempdir().unwrap();
    let store = opened(folder.path(), MUCH);
    append(&store, id(0), vec![created(id(0))]).await;
    whole_task(&store, 1, "text").await;
    tidy(&store, now() + 59.minutes()).await;
    assert_eq!(left(&store).await, [0, 1]);
    tidy(&store, now() + 61.minutes()).await;
    assert_eq!(left(&store).await, [0]);
}

#[tokio::test]
async fn of_too_many_bytes_the_oldest_go_with_their_files() {
    let folder = tempfile::tempdir().unwrap();
    let store = opened(folder.path(), Retention { bytes: 1_000_000, ..MUCH });
    for n in 0..5 {
        whole_task(&store, n, &"x".repeat(300_000)).await;
    }
    tidy(&store, now()).await;
    assert_eq!(left(&store).await, [2, 3, 4]);
    assert_eq!(fs::read_dir(folder.path().join("payloads")).unwrap().count(), 3);
    drop(store);
    let store = opened(folder.path(), Retention { bytes: 500_000, ..MUCH });
    tidy(&store, now()).await;
    assert_eq!(left(&store).await, [4], "the counts outlive a restart");
}

/// By hand: `cargo test --release -p server --lib a_million_ended_tasks -- --ignored --nocapture`. All of them came in
/// over HTTP on the last day and have a request id, so that the server takes in as much as there can be.
#[tokio::test]
#[ignore = "takes a while, and measures"]
async fn a_million_ended_tasks_start_at_once_and_list_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    whole_task(&store, 0, &"x".repeat(400)).await;
    drop(store);
    let connection = Connection::open(folder.path().join("flightdeck.db")).unwrap();
    connection
        .execute_batch(
            "BEGIN;
             WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000)
             INSERT INTO tasks SELECT i, CAST(substr(id, 1, 8) || printf('%08d', i) AS BLOB), created_at, device,
                 task_name || i, key, is_shared, NULL, 'Q' || i, printf('%064d', i), steps, ended_at, ending, error,
                 bytes, undelivered_until, crc, task, request, body FROM n, tasks WHERE num = 1;
             INSERT INTO records SELECT (num << 20) + 1, r.crc, r.body FROM tasks, records r
                 WHERE r.at = (1 << 20) + 1 AND num > 1;
             UPDATE meta SET ended = 1000000, ended_bytes = 1000000000;
             COMMIT;",
        )
        .unwrap();
    drop(connection);
    let (begun, busy_before) = (Instant::now(), busy());
    let store = Arc::new(open(folder.path()));
    println!("opened in {:?}", begun.elapsed());
    let config = crate::Config::default();
    let services = crate::Services { store: store.clone(), ..crate::Services::in_memory(&config) };
    let server = crate::Server::with(config, crate::Keys::local("k".to_owned().into()), services);
    server.recover().await.unwrap();
    // What else the machine does takes its time, but none of this.
    let cpu = busy() - busy_before;
    println!("started in {:?}, {cpu:?} of CPU", begun.elapsed());
    assert!(cpu < Duration::from_secs(2), "{cpu:?}");
    let (before, limit) = (Some(id(u128::MAX >> 64 >> 16)), 51);
    for query in [
        Query { limit, ..Query::default() },
        Query { limit, before, ..Query::default() },
        Query { limit, is_over: Some(false), ..Query::default() },
        Query { limit: 500, ..Query::default() },
    ] {
        let begun = Instant::now();
        let found = store.tasks(query.clone()).await.unwrap().len();
        let took = begun.elapsed();
        println!("{found} tasks in {took:?}");
        assert!(took < Duration::from_millis(20), "{query:?} {took:?}");
    }
    let begun = Instant::now();
    let query = Query { limit, task_name: Some("rare".to_owned()), ..Query::default() };
    let found = store.tasks(query).await.unwrap().len();
    println!("{found} of a rare name in {:?}", begun.elapsed());
}

/// By hand: `cargo test --release -p server --lib the_price_of_a_task -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn the_price_of_a_task() {
    const CLIENTS: u128 = 100;
    const TASKS: u128 = 1000;

    let folder = tempfile::tempdir().unwrap();
    let memory = crate::store::MemoryStore::new(crate::Config::default().history());
    let sqlite: Arc<dyn Store> = Arc::new(open(folder.path()));
    for (name, store) in [("memory", Arc::new(memory) as Arc<dyn Store>), ("sqlite", sqlite)] {
        let (begun, busy_before) = (Instant::now(), busy());
        let clients = (0..CLIENTS).map(|client| {
            let store = store.clone();
            tokio::spawn(async move {
                for n in 0..TASKS {
                    let task = id(n * CLIENTS + client);
                    append(&*store, task, vec![created(task), decided(1, Incarnation(3))]).await;
                    append(&*store, task, vec![answered("6.1"), ended(None)]).await;
                }
            })
        });
        for client in clients.collect::<Vec<_>>() {
            client.await.unwrap();
        }
        let tasks = u32::try_from(CLIENTS * TASKS).unwrap();
        let (took, cpu) = (begun.elapsed(), busy() - busy_before);
        println!(
            "{name}: {:?} of CPU a task, {:.0} tasks/s",
            cpu / tasks,
            f64::from(tasks) / took.as_secs_f64()
        );
    }
}

/// How long this process has kept cores busy.
fn busy() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}
