//! The device as a service: what `flightdeck device install` writes, refuses and removes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use common::{Home, Process};

#[tokio::test]
async fn a_service_is_installed_without_its_key_and_removed_again() {
    let home = Home::new();
    fs::create_dir(home.path().join("data")).unwrap();
    let command = |args: &[&str]| {
        let mut command = home.command(&[&["device"], args].concat());
        Process::start(
            command.env("FLIGHTDECK_TOKEN", "hunter2").env("HTTPS_PROXY", "http://u:pa55@p:1"),
        )
    };
    let args =
        ["install", "--user", "--id", "my box", "--server", "wss://h/ws?token=x", "--root", "data"];
    let done = command(&args).done().await;
    assert_eq!(done.code, 0, "{done:?}");
    let units = home.path().join(".config/systemd/user");
    let unit = fs::read_dir(&units).unwrap().next().unwrap().unwrap().path();
    let text = fs::read_to_string(&unit).unwrap();
    let root = home.path().join("data");
    for line in
        [r#""--id=my box""#, "--server=wss://h:443/ws", &format!("--root={}", root.display())]
    {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert!(
        !text.contains("hunter2") && !text.contains("token") && !text.contains("pa55"),
        "{text}"
    );
    let secrets = text.split("EnvironmentFile=").nth(1).unwrap().lines().next().unwrap();
    let held = fs::read_to_string(secrets).unwrap();
    assert!(held.contains("FLIGHTDECK_TOKEN=\"hunter2\"") && held.contains("pa55"), "{held}");
    assert_eq!(fs::metadata(secrets).unwrap().permissions().mode() & 0o777, 0o600);
    verify(&home, &unit, &["--user"]).await;

    assert_eq!(command(&["uninstall", "--user", "--id", "my box"]).done().await.code, 0);
    assert!(!unit.exists() && !std::path::Path::new(secrets).exists());
    let again = command(&["uninstall", "--user", "--id", "my box"]).done().await;
    assert!(again.code == 2 && again.stderr.contains("there is no service"), "{again:?}");
}

#[tokio::test]
async fn the_units_are_what_systemd_understands() {
    let home = Home::new();
    let unit = home.path().join("flightdeck-device-d.service");
    for more in [
        &["--system"][..],
        &["--system", "--exec", "shell", "--run-as", "root"],
        &["--system", "--exec", "shell", "--sandbox", "--root", "/tmp"],
        &["--user", "--exec", "shell"],
    ] {
        let done = home
            .start(&[&["device", "install", "--print", "--id", "d"], more].concat())
            .done()
            .await;
        assert_eq!(done.code, 0, "{done:?}");
        fs::write(&unit, &done.stdout).unwrap();
        let scope: &[&str] = if more[0] == "--user" { &["--user"] } else { &[] };
        verify(&home, &unit, scope).await;
    }
    let bad =
        home.start(&["device", "install", "--print", "--root", "/no/such/folder"]).done().await;
    assert!(bad.code == 2 && bad.stderr.contains("there is no such folder"), "{bad:?}");
}

#[tokio::test]
async fn a_service_of_a_user_may_write_where_the_device_does() {
    let home = Home::new();
    let unit = home.start(&["device", "install", "--print", "--user"]).done().await.stdout;
    let writable = unit.lines().find(|line| line.starts_with("ReadWritePaths=")).unwrap();
    let own = format!("=-{} ", home.path().display());
    assert!(writable.contains(&own), "{writable}");
}

#[tokio::test]
async fn a_service_of_the_machine_does_not_lose_its_owners_rules_in_silence() {
    let home = Home::new();
    let settings = home.path().join(".config/flightdeck");
    fs::create_dir_all(&settings).unwrap();
    let install = ["device", "install", "--print", "--system"];
    fs::write(settings.join("policy.toml"), "[[rule]]\ntool = \"*\"\ndecision = \"deny\"\n")
        .unwrap();
    let refused = home.start(&install).done().await;
    assert!(refused.code == 2 && refused.stderr.contains("there is a policy"), "{refused:?}");
    fs::remove_file(settings.join("policy.toml")).unwrap();
    fs::write(settings.join("config.toml"), "[mcp.fs]\ncommand = \"x\"\n").unwrap();
    let refused = home.start(&install).done().await;
    assert!(refused.code == 2 && refused.stderr.contains("lists MCP servers"), "{refused:?}");
    let user = home.start(&["device", "install", "--print", "--user"]).done().await;
    assert!(user.code == 0 && !user.stdout.contains("ProtectSystem"), "{user:?}");
}

#[tokio::test]
async fn what_a_service_could_not_use_is_told_when_it_is_installed() {
    let home = Home::new();
    let write = |name: &str, text: &str| fs::write(home.path().join(name), text).unwrap();
    write("bad.toml", "[[rule]]\ntool = \"*\"\ndecision = \"alow\"\n");
    write("bad.pem", "no certificate");
    for (flag, value, told) in [
        ("--policy", "none.toml", "none.toml: No such file"),
        ("--policy", "bad.toml", "did you mean `allow`?"),
        ("--ca-file", "none.pem", "--ca-file none.pem: cannot be read"),
        ("--ca-file", "bad.pem", "--ca-file bad.pem: "),
        ("--token-file", "none", "cannot read the key file none"),
        ("--mcp", "none.json", "--mcp none.json: there is no such file"),
        ("--mcp", ".", "--mcp .: it is no file"),
    ] {
        for more in [&["--print"][..], &[]] {
            let args = [&["device", "install", "--user", flag, value], more].concat();
            let done = home.start(&args).done().await;
            assert!(done.code == 2 && done.stderr.contains(told), "{flag} {value}: {done:?}");
        }
    }
    assert!(!home.path().join(".config/systemd").exists(), "nothing was installed");
}

#[tokio::test]
async fn servers_that_a_service_would_leave_out_are_told_when_it_is_installed() {
    let home = Home::new();
    let list = r#"{"mcpServers": {"a": {"comand": "x"}, "b": {"url": "http://h", "headers": {"A": "${KEY}"}}}}"#;
    fs::write(home.path().join("mcp.json"), list).unwrap();
    let mut command =
        home.command(&["device", "install", "--print", "--user", "--mcp", "mcp.json"]);
    let done = Process::start(command.env("KEY", "of my shell")).done().await;
    assert_eq!(done.code, 0, "{done:?}");
    for told in [
        "server 'a' is left out: unknown key 'comand'",
        "server 'b' is left out: headers.A: the variable KEY is not set",
        "systemctl --user edit flightdeck-device.service",
    ] {
        assert!(done.stderr.contains(told), "{told}: {done:?}");
    }
    let absolute = format!("--mcp={}", home.path().join("mcp.json").display());
    assert!(done.stdout.contains(&absolute), "{done:?}");
}

#[tokio::test]
async fn a_service_of_a_user_looks_where_its_user_does() {
    let home = Home::new();
    let state = home.path().join("own-state/flightdeck");
    fs::create_dir_all(&state).unwrap();
    fs::write(state.join("key"), "generated").unwrap();
    fs::set_permissions(state.join("key"), fs::Permissions::from_mode(0o600)).unwrap();
    let mut command = home.command(&["device", "install", "--user"]);
    command.env("XDG_STATE_HOME", home.path().join("own-state"));
    command.env("XDG_CONFIG_HOME", home.path().join("own-config"));
    let done = Process::start(&mut command).done().await;
    assert!(done.code == 0 && !done.stderr.contains("no key"), "{done:?}");
    let held = fs::read_to_string(state.join("flightdeck-device.env")).unwrap();
    assert!(held.contains("own-state\"") && held.contains("own-config\""), "{held}");
    assert!(!held.contains("generated"), "it finds the key of this machine's server: {held}");
}

#[tokio::test]
async fn a_service_that_is_not_there_is_told_with_those_that_are() {
    let home = Home::new();
    let run = async |args: &[&str]| home.start(&[&["device"], args].concat()).done().await;
    let none = run(&["uninstall", "--user"]).await;
    assert!(none.stderr.contains("there is no service") && none.code == 2, "{none:?}");
    assert_eq!(run(&["install", "--user", "--id", "box"]).await.code, 0);
    let other = run(&["uninstall", "--user"]).await;
    assert!(other.stderr.contains("user/flightdeck-device-box.service"), "{other:?}");
}

#[tokio::test]
async fn paths_of_the_settings_file_mean_the_same_for_a_service() {
    let home = Home::new();
    let settings = home.path().join(".config/flightdeck");
    fs::create_dir_all(&settings).unwrap();
    fs::write(home.path().join("mcp.json"), r#"{"mcpServers": {}}"#).unwrap();
    let text = "[device]\nmcp = \"mcp.json\"\nexec = \"off\"\nroot = \"/tmp\"\n";
    fs::write(settings.join("config.toml"), text).unwrap();
    let unit = home.start(&["device", "install", "--print", "--user"]).done().await.stdout;
    let absolute = format!("--mcp={}", home.path().join("mcp.json").display());
    assert!(unit.contains(&absolute), "{unit}");
    assert!(!unit.contains("--exec=") && !unit.contains("--root="), "it reads them itself: {unit}");
}

#[tokio::test]
async fn a_file_that_a_service_of_the_machine_cannot_read_is_told() {
    let home = Home::new();
    let policy = home.path().join("policy.toml");
    fs::write(&policy, "").unwrap();
    let install = async |more: &[&str]| {
        let args = ["device", "install", "--print", "--system", "--policy", "policy.toml"];
        home.start(&[&args, more].concat()).done().await.stderr
    };
    let told = "cannot read";
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o700)).unwrap();
    assert!(install(&[]).await.contains(told), "the folder is closed to others");
    assert!(!install(&["--run-as", "root"]).await.contains(told));
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&policy, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(install(&[]).await.contains(told), "the file is");
    fs::set_permissions(&policy, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(!install(&[]).await.contains(told));
}

/// Asks systemd about a unit, where its tools are.
async fn verify(home: &Home, unit: &std::path::Path, scope: &[&str]) {
    let mut command = tokio::process::Command::new("systemd-analyze");
    command.env("XDG_RUNTIME_DIR", home.path()).arg("verify").args(scope).arg(unit);
    match command.output().await {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        output => {
            let output = output.unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success() && !said.contains("flightdeck-device"), "{said}");
        }
    }
}
