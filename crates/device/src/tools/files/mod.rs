//! `Files`: reads, writes, lists and searches files below the roots that the owner names.

use serde_json::Value;

use super::{Call, Tool, ToolSettings};

/// The namespace of these tools.
pub(super) const NAMESPACE: &str = "Files";

/// The files below the roots.
pub(super) struct Files {}

impl Files {
    pub(super) fn new(_settings: &ToolSettings) -> Self {
        Self {}
    }

    pub(super) fn tools(&self) -> Vec<Tool> {
        Vec::new()
    }

    pub(super) async fn call(&self, tool_name: &str, _call: &Call<'_>) -> Result<Value, String> {
        Err(format!("Unknown tool '{tool_name}'"))
    }
}
