//! An MCP server for the tests, in the process of a test that others start: written by hand, so that it
//! can do everything wrong.

use std::io::{BufRead, Write, stdin, stdout};
use std::process::exit;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// The variable that says what the server does wrong.
pub(super) const MANNERS: &str = "FLIGHTDECK_TEST_MANNERS";

/// How manners begin that say as JSON what the server lists.
pub(super) const LISTS: &str = "lists ";

/// An answer as Python writes it when it is not told otherwise.
const NO_JSON: &str = r#"{"jsonrpc":"2.0","id":$ID,"result":{"value":NaN}}"#;

/// Serves until its input ends.
pub(super) fn serve() {
    let Ok(manners) = std::env::var(MANNERS) else { return };
    match manners.as_str() {
        "silent" => loop {
            thread::park();
        },
        "dies at its start" => {
            complain("npm error 404");
            exit(3);
        }
        // It finds what it left when it was there before.
        "executes once" if std::fs::File::create_new("was here").is_err() => exit(3),
        "garbage" => {
            raw(b"\xff\xfe\x00 no json \x1b[2J\n{\"jsonrpc\": \n[1,2\n{\"a\":1}\n42\n\n");
        }
        "complains for ever" => {
            thread::spawn(|| {
                loop {
                    complain("no line of this is of any use");
                }
            });
        }
        "asks" => {
            thread::spawn(|| {
                for id in 0.. {
                    say(&json!({"jsonrpc": "2.0", "id": format!("q{id}"), "method": "ping"}));
                }
            });
        }
        "floods" => {
            thread::spawn(|| {
                loop {
                    notify("notifications/message", &json!({"level": "info", "data": "flood"}));
                    notify("notifications/tools/list_changed", &json!({}));
                }
            });
        }
        _ => {}
    }
    let mut tools = vec![
        "Files::read_file",
        "echo",
        "fail",
        "die",
        "huge",
        "slow",
        "pid",
        "env",
        "grow",
        "nothing",
        "write",
        "ask",
        "twice",
        "endless",
    ];
    if manners.starts_with("executes") {
        tools.push("execute_command");
    }
    let mut asking = Value::Null;
    for line in stdin().lock().lines().map_while(Result::ok) {
        let Ok(message) = serde_json::from_str::<Value>(&line) else { continue };
        let (method, params) = (message["method"].as_str().unwrap_or(""), &message["params"]);
        let id = message["id"].clone();
        match method {
            "initialize" if manners == "modern" => say(&json!({"jsonrpc": "2.0", "id": id,
                "error": {"code": -32601, "message": "no such method"}})),
            "server/discover" if manners == "modern" => answer(
                &id,
                &json!({"supportedVersions": ["2026-07-28"], "resultType": "complete",
                        "capabilities": {"tools": {}}, "ttlMs": 0, "cacheScope": "private"}),
            ),
            "initialize" if manners == "greets with NaN" => write(&id, NO_JSON),
            "tools/list" if manners == "lists with NaN" => write(&id, NO_JSON),
            "initialize" => answer(&id, &initialized(params)),
            "tools/list" if manners == "lists for ever" => {
                answer(&id, &json!({"tools": [tool("x")], "nextCursor": "more"}));
            }
            "tools/list" if manners.starts_with(LISTS) => {
                let tools = &manners[LISTS.len()..];
                raw(format!(
                    "{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{\"tools\":{tools}}}}}\n"
                )
                .as_bytes());
            }
            "tools/list" if manners == "fat" => answer(&id, &fat(&params["cursor"])),
            "tools/list" => {
                let list: Vec<_> = tools.iter().map(|name| tool(name)).collect();
                answer(&id, &json!({"tools": list}));
                if matches!(manners.as_str(), "deaf" | "asks") {
                    loop {
                        thread::park();
                    }
                }
            }
            "tools/call" if params["name"] == "ask" => {
                asking = id;
                raw(format!("{}\n", params["arguments"]["line"].as_str().unwrap()).as_bytes());
            }
            "tools/call" => call(&id, params, &mut tools),
            "" if id == "q" => {
                answer(&asking, &json!({"content": [], "structuredContent": message}));
            }
            "notifications/cancelled" => {
                std::fs::write("cancelled", params["reason"].as_str().unwrap_or("")).unwrap();
            }
            _ if id.is_null() => {}
            _ => say(&json!({"jsonrpc": "2.0", "id": id,
                             "error": {"code": -32601, "message": "no such method"}})),
        }
    }
}

fn initialized(params: &Value) -> Value {
    json!({
        "protocolVersion": params["protocolVersion"],
        "capabilities": {"tools": {"listChanged": true}},
        "serverInfo": {"name": "odd", "version": "1"},
    })
}

fn tool(name: &str) -> Value {
    let hints = json!({"readOnlyHint": name == "echo"});
    json!({"name": name, "description": "odd", "inputSchema": {"type": "object"}, "annotations": hints})
}

/// A page of large tools with a small one at its end, and after four of them no more.
fn fat(cursor: &Value) -> Value {
    let page: u32 = cursor.as_str().map_or(0, |cursor| cursor.parse().unwrap());
    let large = |number| {
        let mut large = tool(&format!("large {page} {number}"));
        large["inputSchema"]["description"] = json!("x".repeat(200_000));
        large
    };
    let mut tools: Vec<_> = (0..50).map(large).collect();
    tools.push(tool(&format!("small {page}")));
    let next = (page < 3).then(|| (page + 1).to_string());
    json!({"tools": tools, "nextCursor": next})
}

fn call(id: &Value, params: &Value, tools: &mut Vec<&str>) {
    let arguments = &params["arguments"];
    match params["name"].as_str().unwrap_or("") {
        "echo" => answer(id, &json!({"content": [], "structuredContent": arguments})),
        "fail" => answer(
            id,
            &json!({"content": [{"type": "text", "text": "no such row"}], "isError": true}),
        ),
        "die" => {
            complain("out of luck");
            exit(7);
        }
        "huge" => {
            let bytes = arguments["bytes"].as_u64().unwrap_or(0) as usize;
            text(id, &"x".repeat(bytes));
        }
        "write" => {
            for line in arguments["lines"].as_array().unwrap() {
                write(id, line.as_str().unwrap());
            }
        }
        "twice" => twice(id, arguments["bytes"].as_u64().unwrap_or(0) as usize),
        "endless" => loop {
            raw(&[b'x'; 1 << 16]);
        },
        "slow" => {
            let token = &params["_meta"]["progressToken"];
            notify(
                "notifications/progress",
                &json!({"progressToken": token, "progress": 1, "total": 2, "message": "half"}),
            );
            // It never answers.
        }
        "pid" => text(id, &std::process::id().to_string()),
        "env" => text(id, &std::env::vars().map(|(name, _)| name).collect::<Vec<_>>().join(" ")),
        "grow" => {
            tools.push("grown");
            notify("notifications/tools/list_changed", &json!({}));
            text(id, "grown");
        }
        "nothing" => {}
        other => text(id, &format!("no tool {other}")),
    }
}

/// Writes a line that says `$ID` for the id, each character as a byte.
fn write(id: &Value, line: &str) {
    let line = line.replace("$ID", &id.to_string());
    let mut bytes: Vec<u8> = line.chars().map(|letter| letter as u8).collect();
    bytes.push(b'\n');
    raw(&bytes);
}

/// A long text, as FastMCP sends it.
fn twice(id: &Value, bytes: usize) {
    let text = "x".repeat(bytes);
    raw(format!(
        "{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{\"content\":[{{\"type\":\"text\",\"text\":\"{text}\"}}],\
         \"structuredContent\":{{\"result\":\"{text}\"}},\"_meta\":{{\"fastmcp\":{{\"wrap_result\":true}}}}}}}}\n"
    )
    .as_bytes());
}

fn text(id: &Value, text: &str) {
    answer(id, &json!({"content": [{"type": "text", "text": text}]}));
}

fn answer(id: &Value, result: &Value) {
    say(&json!({"jsonrpc": "2.0", "id": id, "result": result}));
}

fn notify(method: &str, params: &Value) {
    say(&json!({"jsonrpc": "2.0", "method": method, "params": params}));
}

fn say(message: &Value) {
    raw(format!("{message}\n").as_bytes());
}

/// Past what the test harness catches, too.
fn complain(text: &str) {
    writeln!(std::io::stderr(), "{text}").unwrap();
}

/// Past what the test harness catches. A reader that is gone is the end.
fn raw(bytes: &[u8]) {
    let mut out = stdout().lock();
    if out.write_all(bytes).and_then(|()| out.flush()).is_err() {
        exit(0);
    }
}

/// How long a test may wait for what should come soon.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
