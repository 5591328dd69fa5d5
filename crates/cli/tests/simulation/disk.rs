//! What a server has on its disk: a store that outlives it, delays and refuses commits, and loses the last ones with the
//! power of its machine. What it keeps, it keeps in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aip::ResponseId;
use jiff::Timestamp;
use link::Ambient;
use server::store::{
    Batch, Change, Commit, HistoryLimits, MemoryStore, Query, Reading, Record, Recovered, Store,
    StoreError, Summary,
};
use server::{Audit, TaskId};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::history::{History, What};

/// The most writes that a loss of power costs.
const MOST_LOST: usize = 12;

/// How a store behaves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moods {
    /// The longest that a commit takes, and a look at what is kept.
    pub(crate) longest: Duration,
    /// How many of a hundred commits fail.
    pub(crate) failing: u8,
    /// Whether what it said is in survives a loss of power, as with `durability = "power"`.
    pub(crate) is_synced: bool,
}

/// The store as one life of the server has it. What is asked of it by an earlier life comes to nothing.
#[derive(Clone)]
pub(crate) struct Disk {
    inner: Arc<Mutex<Inner>>,
    life: u64,
    /// The server's own, whose death ends what waits here.
    ambient: Ambient,
}

struct Inner {
    kept: MemoryStore,
    limits: HistoryLimits,
    /// All that is in, in order.
    log: Vec<Write>,
    /// How much of it no loss of power takes away.
    synced: usize,
    /// The store's ids, newest first.
    ids: Vec<String>,
    /// Tasks up to this one were accepted under a former id.
    lost_to: Option<TaskId>,
    life: u64,
    /// What is on its way, by when it is in.
    waiting: BTreeMap<(Instant, u64), Waiting>,
    number: u64,
    /// Nothing that comes from now on is in before this.
    barrier: Instant,
    is_full: bool,
    moods: Moods,
    chance: fastrand::Rng,
    history: History,
}

#[derive(Clone)]
enum Write {
    Batch(Arc<Batch>),
    Change(Change),
}

struct Waiting {
    write: Write,
    fails: bool,
    answer: oneshot::Sender<Result<(), StoreError>>,
}

impl Disk {
    pub(crate) fn new(
        limits: HistoryLimits,
        moods: Moods,
        seed: u64,
        history: &History,
        ambient: &Ambient,
    ) -> Self {
        let inner = Inner {
            kept: MemoryStore::new(limits),
            limits,
            log: Vec::new(),
            synced: 0,
            ids: vec![ambient.uuid().to_string()],
            lost_to: None,
            life: 0,
            waiting: BTreeMap::new(),
            number: 0,
            barrier: Instant::now(),
            is_full: false,
            moods,
            chance: fastrand::Rng::with_seed(seed),
            history: history.clone(),
        };
        Self { inner: Arc::new(Mutex::new(inner)), life: 0, ambient: ambient.clone() }
    }

    /// The same disk for the next life of the server. What was on its way is lost, or is in without a word.
    pub(crate) fn pass_on(&self, ambient: &Ambient) -> Self {
        let mut inner = self.lock();
        let waiting = std::mem::take(&mut inner.waiting);
        let kept = if inner.chance.bool() { inner.chance.usize(..=waiting.len()) } else { 0 };
        for waiting in waiting.into_values().take(kept).filter(|waiting| !waiting.fails) {
            inner.keep(waiting.write);
        }
        inner.life += 1;
        inner.is_full = false;
        inner.barrier = Instant::now();
        let life = inner.life;
        drop(inner);
        Self { inner: self.inner.clone(), life, ambient: ambient.clone() }
    }

    /// What ends with the server that has it now.
    pub(crate) fn ambient(&self) -> &Ambient {
        &self.ambient
    }

    /// The machine has lost power: unless it synced, the last commits are gone, and what comes back has another id.
    pub(crate) fn lose_power(&self) {
        let mut inner = self.lock();
        if inner.moods.is_synced {
            return;
        }
        let unsynced = inner.log.len() - inner.synced;
        let lost = inner.chance.usize(..=unsynced.min(MOST_LOST));
        inner.lose(lost);
        inner.synced = inner.log.len();
        let last = inner.log.iter().filter_map(|write| match write {
            Write::Batch(batch) => Some(batch.task),
            Write::Change(_) => None,
        });
        inner.lost_to = inner.lost_to.max(last.max());
        let id = inner.chance.u128(..);
        inner.ids.insert(0, format!("{id:032x}"));
    }

    /// A copy of all that the server has is put back by hand, a little older and under the same id. More than what
    /// [`Inner::after_all_that_counts`] says is not promised.
    pub(crate) fn put_back(&self) {
        let mut inner = self.lock();
        let younger = inner.log.len() - inner.after_all_that_counts();
        let lost = inner.chance.usize(..=younger.min(MOST_LOST));
        inner.lose(lost);
        inner.synced = inner.synced.min(inner.log.len());
    }

    /// Nothing is missing: the server closed it.
    pub(crate) fn close(&self) {
        let mut inner = self.lock();
        inner.settle(Instant::now() + Duration::from_secs(3600));
        inner.synced = inner.log.len();
    }

    /// Makes it full, or makes room.
    pub(crate) fn fill(&self, is_full: bool) {
        self.lock().is_full = is_full;
    }

    fn take(&self, write: Write) -> Commit {
        let mut inner = self.lock();
        if inner.life != self.life {
            return Commit::Known(Err(StoreError::Closed));
        }
        if inner.is_full {
            return Commit::Known(Err(StoreError::Failed("the disk is full".to_owned())));
        }
        let fails = inner.chance.u8(..100) < inner.moods.failing;
        if inner.moods.longest.is_zero() {
            return Commit::Known(inner.commit(write, fails));
        }
        let takes = inner.moods.longest.mul_f64(inner.chance.f64());
        let mut at = (Instant::now() + takes).max(inner.barrier);
        if matches!(write, Write::Change(_)) {
            // It is in once all before it is; batches of different tasks may overtake each other.
            at = inner.waiting.last_key_value().map_or(at, |((last, _), _)| at.max(*last));
            inner.barrier = at;
        }
        inner.number += 1;
        let (answer, commit) = oneshot::channel();
        let place = (at, inner.number);
        inner.waiting.insert(place, Waiting { write, fails, answer });
        drop(inner);
        let disk = self.clone();
        self.ambient.spawn(async move {
            tokio::time::sleep_until(at).await;
            disk.lock().settle(Instant::now());
        });
        Commit::Pending(commit)
    }

    /// Answers a look at what is kept, which takes a while too.
    fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&MemoryStore) -> Reading<T> + Send + 'static,
    ) -> Reading<T> {
        let disk = self.clone();
        Box::pin(async move {
            let takes = {
                let mut inner = disk.lock();
                inner.moods.longest.mul_f64(inner.chance.f64())
            };
            if !takes.is_zero() {
                tokio::time::sleep(takes).await;
            }
            let kept = disk.lock().kept.clone();
            look(&kept).await
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Commits what is due.
    fn settle(&mut self, now: Instant) {
        while let Some(first) = self.waiting.first_entry()
            && first.key().0 <= now
        {
            let Waiting { write, fails, answer } = first.remove();
            let committed = self.commit(write, fails);
            let _the_server_is_gone = answer.send(committed);
        }
    }

    /// Where what may be lost under the same id begins: behind every task and client, and with no command that is older
    /// than one that stays, since a device knows the newest one alone.
    fn after_all_that_counts(&self) -> usize {
        let (mut begins, mut newest) = (0, None);
        for (at, write) in self.log.iter().enumerate() {
            let decided = decided(write);
            let counts = match write {
                Write::Batch(batch) => matches!(batch.records.first(), Some(Record::Created(_))),
                Write::Change(change) => !matches!(change, Change::Delivered(_)),
            };
            if counts || decided.is_some() && decided < newest {
                begins = at + 1;
            }
            newest = newest.max(decided);
        }
        begins
    }

    /// Loses so many of the last writes.
    fn lose(&mut self, writes: usize) {
        let left = self.log.len().saturating_sub(writes);
        let gone = self.log.split_off(left);
        let batches = gone.iter().filter(|write| matches!(write, Write::Batch(_))).count();
        self.history.push(What::Forgotten { batches });
        self.kept = MemoryStore::new(self.limits);
        self.log.iter().for_each(|write| put(&self.kept, write));
    }

    fn commit(&mut self, write: Write, fails: bool) -> Result<(), StoreError> {
        if fails {
            return Err(StoreError::Failed("it is in a bad mood".to_owned()));
        }
        self.keep(write);
        Ok(())
    }

    fn keep(&mut self, write: Write) {
        put(&self.kept, &write);
        if let Write::Batch(batch) = &write {
            self.history.push(What::Stored(batch.clone()));
        }
        self.log.push(write);
    }
}

/// The command that a write says was decided.
fn decided(write: &Write) -> Option<&ResponseId> {
    let Write::Batch(batch) = write else { return None };
    batch.records.iter().find_map(|record| match record {
        Record::Decided { response_id, .. } => Some(response_id),
        _ => None,
    })
}

fn put(store: &MemoryStore, write: &Write) {
    drop(match write {
        Write::Batch(batch) => store.append(batch),
        Write::Change(change) => store.keep(change.clone()),
    });
}

impl Store for Disk {
    fn append(&self, batch: &Arc<Batch>) -> Commit {
        self.take(Write::Batch(batch.clone()))
    }

    fn keep(&self, change: Change) -> Commit {
        self.take(Write::Change(change))
    }

    /// Nobody reads it here.
    fn set_audit(&self, _audit: Audit) {}

    fn recover(&self) -> Result<Recovered, StoreError> {
        let inner = self.lock();
        let found = inner.kept.recover()?;
        let is_former = |record: Option<&Record>| match record {
            Some(Record::Created(task)) => Some(task.id) <= inner.lost_to,
            _ => false,
        };
        let has_lost = found.open.iter().any(|journal| is_former(journal.records.first()));
        let mut ids = inner.ids.iter().cloned();
        let store = ids.next().unwrap_or_default();
        Ok(Recovered { store, former: ids.collect(), has_lost, ..found })
    }

    fn is_durable(&self) -> bool {
        true
    }

    fn journal(&self, task: TaskId) -> Reading<Option<Vec<Record>>> {
        self.look(move |kept| kept.journal(task))
    }

    fn tasks(&self, query: Query) -> Reading<Vec<Summary>> {
        self.look(move |kept| kept.tasks(query))
    }

    fn tidy(&self, now: Timestamp) {
        let inner = self.lock();
        if inner.life == self.life {
            inner.kept.tidy(now);
        }
    }
}
