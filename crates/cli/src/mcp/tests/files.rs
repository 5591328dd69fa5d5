use super::*;

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
            "it is not valid JSON at line 2, column 30: the same key stands twice",
        ),
        (
            "a.json",
            "{ /* hunter2_5ecret",
            "it is not valid JSON at line 1, column 19: EOF while parsing an object",
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
        ("a.toml", "[device]", "it lists no servers: it has no 'mcp'"),
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
            "it is not valid YAML at line 3, column 1: there is more than one document",
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
    assert_eq!(folder.messages(&listed), expected);
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
        assert_eq!(folder.messages(&listed), expected);
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
    assert_eq!(folder.messages(&listed), expected);
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
    let messages = folder.messages(&listed);
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
        assert_eq!(folder.messages(&listed), expected, "{env} {mode:o}");
    }
}
