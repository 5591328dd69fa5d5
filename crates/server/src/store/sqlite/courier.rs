//! Goes between the runtime and the writer's thread, so that each wakes the other once for a group, not once for a job.
//!
//! Whoever wakes a thread is often put aside for it. A writer that is woken by the first of many jobs finds only that one,
//! and one that tells each job's waiter finds each of them at work before the next is told.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::queue::{Answer, Queue};
use crate::store::StoreError;

/// An answer, and where it goes.
pub(super) type Answered = (Answer<()>, Result<(), StoreError>);

#[derive(Default)]
struct Shared {
    /// The writer is to be woken.
    has_work: Notify,
    answers: Mutex<Vec<Answered>>,
    has_answers: Notify,
}

/// The courier. Where there is no runtime nothing is gathered. Cheap to clone; all clones are the same.
#[derive(Clone, Default)]
pub(super) struct Courier(Option<Arc<Shared>>);

impl Courier {
    /// One for this runtime, if this is one.
    pub(super) fn here() -> Self {
        Self(Handle::try_current().is_ok().then(Arc::default))
    }

    /// Begins to run. Whoever has what is returned ends it.
    pub(super) fn start(&self, queue: &Arc<Queue>) -> Option<JoinHandle<()>> {
        let shared = self.0.clone()?;
        Some(tokio::spawn(run(shared, Arc::downgrade(queue))))
    }

    /// Has the writer woken when what else is ready has run; `false` when there is nobody to do it.
    pub(super) fn wake_writer_soon(&self) -> bool {
        self.0.as_ref().is_some_and(|shared| {
            shared.has_work.notify_one();
            true
        })
    }

    /// Has answers told, all together.
    pub(super) fn tell(&self, answers: Vec<Answered>) {
        match &self.0 {
            Some(shared) => {
                shared.answers.lock().unwrap_or_else(PoisonError::into_inner).extend(answers);
                shared.has_answers.notify_one();
            }
            None => send(answers),
        }
    }

    /// Tells what is left, now.
    pub(super) fn flush(&self) {
        if let Some(shared) = &self.0 {
            send(shared.take());
        }
    }
}

impl Shared {
    fn take(&self) -> Vec<Answered> {
        std::mem::take(&mut *self.answers.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn run(shared: Arc<Shared>, queue: Weak<Queue>) {
    loop {
        tokio::select! {
            () = shared.has_work.notified() => {
                tokio::task::yield_now().await;
                let Some(queue) = queue.upgrade() else { return };
                queue.wake_writer();
            }
            () = shared.has_answers.notified() => send(shared.take()),
        }
    }
}

fn send(answers: Vec<Answered>) {
    for (answer, result) in answers {
        // Whoever waited may be gone.
        let _is_gone = answer.send(result);
    }
}
