//! What an MCP server says of a tool, as the device lists it.

use aip::{ToolInfo, ToolType};
use serde_json::Value;
use wildmatch::WildMatch;

use super::settings::ServerSettings;
use crate::policy::Decision;
use crate::tools::catalog::{Origin, Tool};

/// One tool of a server, before it is known who asks.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    info: ToolInfo,
    believed: ToolType,
    usual: Decision,
    /// Whether it wraps what it returns into `{"result": …}`, as FastMCP does with what is no object.
    pub(super) wraps: bool,
}

impl Listed {
    pub(super) fn new(tool: rmcp::model::Tool, settings: &ServerSettings) -> Self {
        let object = |map: std::sync::Arc<rmcp::model::JsonObject>| {
            Value::Object(std::sync::Arc::unwrap_or_clone(map))
        };
        let hints = tool.annotations.as_ref();
        let hinted = match hints.and_then(|hints| hints.read_only_hint) {
            Some(true) => ToolType::DataCollection,
            _ => ToolType::Action,
        };
        let named = type_by_name(&tool.name, settings);
        let wraps = tool
            .output_schema
            .as_ref()
            .and_then(|schema| schema.get("x-fastmcp-wrap-result"))
            .is_some_and(|wraps| wraps == true);
        let info = ToolInfo {
            tool_key: String::new(),
            tool_name: tool.name.into_owned(),
            namespace: settings.namespace.clone(),
            tool_type: named.unwrap_or(hinted),
            title: tool.title.or_else(|| hints?.title.clone()),
            description: tool.description.map(std::borrow::Cow::into_owned),
            input_schema: Some(object(tool.input_schema)),
            output_schema: tool.output_schema.map(object),
            meta: tool.meta.and_then(|meta| serde_json::to_value(meta).ok()),
            annotations: tool.annotations.and_then(|hints| serde_json::to_value(hints).ok()),
        };
        let believed = match settings.trusted {
            true => info.tool_type,
            false => named.unwrap_or(ToolType::Action),
        };
        let usual = if settings.trusted { Decision::Allow } else { Decision::Ask };
        Self { info, believed, usual, wraps }
    }

    pub(super) fn name(&self) -> &str {
        &self.info.tool_name
    }

    /// As it is offered, in one of UFO's lists or as what it is.
    pub(super) fn offered(&self, origin: Origin, as_type: Option<ToolType>) -> Tool {
        let mut info = self.info.clone();
        info.tool_type = as_type.unwrap_or(info.tool_type);
        Tool { info, origin, believed: as_type.unwrap_or(self.believed), usual: self.usual }
    }
}

fn type_by_name(name: &str, settings: &ServerSettings) -> Option<ToolType> {
    let mut types = settings.tool_types.iter();
    types.find(|(pattern, _)| WildMatch::new(pattern).matches(name)).map(|(_, found)| *found)
}
