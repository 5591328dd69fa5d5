//! Log lines that wait to be written, within bounds, and the count of those that found no room.

/// Most lines that wait.
pub(super) const MAX_LINES: usize = 8192;

/// Most bytes that wait. As many may be on their way to standard error.
pub(super) const MAX_BYTES: usize = 1024 * 1024;

/// What waits, as one text, so that it takes one write.
#[derive(Debug)]
pub(super) struct Queue {
    text: Vec<u8>,
    lines: usize,
    lost: u64,
}

/// What is written next.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) text: Vec<u8>,
    pub(super) lines: u64,
    /// Lines that were lost behind it.
    pub(super) lost: u64,
}

impl Queue {
    pub(super) const fn new() -> Self {
        Self { text: Vec::new(), lines: 0, lost: 0 }
    }

    /// Takes a line, or counts it as lost. Returns whether there was room.
    pub(super) fn push(&mut self, line: &[u8]) -> bool {
        let has_room = self.lines < MAX_LINES && self.text.len() + line.len() <= MAX_BYTES;
        if has_room {
            self.text.extend_from_slice(line);
            self.lines += 1;
        } else {
            self.lost += 1;
        }
        has_room
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.lines == 0
    }

    /// Empties the queue. Returns all that waited, and the losses to report.
    pub(super) fn take(&mut self) -> Batch {
        let Self { text, lines, lost } = std::mem::replace(self, Self::new());
        Batch { text, lines: lines as u64, lost }
    }

    /// Counts a batch that could not be written as lost, and its losses as not yet reported.
    pub(super) fn note_unwritten(&mut self, batch: &Batch) {
        self.lost += batch.lines + batch.lost;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_one_text_in_the_order_in_which_it_came() {
        let mut queue = Queue::new();
        assert!(queue.push(b"one\n") && queue.push(b"two\n") && !queue.is_empty());
        let batch = queue.take();
        assert_eq!((&*batch.text, batch.lines, batch.lost), (&b"one\ntwo\n"[..], 2, 0));
        assert!(queue.is_empty());
    }

    #[test]
    fn lines_beyond_either_bound_are_lost_and_counted_once() {
        let mut queue = Queue::new();
        assert_eq!((0..MAX_LINES + 5).filter(|_| queue.push(b"x\n")).count(), MAX_LINES);
        assert_eq!(queue.take().lost, 5);
        assert!(queue.push(&vec![b'x'; MAX_BYTES]) && !queue.push(b"x"));
        assert_eq!((queue.take().lost, queue.take().lost), (1, 0));
    }

    #[test]
    fn a_batch_that_was_not_written_counts_as_lost_with_the_losses_it_reported() {
        let mut queue = Queue { lost: 3, ..Queue::new() };
        queue.push(b"x\n");
        let batch = queue.take();
        queue.note_unwritten(&batch);
        assert!(queue.is_empty());
        assert_eq!(queue.take().lost, 4);
    }
}
