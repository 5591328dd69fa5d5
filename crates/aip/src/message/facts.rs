//! What clients tell of themselves in REGISTER's `metadata`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Extension;

/// A device's `metadata`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeviceMetadata {
    /// `windows`, `linux` or `mobile`.
    pub platform: String,
    /// Its facts.
    pub system_info: SystemInfo,
    /// When it registered.
    pub registration_time: String,
    /// What it asks for of the extension.
    pub flightdeck: Extension,
}

/// A constellation's `metadata`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ConstellationMetadata {
    /// Always `constellation_client`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// When it registered.
    pub registration_time: String,
    /// What it asks for of the extension.
    pub flightdeck: Extension,
}

/// The facts of a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SystemInfo {
    /// The id it registers under.
    pub device_id: String,
    /// `windows`, `linux` or `mobile`.
    pub platform: String,
    /// The version of the system, as the system words it.
    pub os_version: String,
    /// How many processors it may use.
    pub cpu_count: usize,
    /// Its memory in GiB, with two decimals.
    pub memory_total_gb: f64,
    /// Its name on the network.
    pub hostname: String,
    /// Its address on the local network.
    pub ip_address: String,
    /// What can be done on it.
    pub supported_features: Vec<String>,
    /// `computer`, `mobile`, `web` or `iot`.
    pub platform_type: String,
    /// The version of this shape: `1.0`.
    pub schema_version: String,
    /// Whatever else is worth telling.
    pub custom_metadata: Map<String, Value>,
}
