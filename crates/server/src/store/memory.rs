//! Journals in memory: gone with the process, and bounded in number and bytes.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use aip::{ActionResult, Payload};

use super::{Commit, Entry, Query, Store, Summary};
use crate::agent::Finish;
use crate::session::TaskId;

/// What an entry costs beside its payloads, about, in bytes.
const ENTRY_BYTES: usize = 256;

/// Keeps the journals of open tasks, and of the newest ended ones.
pub struct MemoryStore {
    journals: Mutex<Journals>,
    max_tasks: usize,
    max_bytes: usize,
}

#[derive(Default)]
struct Journals {
    /// In the order in which they were created.
    tasks: BTreeMap<TaskId, Vec<Entry>>,
    /// Ended tasks with their size, oldest first.
    ended: VecDeque<(TaskId, usize)>,
    ended_bytes: usize,
}

impl MemoryStore {
    /// An empty store that remembers at most `max_tasks` ended tasks and `max_bytes` of them, and the
    /// one that ended last whatever its size: who asked for it over HTTP could not learn its outcome
    /// else.
    #[must_use]
    pub fn new(max_tasks: usize, max_bytes: usize) -> Self {
        Self { journals: Mutex::default(), max_tasks, max_bytes }
    }

    fn lock(&self) -> MutexGuard<'_, Journals> {
        self.journals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    fn append(&self, task: TaskId, entry: Entry) -> Commit {
        let mut journals = self.lock();
        let ended = matches!(entry, Entry::Ended { .. });
        let journal = journals.tasks.entry(task).or_default();
        journal.push(entry);
        if ended {
            let bytes = journal.iter().map(size).sum();
            journals.ended.push_back((task, bytes));
            journals.ended_bytes += bytes;
            journals.forget(self.max_tasks, self.max_bytes);
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
}

fn summary(journal: &[Entry]) -> Option<Summary> {
    let Some(Entry::Created(task)) = journal.first() else { return None };
    let steps = journal.iter().filter(|entry| matches!(entry, Entry::Decided { .. })).count();
    let ended = journal.last().filter(|entry| matches!(entry, Entry::Ended { .. })).cloned();
    Some(Summary { task: task.clone(), steps, ended })
}

impl Journals {
    fn forget(&mut self, max_tasks: usize, max_bytes: usize) {
        let is_over = |known: &Self| {
            known.ended.len() > max_tasks
                || (known.ended_bytes > max_bytes && known.ended.len() > 1)
        };
        while is_over(self) {
            let Some((task, bytes)) = self.ended.pop_front() else { return };
            self.ended_bytes -= bytes;
            self.tasks.remove(&task);
        }
    }
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use aip::Status;
    use jiff::Timestamp;

    use super::*;

    fn end(store: &MemoryStore, task: TaskId, bytes: usize) {
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
        };
        let _kept = store.append(task, ended);
    }

    #[test]
    fn the_newest_ended_tasks_are_remembered_within_both_bounds() {
        let store = MemoryStore::new(2, 1_000_000);
        let tasks = [(); 3].map(|()| TaskId::fresh());
        tasks.iter().for_each(|task| end(&store, *task, 10));
        let known = tasks.map(|task| store.journal(task).is_some());
        assert_eq!(known, [false, true, true]);
        end(&store, tasks[0], 2_000_000);
        let known = tasks.map(|task| store.journal(task).is_some());
        assert_eq!(known, [true, false, false], "over the byte bound, but the newest");
        end(&store, tasks[1], 10);
        let known = tasks.map(|task| store.journal(task).is_some());
        assert_eq!(known, [false, true, false]);
    }

    #[test]
    fn an_open_task_is_never_forgotten() {
        let store = MemoryStore::new(0, 0);
        let open = TaskId::fresh();
        let _kept = store
            .append(open, Entry::Answered { at: Timestamp::UNIX_EPOCH, results: Arc::new([]) });
        end(&store, TaskId::fresh(), 10);
        assert_eq!(store.journal(open).map(|journal| journal.len()), Some(1));
    }
}
