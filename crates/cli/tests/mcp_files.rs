//! The files with MCP servers, as the owner of a device meets them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;

use common::process::{Home, Server};

const SECRET: &str = "hunter2_5ecret";

const SETTINGS: &str = "
[mcp.files]
command = 'npx'
args = ['--key', 'hunter2_5ecret']
env = {PAT = 'hunter2_5ecret'}
trustd = false

[mcp.web]
url = 'https://h/mcp?key=hunter2_5ecret'
headers = {A = 'hunter2_5ecret'}
disabled = true
";

#[tokio::test(flavor = "multi_thread")]
async fn a_device_starts_whatever_is_wrong_with_its_mcp_servers_and_says_it() {
    let server = Server::start().await;
    let home = Home::new();
    let config = home.path().join("config.toml");
    fs::write(&config, SETTINGS).unwrap();
    let list = home.path().join("mcp.json");
    fs::write(&list, r#"{"mcpServers": {"x": {"url": "https://u:hunter2_5ecret@h/"}}}"#).unwrap();
    let files = format!("{}:{}", list.display(), home.path().join("none.yaml").display());
    let config = config.display().to_string();
    let args = ["--config", config.as_str(), "--mcp", files.as_str()];
    let mut device = server.device("box", &args).await;
    device.says("connected to").await;
    let said = device.stderr();
    for part in [
        "config.toml: server 'files' is left out: unknown key 'trustd'; did you mean 'trusted'?",
        "mcp.json: server 'x' is left out: url holds a user name or password",
        "none.yaml is left out: there is no such file",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!said.contains(SECRET), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn config_show_lists_the_servers_of_the_settings_file_without_their_secrets() {
    let home = Home::new();
    let config = home.path().join("config.toml");
    fs::write(&config, SETTINGS).unwrap();
    let config = config.display().to_string();
    for args in [
        &["--config", &config, "config", "show"][..],
        &["--config", &config, "config", "show", "--json"],
    ] {
        let done = home.start(args).done().await;
        assert_eq!(done.code, 0, "{done:?}");
        assert!(!done.stdout.contains(SECRET), "{done:?}");
        for part in ["npx", "https://h/…", "PAT"] {
            assert!(done.stdout.contains(part), "{part}: {done:?}");
        }
    }
}
