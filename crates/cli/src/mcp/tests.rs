use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use aip::ToolType::{Action, DataCollection};
use device::tools::mcp::{Section, Transport};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// What must not be found in anything that is said.
const SECRET: &str = "hunter2_5ecret";

fn variable(name: &str) -> Option<String> {
    match name {
        "TOKEN" => Some(SECRET.to_owned()),
        "BREAK" => Some(format!("{SECRET}\n")),
        "HOST" => Some("example.com".to_owned()),
        "PORT" => Some("8010".to_owned()),
        _ => None,
    }
}

/// A folder with files that only their owner can read.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn put(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        chmod(&path, 0o600);
        path
    }

    fn read(&self, files: &[(&str, &str)]) -> Listed {
        let sources = files.iter().map(|(name, text)| Source::File(self.put(name, text)));
        let listed = read(sources, &variable);
        assert!(!format!("{listed:?}").contains(SECRET), "{listed:?}");
        listed
    }

    /// The messages about one file, without its name.
    fn problems(&self, name: &str, text: &str) -> Vec<String> {
        self.messages(self.read(&[(name, text)]))
    }

    fn messages(&self, listed: Listed) -> Vec<String> {
        let prefix = format!("{}/", self.0.path().display());
        listed.problems.iter().map(|problem| problem.to_string().replace(&prefix, "")).collect()
    }
}

fn chmod(path: &Path, mode: u32) {
    #[cfg(unix)]
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    #[cfg(not(unix))]
    let _no_modes_here = (path, mode);
}

fn names(listed: &Listed) -> Vec<&str> {
    listed.servers.iter().map(|server| server.namespace.as_str()).collect()
}

fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
    entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

const COMMON: &str = r#"{
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

/// In the shape of the file that UFO ships.
const UFO: &str = "
AppAgent:
  default:
    data_collection: &shared
      - {namespace: UICollector, type: local, start_args: [], reset: false}
    action:
      - {namespace: AppUI, type: local}
  WINWORD.EXE:
    data_collection: *shared
    action:
      - namespace: Word
        type: stdio
        start_args: [-m, word]
        env: {KEY: '${TOKEN}'}
        reset: yes
      - {namespace: Office, type: http, port: '${PORT}', path: mcp}
HostAgent:
  default:
    data_collection:
      - {namespace: Office, type: http, host: localhost, port: 8010, reset: false, start_args: []}
    action:
      - {namespace: Office, type: http, port: 8010, trusted: false}
LinuxAgent:
  default:
    action:
      - {type: http, host: '::1', auth: {token: '${TOKEN}'}}
Empty:
  default:
    action:
";

#[test]
fn ufos_file_is_read_with_its_defaults_and_sections() {
    let folder = Folder::new();
    let listed = folder.read(&[("mcp.yaml", UFO)]);
    assert_eq!(names(&listed), ["Office", "Word", "default"]);
    let [office, word, default] = &listed.servers[..] else { panic!() };
    let section = |agent: &str, root: &str, tool_type| Section {
        agent: agent.to_owned(),
        root: root.to_owned(),
        tool_type,
    };
    let sections = [
        section("AppAgent", "WINWORD.EXE", Action),
        section("HostAgent", "default", DataCollection),
        section("HostAgent", "default", Action),
    ];
    assert_eq!(office.sections, sections);
    assert!(!office.trusted && !office.reset);
    let http = |url: &str, headers: &[(&str, &str)]| Transport::Http {
        url: url.to_owned(),
        headers: map(headers),
    };
    assert_eq!(office.transport, http("http://localhost:8010/mcp", &[]));
    let bearer = format!("Bearer {SECRET}");
    let headers = [("authorization", bearer.as_str())];
    assert_eq!(default.transport, http("http://[::1]:8000/mcp", &headers));
    assert!(word.reset && word.trusted);
    assert_eq!(
        word.transport,
        Transport::Stdio {
            command: "python".to_owned(),
            args: ["-m", "word"].map(str::to_owned).to_vec(),
            env: map(&[("KEY", SECRET)]),
            cwd: None,
        }
    );
    let local = "mcp.yaml: not available here, since they are Python inside UFO's own process \
                 (type local): AppUI, UICollector";
    assert_eq!(folder.messages(listed), [local]);
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
            "headers.a b: this is no name of a header",
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
        assert_eq!(folder.messages(listed), [expected], "{entry}");
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

#[test]
fn a_mistake_in_ufos_file_is_said_with_its_place() {
    const KEYS: &str = "namespace, type, host, port, path, command, start_args, env, cwd, headers, \
                        auth, trusted, reset";
    let folder = Folder::new();
    let left_out =
        |why: &str| format!("mcp.yaml: server 'bad' is left out: A.default.action[0]: {why}");
    for (entry, expected) in [
        ("{namespace: bad}", left_out("type is missing; it is http or stdio")),
        ("{namespace: bad, type: hunter2_5ecret}", left_out("type must be http or stdio")),
        (
            "{namespace: bad, type: http, prot: 1}",
            left_out("unknown key 'prot'; did you mean 'port'?"),
        ),
        (
            "{namespace: bad, type: http, timeout: 1}",
            left_out(&format!("unknown key 'timeout'; there are: {KEYS}")),
        ),
        (
            "{namespace: bad, type: http, port: 0}",
            left_out("port must be a number from 1 to 65535"),
        ),
        (
            "{namespace: bad, type: http, port: http}",
            left_out("port must be a number from 1 to 65535"),
        ),
        (
            "{namespace: bad, type: http, host: 'http://h'}",
            left_out("host is no address; write a name or an IP address alone"),
        ),
        (
            "{namespace: bad, type: http, host: 'h:80'}",
            left_out("host is no address; write a name or an IP address alone"),
        ),
        (
            "{namespace: bad, type: http, host: 'u:hunter2_5ecret@h'}",
            left_out("host is no address; write a name or an IP address alone"),
        ),
        (
            "{namespace: bad, type: http, host: a b}",
            left_out("host is no address; write a name or an IP address alone"),
        ),
        (
            "{namespace: bad, type: http, auth: {tokn: hunter2_5ecret}}",
            left_out("auth: unknown key 'tokn'; did you mean 'token'?"),
        ),
        (
            "{namespace: bad, type: stdio, start_args: [-p, 8000]}",
            left_out("start_args[1] must be text; put it in quotes"),
        ),
        ("hunter2_5ecret", "mcp.yaml: A.default.action[0] must be a table of keys".to_owned()),
    ] {
        let text = format!(
            "A:\n  default:\n    action:\n      - {entry}\n      - {{namespace: good, type: http}}\n"
        );
        let listed = folder.read(&[("mcp.yaml", &text)]);
        assert_eq!(names(&listed), ["good"], "{entry}");
        assert_eq!(folder.messages(listed), [expected], "{entry}");
    }
}

#[test]
fn a_misshapen_part_of_ufos_file_does_not_take_the_rest_with_it() {
    let text = "A: hunter2_5ecret\nB:\n  default: [hunter2_5ecret]\nC:\n  default:\n    acton: []\n    \
                data_collection: hunter2_5ecret\n    action:\n      - {namespace: good, type: http}\n";
    let folder = Folder::new();
    let listed = folder.read(&[("mcp.yaml", text)]);
    assert_eq!(names(&listed), ["good"]);
    let expected = [
        "mcp.yaml: A must be a table of the agent's roots",
        "mcp.yaml: B.default must be a table of data_collection and action",
        "mcp.yaml: C.default.data_collection must be a list of servers",
        "mcp.yaml: C.default: unknown key 'acton'; did you mean 'action'?",
    ];
    assert_eq!(folder.messages(listed), expected);
}

#[test]
fn one_namespace_is_one_server_and_a_doubt_about_it_counts_everywhere() {
    let folder = Folder::new();
    let two = "A:\n  default:\n    action:\n      - {namespace: x, type: http}\n      \
               - {namespace: x, type: http, port: 1}\n";
    let listed = folder.read(&[("mcp.yaml", two)]);
    assert_eq!(names(&listed), ["x"]);
    let expected = "mcp.yaml: A.default.action[1] lists another server under the namespace 'x', \
                    which is in use; it is left out there: give it a namespace of its own";
    assert_eq!(folder.messages(listed), [expected]);
    let doubtful = "A:\n  default:\n    action:\n      - {namespace: x, type: http}\n      \
                    - {namespace: x, type: http, trustd: false}\n";
    assert!(folder.read(&[("mcp.yaml", doubtful)]).servers.is_empty());
}

#[test]
fn a_file_that_cannot_be_read_is_one_message_without_a_line_of_it() {
    let folder = Folder::new();
    let large = " ".repeat(usize::try_from(text::MAX_FILE_BYTES).unwrap() + 1);
    for (name, text, expected) in [
        (
            "a.json",
            r#"{"mcpServers": {"a": {"env": {"T": "hunter2_5ecret" "x"}}}}"#,
            "it is not valid JSON at line 1, column 53: expected `,` or `}`",
        ),
        (
            "a.json",
            "{\n\"mcpServers\": {\"a\": 1, \"a\": 2}}",
            "it is not valid JSON at line 2, column 29: the same key stands twice",
        ),
        (
            "a.json",
            "{ /* hunter2_5ecret",
            "it is not valid JSON at line 1, column 3: key must be a string",
        ),
        ("a.json", "", "it is not valid JSON at line 1, column 0: EOF while parsing a value"),
        ("a.json", "[]", "it lists no servers"),
        ("a.json", "{}", "it lists no servers: it has no 'mcpServers' or 'servers'"),
        (
            "a.toml",
            "[mcp.a.env]\nT = \"hunter2_5ecret\n",
            "it is not valid TOML at line 2, column 20: invalid basic string, expected `\"`",
        ),
        (
            "a.toml",
            "[mcp.a.env]\nT = hunter2_5ecret",
            "it is not valid TOML at line 2, column 5: string values must be quoted, expected literal string",
        ),
        ("a.toml", "[mpc.a]", "it lists no servers: it has no 'mcp'"),
        (
            "a.yaml",
            "A: \"hunter2_5ecret",
            "it is not valid YAML at line 1, column 4: unclosed quote",
        ),
        (
            "a.yaml",
            "A: 1\nA: hunter2_5ecret",
            "it is not valid YAML at line 2, column 1: the same key stands twice",
        ),
        (
            "a.yaml",
            "A: *hunter2_5ecret",
            "it is not valid YAML at line 1, column 4: there is no such anchor",
        ),
        (
            "a.yaml",
            "A: 1\n---\nB: 2",
            "it is not valid YAML at line 2, column 1: it is too deeply nested or too large, with what its aliases stand for",
        ),
        ("a.yaml", "hunter2_5ecret", "it lists no servers"),
        ("a.yaml", &large, "it is larger than 1048576 bytes"),
    ] {
        let problems = folder.problems(name, text);
        assert_eq!(problems, [format!("{name} is left out: {expected}")], "{name}");
    }
    let near = folder.problems("a.json", r#"{"mcpServer": {}}"#);
    assert_eq!(near, ["a.json: unknown key 'mcpServer'; did you mean 'mcpServers'?"]);
}

#[test]
fn a_file_that_is_none_does_not_keep_the_others_away() {
    let folder = Folder::new();
    fs::create_dir(folder.0.path().join("folder")).unwrap();
    let latin = folder.put("latin.json", b"{\"\xe9\": 1}");
    let good = folder.put("good.json", r#"{"mcpServers": {"good": {"command": "x"}}}"#);
    let path = |name| folder.0.path().join(name);
    let sources = [path("none.json"), path("folder"), latin, good].map(Source::File);
    let listed = read(sources, &variable);
    assert_eq!(names(&listed), ["good"]);
    let expected = [
        "none.json is left out: there is no such file",
        "folder is left out: it is a folder; name a file in it",
        "latin.json is left out: it is not text in UTF-8",
    ];
    assert_eq!(folder.messages(listed), expected);
}

#[test]
fn a_file_that_grows_without_end_when_it_is_read_is_refused() {
    let folder = Folder::new();
    let bomb: String = (1..12)
        .map(|level| {
            let below = format!("*a{},", level - 1).repeat(9);
            format!("a{level}: &a{level} [{below}]\n")
        })
        .collect();
    for (name, text) in [
        ("bomb.yaml", format!("a0: &a0 [x]\n{bomb}")),
        ("deep.yaml", "[".repeat(100_000)),
        ("lists.yaml", "- ".repeat(100_000)),
        ("deep.json", "[".repeat(100_000)),
        ("deep.toml", format!("a = {}", "[".repeat(100_000))),
        ("dotted.toml", format!("{}a = 1", "a.".repeat(100_000))),
    ] {
        let problems = folder.problems(name, &text);
        assert!(matches!(&problems[..], [one] if one.contains("is not valid")), "{problems:?}");
    }
}

#[test]
fn the_last_of_several_files_counts_and_says_so() {
    let folder = Folder::new();
    let server = |entry: &str| format!(r#"{{"mcpServers": {{"a": {entry}}}}}"#);
    let first = server(r#"{"command": "first"}"#);
    for (second, is_there, expected) in [
        (r#"{"command": "second"}"#, true, vec!["2.json: server 'a' replaces the one of 1.json"]),
        (
            r#"{"disabled": true}"#,
            false,
            vec!["2.json: server 'a' is disabled, also the one of 1.json"],
        ),
        (
            r#"{"command": "second", "trustd": false}"#,
            false,
            vec![
                "2.json: server 'a' is left out: unknown key 'trustd'; did you mean 'trusted'?",
                "2.json: server 'a' is left out, and so is the one of 1.json",
            ],
        ),
    ] {
        let listed = folder.read(&[("1.json", &first), ("2.json", &server(second))]);
        assert_eq!(!listed.servers.is_empty(), is_there);
        assert!(!format!("{:?}", listed.servers).contains("first"));
        assert_eq!(folder.messages(listed), expected);
    }
}

#[test]
fn the_settings_file_comes_first_and_its_folder_is_where_paths_start() {
    let folder = Folder::new();
    let servers = "[a]\ncommand = 'bin/a'\n[b]\ncommand = 'b'\n[c]\nurl = 1\n".parse().unwrap();
    let path = folder.put("config.toml", "");
    let settings = Source::Settings { path, servers };
    let file = Source::File(folder.put("b.toml", "[mcp.b]\nurl = 'http://h'\n"));
    let listed = read([settings, file], &variable);
    assert_eq!(names(&listed), ["a", "b"]);
    let command = folder.0.path().join("bin/a").display().to_string();
    assert!(format!("{listed:?}").contains(&command), "{listed:?}");
    let expected = [
        "config.toml: server 'c' is left out: url must be text; put it in quotes",
        "b.toml: server 'b' replaces the one of config.toml",
    ];
    assert_eq!(folder.messages(listed), expected);
}

#[test]
fn servers_and_messages_are_bounded() {
    let folder = Folder::new();
    let many = |entry: &str| {
        let tables = (0..300).map(|number| format!("[mcp.s{number:03}]\n{entry}\n"));
        tables.collect::<String>()
    };
    let listed = folder.read(&[("mcp.toml", &many("command = 'x'"))]);
    assert_eq!(listed.servers.len(), MAX_SERVERS);
    let messages = folder.messages(listed);
    assert_eq!(messages[0], "mcp.toml: server 's064' is left out: a device has at most 64");
    assert_eq!(messages.len(), MAX_PROBLEMS + 1);
    assert_eq!(messages[MAX_PROBLEMS], "and 136 more problems with MCP servers");
    assert!(folder.read(&[("mcp.toml", &many("x = 1"))]).servers.is_empty());
}

#[cfg(unix)]
#[test]
fn a_file_that_others_can_use_against_its_owner_is_named_with_the_remedy() {
    let folder = Folder::new();
    let with =
        |env: &str| format!(r#"{{"mcpServers": {{"a": {{"command": "x", "env": {env}}}}}}}"#);
    let reads = "read the secrets in this file (mode 644)";
    let changes = "change this file, and so what this device starts (mode 666)";
    for (env, mode, expected) in [
        (r#"{"T": "hunter2_5ecret"}"#, 0o644, Some(reads)),
        (r#"{"T": "hunter2_5ecret"}"#, 0o600, None),
        (r#"{"T": "${TOKEN}"}"#, 0o644, None),
        ("{}", 0o644, None),
        ("{}", 0o666, Some(changes)),
    ] {
        let path = folder.put("mcp.json", with(env));
        chmod(&path, mode);
        let listed = read([Source::File(path.clone())], &variable);
        assert_eq!(names(&listed), ["a"]);
        let problem = |what| {
            format!(
                "mcp.json: other users of this machine can {what}; close it: chmod 600 mcp.json"
            )
        };
        let expected: Vec<_> = expected.map(problem).into_iter().collect();
        assert_eq!(folder.messages(listed), expected, "{env} {mode:o}");
    }
}

#[test]
fn what_config_show_prints_of_a_server_holds_no_value_that_may_be_secret() {
    let servers = "
        [a]
        command = 'npx'
        args = ['--key', 'hunter2_5ecret']
        trusted = false
        env = {T = 'hunter2_5ecret'}
        tokn = 'hunter2_5ecret'
        [b]
        url = 'https://u:hunter2_5ecret@h:1/hunter2_5ecret?key=hunter2_5ecret'
        headers = {A = 'hunter2_5ecret'}
        action = ['x*']
        [c]
        url = 'hunter2_5ecret'
        env = 'hunter2_5ecret'
        args = 'hunter2_5ecret'
        command = ['hunter2_5ecret']
    ";
    let shown = redacted(&servers.parse().unwrap()).to_string();
    assert!(!shown.contains(SECRET), "{shown}");
    for part in ["npx", "trusted = false", "T = \"[redacted]\"", "https://h:1/…", "x*"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
}

const TOML: &str = r#"
[mcp.files]
command = "npx"
args = ["--key", "hunter2_5ecret"]

[mcp.files.env]
PAT = "hunter2_5ecret"

[mcp.web]
url = "https://h/mcp?key=hunter2_5ecret"
headers = {Authorization = "Bearer hunter2_5ecret"}
"#;

/// One thing that goes wrong with a file: bytes that are lost, or others in their place.
fn damage() -> impl Strategy<Value = (usize, usize, String)> {
    (any::<usize>(), 0..4_usize, "[\\[\\]{}:,#'\"\\\\ \n\t=a0$&*!|>-]{0,3}")
}

proptest! {
    #[test]
    fn damage_to_a_file_is_survived_and_shows_no_secret(
        form in 0..4_usize,
        damages in proptest::collection::vec(damage(), 1..4),
    ) {
        let (name, text) =
            [("a.json", COMMON), ("a.yaml", UFO), ("a.toml", TOML), ("a", TOML)][form];
        let mut text = text.replace("${TOKEN}", SECRET);
        for (at, length, other) in damages {
            let start = at % text.len();
            let end = (start + length).min(text.len());
            text.replace_range(start..end, &other);
        }
        let folder = Folder::new();
        let _survived = folder.read(&[(name, &text)]);
    }
}
