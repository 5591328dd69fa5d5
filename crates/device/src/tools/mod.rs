//! What can be called on this machine, and within which limits.

mod bounds;
mod catalog;
mod files;
pub mod mcp;
pub mod observe;
mod overview;
mod quote;
mod screen;
mod shell;
mod system;
mod work;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aip::{Command, Payload, SessionId, ToolInfo, ToolType};
use link::Trust;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use self::catalog::{Catalog, Origin, Tool};
use self::files::Files;
use self::mcp::Host;
pub use self::overview::{Overview, ToolView};
use self::screen::Screen;
use self::shell::Shell;
use crate::confine::{Confinement, SandboxError};
use crate::info::Offers;
use crate::policy::{Answer, Ask, Decision, Policy, Question, Subject};
use crate::progress::Progress;
use crate::watchdog::Watchdog;

/// The namespace of the tools that UFO's Linux devices have too.
pub const BASH_EXECUTOR: &str = "BashExecutor";

/// The tool that lists the tools.
const LIST_TOOLS: &str = "list_tools";

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
    /// Whose certificates MCP servers may have; the system's if none.
    pub trust: Option<Trust>,
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
            trust: None,
            policy: Policy::default(),
            ask: None,
            ask_timeout: Duration::from_secs(60),
        }
    }
}

impl ToolSettings {
    /// The limits on what the tools start.
    ///
    /// # Errors
    /// When the sandbox that is asked for cannot be had.
    pub fn confinement(&self) -> Result<Confinement, SandboxError> {
        let confinement = Confinement::new(self.max_memory_bytes);
        if self.sandbox { confinement.sandboxed(&self.roots) } else { Ok(confinement) }
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
    /// The tools of the device itself.
    built_in: Vec<Arc<Tool>>,
    shell: Shell,
    files: Files,
    screen: Screen,
    host: Host,
    disabled: Vec<String>,
    policy: Policy,
    ask: Option<Arc<dyn Ask>>,
    ask_timeout: Duration,
}

impl Toolbox {
    /// Gets every tool ready, and starts the MCP servers. Must be called in a runtime.
    pub(crate) fn start(
        settings: &ToolSettings,
        confinement: &Confinement,
        watchdog: Option<Arc<Watchdog>>,
        on_event: &mcp::OnEvent,
    ) -> Self {
        let limits = mcp::Limits {
            start_timeout: settings.mcp_start_timeout,
            call_timeout: settings.mcp_call_timeout,
            trust: settings.trust.clone(),
            confinement: confinement.clone(),
        };
        let host = Host::start(&settings.servers, &limits, watchdog.as_ref(), on_event);
        let shell = Shell::new(settings, confinement.clone(), watchdog);
        let (files, screen) = (Files::new(settings, shell::home()), Screen::new());
        let built_in = [bash(&shell), files.tools(), screen.tools()].concat();
        Self {
            built_in: built_in.into_iter().map(Arc::new).collect(),
            host,
            shell,
            files,
            screen,
            disabled: settings.disabled.clone(),
            policy: settings.policy.clone(),
            ask: settings.ask.clone(),
            ask_timeout: settings.ask_timeout,
        }
    }

    /// What the tools of the device itself can do, as far as they are offered.
    pub(crate) fn offers(&self) -> Offers {
        let tools = self.catalog(&Caller::default()).list(|_| true);
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
            LIST_TOOLS => returned(None, &json!(self.list(call).await?)),
            name => {
                let tool = self.find(name, action.tool_type, call).await?;
                self.permit(&tool, call).await?;
                self.run(&tool, call).await
            }
        }
    }

    /// Ends the MCP servers.
    pub(crate) async fn stop(&self) {
        self.host.stop().await;
    }

    /// The tool that is meant. While servers are still starting, one that is not there may come.
    async fn find(
        &self,
        name: &str,
        tool_type: ToolType,
        call: &Call<'_>,
    ) -> Result<Arc<Tool>, String> {
        let found = self.catalog(call.caller).find(name, tool_type).cloned();
        let found = match found {
            Err(_) if !self.host.is_settled() => {
                self.settled(call.stop).await?;
                self.catalog(call.caller).find(name, tool_type).cloned()
            }
            found => found,
        };
        found.map_err(|error| {
            let mut all = vec![error];
            all.extend(self.host.out_of_service());
            all.join(". ")
        })
    }

    /// Waits until each MCP server has started, or is known not to.
    async fn settled(&self, stop: &CancellationToken) -> Result<(), String> {
        tokio::select! {
            () = self.host.settled() => Ok(()),
            () = stop.cancelled() => Err("stopped".to_owned()),
        }
    }

    async fn run(&self, tool: &Tool, call: &Call<'_>) -> Result<Returned, String> {
        let name = tool.info.tool_name.as_str();
        let namespace = Some(tool.info.namespace.clone());
        let result = match tool.origin {
            Origin::Bash => self.run_bash(name, call).await,
            Origin::Files => self.files.call(name, call).await,
            Origin::Screen => self.screen.call(name, call).await,
            Origin::Mcp(server) => {
                let result = self.host.call(server, name, call).await?;
                return Ok(Returned { namespace, result });
            }
        }?;
        returned(namespace, &result)
    }

    async fn run_bash(&self, name: &str, call: &Call<'_>) -> Result<Value, String> {
        match name {
            "execute_command" => self.shell.execute(call.arguments()?, call).await,
            _ => Ok(system::info()),
        }
    }

    /// Asks the policy, and the owner where it says so.
    async fn permit(&self, tool: &Tool, call: &Call<'_>) -> Result<(), String> {
        let info = &tool.info;
        let verdict = self.policy.judge(&Subject {
            namespace: &info.namespace,
            tool_name: &info.tool_name,
            tool_type: tool.believed,
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
    fn catalog(&self, caller: &Caller) -> Catalog {
        let mut tools = self.all(caller);
        tools.retain(|tool| !self.is_disabled(&tool.info));
        Catalog::new(tools)
    }

    /// The same with what the owner has switched off.
    fn all(&self, caller: &Caller) -> Vec<Arc<Tool>> {
        let mut tools = self.built_in.clone();
        // A server that the owner calls as a set of ours stands in for it.
        let replaced: Vec<&str> = self.host.namespaces(caller).collect();
        tools.retain(|tool| !replaced.contains(&tool.info.namespace.as_str()));
        tools.extend(self.host.tools(caller));
        tools
    }

    fn is_ever_allowed(&self, tool: &Tool) -> bool {
        let ToolInfo { namespace, tool_name, .. } = &tool.info;
        self.policy.never_allows(namespace, tool_name, tool.believed).is_none()
    }

    fn is_disabled(&self, tool: &ToolInfo) -> bool {
        self.disabled.iter().any(|name| is_named(name, tool))
    }

    async fn list(&self, call: &Call<'_>) -> Result<Vec<ToolInfo>, String> {
        let wanted: ListTools = call.arguments()?;
        self.settled(call.stop).await?;
        // What is denied whatever its arguments is no offer.
        let mut tools = self.catalog(call.caller).list(|tool| self.is_ever_allowed(tool));
        if wanted.remove_meta == Some(false) {
            tools.extend(ToolType::ALL.iter().map(|tool_type| list_tools(*tool_type)));
        }
        tools.retain(|tool| {
            wanted.tool_type.is_none_or(|tool_type| tool_type == tool.tool_type)
                && wanted.namespace.as_ref().is_none_or(|namespace| *namespace == tool.namespace)
        });
        Ok(tools)
    }
}

/// Both count as actions, as UFO's Linux devices list them.
fn bash(shell: &Shell) -> Vec<Tool> {
    let execute = shell.describe().map(|description| {
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

/// Whether `NAMESPACE`, `NAMESPACE.TOOL` or `TOOL` is this tool.
fn is_named(name: &str, tool: &ToolInfo) -> bool {
    name == tool.namespace
        || name == tool.tool_name
        || name
            .strip_prefix(tool.namespace.as_str())
            .and_then(|rest| rest.strip_prefix('.'))
            .is_some_and(|rest| rest == tool.tool_name)
}

/// Arguments of `list_tools`, all optional.
#[derive(Debug, Default, Deserialize)]
struct ListTools {
    #[serde(default)]
    tool_type: Option<ToolType>,
    #[serde(default)]
    namespace: Option<String>,
    /// Whether to leave out the tools about tools, which is `list_tools` itself, as UFO does.
    #[serde(default)]
    remove_meta: Option<bool>,
}

/// `list_tools` as it lists itself.
fn list_tools(tool_type: ToolType) -> ToolInfo {
    let about = "Lists the tools of this device. Arguments, all optional: tool_type (data_collection or \
        action), namespace, remove_meta (leaves this tool out; true unless given).";
    let schema = json!({"type": "object", "properties": {
        "tool_type": {"type": "string", "enum": ToolType::ALL},
        "namespace": {"type": "string"},
        "remove_meta": {"type": "boolean", "default": true},
    }});
    let tool = Tool::built_in(Origin::Bash, BASH_EXECUTOR, LIST_TOOLS, tool_type);
    let info = tool.titled("List the tools", about).taking(schema).info;
    ToolInfo { tool_key: format!("{tool_type}::{LIST_TOOLS}"), ..info }
}

fn returned(namespace: Option<String>, result: &Value) -> Result<Returned, String> {
    let result = Payload::from_value(result).map_err(|error| error.to_string())?;
    Ok(Returned { namespace, result })
}
