//! The streams of one command: what it wrote and its requester has not taken yet, and the input that it has not read.
//!
//! Both are bounded by the window: nothing more is read of a pipe whose window is full, so a requester that takes its
//! time slows the command, as a pipe would. What was not taken is kept, and said again after a loss. Where it goes, and
//! on which connection, is the executor's matter; which pipes there are, that of `process`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aip::CallId;
use aip::message::{
    Channel, Chunk, Data, Downstream, Input, InputTaken, MAX_CHUNK_BYTES, OutputTaken, Streams,
    Upstream, whole_characters,
};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long it is waited for more output before some is said, and how much of it is enough.
const GATHER_TIME: Duration = Duration::from_millis(1);
const GATHER_BYTES: usize = MAX_CHUNK_BYTES / 2;

/// How many bytes of output one message has at most: behind a program that writes much each message costs three processes
/// something.
const MESSAGE_BYTES: usize = 2 * MAX_CHUNK_BYTES;

/// Least time between two repeats that were asked for.
const REPEAT_PAUSE: Duration = Duration::from_secs(1);

/// How long the output of a command that was stopped waits to be taken: what became of it is told within the ten seconds
/// that a server waits for that.
pub(crate) const STOPPED_WAIT: Duration = Duration::from_secs(5);

/// The streams of one command. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Flow(Arc<Shared>);

struct Shared {
    call_id: Option<CallId>,
    streams: Streams,
    state: Mutex<State>,
    /// There is something to be said.
    news: Notify,
    /// A window has room again, or input has come.
    moved: Notify,
}

#[derive(Default)]
struct State {
    /// Whether there is a program that writes.
    has_begun: bool,
    sides: [Side; 2],
    input: Inflow,
    /// When what was not taken is said again, and when it was last.
    repeat_at: Option<Instant>,
    repeated_at: Option<Instant>,
}

/// What is kept of one stream of output.
#[derive(Default)]
struct Side {
    /// What was not taken, oldest first.
    kept: VecDeque<Piece>,
    /// How many of these were said on the present connection.
    said: usize,
    /// The beginning of a character.
    rest: Vec<u8>,
    /// How many pieces there were.
    n: u64,
    /// How many bytes were made pieces.
    cut: u64,
    taken: u64,
    is_over: bool,
}

struct Piece {
    n: u64,
    offset: u64,
    bytes: Vec<u8>,
    is_end: bool,
    /// Whether it was said: a repeat is the same.
    is_known: bool,
}

/// What is kept of the input.
#[derive(Default)]
struct Inflow {
    waiting: VecDeque<Vec<u8>>,
    received: u64,
    /// How much the program's pipe has taken.
    written: u64,
    has_end: bool,
    is_closed: bool,
    /// Whether the requester is to be told how much was taken.
    is_news: bool,
}

impl Flow {
    /// The streams of a command, if its requester wants any while it runs.
    pub(crate) fn of(streams: Streams, call_id: Option<CallId>) -> Option<Self> {
        let shared = Shared {
            call_id,
            streams,
            state: Mutex::default(),
            news: Notify::new(),
            moved: Notify::new(),
        };
        streams.is_live().then(|| Self(Arc::new(shared)))
    }

    /// Whether all output is sent as it comes.
    pub(crate) fn takes_output(&self) -> bool {
        self.0.streams.output
    }

    /// Whether the requester sends standard input.
    pub(crate) fn has_input(&self) -> bool {
        self.0.streams.input
    }

    /// A program runs.
    pub(crate) fn begin(&self) {
        let mut state = self.lock();
        state.has_begun = true;
        state.input.is_news = self.has_input();
        for side in &mut state.sides {
            side.is_over = !self.takes_output();
        }
        self.0.news.notify_one();
    }

    /// Waits until more may be read of a stream, and says how many bytes.
    pub(crate) async fn room(&self, channel: Channel) -> usize {
        loop {
            let moved = self.0.moved.notified();
            let room = self.room_now(channel);
            if room > 0 {
                return room;
            }
            moved.await;
        }
    }

    /// Whether nothing more can be read of a stream until some of it is taken.
    pub(crate) fn is_full(&self, channel: Channel) -> bool {
        self.room_now(channel) == 0
    }

    fn room_now(&self, channel: Channel) -> usize {
        let untaken = self.lock().sides[channel as usize].untaken();
        let room = u64::from(self.0.streams.window()).saturating_sub(untaken);
        usize::try_from(room).unwrap_or(MAX_CHUNK_BYTES).min(MAX_CHUNK_BYTES)
    }

    /// Takes what was read of a stream; nothing, at its end.
    pub(crate) fn push(&self, channel: Channel, bytes: &[u8]) {
        let mut state = self.lock();
        let side = &mut state.sides[channel as usize];
        side.push(bytes);
        self.0.news.notify_one();
    }

    /// Waits for the next part of the input; `None` at its end.
    pub(crate) async fn next_input(&self) -> Option<Vec<u8>> {
        loop {
            let moved = self.0.moved.notified();
            {
                let mut state = self.lock();
                if let Some(bytes) = state.input.waiting.pop_front() {
                    return Some(bytes);
                }
                if state.input.has_end {
                    return None;
                }
            }
            moved.await;
        }
    }

    /// The program's pipe has taken so many bytes of input more.
    pub(crate) fn input_written(&self, bytes: usize) {
        let mut state = self.lock();
        state.input.written += bytes as u64;
        state.input.is_news = true;
        self.0.news.notify_one();
    }

    /// The program reads no more.
    pub(crate) fn close_input(&self) {
        let mut state = self.lock();
        state.input.waiting.clear();
        (state.input.is_closed, state.input.is_news) = (true, true);
        self.0.news.notify_one();
    }

    /// The requester says what it took, or sends input.
    pub(crate) fn handle(&self, downstream: &Downstream) {
        match downstream {
            Downstream::Taken(taken) => self.handle_taken(taken),
            Downstream::Input(input) => self.handle_input(input),
        }
        self.0.news.notify_one();
        self.0.moved.notify_waiters();
    }

    fn handle_taken(&self, taken: &OutputTaken) {
        let mut state = self.lock();
        for channel in Channel::ALL {
            if let Some(offset) = taken.of(channel) {
                state.sides[channel as usize].take(offset);
            }
        }
        if taken.again && state.repeat_at.is_none() {
            let earliest = state.repeated_at.map(|at| at + REPEAT_PAUSE);
            state.repeat_at = Some(earliest.unwrap_or_else(Instant::now).max(Instant::now()));
        }
    }

    fn handle_input(&self, input: &Input) {
        let window = u64::from(self.0.streams.window());
        let mut state = self.lock();
        let own = &mut state.input;
        // Whatever becomes of it, the requester is told where we are.
        own.is_news = true;
        let Some(bytes) = input.data.to_bytes().filter(|_| self.0.streams.input) else { return };
        let end = own.received + bytes.len() as u64;
        if input.offset != own.received || own.has_end || end > own.written + window {
            return;
        }
        (own.received, own.has_end) = (end, input.end);
        if own.is_closed {
            own.written = own.received;
        } else if let Some(last) =
            own.waiting.back_mut().filter(|last| last.len() + bytes.len() <= MAX_CHUNK_BYTES)
        {
            last.extend_from_slice(&bytes);
        } else if !bytes.is_empty() {
            own.waiting.push_back(bytes.into());
        }
    }

    /// There is another connection: what was not taken is said again there.
    pub(crate) fn rewind(&self) {
        let mut state = self.lock();
        state.rewind();
        state.repeat_at = None;
        state.input.is_news = state.has_begun && self.has_input();
        self.0.news.notify_one();
    }

    /// The next thing to say, if there is any.
    pub(crate) fn next(&self) -> Option<Upstream> {
        let mut state = self.lock();
        if state.repeat_at.is_some_and(|at| at <= Instant::now()) {
            state.rewind();
            (state.repeat_at, state.repeated_at) = (None, Some(Instant::now()));
        }
        if std::mem::take(&mut state.input.is_news) {
            let Inflow { written, is_closed, .. } = state.input;
            let call_id = self.0.call_id.clone();
            return Some(Upstream::Taken(InputTaken {
                call_id,
                stdin: written,
                closed: is_closed,
            }));
        }
        let (mut chunks, mut bytes) = (Vec::new(), 0);
        for channel in Channel::ALL {
            let side = &mut state.sides[channel as usize];
            while let Some(piece) = side.kept.get_mut(side.said) {
                bytes += piece.bytes.len();
                if bytes > MESSAGE_BYTES && !chunks.is_empty() {
                    break;
                }
                piece.is_known = true;
                chunks.push(Chunk {
                    call_id: self.0.call_id.clone(),
                    stream: channel,
                    n: piece.n,
                    offset: piece.offset,
                    held: side.taken,
                    data: Data::of(&piece.bytes),
                    end: piece.is_end,
                });
                side.said += 1;
            }
            side.forget();
        }
        self.0.moved.notify_waiters();
        (!chunks.is_empty()).then_some(Upstream::Chunks(chunks))
    }

    /// Waits until there may be a connection to say something on.
    pub(crate) async fn another_connection(&self) {
        self.0.news.notified().await;
    }

    /// Before some output is said: waits a moment for more, since many programs write little at a time or end soon, and
    /// each message costs three processes something. Not while there is much to say, or something that is waited for.
    pub(crate) async fn gather(&self) {
        let more = async {
            loop {
                let news = self.0.news.notified();
                if !self.has_little() {
                    return;
                }
                news.await;
            }
        };
        let _in_time = tokio::time::timeout(GATHER_TIME, more).await;
    }

    /// Whether there is nothing to say but a little output that is not the end, and room for more.
    fn has_little(&self) -> bool {
        let window = self.0.streams.window();
        let state = self.lock();
        let unsaid = || state.sides.iter().flat_map(|side| side.kept.iter().skip(side.said));
        let bytes = unsaid().map(|piece| piece.bytes.len()).sum::<usize>();
        (1..GATHER_BYTES.min(window as usize / 2)).contains(&bytes)
            && state.sides.iter().all(|side| side.untaken() < window.into())
            && !state.input.is_news
            && !unsaid().any(|piece| piece.is_end)
    }

    /// Waits until there may be something to say.
    pub(crate) async fn news(&self) {
        let repeat_at = self.lock().repeat_at;
        let repeat = async {
            match repeat_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => future::pending().await,
            }
        };
        tokio::select! {
            () = self.0.news.notified() => {}
            () = repeat => {}
        }
    }

    /// Does `work`, has what is to be said said by `pump` meanwhile, and waits until all output is taken; after a stop
    /// for [`STOPPED_WAIT`] at most.
    pub(crate) async fn carry<T>(
        &self,
        work: impl Future<Output = T>,
        stop: &CancellationToken,
        pump: impl Future<Output = Infallible>,
    ) -> T {
        tokio::pin!(pump);
        let done = tokio::select! {
            biased;
            done = work => done,
            never = &mut pump => match never {},
        };
        let too_long = async {
            stop.cancelled().await;
            tokio::time::sleep(STOPPED_WAIT).await;
        };
        tokio::select! {
            biased;
            () = self.drained() => {}
            () = too_long => {}
            never = &mut pump => match never {},
        }
        done
    }

    async fn drained(&self) {
        loop {
            let moved = self.0.moved.notified();
            {
                let state = self.lock();
                let is_done = |side: &Side| side.kept.is_empty();
                if !state.has_begun || state.sides.iter().all(is_done) {
                    return;
                }
            }
            moved.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn rewind(&mut self) {
        self.sides.iter_mut().for_each(|side| side.said = 0);
    }
}

impl Side {
    /// How many bytes were read, and not taken yet.
    const fn untaken(&self) -> u64 {
        self.cut - self.taken + self.rest.len() as u64
    }

    fn push(&mut self, bytes: &[u8]) {
        if self.is_over {
            return;
        }
        let is_end = bytes.is_empty();
        let joined;
        let all = if self.rest.is_empty() {
            bytes
        } else {
            joined = [&self.rest, bytes].concat();
            &joined
        };
        let whole = if is_end { all } else { whole_characters(all) };
        let rest = all.get(whole.len()..).unwrap_or_default().to_vec();
        if !whole.is_empty() || is_end {
            self.keep(whole, is_end);
        }
        (self.rest, self.is_over) = (rest, is_end);
    }

    /// Keeps it with what nobody has heard of yet, so that many small writes take no more room than one.
    fn keep(&mut self, bytes: &[u8], is_end: bool) {
        let offset = self.cut;
        self.cut += bytes.len() as u64;
        let room = MAX_CHUNK_BYTES.saturating_sub(bytes.len());
        match self.kept.back_mut() {
            Some(last) if !last.is_known && last.bytes.len() <= room => {
                last.bytes.extend_from_slice(bytes);
                last.is_end = is_end;
            }
            _ => {
                let (n, bytes) = (self.n, bytes.to_vec());
                self.n += 1;
                self.kept.push_back(Piece { n, offset, bytes, is_end, is_known: false });
            }
        }
    }

    /// The requester has everything up to here. What was never written it cannot have.
    fn take(&mut self, offset: u64) {
        if offset <= self.cut {
            self.taken = self.taken.max(offset);
        }
        self.forget();
    }

    /// Lets go of what was taken; an end without bytes counts as taken once it was said.
    fn forget(&mut self) {
        while let Some(piece) = self.kept.front()
            && (self.said > 0 || !piece.bytes.is_empty())
            && piece.offset + piece.bytes.len() as u64 <= self.taken
        {
            self.kept.pop_front();
            self.said = self.said.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests;
