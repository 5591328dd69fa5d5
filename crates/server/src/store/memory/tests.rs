use aip::Payload;
use futures_util::FutureExt;

use super::*;
use crate::session::tests::task;
use crate::session::{CallResult, CallStatus, Finish};
use crate::store::Ending;

const LIMITS: HistoryLimits = HistoryLimits {
    tasks: 3,
    bytes: 100_000,
    unfetched_bytes: 100_000,
    unfetched_time: Duration::from_secs(60),
};

fn append(store: &MemoryStore, task: TaskId, records: Vec<Record>) {
    let _kept = store.append(&Arc::new(Batch { task, records }));
}

fn end(store: &MemoryStore, id: TaskId, bytes: usize, is_unfetched: bool) {
    let result = CallResult {
        status: CallStatus::Success,
        error: None,
        result: Some(Payload::string(&"x".repeat(bytes))),
        namespace: None,
        call_id: None,
    };
    let at = Timestamp::UNIX_EPOCH;
    let created = Record::Created(Arc::new(task(id)));
    let answered = Record::Answered { at, results: Arc::new([result]) };
    let (ending, finish) = (Ending::Completed, Finish::Results);
    let undelivered_until = None;
    let ended = Ended { at, ending, error: None, finish, is_unfetched, undelivered_until };
    append(store, id, vec![created, answered, Record::Ended(Arc::new(ended))]);
}

fn journal(store: &MemoryStore, task: TaskId) -> Option<Vec<Record>> {
    store.journal(task).now_or_never().unwrap().unwrap()
}

/// How much is left of a task's result; `None` when it is forgotten.
fn left(store: &MemoryStore, task: TaskId) -> Option<usize> {
    match &journal(store, task)?[1] {
        Record::Answered { results, .. } => results[0].result.as_ref().map(Payload::len),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_newest_ended_tasks_are_remembered() {
    let store = MemoryStore::new(LIMITS);
    let tasks = [(); 4].map(|()| TaskId::fresh());
    tasks.iter().for_each(|task| end(&store, *task, 10, false));
    assert_eq!(tasks.map(|task| left(&store, task)), [None, Some(12), Some(12), Some(12)]);
}

#[test]
fn payloads_go_before_tasks_do() {
    let store = MemoryStore::new(LIMITS);
    let tasks = [(); 3].map(|()| TaskId::fresh());
    tasks.iter().for_each(|task| end(&store, *task, 45_000, false));
    let lengths = tasks.map(|task| left(&store, task).unwrap());
    assert!(lengths[0] < 200, "a marker");
    assert_eq!(lengths[1..], [45_002, 45_002]);
    let huge = TaskId::fresh();
    end(&store, huge, 2_000_000, false);
    assert!(left(&store, huge).unwrap() < 200, "it is known how it ended all the same");
    assert!(left(&store, tasks[1]).unwrap() < 200);
}

#[test]
fn what_is_still_to_be_fetched_is_kept_whole_for_a_while() {
    let store = MemoryStore::new(HistoryLimits { bytes: 10_000, ..LIMITS });
    let [first, second] = [(); 2].map(|()| TaskId::fresh());
    end(&store, first, 45_000, true);
    end(&store, second, 45_000, true);
    store.tidy(Timestamp::from_second(59).unwrap());
    assert_eq!([first, second].map(|task| left(&store, task)), [Some(45_002); 2]);
    let third = TaskId::fresh();
    end(&store, third, 45_000, true);
    assert!(left(&store, first).unwrap() < 200, "there is a bound of bytes too");
    assert_eq!(left(&store, third), Some(45_002));
    store.tidy(Timestamp::from_second(60).unwrap());
    assert!(left(&store, third).unwrap() < 200);
}

#[test]
fn an_open_task_is_never_forgotten() {
    let store = MemoryStore::new(HistoryLimits { tasks: 0, bytes: 0, ..LIMITS });
    let open = TaskId::fresh();
    append(&store, open, vec![Record::Created(Arc::new(task(open)))]);
    end(&store, TaskId::fresh(), 10, false);
    assert_eq!(journal(&store, open).map(|journal| journal.len()), Some(1));
}

#[tokio::test]
async fn a_list_of_many_tasks_is_looked_for_in_stretches_and_has_neither_gaps_nor_repeats() {
    let store = MemoryStore::new(HistoryLimits { tasks: 5000, bytes: 10_000_000, ..LIMITS });
    let tasks: Vec<TaskId> = (0..3 * LOOK_AT).map(|_| TaskId::fresh()).collect();
    tasks.iter().for_each(|task| end(&store, *task, 1, false));
    let all = store.tasks(Query { limit: 5000, ..Query::default() }).await.unwrap();
    assert!(all.iter().map(|found| found.task.id).eq(tasks.iter().rev().copied()));
    let query = Query { limit: 7, before: Some(tasks[100]), ..Query::default() };
    let page = store.tasks(query).await.unwrap();
    assert!(page.iter().map(|found| found.task.id).eq(tasks[93..100].iter().rev().copied()));
}
