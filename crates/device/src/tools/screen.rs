//! `Screen`: what the display shows, where there is one.

use serde_json::Value;

use super::{Call, Tool};

/// The namespace of these tools.
pub(super) const NAMESPACE: &str = "Screen";

/// The display of this machine, if it has one.
pub(super) struct Screen {}

impl Screen {
    pub(super) fn new() -> Self {
        Self {}
    }

    pub(super) fn tools(&self) -> Vec<Tool> {
        Vec::new()
    }

    pub(super) async fn call(&self, tool_name: &str, _call: &Call<'_>) -> Result<Value, String> {
        Err(format!("Unknown tool '{tool_name}'"))
    }
}
