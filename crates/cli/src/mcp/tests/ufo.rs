use aip::ToolType::{Action, DataCollection};
use device::tools::mcp::{Section, Transport};

use super::*;

/// In the shape of the file that UFO ships.
pub(super) const UFO: &str = "
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
    assert_eq!(folder.messages(&listed), [local]);
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
            left_out("auth may hold nothing but token"),
        ),
        (
            "{namespace: bad, type: stdio, start_args: [-p, 8000]}",
            left_out("start_args[1] must be text; put it in quotes"),
        ),
        (
            "{namespace: bad, type: stdio, env: {KEY:hunter2_5ecret}}",
            left_out("env.… must be text; put it in quotes"),
        ),
        ("hunter2_5ecret", "mcp.yaml: A.default.action[0] must be a table of keys".to_owned()),
    ] {
        let text = format!(
            "A:\n  default:\n    action:\n      - {entry}\n      - {{namespace: good, type: http}}\n"
        );
        let listed = folder.read(&[("mcp.yaml", &text)]);
        assert_eq!(names(&listed), ["good"], "{entry}");
        assert_eq!(folder.messages(&listed), [expected], "{entry}");
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
    assert_eq!(folder.messages(&listed), expected);
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
    assert_eq!(folder.messages(&listed), [expected]);
    let doubtful = "A:\n  default:\n    action:\n      - {namespace: x, type: http}\n      \
                    - {namespace: x, type: http, trustd: false}\n";
    assert!(folder.read(&[("mcp.yaml", doubtful)]).servers.is_empty());
}
