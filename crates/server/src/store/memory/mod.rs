//! Journals in memory: gone with the process, and bounded in number and bytes.
//!
//! An ended task is remembered until `max_tasks` newer ones have ended. Its payloads are the first to
//! go when there are too many bytes: what is left still says what was done and how it ended. Outcomes that nobody
//! acknowledged and results that the requester has still to fetch are kept whole for a while, within a bound of
//! their own.
//!
//! A server that is made anew with a clone of the store finds everything, as after a restart.

mod cut;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use self::cut::cut;
use super::{
    Batch, Change, Commit, Ended, KnownRequest, OpenJournal, Query, REQUESTS_KEPT, Reading, Record,
    Recovered, Store, StoreError, Summary, Undelivered,
};
use crate::session::{IdentityRecord, Incarnation, TaskId};

/// Records that usually follow those of the first batch.
const USUAL_RECORDS: usize = 2;

/// Tasks that are looked at under one lock; a query of more lets others in between.
const LOOK_AT: usize = 1024;

/// Most request ids that are remembered of tasks that are not remembered themselves.
const MAX_REQUESTS: usize = 100_000;

/// How much is remembered of ended tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryLimits {
    /// Most ended tasks.
    pub tasks: usize,
    /// Most bytes of them; beyond it the payloads of the oldest go.
    pub bytes: usize,
    /// Most bytes of outcomes that nobody acknowledged, and of results that requesters have still to fetch: see
    /// [`Ended`].
    pub unfetched_bytes: usize,
    /// How long results that are still to be fetched are kept whole.
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
    /// Ended tasks that are kept whole for now.
    whole: BTreeMap<TaskId, Whole>,
    whole_bytes: usize,
    identities: BTreeMap<Incarnation, Arc<IdentityRecord>>,
    /// What was submitted with a request id of late, by the task that it names.
    requests: BTreeMap<TaskId, KnownRequest>,
    /// The greatest number of an identity that asked for a task.
    last_owner: Incarnation,
}

/// An ended task that is not cut yet.
struct Whole {
    bytes: usize,
    /// Until when it waits for an acknowledgement.
    undelivered_until: Option<Timestamp>,
    /// Until when its results wait to be fetched.
    unfetched_until: Option<Timestamp>,
}

impl Whole {
    fn until(&self) -> Option<Timestamp> {
        self.undelivered_until.max(self.unfetched_until)
    }
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

    fn keep(&self, change: Change) -> Commit {
        let mut journals = self.lock();
        match change {
            Change::Identity(identity) => journals.keep_identity(identity),
            Change::Forget(identity) => {
                journals.identities.remove(&identity);
            }
            Change::Delivered(task) => journals.deliver(task, &self.limits),
        }
        Commit::Known(Ok(()))
    }

    fn recover(&self) -> Result<Recovered, StoreError> {
        let journals = self.lock();
        Ok(Recovered {
            store: self.id.clone(),
            former: Vec::new(),
            has_lost: false,
            identities: journals.identities.values().map(|known| (**known).clone()).collect(),
            open: journals.open(),
            undelivered: journals.undelivered(),
            requests: journals.requests(),
            last_owner: journals.last_owner,
            newest_task: journals.tasks.keys().chain(journals.requests.keys()).max().copied(),
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
        let is_due = |(_, whole): &(&TaskId, &Whole)| whole.until().is_none_or(|at| at <= now);
        let due: Vec<TaskId> = journals.whole.iter().filter(is_due).map(|(id, _)| *id).collect();
        due.into_iter().for_each(|task| journals.give_up(task, &self.limits));
        journals.forget_requests(now);
    }
}

impl Journals {
    fn append(&mut self, batch: &Batch, limits: &HistoryLimits) {
        let journal = match batch.records.first() {
            Some(Record::Created(task)) => {
                self.last_owner = self.last_owner.max(task.terms.requester.unwrap_or_default());
                if let Some(request) = KnownRequest::of(task) {
                    self.requests.insert(task.id, request);
                }
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
        batch.records.iter().for_each(|record| note_sent(&mut self.identities, record));
        if let Some(Record::Ended(ended)) = batch.records.last() {
            let bytes = journal.bytes();
            self.end(batch.task, bytes, ended, limits);
        }
    }

    fn end(&mut self, task: TaskId, bytes: usize, ended: &Ended, limits: &HistoryLimits) {
        let until = || ended.at.checked_add(limits.unfetched_time).unwrap_or(Timestamp::MAX);
        let (undelivered_until, unfetched_until) =
            (ended.undelivered_until, ended.is_unfetched.then(until));
        let whole = Whole { bytes, undelivered_until, unfetched_until };
        if whole.until().is_none() {
            return self.remember(task, bytes, limits);
        }
        self.whole.insert(task, whole);
        self.whole_bytes += bytes;
        while self.whole_bytes > limits.unfetched_bytes
            && let Some((oldest, _)) = self.whole.first_key_value()
        {
            self.give_up(*oldest, limits);
        }
    }

    /// The outcome was acknowledged. Results that are still to be fetched stay.
    fn deliver(&mut self, task: TaskId, limits: &HistoryLimits) {
        let Some(whole) = self.whole.get_mut(&task) else { return };
        whole.undelivered_until = None;
        if whole.until().is_none() {
            self.give_up(task, limits);
        }
    }

    /// What was kept whole becomes history.
    fn give_up(&mut self, task: TaskId, limits: &HistoryLimits) {
        if let Some(whole) = self.whole.remove(&task) {
            self.whole_bytes -= whole.bytes;
            self.remember(task, whole.bytes, limits);
        }
    }

    fn keep_identity(&mut self, mut identity: Arc<IdentityRecord>) {
        let before = self.identities.get(&identity.id).and_then(|known| known.newest.clone());
        if before > identity.newest {
            Arc::make_mut(&mut identity).newest = before;
        }
        self.identities.insert(identity.id, identity);
    }

    /// Request ids of a day ago go, unless their task is open or its outcome not acknowledged.
    fn forget_requests(&mut self, now: Timestamp) {
        let too_many = self.requests.len().saturating_sub(MAX_REQUESTS);
        let is_old = |(_, known): &(&TaskId, &KnownRequest)| {
            now.duration_since(known.created_at).unsigned_abs() >= REQUESTS_KEPT
        };
        let old = self.requests.iter().take_while(is_old).count().max(too_many);
        let is_done = |task: &TaskId| {
            let journal = self.tasks.get(task);
            journal.is_none_or(|journal| journal.summary.ended.is_some())
                && self.whole.get(task).is_none_or(|whole| whole.undelivered_until.is_none())
        };
        let gone = self.requests.keys().take(old).copied().filter(is_done);
        for task in gone.collect::<Vec<_>>() {
            self.requests.remove(&task);
        }
    }

    /// Not those of identities that are forgotten: nobody comes back as one.
    fn requests(&self) -> Vec<KnownRequest> {
        let is_needed = |known: &&KnownRequest| {
            known.owner.is_none_or(|owner| self.identities.contains_key(&owner))
        };
        self.requests.values().filter(is_needed).cloned().collect()
    }

    fn open(&self) -> Vec<OpenJournal> {
        let open = self.tasks.values().filter(|journal| journal.summary.ended.is_none());
        let whole =
            |journal: &Journal| OpenJournal { records: journal.records.clone(), is_damaged: false };
        open.map(whole).collect()
    }

    fn undelivered(&self) -> Vec<Undelivered> {
        let known = |(id, whole): (&TaskId, &Whole)| {
            let task = &self.tasks.get(id)?.summary.task;
            Some(Undelivered {
                task: *id,
                owner: task.terms.requester?,
                key: task.key.public().clone(),
                bytes: whole.bytes,
                until: whole.undelivered_until?,
            })
        };
        self.whole.iter().filter_map(known).collect()
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

/// The device that a COMMAND goes to has the newest one now.
fn note_sent(identities: &mut BTreeMap<Incarnation, Arc<IdentityRecord>>, record: &Record) {
    let Some((device, response_id)) = record.sent() else { return };
    if let Some(identity) = identities.get_mut(&device)
        && identity.newest.as_ref() < Some(response_id)
    {
        Arc::make_mut(identity).newest = Some(response_id.clone());
    }
}
