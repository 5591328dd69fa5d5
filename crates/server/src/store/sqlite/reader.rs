//! Two threads that read, so that no question waits for the writer, nor a runtime thread for the disk.
//!
//! Each statement is short: one that held its snapshot for long would let the database's log grow meanwhile.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use rusqlite::Connection;
use tokio::sync::oneshot;

use crate::store::StoreError;

/// Questions that may wait.
const MAX_WAITING: usize = 4096;

type Question = Box<dyn FnOnce(&Connection) + Send>;

#[derive(Default)]
struct Waiting {
    questions: VecDeque<Question>,
    is_closed: bool,
}

/// Where questions wait. Cheap to clone; all clones are the same.
#[derive(Clone, Default)]
pub(super) struct Readers(Arc<(Mutex<Waiting>, Condvar)>);

impl Readers {
    /// Starts a thread for each connection.
    pub(super) fn start(
        connections: impl IntoIterator<Item = Connection>,
    ) -> io::Result<(Self, Vec<JoinHandle<()>>)> {
        let readers = Self::default();
        let start = |connection| {
            let own = readers.clone();
            let thread = std::thread::Builder::new().name("store-reader".to_owned());
            thread.spawn(move || own.run(&connection))
        };
        let threads = connections.into_iter().map(start).collect::<io::Result<_>>()?;
        Ok((readers, threads))
    }

    /// Asks a question.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, receiver) = oneshot::channel();
        let question = Box::new(move |connection: &Connection| {
            // Whoever asked may be gone.
            let _is_gone = answer.send(question(connection));
        });
        self.push(question)?;
        let answer = receiver.await.map_err(|_| StoreError::Closed)?;
        answer.map_err(|error| StoreError::Failed(error.to_string()))
    }

    fn push(&self, question: Question) -> Result<(), StoreError> {
        let (waiting, rung) = &*self.0;
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.is_closed {
            return Err(StoreError::Closed);
        }
        if waiting.questions.len() >= MAX_WAITING {
            return Err(StoreError::Failed("too many questions wait for it".to_owned()));
        }
        waiting.questions.push_back(question);
        rung.notify_one();
        Ok(())
    }

    /// Answers what waits, and nothing more.
    pub(super) fn close(&self) {
        let (waiting, rung) = &*self.0;
        waiting.lock().unwrap_or_else(PoisonError::into_inner).is_closed = true;
        rung.notify_all();
    }

    fn run(&self, connection: &Connection) {
        while let Some(question) = self.next() {
            question(connection);
        }
    }

    fn next(&self) -> Option<Question> {
        let (waiting, rung) = &*self.0;
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(question) = waiting.questions.pop_front() {
                return Some(question);
            }
            if waiting.is_closed {
                return None;
            }
            waiting = rung.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
