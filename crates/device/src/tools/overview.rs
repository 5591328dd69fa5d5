//! What a device would offer and what its policy says of it, for the owner to look at.

use std::sync::Arc;

use aip::{ToolInfo, ToolType};

use super::catalog::Origin;
use super::{Caller, Tool, ToolSettings, Toolbox, mcp};
use crate::confine::SandboxError;
use crate::policy::{Outlook, Subject};

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
        outlook: toolbox.gate.policy.outlook(&Subject {
            namespace: &tool.info.namespace,
            tool_name: &tool.info.tool_name,
            tool_type: tool.believed,
            parameters: None,
            file: None,
            usual: tool.usual,
        }),
        namespace: tool.info.namespace.clone(),
        tool_name: tool.info.tool_name.clone(),
        tool_type: tool.info.tool_type,
        believed: tool.believed,
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
    let names_none = |name: &&String| !tools.iter().any(|tool| super::is_named(name, tool));
    let disabled = settings.disabled.iter().filter(names_none);
    rules.chain(disabled.map(|name| format!("disable: no tool here is \"{name}\""))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_tool_of_the_device_itself_may_be_spoken_of_where_it_is_lacking() {
        let overview = Overview::of(&ToolSettings::default()).await.unwrap();
        for ToolView { namespace, tool_name, tool_type, .. } in overview.tools {
            let tool = (namespace.as_str(), tool_name.as_str(), tool_type);
            assert!(BUILT_IN.contains(&tool), "{tool:?}");
        }
    }
}
