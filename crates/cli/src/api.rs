//! The server's HTTP API, as far as the command line uses it.

use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::connect::Target;

/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Debug, Deserialize)]
struct Devices {
    devices: Vec<Device>,
}

/// A device that is online.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Device {
    pub(crate) id: String,
    pub(crate) platform: String,
    pub(crate) features: Vec<String>,
    pub(crate) connected_since: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) address: Option<String>,
    pub(crate) tasks: Vec<Task>,
}

/// A task of a device, running or waiting.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) session_id: String,
    pub(crate) task_name: String,
    pub(crate) requester: String,
    pub(crate) state: String,
    pub(crate) since: Timestamp,
}

/// Who is online.
pub(crate) async fn devices(target: &Target) -> Result<Vec<Device>, Failure> {
    let address = target.server.http("/api/v1/devices");
    let client = reqwest::Client::builder()
        .timeout(TIMEOUT)
        .no_proxy()
        .build()
        .context("cannot make an HTTP client")?;
    let mut request = client.get(&address);
    if let Some(key) = &target.key {
        request = request.header("X-API-Key", key.expose_secret());
    }
    let response = request.send().await.map_err(|error| unreachable(target, error))?;
    match response.status().as_u16() {
        200 => {}
        status @ (401 | 403) => {
            let text = format!("the server at {} refused the key (HTTP {status})", target.server);
            return Err(target.explain(link::Exit::Refused(text)));
        }
        status => {
            return Err(Failure::unreachable(anyhow::anyhow!(
                "the server at {} has no list of devices (HTTP {status}): it is no Flightdeck server",
                target.server
            )));
        }
    }
    let devices: Devices = response.json().await.map_err(|error| unreachable(target, error))?;
    Ok(devices.devices)
}

fn unreachable(target: &Target, error: reqwest::Error) -> Failure {
    let error = error.without_url();
    if error.is_connect() {
        let text = format!("no server answers at {}", target.server);
        return target.explain(link::Exit::Refused(text));
    }
    Failure::unreachable(anyhow::Error::from(error).context(format!("asking {}", target.server)))
}
