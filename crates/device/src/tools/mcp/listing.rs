//! The tools of an MCP server as the device lists them, within limits of number and size.

use std::collections::HashSet;
use std::sync::Arc;

use aip::{ToolInfo, ToolType};
use serde_json::value::RawValue;
use wildmatch::WildMatch;

use super::entry::{self, MAX_TOOLS, Sent};
use super::settings::ServerSettings;
use super::shortened;
use crate::policy::Decision;
use crate::tools::catalog::{Origin, SEPARATOR, Tool};

/// The most that the tools of one server may take of the list of all, in MiB: those of 64 servers fit into a
/// message (100 MiB).
const MAX_LISTING_MIB: usize = 1;

/// The longest name of a tool, in bytes.
const MAX_NAME_BYTES: usize = 256;

/// Of so many tools that are left out is told which, and why.
const MOST_TOLD: usize = 10;

/// The tools of a server, as it tells them entry by entry.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) tools: Vec<Listed>,
    names: HashSet<String>,
    /// What the tools take of the list of all, in bytes.
    bytes: usize,
    entries: usize,
    /// How many found no room.
    beyond: usize,
    /// Which others are left out and why, the first of them.
    left_out: Vec<String>,
    /// How many more.
    more: usize,
}

impl Listing {
    /// Takes up an entry, or notes why it is left out.
    pub(super) fn add(&mut self, entry: &RawValue, settings: &ServerSettings, origin: Origin) {
        self.entries += 1;
        if entry.get().len() > MAX_LISTING_MIB << 20 {
            self.beyond += 1;
            return;
        }
        match self.read(entry, settings, origin) {
            Ok(tool) => self.take(tool),
            Err(why) => self.leave_out(entry, &why),
        }
    }

    fn read(
        &self,
        entry: &RawValue,
        settings: &ServerSettings,
        origin: Origin,
    ) -> Result<Listed, String> {
        let sent = Sent::read(entry)?;
        check_name(&sent.name)?;
        if self.names.contains(&sent.name) {
            return Err("it is listed already, and the first counts".to_owned());
        }
        Ok(Listed::new(sent, settings, origin))
    }

    /// Takes up a tool, if there is room.
    fn take(&mut self, tool: Listed) {
        let bytes = self.bytes.saturating_add(tool.bytes());
        if bytes > MAX_LISTING_MIB << 20 {
            self.beyond += 1;
            return;
        }
        self.bytes = bytes;
        self.names.insert(tool.name().to_owned());
        self.tools.push(tool);
    }

    fn leave_out(&mut self, entry: &RawValue, why: &str) {
        if self.left_out.len() == MOST_TOLD {
            self.more += 1;
            return;
        }
        let which = match entry::name_of(entry) {
            Some(name) => format!("'{}'", shortened(&name)),
            None => format!("entry {}", self.entries),
        };
        self.left_out.push(format!("{which}: {}", shortened(why)));
    }

    /// Whether it has more entries than a list may have.
    pub(super) const fn is_too_long(&self) -> bool {
        self.entries > MAX_TOOLS
    }

    /// Which tools are left out and why, if any are. What the server says in it is not escaped.
    pub(super) fn left_out(&self) -> Option<String> {
        let counted = |count: usize, what: String| (count > 0).then(|| format!("{count} {what}"));
        let beyond =
            format!("beyond the {MAX_LISTING_MIB} MiB that all tools of a server may take");
        let mut told = self.left_out.clone();
        told.extend(counted(self.more, "more".to_owned()));
        told.extend(counted(self.beyond, beyond));
        (!told.is_empty()).then(|| told.join("; "))
    }
}

/// Whether a tool may be called so. What separates a namespace from a name must not be in one: the tool
/// could pass for another namespace's.
fn check_name(name: &str) -> Result<(), String> {
    match name.len() {
        0 => return Err("its name is empty".to_owned()),
        1..=MAX_NAME_BYTES => {}
        _ => return Err(format!("its name is longer than {MAX_NAME_BYTES} bytes")),
    }
    if name.contains(SEPARATOR) {
        return Err(format!("its name has {SEPARATOR} in it"));
    }
    match name.chars().find(|letter| !is_visible(*letter)) {
        Some(letter) => {
            Err(format!("its name has U+{:04X} in it, which cannot be seen", letter as u32))
        }
        None => Ok(()),
    }
}

/// Whether whoever reads a name sees this in it.
fn is_visible(letter: char) -> bool {
    // What Rust's table of what can be printed has, though nothing shows: fillers, joiners, variation selectors.
    let is_blank = matches!(letter, '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{ffa0}'
        | '\u{e0100}'..='\u{e01ef}');
    let is_quote = matches!(letter, '"' | '\'' | '\\');
    // Behind another: accents are escaped only at the beginning.
    let shown = String::from_iter(['x', letter]);
    !is_blank && (is_quote || shown.escape_debug().count() == 2)
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
    fn new(sent: Sent, settings: &ServerSettings, origin: Origin) -> Self {
        let hints = sent.annotations.as_ref();
        let hinted = match hints.and_then(|hints| hints.read_only_hint) {
            Some(true) => ToolType::DataCollection,
            _ => ToolType::Action,
        };
        let named = type_by_name(&sent.name, settings);
        let wraps = sent
            .output_schema
            .as_ref()
            .and_then(|schema| schema.get("x-fastmcp-wrap-result"))
            .is_some_and(|wraps| wraps == true);
        let info = ToolInfo {
            tool_key: String::new(),
            tool_name: sent.name,
            namespace: settings.namespace.clone(),
            tool_type: named.unwrap_or(hinted),
            title: sent.title.or_else(|| hints?.title.clone()),
            description: sent.description,
            input_schema: Some(sent.input_schema),
            output_schema: sent.output_schema,
            meta: sent.meta,
            annotations: sent.annotations.and_then(|hints| serde_json::to_value(hints).ok()),
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

    /// How much it takes of the list of all: once for each of UFO's lists, with the key that it gets there.
    fn bytes(&self) -> usize {
        let info = &self.plain.info;
        let listed = (info, info.tool_type, &info.namespace, &info.tool_name);
        let once = serde_json::to_vec(&listed).map_or(usize::MAX, |text| text.len());
        once.saturating_mul(self.typed.len().max(1))
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tools::mcp::settings::{Section, Transport};

    fn settings(types: &[ToolType]) -> ServerSettings {
        let section = |tool_type: &ToolType| Section {
            agent: "A".to_owned(),
            root: "default".to_owned(),
            tool_type: *tool_type,
        };
        ServerSettings {
            namespace: "odd".to_owned(),
            transport: Transport::Http { url: String::new(), headers: Default::default() },
            sections: types.iter().map(section).collect(),
            trusted: true,
            reset: false,
            tool_types: Vec::new(),
        }
    }

    fn listing(entries: &[&str], types: &[ToolType]) -> Listing {
        let (mut listing, settings) = (Listing::default(), settings(types));
        for entry in entries {
            let entry: &RawValue = serde_json::from_str(entry).unwrap();
            listing.add(entry, &settings, Origin::Mcp(0));
        }
        listing
    }

    #[test]
    fn what_is_left_out_is_told_with_its_name_and_the_reason() {
        for (entry, told) in [
            ("null", "entry 2: invalid type: null, expected a map"),
            ("{}", "entry 2: it has no name, or one that is no text"),
            (r#"{"name": "x", "inputSchema": 1}"#, "'x': its inputSchema is no object"),
            (r#"{"name": "x", "title": "\ud800"}"#, "'x': unexpected end of hex escape near "),
            (r#"{"name": "good"}"#, "'good': it is listed already, and the first counts"),
            (r#"{"name": ""}"#, "'': its name is empty"),
            (r#"{"name": "a::b"}"#, "'a::b': its name has :: in it"),
            (r#"{"name": "a\u202eb"}"#, "its name has U+202E in it, which cannot be seen"),
        ] {
            let listing = listing(&[r#"{"name": "good"}"#, entry], &[]);
            let text = listing.left_out().unwrap();
            assert!(listing.tools.len() == 1 && text.contains(told), "{entry}: {text}");
        }
        assert_eq!(listing(&[r#"{"name": "good"}"#], &[]).left_out(), None);
    }

    #[test]
    fn however_many_are_left_out_little_is_told_of_them() {
        let long = json!({"name": "x".repeat(100_000)}).to_string();
        let text = listing(&vec![long.as_str(); 500], &[]).left_out().unwrap();
        assert!(text.len() < 5000 && text.ends_with("; 490 more"), "{text}");
    }

    #[test]
    fn a_server_has_its_room_in_the_list_of_all_once_for_all_lists_it_stands_in() {
        let half = |name| json!({"name": name, "description": "x".repeat(400_000)}).to_string();
        let entries = [half("a"), half("b"), half("c"), r#"{"name": "small"}"#.to_owned()];
        let entries = entries.each_ref().map(String::as_str);
        let both = [ToolType::Action, ToolType::DataCollection];
        for (types, kept, beyond) in [(&[][..], 3, 1), (&both[..1], 3, 1), (&both[..], 2, 2)] {
            let listing = listing(&entries, types);
            let told = format!("{beyond} beyond the 1 MiB that all tools of a server may take");
            assert_eq!((listing.tools.len(), listing.left_out()), (kept, Some(told)));
        }
    }
}
