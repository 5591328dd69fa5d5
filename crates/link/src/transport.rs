//! The bytes under a WebSocket: any stream, with bytes that were read ahead of it. It knows when something
//! last came in and went out, takes room for large messages as they come, and pauses when it is the others'
//! turn.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};
use tokio::time::Instant;

use crate::budget::{Budget, Reader, SMALL_MESSAGE_BYTES};
use crate::frames::Frames;
use crate::turn::{self, PIECE, Turn};

/// The most that is read at once while there is no library to read, in bytes.
const AHEAD_BYTES: usize = 4096;

/// A stream of bytes in both directions.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

pub(crate) struct Transport {
    /// Bounded anew before each read.
    stream: Take<Box<dyn Stream>>,
    /// What was read beyond the upgrade request, or before there was a library to read it.
    read_ahead: Option<Box<Bytes>>,
    heard: Instant,
    /// When it was last asked when the peer took a byte, and the peer had.
    written: Instant,
    /// Whether it took one since.
    has_written: bool,
    pub(crate) turn: Turn,
    /// Where large messages take room, if anywhere.
    budget: Option<Budget>,
    /// Where the frames of a client stand, at a server's end.
    frames: Option<Frames>,
    /// The largest message that is read, in bytes.
    max_message: usize,
    /// The room of a large message that comes, or is being handled.
    reader: Option<Box<Reader>>,
}

impl Transport {
    pub(crate) fn new(stream: impl Stream + 'static, read_ahead: Bytes) -> Self {
        // An empty slice would keep the whole buffer alive that it was cut from.
        let read_ahead = (!read_ahead.is_empty()).then(|| Box::new(read_ahead));
        Self { read_ahead, ..Self::at(Instant::now(), Box::new(stream)) }
    }

    fn at(now: Instant, stream: Box<dyn Stream>) -> Self {
        Self {
            stream: stream.take(0),
            read_ahead: None,
            heard: now,
            written: now,
            has_written: false,
            turn: Turn::default(),
            budget: None,
            frames: None,
            max_message: 0,
            reader: None,
        }
    }

    /// Takes it away. What stays in its place is at its end.
    pub(crate) fn take(&mut self) -> Self {
        let ended = Self::at(self.heard, Box::new(tokio::io::empty()));
        std::mem::replace(self, ended)
    }

    /// Reads what has come, before there is a library to read it: it is read ahead.
    pub(crate) fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.read_ahead.is_none() {
            let mut room = [MaybeUninit::uninit(); AHEAD_BYTES];
            let mut buf = ReadBuf::uninit(&mut room);
            ready!(self.poll_stream(cx, &mut buf))?;
            // At the end of the stream the library comes to it once more.
            if !buf.filled().is_empty() {
                self.read_ahead = Some(Box::new(Bytes::copy_from_slice(buf.filled())));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads from the stream, when it is our turn and there is room.
    fn poll_stream(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_turn(cx));
        let most = ready!(self.poll_room(cx));
        // What comes behind a large message is another's.
        let left = self.frames.as_ref().and_then(Frames::large_left);
        let most = left.map_or(most, |left| most.min(left));
        let before = buf.filled().len();
        self.stream.set_limit(most as u64);
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.note_read(buf.filled().len() - before);
        polled
    }

    /// Follows the frames that come, and reads none of a message over this size, in bytes.
    pub(crate) fn following(self, max_message: usize) -> Self {
        Self { frames: Some(Frames::default()), max_message, ..self }
    }

    /// Whether the library holds no part of a frame or of a message, as far as frames are followed.
    pub(crate) fn is_between_messages(&self) -> bool {
        self.frames.as_ref().is_some_and(|frames| !frames.is_amid())
    }

    /// Whether a message has begun to come, if only with the header of a large frame.
    fn is_coming(&self) -> bool {
        self.unfinished() > 0
            || self.frames.as_ref().is_some_and(|frames| frames.large_left().is_some())
    }

    /// Whether a part of a large message has come.
    pub(crate) fn is_amid_large(&self) -> bool {
        self.unfinished() > SMALL_MESSAGE_BYTES
    }

    /// What has come of a message that is not complete, in bytes.
    fn unfinished(&self) -> usize {
        self.frames.as_ref().map_or(0, Frames::message)
    }

    /// The size of the largest message that is read, in bytes.
    pub(crate) const fn max_message(&self) -> usize {
        self.max_message
    }

    /// Sets it.
    pub(crate) const fn set_max_message(&mut self, bytes: usize) {
        self.max_message = bytes;
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
            self.has_written = true;
            self.turn.spend(n);
        }
        Poll::Ready(written)
    }

    /// When the last byte came in; now, while there is no room to read any.
    pub(crate) fn heard(&self) -> Instant {
        if self.is_waiting() { Instant::now() } else { self.heard }
    }

    /// When the peer, or the system on its behalf, last took a byte; now, if it did since this was asked before. So
    /// no write has to ask for the time.
    pub(crate) fn written(&mut self) -> Instant {
        if std::mem::take(&mut self.has_written) {
            self.written = Instant::now();
        }
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
        let unfinished = self.unfinished();
        if unfinished < SMALL_MESSAGE_BYTES {
            return Poll::Ready(PIECE.min(SMALL_MESSAGE_BYTES - unfinished));
        }
        let waited = self.is_waiting();
        let reader = self.reader.get_or_insert_with(|| Box::new(budget.reader()));
        ready!(reader.poll_room(cx, unfinished + PIECE));
        if waited {
            self.heard = Instant::now();
        }
        Poll::Ready(PIECE)
    }

    /// Passes on what was read ahead. A large frame waits until the library may take the memory for it.
    fn poll_read_ahead(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<()> {
        let Some(ahead) = &self.read_ahead else { return Poll::Ready(()) };
        let came = ahead.slice(..ahead.len().min(buf.remaining()));
        let (mut passed, large) = self.follow(&came, false);
        if let Some(payload) = large.filter(|_| passed == 0) {
            ready!(self.poll_announced(cx, payload));
            (passed, _) = self.follow(&came, true);
        }
        buf.put_slice(&came[..passed]);
        if let Some(ahead) = &mut self.read_ahead {
            ahead.advance(passed);
        }
        self.read_ahead.take_if(|ahead| ahead.is_empty());
        Poll::Ready(())
    }

    /// See [`Frames::follow`]. Without a budget any frame may come.
    fn follow(&mut self, came: &[u8], may_be_large: bool) -> (usize, Option<usize>) {
        let may_be_large = may_be_large || self.budget.is_none();
        let frames = self.frames.as_mut();
        frames.map_or((came.len(), None), |frames| frames.follow(came, may_be_large))
    }

    /// Waits until the library may take the memory for a large frame. One that is too large it refuses.
    fn poll_announced(&mut self, cx: &mut Context<'_>, payload: usize) -> Poll<()> {
        let budget = self.budget.as_ref().filter(|_| payload <= self.max_message);
        let Some(budget) = budget else { return Poll::Ready(()) };
        let waited = self.is_waiting();
        let reader = self.reader.get_or_insert_with(|| Box::new(budget.reader()));
        ready!(reader.poll_announced(cx, payload));
        if waited {
            self.heard = Instant::now();
        }
        Poll::Ready(())
    }

    fn note_read(&mut self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        self.heard = Instant::now();
        self.turn.spend(bytes);
        if let Some(reader) = &mut self.reader {
            reader.note_bytes(bytes);
        }
    }

    /// The last message is dealt with, and takes no room any more.
    pub(crate) fn handled(&mut self) {
        // What has come of the next one takes room anew.
        if self.frames.as_mut().is_some_and(Frames::take_completed) {
            self.reader.take_if(|reader| !reader.is_waiting());
        }
    }

    /// Nothing that comes is a message any more: it takes no room, and what has come of one gives back its.
    pub(crate) fn release(&mut self) {
        self.reader = None;
        self.budget = None;
    }

    /// When to ask [`Self::is_slow`], while a large message comes.
    pub(crate) fn look_at(&self) -> Option<std::time::Instant> {
        let reader = self.reader.as_ref().filter(|_| self.is_coming())?;
        Some(reader.look_at())
    }

    /// Whether the message that comes is so slow that it keeps its room from others who wait.
    pub(crate) fn is_slow(&mut self, now: std::time::Instant) -> bool {
        let is_coming = self.is_coming();
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
        if self.read_ahead.is_none() {
            let before = buf.filled().len();
            ready!(self.poll_stream(cx, buf))?;
            let came = &buf.filled()[before..];
            let (passed, _) = self.follow(came, false);
            if passed < came.len() {
                self.read_ahead = Some(Box::new(Bytes::copy_from_slice(&came[passed..])));
                buf.set_filled(before + passed);
            }
            if passed > 0 || self.read_ahead.is_none() {
                return Poll::Ready(Ok(()));
            }
        }
        self.poll_read_ahead(cx, buf).map(Ok)
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
