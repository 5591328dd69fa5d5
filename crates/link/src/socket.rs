//! A stream of frames: over WebSocket, or an in-memory pair for tests.
//!
//! The only module that knows the WebSocket library. Everything is polled, so that one task can read
//! and write at once: an actor that waited for its writes would stop reading, and two of them would
//! stop for ever.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use aip::CloseCode;
use bytes::Bytes;
use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_websockets::{ClientBuilder, Config, Error, Limits, Message, WebSocketStream};

use self::resting::Resting;
use crate::budget::Budget;
use crate::memory::MemoryEnd;
use crate::transport::{self, Transport};
use crate::turn::Turn;

/// Pings that may wait for their pong to be written before reading pauses: a peer that pings without
/// reading must not make us grow.
const MAX_UNSENT_PONGS: usize = 64;

/// A message from this size on is kept alive until the next read, so that the WebSocket library
/// cannot reuse its memory as the connection's read buffer for ever.
const LARGE_FRAME_BYTES: usize = 64 * 1024;

/// The longest reason that fits a close frame, in bytes.
const MAX_REASON_BYTES: usize = 123;

/// A frame to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A message: UTF-8.
    Text(Bytes),
    /// Are you there?
    Ping,
    /// Yes. The WebSocket library sends these by itself.
    Pong,
    /// The end, with its reason.
    Close(CloseCode, String),
}

/// What came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// A text message.
    Text(Bytes),
    /// A binary message, which AIP has none of.
    Binary,
    /// Nothing more will come.
    Closed(Closed),
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// The code of the close frame; 1005 when it had none, 1006 when none came.
    pub code: CloseCode,
    /// The reason of the close frame, or what broke.
    pub reason: String,
    /// Whether we closed, not the peer or the network.
    pub by_us: bool,
}

impl Closed {
    pub(crate) fn lost(reason: impl Into<String>) -> Self {
        Self { code: CloseCode(1006), reason: reason.into(), by_us: false }
    }
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.reason.is_empty() {
            write!(f, "{}", self.code)
        } else {
            write!(f, "{}: {}", self.code, self.reason)
        }
    }
}

/// One end of a connection.
pub struct Socket {
    kind: Kind,
}

enum Kind {
    WebSocket(Box<WebSocket>),
    Resting(Box<Resting>),
    Memory(Box<InMemory>),
}

struct InMemory {
    end: MemoryEnd,
    turn: Turn,
    written: Instant,
}

struct WebSocket {
    stream: WebSocketStream<Transport>,
    /// Whether we have queued nothing yet.
    is_fresh: bool,
    /// Whether all that was queued is written.
    is_flushed: bool,
    /// Whether the library has no whole frame that it has not handed out.
    is_drained: bool,
    unsent_pongs: usize,
    /// Whether the peer's close frame was read.
    has_peer_closed: bool,
    /// See [`LARGE_FRAME_BYTES`].
    last_large: Option<Box<Bytes>>,
}

impl Socket {
    /// The server's end of a connection whose upgrade is done. `read_ahead` is what was read beyond
    /// the upgrade request.
    pub fn server<S>(stream: S, read_ahead: Bytes, max_message: usize) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let transport = Transport::new(stream, read_ahead).following(max_message);
        Self { kind: Kind::Resting(Box::new(Resting::new(transport))) }
    }

    /// The client's end of a connection whose upgrade is done. `read_ahead` is what was read beyond the server's
    /// answer.
    pub(crate) fn client(
        stream: impl transport::Stream + 'static,
        read_ahead: Bytes,
        max_message: usize,
    ) -> Self {
        let stream = ClientBuilder::new()
            .config(config())
            .limits(Limits::default().max_payload_len(Some(max_message)))
            .take_over(Transport::new(stream, read_ahead));
        let socket = Box::new(WebSocket::new(stream, true));
        Self { kind: Kind::WebSocket(socket) }
    }

    pub(crate) fn memory(end: MemoryEnd) -> Self {
        Self {
            kind: Kind::Memory(Box::new(InMemory {
                end,
                turn: Turn::default(),
                written: Instant::now(),
            })),
        }
    }

    /// Sets the size of the largest message that is read, in bytes.
    pub fn set_max_message(&mut self, bytes: usize) {
        match &mut self.kind {
            Kind::WebSocket(socket) => {
                socket.stream.limits_mut().set_max_payload_len(Some(bytes));
                socket.stream.get_mut().set_max_message(bytes);
            }
            Kind::Resting(resting) => resting.transport.set_max_message(bytes),
            Kind::Memory(memory) => memory.end.set_max_message(bytes),
        }
    }

    /// Has large messages take room from a budget. An in-memory end has them whole already.
    pub fn set_budget(&mut self, budget: Budget) {
        if let Some(transport) = self.transport_mut() {
            transport.set_budget(budget);
        }
    }

    /// The last message is dealt with, and takes no room any more.
    pub(crate) fn handled(&mut self) {
        if let Some(transport) = self.transport_mut() {
            transport.handled();
        }
    }

    /// Takes no more room, and gives back what it has: nothing that comes is a message any more.
    fn release(&mut self) {
        if let Some(transport) = self.transport_mut() {
            transport.release();
        }
    }

    /// When to ask [`Self::is_slow`], while a large message comes.
    pub(crate) fn look_at(&self) -> Option<std::time::Instant> {
        self.transport().and_then(Transport::look_at)
    }

    /// Whether the message that comes is so slow that it keeps its room from others who wait.
    pub(crate) fn is_slow(&mut self, now: std::time::Instant) -> bool {
        self.transport_mut().is_some_and(|transport| transport.is_slow(now))
    }

    /// When the peer last took a byte.
    pub(crate) fn written(&mut self) -> Instant {
        match &mut self.kind {
            Kind::WebSocket(socket) => socket.stream.get_mut().written(),
            Kind::Resting(resting) => resting.transport.written(),
            Kind::Memory(memory) => memory.written,
        }
    }

    fn transport(&self) -> Option<&Transport> {
        match &self.kind {
            Kind::WebSocket(socket) => Some(socket.stream.get_ref()),
            Kind::Resting(resting) => Some(&resting.transport),
            Kind::Memory(_) => None,
        }
    }

    fn transport_mut(&mut self) -> Option<&mut Transport> {
        match &mut self.kind {
            Kind::WebSocket(socket) => Some(socket.stream.get_mut()),
            Kind::Resting(resting) => Some(&mut resting.transport),
            Kind::Memory(_) => None,
        }
    }

    /// What was done here since others had their turn.
    pub(crate) fn turn(&mut self) -> &mut Turn {
        match &mut self.kind {
            Kind::WebSocket(socket) => &mut socket.stream.get_mut().turn,
            Kind::Resting(resting) => &mut resting.transport.turn,
            Kind::Memory(memory) => &mut memory.turn,
        }
    }

    /// When the last byte came in.
    #[must_use]
    pub fn heard(&self) -> Instant {
        match &self.kind {
            Kind::WebSocket(socket) => socket.stream.get_ref().heard(),
            Kind::Resting(resting) => resting.transport.heard(),
            Kind::Memory(memory) => memory.end.heard(),
        }
    }

    /// Waits until a frame can be queued without piling up.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        match &mut self.kind {
            Kind::WebSocket(socket) => {
                ready!(Pin::new(&mut socket.stream).poll_ready(cx))
                    .map_err(|error| lost(&error))?;
                socket.unsent_pongs = 0;
                Poll::Ready(Ok(()))
            }
            Kind::Memory(memory) => memory.end.poll_ready(cx),
            Kind::Resting(_) => Poll::Ready(Ok(())),
        }
    }

    /// Queues a frame; call [`Self::poll_ready`] before and [`Self::poll_flush`] after it.
    ///
    /// # Errors
    /// When the connection is closed.
    pub fn start_send(&mut self, frame: Frame) -> Result<(), Closed> {
        self.wake();
        match &mut self.kind {
            Kind::WebSocket(socket) => {
                let sent = Pin::new(&mut socket.stream).start_send(message(frame));
                socket.is_fresh &= sent.is_err();
                socket.is_flushed = false;
                sent.map_err(|error| lost(&error))
            }
            Kind::Memory(memory) => {
                memory.written = Instant::now();
                memory.end.start_send(frame)
            }
            Kind::Resting(_) => Ok(()),
        }
    }

    /// Writes out what is queued.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        let Kind::WebSocket(socket) = &mut self.kind else { return Poll::Ready(Ok(())) };
        ready!(Pin::new(&mut socket.stream).poll_flush(cx)).map_err(|error| lost(&error))?;
        socket.is_flushed = true;
        Poll::Ready(Ok(()))
    }

    /// Waits for what comes in next. Pings are answered on the way.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Incoming> {
        if let Kind::Resting(resting) = &mut self.kind {
            if let Err(error) = ready!(resting.transport.poll_ahead(cx)) {
                return Poll::Ready(Incoming::Closed(lost(&Error::Io(error))));
            }
            self.wake();
        }
        match &mut self.kind {
            Kind::WebSocket(socket) => socket.poll_recv(cx),
            Kind::Memory(memory) => memory.end.poll_recv(cx),
            Kind::Resting(_) => Poll::Pending,
        }
    }
}

impl WebSocket {
    fn new(stream: WebSocketStream<Transport>, is_fresh: bool) -> Self {
        Self {
            stream,
            is_fresh,
            is_flushed: true,
            is_drained: true,
            unsent_pongs: 0,
            has_peer_closed: false,
            last_large: None,
        }
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Incoming> {
        loop {
            if self.unsent_pongs >= MAX_UNSENT_PONGS {
                match ready!(Pin::new(&mut self.stream).poll_ready(cx)) {
                    Ok(()) => self.unsent_pongs = 0,
                    Err(error) => return Poll::Ready(Incoming::Closed(lost(&error))),
                }
            }
            let polled = Pin::new(&mut self.stream).poll_next(cx);
            self.is_drained = polled.is_pending();
            self.last_large = None;
            let message = match ready!(polled) {
                Some(Ok(message)) => message,
                Some(Err(error)) => return Poll::Ready(Incoming::Closed(lost(&error))),
                None => return Poll::Ready(Incoming::Closed(Closed::lost("connection lost"))),
            };
            if let Some(incoming) = self.read(message) {
                return Poll::Ready(incoming);
            }
        }
    }

    fn read(&mut self, message: Message) -> Option<Incoming> {
        if let Some((code, reason)) = message.as_close() {
            self.has_peer_closed = true;
            let (code, reason) = (CloseCode(code.into()), reason.to_owned());
            return Some(Incoming::Closed(Closed { code, reason, by_us: false }));
        }
        if message.is_text() {
            let text = Bytes::from(message.into_payload());
            if text.len() >= LARGE_FRAME_BYTES {
                self.last_large = Some(Box::new(text.clone()));
            }
            return Some(Incoming::Text(text));
        }
        if message.is_ping() {
            self.unsent_pongs += 1;
            self.is_flushed = false;
        }
        message.is_binary().then_some(Incoming::Binary)
    }
}

/// One frame a message: the peer can then read it into memory of the right size at once.
fn config() -> Config {
    Config::default().frame_size(usize::MAX)
}

fn message(frame: Frame) -> Message {
    match frame {
        Frame::Text(text) => Message::text(text),
        Frame::Ping => Message::ping(Bytes::new()),
        Frame::Pong => Message::pong(Bytes::new()),
        Frame::Close(code, reason) => {
            Message::close(Some(sendable(code)), cut(&reason, MAX_REASON_BYTES))
        }
    }
}

/// The code as a close frame may carry it: those that stand for "none came" never travel.
fn sendable(code: CloseCode) -> tokio_websockets::CloseCode {
    tokio_websockets::CloseCode::try_from(code.0)
        .ok()
        .filter(|code| !code.is_reserved())
        .unwrap_or(tokio_websockets::CloseCode::NORMAL_CLOSURE)
}

/// The beginning of a text, at most `bytes` long.
fn cut(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

fn lost(error: &Error) -> Closed {
    match error {
        Error::PayloadTooLong { max_len, .. } => Closed {
            code: CloseCode::TOO_BIG,
            reason: format!("a message may have at most {max_len} bytes"),
            by_us: true,
        },
        Error::Protocol(error) => {
            Closed { code: CloseCode(1002), reason: error.to_string(), by_us: true }
        }
        error => Closed::lost(error.to_string()),
    }
}

mod closing;
mod resting;

#[cfg(test)]
mod tests;
