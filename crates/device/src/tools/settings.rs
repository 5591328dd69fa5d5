//! The owner's limits on the tools.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use link::Trust;

use super::EmbeddedTool;
use super::mcp;
use super::private::Private;
use crate::called::OnCall;
use crate::confine::{Confinement, SandboxError};
use crate::policy::{Ask, Policy};

/// What `execute_command` may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Exec {
    /// Commands that only observe, without a shell.
    #[default]
    Observe,
    /// Everything, through `sh -c`.
    Shell,
    /// Nothing.
    Off,
}

/// The owner's limits on the tools.
#[derive(Clone)]
pub struct ToolSettings {
    /// What `execute_command` may run.
    pub exec: Exec,
    /// Folders whose files may be read, and written where the policy allows it; none means the user's home
    /// without its dot files.
    pub roots: Vec<PathBuf>,
    /// Files, and folders with all in them, that are kept from callers wherever they lie: those that the device and
    /// this user's server are configured with.
    pub private: Vec<PathBuf>,
    /// Files that are shown to callers although they are among those, or look like a private key.
    pub reveal: Vec<PathBuf>,
    /// Calls that run at the same time: of the device's own tools, and of each MCP server. Those that wait
    /// for the owner's answer do not count.
    pub parallel_commands: usize,
    /// Longest time for one command, whatever its caller asks for; `None` for no limit.
    pub max_command_time: Option<Duration>,
    /// Most bytes that are kept of each output stream of a command, and that one `read_file` returns.
    pub max_output_bytes: usize,
    /// Most bytes of memory that each process of a command or MCP server may take; 0 for no limit.
    pub max_memory_bytes: u64,
    /// Whether what a command or MCP server starts may write below the roots only.
    pub sandbox: bool,
    /// Tools and namespaces that are not offered: `NAMESPACE`, `NAMESPACE.TOOL` or `TOOL`.
    pub disabled: Vec<String>,
    /// The MCP servers.
    pub servers: Vec<mcp::ServerSettings>,
    /// Longest time for an MCP server to start.
    pub mcp_start_timeout: Duration,
    /// Longest time for one call of an MCP server's tool.
    pub mcp_call_timeout: Duration,
    /// Whose certificates MCP servers may have; the system's if none.
    pub trust: Option<Trust>,
    /// Which calls are allowed, denied, or asked about.
    pub policy: Policy,
    /// Who is asked; nobody, if there is no terminal.
    pub ask: Option<Arc<dyn Ask>>,
    /// Longest wait for an answer.
    pub ask_timeout: Duration,
    /// Who keeps a record of the calls.
    pub on_call: OnCall,
    /// Tools that the program around the device brings.
    pub embedded: Vec<Arc<dyn EmbeddedTool>>,
}

impl fmt::Debug for ToolSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ToolSettings").field("exec", &self.exec).finish_non_exhaustive()
    }
}

impl Default for ToolSettings {
    fn default() -> Self {
        Self {
            exec: Exec::default(),
            roots: Vec::new(),
            private: Vec::new(),
            reveal: Vec::new(),
            parallel_commands: 8,
            max_command_time: None,
            max_output_bytes: 1024 * 1024,
            max_memory_bytes: 4 * 1024 * 1024 * 1024,
            sandbox: false,
            disabled: Vec::new(),
            servers: Vec::new(),
            mcp_start_timeout: Duration::from_secs(60),
            mcp_call_timeout: Duration::from_secs(600),
            trust: None,
            policy: Policy::default(),
            ask: None,
            ask_timeout: Duration::from_secs(60),
            on_call: OnCall::default(),
            embedded: Vec::new(),
        }
    }
}

impl ToolSettings {
    /// What is kept from callers.
    pub(super) fn private(&self) -> Private {
        Private::new(&self.private, &self.reveal)
    }

    /// The limits on what the tools start.
    ///
    /// # Errors
    /// When the sandbox that is asked for cannot be had.
    pub fn confinement(&self) -> Result<Confinement, SandboxError> {
        let confinement = Confinement::new(self.max_memory_bytes);
        if self.sandbox { confinement.sandboxed(&self.roots) } else { Ok(confinement) }
    }
}
