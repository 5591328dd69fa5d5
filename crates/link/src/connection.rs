//! What the actor of a connection waits on.
//!
//! The actor owns a [`Connection`] and asks it for one [`Event`] at a time; whatever it decides it
//! carries out through [`Connection::reply`] and the [`Outbox`]. Meanwhile the connection writes what
//! is queued, answers pings, watches for silence, and reads large messages off the runtime's threads.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use aip::CloseCode;
use aip::codec::{About, DecodeError, Wire};
use aip::machine::{Liveness, Sign};
use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::Sleep;

use crate::budget::{MIN_BYTES_PER_SECOND, SMALL_MESSAGE_BYTES};
use crate::outbox::{Next, Outbox};
use crate::socket::{Closed, Frame, Incoming, Socket};
use crate::turn;

/// Messages over this size are read on a thread of their own, in order, so that no other connection
/// waits for them.
pub const OFFLOAD_BYTES: usize = 256 * 1024;

/// Replies that may wait to be written before reading pauses: a peer that asks without reading the
/// answers must not make us grow.
const MAX_UNSENT_REPLIES: usize = 128;

/// The same bound in bytes.
const MAX_UNSENT_REPLY_BYTES: usize = 1024 * 1024;

/// The longest goodbye: flushing, our close frame, the peer's.
const LINGER: Duration = Duration::from_secs(10);

/// A connection on which something comes within this time of what came before is busy.
const QUIET: Duration = Duration::from_secs(1);

/// Which way a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From us.
    Out,
    /// To us.
    In,
}

/// Sees every text frame of a connection.
pub type Tap = Arc<dyn Fn(Direction, &Bytes) + Send + Sync>;

/// What happened on a connection.
#[derive(Debug)]
pub enum Event<M> {
    /// A message came.
    Message(M),
    /// Text came that is no message, and what it is about.
    Unreadable(DecodeError, Box<About>),
    /// A binary frame came, which AIP has none of.
    Binary,
    /// The time that the actor asked to be woken at has come.
    Due,
    /// The connection is over; nothing follows.
    Closed(Closed),
}

/// One connection, as its actor sees it.
pub struct Connection<M> {
    socket: Socket,
    outbox: Arc<Outbox>,
    replies: VecDeque<Bytes>,
    reply_bytes: usize,
    /// Whether a message was read since the queue, in which too many wait, last had one taken.
    has_read_on: bool,
    /// Whether a large message was handed to the socket since that had written all.
    is_sending_large: bool,
    /// Since when the socket has had something that it could not write, as of the last look at it.
    stuck_since: Option<Instant>,
    /// When something had last come, as of the last look at whether the connection is quiet.
    looked: Option<Instant>,
    decoding: Option<JoinHandle<Event<M>>>,
    liveness: Liveness,
    timer: Pin<Box<Sleep>>,
    /// When the timer fires; earlier than needed is fine, it is set anew then.
    armed: Instant,
    tap: Option<Tap>,
}

/// How often to ping, and how long to bear silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watch {
    /// Time between pings.
    pub ping_every: Duration,
    /// Silence after which the peer counts as gone.
    pub timeout: Duration,
}

impl<M: Wire> Connection<M> {
    /// Takes over a socket.
    #[must_use]
    pub fn new(socket: Socket, outbox: Arc<Outbox>, watch: Watch, tap: Option<Tap>) -> Self {
        let now = now();
        let liveness = Liveness::new(watch.ping_every, watch.timeout, now);
        let armed = liveness.deadline();
        let timer = Box::pin(tokio::time::sleep_until(armed.into()));
        let replies = VecDeque::new();
        Self {
            socket,
            outbox,
            replies,
            reply_bytes: 0,
            has_read_on: false,
            is_sending_large: false,
            stuck_since: None,
            looked: None,
            decoding: None,
            liveness,
            timer,
            armed,
            tap,
        }
    }

    /// The queue that others send through.
    #[must_use]
    pub fn outbox(&self) -> &Arc<Outbox> {
        &self.outbox
    }

    /// Pings and bears silence in another way from now on.
    pub fn set_watch(&mut self, watch: Watch) {
        self.liveness = Liveness::new(watch.ping_every, watch.timeout, now());
        self.liveness.handle_bytes(self.heard());
        self.arm(self.liveness.deadline());
    }

    /// Sends through another queue from now on.
    pub fn set_outbox(&mut self, outbox: Arc<Outbox>) {
        self.outbox = outbox;
    }

    /// When the last byte came in.
    #[must_use]
    pub fn heard(&self) -> Instant {
        self.socket.heard().into_std()
    }

    /// Sets the size of the largest message that is read, in bytes.
    pub fn set_max_message(&mut self, bytes: usize) {
        self.socket.set_max_message(bytes);
    }

    /// Answers a message: ahead of the outbox, behind the answers before it.
    pub fn reply(&mut self, message: &impl Wire) {
        let frame = message.encode();
        self.reply_bytes += frame.len();
        self.replies.push_back(frame);
    }

    fn pop_reply(&mut self) -> Option<Bytes> {
        let reply = self.replies.pop_front()?;
        self.reply_bytes -= reply.len();
        Some(reply)
    }

    /// Waits for the next event; `wake_at` is when [`Event::Due`] is wanted.
    pub async fn next_event(&mut self, wake_at: Option<Instant>) -> Event<M> {
        if self.decoding.is_none() {
            self.socket.handled();
        }
        std::future::poll_fn(|cx| {
            let polled = self.poll_event(cx, wake_at);
            let is_busy = self.decoding.is_some() || self.is_paused();
            if self.outbox.note_heard(self.heard(), is_busy) {
                self.ping(cx);
            }
            match polled {
                Poll::Ready(_) => self.outbox.forget_waker(),
                Poll::Pending if !is_busy && self.outbox.take_proof(self.heard()) => {
                    return Poll::Ready(Event::Due);
                }
                Poll::Pending => {
                    self.socket.turn().end();
                    self.rest_if_quiet();
                }
            }
            polled
        })
        .await
    }

    /// Has the socket rest once something came that followed on nothing; a busy connection, which would only have to
    /// wake it again, does so when its timer finds it quiet.
    fn rest_if_quiet(&mut self) {
        if self.socket.is_resting() {
            return;
        }
        let heard = self.heard();
        let before = self.looked.replace(heard);
        if before.is_none_or(|before| heard.saturating_duration_since(before) >= QUIET) {
            self.socket.rest();
        }
    }

    /// Pings right away. What goes wrong comes up when the connection is used next.
    fn ping(&mut self, cx: &mut Context<'_>) {
        let sent = self.socket.start_send(Frame::Ping);
        if sent.is_ok() {
            let _comes_up_again = self.socket.poll_flush(cx);
        }
        cx.waker().wake_by_ref();
    }

    /// Ends the connection, politely: sends what is queued, then the close, and waits for the peer's.
    pub async fn close(mut self, code: CloseCode, reason: &str) {
        self.socket.handled();
        let replies = std::mem::take(&mut self.replies);
        for frame in replies.into_iter().chain(self.outbox.take_frames()) {
            if self.send(frame).is_err() {
                break;
            }
        }
        self.socket.close(code, reason, LINGER).await;
    }

    /// Refuses a peer whose first message was too big: see [`Socket::refuse`].
    pub async fn refuse(self, message: &impl Wire, code: CloseCode, reason: &str) {
        let frame = message.encode();
        self.show(Direction::Out, &frame);
        self.socket.refuse(&frame, code, reason, LINGER).await;
    }

    fn poll_event(&mut self, cx: &mut Context<'_>, wake_at: Option<Instant>) -> Poll<Event<M>> {
        // Reading goes first: what has arrived counts, also when the peer is gone and writing fails.
        let (is_over, paused) = (self.socket.turn().is_over(), self.is_paused());
        if is_over {
            self.socket.turn().end();
        } else if let Poll::Ready(event) = self.poll_read(cx) {
            return Poll::Ready(event);
        }
        if let Poll::Ready(closed) = self.poll_write(cx) {
            return Poll::Ready(Event::Closed(closed));
        }
        if is_over {
            turn::come_back(cx);
        } else if paused && let Poll::Ready(event) = self.poll_read(cx) {
            return Poll::Ready(event);
        }
        self.poll_timer(cx, wake_at)
    }

    /// Whether reading waits until answers are written, or until too many messages that wait become fewer: a
    /// peer does not add to them faster than it takes them.
    fn is_paused(&self) -> bool {
        (self.has_read_on && self.outbox.is_crowded())
            || self.replies.len() >= MAX_UNSENT_REPLIES
            || self.reply_bytes >= MAX_UNSENT_REPLY_BYTES
    }

    /// Hands over what is queued, as far as the socket takes it. Ready when the connection is over.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Closed> {
        loop {
            match self.socket.poll_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(closed)) => return Poll::Ready(closed),
                Poll::Pending => return self.poll_abort(cx),
            }
            let next = match self.pop_reply() {
                Some(reply) => Next::Frame(reply),
                None => match self.outbox.poll_next(cx) {
                    Poll::Ready(next) => {
                        self.has_read_on = false;
                        next
                    }
                    Poll::Pending => break,
                },
            };
            match next {
                Next::Frame(frame) => {
                    if let Err(closed) = self.send(frame) {
                        return Poll::Ready(closed);
                    }
                }
                Next::Close(code, reason) => {
                    return Poll::Ready(Closed { code, reason, by_us: true });
                }
            }
        }
        match self.socket.poll_flush(cx) {
            Poll::Ready(Err(closed)) => return Poll::Ready(closed),
            Poll::Ready(Ok(())) => {
                self.is_sending_large = false;
                self.stuck_since = None;
            }
            Poll::Pending => {}
        }
        Poll::Pending
    }

    /// While the socket takes nothing more, only a close that does not wait for it gets through.
    fn poll_abort(&self, cx: &mut Context<'_>) -> Poll<Closed> {
        self.outbox.poll_abort(cx).map(|(code, reason)| Closed { code, reason, by_us: true })
    }

    fn send(&mut self, frame: Bytes) -> Result<(), Closed> {
        self.show(Direction::Out, &frame);
        self.is_sending_large |= frame.len() > SMALL_MESSAGE_BYTES;
        self.socket.start_send(Frame::Text(frame))
    }

    fn show(&self, direction: Direction, frame: &Bytes) {
        if let Some(tap) = &self.tap {
            tap(direction, frame);
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Event<M>> {
        if self.decoding.is_some() {
            return self.poll_decoding(cx);
        }
        if self.is_paused() {
            return Poll::Pending;
        }
        match ready!(self.socket.poll_recv(cx)) {
            Incoming::Text(text) => self.handle_text(cx, text),
            Incoming::Binary => Poll::Ready(Event::Binary),
            Incoming::Closed(closed) => Poll::Ready(Event::Closed(closed)),
        }
    }

    fn handle_text(&mut self, cx: &mut Context<'_>, text: Bytes) -> Poll<Event<M>> {
        self.show(Direction::In, &text);
        self.socket.turn().spend(turn::MESSAGE);
        self.has_read_on = self.outbox.is_crowded();
        if text.len() <= OFFLOAD_BYTES {
            return Poll::Ready(read(&text));
        }
        tracing::debug!(bytes = text.len(), "a large message is read on a thread of its own");
        self.decoding = Some(tokio::task::spawn_blocking(move || read(&text)));
        self.poll_decoding(cx)
    }

    fn poll_decoding(&mut self, cx: &mut Context<'_>) -> Poll<Event<M>> {
        let Some(decoding) = &mut self.decoding else { return Poll::Pending };
        let decoded = ready!(Pin::new(decoding).poll(cx));
        self.decoding = None;
        Poll::Ready(decoded.unwrap_or_else(|_| {
            let error = "reading the message failed inside the program".to_owned();
            Event::Unreadable(DecodeError::Invalid(error), Box::default())
        }))
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>, wake_at: Option<Instant>) -> Poll<Event<M>> {
        let next = wake_at.into_iter().chain(self.look_at()).min();
        if let Some(next) = next.filter(|next| *next < self.armed) {
            self.arm(next);
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = now();
            if wake_at.is_some_and(|wake_at| wake_at <= now) {
                self.arm(self.liveness.deadline());
                return Poll::Ready(Event::Due);
            }
            if let Some(closed) = self.too_slow(now) {
                return Poll::Ready(Event::Closed(closed));
            }
            if self.outbox.lazy_until().is_some_and(|until| until <= now) {
                self.outbox.hurry();
                if let Poll::Ready(closed) = self.poll_write(cx) {
                    return Poll::Ready(Event::Closed(closed));
                }
            }
            if now.saturating_duration_since(self.heard()) >= QUIET {
                self.socket.rest();
            }
            // While it is not read on, its silence says nothing.
            let heard = if self.outbox.is_over() { now } else { self.heard() };
            self.liveness.handle_bytes(heard);
            match self.liveness.poll_sign(now) {
                Sign::Dead => return Poll::Ready(Event::Closed(self.silent(now))),
                Sign::Fine => {}
                Sign::Ping => {
                    if let Err(closed) = self.socket.start_send(Frame::Ping) {
                        return Poll::Ready(Event::Closed(closed));
                    }
                    if let Poll::Ready(Err(closed)) = self.socket.poll_flush(cx) {
                        return Poll::Ready(Event::Closed(closed));
                    }
                }
            }
            let next = wake_at.into_iter().chain(self.look_at());
            self.arm(next.fold(self.liveness.deadline(), Instant::min));
        }
        Poll::Pending
    }

    /// When to ask [`Self::too_slow`], or to hurry, if there is reason to.
    fn look_at(&mut self) -> Option<Instant> {
        let reading = self.slow_at();
        let looks = [reading, self.stuck_at(), self.socket.look_at(), self.outbox.lazy_until()];
        looks.into_iter().flatten().min()
    }

    fn slow_at(&mut self) -> Option<Instant> {
        if !self.outbox.is_over() {
            return None;
        }
        self.outbox.slow_at(self.socket.written().into_std())
    }

    /// When a peer for whom a large message waits has taken nothing for too long.
    fn stuck_at(&mut self) -> Option<Instant> {
        if self.socket.is_flushed() {
            return None;
        }
        let patience = self.outbox.may_keep_room(self.is_sending_large)?;
        let since = *self.stuck_since.get_or_insert_with(now);
        Some(since.max(self.socket.written().into_std()) + patience)
    }

    /// How the connection ends if its peer reads or sends too slowly.
    fn too_slow(&mut self, now: Instant) -> Option<Closed> {
        if self.socket.is_slow(now) {
            return Some(slow_sender());
        }
        let is_due = |at: &Instant| *at <= now;
        if self.slow_at().filter(is_due).is_none() {
            self.stuck_at().filter(is_due)?;
            // The room is its own until somebody wants it.
            if !self.outbox.is_room_wanted() {
                self.stuck_since = Some(now);
                return None;
            }
        }
        let reason = self.outbox.give_up().to_string();
        Some(Closed { code: CloseCode::TOO_SLOW, reason, by_us: true })
    }

    fn arm(&mut self, at: Instant) {
        self.armed = at;
        self.timer.as_mut().reset(at.into());
    }

    fn silent(&self, now: Instant) -> Closed {
        let silence = now.saturating_duration_since(self.liveness.heard()).as_secs();
        let reason = format!("no sign of life for {silence} s");
        Closed { code: CloseCode::NO_LIFE, reason, by_us: true }
    }
}

/// Why a peer is cut that keeps room from others who wait.
fn slow_sender() -> Closed {
    let least = MIN_BYTES_PER_SECOND / 1024;
    let reason = format!("others wait for room, and your message came slower than {least} KiB/s");
    Closed { code: CloseCode::OVERLOADED, reason, by_us: true }
}

fn read<M: Wire>(text: &Bytes) -> Event<M> {
    match M::decode(text) {
        Ok(message) => Event::Message(message),
        Err(error) => Event::Unreadable(error, Box::new(About::of(text))),
    }
}

/// The runtime's clock, which tests can pause, in the type that the state machines take.
#[must_use]
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests;
