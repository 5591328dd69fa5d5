//! What a device would offer and what its policy says of it, for the owner to look at (`--dry-run`).

use std::sync::Arc;

use aip::{ToolInfo, ToolType};

use super::catalog::Origin;
use super::gate::subject;
use super::{Caller, Tool, ToolSettings, Toolbox, mcp};
use crate::confine::SandboxError;
use crate::policy::Outlook;

/// The tools that some device of this program has of itself.
const BUILT_IN: [(&str, &str, ToolType); 7] = [
    ("BashExecutor", "execute_command", ToolType::Action),
    ("BashExecutor", "get_system_info", ToolType::Action),
    ("Files", "read_file", ToolType::DataCollection),
    ("Files", "write_file", ToolType::Action),
    ("Files", "list_directory", ToolType::DataCollection),
    ("Files", "search_files", ToolType::DataCollection),
    ("Screen", "screenshot", ToolType::DataCollection),
];

/// All tools of a device that is not started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overview {
    /// In the order in which they are listed.
    pub tools: Vec<ToolView>,
    /// What in the policy, or among the disabled tools, means none of them, in words.
    pub warnings: Vec<String>,
}

/// One tool, as its owner sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolView {
    /// Where it lives.
    pub namespace: String,
    /// Its name.
    pub tool_name: String,
    /// Whether it observes or changes, as callers are told.
    pub tool_type: ToolType,
    /// The same as far as the policy believes it: an MCP server that is not trusted may say what it likes.
    pub believed: ToolType,
    /// Whether the owner has switched it off.
    pub is_disabled: bool,
    /// What the policy says of it.
    pub outlook: Outlook,
}

impl Overview {
    /// What a device with these settings has. Starts its MCP servers to ask them, and ends them again.
    ///
    /// # Errors
    /// When the sandbox that is asked for cannot be had.
    pub async fn of(settings: &ToolSettings) -> Result<Self, SandboxError> {
        let confinement = settings.confinement()?;
        let nobody: mcp::OnEvent = Arc::new(|_| {});
        let toolbox = Toolbox::start(settings, &confinement, None, &nobody);
        toolbox.host.settled().await;
        let overview = Self::from(&toolbox, settings, confinement.missing());
        toolbox.stop().await;
        Ok(overview)
    }

    fn from(toolbox: &Toolbox, settings: &ToolSettings, missing: Vec<String>) -> Self {
        let tools = toolbox.all(&Caller::default());
        let mut all = missing;
        all.extend(toolbox.host.out_of_service());
        all.extend(warnings(settings, &known(&tools)));
        Self { warnings: all, tools: tools.iter().map(|tool| view(toolbox, tool)).collect() }
    }
}

fn view(toolbox: &Toolbox, tool: &Tool) -> ToolView {
    ToolView {
        is_disabled: toolbox.is_disabled(&tool.info),
        outlook: toolbox.gate.policy.outlook(&subject(tool)),
        namespace: tool.info.namespace.clone(),
        tool_name: tool.info.tool_name.clone(),
        tool_type: tool.info.tool_type,
        believed: tool.believed,
    }
}

impl ToolSettings {
    /// What an owner may not have meant, as far as it can be told before any MCP server has started.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        // With servers it may be the name of one of their tools.
        let disabled = match self.servers.is_empty() {
            true => idle_disabled(self, &known(&[])),
            false => Vec::new(),
        };
        disabled.into_iter().chain(self.stand_ins()).collect()
    }

    fn stand_ins(&self) -> Vec<String> {
        let is_ours = |name: &&str| BUILT_IN.iter().any(|(namespace, ..)| namespace == name);
        let names = self.servers.iter().map(|server| server.namespace.as_str());
        let told = |name: &str| {
            format!(
                "The MCP server '{name}' stands in for this device's own tools of that name, also while it \
                 does not run"
            )
        };
        names.filter(is_ours).map(told).collect()
    }
}

/// What the owner may speak of without a mistake: the tools as the policy sees them, and those of the device
/// itself that this machine lacks, since the same settings may serve several machines.
fn known(tools: &[Arc<Tool>]) -> Vec<ToolInfo> {
    let believed = |tool: &Arc<Tool>| ToolInfo { tool_type: tool.believed, ..tool.info.clone() };
    let lacking = BUILT_IN.iter().map(|(namespace, name, tool_type)| {
        let info = Tool::built_in(Origin::Bash, namespace, name, *tool_type).info;
        // Which arguments it takes where it is there is not said here.
        ToolInfo { input_schema: None, ..info }
    });
    let is_there = |info: &ToolInfo| {
        tools.iter().any(|tool| {
            tool.info.namespace == info.namespace && tool.info.tool_name == info.tool_name
        })
    };
    tools.iter().map(believed).chain(lacking.filter(|info| !is_there(info))).collect()
}

fn warnings(settings: &ToolSettings, tools: &[ToolInfo]) -> Vec<String> {
    let rules = settings.policy.idle_rules(tools).into_iter().map(|why| format!("policy: {why}"));
    rules.chain(idle_disabled(settings, tools)).chain(settings.stand_ins()).collect()
}

fn idle_disabled(settings: &ToolSettings, tools: &[ToolInfo]) -> Vec<String> {
    let names_none = |name: &&String| !tools.iter().any(|tool| super::is_named(name, tool));
    let disabled = settings.disabled.iter().filter(names_none);
    disabled.map(|name| format!("disable: no tool here is \"{name}\"")).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn what_an_owner_may_not_have_meant_is_told_before_anything_starts() {
        let disabled = ["Screen", "Files.read_file", "Scren"].map(str::to_owned).to_vec();
        let settings = ToolSettings { disabled, ..ToolSettings::default() };
        assert_eq!(settings.warnings(), [r#"disable: no tool here is "Scren""#]);
        let server = mcp::ServerSettings {
            namespace: "BashExecutor".to_owned(),
            transport: mcp::Transport::Http { url: String::new(), headers: BTreeMap::new() },
            sections: Vec::new(),
            trusted: true,
            reset: false,
            tool_types: Vec::new(),
        };
        let with = ToolSettings { servers: vec![server], ..settings };
        let told = with.warnings();
        assert!(told.len() == 1 && told[0].starts_with("The MCP server 'BashExecutor' stands in"));
    }

    #[tokio::test]
    async fn every_tool_of_the_device_itself_may_be_spoken_of_where_it_is_lacking() {
        let overview = Overview::of(&ToolSettings::default()).await.unwrap();
        for ToolView { namespace, tool_name, tool_type, .. } in overview.tools {
            let tool = (namespace.as_str(), tool_name.as_str(), tool_type);
            assert!(BUILT_IN.contains(&tool), "{tool:?}");
        }
    }
}
