//! Journals in memory: gone with the process, and bounded in number and bytes.
//!
//! An ended task is remembered until `max_tasks` newer ones have ended. Its payloads are the first to
//! go when there are too many bytes: what is left still says what was done and how it ended. Results
//! that the requester has still to fetch are kept whole for a while, within a bound of their own.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aip::Payload;
use aip::message::TruncatedResult;
use jiff::Timestamp;

use super::{
    Batch, Change, Commit, Ended, Query, Reading, Record, Recovered, Store, StoreError, Summary,
};
use crate::session::{Call, CallResult, Finish, TaskId};

/// Payloads up to this size stay when the others go, in bytes.
const SMALL_BYTES: usize = 1024;

/// Records that usually follow those of the first batch.
const USUAL_RECORDS: usize = 2;

/// Tasks that are looked at under one lock; a query of more lets others in between.
const LOOK_AT: usize = 1024;

/// How much is remembered of ended tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryLimits {
    /// Most ended tasks.
    pub tasks: usize,
    /// Most bytes of them; beyond it the payloads of the oldest go.
    pub bytes: usize,
    /// Most bytes of results that requesters have still to fetch: see [`Ended`].
    pub unfetched_bytes: usize,
    /// How long such results are kept whole.
    pub unfetched_time: Duration,
}

/// Keeps the journals of open tasks, and of the newest ended ones. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub struct MemoryStore {
    journals: Arc<Mutex<Journals>>,
    limits: HistoryLimits,
    /// The store id: another one with each process.
    id: String,
}

/// What is known of one task.
struct Journal {
    records: Vec<Record>,
    summary: Summary,
}

#[derive(Default)]
struct Journals {
    /// In the order in which they were created.
    tasks: BTreeMap<TaskId, Journal>,
    /// Ended tasks with their size, oldest first.
    ended: VecDeque<(TaskId, usize)>,
    ended_bytes: usize,
    /// How many of the ended ones, from the oldest, have lost their payloads.
    cut: usize,
    /// Ended tasks whose results are still to be fetched, with their size and until when.
    unfetched: VecDeque<(TaskId, usize, Timestamp)>,
    unfetched_bytes: usize,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new(limits: HistoryLimits) -> Self {
        let id = uuid::Uuid::new_v4().to_string();
        Self { journals: Arc::default(), limits, id }
    }

    fn lock(&self) -> MutexGuard<'_, Journals> {
        self.journals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    fn append(&self, batch: &Arc<Batch>) -> Commit {
        self.lock().append(batch, &self.limits);
        Commit::Known(Ok(()))
    }

    fn keep(&self, _change: Change) -> Commit {
        Commit::Known(Ok(()))
    }

    fn recover(&self) -> Result<Recovered, StoreError> {
        Ok(Recovered {
            store: self.id.clone(),
            former: Vec::new(),
            has_lost: false,
            identities: Vec::new(),
            open: Vec::new(),
            undelivered: Vec::new(),
            requests: Vec::new(),
        })
    }

    fn journal(&self, task: TaskId) -> Reading<Option<Vec<Record>>> {
        let found = self.lock().tasks.get(&task).map(|journal| journal.records.clone());
        Box::pin(std::future::ready(Ok(found)))
    }

    fn tasks(&self, query: Query) -> Reading<Vec<Summary>> {
        let store = self.clone();
        Box::pin(async move {
            let (mut found, mut before) = (Vec::new(), query.before);
            loop {
                before = store.lock().look(&query, before, &mut found);
                if before.is_none() || found.len() >= query.limit {
                    return Ok(found);
                }
                tokio::task::yield_now().await;
            }
        })
    }

    fn tidy(&self, now: Timestamp) {
        let mut journals = self.lock();
        while journals.unfetched.front().is_some_and(|(.., until)| *until <= now) {
            journals.give_up_fetching(&self.limits);
        }
    }
}

impl Journals {
    fn append(&mut self, batch: &Batch, limits: &HistoryLimits) {
        let journal = match batch.records.first() {
            Some(Record::Created(task)) => {
                self.tasks.entry(batch.task).or_insert_with(|| Journal {
                    records: Vec::with_capacity(batch.records.len() + USUAL_RECORDS),
                    summary: Summary::new(task.clone()),
                })
            }
            // What is about a task that is not known any more is dropped.
            _ => match self.tasks.get_mut(&batch.task) {
                Some(journal) => journal,
                None => return,
            },
        };
        journal.records.extend(batch.records.iter().cloned());
        batch.records.iter().for_each(|record| journal.summary.note(record));
        if let Some(Record::Ended(ended)) = batch.records.last() {
            let bytes = journal.bytes();
            self.end(batch.task, bytes, ended, limits);
        }
    }

    fn end(&mut self, task: TaskId, bytes: usize, ended: &Ended, limits: &HistoryLimits) {
        if ended.is_unfetched {
            self.keep_for_fetching(task, bytes, ended.at, limits);
        } else {
            self.remember(task, bytes, limits);
        }
    }

    /// Looks at a stretch of tasks. Returns where to go on, if there are more.
    fn look(
        &self,
        query: &Query,
        before: Option<TaskId>,
        found: &mut Vec<Summary>,
    ) -> Option<TaskId> {
        let older = (Bound::Unbounded, before.map_or(Bound::Unbounded, Bound::Excluded));
        let mut last = None;
        for (looked, (id, journal)) in self.tasks.range(older).rev().enumerate() {
            if found.len() >= query.limit || looked >= LOOK_AT {
                return last;
            }
            last = Some(*id);
            if query.wants(&journal.summary) {
                found.push(journal.summary.clone());
            }
        }
        None
    }

    fn keep_for_fetching(
        &mut self,
        task: TaskId,
        bytes: usize,
        at: Timestamp,
        limits: &HistoryLimits,
    ) {
        let until = at.checked_add(limits.unfetched_time).unwrap_or(Timestamp::MAX);
        self.unfetched.push_back((task, bytes, until));
        self.unfetched_bytes += bytes;
        while self.unfetched_bytes > limits.unfetched_bytes {
            self.give_up_fetching(limits);
        }
    }

    /// Results that were not fetched in time become history.
    fn give_up_fetching(&mut self, limits: &HistoryLimits) {
        if let Some((task, bytes, _)) = self.unfetched.pop_front() {
            self.unfetched_bytes -= bytes;
            self.remember(task, bytes, limits);
        }
    }

    fn remember(&mut self, task: TaskId, bytes: usize, limits: &HistoryLimits) {
        self.ended.push_back((task, bytes));
        self.ended_bytes += bytes;
        while self.ended_bytes > limits.bytes && self.cut < self.ended.len() {
            self.cut_oldest();
        }
        while self.ended.len() > limits.tasks || self.ended_bytes > limits.bytes {
            self.forget_oldest();
        }
    }

    /// Drops the payloads of the oldest task that has them.
    fn cut_oldest(&mut self) {
        let Some((task, bytes)) = self.ended.get_mut(self.cut) else { return };
        self.cut += 1;
        if let Some(journal) = self.tasks.get_mut(task) {
            journal.cut(*task);
            let left = journal.bytes();
            self.ended_bytes -= *bytes - left;
            *bytes = left;
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((task, bytes)) = self.ended.pop_front() {
            self.ended_bytes -= bytes;
            self.cut = self.cut.saturating_sub(1);
            self.tasks.remove(&task);
        }
    }
}

impl Journal {
    fn bytes(&self) -> usize {
        self.records.iter().map(Record::bytes).sum()
    }

    /// Puts the size of each large payload in its place.
    fn cut(&mut self, task: TaskId) {
        self.records.iter_mut().for_each(|record| cut(task, record));
        let ended = self.records.iter().rev().find_map(|record| match record {
            Record::Ended(ended) => Some(ended.clone()),
            _ => None,
        });
        self.summary.ended = ended;
    }
}

/// Puts the size of each large payload in its place.
fn cut(task: TaskId, record: &mut Record) {
    let cut = |payload: &mut Payload| {
        let (bytes, task) = (payload.len(), task.to_string());
        let marker = TruncatedResult { truncated: true, bytes, task };
        if bytes > SMALL_BYTES
            && let Ok(marker) = Payload::from_value(&marker)
        {
            *payload = marker;
        }
    };
    match record {
        Record::Created(_) | Record::Readdressed { .. } | Record::Cancelling { .. } => {}
        Record::Noted { notes, .. } => {
            let mut smaller = notes.to_vec();
            smaller.iter_mut().for_each(cut);
            *notes = smaller.into();
        }
        Record::Decided { calls, .. } => {
            let mut smaller: Vec<Call> = calls.to_vec();
            smaller.iter_mut().filter_map(|call| call.parameters.as_mut()).for_each(cut);
            *calls = smaller.into();
        }
        Record::Answered { results, .. } => {
            let mut smaller: Vec<CallResult> = results.to_vec();
            smaller.iter_mut().filter_map(|result| result.result.as_mut()).for_each(cut);
            *results = smaller.into();
        }
        Record::Ended(ended) => {
            let mut smaller = Ended::clone(ended);
            if let Finish::Value(value) = &mut smaller.finish {
                cut(value);
            }
            *ended = Arc::new(smaller);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::session::CallStatus;
    use crate::session::tests::task;
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
}
