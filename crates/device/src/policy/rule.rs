//! One rule: which calls it is about, and what becomes of them.

use aip::{ToolInfo, ToolType};
use wildmatch::WildMatch;

use super::arguments::Arguments;
use super::{Decision, Verdict};

/// One rule, as its owner wrote it. In patterns `*` stands for any characters and `?` for one; upper and
/// lower case differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What it is called where it decides; its number if none.
    pub name: Option<String>,
    /// A pattern on `NAMESPACE.TOOL`.
    pub tool: String,
    /// Which kind of tool it is about; both if none.
    pub tool_type: Option<ToolType>,
    /// Names of arguments, those inside others with dots between, each with a pattern. All must be there
    /// and fit: the text of a string, the JSON text of anything else; of a list every item where the rule
    /// allows, any item where it asks or denies.
    pub arguments: Vec<(String, String)>,
    /// What becomes of a call that fits.
    pub decision: Decision,
}

/// A rule that is ready to judge.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) name: String,
    pub(super) decision: Decision,
    tool: WildMatch,
    tool_type: Option<ToolType>,
    arguments: Vec<(String, WildMatch)>,
}

impl Ready {
    pub(super) fn new(number: usize, rule: Rule) -> Self {
        let pattern = |(name, pattern): (String, String)| (name, WildMatch::new(&pattern));
        Self {
            name: rule.name.unwrap_or_else(|| format!("rule {number}")),
            decision: rule.decision,
            tool: WildMatch::new(&rule.tool),
            tool_type: rule.tool_type,
            arguments: rule.arguments.into_iter().map(pattern).collect(),
        }
    }

    pub(super) fn verdict(&self) -> Verdict {
        Verdict { decision: self.decision, rule: self.name.clone() }
    }

    /// Whether it is about this tool at all.
    pub(super) fn concerns(&self, namespace: &str, tool_name: &str, tool_type: ToolType) -> bool {
        self.tool_type.is_none_or(|wanted| wanted == tool_type)
            && self.tool.matches(&format!("{namespace}.{tool_name}"))
    }

    /// The same of a tool as it is listed.
    pub(super) fn is_about(&self, tool: &ToolInfo) -> bool {
        self.concerns(&tool.namespace, &tool.tool_name, tool.tool_type)
    }

    pub(super) fn has_arguments(&self) -> bool {
        !self.arguments.is_empty()
    }

    /// The arguments that it looks at.
    pub(super) fn argument_names(&self) -> impl Iterator<Item = &str> {
        self.arguments.iter().map(|(name, _)| name.as_str())
    }

    /// Whether the arguments of a call fit, of a tool that it is about.
    pub(super) fn fits(&self, arguments: &Arguments) -> bool {
        // One good item of a list must not let the others in.
        let every = self.decision == Decision::Allow;
        self.arguments.iter().all(|(name, pattern)| arguments.fit(name, pattern, every))
    }

    /// Why it can never fit a call of one of these tools.
    pub(super) fn idle(&self, tools: &[ToolInfo]) -> Option<String> {
        let concerned: Vec<_> = tools.iter().filter(|tool| self.is_about(tool)).collect();
        if concerned.is_empty() {
            let of_type = self.tool_type.map(|kind| format!(" of type {}", kind.as_str()));
            let of_type = of_type.unwrap_or_default();
            return Some(format!("{}: no tool here is \"{}\"{of_type}", self.name, self.tool));
        }
        let unknown = |name: &&String| !concerned.iter().any(|tool| may_take(tool, name));
        let name = self.arguments.iter().map(|(name, _)| name).find(unknown)?;
        Some(format!("{}: no tool it is about takes an argument \"{name}\"", self.name))
    }
}

/// Whether a tool takes this argument as far as its schema says.
fn may_take(tool: &ToolInfo, name: &str) -> bool {
    let properties = tool.input_schema.as_ref().and_then(|schema| schema.get("properties"));
    let Some(properties) = properties.and_then(|properties| properties.as_object()) else {
        return true;
    };
    properties.keys().any(|known| {
        name.strip_prefix(known.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}
