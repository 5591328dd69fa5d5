//! What an MCP server says of a tool, as the device lists it.

use std::sync::Arc;

use aip::{ToolInfo, ToolType};
use serde_json::Value;
use wildmatch::WildMatch;

use super::settings::ServerSettings;
use crate::policy::Decision;
use crate::tools::catalog::{Origin, Tool};

/// The tools of a server.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) tools: Vec<Listed>,
    /// How many more it has.
    pub(super) left_out: usize,
}

impl Listing {
    /// Why some are left out, for whoever sees that.
    pub(super) const WHY_LEFT_OUT: &str = "their names are empty, too long, or have control characters or \
        :: in them, or they are too large";
}

/// One tool of a server.
#[derive(Debug)]
pub(super) struct Listed {
    /// As it is offered to whom the settings name no type for.
    plain: Arc<Tool>,
    /// The same in each of UFO's lists that the server stands in.
    typed: Vec<Arc<Tool>>,
    /// Whether it wraps what it returns into `{"result": …}`, as FastMCP does with what is no object.
    pub(super) wraps: bool,
}

impl Listed {
    pub(super) fn new(tool: rmcp::model::Tool, settings: &ServerSettings, origin: Origin) -> Self {
        let object = |map: Arc<rmcp::model::JsonObject>| Value::Object(Arc::unwrap_or_clone(map));
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
        let plain = Tool { info, origin, believed, usual };
        let typed = settings.types().map(|tool_type| Arc::new(as_type(&plain, tool_type)));
        Self { typed: typed.collect(), plain: Arc::new(plain), wraps }
    }

    pub(super) fn name(&self) -> &str {
        &self.plain.info.tool_name
    }

    /// As it is offered, in one of UFO's lists or as what it is.
    pub(super) fn offered(&self, as_type: Option<ToolType>) -> &Arc<Tool> {
        let mut typed = self.typed.iter();
        typed.find(|tool| Some(tool.info.tool_type) == as_type).unwrap_or(&self.plain)
    }
}

/// What stands in one of the owner's lists is what the list says.
fn as_type(tool: &Tool, tool_type: ToolType) -> Tool {
    let mut tool = tool.clone();
    (tool.info.tool_type, tool.believed) = (tool_type, tool_type);
    tool
}

fn type_by_name(name: &str, settings: &ServerSettings) -> Option<ToolType> {
    let mut types = settings.tool_types.iter();
    types.find(|(pattern, _)| WildMatch::new(pattern).matches(name)).map(|(_, found)| *found)
}
