//! `get_system_info`: what this machine is and how it is doing, without running anything.

use serde_json::{Value, json};
use sysinfo::System;

/// The facts, read anew. What this system does not tell is `null`.
pub(super) fn info() -> Value {
    let memory = System::new().ok().map(|mut system| {
        system.refresh_memory();
        json!({
            "total_bytes": system.total_memory(),
            "available_bytes": system.available_memory(),
        })
    });
    let load = System::load_average().ok().map(|load| [load.one, load.five, load.fifteen]);
    json!({
        "hostname": System::host_name().ok(),
        "os": System::long_os_version().ok(),
        "kernel": System::kernel_version().ok(),
        "architecture": std::env::consts::ARCH,
        "cpu_count": std::thread::available_parallelism().map_or(0, usize::from),
        "uptime_seconds": System::uptime().ok(),
        "load_average": load,
        "memory": memory,
    })
}
