//! `/api/v1/devices`: which devices are online, what is known of them, and what they are busy with.

use std::time::Duration;

use aip::message::Feature;
use aip::{ClientId, Payload};
use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, StatusCode};
use axum::response::Json;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::access::Holder;
use super::answer::{Id, on_thread};
use super::problem::Problem;
use super::task_view::summary;
use crate::facts;
use crate::handle::Handle;
use crate::hub::{Away, SessionState};
use crate::server::Server;
use crate::session::Task;

/// The devices that are online, or known and away, by id.
#[derive(Serialize, ToSchema)]
pub(super) struct Devices {
    devices: Vec<Device>,
}

/// A device that is online, or away.
#[derive(Serialize, ToSchema)]
pub(super) struct Device {
    /// Who it says it is.
    #[schema(example = "lab-1")]
    id: String,
    /// `windows`, `linux`, `mobile` or what else it says.
    #[schema(example = "linux")]
    platform: String,
    /// What it says it can do.
    features: Vec<String>,
    /// Words by which it can be chosen: its own, and those of the server's configuration for it.
    #[schema(example = json!(["gpu"]))]
    tags: Vec<String>,
    /// What it was granted of the extension `flightdeck`, while it is online; nothing for a device of UFO's.
    #[schema(value_type = Vec<String>, example = json!(["progress", "env"]))]
    extension: Vec<Feature>,
    /// Whether it is online.
    connected: bool,
    /// When it registered, while it is online.
    #[serde(skip_serializing_if = "Option::is_none")]
    connected_since: Option<Timestamp>,
    /// Since when it is away.
    #[serde(skip_serializing_if = "Option::is_none")]
    away_since: Option<Timestamp>,
    /// Whether its tasks wait for it while it is away.
    #[serde(skip_serializing_if = "Option::is_none")]
    expected_back: Option<bool>,
    /// From where.
    #[schema(example = "192.0.2.7:50312")]
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    /// The name of the key it showed.
    key: String,
    /// How it is known to be alive, while it is online.
    #[serde(skip_serializing_if = "Option::is_none")]
    liveness: Option<Liveness>,
    /// What it is busy with: running tasks first, then the waiting ones in the order of their turns.
    tasks: Vec<DeviceTask>,
    /// What it says of itself (`system_info`), merged with the server's configuration for it. Not in
    /// the list.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    facts: Option<Payload>,
}

/// A task that a device is busy with. Of a task that is not the key's to see, it is only known that it is
/// there.
#[derive(Serialize, ToSchema)]
struct DeviceTask {
    state: SessionState,
    /// When it was accepted.
    since: Timestamp,
    /// The id of the task.
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    task_name: Option<String>,
    /// Who wants it.
    #[serde(skip_serializing_if = "Option::is_none")]
    requester: Option<String>,
    /// What it is about, for people: the command of a plan, or the beginning of its text; at most 200 characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "df -h")]
    summary: Option<String>,
}

impl DeviceTask {
    fn new(task: &Task, state: SessionState, holder: &Holder) -> Self {
        let known = holder.may_see(task).then_some(task);
        Self {
            state,
            since: task.created_at,
            task: known.map(|task| task.id.to_string()),
            session_id: known.map(|task| task.session_id.to_string()),
            task_name: known.map(|task| task.task_name.to_string()),
            requester: known.map(|task| task.requester.to_string()),
            summary: known.map(|task| summary(&task.request)),
        }
    }
}

/// How a device is known to be alive.
#[derive(Serialize, ToSchema)]
#[schema(as = DeviceLiveness)]
struct Liveness {
    /// Milliseconds since the last byte from it, of whatever kind: a message, a part of one, the
    /// answer to a ping.
    silent_ms: u64,
    /// Milliseconds since its last HEARTBEAT; missing when it has sent none.
    #[serde(skip_serializing_if = "Option::is_none")]
    heartbeat_ms: Option<u64>,
}

/// What is read of a device's facts.
#[derive(Default, Deserialize)]
struct Features {
    #[serde(default)]
    supported_features: Vec<String>,
}

/// List the devices that are online, and those that are away and known when they come back
///
/// Those that the key may work with.
#[utoipa::path(
    get, path = "/devices", tag = "devices", operation_id = "list_devices",
    responses((status = OK, body = Devices, description = "All of them"))
)]
pub(super) async fn list(
    State(server): State<Server>,
    Extension(holder): Extension<Holder>,
) -> Result<Response<Body>, Problem> {
    on_thread(move || {
        let clients = server.handles();
        let devices = clients.iter().filter(|client| client.is_device());
        let devices = devices.filter(|device| holder.may_reach(device.id()));
        let mut devices: Vec<Device> =
            devices.map(|device| describe(&server, device, &holder, false)).collect();
        let away = server.hub().away();
        let away = away.into_iter().filter(|device| holder.may_reach(&device.id));
        devices.extend(away.map(|device| describe_away(&server, device, &holder)));
        devices.sort_by(|one, other| one.id.cmp(&other.id));
        Devices { devices }
    })
    .await
}

/// Show one device, with its facts
#[utoipa::path(
    get, path = "/devices/{id}", tag = "devices", operation_id = "show_device",
    params(("id" = String, Path, description = "The id of the device", example = "lab-1")),
    responses(
        (status = OK, body = Device, description = "The device"),
        (status = NOT_FOUND, body = Problem, description = "`device_not_online`")
    )
)]
pub(super) async fn show(
    State(server): State<Server>,
    Extension(holder): Extension<Holder>,
    Id(id): Id,
) -> Result<Json<Device>, Problem> {
    let known = ClientId::new(&id).ok().filter(|id| holder.may_reach(id));
    let device = known.as_ref().and_then(|id| server.hub().device(id));
    if let Some(device) = device {
        return Ok(Json(describe(&server, &device, &holder, true)));
    }
    let away = server.hub().away().into_iter().find(|away| known.as_ref() == Some(&away.id));
    let detail = || format!("Device '{id}' is not online, or not yours to see");
    let away =
        away.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "device_not_online", detail()))?;
    Ok(Json(describe_away(&server, away, &holder)))
}

fn describe_away(server: &Server, away: Away, holder: &Holder) -> Device {
    let tasks = server.hub().busy(&away.id);
    let facts = server.hub().facts(&away.id);
    let facts = facts.unwrap_or_else(|| facts::configured(&away.id, server.config()));
    Device {
        id: away.id.to_string(),
        platform: away.platform,
        features: Vec::new(),
        tags: facts::tags(&facts),
        extension: Vec::new(),
        connected: false,
        connected_since: None,
        away_since: Some(away.since),
        expected_back: Some(away.is_expected),
        address: None,
        key: away.key,
        liveness: None,
        tasks: tasks.iter().map(|(task, state)| DeviceTask::new(task, *state, holder)).collect(),
        facts: None,
    }
}

fn describe(server: &Server, device: &Handle, holder: &Holder, with_facts: bool) -> Device {
    let facts = server.hub().facts(device.id());
    let features: Features =
        facts.as_ref().and_then(|facts| facts.parse().ok()).unwrap_or_default();
    // One that told no facts still has what the server's settings say of it.
    let configured = facts::configured(device.id(), server.config());
    let tasks = server.hub().busy(device.id());
    Device {
        id: device.id().to_string(),
        platform: device.platform.clone(),
        features: features.supported_features,
        tags: facts::tags(facts.as_ref().unwrap_or(&configured)),
        extension: device.peer.features.list(),
        connected: true,
        connected_since: Some(device.connected_at),
        away_since: None,
        expected_back: None,
        address: device.address.map(|address| address.to_string()),
        key: device.holder.name().to_owned(),
        liveness: Some(Liveness {
            silent_ms: millis(device.outbox.silence()),
            heartbeat_ms: device.heartbeat_age().map(millis),
        }),
        tasks: tasks.iter().map(|(task, state)| DeviceTask::new(task, *state, holder)).collect(),
        facts: facts.filter(|_| with_facts),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
