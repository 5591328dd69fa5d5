//! What a device would offer and what its policy says of it, for the owner to look at.

use aip::{ToolInfo, ToolType};

use super::{Caller, ToolSettings, Toolbox};
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
    /// What a device with these settings has. Runs nothing and asks nobody.
    pub async fn of(settings: &ToolSettings) -> Self {
        let toolbox = Toolbox::new(settings, None);
        let tools: Vec<_> = toolbox.all(&Caller::default()).collect();
        let infos: Vec<ToolInfo> = tools.iter().map(|tool| tool.info.clone()).collect();
        let view = |tool: super::Tool| ToolView {
            is_disabled: toolbox.is_disabled(&tool.info),
            outlook: toolbox.policy.outlook(&Subject {
                namespace: &tool.info.namespace,
                tool_name: &tool.info.tool_name,
                tool_type: tool.info.tool_type,
                parameters: None,
                usual: tool.usual,
            }),
            namespace: tool.info.namespace,
            tool_name: tool.info.tool_name,
            tool_type: tool.info.tool_type,
        };
        Self { warnings: warnings(settings, &infos), tools: tools.into_iter().map(view).collect() }
    }
}

fn warnings(settings: &ToolSettings, tools: &[ToolInfo]) -> Vec<String> {
    let rules = settings.policy.idle_rules(tools).into_iter().map(|why| format!("policy: {why}"));
    let names_none = |name: &&String| !tools.iter().any(|tool| super::is_named(name, tool));
    let disabled = settings.disabled.iter().filter(names_none);
    rules.chain(disabled.map(|name| format!("disable: no tool here is \"{name}\""))).collect()
}
