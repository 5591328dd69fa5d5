//! Tools that other programs offer, through the Model Context Protocol.
//!
//! `Host` has one `Server` for each that the owner has listed, kept for the device's life by `supervisor.rs`, and
//! knows which caller is offered which; `state.rs` says how one is doing. `start.rs` makes a connection to one,
//! `stdio.rs` (with `pipes.rs`) and `http.rs` (with `posts.rs`) the two ways to; `message.rs` reads what comes, and
//! `asked.rs` bounds what a server may ask. `client.rs` is a connection that stands, `entry.rs` reads what a server
//! says of a tool, `listing.rs` is the tools as they are offered, `result.rs` what a call returned.

mod asked;
mod client;
mod entry;
mod http;
mod listing;
mod message;
mod pipes;
mod posts;
mod result;
mod server;
mod settings;
mod start;
mod state;
mod stdio;
mod supervisor;

use std::sync::Arc;

use aip::ToolType;
use futures_util::future::join_all;

pub(super) use self::server::Limits;
use self::server::Server;
pub use self::settings::{Section, ServerSettings, Transport};
pub use self::state::{ServerEvent, ServerState};
use super::catalog::{Origin, Tool};
use super::{Call, Caller};
use crate::watchdog::Watchdog;

/// The root that serves for every root an agent has no section for, as in UFO's `mcp.yaml`.
const DEFAULT_ROOT: &str = "default";

/// Of so many servers that do not run, a caller who looks for a tool is told the names.
const MOST_NAMES: usize = 10;

/// And of so many, why.
const MOST_REASONS: usize = 3;

/// The most of such a reason, in characters.
const MOST_OF_A_REASON: usize = 200;

/// Told what happens to each server.
pub(crate) type OnEvent = Arc<dyn Fn(ServerEvent) + Send + Sync>;

/// All MCP servers of a device.
pub(super) struct Host {
    servers: Vec<Arc<Server>>,
}

impl Host {
    /// Starts all of them, side by side. What stops them is dropping this, or [`Self::stop`].
    ///
    /// Must be called in a runtime.
    pub(super) fn start(
        settings: &[ServerSettings],
        limits: &Limits,
        watchdog: Option<&Arc<Watchdog>>,
        on_event: &OnEvent,
    ) -> Self {
        let start = |(number, settings): (usize, &ServerSettings)| {
            let (settings, limits) = (settings.clone(), limits.clone());
            let (watchdog, on_event) = (watchdog.cloned(), on_event.clone());
            Server::start(Origin::Mcp(number), settings, limits, watchdog, on_event)
        };
        Self { servers: settings.iter().enumerate().map(start).collect() }
    }

    /// Waits until each has started, or is known not to. Those that are only connected to, and were down,
    /// are tried anew: they may have come since.
    pub(super) async fn settled(&self) {
        join_all(self.servers.iter().map(|server| server.settled())).await;
    }

    /// Whether nothing would come of that.
    pub(super) fn is_settled(&self) -> bool {
        self.servers.iter().all(|server| server.is_settled())
    }

    /// Which of them do not run and why, for their owner.
    pub(super) fn out_of_service(&self) -> Vec<String> {
        self.servers.iter().filter_map(|server| server.out_of_service()).collect()
    }

    /// The same in short, for whoever looks for a tool in vain; none if all run.
    pub(super) fn missing(&self) -> Option<String> {
        let told = |(at, (namespace, why)): (usize, (&str, String))| match at {
            ..MOST_REASONS => format!("'{namespace}' ({})", shortened(&why)),
            _ => format!("'{namespace}'"),
        };
        let mut told: Vec<_> = self.troubles().enumerate().map(told).collect();
        let more = told.len().saturating_sub(MOST_NAMES);
        told.truncate(MOST_NAMES);
        if more > 0 {
            told.push(format!("{more} more"));
        }
        (!told.is_empty())
            .then(|| format!("MCP servers that are not available: {}", told.join(", ")))
    }

    /// Each that does not run, and why.
    fn troubles(&self) -> impl Iterator<Item = (&str, String)> {
        self.servers.iter().filter_map(|server| Some((server.namespace(), server.trouble()?)))
    }

    /// The tools that this caller is offered.
    pub(super) fn tools(&self, caller: &Caller) -> Vec<Arc<Tool>> {
        let mut tools = Vec::new();
        for server in &self.servers {
            match self.types_for(server, caller) {
                Offered::No => {}
                Offered::AsTheyAre => tools.extend(server.tools(None)),
                Offered::As(types) => {
                    for tool_type in types {
                        tools.extend(server.tools(Some(tool_type)));
                    }
                }
            }
        }
        tools
    }

    /// What there is of a namespace, or may come; none if no server is called so.
    pub(super) fn prospect(&self, namespace: &str) -> Option<Prospect> {
        let mut servers = self.servers.iter().filter(|server| server.namespace() == namespace);
        let server = servers.next()?;
        let tools = if server.trouble().is_none() { server.tools(None) } else { Vec::new() };
        Some(Prospect { is_starting: server.is_starting(), tools })
    }

    /// The namespaces that this caller is offered, also of servers that do not run.
    pub(super) fn namespaces(&self, caller: &Caller) -> impl Iterator<Item = &str> {
        let offered =
            |server: &&Arc<Server>| !matches!(self.types_for(server, caller), Offered::No);
        self.servers.iter().filter(offered).map(|server| server.namespace())
    }

    /// Calls a tool of one of them.
    pub(super) async fn call(
        &self,
        index: usize,
        tool_name: &str,
        call: &Call<'_>,
    ) -> Result<aip::Payload, String> {
        let server = self.servers.get(index).ok_or("This MCP server is gone")?;
        server.call(tool_name, call).await
    }

    /// Ends all of them, in their own time at first.
    pub(super) async fn stop(&self) {
        join_all(self.servers.iter().map(|server| server.stop())).await;
    }

    /// Whether a caller is offered a server's tools, and as what.
    fn types_for(&self, server: &Server, caller: &Caller) -> Offered {
        let sections = server.sections();
        if sections.is_empty() {
            return Offered::AsTheyAre;
        }
        let is_wanted = |section: &&Section| match &caller.agent_name {
            Some(agent) => section.agent == *agent && section.root == self.root_of(agent, caller),
            None => true,
        };
        let mut types: Vec<_> =
            sections.iter().filter(is_wanted).map(|section| section.tool_type).collect();
        types.sort_unstable_by_key(|tool_type| tool_type.as_str());
        types.dedup();
        if types.is_empty() { Offered::No } else { Offered::As(types) }
    }

    /// The root whose sections count for this caller: its own, if the agent has any for it.
    fn root_of<'a>(&self, agent: &str, caller: &'a Caller) -> &'a str {
        let root = caller.root_name.as_deref().unwrap_or(DEFAULT_ROOT);
        let mut sections = self.servers.iter().flat_map(|server| server.sections());
        let has_own = sections.any(|section| section.agent == agent && section.root == root);
        if has_own { root } else { DEFAULT_ROOT }
    }
}

fn shortened(why: &str) -> String {
    match why.char_indices().nth(MOST_OF_A_REASON) {
        Some((end, _)) => format!("{}…", &why[..end]),
        None => why.to_owned(),
    }
}

/// What can be expected of a server.
pub(super) struct Prospect {
    /// Whether it is still to be seen which tools it has.
    pub(super) is_starting: bool,
    /// Those that can be called, as far as is known.
    pub(super) tools: Vec<Arc<Tool>>,
}

/// Whether a caller is offered a server's tools.
enum Offered {
    No,
    /// As the settings and the server say of each.
    AsTheyAre,
    /// As these, whatever they are.
    As(Vec<ToolType>),
}

#[cfg(test)]
mod tests;
