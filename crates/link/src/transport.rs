//! The bytes under a WebSocket: any stream, with bytes that were read ahead of it. It knows when something
//! last came in and went out, takes room for large messages as they come, and pauses when it is the others'
//! turn.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};
use tokio::time::Instant;

use crate::budget::{Budget, Reader, SMALL_MESSAGE_BYTES};
use crate::turn::{self, PIECE, Turn};

/// A stream of bytes in both directions.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

pub(crate) struct Transport {
    /// Bounded anew before each read.
    stream: Take<Box<dyn Stream>>,
    /// What whoever upgraded the connection had read too far.
    read_ahead: Bytes,
    heard: Instant,
    written: Instant,
    pub(crate) turn: Turn,
    /// Where large messages take room, if anywhere.
    budget: Option<Budget>,
    /// What came since the last message was complete, in bytes.
    unfinished: usize,
    /// The room of a large message that comes, or is being handled.
    reader: Option<Box<Reader>>,
}

impl Transport {
    pub(crate) fn new(stream: impl Stream + 'static, read_ahead: Bytes) -> Self {
        // An empty slice would keep the whole buffer alive that it was cut from.
        let read_ahead = if read_ahead.is_empty() { Bytes::new() } else { read_ahead };
        let stream: Box<dyn Stream> = Box::new(stream);
        let now = Instant::now();
        Self {
            stream: stream.take(0),
            read_ahead,
            heard: now,
            written: now,
            turn: Turn::default(),
            budget: None,
            unfinished: 0,
            reader: None,
        }
    }

    /// Pending, for once, when it is the others' turn.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.turn.is_over() {
            return Poll::Ready(());
        }
        self.turn.end();
        turn::come_back(cx);
        Poll::Pending
    }

    fn note_written(&mut self, written: io::Result<usize>) -> Poll<io::Result<usize>> {
        if let Ok(n) = written {
            self.written = Instant::now();
            self.turn.spend(n);
        }
        Poll::Ready(written)
    }

    /// When the last byte came in; now, while there is no room to read any.
    pub(crate) fn heard(&self) -> Instant {
        if self.is_waiting() { Instant::now() } else { self.heard }
    }

    /// When the peer, or the system on its behalf, last took a byte.
    pub(crate) fn written(&self) -> Instant {
        self.written
    }

    /// Has large messages take room from a budget.
    pub(crate) fn set_budget(&mut self, budget: Budget) {
        self.budget = Some(budget);
    }

    fn is_waiting(&self) -> bool {
        self.reader.as_ref().is_some_and(|reader| reader.is_waiting())
    }

    /// Waits for room for what comes next of a large message. Returns how much may be read, in bytes.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        let Some(budget) = &self.budget else { return Poll::Ready(PIECE) };
        if self.unfinished < SMALL_MESSAGE_BYTES {
            return Poll::Ready(PIECE.min(SMALL_MESSAGE_BYTES - self.unfinished));
        }
        let waited = self.is_waiting();
        let reader = self.reader.get_or_insert_with(|| Box::new(budget.reader()));
        ready!(reader.poll_room(cx, self.unfinished + PIECE));
        if waited {
            self.heard = Instant::now();
        }
        Poll::Ready(PIECE)
    }

    fn note_read(&mut self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        self.heard = Instant::now();
        self.turn.spend(bytes);
        self.unfinished += bytes;
        if let Some(reader) = &mut self.reader {
            reader.note_bytes(bytes);
        }
    }

    /// A message is complete. It has its room until [`Self::handled`].
    pub(crate) fn complete(&mut self) {
        self.unfinished = 0;
    }

    /// A frame of this size, in bytes, belongs to no message.
    pub(crate) fn skip(&mut self, frame: usize) {
        self.unfinished = self.unfinished.saturating_sub(frame);
    }

    /// The last message is dealt with, and takes no room any more.
    pub(crate) fn handled(&mut self) {
        if self.unfinished == 0 && self.reader.is_some() {
            self.reader = None;
        }
    }

    /// When to ask [`Self::is_slow`], while a large message comes.
    pub(crate) fn look_at(&self) -> Option<std::time::Instant> {
        let reader = self.reader.as_ref().filter(|_| self.unfinished > 0)?;
        Some(reader.look_at())
    }

    /// Whether the message that comes is so slow that it keeps its room from others who wait.
    pub(crate) fn is_slow(&mut self, now: std::time::Instant) -> bool {
        let is_coming = self.unfinished > 0;
        self.reader.as_mut().filter(|_| is_coming).is_some_and(|reader| reader.is_slow(now))
    }
}

/// As many of the first buffers as fit whole into a piece.
fn whole<'a, 'b>(bufs: &'a [IoSlice<'b>]) -> &'a [IoSlice<'b>] {
    let mut room = PIECE;
    let fits = |buf: &&IoSlice<'_>| {
        let left = room.checked_sub(buf.len());
        room = left.unwrap_or(0);
        left.is_some()
    };
    &bufs[..bufs.iter().take_while(fits).count()]
}

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.read_ahead.is_empty() {
            let n = self.read_ahead.len().min(buf.remaining());
            buf.put_slice(&self.read_ahead[..n]);
            self.read_ahead.advance(n);
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_turn(cx));
        let most = ready!(self.poll_room(cx));
        let before = buf.filled().len();
        self.stream.set_limit(most as u64);
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.note_read(buf.filled().len() - before);
        polled
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_turn(cx));
        let piece = &buf[..buf.len().min(PIECE)];
        let written = ready!(Pin::new(self.stream.get_mut()).poll_write(cx, piece));
        self.note_written(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let piece = match whole(bufs) {
            [] => return self.poll_write(cx, bufs.first().map_or(&[], |buf| buf)),
            piece => piece,
        };
        ready!(self.poll_turn(cx));
        let written = ready!(Pin::new(self.stream.get_mut()).poll_write_vectored(cx, piece));
        self.note_written(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.get_ref().is_write_vectored()
    }
}
