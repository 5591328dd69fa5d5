//! The loop of every client: connect, register, run, and when the connection ends, back off and come
//! back, or stop with a reason.

mod end;
mod settings;

use std::sync::Arc;
use std::time::{Duration, Instant};

use aip::codec::About;
use aip::machine::{Reconnect, read_confirmation};
use aip::message::{Confirmed, Feature};
use aip::{
    ClientId, ClientMessage, ClientMessageType, ClientType, CloseCode, DecodeError, ServerMessage,
};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

pub use self::end::Exit;
pub use self::settings::{ClientSettings, Connector, TokenSource};

use self::end::End;
use crate::connection::{Connection, Event, now};
use crate::dial::{Way, dial};
use crate::outbox::{Alive, Outbox};
use crate::sleep::{LOOK_EVERY, PROOF_TIME, SleepWatch};
use crate::socket::{Closed, Socket};
use crate::spans;

/// After a refusal, how long to wait for the close frame that says whether it is final.
const REFUSAL_CLOSE_WAIT: Duration = Duration::from_secs(2);

/// The longest wait for the next try of a client that has work under way.
const BUSY_WAIT: Duration = Duration::from_secs(15);

/// How many times in a row a client comes again at once because it took in what a refusal says.
const MAX_AMENDMENTS: u32 = 3;

/// The longest wait before it does: many clients may be told the same thing at once.
const AMENDED_WAIT: Duration = Duration::from_millis(250);

/// What a client is, beyond being connected: a device or a constellation. The methods decide and
/// return at once; what takes longer runs in tasks of its own.
pub trait Role: Send {
    /// Who we are, the same for every connection.
    fn identity(&self) -> (&ClientId, ClientType);

    /// What takes a while before each REGISTER, such as finding out about this machine; it runs while
    /// the connection is made, which waits for it. It must end by itself, soon.
    fn prepare(&mut self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// The REGISTER that opens each connection.
    fn register(&mut self) -> ClientMessage;

    /// The server refused our REGISTER. `true` when what the refusal says was taken in and the next REGISTER differs:
    /// the client comes again at once then, a few times in a row, whatever the close code says.
    fn handle_refused(&mut self, _refusal: &ServerMessage) -> bool {
        false
    }

    /// Whether something is under way that the server waits for: the client comes back sooner then.
    fn has_work(&self) -> bool {
        false
    }

    /// Whether to try again, within what the settings allow, after a connection ended or could not be made. `is_final`
    /// when the server will refuse the same client again.
    fn comes_back(&self, _is_final: bool) -> bool {
        true
    }

    /// The server took us. Everything for it goes into `outbox` until [`Self::handle_disconnected`].
    fn handle_connected(&mut self, outbox: &Arc<Outbox>, granted: Option<&Confirmed>);

    /// A message came.
    fn handle_message(&mut self, message: ServerMessage);

    /// Text came that is no message; `about` is what could be read of it.
    fn handle_unreadable(&mut self, error: &DecodeError, about: &About);

    /// The connection is gone, or could not be made; `retry` is when the next try comes, if any.
    fn handle_disconnected(&mut self, why: &str, retry: Option<Duration>);
}

/// What a client does beside reading and answering.
struct Upkeep {
    heartbeat_at: Instant,
    /// When to look whether the machine slept.
    look_at: Instant,
    /// After a sleep: by when the server must have given a sign of life, and where it shows.
    proof: Option<(Instant, oneshot::Receiver<Alive>)>,
}

impl Upkeep {
    /// When something of it is due.
    fn due(&self) -> Instant {
        let due = self.heartbeat_at.min(self.look_at);
        self.proof.as_ref().map_or(due, |(by, _)| due.min(*by))
    }

    /// Whether the server has given no sign of life in time after a sleep.
    fn is_disproved(&mut self, now: Instant) -> bool {
        let Some((_, mut alive)) = self.proof.take_if(|(by, _)| *by <= now) else { return false };
        alive.try_recv().is_err()
    }
}

/// A client that connects, registers, and comes back after a loss.
pub struct Client<R> {
    settings: ClientSettings,
    role: R,
    reconnect: Reconnect,
    /// How many times in a row it took in what a refusal said.
    amendments: u32,
    sleep: SleepWatch,
}

impl<R: Role> Client<R> {
    /// A client that is not connected yet.
    pub fn new(settings: ClientSettings, role: R) -> Self {
        let settings = settings.sound();
        let (first, cap) = (settings.backoff_base, settings.backoff_cap);
        let reconnect = Reconnect::new(first, cap, settings.max_retries);
        Self { settings, role, reconnect, amendments: 0, sleep: SleepWatch::new() }
    }

    /// Runs until `stop`, or until the server refuses it for good, or it has tried often enough.
    pub async fn run(self, stop: CancellationToken) -> Exit {
        let (id, role) = self.role.identity();
        let span = spans::client(id, role);
        self.run_until(stop).instrument(span).await
    }

    async fn run_until(mut self, stop: CancellationToken) -> Exit {
        loop {
            let end = self.connect_once(&stop).await;
            if let End::Stopped = end {
                self.role.handle_disconnected(&end.text(), None);
                return Exit::Stopped;
            }
            let wait = match self.next_try(&end) {
                Ok(wait) => wait,
                Err(exit) => {
                    self.role.handle_disconnected(&end.text(), None);
                    return exit;
                }
            };
            self.role.handle_disconnected(&end.text(), Some(wait));
            tokio::select! {
                biased;
                () = self.rest(wait) => {}
                () = stop.cancelled() => {
                    self.role.handle_disconnected("stopped", None);
                    return Exit::Stopped;
                }
            }
        }
    }

    /// Waits for the next try, which comes at once when the machine wakes up from a sleep, or we are nudged: what
    /// kept the server away then says nothing about now.
    async fn rest(&mut self, wait: Duration) {
        let until = now() + wait;
        loop {
            let left = until.saturating_duration_since(now());
            let is_nudged = tokio::select! {
                () = tokio::time::sleep(left.min(LOOK_EVERY)) => false,
                () = nudged(self.settings.nudge.as_deref()) => true,
            };
            if is_nudged || self.sleep.look().is_some() {
                return self.reconnect.reset();
            }
            if now() >= until {
                return;
            }
        }
    }

    /// When to try again, or why not to.
    fn next_try(&mut self, end: &End) -> Result<Duration, Exit> {
        if let End::Refused { is_amended: true, .. } = end {
            return Ok(AMENDED_WAIT.mul_f64(self.settings.ambient.chance()));
        }
        let is_final = end.is_final();
        let wait = self.reconnect.next_try(is_final, now(), self.settings.ambient.chance());
        match wait.filter(|_| self.role.comes_back(is_final)) {
            Some(_) if matches!(end, End::Slept(_)) => Ok(Duration::ZERO),
            Some(wait) if !is_final && self.role.has_work() => Ok(wait.min(BUSY_WAIT)),
            Some(wait) => Ok(wait),
            None if is_final => Err(Exit::Refused(end.text())),
            None => Err(Exit::GaveUp { tries: self.reconnect.tries(), last: end.text() }),
        }
    }

    async fn connect_once(&mut self, stop: &CancellationToken) -> End {
        let settings = &self.settings;
        let token = settings.token_source.as_ref().and_then(|source| source());
        let way = Way {
            server: &settings.server,
            token: token.as_ref().or(settings.token.as_ref()),
            device_key: settings.device_key.as_deref(),
            trust: settings.trust.as_ref(),
            proxy: settings.proxy.as_ref(),
        };
        let dialing = async {
            match &settings.connector {
                Some(connect) => connect().await,
                None => dial(&way, settings.connect_timeout, aip::codec::MAX_MESSAGE_BYTES).await,
            }
        };
        let (dialed, ()) = tokio::select! {
            biased;
            both = async { tokio::join!(dialing, self.role.prepare()) } => both,
            () = stop.cancelled() => return End::Stopped,
        };
        match dialed {
            Ok(socket) => self.run_on(socket, stop).await,
            Err(error) => End::Dial(error),
        }
    }

    /// Registers on a fresh socket and runs until the connection ends.
    async fn run_on(&mut self, socket: Socket, stop: &CancellationToken) -> End {
        let outbox = Arc::new(Outbox::new(self.settings.outbox));
        let mut connection =
            Connection::new(socket, outbox.clone(), self.settings.watch, self.settings.tap.clone());
        let register = self.role.register();
        connection.reply(&self.stamped(register));
        let confirmation = tokio::select! {
            biased;
            reply = self.confirmation(&mut connection) => reply,
            () = stop.cancelled() => return self.stop(connection).await,
        };
        let granted = match confirmation {
            Err(end) => return end,
            Ok(granted) => granted,
        };
        self.reconnect.handle_confirmed(now());
        self.amendments = 0;
        if granted.as_ref().is_some_and(|granted| granted.features.contains(&Feature::Resume)) {
            connection.set_watch(self.settings.resume_watch);
        }
        let span = spans::connection(granted.as_ref());
        span.in_scope(|| self.role.handle_connected(&outbox, granted.as_ref()));
        self.run_confirmed(connection, stop).instrument(span).await
    }

    /// Runs a connection that the server has confirmed until it ends.
    async fn run_confirmed(
        &mut self,
        mut connection: Connection<ServerMessage>,
        stop: &CancellationToken,
    ) -> End {
        let end = self.serve(&mut connection, stop).await;
        if let End::Stopped = end {
            return self.stop(connection).await;
        }
        if let Some(closed) = end.closed() {
            // The goodbye may take its time; the next connection need not wait for it.
            let (code, reason) = (closed.code, closed.reason.clone());
            let closing = async move { connection.close(code, &reason).await };
            self.settings.ambient.spawn(closing.in_current_span());
        }
        end
    }

    async fn stop(&mut self, connection: Connection<ServerMessage>) -> End {
        connection.close(CloseCode::NORMAL, "the client is done").await;
        End::Stopped
    }

    async fn confirmation(
        &mut self,
        connection: &mut Connection<ServerMessage>,
    ) -> Result<Option<Confirmed>, End> {
        let deadline = now() + self.settings.connect_timeout;
        match connection.next_event(Some(deadline)).await {
            Event::Message(reply) => match read_confirmation(&reply) {
                Ok(granted) => {
                    self.note_next_key(granted.as_ref());
                    Ok(granted)
                }
                Err(text) => Err(self.refused(connection, &reply, text).await),
            },
            Event::Closed(closed) => Err(End::Closed(closed)),
            Event::Due => {
                let waited = self.settings.connect_timeout.as_secs();
                Err(End::Closed(Closed::lost(format!("no answer to REGISTER within {waited} s"))))
            }
            Event::Unreadable(error, _) => Err(End::Closed(Closed::lost(error.to_string()))),
            Event::Binary => Err(End::Closed(Closed::lost("the first reply was binary"))),
        }
    }

    /// Keeps the public key that the server will have, if it says which.
    fn note_next_key(&self, granted: Option<&Confirmed>) {
        let next = granted.and_then(|granted| granted.next_key.as_deref()?.parse().ok());
        if let (Some(pins), Some(next)) = (&self.settings.pins, next) {
            pins.announce(next);
        }
    }

    /// Waits for the close that follows a refusal: its code says whether to come back.
    async fn refused(
        &mut self,
        connection: &mut Connection<ServerMessage>,
        refusal: &ServerMessage,
        text: String,
    ) -> End {
        let is_amended = self.amendments < MAX_AMENDMENTS && self.role.handle_refused(refusal);
        self.amendments += u32::from(is_amended);
        let deadline = now() + REFUSAL_CLOSE_WAIT;
        let code = match connection.next_event(Some(deadline)).await {
            Event::Closed(closed) => closed.code,
            _ => CloseCode::NORMAL,
        };
        End::Refused { text, code, is_amended }
    }

    async fn serve(
        &mut self,
        connection: &mut Connection<ServerMessage>,
        stop: &CancellationToken,
    ) -> End {
        let mut upkeep = Upkeep {
            heartbeat_at: now() + self.settings.heartbeat_interval,
            look_at: now() + LOOK_EVERY,
            proof: None,
        };
        loop {
            let event = tokio::select! {
                biased;
                event = connection.next_event(Some(upkeep.due())) => event,
                () = stop.cancelled() => return End::Stopped,
            };
            match event {
                Event::Closed(closed) => return End::Closed(closed),
                Event::Due => self.keep_up(connection, &mut upkeep),
                event => self.handle_event(event),
            }
            if upkeep.is_disproved(now()) {
                return End::Slept(Closed {
                    code: CloseCode::NO_LIFE,
                    reason: "no sign of life after this machine slept".to_owned(),
                    by_us: true,
                });
            }
        }
    }

    fn handle_event(&mut self, event: Event<ServerMessage>) {
        match event {
            Event::Message(message) => {
                self.reconnect.handle_message(message.kind);
                self.role.handle_message(message);
            }
            Event::Unreadable(error, about) => self.role.handle_unreadable(&error, &about),
            Event::Binary => {
                let error = DecodeError::Invalid("a binary frame".to_owned());
                self.role.handle_unreadable(&error, &About::default());
            }
            Event::Due | Event::Closed(_) => {}
        }
    }

    /// Does what is due: a heartbeat, or a look whether the machine slept, after which the server is
    /// asked for a sign of life.
    fn keep_up(&mut self, connection: &mut Connection<ServerMessage>, upkeep: &mut Upkeep) {
        let now = now();
        if upkeep.heartbeat_at <= now {
            upkeep.heartbeat_at = now + self.settings.heartbeat_interval;
            connection.reply(&self.heartbeat());
        }
        if upkeep.look_at <= now {
            upkeep.look_at = now + LOOK_EVERY;
            if let Some(slept) = self.sleep.look() {
                tracing::info!(
                    slept_s = slept.as_secs(),
                    "this machine slept; is the server there?"
                );
                upkeep.proof = Some((now + PROOF_TIME, connection.outbox().probe()));
            }
        }
    }

    fn heartbeat(&self) -> ClientMessage {
        let (client_id, client_type) = self.role.identity();
        ClientMessage {
            client_id: Some(client_id.clone()),
            timestamp: Some(self.settings.ambient.time_text()),
            ..ClientMessage::new(ClientMessageType::Heartbeat, client_type)
        }
    }

    fn stamped(&self, message: ClientMessage) -> ClientMessage {
        ClientMessage { timestamp: Some(self.settings.ambient.time_text()), ..message }
    }
}

async fn nudged(nudge: Option<&Notify>) {
    match nudge {
        Some(nudge) => nudge.notified().await,
        None => std::future::pending().await,
    }
}

/// An ERROR of a client, in the name of who it is, sent `at` this time.
#[must_use]
pub fn error_report(
    client_id: &aip::ClientId,
    client_type: ClientType,
    text: String,
    at: String,
) -> ClientMessage {
    ClientMessage {
        status: aip::Status::Error,
        client_id: Some(client_id.clone()),
        timestamp: Some(at),
        error: Some(text),
        ..ClientMessage::new(ClientMessageType::Error, client_type)
    }
}

#[cfg(test)]
mod tests;
