//! A device with MCP servers, its server, and whoever has it do something.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::common::{Done, Home, Process, Server};
use crate::install::{npm, python};

/// A server, and a device that has connected to it.
pub(crate) struct Machine {
    pub(crate) server: Server,
    pub(crate) device: Process,
    pub(crate) home: Home,
}

impl Machine {
    /// A device with these MCP servers.
    pub(crate) async fn with(servers: Value) -> Self {
        Self::with_env(servers, &[]).await
    }

    /// The same with more in the device's environment.
    pub(crate) async fn with_env(servers: Value, env: &[(&str, &str)]) -> Self {
        let (server, home) = (Server::start().await, Home::new());
        let file = write(&home, "mcp.json", &json!({ "mcpServers": servers }).to_string());
        let args = ["device", "--id", "box", "--server", &server.url(), "--mcp", &file];
        let mut command = home.command(&args);
        command.env("FLIGHTDECK_TOKEN", server.key()).envs(env.iter().copied());
        let mut device = Process::start(&mut command);
        device.says("connected to").await;
        Self { server, device, home }
    }

    /// Runs a plan of these actions.
    pub(crate) async fn run(&self, actions: &Value) -> Done {
        self.server.run(&["run", "--json", "--on", "box", &plan(actions)]).await
    }

    /// Starts a plan of one action; what it tells goes to stderr.
    pub(crate) fn start(&self, tool: &str, parameters: &Value) -> Process {
        let plan = plan(&json!([action(tool, parameters)]));
        self.server.start_command(&["run", "--on", "box", &plan])
    }

    /// What the device answers to each action.
    pub(crate) async fn results(&self, actions: &Value) -> Vec<Value> {
        let done = self.run(actions).await;
        let ended: Value = serde_json::from_str(&done.stdout).expect(&done.stderr);
        let steps = ended["result"][0]["result"].as_array().expect(&done.stdout);
        steps.iter().flat_map(|step| step.as_array().unwrap()).cloned().collect()
    }

    /// What the tools return.
    pub(crate) async fn values(&self, actions: &Value) -> Vec<Value> {
        let results = self.results(actions).await;
        assert!(results.iter().all(|result| result["status"] == "success"), "{results:?}");
        results.into_iter().map(|result| result["result"].clone()).collect()
    }

    /// What it answers to one.
    pub(crate) async fn call(&self, tool: &str, parameters: Value) -> Value {
        let mut results = self.results(&json!([action(tool, &parameters)])).await;
        assert_eq!(results.len(), 1, "{results:?}");
        results.remove(0)
    }

    /// What a tool returns.
    pub(crate) async fn value(&self, tool: &str, parameters: Value) -> Value {
        let result = self.call(tool, parameters).await;
        assert_eq!((&result["status"], &result["error"]), (&json!("success"), &Value::Null));
        result["result"].clone()
    }

    /// Why a call fails.
    pub(crate) async fn failure(&self, tool: &str, parameters: Value) -> String {
        let result = self.call(tool, parameters).await;
        assert_eq!(result["status"], "failure", "{result}");
        result["error"].as_str().unwrap().to_owned()
    }

    /// The tools that `list_tools` returns.
    pub(crate) async fn tools(&self, parameters: Value) -> Vec<Value> {
        self.value("list_tools", parameters).await.as_array().unwrap().clone()
    }
}

/// One action of a plan.
pub(crate) fn action(tool: &str, parameters: &Value) -> Value {
    json!({"tool_name": tool, "parameters": parameters, "tool_type": "action"})
}

fn plan(actions: &Value) -> String {
    json!({ "commands": actions }).to_string()
}

/// Writes a file of the device's owner.
pub(crate) fn write(home: &Home, name: &str, text: &str) -> String {
    let file = home.path().join(name);
    fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

/// `server-everything` over stdio.
pub(crate) fn everything() -> Value {
    json!({"command": npm("mcp-server-everything")})
}

/// `server-filesystem` over stdio, for one folder.
pub(crate) fn filesystem(folder: &Path) -> Value {
    json!({"command": npm("mcp-server-filesystem"), "args": [folder]})
}

/// The FastMCP server over stdio.
pub(crate) fn fast_over_stdio() -> Value {
    json!({"command": python(), "args": [SCRIPT, "stdio"]})
}

const SCRIPT: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/strangers/servers/fastmcp_server.py");

/// The FastMCP server over HTTP, which runs beside the device.
pub(crate) struct Fast {
    pub(crate) process: Process,
    pub(crate) port: u16,
    _home: Home,
}

impl Fast {
    pub(crate) async fn start() -> Self {
        Self::start_at(0).await
    }

    /// One at this port; at any that is free, if it is 0.
    pub(crate) async fn start_at(port: u16) -> Self {
        let home = Home::new();
        let mut command = Command::new(python());
        command.args([SCRIPT, "http", &port.to_string()]).kill_on_drop(true).env_clear();
        command.env("HOME", home.path()).env("PATH", std::env::var_os("PATH").unwrap());
        let mut process = Process::start(&mut command);
        process.says("Press CTRL+C").await;
        let said = process.stderr();
        let address = said.split("running on http://127.0.0.1:").nth(1).unwrap();
        let port = address.split(' ').next().unwrap().parse().unwrap();
        Self { process, port, _home: home }
    }

    /// As `mcp.json` names it.
    pub(crate) fn entry(&self) -> Value {
        json!({"url": format!("http://127.0.0.1:{}/mcp", self.port)})
    }
}
