//! What the server counts, for `GET /metrics`; what each metric means is in `docs/operations.md`.
//!
//! A server owns its metrics: two servers in one process count apart. Every label comes from a closed
//! set and every handle is made at the start, so that counting is one relaxed atomic addition and a
//! peer can never add a time series. Nothing is labelled with a device or a client, whose number has no
//! small bound; the log and the API name them.
//!
//! Gauges are not kept: a request for the metrics reads them off the server, so they cannot drift.

mod labels;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aip::codec::kind_of_server;
use aip::machine::Refusal;
use aip::{ClientMessage, ClientType, CloseCode, ServerMessageType, Status};
use bytes::Bytes;
use jiff::Timestamp;
use link::{Closed, Direction, Event, Tap};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::{Atomic, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

pub(crate) use labels::RefusalReason;
use labels::{Close, Dropped, EndStatus, Label, Received};

use crate::hub::{SessionState, Settlement, Unclaimed};
use crate::server::Server;

/// The name of every metric begins with it.
const PREFIX: &str = "flightdeck";

/// The media type of what [`Metrics::render`] writes.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of the histograms, in seconds: from 1 ms to 1 h, which is a task's default limit.
const SECONDS: [f64; 20] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    120.0, 300.0, 600.0, 1800.0, 3600.0,
];

type Pairs = Vec<(&'static str, &'static str)>;

/// One counter for each value of a label.
struct Counters<L> {
    counters: Box<[Counter]>,
    label: std::marker::PhantomData<L>,
}

impl<L: Label> Counters<L> {
    fn register(registry: &mut Registry, name: &str, help: &str) -> Self {
        let family = Family::<Pairs, Counter>::default();
        registry.register(name, help, family.clone());
        Self::of(&family, &[])
    }

    /// The counters of a family that have these labels too.
    fn of(family: &Family<Pairs, Counter>, labels: &[(&'static str, &'static str)]) -> Self {
        let counter = |value: &L| {
            let own = (L::NAME, value.word());
            family.get_or_create_owned(&labels.iter().copied().chain([own]).collect())
        };
        Self { counters: L::ALL.iter().map(counter).collect(), label: std::marker::PhantomData }
    }

    fn inc(&self, value: L) {
        self.counters[value.index()].inc();
    }

    fn sum(&self) -> u64 {
        self.counters.iter().map(Counter::get).sum()
    }
}

/// One gauge for each value of a label.
struct Gauges<L> {
    family: Family<Pairs, Gauge>,
    label: std::marker::PhantomData<L>,
}

impl<L: Label> Gauges<L> {
    fn register(registry: &mut Registry, name: &str, help: &str) -> Self {
        let family = Family::<Pairs, Gauge>::default();
        registry.register(name, help, family.clone());
        Self { family, label: std::marker::PhantomData }
    }

    fn set(&self, value: L, level: usize) {
        let pairs = vec![(L::NAME, value.word())];
        self.family.get_or_create_owned(&pairs).set(signed(level));
    }
}

/// A number that may be handed to others to add to.
#[derive(Debug, Default)]
struct Shared(Arc<AtomicU64>);

impl Atomic<u64> for Shared {
    fn inc(&self) -> u64 {
        self.inc_by(1)
    }

    fn inc_by(&self, n: u64) -> u64 {
        self.0.fetch_add(n, Ordering::Relaxed)
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Everything that one server counts.
pub(crate) struct Metrics {
    registry: Registry,
    registrations: Counters<ClientType>,
    refusals: Counters<RefusalReason>,
    received: Counters<Received>,
    disconnects_by_us: Counters<Close>,
    disconnects_by_peer: Counters<Close>,
    slow_consumers: Counter,
    silent_peers: Counter,
    dropped_results: Counters<Dropped>,
    dropped_progress: Counter<u64, Shared>,
    commands: Counters<Settlement>,
    command_seconds: Histogram,
    tasks: Counters<EndStatus>,
    task_seconds: Histogram,
    levels: Levels,
    tap: Tap,
}

/// What a request for the metrics reads off the server.
struct Levels {
    connections: Gauges<ClientType>,
    sessions: Gauges<SessionState>,
    web_sockets: Gauge,
    web_sockets_limit: Gauge,
    longest_queue: Gauge,
    queue_limit: Gauge,
    outbox_messages: Gauge,
    bytes_in_flight: Gauge,
    bytes_in_flight_limit: Gauge,
    waiting_for_room: Gauge,
}

impl Metrics {
    /// Metrics that have counted nothing, of a server that starts now.
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        let r = &mut registry;
        register_facts(r);
        let disconnects = Family::<Pairs, Counter>::default();
        r.register("disconnects", "Registered connections that ended", disconnects.clone());
        Self {
            tap: tap(r),
            levels: Levels::register(r),
            registrations: Counters::register(r, "registrations", "Peers that registered"),
            refusals: Counters::register(r, "refusals", "Peers and requests that were refused"),
            received: Counters::register(r, "messages_received", "Messages that came in"),
            disconnects_by_us: Counters::of(&disconnects, &[("by", "server")]),
            disconnects_by_peer: Counters::of(&disconnects, &[("by", "peer")]),
            slow_consumers: counter(r, "slow_consumer_closes", "Peers cut for reading too slowly"),
            silent_peers: counter(r, "liveness_closes", "Peers cut for their silence"),
            dropped_results: Counters::register(
                r,
                "dropped_results",
                "COMMAND_RESULTS that answered no open command",
            ),
            dropped_progress: counter(
                r,
                "dropped_progress_messages",
                "Progress messages that gave way in a full outgoing queue",
            ),
            commands: Counters::register(r, "commands", "Commands that were settled"),
            command_seconds: histogram(
                r,
                "command_duration_seconds",
                "From sending a command to its settlement",
            ),
            tasks: Counters::register(r, "tasks_ended", "Tasks that ended"),
            task_seconds: histogram(
                r,
                "task_duration_seconds",
                "From accepting a task to its end, waiting included",
            ),
            registry,
        }
    }

    /// Counts bytes in both directions and the messages that go out, where frames meet the socket.
    pub(crate) fn tap(&self) -> Tap {
        self.tap.clone()
    }

    /// The count that outgoing queues add their dropped progress to.
    pub(crate) fn dropped_progress(&self) -> Arc<AtomicU64> {
        self.dropped_progress.inner().0.clone()
    }

    pub(crate) fn count_registration(&self, role: ClientType) {
        self.registrations.inc(role);
    }

    pub(crate) fn count_refusal(&self, refusal: &Refusal) {
        self.count_refused(refusal.into());
    }

    pub(crate) fn count_refused(&self, reason: RefusalReason) {
        self.refusals.inc(reason);
    }

    /// Counts what came in, when it is a message or was meant as one.
    pub(crate) fn count_received(&self, event: &Event<ClientMessage>) {
        match event {
            Event::Message(message) => self.received.inc((&message.kind).into()),
            Event::Unreadable(..) | Event::Binary => self.received.inc(Received::Unreadable),
            Event::Due | Event::Closed(_) => {}
        }
    }

    pub(crate) fn count_dropped_results(&self, reason: Unclaimed) {
        self.dropped_results.inc(reason.into());
    }

    /// Results that answered no open command, since the start.
    pub(crate) fn dropped_results(&self) -> u64 {
        self.dropped_results.sum()
    }

    pub(crate) fn count_disconnect(&self, closed: &Closed) {
        let side = if closed.by_us { &self.disconnects_by_us } else { &self.disconnects_by_peer };
        side.inc(closed.code.into());
        if closed.by_us && closed.code == CloseCode::NO_LIFE {
            self.silent_peers.inc();
        }
    }

    pub(crate) fn count_slow_consumer(&self) {
        self.slow_consumers.inc();
    }

    /// Counts a command that is over.
    pub(crate) fn count_command(&self, settlement: Settlement, took: Duration) {
        self.commands.inc(settlement);
        self.command_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn count_task(&self, status: Status, took: Duration) {
        self.tasks.inc(status.into());
        self.task_seconds.observe(took.as_secs_f64());
    }

    /// Everything, as OpenMetrics text; the gauges are the server's of this moment.
    pub(crate) fn render(&self, server: &Server) -> String {
        self.levels.read(server);
        let mut text = String::new();
        // Writing into a string has no way to fail.
        let written = encode(&mut text, &self.registry);
        debug_assert!(written.is_ok());
        text
    }
}

fn register_facts(registry: &mut Registry) {
    let version = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("build", "What runs here", version);
    let started = Gauge::<i64>::default();
    started.set(Timestamp::now().as_second());
    registry.register("start_time_seconds", "When it started, in Unix time", started);
}

fn counter<A: Atomic<u64> + Default + std::fmt::Debug + Send + Sync + 'static>(
    registry: &mut Registry,
    name: &str,
    help: &str,
) -> Counter<u64, A> {
    let counter = Counter::<u64, A>::default();
    registry.register(name, help, counter.clone());
    counter
}

fn gauge(registry: &mut Registry, name: &str, help: &str) -> Gauge {
    let gauge = Gauge::default();
    registry.register(name, help, gauge.clone());
    gauge
}

fn histogram(registry: &mut Registry, name: &str, help: &str) -> Histogram {
    let histogram = Histogram::new(SECONDS);
    registry.register(name, help, histogram.clone());
    histogram
}

fn tap(registry: &mut Registry) -> Tap {
    let received: Counter = counter(registry, "received_bytes", "Text that came in, in bytes");
    let sent: Counter = counter(registry, "sent_bytes", "Text that went out, in bytes");
    let messages = Counters::<ServerMessageType>::register(
        registry,
        "messages_sent",
        "Messages that went out",
    );
    Arc::new(move |direction, frame: &Bytes| match direction {
        Direction::In => {
            received.inc_by(frame.len() as u64);
        }
        Direction::Out => {
            sent.inc_by(frame.len() as u64);
            if let Some(kind) = kind_of_server(frame) {
                messages.inc(kind);
            }
        }
    })
}

impl Levels {
    fn register(r: &mut Registry) -> Self {
        Self {
            connections: Gauges::register(r, "connections", "Registered connections"),
            sessions: Gauges::register(r, "sessions", "Tasks that are not over"),
            web_sockets: gauge(r, "websockets", "Open WebSockets, registered or not"),
            web_sockets_limit: gauge(r, "websockets_limit", "The setting max_connections"),
            longest_queue: gauge(r, "longest_queue", "Most tasks that wait for one device"),
            queue_limit: gauge(r, "queue_limit", "The setting queue_per_device"),
            outbox_messages: gauge(r, "outbox_messages", "Messages that wait to be sent"),
            bytes_in_flight: gauge(
                r,
                "in_flight_bytes",
                "Large messages and open results, in bytes",
            ),
            bytes_in_flight_limit: gauge(
                r,
                "in_flight_bytes_limit",
                "The setting max_bytes_in_flight",
            ),
            waiting_for_room: gauge(
                r,
                "connections_waiting_for_room",
                "Connections that are not read from until there is room for their message",
            ),
        }
    }

    fn read(&self, server: &Server) {
        let clients = server.handles();
        for role in ClientType::ALL {
            let of_role = clients.iter().filter(|client| client.peer.client_type == *role);
            self.connections.set(*role, of_role.count());
        }
        let waiting = clients.iter().map(|client| client.outbox.len()).sum();
        self.outbox_messages.set(signed(waiting));
        let sessions = server.hub().levels();
        self.sessions.set(SessionState::Running, sessions.running);
        self.sessions.set(SessionState::Queued, sessions.queued);
        self.sessions.set(SessionState::Stopping, sessions.stopping);
        self.longest_queue.set(signed(sessions.longest_queue));
        self.web_sockets.set(signed(server.open_sockets()));
        self.web_sockets_limit.set(signed(server.config().max_connections));
        let usage = server.budget().usage();
        self.bytes_in_flight.set(signed(usage.bytes));
        self.waiting_for_room.set(signed(usage.waiting));
        self.bytes_in_flight_limit.set(signed(server.budget().limit()));
        self.queue_limit.set(signed(server.config().queue_per_device));
    }
}

/// A gauge takes signed numbers.
fn signed(level: usize) -> i64 {
    i64::try_from(level).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_is_there_from_the_start_and_counts_from_zero() {
        let server =
            Server::new(crate::Config::default(), crate::Keys::local("key".to_owned().into()));
        let text = server.metrics().render(&server);
        for series in [
            r#"flightdeck_registrations_total{role="device"} 0"#,
            r#"flightdeck_refusals_total{reason="wrong_key"} 0"#,
            r#"flightdeck_messages_received_total{type="unreadable"} 0"#,
            r#"flightdeck_messages_sent_total{type="task_end"} 0"#,
            r#"flightdeck_disconnects_total{by="peer",code="1006"} 0"#,
            r#"flightdeck_dropped_results_total{reason="late"} 0"#,
            r#"flightdeck_sessions{state="queued"} 0"#,
            r#"flightdeck_command_duration_seconds_bucket{le="0.001"} 0"#,
            r#"flightdeck_task_duration_seconds_bucket{le="3600.0"} 0"#,
            r#"flightdeck_build_info{version=""#,
        ] {
            assert!(text.contains(series), "{series} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"), "{text}");
    }

    #[test]
    fn two_servers_count_apart() {
        let [one, two] = [(); 2].map(|()| Metrics::new());
        one.count_dropped_results(Unclaimed::Late);
        assert_eq!((one.dropped_results(), two.dropped_results()), (1, 0));
    }

    #[test]
    fn what_passes_the_tap_is_counted_by_type_and_size() {
        let server =
            Server::new(crate::Config::default(), crate::Keys::local("key".to_owned().into()));
        let (metrics, tap) = (server.metrics(), server.metrics().tap());
        tap(Direction::In, &Bytes::from_static(b"12345"));
        tap(Direction::Out, &Bytes::from_static(br#"{"type":"heartbeat","status":"ok"}"#));
        let text = metrics.render(&server);
        for line in [
            "flightdeck_received_bytes_total 5\n",
            "flightdeck_sent_bytes_total 34\n",
            "flightdeck_messages_sent_total{type=\"heartbeat\"} 1\n",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn each_way_a_command_can_be_settled_is_counted_apart() {
        let server =
            Server::new(crate::Config::default(), crate::Keys::local("key".to_owned().into()));
        let metrics = server.metrics();
        let second = Duration::from_secs(1);
        use Settlement::{Answered, Lost, Stopped, TimedOut};
        for how in [Answered, TimedOut, Lost, Stopped] {
            metrics.count_command(how, second);
        }
        let text = metrics.render(&server);
        for settlement in ["answered", "timed_out", "lost", "stopped"] {
            let line = format!("flightdeck_commands_total{{settlement=\"{settlement}\"}} 1\n");
            assert!(text.contains(&line), "{line} is not in\n{text}");
        }
        assert!(text.contains("flightdeck_command_duration_seconds_sum 4.0\n"), "{text}");
    }

    #[test]
    fn only_our_own_verdict_counts_as_silence() {
        let server =
            Server::new(crate::Config::default(), crate::Keys::local("key".to_owned().into()));
        for by_us in [true, false] {
            let closed = Closed { code: CloseCode::NO_LIFE, reason: String::new(), by_us };
            server.metrics().count_disconnect(&closed);
        }
        let text = server.metrics().render(&server);
        assert!(text.contains("flightdeck_liveness_closes_total 1\n"), "{text}");
        assert!(text.contains("flightdeck_disconnects_total{by=\"peer\",code=\"4004\"} 1\n"));
    }

    #[test]
    fn the_number_of_series_is_fixed_whatever_peers_say() {
        let server =
            Server::new(crate::Config::default(), crate::Keys::local("key".to_owned().into()));
        let metrics = server.metrics();
        let before = metrics.render(&server).lines().count();
        for word in ["teleport", "x", "register\""] {
            let kind = aip::ClientMessageType::Unknown(word.into());
            let message = ClientMessage::new(kind, ClientType::Device);
            metrics.count_received(&Event::Message(message));
        }
        for code in 0..u16::MAX {
            let closed = Closed { code: CloseCode(code), reason: String::new(), by_us: false };
            metrics.count_disconnect(&closed);
        }
        let text = metrics.render(&server);
        assert_eq!(text.lines().count(), before);
        assert!(text.contains(r#"flightdeck_messages_received_total{type="unknown"} 3"#));
    }
}
