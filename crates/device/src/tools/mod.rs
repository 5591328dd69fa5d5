//! What can be called on this machine, and within which limits.

mod catalog;
mod files;
pub mod mcp;
pub mod observe;
mod progress;
mod screen;
mod shell;
mod system;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aip::{Command, Payload, SessionId, ToolInfo, ToolType};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use self::catalog::{Catalog, Origin, Tool};
use self::files::Files;
pub(crate) use self::progress::Progress;
use self::screen::Screen;
use self::shell::Shell;
use crate::info::Offers;
use crate::policy::{Answer, Ask, Decision, Policy, Question, Subject};
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
#[derive(Clone)]
pub struct ToolSettings {
    /// What `execute_command` may run.
    pub exec: Exec,
    /// Folders whose files may be read; none means the user's home without its dot folders.
    pub roots: Vec<PathBuf>,
    /// Longest time for one command, whatever its caller asks for.
    pub max_command_time: Duration,
    /// Most bytes that are kept of each output stream of a command.
    pub max_output_bytes: usize,
    /// Most bytes of memory that each process of a command or MCP server may take; 0 for no limit.
    pub max_memory_bytes: u64,
    /// Whether what a command or MCP server starts may write below the roots only.
    pub sandbox: bool,
    /// Tools and namespaces that are not offered: `NAMESPACE`, `NAMESPACE.TOOL` or `TOOL`.
    pub disabled: Vec<String>,
    /// The MCP servers.
    pub servers: Vec<mcp::ServerSettings>,
    /// Longest time for an MCP server to start.
    pub mcp_start_timeout: Duration,
    /// Longest time for one call of an MCP server's tool.
    pub mcp_call_timeout: Duration,
    /// Which calls are allowed, denied, or asked about.
    pub policy: Policy,
    /// Who is asked; nobody, if there is no terminal.
    pub ask: Option<Arc<dyn Ask>>,
    /// Longest wait for an answer.
    pub ask_timeout: Duration,
}

impl fmt::Debug for ToolSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ToolSettings").field("exec", &self.exec).finish_non_exhaustive()
    }
}

impl Default for ToolSettings {
    fn default() -> Self {
        Self {
            exec: Exec::default(),
            roots: Vec::new(),
            max_command_time: Duration::from_secs(3600),
            max_output_bytes: 1024 * 1024,
            max_memory_bytes: 4 * 1024 * 1024 * 1024,
            sandbox: false,
            disabled: Vec::new(),
            servers: Vec::new(),
            mcp_start_timeout: Duration::from_secs(60),
            mcp_call_timeout: Duration::from_secs(600),
            policy: Policy::default(),
            ask: None,
            ask_timeout: Duration::from_secs(60),
        }
    }
}

/// Who calls: what a COMMAND says of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Caller {
    pub(crate) agent_name: Option<String>,
    pub(crate) root_name: Option<String>,
    pub(crate) session_id: Option<SessionId>,
}

/// One call of a tool.
pub(crate) struct Call<'a> {
    pub(crate) parameters: Option<&'a Payload>,
    pub(crate) caller: &'a Caller,
    /// Ends it early.
    pub(crate) stop: &'a CancellationToken,
    pub(crate) progress: &'a Progress,
}

impl Call<'_> {
    /// Reads the arguments; what the tool does not know is ignored, as UFO sends more than is asked for.
    ///
    /// # Errors
    /// When one that is needed is missing, or of the wrong type.
    fn arguments<T: DeserializeOwned>(&self) -> Result<T, String> {
        let read = match self.parameters {
            Some(parameters) => parameters.parse(),
            None => serde_json::from_str("{}"),
        };
        read.map_err(|error| format!("Bad arguments: {error}"))
    }
}

/// A tool did what it was asked.
pub(crate) struct Returned {
    pub(crate) namespace: Option<String>,
    pub(crate) result: Payload,
}

/// Every tool of this device.
pub(crate) struct Toolbox {
    shell: Shell,
    files: Files,
    screen: Screen,
    disabled: Vec<String>,
    policy: Policy,
    ask: Option<Arc<dyn Ask>>,
    ask_timeout: Duration,
}

impl Toolbox {
    pub(crate) fn new(settings: &ToolSettings, watchdog: Option<Arc<Watchdog>>) -> Self {
        Self {
            shell: Shell::new(settings, watchdog),
            files: Files::new(settings),
            screen: Screen::new(),
            disabled: settings.disabled.clone(),
            policy: settings.policy.clone(),
            ask: settings.ask.clone(),
            ask_timeout: settings.ask_timeout,
        }
    }

    /// What the tools of the device itself can do, as far as they are offered.
    pub(crate) fn offers(&self) -> Offers {
        let tools = self.catalog(&Caller::default()).list();
        let has = |origin: &str, name: Option<&str>| {
            tools.iter().any(|tool| {
                tool.namespace == origin && name.is_none_or(|name| tool.tool_name == name)
            })
        };
        Offers {
            commands: has(BASH_EXECUTOR, Some("execute_command")),
            files: has(files::NAMESPACE, None),
        }
    }

    /// Runs one action of a COMMAND.
    ///
    /// # Errors
    /// Why it could not run or what it said went wrong, for the caller to read.
    pub(crate) async fn call(&self, action: &Command, call: &Call<'_>) -> Result<Returned, String> {
        match action.tool_name.as_str() {
            "" => returned(None, &json!("No action taken.")),
            "list_tools" => returned(None, &json!(self.list(call)?)),
            name => {
                let catalog = self.catalog(call.caller);
                let tool = catalog.find(name, action.tool_type)?;
                self.permit(tool, call).await?;
                self.run(tool, call).await
            }
        }
    }

    async fn run(&self, tool: &Tool, call: &Call<'_>) -> Result<Returned, String> {
        let name = tool.info.tool_name.as_str();
        let result = match tool.origin {
            Origin::Bash => self.run_bash(name, call).await,
            Origin::Files => self.files.call(name, call).await,
            Origin::Screen => self.screen.call(name, call).await,
        }?;
        returned(Some(tool.info.namespace.clone()), &result)
    }

    async fn run_bash(&self, name: &str, call: &Call<'_>) -> Result<Value, String> {
        match name {
            "execute_command" => self.shell.execute(call.arguments()?, call.stop).await,
            _ => Ok(system::info()),
        }
    }

    /// Asks the policy, and the owner where it says so.
    async fn permit(&self, tool: &Tool, call: &Call<'_>) -> Result<(), String> {
        let info = &tool.info;
        let verdict = self.policy.judge(&Subject {
            namespace: &info.namespace,
            tool_name: &info.tool_name,
            tool_type: info.tool_type,
            parameters: call.parameters,
            usual: tool.usual,
        });
        let name = format!("{}.{}", info.namespace, info.tool_name);
        let rule = &verdict.rule;
        match verdict.decision {
            Decision::Allow => Ok(()),
            Decision::Deny => Err(format!("Denied by this device's policy: {name} (rule: {rule})")),
            Decision::Ask => {
                let question = Question {
                    namespace: info.namespace.clone(),
                    tool_name: info.tool_name.clone(),
                    parameters: call.parameters.cloned(),
                    session_id: call.caller.session_id.clone(),
                    rule: rule.clone(),
                };
                let refused =
                    |why| format!("Refused: {name} needs the owner's yes, {why} (rule: {rule})");
                match self.ask(question, call.stop).await? {
                    Some(Answer::Yes) => Ok(()),
                    Some(Answer::No) => Err(refused("who said no".to_owned())),
                    Some(Answer::Nobody) => Err(refused("and nobody is there to ask".to_owned())),
                    None => {
                        let waited = self.ask_timeout.as_secs();
                        Err(refused(format!("who did not answer within {waited} s")))
                    }
                }
            }
        }
    }

    /// The owner's answer; none within the time for it.
    async fn ask(
        &self,
        question: Question,
        stop: &CancellationToken,
    ) -> Result<Option<Answer>, String> {
        let Some(ask) = &self.ask else { return Ok(Some(Answer::Nobody)) };
        tokio::select! {
            answer = tokio::time::timeout(self.ask_timeout, ask.ask(question)) => Ok(answer.ok()),
            () = stop.cancelled() => Err("stopped".to_owned()),
        }
    }

    /// What this caller is offered.
    fn catalog(&self, _caller: &Caller) -> Catalog {
        let built_in = self.bash().into_iter().chain(self.files.tools()).chain(self.screen.tools());
        Catalog::new(built_in.filter(|tool| !self.is_disabled(&tool.info)))
    }

    fn is_disabled(&self, tool: &ToolInfo) -> bool {
        self.disabled.iter().any(|name| {
            *name == tool.namespace
                || *name == tool.tool_name
                || name.split_once('.') == Some((&tool.namespace, &tool.tool_name))
        })
    }

    fn list(&self, call: &Call<'_>) -> Result<Vec<ToolInfo>, String> {
        let wanted: ListTools = call.arguments()?;
        let mut tools = self.catalog(call.caller).list();
        tools.retain(|tool| {
            wanted.tool_type.is_none_or(|tool_type| tool_type == tool.tool_type)
                && wanted.namespace.as_ref().is_none_or(|namespace| *namespace == tool.namespace)
        });
        Ok(tools)
    }

    /// Both count as actions, as UFO's Linux devices list them.
    fn bash(&self) -> Vec<Tool> {
        let execute = self.shell.describe().map(|description| {
            Tool::built_in(Origin::Bash, BASH_EXECUTOR, "execute_command", ToolType::Action)
                .titled("Run a command", &description)
                .taking(json!({"type": "object", "required": ["command"], "properties": {
                    "command": {"type": "string", "description": "The command line"},
                    "timeout": {"type": "number", "description": "Longest time in seconds", "default": 30},
                    "cwd": {"type": "string", "description": "The folder to run in"},
                }}))
        });
        let info = Tool::built_in(Origin::Bash, BASH_EXECUTOR, "get_system_info", ToolType::Action)
            .titled(
                "Facts of this machine",
                "Returns the operating system, kernel, uptime, load, processors and memory of this machine.",
            );
        execute.into_iter().chain([info]).collect()
    }
}

/// Arguments of `list_tools`, all optional.
#[derive(Debug, Default, Deserialize)]
struct ListTools {
    #[serde(default)]
    tool_type: Option<ToolType>,
    #[serde(default)]
    namespace: Option<String>,
}

fn returned(namespace: Option<String>, result: &Value) -> Result<Returned, String> {
    let result = Payload::from_value(result).map_err(|error| error.to_string())?;
    Ok(Returned { namespace, result })
}
