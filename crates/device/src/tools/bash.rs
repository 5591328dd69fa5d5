//! `BashExecutor`: the two tools that UFO's Linux devices have too.

use std::sync::Arc;

use aip::ToolType;
use serde_json::{Value, json};

use super::shell::Shell;
use super::{Call, Origin, Tool, ToolSettings, system};
use crate::confine::Confinement;
use crate::policy::Touch;
use crate::watchdog::Watchdog;

/// The namespace of these tools.
pub(super) const NAMESPACE: &str = "BashExecutor";

/// The tool that runs command lines.
pub(super) const EXECUTE_COMMAND: &str = "execute_command";

/// The tool that tells of the machine.
pub(super) const GET_SYSTEM_INFO: &str = "get_system_info";

/// Runs commands, and tells of the machine.
pub(super) struct Bash {
    shell: Shell,
}

impl Bash {
    pub(super) fn new(
        settings: &ToolSettings,
        confinement: Confinement,
        watchdog: Option<Arc<Watchdog>>,
    ) -> Self {
        Self { shell: Shell::new(settings, confinement, watchdog) }
    }

    /// Both count as actions, as UFO's Linux devices list them.
    pub(super) fn tools(&self) -> Vec<Tool> {
        let execute = self.shell.describe().map(|description| {
            Tool::built_in(Origin::Bash, NAMESPACE, EXECUTE_COMMAND, ToolType::Action)
                .titled("Run a command", &description)
                .taking(json!({"type": "object", "required": ["command"], "properties": {
                    "command": {"type": "string", "description": "The command line"},
                    "timeout": {"type": "number", "description": "Longest time in seconds", "default": 30},
                    "cwd": {"type": "string", "description": "The folder to run in"},
                    "env": {"type": "object", "description": "Environment variables to set", "additionalProperties": {"type": "string"}},
                }}))
        });
        let info = Tool::built_in(Origin::Bash, NAMESPACE, GET_SYSTEM_INFO, ToolType::Action)
            .titled(
                "Facts of this machine",
                "Returns the operating system, kernel, uptime, load, processors and memory of this machine.",
            );
        execute.into_iter().chain([info]).collect()
    }

    /// What a call of one of them does to which files.
    ///
    /// # Errors
    /// When it would be refused anyway.
    pub(super) fn touched(&self, tool_name: &str, call: &Call<'_>) -> Result<Vec<Touch>, String> {
        match tool_name {
            EXECUTE_COMMAND => self.shell.touched(&call.arguments()?),
            _ => Ok(Vec::new()),
        }
    }

    /// Runs one of them.
    ///
    /// # Errors
    /// Why it could not run.
    pub(super) async fn call(&self, tool_name: &str, call: &Call<'_>) -> Result<Value, String> {
        match tool_name {
            EXECUTE_COMMAND => self.shell.execute(call.arguments()?, call).await,
            _ => Ok(system::info()),
        }
    }
}
