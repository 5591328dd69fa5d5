//! The thread that writes the audit log.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::thread;
use std::time::Duration;

use super::file::LogFile;
use super::{Entry, Event, Line, Message, QUEUE_ENTRIES, Shared};

/// After the first entry, how long to gather more of them: in a storm this makes one write, and one
/// wake-up of this thread, of hundreds.
const GATHER: Duration = Duration::from_millis(10);

/// While the disk refuses, the time between two tries.
const RETRY: Duration = Duration::from_secs(1);

pub(super) struct Writer {
    file: LogFile,
    queue: Receiver<Message>,
    shared: Arc<Shared>,
    /// What is to be written next: [`QUEUE_ENTRIES`] at most.
    batch: VecDeque<Line>,
    /// How many lost entries the log knows of.
    told: u64,
}

impl Writer {
    pub(super) fn new(file: LogFile, queue: Receiver<Message>, shared: Arc<Shared>) -> Self {
        Self { file, queue, shared, batch: VecDeque::new(), told: 0 }
    }

    pub(super) fn run(mut self) {
        let mut open = true;
        while open {
            open = self.gather();
            if !self.write() {
                self.shared.note_lost(self.batch.len() as u64);
                self.batch.clear();
            }
            self.tell_loss();
        }
    }

    /// Fills the batch. Whether more may come.
    fn gather(&mut self) -> bool {
        // With a loss to report, the thread waits for no entry.
        if !self.has_loss() && !self.queue.recv().is_ok_and(|message| self.take(message)) {
            return false;
        }
        thread::sleep(GATHER);
        while self.batch.len() < QUEUE_ENTRIES {
            let message = match self.queue.try_recv() {
                Ok(message) => message,
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return false,
            };
            if !self.take(message) {
                return false;
            }
        }
        true
    }

    /// Whether it was a line.
    fn take(&mut self, message: Message) -> bool {
        let Message::Line(line) = message else { return false };
        self.batch.push_back(line);
        true
    }

    fn has_loss(&self) -> bool {
        self.shared.lost.load(Ordering::Relaxed) != self.told
    }

    /// Adds a line about the entries that were lost since the last such line.
    fn tell_loss(&mut self) {
        let lost = self.shared.lost.load(Ordering::Relaxed);
        if lost == self.told {
            return;
        }
        let entry = Entry { count: Some(lost - self.told), ..Entry::new(Event::Lost) };
        self.batch.push_back(entry.line());
        if self.write() {
            self.told = lost;
        }
        self.batch.clear();
    }

    /// Writes the batch, however long the disk refuses. Meanwhile the queue fills, and what it cannot
    /// take is lost. Once the log is to be closed, there is one try. Whether all is written.
    fn write(&mut self) -> bool {
        let mut refused = false;
        while let Err(error) = self.file.append(&mut self.batch) {
            if !refused {
                refused = true;
                tracing::error!(%error, "the audit log cannot be written; trying again and again");
            }
            if self.is_closing() {
                return false;
            }
            thread::park_timeout(RETRY);
        }
        if refused {
            tracing::info!("the audit log is written again");
        }
        true
    }

    fn is_closing(&self) -> bool {
        self.shared.closing.load(Ordering::Acquire)
    }
}
