//! What can be called on this machine, and within which limits: the `Toolbox` knows which tools there are, lists
//! them (`list_tools`), and brings each call to its turn and to its tool.

mod bash;
mod below;
mod bounds;
mod catalog;
mod embedded;
mod files;
mod gate;
pub mod mcp;
pub mod observe;
mod overview;
mod places;
mod private;
mod quote;
mod screen;
mod settings;
mod shell;
mod system;
mod touches;
mod work;

use std::sync::Arc;

use aip::{Command, Payload, SessionId, ToolInfo, ToolType};
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use tokio::sync::SemaphorePermit;
use tokio_util::sync::CancellationToken;

use self::bash::Bash;
use self::catalog::{Catalog, Origin, Tool};
use self::embedded::Embedded;
pub use self::embedded::{EmbeddedTool, Output, Running};
use self::files::Files;
use self::gate::Gate;
use self::mcp::{Host, Prospect};
pub use self::overview::{Overview, ToolView};
use self::places::Places;
use self::screen::Screen;
pub use self::settings::{Exec, ToolSettings};
use crate::called::OnCall;
use crate::confine::Confinement;
use crate::flow::Flow;
use crate::info::Offers;
use crate::policy::Touch;
use crate::progress::Progress;
use crate::watchdog::Watchdog;

/// The tool that lists the tools.
const LIST_TOOLS: &str = "list_tools";

/// What a call says that was told to stop, before anything else that it has to say.
const STOPPED: &str = "stopped";

/// Who calls: what a COMMAND says of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Caller {
    pub(crate) agent_name: Option<String>,
    pub(crate) root_name: Option<String>,
    pub(crate) session_id: Option<SessionId>,
    /// Who wants it, and with which key.
    pub(crate) requester: Option<String>,
    pub(crate) key: Option<String>,
}

/// One call of a tool.
pub(crate) struct Call<'a> {
    pub(crate) parameters: Option<&'a Payload>,
    pub(crate) caller: &'a Caller,
    /// Ends it early.
    pub(crate) stop: &'a CancellationToken,
    pub(crate) progress: &'a Progress,
    /// The streams that its requester wants.
    pub(crate) flow: Option<&'a Flow>,
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
        read.map_err(|error| format!("Bad arguments: {}", self.fault::<T>(&error)))
    }

    /// What is wrong with the arguments, and with which; nobody who reads it sees lines and columns.
    fn fault<T: DeserializeOwned>(&self, error: &serde_json::Error) -> String {
        let text = self.parameters.map_or("{}", Payload::as_str);
        let mut json = serde_json::Deserializer::from_str(text);
        let (at, told) = match serde_path_to_error::deserialize::<_, T>(&mut json) {
            Err(error) => (error.path().to_string(), error.inner().to_string()),
            Ok(_) => (".".to_owned(), error.to_string()),
        };
        let told = told.rsplit_once(" at line ").map_or(told.as_str(), |(told, _)| told);
        if at == "." { told.to_owned() } else { format!("{at}: {told}") }
    }
}

/// Reads an argument that need not be given: `null` and "" are none. Models that fill in every argument a tool
/// may have, such as UFO's agents, write "" where they mean none.
///
/// # Errors
/// When it is of the wrong type.
fn optional<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T: DeserializeOwned,
    D: Deserializer<'de>,
{
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(None),
        Value::String(text) if text.is_empty() => Ok(None),
        value => serde_json::from_value(value).map(Some).map_err(D::Error::custom),
    }
}

/// A tool did what it was asked.
pub(crate) struct Returned {
    pub(crate) namespace: Option<String>,
    pub(crate) result: Payload,
}

/// An action whose turn has come.
pub(crate) struct Turn<'a>(Step<'a>);

enum Step<'a> {
    /// Nothing has to run for it.
    Answered(Returned),
    /// A tool may run, in its place.
    Tool(Arc<Tool>, Option<SemaphorePermit<'a>>),
}

/// Every tool of this device.
pub(crate) struct Toolbox {
    /// The tools of the device itself.
    built_in: Vec<Arc<Tool>>,
    bash: Bash,
    files: Files,
    screen: Screen,
    embedded: Embedded,
    host: Host,
    disabled: Vec<String>,
    gate: Gate,
    places: Places,
    on_call: OnCall,
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
        let bash = Bash::new(settings, confinement.clone(), watchdog);
        let (files, screen) = (Files::new(settings, shell::home()), Screen::new());
        let embedded = Embedded::new(&settings.embedded);
        let built_in = [bash.tools(), files.tools(), screen.tools(), embedded.tools()].concat();
        Self {
            built_in: built_in.into_iter().map(Arc::new).collect(),
            host,
            bash,
            files,
            screen,
            embedded,
            disabled: settings.disabled.clone(),
            gate: Gate::new(settings),
            places: Places::new(settings.parallel_commands, settings.servers.len()),
            on_call: settings.on_call.clone(),
        }
    }

    /// What can be done with the tools of the device itself, or with those of servers that stand in for them.
    pub(crate) fn offers(&self) -> Offers {
        Offers {
            commands: self.offers_any(bash::NAMESPACE, Some(bash::EXECUTE_COMMAND)),
            files: self.offers_any(files::NAMESPACE, None),
        }
    }

    /// Whether this tool is offered, or any of this namespace. A server that still starts is given the
    /// benefit of the doubt: it is told once for each connection, the first time right after our start.
    fn offers_any(&self, namespace: &str, name: Option<&str>) -> bool {
        let is_meant = |tool: &ToolInfo| {
            tool.namespace == namespace
                && name.is_none_or(|name| tool.tool_name == name)
                && !self.is_disabled(tool)
        };
        let to_come = || {
            let name = name.unwrap_or_default();
            is_meant(&Tool::built_in(Origin::Bash, namespace, name, ToolType::Action).info)
        };
        match self.host.prospect(namespace) {
            None => self.built_in.iter().any(|tool| is_meant(&tool.info)),
            Some(Prospect { is_starting, tools }) => {
                (is_starting && to_come()) || tools.iter().any(|tool| is_meant(&tool.info))
            }
        }
    }

    /// Who keeps a record of the calls.
    pub(crate) fn on_call(&self) -> &OnCall {
        &self.on_call
    }

    /// Waits until an action of a COMMAND may run: its tool is there, the owner allows it, and there is a
    /// place. Who waits for the owner or for a server's start takes none.
    ///
    /// # Errors
    /// Why it may not run, for the caller to read.
    pub(crate) async fn turn(&self, action: &Command, call: &Call<'_>) -> Result<Turn<'_>, String> {
        let step = match action.tool_name.as_str() {
            "" => Step::Answered(returned(None, &json!("No action taken."))?),
            LIST_TOOLS => Step::Answered(returned(None, &json!(self.list(call).await?))?),
            name => {
                let tool = self.find(name, action.tool_type, call).await?;
                let file = match tool.origin {
                    Origin::Files if self.gate.looks_at_path(&tool) => {
                        self.files.meant(call).await?
                    }
                    _ => None,
                };
                let touched = match self.gate.looks_at_effects(&tool) {
                    true => self.touched(&tool, call).await?,
                    false => Vec::new(),
                };
                self.gate.permit(&tool, call, file.as_ref(), &touched).await?;
                let place = self.places.take(&tool, call.stop).await?;
                Step::Tool(tool, place)
            }
        };
        Ok(Turn(step))
    }

    /// Runs an action whose turn has come.
    ///
    /// # Errors
    /// Why it could not run or what it said went wrong, for the caller to read.
    pub(crate) async fn run(&self, turn: Turn<'_>, call: &Call<'_>) -> Result<Returned, String> {
        match turn.0 {
            Step::Answered(returned) => Ok(returned),
            Step::Tool(tool, _place) => self.call(&tool, call).await,
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
            let missing = self.host.missing();
            missing.map_or_else(|| error.clone(), |missing| format!("{error}. {missing}"))
        })
    }

    /// What a call does to which files.
    ///
    /// # Errors
    /// When it would be refused anyway.
    async fn touched(&self, tool: &Tool, call: &Call<'_>) -> Result<Vec<Touch>, String> {
        match tool.origin {
            Origin::Bash => self.bash.touched(&tool.info.tool_name, call),
            Origin::Files => Ok(vec![self.files.touched(&tool.info.tool_name, call).await?]),
            Origin::Screen => Ok(Vec::new()),
            Origin::Embedded(_) | Origin::Mcp(_) => Ok(touches::of_foreign(tool, call)),
        }
    }

    /// Waits until each MCP server has started, or is known not to.
    async fn settled(&self, stop: &CancellationToken) -> Result<(), String> {
        tokio::select! {
            biased;
            () = self.host.settled() => Ok(()),
            () = stop.cancelled() => Err(STOPPED.to_owned()),
        }
    }

    async fn call(&self, tool: &Tool, call: &Call<'_>) -> Result<Returned, String> {
        let name = tool.info.tool_name.as_str();
        let namespace = Some(tool.info.namespace.clone());
        let result = match tool.origin {
            Origin::Bash => self.bash.call(name, call).await,
            Origin::Files => self.files.call(name, call).await,
            Origin::Screen => self.screen.call(name, call).await,
            Origin::Embedded(number) => {
                let result = self.embedded.call(number, call).await?;
                return Ok(Returned { namespace, result });
            }
            Origin::Mcp(server) => {
                let result = self.host.call(server, name, call).await?;
                return Ok(Returned { namespace, result });
            }
        }?;
        returned(namespace, &result)
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

    fn is_disabled(&self, tool: &ToolInfo) -> bool {
        self.disabled.iter().any(|name| is_named(name, tool))
    }

    async fn list(&self, call: &Call<'_>) -> Result<Vec<ToolInfo>, String> {
        let wanted: ListTools = call.arguments()?;
        self.settled(call.stop).await?;
        // What is denied whatever its arguments is no offer.
        let mut tools = self.catalog(call.caller).list(|tool| self.gate.ever_allows(tool));
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
    #[serde(default, deserialize_with = "optional")]
    tool_type: Option<ToolType>,
    #[serde(default, deserialize_with = "optional")]
    namespace: Option<String>,
    /// Whether to leave out the tools about tools, which is `list_tools` itself, as UFO does.
    #[serde(default, deserialize_with = "optional")]
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
    let tool = Tool::built_in(Origin::Bash, bash::NAMESPACE, LIST_TOOLS, tool_type);
    let info = tool.titled("List the tools", about).taking(schema).info;
    ToolInfo { tool_key: format!("{tool_type}::{LIST_TOOLS}"), ..info }
}

fn returned(namespace: Option<String>, result: &Value) -> Result<Returned, String> {
    let result = Payload::from_value(result).map_err(|error| error.to_string())?;
    Ok(Returned { namespace, result })
}
