//! UFO's own list of servers, `mcp.yaml`, with a server that behaves as UFO's.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::common::{Home, Peer, Process, PythonServer, unique};
use crate::machine::{Fast, write};

/// What a UFO server asks of a device in one task.
struct Asker<'a> {
    link: &'a mut Peer,
    agent: &'a str,
    session: String,
}

impl Asker<'_> {
    async fn call(&mut self, tool: &str, parameters: Value) -> Value {
        let actions = json!([{"tool_name": tool, "parameters": parameters,
            "tool_type": "data_collection", "call_id": "C"}]);
        let command = json!({"agent_name": self.agent, "process_name": "", "root_name": "default",
            "actions": actions, "session_id": self.session, "task_name": "t",
            "response_id": unique("R")});
        self.link.say_as_server("command", "continue", command).await;
        let answer = self.link.expect("command_results").await;
        answer["action_results"][0].clone()
    }

    /// The namespaces and types that this agent is offered, beside the device's own.
    async fn offered(&mut self) -> BTreeSet<String> {
        let listed = self.call("list_tools", json!({})).await;
        let tools = listed["result"].as_array().unwrap().iter();
        let own = ["BashExecutor", "Files"].map(Value::from);
        let others = tools.filter(|tool| !own.contains(&tool["namespace"]));
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        others.map(|t| format!("{} {}", text(&t["namespace"]), text(&t["tool_type"]))).collect()
    }
}

fn asker<'a>(link: &'a mut Peer, agent: &'a str) -> Asker<'a> {
    Asker { link, agent, session: unique("S") }
}

fn mcp_yaml(port: u16) -> String {
    format!(
        "\
HardwareAgent:
  default:
    data_collection:
      - namespace: HardwareCollector
        type: http
        host: 127.0.0.1
        port: {port}
        path: /mcp
        reset: true
    action:
      - namespace: HardwareExecutor
        type: http
        host: 127.0.0.1
        port: {port}
        path: mcp
      - namespace: CommandLineExecutor
        type: local
LinuxAgent:
  default:
    action:
      - namespace: LinuxExecutor
        type: http
        host: 127.0.0.1
        port: {port}
        path: /mcp
"
    )
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "installs MCP servers from npm and PyPI"]
async fn the_sections_of_an_mcp_yaml_serve_the_agents_they_name() {
    let (python, home, fast) = (PythonServer::start().await, Home::new(), Fast::start().await);
    let file = write(&home, "mcp.yaml", &mcp_yaml(fast.port));
    let args = ["device", "--id", "d", "--mcp", &file];
    let mut command = home.command(&args);
    let mut device = Process::start(command.env("FLIGHTDECK_SERVER", python.url()));
    let (mut link, _) = python.accept().await;
    device.says("(type local): CommandLineExecutor").await;

    let hardware = BTreeSet::from(["HardwareCollector data_collection", "HardwareExecutor action"]);
    let offered = asker(&mut link, "HardwareAgent").offered().await;
    assert_eq!(offered, hardware.into_iter().map(str::to_owned).collect());
    let offered = asker(&mut link, "LinuxAgent").offered().await;
    assert_eq!(offered, BTreeSet::from(["LinuxExecutor action".to_owned()]));

    // Both lists have the tool: the type says which is meant.
    let result = asker(&mut link, "HardwareAgent").call("integer", json!({})).await;
    assert_eq!((&result["result"], &result["namespace"]), (&json!(7), &json!("HardwareCollector")));
    let result = asker(&mut link, "LinuxAgent").call("integer", json!({})).await;
    assert_eq!((&result["result"], &result["namespace"]), (&json!(7), &json!("LinuxExecutor")));
    let result = asker(&mut link, "LinuxAgent").call("HardwareExecutor::zero", json!({})).await;
    assert_eq!(result["status"], "failure", "{result}");

    // `reset` makes the device come anew for each task, which begins with listing the tools.
    for (agent, tool, is_reset) in [
        ("HardwareAgent", "HardwareCollector::process", true),
        ("LinuxAgent", "LinuxExecutor::process", false),
    ] {
        let mut listed = Vec::new();
        for _ in 0..2 {
            let mut task = asker(&mut link, agent);
            let first = task.call(tool, json!({})).await["result"]["listed"].as_u64().unwrap();
            assert_eq!(task.call(tool, json!({})).await["result"]["listed"], first);
            listed.push(first);
        }
        assert_eq!(listed[1] - listed[0], u64::from(is_reset), "{agent}: {listed:?}");
    }
}
