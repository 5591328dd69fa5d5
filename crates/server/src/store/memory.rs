//! Journals in memory: gone with the process, and bounded in number and bytes.
//!
//! An ended task is remembered until `max_tasks` newer ones have ended. Its payloads are the first to
//! go when there are too many bytes: what is left still says what was done and how it ended. Results
//! that somebody has still to fetch are kept whole for a while, within a bound of their own.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aip::message::TruncatedResult;
use aip::{ActionResult, Command, Payload};
use jiff::Timestamp;

use super::{Commit, Entry, Query, Store, Summary};
use crate::agent::Finish;
use crate::session::TaskId;

/// What an entry costs beside its payloads, about, in bytes.
const ENTRY_BYTES: usize = 512;

/// Payloads up to this size stay when the others go, in bytes.
const SMALL_BYTES: usize = 1024;

/// How much is remembered of ended tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryLimits {
    /// Most ended tasks.
    pub tasks: usize,
    /// Most bytes of them; beyond it the payloads of the oldest go.
    pub bytes: usize,
    /// Most bytes of results that somebody has still to fetch: see [`Entry::Ended`].
    pub unfetched_bytes: usize,
    /// How long such results are kept whole.
    pub unfetched_time: Duration,
}

/// Keeps the journals of open tasks, and of the newest ended ones.
pub struct MemoryStore {
    journals: Mutex<Journals>,
    limits: HistoryLimits,
}

#[derive(Default)]
struct Journals {
    /// In the order in which they were created.
    tasks: BTreeMap<TaskId, Vec<Entry>>,
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
        Self { journals: Mutex::default(), limits }
    }

    fn lock(&self) -> MutexGuard<'_, Journals> {
        self.journals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    fn append(&self, task: TaskId, entry: Entry) -> Commit {
        let mut journals = self.lock();
        let ended = match &entry {
            Entry::Ended { at, is_unfetched, .. } => Some((*at, *is_unfetched)),
            _ => None,
        };
        let journal = journals.tasks.entry(task).or_default();
        journal.push(entry);
        if let Some((at, is_unfetched)) = ended {
            let bytes = journal.iter().map(size).sum();
            if is_unfetched {
                journals.keep_for_fetching(task, bytes, at, &self.limits);
            } else {
                journals.remember(task, bytes, &self.limits);
            }
        }
        Commit::done()
    }

    fn journal(&self, task: TaskId) -> Option<Vec<Entry>> {
        self.lock().tasks.get(&task).cloned()
    }

    fn tasks(&self, query: &Query) -> Vec<Summary> {
        let journals = self.lock();
        let older = (Bound::Unbounded, query.before.map_or(Bound::Unbounded, Bound::Excluded));
        let known = journals.tasks.range(older).rev().filter_map(|(_, journal)| summary(journal));
        known.filter(|summary| query.wants(summary)).take(query.limit).collect()
    }

    fn tidy(&self, now: Timestamp) {
        let mut journals = self.lock();
        while journals.unfetched.front().is_some_and(|(.., until)| *until <= now) {
            journals.give_up_fetching(&self.limits);
        }
    }
}

impl Journals {
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

    /// What nobody has fetched in time becomes history.
    fn give_up_fetching(&mut self, limits: &HistoryLimits) {
        if let Some((task, bytes, _)) = self.unfetched.pop_front() {
            self.unfetched_bytes -= bytes;
            self.remember(task, bytes, limits);
        }
    }

    fn remember(&mut self, task: TaskId, bytes: usize, limits: &HistoryLimits) {
        if let Some(Entry::Created(created)) = self.tasks.get_mut(&task).and_then(|j| j.first_mut())
            && created.request.len() > SMALL_BYTES
        {
            *created = created.without_plan();
        }
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
            journal.iter_mut().for_each(|entry| cut(*task, entry));
            let left = journal.iter().map(size).sum();
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

fn summary(journal: &[Entry]) -> Option<Summary> {
    let Some(Entry::Created(task)) = journal.first() else { return None };
    Some(Summary::new(task.clone(), journal))
}

/// What an entry costs, about, in bytes.
fn size(entry: &Entry) -> usize {
    let payloads = match entry {
        Entry::Created(task) => task.request.len(),
        Entry::Decided { commands, .. } => {
            commands.iter().filter_map(|c| c.parameters.as_ref()).map(Payload::len).sum()
        }
        Entry::Answered { results, .. } => results.iter().map(ActionResult::bytes).sum(),
        Entry::Ended { error, finish, .. } => {
            let value = match finish {
                Finish::Value(value) => value.len(),
                Finish::Results => 0,
            };
            value + error.as_ref().map_or(0, |error| error.len())
        }
    };
    ENTRY_BYTES + payloads
}

/// Puts the size of each large payload in its place.
fn cut(task: TaskId, entry: &mut Entry) {
    let cut = |payload: &mut Payload| {
        let (bytes, task) = (payload.len(), task.to_string());
        let marker = TruncatedResult { truncated: true, bytes, task };
        if bytes > SMALL_BYTES
            && let Ok(marker) = Payload::from_value(&marker)
        {
            *payload = marker;
        }
    };
    match entry {
        Entry::Created(_) => {}
        Entry::Decided { commands, .. } => {
            let mut smaller: Vec<Command> = commands.to_vec();
            smaller.iter_mut().filter_map(|command| command.parameters.as_mut()).for_each(cut);
            *commands = smaller.into();
        }
        Entry::Answered { results, .. } => {
            let mut smaller: Vec<ActionResult> = results.to_vec();
            smaller.iter_mut().filter_map(|result| result.result.as_mut()).for_each(cut);
            *results = Arc::from(smaller);
        }
        Entry::Ended { finish: Finish::Value(value), .. } => cut(value),
        Entry::Ended { finish: Finish::Results, .. } => {}
    }
}

#[cfg(test)]
mod tests {
    use aip::Status;

    use super::*;

    const LIMITS: HistoryLimits = HistoryLimits {
        tasks: 3,
        bytes: 100_000,
        unfetched_bytes: 100_000,
        unfetched_time: Duration::from_secs(60),
    };

    fn end(store: &MemoryStore, task: TaskId, bytes: usize, is_unfetched: bool) {
        let result = Payload::string(&"x".repeat(bytes));
        let results = Arc::new([ActionResult::success(None, None, result)]);
        let at = Timestamp::UNIX_EPOCH;
        let _kept = store.append(task, Entry::Answered { at, results });
        let ended = Entry::Ended {
            at,
            status: Status::Completed,
            error: None,
            finish: Finish::Results,
            is_cancelled: false,
            is_unfetched,
        };
        let _kept = store.append(task, ended);
    }

    /// How much is left of a task's result; `None` when it is forgotten.
    fn left(store: &MemoryStore, task: TaskId) -> Option<usize> {
        match &store.journal(task)?[0] {
            Entry::Answered { results, .. } => results[0].result.as_ref().map(Payload::len),
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
        let at = Timestamp::UNIX_EPOCH;
        let _kept = store.append(open, Entry::Answered { at, results: Arc::new([]) });
        end(&store, TaskId::fresh(), 10, false);
        assert_eq!(store.journal(open).map(|journal| journal.len()), Some(1));
    }
}
