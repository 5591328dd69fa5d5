//! Which MCP servers the owner of a device has listed. Files are read elsewhere; here is what they mean.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use aip::ToolType;

/// One MCP server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerSettings {
    /// The name under which its tools are listed and called.
    pub namespace: String,
    /// How it is reached.
    pub transport: Transport,
    /// Who is offered its tools, and as what; none means everybody, and what its tools are is said by
    /// [`Self::tool_types`] and their hints.
    pub sections: Vec<Section>,
    /// Whether the owner lets its tools be called without asking, and believes what it says of them.
    pub trusted: bool,
    /// Whether it is started anew for each task.
    pub reset: bool,
    /// What a tool is whose name fits a pattern (`*` stands for anything, `?` for one character); the first
    /// that fits counts. Goes before what the server says.
    pub tool_types: Vec<(String, ToolType)>,
}

impl ServerSettings {
    /// Each list of UFO's in which it stands, once.
    pub(super) fn types(&self) -> impl Iterator<Item = ToolType> {
        let stands_in = |tool_type: &ToolType| {
            self.sections.iter().any(|section| section.tool_type == *tool_type)
        };
        ToolType::ALL.iter().copied().filter(stands_in)
    }
}

/// One place of UFO's `mcp.yaml`: the agent and root that are offered a server's tools, and as what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// The `agent_name` of a COMMAND.
    pub agent: String,
    /// Its `root_name`; `default` serves for every root that the agent has no section for.
    pub root: String,
    /// In which of the two lists the server stands.
    pub tool_type: ToolType,
}

/// How an MCP server is reached. Values that may be secret never show themselves.
#[derive(Clone, PartialEq, Eq)]
pub enum Transport {
    /// A child process that speaks over its standard input and output.
    Stdio {
        /// The program: a path, or a name that is looked for in the device's own PATH.
        command: String,
        /// Its arguments.
        args: Vec<String>,
        /// What its environment has beside the scrubbed one.
        env: BTreeMap<String, String>,
        /// The folder it runs in; the device's own if none.
        cwd: Option<PathBuf>,
    },
    /// Streamable HTTP.
    Http {
        /// The address.
        url: String,
        /// Headers of every request.
        headers: BTreeMap<String, String>,
    },
}

impl Transport {
    /// Whether it is a program that we start, and not one that we only connect to.
    pub(super) const fn is_program(&self) -> bool {
        matches!(self, Self::Stdio { .. })
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdio { command, .. } => {
                f.debug_struct("Stdio").field("command", command).finish_non_exhaustive()
            }
            Self::Http { .. } => f.debug_struct("Http").finish_non_exhaustive(),
        }
    }
}
