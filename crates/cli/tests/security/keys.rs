//! `flightdeck key` as somebody types it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::common::{Done, Home, Server};

async fn key(home: &Home, args: &[&str]) -> Done {
    let all = [&["key"], args, &["--state-dir", "state"]].concat();
    home.start(&all).done().await
}

async fn created(home: &Home, args: &[&str]) -> String {
    let done = key(home, &[&["create"], args].concat()).await;
    assert_eq!(done.code, 0, "{done:?}");
    done.stdout.trim().to_owned()
}

async fn listed(home: &Home) -> Vec<Value> {
    let done = key(home, &["list", "--json"]).await;
    assert_eq!(done.code, 0, "{done:?}");
    done.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn a_created_key_is_all_that_stdout_shows_and_only_its_hash_is_kept() {
    let home = Home::new();
    let done = key(&home, &["create", "--name", "lab", "--role", "device"]).await;
    assert_eq!(done.code, 0, "{done:?}");
    let shown = done.stdout.strip_suffix('\n').unwrap();
    let parts: Vec<_> = shown.split('_').collect();
    assert_eq!((parts[0], parts[1].len(), parts[2].len(), parts.len()), ("fd", 12, 64, 3));
    assert!(done.stderr.contains("not shown again"), "{done:?}");
    assert!(!done.stderr.contains(parts[2]), "stderr is kept by many");

    let state = home.path().join("state");
    let mode = |path: &str| fs::metadata(state.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(""), mode("keys.json")), (0o700, 0o600));
    for file in fs::read_dir(&state).unwrap() {
        let path = file.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains(parts[2]), "the key is in {}", path.display());
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o077;
        assert_eq!(mode, 0, "others may open {}", path.display());
    }
}

#[tokio::test]
async fn the_list_shows_what_each_key_is_for_and_no_secret() {
    let home = Home::new();
    let empty = key(&home, &["list"]).await;
    assert_eq!((empty.code, empty.stdout.as_str()), (0, ""), "{empty:?}");
    assert!(empty.stderr.contains("key create"), "{empty:?}");

    let lab = created(&home, &["--name", "lab", "--role", "device", "--client", "lab-*"]).await;
    let args = ["--name", "galaxy", "--role", "constellation", "--target", "lab-*"];
    let galaxy = created(&home, &[&args[..], &["--expires", "30d"]].concat()).await;
    created(&home, &["--name", "boss", "--role", "operator"]).await;

    let table = key(&home, &["list"]).await.stdout;
    let row = |name: &str| {
        let line = table.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let id = |key: &str| key.split('_').nth(1).unwrap().to_owned();
    assert_eq!(row("lab"), ["lab", &id(&lab), "key", "device", "lab-*", "–", "never", "never"]);
    let galaxys = row("galaxy");
    assert_eq!(galaxys[..6], ["galaxy", &id(&galaxy), "key", "constellation", "any", "lab-*"]);
    assert_eq!(galaxys[8..], ["UTC", "never"]);
    assert_eq!(row("boss")[2..], ["key", "operator", "any", "any", "never", "never"]);

    let keys = listed(&home).await;
    let names: Vec<_> = keys.iter().map(|key| key["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["lab", "galaxy", "boss"]);
    assert_eq!(keys[0]["client"], "lab-*");
    assert_eq!(keys[1]["expired"], false);
    let secret = galaxy.rsplit('_').next().unwrap();
    let stored = fs::read_to_string(home.path().join("state/keys.json")).unwrap();
    let stored: Value = serde_json::from_str(&stored).unwrap();
    let hash = stored["keys"][1]["sha256"].as_str().unwrap();
    for text in [table, json!(keys).to_string()] {
        assert!(!text.contains(secret) && !text.contains(hash), "{text}");
    }
}

#[tokio::test]
async fn a_name_is_given_once_until_it_is_revoked() {
    let home = Home::new();
    let first = created(&home, &["--name", "lab", "--role", "device"]).await;
    let again = key(&home, &["create", "--name", "lab", "--role", "operator"]).await;
    assert_eq!((again.code, again.stdout.as_str()), (2, ""), "{again:?}");
    assert!(again.stderr.contains("'lab'") && again.stderr.contains("revoke"), "{again:?}");
    assert_eq!(listed(&home).await.len(), 1);

    assert_eq!(key(&home, &["revoke", "lab"]).await.code, 0);
    let second = created(&home, &["--name", "lab", "--role", "device"]).await;
    assert_ne!(first, second);
    // A key may be named by its id too.
    assert_eq!(key(&home, &["revoke", second.split('_').nth(1).unwrap()]).await.code, 0);
    assert_eq!(listed(&home).await, Vec::<Value>::new());
}

#[tokio::test]
async fn keys_that_are_created_at_the_same_time_do_not_get_lost() {
    let home = Home::new();
    let names: Vec<_> = (0..6).map(|n| format!("k{}", n / 2)).collect();
    let creating = names.iter().map(|name| {
        home.start(&["key", "create", "--name", name, "--role", "device", "--state-dir", "state"])
            .done()
    });
    let codes: Vec<_> =
        futures_util::future::join_all(creating).await.iter().map(|done| done.code).collect();
    assert_eq!(codes.iter().filter(|code| **code == 0).count(), 3, "{codes:?}");
    let keys = listed(&home).await;
    let listed: BTreeSet<_> = keys.iter().map(|key| key["name"].as_str().unwrap()).collect();
    assert_eq!((keys.len(), listed), (3, BTreeSet::from(["k0", "k1", "k2"])));
}

#[tokio::test]
async fn what_cannot_be_done_is_said_with_exit_code_2_and_changes_nothing() {
    let home = Home::new();
    let long = "x".repeat(65);
    let pattern = "x".repeat(257);
    for (args, says) in [
        (vec!["create"], "--name"),
        (vec!["create", "--name", "n"], "--role"),
        (vec!["create", "--name", "n", "--role", "boss"], "possible values"),
        (vec!["create", "--name", "", "--role", "device"], "1 to 64 characters"),
        (vec!["create", "--name", &long, "--role", "device"], "1 to 64 characters"),
        (vec!["create", "--name", "a\u{1b}[2J", "--role", "device"], "none of control"),
        (vec!["create", "--name", "local", "--role", "operator"], "shared key"),
        (vec!["create", "--name", "n", "--role", "device", "--target", "x"], "no targets"),
        (vec!["create", "--name", "n", "--role", "device", "--client", ""], "1 to 256"),
        (vec!["create", "--name", "n", "--role", "device", "--client", &pattern], "1 to 256"),
        (vec!["create", "--name", "n", "--role", "device", "--expires", "soon"], "30d"),
        (vec!["create", "--name", "n", "--role", "device", "--expires", "0s"], "30d"),
        (vec!["create", "--name", "n", "--role", "device", "--expires=-1d"], "30d"),
        (vec!["create", "--name", "n", "--role", "device", "--expires", "9999y"], "expires"),
        (vec!["revoke", "nobody"], "no key 'nobody'"),
        (vec!["revoke"], "NAME"),
        (vec!["show"], "`flightdeck serve` makes one"),
    ] {
        let done = key(&home, &args).await;
        assert_eq!((done.code, done.stdout.as_str()), (2, ""), "{args:?}: {done:?}");
        assert!(done.stderr.contains(says), "{args:?} does not say {says:?}: {done:?}");
        assert!(!done.stderr.contains('\u{1b}'), "it drives the terminal: {done:?}");
    }
    assert_eq!(listed(&home).await, Vec::<Value>::new());
}

#[tokio::test]
async fn the_generated_key_is_shown_as_often_as_asked_and_is_none_of_the_created() {
    let server = Server::start().await;
    for _ in 0..2 {
        let shown = server.run(&["key", "show"]).await;
        assert_eq!((shown.code, shown.stdout.trim()), (0, &*server.key()), "{shown:?}");
    }
    assert_eq!(server.run(&["key", "list"]).await.stdout, "");
    let mode = fs::metadata(server.state_file("key")).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
}

#[tokio::test]
async fn a_file_of_keys_that_cannot_be_read_stops_everything_and_is_left_as_it_is() {
    let home = Home::new();
    created(&home, &["--name", "lab", "--role", "device"]).await;
    let path = home.path().join("state/keys.json");
    let good = fs::read_to_string(&path).unwrap();
    let half = &good[..good.len() / 2];
    let strange = good.replace("\"role\": \"device\"", "\"role\": \"emperor\"");
    let unknown = good.replace("\"name\"", "\"label\"");
    for (text, says) in [("", "EOF"), (half, "line"), (&strange, "emperor"), (&unknown, "label")] {
        fs::write(&path, text).unwrap();
        let create = ["create", "--name", "x", "--role", "device"];
        let serve = home.start(&["serve", "--port", "0", "--state-dir", "state"]).done().await;
        let mut all = vec![serve];
        for args in [&create[..], &["list"], &["revoke", "lab"]] {
            all.push(key(&home, args).await);
        }
        for done in all {
            assert_eq!((done.code, done.stdout.as_str()), (2, ""), "{done:?}");
            let is_clear = done.stderr.contains("state/keys.json") && done.stderr.contains(says);
            assert!(is_clear, "{says}: {done:?}");
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let done = key(&home, &["list"]).await;
    assert!(done.code == 2 && done.stderr.contains("keys.json"), "{done:?}");
}
