//! `/api/v1/server`: what this server is, how much there is of everything, and its limits.

use axum::extract::State;
use axum::response::Json;
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use crate::config::Config;
use crate::server::Server;

/// A server.
#[derive(Serialize, ToSchema)]
#[schema(as = Server)]
pub(super) struct About {
    /// Its version.
    version: &'static str,
    started_at: Timestamp,
    uptime_s: u64,
    keys: KeysAbout,
    counts: Counts,
    limits: Limits,
}

/// The keys that it opens to.
#[derive(Serialize, ToSchema)]
#[schema(as = ServerKeys)]
struct KeysAbout {
    /// `legacy`: one given key that everybody shares, as UFO's; `local`: one generated for this
    /// machine.
    #[schema(example = "local")]
    shared: &'static str,
    /// How many keys were created and are in force.
    created: usize,
}

/// How much there is of everything.
#[derive(Serialize, ToSchema)]
#[schema(as = ServerCounts)]
struct Counts {
    devices: usize,
    constellations: usize,
    /// WebSockets, registered or not.
    sockets: usize,
    tasks_running: usize,
    tasks_queued: usize,
    /// Places of tasks that are over, kept until their device confirms that it stopped.
    tasks_stopping: usize,
    /// Session ids in use.
    session_ids: usize,
    /// Devices with a task that runs, waits or stops.
    busy_devices: usize,
    /// Those whose tasks are not over.
    requesters: usize,
    /// Commands that no device has answered yet.
    open_commands: usize,
    /// Messages that wait to be sent, of all connections.
    queued_messages: usize,
    /// Bytes of large messages that are in flight, and of results of tasks that are not over.
    bytes_in_flight: usize,
    /// Connections that are not read from until there is room.
    waiting_for_room: usize,
}

/// The limits in force; times in seconds. The settings reference tells what each means.
#[derive(Serialize, ToSchema)]
#[schema(as = ServerLimits)]
struct Limits {
    sessions_per_device: usize,
    shared_per_device: usize,
    queue_per_device: usize,
    command_timeout_s: f64,
    /// Null for no limit.
    max_command_timeout_s: Option<f64>,
    session_timeout_s: f64,
    max_steps: u32,
    max_request_bytes: usize,
    max_task_bytes: usize,
    max_message_bytes: usize,
    max_connections: usize,
    outbox_messages: usize,
    outbox_bytes: usize,
    max_bytes_in_flight: usize,
    slow_after_s: f64,
    stop_grace_s: f64,
    registration_timeout_s: f64,
    liveness_timeout_s: f64,
    ping_interval_s: f64,
}

/// Show the server: version, uptime, counts, limits
///
/// For operators.
#[utoipa::path(
    get, path = "/server", tag = "server", operation_id = "show_server",
    responses((status = OK, body = About, description = "The server"))
)]
pub(super) async fn show(State(server): State<Server>) -> Json<About> {
    let snapshot = server.snapshot();
    let clients = server.handles();
    let devices = clients.iter().filter(|client| client.is_device()).count();
    let levels = server.hub().levels();
    let usage = server.budget().usage();
    let uptime = server.ambient().timestamp().duration_since(server.started_at()).as_secs();
    Json(About {
        version: env!("CARGO_PKG_VERSION"),
        started_at: server.started_at(),
        uptime_s: u64::try_from(uptime).unwrap_or(0),
        keys: KeysAbout {
            shared: if server.keyring().is_legacy() { "legacy" } else { "local" },
            created: server.keyring().len(),
        },
        counts: Counts {
            devices,
            constellations: clients.len() - devices,
            sockets: snapshot.sockets,
            tasks_running: levels.running,
            tasks_queued: levels.queued,
            tasks_stopping: levels.stopping,
            session_ids: snapshot.session_ids,
            busy_devices: snapshot.lanes,
            requesters: snapshot.requesters,
            open_commands: snapshot.commands,
            queued_messages: snapshot.queued_messages,
            bytes_in_flight: usage.bytes,
            waiting_for_room: usage.waiting,
        },
        limits: Limits::of(server.config()),
    })
}

impl Limits {
    fn of(config: &Config) -> Self {
        Self {
            sessions_per_device: config.sessions_per_device,
            shared_per_device: config.shared_per_device,
            queue_per_device: config.queue_per_device,
            command_timeout_s: config.command_limit(false).as_secs_f64(),
            max_command_timeout_s: config.max_command_timeout.map(|most| most.as_secs_f64()),
            session_timeout_s: config.session_limit(false).as_secs_f64(),
            max_steps: config.max_steps,
            max_request_bytes: config.max_request_bytes,
            max_task_bytes: config.max_task_bytes,
            max_message_bytes: aip::codec::MAX_MESSAGE_BYTES,
            max_connections: config.max_connections,
            outbox_messages: config.outbox_messages,
            outbox_bytes: config.outbox_bytes,
            max_bytes_in_flight: config.max_bytes_in_flight,
            slow_after_s: config.slow_after.as_secs_f64(),
            stop_grace_s: config.stop_grace.as_secs_f64(),
            registration_timeout_s: config.registration_timeout.as_secs_f64(),
            liveness_timeout_s: config.liveness_timeout.as_secs_f64(),
            ping_interval_s: config.ping_interval.as_secs_f64(),
        }
    }
}
