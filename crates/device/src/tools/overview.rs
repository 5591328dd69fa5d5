//! What a device would offer and what its policy says of it, for the owner to look at.

use std::sync::Arc;

use aip::{ToolInfo, ToolType};

use super::{Caller, Tool, ToolSettings, Toolbox, mcp};
use crate::confine::SandboxError;
use crate::policy::{Outlook, Subject};

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
    /// Whether it observes or changes.
    pub tool_type: ToolType,
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
        let infos: Vec<ToolInfo> = tools.iter().map(|tool| tool.info.clone()).collect();
        let view = |tool: &Arc<Tool>| ToolView {
            is_disabled: toolbox.is_disabled(&tool.info),
            outlook: toolbox.gate.policy.outlook(&Subject {
                namespace: &tool.info.namespace,
                tool_name: &tool.info.tool_name,
                tool_type: tool.believed,
                parameters: None,
                usual: tool.usual,
            }),
            namespace: tool.info.namespace.clone(),
            tool_name: tool.info.tool_name.clone(),
            tool_type: tool.info.tool_type,
        };
        let mut all = missing;
        all.extend(toolbox.host.out_of_service());
        all.extend(warnings(settings, &infos));
        Self { warnings: all, tools: tools.iter().map(view).collect() }
    }
}

fn warnings(settings: &ToolSettings, tools: &[ToolInfo]) -> Vec<String> {
    let rules = settings.policy.idle_rules(tools).into_iter().map(|why| format!("policy: {why}"));
    let names_none = |name: &&String| !tools.iter().any(|tool| super::is_named(name, tool));
    let disabled = settings.disabled.iter().filter(names_none);
    rules.chain(disabled.map(|name| format!("disable: no tool here is \"{name}\""))).collect()
}
