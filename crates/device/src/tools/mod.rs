//! What can be called on this machine, and within which limits.

pub mod observe;
mod shell;
mod system;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aip::{Payload, ToolInfo, ToolType};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use self::shell::Shell;
use crate::watchdog::Watchdog;

/// The namespace of the tools that UFO's Linux devices have too.
pub const BASH_EXECUTOR: &str = "BashExecutor";

/// What `execute_command` may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Exec {
    /// Commands that only observe, without a shell.
    #[default]
    Observe,
    /// Everything, through `sh -c`.
    Shell,
    /// Nothing.
    Off,
}

/// The owner's limits on the tools.
#[derive(Debug, Clone)]
pub struct ToolSettings {
    /// What `execute_command` may run.
    pub exec: Exec,
    /// Folders whose files may be read; none means the user's home without its dot folders.
    pub roots: Vec<PathBuf>,
    /// Longest time for one command, whatever its caller asks for.
    pub max_command_time: Duration,
    /// Most bytes that are kept of each output stream of a command.
    pub max_output_bytes: usize,
}

impl Default for ToolSettings {
    fn default() -> Self {
        Self {
            exec: Exec::default(),
            roots: Vec::new(),
            max_command_time: Duration::from_secs(3600),
            max_output_bytes: 1024 * 1024,
        }
    }
}

/// A tool did what it was asked.
pub(crate) struct Returned {
    pub(crate) namespace: Option<&'static str>,
    pub(crate) result: Payload,
}

/// Every tool of this device.
pub(crate) struct Toolbox {
    shell: Shell,
}

impl Toolbox {
    pub(crate) fn new(settings: &ToolSettings, watchdog: Option<Arc<Watchdog>>) -> Self {
        Self { shell: Shell::new(settings, watchdog) }
    }

    /// Calls a tool by its name. `stop` ends it early.
    ///
    /// # Errors
    /// Why it could not run or what it said went wrong, for the caller to read.
    pub(crate) async fn call(
        &self,
        tool_name: &str,
        parameters: Option<&Payload>,
        stop: &CancellationToken,
    ) -> Result<Returned, String> {
        let built_in = |result: Value| returned(Some(BASH_EXECUTOR), &result);
        match tool_name {
            "" => returned(None, &json!("No action taken.")),
            "list_tools" => returned(None, &json!(self.list(&arguments(parameters)?))),
            "execute_command" => {
                self.shell.execute(arguments(parameters)?, stop).await.and_then(built_in)
            }
            "get_system_info" => built_in(system::info()),
            unknown => Err(format!(
                "Unknown tool '{unknown}'. This device has: {}",
                self.tools()
                    .iter()
                    .map(|tool| tool.tool_name.as_str())
                    .collect::<Vec<_>>()
                    .join(", ")
            )),
        }
    }

    fn list(&self, wanted: &ListTools) -> Vec<ToolInfo> {
        let fits = |tool: &ToolInfo| {
            wanted.tool_type.is_none_or(|tool_type| tool_type == tool.tool_type)
                && wanted.namespace.as_ref().is_none_or(|namespace| *namespace == tool.namespace)
        };
        self.tools().into_iter().filter(fits).collect()
    }

    fn tools(&self) -> Vec<ToolInfo> {
        let execute = self.shell.describe().map(|description| {
            tool(
                "execute_command",
                "Run a command",
                &description,
                json!({"type": "object", "required": ["command"], "properties": {
                    "command": {"type": "string", "description": "The command line"},
                    "timeout": {"type": "number", "description": "Longest time in seconds", "default": 30},
                    "cwd": {"type": "string", "description": "The folder to run in"},
                }}),
            )
        });
        let info = tool(
            "get_system_info",
            "Facts of this machine",
            "Returns the operating system, kernel, uptime, load, processors and memory of this machine.",
            json!({"type": "object", "properties": {}}),
        );
        execute.into_iter().chain([info]).collect()
    }
}

/// Arguments of `list_tools`, all optional. `remove_meta` changes nothing: the built-in tools have none.
#[derive(Debug, Default, Deserialize)]
struct ListTools {
    #[serde(default)]
    tool_type: Option<ToolType>,
    #[serde(default)]
    namespace: Option<String>,
}

/// Both tools count as actions, as UFO's Linux devices list them.
fn tool(name: &str, title: &str, description: &str, input_schema: Value) -> ToolInfo {
    let tool_type = ToolType::Action;
    ToolInfo {
        tool_key: format!("{tool_type}::{name}"),
        tool_name: name.to_owned(),
        namespace: BASH_EXECUTOR.to_owned(),
        tool_type,
        title: Some(title.to_owned()),
        description: Some(description.to_owned()),
        input_schema: Some(input_schema),
        output_schema: None,
        meta: None,
        annotations: None,
    }
}

/// Reads a tool's arguments; what it does not know is ignored, as UFO sends more than is asked for.
fn arguments<T: DeserializeOwned>(parameters: Option<&Payload>) -> Result<T, String> {
    let read = match parameters {
        Some(parameters) => parameters.parse(),
        None => serde_json::from_str("{}"),
    };
    read.map_err(|error| format!("Bad arguments: {error}"))
}

fn returned(namespace: Option<&'static str>, result: &Value) -> Result<Returned, String> {
    let result = Payload::from_value(result).map_err(|error| error.to_string())?;
    Ok(Returned { namespace, result })
}
