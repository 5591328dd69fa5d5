//! The tools that a caller is offered, and how one is found by what a COMMAND calls it.
//!
//! It must not know how a tool is run.

use std::collections::HashMap;
use std::sync::Arc;

use aip::{ToolInfo, ToolType};
use serde_json::{Value, json};

use crate::policy::Decision;

/// What stands between the parts of a name: `action::Files::read_file`.
pub(super) const SEPARATOR: &str = "::";

/// The most tools that are named to whoever asks for one that is not there.
const MAX_NAMED: usize = 50;

/// Where a tool comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// `BashExecutor`.
    Bash,
    /// `Files`.
    Files,
    /// `Screen`.
    Screen,
    /// The program around the device, by its number among what that brings.
    Embedded(usize),
    /// An MCP server, by its number in the [host](super::mcp).
    Mcp(usize),
}

/// One tool.
#[derive(Debug, Clone)]
pub(super) struct Tool {
    /// As it is listed; its key is made by the catalog.
    pub(super) info: ToolInfo,
    pub(super) origin: Origin,
    /// Whether it observes or changes, as far as whoever says so is believed.
    pub(super) believed: ToolType,
    /// What becomes of a call where the policy has no rule for it.
    pub(super) usual: Decision,
}

impl Tool {
    /// A tool of the device itself, without arguments, that is allowed unless a rule says otherwise.
    pub(super) fn built_in(
        origin: Origin,
        namespace: &str,
        name: &str,
        tool_type: ToolType,
    ) -> Self {
        let info = ToolInfo {
            tool_key: String::new(),
            tool_name: name.to_owned(),
            namespace: namespace.to_owned(),
            tool_type,
            title: None,
            description: None,
            input_schema: Some(json!({"type": "object", "properties": {}})),
            output_schema: None,
            meta: None,
            annotations: None,
        };
        Self { info, origin, believed: tool_type, usual: Decision::Allow }
    }

    /// The same with a name for people and a description for agents.
    pub(super) fn titled(mut self, title: &str, description: &str) -> Self {
        self.info.title = Some(title.to_owned());
        self.info.description = Some(description.to_owned());
        self
    }

    /// The same with the JSON schema of its arguments. One that need not be given, and has no default, gets the
    /// default `null`: agents such as UFO's take every argument without a default for one that must be given.
    pub(super) fn taking(mut self, mut schema: Value) -> Self {
        let required = schema.get("required").cloned().unwrap_or_default();
        let is_required = |name: &str| {
            required.as_array().is_some_and(|names| names.iter().any(|known| known == name))
        };
        for (name, about) in schema["properties"].as_object_mut().into_iter().flatten() {
            if !is_required(name) && about.get("default").is_none() {
                about["type"] = json!([about["type"], "null"]);
                about["default"] = Value::Null;
            }
        }
        self.info.input_schema = Some(schema);
        self
    }

    /// The same, where the owner is asked unless a rule says otherwise.
    pub(super) fn asking(self) -> Self {
        Self { usual: Decision::Ask, ..self }
    }
}

/// All tools that one caller is offered.
#[derive(Debug)]
pub(super) struct Catalog(Vec<Arc<Tool>>);

impl Catalog {
    pub(super) const fn new(tools: Vec<Arc<Tool>>) -> Self {
        Self(tools)
    }

    /// Those to show, as `list_tools` tells them. The key of a tool is `<tool_type>::<tool_name>`; of one
    /// whose type and name another namespace has too, it is `<tool_type>::<namespace>::<tool_name>`.
    pub(super) fn list(&self, is_shown: impl Fn(&Tool) -> bool) -> Vec<ToolInfo> {
        let mut times: HashMap<(ToolType, &str), usize> = HashMap::new();
        for tool in &self.0 {
            *times.entry((tool.info.tool_type, &tool.info.tool_name)).or_default() += 1;
        }
        let keyed = |tool: &Arc<Tool>| {
            let ToolInfo { tool_type, namespace, tool_name, .. } = &tool.info;
            let tool_key = match times.get(&(*tool_type, tool_name.as_str())) {
                Some(2..) => [tool_type.as_str(), namespace, tool_name].join(SEPARATOR),
                _ => [tool_type.as_str(), tool_name].join(SEPARATOR),
            };
            ToolInfo { tool_key, ..tool.info.clone() }
        };
        self.0.iter().filter(|tool| is_shown(tool)).map(keyed).collect()
    }

    /// Finds the tool that is meant by `name`: its name, `NAMESPACE::NAME`, or its key. `tool_type` only
    /// says which of several is meant.
    ///
    /// # Errors
    /// When there is none, or when several could be meant.
    pub(super) fn find(&self, name: &str, tool_type: ToolType) -> Result<&Arc<Tool>, String> {
        let called: Vec<&Arc<Tool>> = self.0.iter().filter(|tool| tool.is_called(name)).collect();
        let mut meant = called.clone();
        if meant.iter().any(|tool| tool.info.tool_type == tool_type) {
            meant.retain(|tool| tool.info.tool_type == tool_type);
        }
        match meant[..] {
            [tool] => Ok(tool),
            [] => Err(self.unknown(name)),
            [first, ..] if meant.iter().all(|tool| tool.info.namespace == first.info.namespace) => {
                Ok(first)
            }
            // Those of the other type too: it may have been left to its default.
            _ => Err(ambiguous(name, &called)),
        }
    }

    fn unknown(&self, name: &str) -> String {
        let mut names: Vec<_> = self.0.iter().map(|tool| tool.info.tool_name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let more = names.len().saturating_sub(MAX_NAMED);
        names.truncate(MAX_NAMED);
        let more =
            if more > 0 { format!(" and {more} more (see list_tools)") } else { String::new() };
        format!("Unknown tool '{name}'. This device has: {}{more}", names.join(", "))
    }
}

impl Tool {
    fn is_called(&self, name: &str) -> bool {
        let ToolInfo { tool_type, namespace, tool_name, .. } = &self.info;
        let qualified = |name: &str| {
            name.strip_prefix(namespace.as_str())
                .and_then(|rest| rest.strip_prefix(SEPARATOR))
                .is_some_and(|rest| rest == tool_name)
        };
        let typed = |name: &str| {
            name.strip_prefix(tool_type.as_str())
                .and_then(|rest| rest.strip_prefix(SEPARATOR))
                .is_some_and(|rest| rest == tool_name || qualified(rest))
        };
        name == tool_name || qualified(name) || typed(name)
    }
}

fn ambiguous(name: &str, called: &[&Arc<Tool>]) -> String {
    let names: Vec<_> = called
        .iter()
        .map(|tool| format!("{}{SEPARATOR}{}", tool.info.namespace, tool.info.tool_name))
        .collect();
    format!("Several tools are called '{name}'; say which: {}", names.join(" or "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog(tools: &[(&str, &str, ToolType)]) -> Catalog {
        let tool = |(namespace, name, tool_type): &(&str, &str, ToolType)| {
            Arc::new(Tool::built_in(Origin::Files, namespace, name, *tool_type))
        };
        Catalog::new(tools.iter().map(tool).collect())
    }

    #[test]
    fn a_tool_is_found_by_each_of_its_names_whatever_type_the_command_says() {
        let catalog = catalog(&[("Files", "read", ToolType::DataCollection)]);
        for name in ["read", "Files::read", "data_collection::read", "data_collection::Files::read"]
        {
            assert!(catalog.find(name, ToolType::Action).is_ok(), "{name}");
        }
        for name in ["write", "Other::read", "action::read", "Files::", "::read"] {
            let error = catalog.find(name, ToolType::Action).err().unwrap_or_default();
            assert!(error.contains("This device has: read"), "{name}: {error}");
        }
    }

    #[test]
    fn an_argument_that_need_not_be_given_has_a_default() {
        let tool = |schema: Value| {
            let tool = Tool::built_in(Origin::Files, "Files", "read", ToolType::Action);
            tool.taking(schema).info.input_schema.unwrap()
        };
        let read = tool(json!({"type": "object", "required": ["path"], "properties": {
            "path": {"type": "string"}, "from": {"type": "integer", "minimum": 0},
            "as": {"type": "string", "default": "text"}}}));
        let expected = json!({"type": "object", "required": ["path"], "properties": {
            "path": {"type": "string"},
            "from": {"type": ["integer", "null"], "minimum": 0, "default": null},
            "as": {"type": "string", "default": "text"}}});
        assert_eq!(read, expected);
        let list = tool(json!({"properties": {"path": {"type": "string"}}}));
        let path = json!({"type": ["string", "null"], "default": null});
        assert_eq!(list, json!({"properties": {"path": path}}));
    }

    #[test]
    fn a_name_that_two_namespaces_share_stays_reachable() {
        let action = ToolType::Action;
        let catalog = catalog(&[("a", "x", action), ("b", "x", action), ("b", "y", action)]);
        let keys: Vec<_> = catalog.list(|_| true).into_iter().map(|tool| tool.tool_key).collect();
        assert_eq!(keys, ["action::a::x", "action::b::x", "action::y"]);
        for key in keys {
            assert!(catalog.find(&key, action).is_ok(), "{key}");
        }
        let error = catalog.find("x", action).err().unwrap_or_default();
        assert!(error.contains("a::x or b::x"), "{error}");
    }

    #[test]
    fn the_type_says_which_of_two_is_meant() {
        let tools = [("a", "x", ToolType::Action), ("b", "x", ToolType::DataCollection)];
        let catalog = catalog(&tools);
        for (namespace, name, tool_type) in tools {
            let found = catalog.find(name, tool_type).unwrap();
            assert_eq!(found.info.namespace, namespace);
        }
    }

    #[test]
    fn a_server_that_stands_in_both_lists_has_one_tool() {
        let catalog =
            catalog(&[("a", "x", ToolType::Action), ("a", "x", ToolType::DataCollection)]);
        assert!(catalog.find("a::x", ToolType::Action).is_ok());
    }
}
