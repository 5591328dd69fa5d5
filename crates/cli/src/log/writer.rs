//! The thread that writes the log, so that no line costs its author a system call, and a standard error that
//! stalls stops nobody.
//!
//! Why not `tracing-appender`: its queue is bounded in lines but not in bytes, it reports no loss, and
//! only its end flushes it, while a program goes on after the panic of one task.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::queue::{Batch, Queue};

/// After a first line, how long to gather more of them: they take one write together.
const GATHER: Duration = Duration::from_millis(10);

/// Longest wait for what was logged to be written: before something else is said, at a panic, at the end.
const FLUSH_TIME: Duration = Duration::from_secs(1);

/// A queue and its thread, which starts with the first line: most commands log nothing.
pub(super) struct Writer {
    state: Mutex<State>,
    /// There is something to write, or no time to gather more.
    work: Condvar,
    /// Something was written.
    progress: Condvar,
}

struct State {
    queue: Queue,
    is_started: bool,
    is_urgent: bool,
    /// Whether a flush has waited in vain, and nothing was written since.
    is_stalled: bool,
    /// Lines that were queued, and those of them that were written or lost, since the start.
    queued: u64,
    done: u64,
}

impl Writer {
    pub(super) const fn new() -> Self {
        let state = State {
            queue: Queue::new(),
            is_started: false,
            is_urgent: false,
            is_stalled: false,
            queued: 0,
            done: 0,
        };
        Self { state: Mutex::new(state), work: Condvar::new(), progress: Condvar::new() }
    }

    /// Queues a line, or counts it as lost. Does not wait.
    pub(super) fn push(&self, line: &[u8]) {
        let mut state = self.lock();
        let was_empty = state.queue.is_empty();
        let is_news = if state.queue.push(line) {
            state.queued += 1;
            was_empty
        } else {
            !std::mem::replace(&mut state.is_urgent, true)
        };
        if is_news {
            self.work.notify_one();
        }
    }

    /// Starts the thread, which writes with `write`, unless that was done. Whether it runs.
    pub(super) fn start(&'static self, write: fn(&[u8]) -> io::Result<()>) -> bool {
        let mut state = self.lock();
        if !state.is_started {
            let thread = thread::Builder::new().name("log".to_owned());
            state.is_started = thread.spawn(move || self.run(write)).is_ok();
        }
        state.is_started
    }

    /// Waits until all is written that was queued so far, for [`FLUSH_TIME`] at most, and not at all while
    /// an earlier wait was in vain. Whether it is written.
    pub(super) fn flush(&self) -> bool {
        let mut state = self.lock();
        let target = state.queued;
        if state.done < target && !state.is_stalled {
            state.is_urgent = true;
            self.work.notify_one();
            let waited = self.progress.wait_timeout_while(state, FLUSH_TIME, |s| s.done < target);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.is_stalled = state.done < target;
        }
        state.done >= target
    }

    fn run(&self, mut write: impl FnMut(&[u8]) -> io::Result<()>) {
        loop {
            let mut batch = self.next_batch();
            if batch.lost > 0 {
                let lines = batch.lost;
                let text = format!("log lines lost: {lines}, since standard error took no more");
                batch.text.extend(super::line("WARN", &text).into_bytes());
            }
            let is_written = write(&batch.text).is_ok();
            self.note_done(&batch, is_written);
        }
    }

    /// Waits for a first line, and then a while for more.
    fn next_batch(&self) -> Batch {
        let state = self.work.wait_while(self.lock(), |state| state.queue.is_empty());
        let state = state.unwrap_or_else(PoisonError::into_inner);
        let gathered = self.work.wait_timeout_while(state, GATHER, |state| !state.is_urgent);
        let mut state = gathered.unwrap_or_else(PoisonError::into_inner).0;
        state.is_urgent = false;
        state.queue.take()
    }

    fn note_done(&self, batch: &Batch, is_written: bool) {
        let mut state = self.lock();
        state.done += batch.lines;
        state.is_stalled = false;
        if !is_written {
            state.queue.note_unwritten(batch);
        }
        self.progress.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::super::queue::MAX_LINES;
    use super::*;

    /// A writer whose thread reports each write and then waits to be told how it went.
    fn stepped() -> (&'static Writer, Receiver<String>, Sender<io::Result<()>>) {
        let writer: &'static Writer = Box::leak(Box::new(Writer::new()));
        let ((tell, written), (go, wait)) = (channel(), channel());
        thread::spawn(move || {
            writer.run(|text| {
                tell.send(String::from_utf8_lossy(text).into_owned()).map_err(io::Error::other)?;
                wait.recv().unwrap_or(Ok(()))
            });
        });
        (writer, written, go)
    }

    #[test]
    fn lines_that_come_while_others_are_written_take_one_write() {
        let (writer, written, go) = stepped();
        writer.push(b"first\n");
        assert_eq!(written.recv().unwrap(), "first\n");
        for _ in 0..100 {
            writer.push(b"more\n");
        }
        go.send(Ok(())).unwrap();
        assert_eq!(written.recv().unwrap(), "more\n".repeat(100));
    }

    #[test]
    fn losses_are_reported_as_soon_as_there_is_room() {
        let (writer, written, go) = stepped();
        writer.push(b"first\n");
        written.recv().unwrap();
        for _ in 0..MAX_LINES + 3 {
            writer.push(b"x\n");
        }
        go.send(Ok(())).unwrap();
        let text = written.recv().unwrap();
        assert_eq!(text.lines().count(), MAX_LINES + 1);
        assert!(text.lines().last().unwrap().contains("WARN flightdeck: log lines lost: 3"));
        go.send(Ok(())).unwrap();
        writer.push(b"next\n");
        assert_eq!(written.recv().unwrap(), "next\n", "a loss is reported once");
    }

    #[test]
    fn what_could_not_be_written_is_reported_with_the_next_line() {
        let (writer, written, go) = stepped();
        writer.push(b"first\n");
        written.recv().unwrap();
        go.send(Err(io::ErrorKind::StorageFull.into())).unwrap();
        assert!(writer.flush(), "there is nothing to wait for any more");
        writer.push(b"next\n");
        let text = written.recv().unwrap();
        assert!(text.starts_with("next\n") && text.contains(" log lines lost: 1,"), "{text}");
    }

    #[test]
    fn a_flush_waits_for_what_was_logged_but_not_for_ever_and_not_twice() {
        let (writer, written, go) = stepped();
        assert!(writer.flush());
        writer.push(b"first\n");
        written.recv().unwrap();
        assert!(!writer.flush() && writer.lock().is_stalled && !writer.flush());
        go.send(Ok(())).unwrap();
        writer.push(b"next\n");
        written.recv().unwrap();
        go.send(Ok(())).unwrap();
        assert!(writer.flush());
    }
}
