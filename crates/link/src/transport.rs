//! The bytes under a WebSocket: any stream, with bytes that were read ahead of it, and the time at
//! which something last came in.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};
use tokio::time::Instant;

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
    pub(crate) turn: Turn,
}

impl Transport {
    pub(crate) fn new(stream: impl Stream + 'static, read_ahead: Bytes) -> Self {
        // An empty slice would keep the whole buffer alive that it was cut from.
        let read_ahead = if read_ahead.is_empty() { Bytes::new() } else { read_ahead };
        let stream: Box<dyn Stream> = Box::new(stream);
        Self { stream: stream.take(0), read_ahead, heard: Instant::now(), turn: Turn::default() }
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
            self.turn.spend(n);
        }
        Poll::Ready(written)
    }

    /// When the last byte came in.
    pub(crate) fn heard(&self) -> Instant {
        self.heard
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
        let before = buf.filled().len();
        self.stream.set_limit(PIECE as u64);
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        let n = buf.filled().len() - before;
        if n > 0 {
            self.heard = Instant::now();
            self.turn.spend(n);
        }
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
