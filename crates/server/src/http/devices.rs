//! `GET /api/v1/devices`: which devices are online, and what they are busy with.

use axum::extract::State;
use axum::response::Json;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::registry::Client;
use crate::server::Server;
use crate::session::Busy;

#[derive(Serialize)]
pub(super) struct Devices {
    devices: Vec<Device>,
}

#[derive(Serialize)]
struct Device {
    id: String,
    platform: String,
    features: Vec<String>,
    connected_since: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    /// Running tasks first, then the waiting ones.
    tasks: Vec<Busy>,
}

/// What is read of a device's facts.
#[derive(Default, Deserialize)]
struct Facts {
    #[serde(default)]
    supported_features: Vec<String>,
}

pub(super) async fn list(State(server): State<Server>) -> Json<Devices> {
    let clients = server.registry().all();
    let devices = clients.iter().filter(|client| client.is_device());
    Json(Devices { devices: devices.map(|device| describe(&server, device)).collect() })
}

fn describe(server: &Server, device: &Client) -> Device {
    let facts: Facts = device.facts().and_then(|facts| facts.parse().ok()).unwrap_or_default();
    Device {
        id: device.id().to_string(),
        platform: device.platform.clone(),
        features: facts.supported_features,
        connected_since: device.connected_at,
        address: device.address.map(|address| address.to_string()),
        tasks: server.sessions().busy(device.id()),
    }
}
