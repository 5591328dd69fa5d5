//! What a child writes, as much of it as is kept.

use std::collections::VecDeque;

use aip::message::{Channel, MAX_CHUNK_BYTES};
use bytes::BufMut;
use tokio::io::AsyncReadExt;

use super::child::Output;
use super::telling::Telling;
use crate::flow::Flow;

/// How many bytes are read from a stream at once.
const READ_SIZE: usize = 16 * 1024;

/// How many at first: most commands write little.
const FIRST_READ_SIZE: usize = 4 * 1024;

/// What fraction of the kept output is the end of it; the rest is the beginning.
const TAIL_FRACTION: usize = 4;

/// One output stream of the child, and what is kept of it.
pub(super) struct Stream<Pipe> {
    channel: Channel,
    /// None once its end was read.
    pipe: Option<Pipe>,
    kept: Kept,
}

impl<Pipe: Output> Stream<Pipe> {
    pub(super) fn new(channel: Channel, pipe: Option<Pipe>, max_output: usize) -> Self {
        Self { channel, pipe, kept: Kept::new(max_output) }
    }

    /// Reads to the end of the stream, as fast as the flow takes it, if there is one. May be dropped and called again
    /// without losing a byte.
    pub(super) async fn read_all(&mut self, telling: &Telling<'_>, flow: Option<&Flow>) {
        let read_size = if flow.is_some() { MAX_CHUNK_BYTES } else { READ_SIZE };
        let mut buffer = Vec::with_capacity(FIRST_READ_SIZE);
        let mut is_wide = flow.is_none();
        while let Some(pipe) = &mut self.pipe {
            let most = match flow {
                Some(flow) => flow.room(self.channel).await,
                None => read_size,
            };
            buffer.clear();
            let most = most.min(buffer.capacity());
            match pipe.read_buf(&mut (&mut buffer).limit(most)).await {
                Ok(0) | Err(_) => self.pipe = None,
                Ok(count) => {
                    if count == MAX_CHUNK_BYTES && !std::mem::replace(&mut is_wide, true) {
                        pipe.widen();
                    }
                    self.kept.push(&buffer);
                    telling.keep(self.channel, &buffer);
                    match flow {
                        Some(flow) => flow.push(self.channel, &buffer),
                        None => telling.hear(self.channel, &buffer),
                    }
                    if count == buffer.capacity() {
                        buffer = Vec::with_capacity(read_size);
                    }
                }
            }
        }
    }

    /// Whether there may be more to read, and the flow takes none now.
    pub(super) fn is_held_up(&self, flow: Option<&Flow>) -> bool {
        self.pipe.is_some() && flow.is_some_and(|flow| flow.is_full(self.channel))
    }

    /// What was read so far; to be taken once.
    pub(super) fn take(&mut self, flow: Option<&Flow>) -> Written {
        flow.into_iter().for_each(|flow| flow.push(self.channel, &[]));
        std::mem::replace(&mut self.kept, Kept::new(0)).into_written()
    }
}

/// What a child wrote to one stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// The text: the head and the tail if that was too much. What is no UTF-8 becomes U+FFFD.
    pub text: String,
    /// How many bytes there were in all.
    pub bytes: u64,
    /// Whether some of them are not in the text.
    pub is_cut: bool,
}

/// The head and the tail of a stream of any length, in bounded memory.
struct Kept {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    max_head: usize,
    max_tail: usize,
    /// How many bytes came in all.
    total: u64,
}

impl Kept {
    fn new(max: usize) -> Self {
        let max_tail = max / TAIL_FRACTION;
        let (head, tail) = (Vec::new(), VecDeque::new());
        Self { head, tail, max_head: max - max_tail, max_tail, total: 0 }
    }

    fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let (head, rest) = bytes.split_at(bytes.len().min(self.max_head - self.head.len()));
        self.head.extend_from_slice(head);
        let rest = &rest[rest.len().saturating_sub(self.max_tail)..];
        let excess = (self.tail.len() + rest.len()).saturating_sub(self.max_tail);
        self.tail.drain(..excess);
        self.tail.extend(rest);
    }

    fn into_written(self) -> Written {
        let bytes = self.total;
        let is_cut = (self.head.len() + self.tail.len()) as u64 != bytes;
        Written { text: self.into_text(), bytes, is_cut }
    }

    /// The text, with a line in the place of what was cut. No character is cut in two; what is
    /// no UTF-8 becomes U+FFFD.
    fn into_text(self) -> String {
        let (mut head, tail) = (self.head, Vec::from(self.tail));
        if (head.len() + tail.len()) as u64 == self.total {
            head.extend(tail);
            return text(head);
        }
        head.truncate(head.len() - started_character(&head));
        let tail = &tail[ended_character(&tail)..];
        let cut = self.total - (head.len() + tail.len()) as u64;
        format!("{}\n[... {cut} bytes cut ...]\n{}", text(head), String::from_utf8_lossy(tail))
    }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// How many bytes at the end begin a character whose rest is missing.
fn started_character(bytes: &[u8]) -> usize {
    for (index, byte) in bytes.iter().rev().take(3).enumerate() {
        let length = match byte {
            0x80..=0xBF => continue,
            0xC2..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF4 => 4,
            _ => return 0,
        };
        return if index + 1 < length { index + 1 } else { 0 };
    }
    0
}

/// How many bytes at the beginning end a character whose start is missing.
pub(super) fn ended_character(bytes: &[u8]) -> usize {
    bytes.iter().take(3).take_while(|byte| matches!(byte, 0x80..=0xBF)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_character_is_cut_in_two() {
        for character in ["é", "€", "🙂"] {
            for limit in 1..40 {
                let mut kept = Kept::new(limit);
                let text = character.repeat(30);
                text.as_bytes().chunks(7).for_each(|chunk| kept.push(chunk));
                let shown = kept.into_text();
                assert!(!shown.contains('\u{FFFD}'), "{limit}: {shown}");
                let bytes_shown = shown.matches(character).count() * character.len();
                let marker = format!("[... {} bytes cut ...]", text.len() - bytes_shown);
                assert!(shown.contains(&marker), "{limit}: {shown}");
            }
        }
    }

    #[test]
    fn an_unending_stream_is_kept_in_bounded_memory() {
        let mut kept = Kept::new(10_000);
        (0..1000).for_each(|_| kept.push(&[b'x'; READ_SIZE]));
        assert!(kept.head.capacity() + kept.tail.capacity() < 4 * 10_000);
    }
}
