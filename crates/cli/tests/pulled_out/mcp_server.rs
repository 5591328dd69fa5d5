//! An MCP server, in the process of a test that the device starts.

use std::fs;
use std::io::{BufRead, Write, stdin, stdout};

use serde_json::{Value, json};

use super::common::Home;

/// The variable that makes a server of it.
const PLAYS: &str = "FLIGHTDECK_TEST_MCP";

#[test]
#[ignore = "it's an MCP server, which other tests start"]
fn plays_a_server() {
    if std::env::var_os(PLAYS).is_some() {
        stdin().lock().lines().map_while(Result::ok).for_each(|line| handle(&line));
    }
}

/// Writes a file that lists it, and returns its path.
pub(super) fn list(home: &Home) -> String {
    let args = ["--ignored", "--exact", "mcp_server::plays_a_server"];
    let odd =
        json!({"command": std::env::current_exe().unwrap(), "args": args, "env": {PLAYS: "1"}});
    let file = home.path().join("mcp.json");
    fs::write(&file, json!({"mcpServers": {"odd": odd}}).to_string()).unwrap();
    file.to_str().unwrap().to_owned()
}

fn handle(line: &str) {
    let Ok(message) = serde_json::from_str::<Value>(line) else { return };
    let params = &message["params"];
    let error = json!({"error": {"code": -32601, "message": "no such method"}});
    let mut answer = match message["method"].as_str().unwrap_or("") {
        _ if message["id"].is_null() => return,
        "tools/call" if params["name"] == "hang" => return,
        "initialize" => result(json!({"protocolVersion": params["protocolVersion"],
            "capabilities": {"tools": {}}, "serverInfo": {"name": "odd", "version": "1"}})),
        "tools/list" => {
            let tool = |name| json!({"name": name, "inputSchema": {"type": "object"}});
            let tools = ["pid", "say", "hang"].map(tool);
            result(json!({"tools": tools}))
        }
        "tools/call" if params["name"] == "say" => {
            result(json!({"content": [{"type": "text", "text": params["arguments"]["text"]}]}))
        }
        "tools/call" => {
            result(json!({"content": [], "structuredContent": {"pid": std::process::id()}}))
        }
        _ => error,
    };
    answer["jsonrpc"] = json!("2.0");
    answer["id"] = message["id"].clone();
    // Past what the test harness catches. A reader that is gone is the end.
    let mut out = stdout().lock();
    if writeln!(out, "{answer}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is written on the spot")]
fn result(result: Value) -> Value {
    json!({"result": result})
}
