//! What was pulled out from under a device, and what it did: the table in `docs/device.md`. One file for
//! each thing that was there before. The real binary; `mcp_server.rs` has a server for it to start.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod mcp_server;
#[path = "../security/proxy.rs"]
#[allow(dead_code, reason = "other tests need the rest")]
mod proxy;

mod disk;
mod network;
mod server;
mod time;
mod tools;

use common::{Home, Peer, Process, PythonServer, unique, within};
use serde_json::{Value, json};

/// A real device on a server that behaves as the Python one, which tells it directly what to do.
struct Connected {
    device: Process,
    link: Peer,
    _python: PythonServer,
}

impl Connected {
    async fn start(home: &Home, args: &[&str]) -> Self {
        let python = PythonServer::start().await;
        let url = python.url();
        let all = [&["device", "--id", "d", "--exec", "shell", "--server", &url], args].concat();
        let device = home.start(&all);
        let (link, _register) = python.accept().await;
        Self { device, link, _python: python }
    }

    /// Has it call a tool. Returns the result.
    async fn call(&mut self, tool: &str, parameters: Value) -> Value {
        self.ask(tool, parameters).await;
        self.result().await
    }

    /// Has it call a tool.
    async fn ask(&mut self, tool: &str, parameters: Value) {
        let action = json!({"tool_name": tool, "parameters": parameters, "tool_type": "action",
            "call_id": "C"});
        let command = json!({"agent_name": "LinuxAgent", "actions": [action], "session_id": "S",
            "response_id": unique("R")});
        self.link.say_as_server("command", "continue", command).await;
    }

    /// The result of what it was asked first.
    async fn result(&mut self) -> Value {
        self.link.expect("command_results").await["action_results"][0].clone()
    }

    /// What a command prints on it, which must go well.
    async fn prints(&mut self, line: &str) -> String {
        let result = self.call("execute_command", json!({"command": line})).await;
        assert_eq!(result["status"], "success", "{result}");
        result["result"]["stdout"].as_str().unwrap().to_owned()
    }

    /// Calls a tool until it goes well.
    async fn until_good(&mut self, tool: &str, parameters: &Value) -> Value {
        let calling = async {
            loop {
                let result = self.call(tool, parameters.clone()).await;
                if result["status"] == "success" {
                    return result["result"].clone();
                }
            }
        };
        within("a call that goes well", calling).await
    }
}

/// The error of a failed result.
fn error_of(result: &Value) -> &str {
    assert_eq!(result["status"], "failure", "{result}");
    result["error"].as_str().unwrap()
}
