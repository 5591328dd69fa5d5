//! Machines join in one line: tokens, key pairs, pinned servers, and what each refuses.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use common::process::{until_gone, until_running};
use common::{Done, Home, Process, Server, long_sleep, until, within};
use serde_json::Value;

/// A server that other machines may reach, over TLS with its own certificate.
struct Fleet {
    process: Process,
    port: u16,
    home: Home,
}

impl Fleet {
    async fn start() -> Self {
        Self::start_in(Home::new(), 0, &[]).await
    }

    async fn start_in(home: Home, port: u16, more: &[&str]) -> Self {
        let port = port.to_string();
        let serve = ["serve", "--host", "0.0.0.0", "--port", &port, "--state-dir", "state"];
        let mut process = home.start(&[&serve[..], more].concat());
        process.says("Another machine joins").await;
        let said = process.stderr();
        let port = said.split("://0.0.0.0:").nth(1).unwrap().split('/').next().unwrap();
        Self { port: port.parse().unwrap(), process, home }
    }

    /// Kills it, and starts it again where it was.
    async fn start_again(mut self, more: &[&str]) -> Self {
        self.process.kill().await;
        Self::start_in(self.home, self.port, more).await
    }

    /// A command of somebody on the server's machine.
    async fn run(&self, args: &[&str]) -> Done {
        let server = format!("wss://localhost:{}", self.port);
        let mut command = self.home.command(args);
        command.env("FLIGHTDECK_STATE_DIR", "state");
        if !matches!(args[0], "key" | "join-token") {
            command.env("FLIGHTDECK_SERVER", server);
            command.env("FLIGHTDECK_CA_FILE", "state/tls-cert.pem");
        }
        Process::start(&mut command).done().await
    }

    /// The address that a new token is in, which names this machine as everybody can reach it.
    async fn invitation(&self, args: &[&str]) -> String {
        let done = self.run(&[&["join-token", "create"], args].concat()).await;
        assert_eq!(done.code, 0, "{done:?}");
        let (_, address) = done.stdout.trim_end().split_once('\'').unwrap();
        let address = address.strip_suffix('\'').unwrap();
        let (scheme, rest) = address.split_once("://").unwrap();
        let (_, rest) = rest.split_once(':').unwrap();
        format!("{scheme}://127.0.0.1:{rest}")
    }

    async fn exec(&self, id: &str, line: &str) -> Done {
        self.run(&["exec", "--on", id, "--", line]).await
    }
}

/// A device with its own state folder that joins.
fn device(home: &Home, args: &[&str]) -> Process {
    home.start(&[&["device", "--state-dir", "own"], args].concat())
}

async fn refused(home: &Home, args: &[&str]) -> String {
    let done = device(home, args).done().await;
    assert_eq!(done.code, 4, "{done:?}");
    done.stderr
}

fn kept(home: &Home, id: &str) -> PathBuf {
    home.path().join(format!("own/joined-{id}.json"))
}

#[tokio::test]
async fn a_machine_joins_with_one_line_and_comes_back_without_any() {
    let fleet = Fleet::start().await;
    let done = fleet.run(&["join-token", "create", "--name", "lab"]).await;
    let line = done.stdout.trim_end().to_owned();
    assert!(line.starts_with("flightdeck device --join 'wss://") && line.ends_with('\''), "{line}");
    let secret = line.split('#').nth(1).unwrap().split('.').next().unwrap();
    assert!(secret.rsplit('_').next().unwrap().len() >= 32, "{line}");

    // The whole line, given to standard input, where no list of processes shows it.
    let home = Home::new();
    let mut command =
        home.command(&["device", "--state-dir", "own", "--id", "lab-1", "--join", "-"]);
    let mut joining = Process::start(command.stdin(std::process::Stdio::piped()));
    joining.feed(&format!("{line}\n")).await;
    joining.says("joined wss://").await;
    joining.says("connected to wss://").await;
    let cmdline = fs::read_to_string(format!("/proc/{}/cmdline", joining.id())).unwrap();
    assert!(!cmdline.contains("fdj_"), "{cmdline}");
    assert_eq!(fleet.exec("lab-1", "uname").await.stdout, "Linux\n");
    joining.kill().await;

    let mode = fs::metadata(kept(&home, "lab-1")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut again = device(&home, &[]);
    again.says("as 'lab-1'").await;
    assert_eq!(fleet.exec("lab-1", "uname").await.stdout, "Linux\n");

    let private = fs::read_to_string(kept(&home, "lab-1")).unwrap();
    let private: Value = serde_json::from_str(&private).unwrap();
    let private = private["private_key"].as_str().unwrap();
    let mut server_files = vec![fleet.process.stderr(), again.stderr()];
    for file in fs::read_dir(fleet.home.path().join("state")).unwrap() {
        server_files.extend(fs::read_to_string(file.unwrap().path()));
    }
    for text in server_files {
        assert!(!text.contains(private) && !text.contains(secret), "{text}");
    }
}

#[tokio::test]
async fn a_second_use_is_refused_and_names_the_first() {
    let fleet = Fleet::start().await;
    let address = fleet.invitation(&["--name", "lab", "--client", "lab-*"]).await;
    let (one, two) = (Home::new(), Home::new());
    let strange = refused(&two, &["--id", "office", "--join", &address]).await;
    assert!(strange.contains("'lab-*'") && strange.contains("'office'"), "{strange}");
    let mut first = device(&one, &["--id", "lab-1", "--join", &address]);
    first.says("connected to").await;
    for id in ["lab-1", "lab-2"] {
        let second = refused(&two, &["--id", id, "--join", &address]).await;
        assert!(second.contains("used up") && second.contains("'lab-1' used it first"), "{second}");
    }
    let tokens = fleet.run(&["join-token", "list", "--json"]).await;
    let token: Value = serde_json::from_str(tokens.stdout.trim_end()).unwrap();
    assert_eq!((&token["used"], &token["first_use"]["who"]), (&1.into(), &"lab-1".into()));
    first.kill().await;
    // The same line again on the machine that used it is no second use.
    device(&one, &["--id", "lab-1", "--join", &address]).says("connected to").await;

    let revoked = fleet.invitation(&["--name", "other"]).await;
    assert_eq!(fleet.run(&["join-token", "revoke", "other"]).await.code, 0);
    let gone = refused(&two, &["--id", "x", "--join", &revoked]).await;
    assert!(gone.contains("no such join token"), "{gone}");
    let secret = revoked.split('#').nth(1).unwrap();
    assert!(!gone.contains(secret), "{gone}");
    let late = fleet.invitation(&["--name", "late", "--expires", "1s"]).await;
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let late = refused(&two, &["--id", "x", "--join", &late]).await;
    assert!(late.contains("expired at"), "{late}");
}

#[tokio::test]
async fn a_token_opens_no_id_that_is_taken() {
    let fleet = Fleet::start().await;
    let done =
        fleet.run(&["key", "create", "--name", "k", "--role", "device", "--client", "named"]);
    assert_eq!(done.await.code, 0);
    let address = fleet.invitation(&["--name", "lab", "--uses", "10"]).await;
    let home = Home::new();
    let mut bound = device(&home, &["--id", "bound", "--join", &address]);
    bound.says("connected to").await;
    let there = ["device", "--id", "there", "--exec", "off"];
    let mut command = fleet.home.command(&there);
    command
        .env("FLIGHTDECK_STATE_DIR", "state")
        .env("FLIGHTDECK_SERVER", format!("wss://localhost:{}", fleet.port))
        .env("FLIGHTDECK_CA_FILE", "state/tls-cert.pem");
    let mut there = Process::start(&mut command);
    there.says("connected to").await;
    let thief = Home::new();
    for (id, why) in [
        ("bound", "bound to another key pair"),
        ("named", "a created key names it"),
        ("there", "connected, or expected back"),
        ("a*", "with * in it"),
    ] {
        let said = refused(&thief, &["--id", id, "--join", &address]).await;
        assert!(said.contains(why), "{id}: {said}");
    }
    // Also where it is away.
    there.kill().await;
    let said = refused(&thief, &["--id", "there", "--join", &address]).await;
    assert!(said.contains("expected back"), "{said}");
}

#[tokio::test]
async fn a_key_pair_is_listed_with_its_last_use_and_revoking_it_cuts_the_device() {
    let fleet = Fleet::start().await;
    let address = fleet.invitation(&["--name", "lab"]).await;
    let home = Home::new();
    let mut joined = device(&home, &["--id", "lab-1", "--exec", "shell", "--join", &address]);
    joined.says("connected to").await;
    let long = long_sleep();
    let running = fleet.exec("lab-1", &long);
    tokio::pin!(running);
    tokio::select! {
        () = until_running(&long) => {}
        done = &mut running => panic!("{done:?}"),
    }
    let listed = async {
        loop {
            let keys = fleet.run(&["key", "list", "--json"]).await;
            let key: Value = serde_json::from_str(keys.stdout.trim_end()).unwrap();
            if key["last_used_at"].is_string() {
                return key;
            }
        }
    };
    let key = within("the last use", listed).await;
    assert_eq!((&key["kind"], &key["client"]), (&"key_pair".into(), &"lab-1".into()));
    assert_eq!(fleet.run(&["key", "revoke", "lab"]).await.code, 0);
    joined.says("the key was revoked").await;
    // What it may do no more it does not go on with, and nobody waits for it.
    until_gone(&long).await;
    let ended = within("the end of the task", running).await;
    assert!(ended.code == 121 && ended.stderr.contains("disconnected"), "{ended:?}");
    joined.kill().await;
    let done = device(&home, &["--max-retries", "0"]).done().await;
    assert!(done.code == 4 && done.stderr.contains("device rejoin"), "{done:?}");
    let audit = || fs::read_to_string(fleet.home.path().join("state/audit.jsonl")).unwrap();
    for event in ["join_token_created", "joined", "registered", "key_revoked", "key_refused"] {
        until(event, || audit().contains(&format!("\"event\":\"{event}\""))).await;
    }
}

#[tokio::test]
async fn a_server_with_another_key_is_refused_and_one_with_the_same_key_is_known_again() {
    let fleet = Fleet::start().await;
    let address = fleet.invitation(&["--name", "lab"]).await;
    let home = Home::new();
    let mut joined = device(&home, &["--id", "lab-1", "--join", &address]);
    joined.says("connected to").await;

    // Another certificate of the same key pair, as after its renewal.
    fs::remove_file(fleet.home.path().join("state/tls-cert.pem")).unwrap();
    let fleet = fleet.start_again(&[]).await;
    joined.says_times("connected to", 2).await;
    joined.kill().await;

    // Another key pair: whoever stands there gets nothing to see.
    for file in ["tls-cert.pem", "tls-key.pem"] {
        fs::remove_file(fleet.home.path().join("state").join(file)).unwrap();
    }
    let fleet = fleet.start_again(&[]).await;
    let done = device(&home, &["--max-retries", "0"]).done().await;
    assert!(done.code == 4 && done.stderr.contains("its public key is another one"), "{done:?}");
    let other = fleet.invitation(&["--name", "other"]).await;
    let (address, _) = other.rsplit_once('.').unwrap();
    let wrong = format!("{address}.{}", "A".repeat(43));
    let wrong = refused(&home, &["--id", "x", "--join", &wrong]).await;
    assert!(wrong.contains("its public key is another one"), "{wrong}");
}

#[tokio::test]
async fn a_server_says_which_key_it_will_have_and_is_known_by_it_then() {
    let fleet = Fleet::start().await;
    let address = fleet.invitation(&["--name", "lab"]).await;
    let home = Home::new();
    let mut joined = device(&home, &["--id", "lab-1", "--join", &address]);
    joined.says("connected to").await;
    // The pair of another server is as good as any.
    let other = Fleet::start().await;
    let [next, state] = [&other, &fleet].map(|fleet| fleet.home.path().join("state"));
    let certificate = next.join("tls-cert.pem").display().to_string();
    let fleet = fleet.start_again(&["--next-tls-cert", &certificate]).await;
    joined.says_times("connected to", 2).await;
    let file = kept(&home, "lab-1");
    until("the next key", || fs::read_to_string(&file).unwrap().contains("next_pin")).await;
    joined.kill().await;

    for file in ["tls-cert.pem", "tls-key.pem"] {
        fs::copy(next.join(file), state.join(file)).unwrap();
    }
    let _fleet = fleet.start_again(&[]).await;
    device(&home, &[]).says("connected to").await;
}

#[tokio::test]
async fn an_id_that_is_bound_opens_for_its_key_pair_alone() {
    let fleet = Fleet::start().await;
    let address = fleet.invitation(&["--name", "lab"]).await;
    let home = Home::new();
    let mut joined = device(&home, &["--id", "lab-1", "--join", &address]);
    joined.says("connected to").await;
    joined.kill().await;
    let made = ["key", "create", "--name", "k", "--role", "device", "--client", "lab-*"];
    let key = fleet.run(&made).await.stdout.trim().to_owned();
    let shared = fs::read_to_string(fleet.home.path().join("state/key")).unwrap();
    for key in [key.as_str(), shared.trim()] {
        let mut command = fleet.home.command(&["device", "--id", "lab-1", "--max-retries", "0"]);
        command
            .env("FLIGHTDECK_TOKEN", key)
            .env("FLIGHTDECK_SERVER", format!("wss://localhost:{}", fleet.port))
            .env("FLIGHTDECK_CA_FILE", "state/tls-cert.pem");
        let done = Process::start(&mut command).done().await;
        assert!(done.code == 4 && done.stderr.contains("bound to the key pair"), "{done:?}");
    }
    // A key that is in the environment for something else changes nothing.
    let mut command = home.command(&["device", "--state-dir", "own"]);
    Process::start(command.env("FLIGHTDECK_TOKEN", key)).says("as 'lab-1'").await;
}

#[tokio::test]
async fn without_tls_joining_beyond_this_machine_has_to_be_asked_for() {
    let home = Home::new();
    let done = device(&home, &["--join", "ws://192.0.2.1:1#fdj_a_b"]).done().await;
    assert!(done.code == 2 && done.stderr.contains("--insecure"), "{done:?}");
    let done = device(&home, &["--join", "wss://192.0.2.1:1"]).done().await;
    assert!(done.code == 2 && done.stderr.contains("join-token create"), "{done:?}");

    let server = Server::start().await;
    let made = server.run(&["join-token", "create", "--name", "lab"]).await;
    let address = made.stdout.split('\'').nth(1).unwrap().to_owned();
    assert!(address.starts_with("ws://127.0.0.1:"), "{address}");
    let mut joined = device(&home, &["--id", "lab-1", "--join", &address]);
    joined.says("connected to ws://").await;
    joined.kill().await;
    device(&home, &[]).says("as 'lab-1'").await;

    let open = Fleet::start_in(Home::new(), 0, &["--insecure"]).await;
    let done = open.run(&["join-token", "create", "--name", "lab"]).await;
    assert!(done.stdout.starts_with("flightdeck device --insecure --join 'ws://"), "{done:?}");
    assert!(done.stderr.contains("without TLS"), "{done:?}");
}

#[tokio::test]
async fn behind_a_tls_proxy_its_key_has_to_be_known_to_the_server() {
    let home = Home::new();
    let hash = "A".repeat(43);
    let proxied = ["--public-url", "wss://fleet.example", "--proxy-key-hash", &hash];
    let mut server =
        home.start(&[&["serve", "--port", "0", "--state-dir", "state"], &proxied[..]].concat());
    server.says("join-token create").await;
    let made = home.start(&["join-token", "create", "--name", "lab", "--state-dir", "state"]);
    let made = made.done().await;
    let says = "'wss://fleet.example:443#fdj_";
    assert!(made.stdout.contains(says) && made.stdout.contains(&format!(".{hash}'")), "{made:?}");

    // Where the proxy's key is another one than was said, devices are told so.
    let said = server.stderr();
    let port = said.split("://127.0.0.1:").nth(1).unwrap().split('/').next().unwrap();
    let secret = made.stdout.split('#').nth(1).unwrap().split('.').next().unwrap();
    let address = format!("ws://127.0.0.1:{port}#{secret}");
    let own = Home::new();
    let done =
        device(&own, &["--id", "lab-1", "--max-retries", "0", "--join", &address]).done().await;
    assert!(done.code == 4 && done.stderr.contains("proxy_key_hash"), "{done:?}");
    server.says("proxy_key_hash").await;
}

#[tokio::test]
async fn a_service_gets_the_address_in_the_file_that_only_it_reads() {
    let home = Home::new();
    let address = "wss://192.0.2.1:5000#fdj_abc_secret.".to_owned() + &"A".repeat(43);
    let install = ["device", "install", "--user", "--id", "lab-1", "--join", "-"];
    let mut command = home.command(&install);
    let mut installing = Process::start(command.stdin(std::process::Stdio::piped()));
    installing.feed(&address).await;
    let _systemd_may_not_run_here = installing.done().await;
    let unit = home.path().join(".config/systemd/user/flightdeck-device-lab-1.service");
    let unit = fs::read_to_string(unit).unwrap();
    assert!(!unit.contains("secret"), "{unit}");
    let file = home.path().join(".local/state/flightdeck/flightdeck-device-lab-1.env");
    assert!(fs::read_to_string(&file).unwrap().contains("FLIGHTDECK_JOIN="));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn an_operator_lets_a_device_join_again_and_the_old_key_pair_opens_no_more() {
    let fleet = Fleet::start().await;
    let address = fleet.invitation(&["--name", "lab"]).await;
    let (old, new) = (Home::new(), Home::new());
    let mut first = device(&old, &["--id", "lab-1", "--join", &address]);
    first.says("connected to").await;
    let allowed = fleet.run(&["device", "rejoin", "lab-1"]).await;
    assert_eq!(allowed.code, 0, "{allowed:?}");
    let line = allowed.stdout.split('\'').nth(1).unwrap().to_owned();
    let other = refused(&new, &["--id", "lab-2", "--join", &line]).await;
    assert!(other.contains("'lab-1'"), "{other}");
    let mut second = device(&new, &["--id", "lab-1", "--join", &line]);
    second.says("connected to").await;
    first.says("the key was revoked").await;
    assert_eq!(fleet.run(&["key", "list", "--json"]).await.stdout.lines().count(), 1);

    let key = fleet.run(&["key", "create", "--name", "c", "--role", "constellation"]).await;
    let key = key.stdout.trim().to_owned();
    let mut command = fleet.home.command(&["device", "rejoin", "lab-1"]);
    command
        .env("FLIGHTDECK_TOKEN", key)
        .env("FLIGHTDECK_SERVER", format!("wss://localhost:{}", fleet.port))
        .env("FLIGHTDECK_CA_FILE", "state/tls-cert.pem");
    let refused = Process::start(&mut command).done().await;
    assert!(refused.code != 0 && refused.stdout.is_empty(), "{refused:?}");
}

#[tokio::test]
async fn an_operator_logs_in_from_another_machine_and_names_the_server() {
    let fleet = Fleet::start().await;
    let made = fleet.run(&["join-token", "create", "--name", "me", "--role", "operator"]).await;
    assert!(made.stdout.starts_with("flightdeck login 'wss://"), "{made:?}");
    let address = made.stdout.split('\'').nth(1).unwrap().to_owned();
    let home = Home::new();
    let wrong = device(&home, &["--join", &address]).done().await;
    assert!(wrong.code == 4 && wrong.stderr.contains("flightdeck login"), "{wrong:?}");
    let done = home.start(&["login", "--name", "fleet", &address]).done().await;
    assert_eq!(done.code, 0, "{done:?}");
    for args in
        [&["devices"][..], &["devices", "--server", "fleet"], &["tasks", "--server", "fleet"]]
    {
        let done = home.start(args).done().await;
        assert_eq!(done.code, 0, "{args:?}: {done:?}");
    }
    let file = home.path().join(".local/state/flightdeck/logins.json");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let key = fs::read_to_string(&file).unwrap();
    let key: Value = serde_json::from_str(&key).unwrap();
    let listed = home.start(&["login"]).done().await;
    assert!(listed.stdout.contains("fleet") && listed.stdout.contains("wss://"), "{listed:?}");
    assert!(!format!("{done:?}{listed:?}").contains(key[0]["key"].as_str().unwrap()));
    let again = home.start(&["login", &address]).done().await;
    assert!(again.code == 4 && again.stderr.contains("'me' used it first"), "{again:?}");
    assert_eq!(home.start(&["logout", "fleet"]).done().await.code, 0);
    assert_eq!(home.start(&["logout", "fleet"]).done().await.code, 2);
}
