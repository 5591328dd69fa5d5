//! A store that takes its time, fails now and then, and so lets the commits of one task overtake those of another.
//! What it keeps, it keeps in memory.

use std::sync::Arc;
use std::time::Duration;

use link::Ambient;
use server::store::{
    Batch, Change, Commit, HistoryLimits, MemoryStore, Query, Reading, Record, Recovered, Store,
    StoreError, Summary,
};
use server::{Audit, TaskId};

/// How a store behaves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moods {
    /// The longest that a commit takes.
    pub(crate) longest: Duration,
    /// How many of a hundred commits fail.
    pub(crate) failing: u8,
    /// Whether also those fail that accept a task, which is refused then.
    pub(crate) refuses: bool,
}

pub(crate) struct UnsteadyStore {
    inner: MemoryStore,
    moods: Moods,
    ambient: Ambient,
}

impl UnsteadyStore {
    pub(crate) fn new(limits: HistoryLimits, moods: Moods, ambient: Ambient) -> Self {
        Self { inner: MemoryStore::new(limits), moods, ambient }
    }

    /// Whether this batch shall fail.
    fn fails(&self, batch: &Batch) -> bool {
        let accepts = matches!(batch.records.first(), Some(Record::Created(_)));
        let failing = f64::from(self.moods.failing) / 100.0;
        self.ambient.chance() < failing && (self.moods.refuses || !accepts)
    }
}

impl Store for UnsteadyStore {
    fn append(&self, batch: &Arc<Batch>) -> Commit {
        let takes = self.moods.longest.mul_f64(self.ambient.chance());
        let fails = self.fails(batch);
        let (inner, batch) = (self.inner.clone(), batch.clone());
        let (done, commit) = tokio::sync::oneshot::channel();
        self.ambient.spawn(async move {
            tokio::time::sleep(takes).await;
            let committed = match fails {
                true => Err(StoreError::Failed("it is in a bad mood".to_owned())),
                false => inner.append(&batch).wait().await,
            };
            let _the_server_is_gone = done.send(committed);
        });
        Commit::Pending(commit)
    }

    fn keep(&self, change: Change) -> Commit {
        self.inner.keep(change)
    }

    fn set_audit(&self, audit: Audit) {
        self.inner.set_audit(audit);
    }

    fn recover(&self) -> Result<Recovered, StoreError> {
        self.inner.recover()
    }

    fn journal(&self, task: TaskId) -> Reading<Option<Vec<Record>>> {
        self.inner.journal(task)
    }

    fn tasks(&self, query: Query) -> Reading<Vec<Summary>> {
        self.inner.tasks(query)
    }

    fn tidy(&self, now: jiff::Timestamp) {
        self.inner.tidy(now);
    }
}
