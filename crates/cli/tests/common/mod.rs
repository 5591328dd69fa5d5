//! What the whole-system tests share: real processes in a home of their own (`process`), and raw
//! peers that speak as the Python ones do (`peer`). Everything is killed when it is dropped, and
//! nothing waits longer than [`PATIENCE`].

#![allow(dead_code, unused_imports, reason = "no test file uses all of it")]

pub(crate) mod peer;
pub(crate) mod process;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

pub(crate) use peer::{Peer, PythonServer};
pub(crate) use process::{Done, Home, Process, Server};
use serde_json::{Value, json};

/// The longest wait for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Time between two looks at what cannot be waited for.
const LOOK: Duration = Duration::from_millis(5);

/// Waits for something that must happen.
pub(crate) async fn within<T>(what: &str, happens: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, happens).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not happen within {PATIENCE:?}"),
    }
}

/// Waits until something is so that tells nobody when it becomes so.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let looking = async {
        while !is_so() {
            tokio::time::sleep(LOOK).await;
        }
    };
    within(what, looking).await;
}

/// An HTTP client without TLS.
pub(crate) fn http_client() -> reqwest::Client {
    let nobody = link::Trust::nobody().unwrap();
    let client = reqwest::Client::builder().tls_backend_preconfigured(nobody.config());
    client.no_proxy().timeout(PATIENCE).build().unwrap()
}

/// A word that no other test of this run uses.
pub(crate) fn unique(what: &str) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{what}-{}-{n:04}", std::process::id())
}

/// A command that takes minutes, and can be told from every other one.
pub(crate) fn long_sleep() -> String {
    let word = unique("");
    format!("sleep 300.0{}", word.replace('-', "0"))
}

/// The request for one `execute_command`.
pub(crate) fn plan(command: &str) -> String {
    plan_of(&[command])
}

/// The request for several, one after the other.
pub(crate) fn plan_of(commands: &[&str]) -> String {
    let command = |line: &&str| {
        json!({"tool_name": "execute_command", "parameters": {"command": line, "timeout": 300},
            "tool_type": "action"})
    };
    json!({"commands": commands.iter().map(command).collect::<Vec<_>>()}).to_string()
}

/// What a Python device returns for a command that went well.
pub(crate) fn good_result(call_id: &Value) -> Value {
    json!({"status": "success", "error": null, "result": {"success": true, "stdout": "ok"},
        "namespace": "BashExecutor", "call_id": call_id})
}
