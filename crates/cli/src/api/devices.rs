//! Devices, as the API shows them. What a server does not say is absent: there are older ones.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Api;
use crate::Failure;

#[derive(Debug, Deserialize)]
struct Devices {
    devices: Vec<Device>,
}

/// A device that is online, or away and expected back.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Device {
    pub(crate) id: String,
    pub(crate) platform: String,
    #[serde(default)]
    pub(crate) features: Vec<String>,
    #[serde(default)]
    pub(crate) tags: Vec<String>,
    /// What it was granted of the extension.
    #[serde(default)]
    pub(crate) extension: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    connected: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) connected_since: Option<Timestamp>,
    /// Since when it is away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) away_since: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) address: Option<String>,
    #[serde(default)]
    pub(crate) tasks: Vec<DeviceTask>,
}

/// A task of a device, running or waiting.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DeviceTask {
    pub(crate) state: String,
    pub(crate) since: Timestamp,
    /// The rest is there for whoever may see the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) task: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) session_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) task_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) requester: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) summary: Option<String>,
}

impl Device {
    /// Whether it can be given work.
    pub(crate) fn is_online(&self) -> bool {
        self.connected.unwrap_or(self.away_since.is_none())
    }
}

impl Api<'_> {
    /// The devices that are online or expected back.
    pub(crate) async fn devices(&self) -> Result<Vec<Device>, Failure> {
        let answer = self.get("/api/v1/devices", &[]).await?;
        Ok(self.read::<Devices>(&answer, "list of devices")?.devices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_online_unless_its_server_says_otherwise() {
        let device = |more: &str| -> Device {
            let text = format!(r#"{{"id":"d","platform":"linux"{more}}}"#);
            serde_json::from_str(&text).unwrap()
        };
        let since = |field: &str| format!(r#","{field}":"2026-01-01T00:00:00Z""#);
        assert!(device("").is_online());
        assert!(device(&since("connected_since")).is_online());
        assert!(!device(&since("away_since")).is_online());
        assert!(!device(r#","connected":false"#).is_online());
        assert!(device(r#","connected":true,"away_since":null"#).is_online());
    }
}
