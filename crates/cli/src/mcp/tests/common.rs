use aip::ToolType::{Action, DataCollection};
use device::tools::mcp::Transport;

use super::*;

pub(super) const COMMON: &str = r#"{
    // What editors write.
    "mcpServers": {
        "files": {
            "command": "npx",
            "args": ["-y", "server-files", "${UNSET:-/srv}"],
            "env": {"API": "${TOKEN}", "PLAIN": "hunter2_5ecret"},
            "cwd": "work",
            "reset": true,
            "data_collection": ["read_*", "list"],
            "action": ["read_and_delete*", "*"],
        },
        "web": {
            "type": "streamable-http",
            "url": "https://${HOST}/mcp?key=hunter2_5ecret",
            "headers": {"Authorization": "Bearer ${TOKEN}"},
            "trusted": false, /* asks first */
        },
        "off": {"disabled": true, "command": "${UNSET}"},
    },
    "somebodyElses": {"key": 1},
}"#;

#[test]
fn the_common_json_is_read_with_comments_and_trailing_commas() {
    let folder = Folder::new();
    let listed = folder.read(&[("mcp.json", COMMON)]);
    assert_eq!(listed.problems, []);
    assert_eq!(names(&listed), ["files", "web"]);
    let [files, web] = &listed.servers[..] else { panic!() };
    assert_eq!(
        files.transport,
        Transport::Stdio {
            command: "npx".to_owned(),
            args: ["-y", "server-files", "/srv"].map(str::to_owned).to_vec(),
            env: map(&[("API", SECRET), ("PLAIN", SECRET)]),
            cwd: Some(folder.0.path().join("work")),
        }
    );
    assert!(files.trusted && files.reset && files.sections.is_empty());
    let types: Vec<_> = files.tool_types.iter().map(|(name, of)| (name.as_str(), *of)).collect();
    let expected = [
        ("list", DataCollection),
        ("read_and_delete*", Action),
        ("read_*", DataCollection),
        ("*", Action),
    ];
    assert_eq!(types, expected);
    let headers = map(&[("authorization", &format!("Bearer {SECRET}"))]);
    let url = format!("https://example.com/mcp?key={SECRET}");
    assert_eq!(web.transport, Transport::Http { url, headers });
    assert!(!web.trusted && !web.reset);
}

#[test]
fn the_same_is_read_under_the_key_of_another_editor_and_in_other_formats() {
    let folder = Folder::new();
    for (name, text) in [
        ("mcp.json", r#"{"servers": {"a": {"type": "stdio", "command": "x"}}, "inputs": []}"#),
        ("mcp", r#"{"mcpServers": {"a": {"command": "x", "env": null, "args": []}}}"#),
        ("with-mark.json", "\u{feff}{\"mcpServers\": {\"a\": {\"command\": \"x\"}}}"),
        ("mcp.yaml", "mcpServers:\n  a: {command: x}\n"),
        ("mcp.toml", "[mcp.a]\ncommand = 'x'\n"),
        ("any.conf", "# Ours.\n[mcp.a]\ncommand = 'x'\n"),
        ("any", "mcp.a.command = 'x:y'\n"),
        ("some", "# UFO's\nLinuxAgent:\n  default: {action: [{namespace: a, type: http}]}\n"),
    ] {
        let listed = folder.read(&[(name, text)]);
        assert_eq!(names(&listed), ["a"], "{name}: {:?}", listed.problems);
        assert_eq!(listed.problems, [], "{name}");
    }
}

#[test]
fn a_mistake_in_one_server_leaves_that_one_out_and_says_why() {
    const KEYS: &str = "disabled, type, command, args, env, cwd, url, headers, trusted, reset, \
                        data_collection, action";
    let folder = Folder::new();
    let long = format!(r#"{{"command": "x", "{}": 1}}"#, "x".repeat(40));
    let many = format!(r#"{{"command": "x", "args": [{}"x"]}}"#, r#""x","#.repeat(256));
    for (entry, expected) in [
        (r#"{"command": "x", "trustd": false}"#, "unknown key 'trustd'; did you mean 'trusted'?"),
        (
            r#"{"url": "http://h", "dataCollection": []}"#,
            "unknown key 'dataCollection'; did you mean 'data_collection'?",
        ),
        (
            r#"{"command": "x", "zzz": "hunter2_5ecret"}"#,
            &format!("unknown key 'zzz'; there are: {KEYS}"),
        ),
        (&long, &format!("unknown key '…'; there are: {KEYS}")),
        (&many, "args has more than 256 entries"),
        ("3", "it must be a table of keys, such as command or url"),
        ("{}", "it has neither command nor url"),
        (
            r#"{"command": "x", "url": "http://h"}"#,
            "it has both command and url; a server is a program or an address",
        ),
        (r#"{"command": "x", "type": "http"}"#, "type http goes with url, not with command"),
        (r#"{"url": "http://h", "type": "stdio"}"#, "type stdio goes with command, not with url"),
        (
            r#"{"command": "x", "headers": {"A": "hunter2_5ecret"}}"#,
            "headers go with url, not with command",
        ),
        (
            r#"{"url": "http://h", "env": {"A": "hunter2_5ecret"}}"#,
            "args, env and cwd go with command, not with url",
        ),
        (
            r#"{"url": "http://h/sse", "type": "sse"}"#,
            "type sse is the old transport, which is not available here; name the server's streamable HTTP address with type http",
        ),
        (r#"{"command": "x", "type": "hunter2_5ecret"}"#, "type must be stdio or http"),
        (r#"{"command": " "}"#, "command is empty"),
        (r#"{"command": ["hunter2_5ecret"]}"#, "command must be text; put it in quotes"),
        (r#"{"command": "x", "args": "hunter2_5ecret"}"#, "args must be a list of texts"),
        (r#"{"command": "x", "args": ["a", 5]}"#, "args[1] must be text; put it in quotes"),
        (r#"{"command": "x", "env": {"PORT": 8080}}"#, "env.PORT must be text; put it in quotes"),
        (r#"{"command": "x", "env": ["A=hunter2_5ecret"]}"#, "env must be a table of texts"),
        (
            r#"{"command": "x", "env": {"A": "hunter2_5ecret${NOPE}"}}"#,
            "env.A: the variable NOPE is not set; set it, or write ${NOPE:-DEFAULT}",
        ),
        (
            r#"{"command": "x", "env": {"A": "${input:hunter2_5ecret}"}}"#,
            "env.A: a '${' in it does not begin a ${NAME} or ${NAME:-DEFAULT}; write $${ for the two characters themselves",
        ),
        (
            r#"{"command": "x", "env": {"A=B": "c"}}"#,
            "env: the name of a variable is empty, or holds = or a null character",
        ),
        (r#"{"command": "x\u0000y"}"#, "command: it holds a null character"),
        (r#"{"command": "x", "trusted": "no"}"#, "trusted must be true or false"),
        (
            r#"{"url": "hunter2_5ecret"}"#,
            "url is no address; write http://HOST[:PORT]/PATH or https://…",
        ),
        (r#"{"url": "ftp://h/"}"#, "url is no address; write http://HOST[:PORT]/PATH or https://…"),
        (r#"{"url": "http://"}"#, "url is no address; write http://HOST[:PORT]/PATH or https://…"),
        (
            r#"{"url": "http://u:hunter2_5ecret@h/"}"#,
            "url holds a user name or password, which would not be sent; put it into headers, as Authorization",
        ),
        (
            r#"{"url": "http://h", "headers": {"a b": "hunter2_5ecret"}}"#,
            "headers.…: this is no name of a header",
        ),
        (
            r#"{"url": "http://h", "headers": {"A": "${BREAK}"}}"#,
            "headers.A: its value holds a line break or other characters that no header may hold",
        ),
        (
            r#"{"url": "http://h", "headers": {"Mcp-Session-Id": "x"}}"#,
            "headers.Mcp-Session-Id: the protocol sets this header itself; leave it out",
        ),
        (
            r#"{"url": "http://h", "headers": {"A": "x", "a": "y"}}"#,
            "headers.a stands twice; a header is the same in capital letters",
        ),
    ] {
        let text = format!(r#"{{"mcpServers": {{"bad": {entry}, "good": {{"command": "x"}}}}}}"#);
        let listed = folder.read(&[("mcp.json", &text)]);
        assert_eq!(names(&listed), ["good"], "{entry}");
        let expected = format!("mcp.json: server 'bad' is left out: {expected}");
        assert_eq!(folder.messages(&listed), [expected], "{entry}");
    }
}

#[test]
fn a_name_that_would_break_the_keys_of_tools_is_refused() {
    let folder = Folder::new();
    let long = "x".repeat(257);
    for (name, shown, why) in [
        ("", "", "is empty"),
        ("a::b", "a::b", "holds '::', which separates the parts of a tool's key"),
        ("a\\u001b[31m", "a\\u{1b}[31m", "holds control characters"),
        (&*long, "…", "is longer than 256 bytes"),
    ] {
        let text = format!(r#"{{"mcpServers": {{"{name}": {{"command": "x"}}}}}}"#);
        let expected = format!("mcp.json: server '{shown}' is left out: its name {why}");
        assert_eq!(folder.problems("mcp.json", &text), [expected]);
    }
}

#[test]
fn all_mistakes_of_a_server_are_said_at_once() {
    let text = "[mcp.a]\ncommand = 3\nenv = {X = 5}\nagrs = []\n[mcp.b]\nurl = 'http://h'\n";
    let folder = Folder::new();
    let expected = [
        "mcp.toml: server 'a' is left out: command must be text; put it in quotes",
        "mcp.toml: server 'a' is left out: env.X must be text; put it in quotes",
        "mcp.toml: server 'a' is left out: unknown key 'agrs'; did you mean 'args'?",
    ];
    assert_eq!(folder.problems("mcp.toml", text), expected);
}
