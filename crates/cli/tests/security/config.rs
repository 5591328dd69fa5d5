//! A settings file with a mistake in it.

use std::fs;

use crate::common::{Done, Home};

async fn serve(home: &Home) -> Done {
    let serve = ["serve", "--port", "0", "--state-dir", "state", "--config", "settings.toml"];
    home.start(&serve).done().await
}

#[tokio::test]
async fn a_mistake_in_the_settings_is_explained_and_nothing_is_started() {
    let home = Home::new();
    for (text, says) in [
        (
            "[server]\nsesions_per_device = 2\n",
            &["line 2", "did you mean `sessions_per_device`"][..],
        ),
        ("[sever]\nport = 1\n", &["line 1", "did you mean `server`"]),
        ("[server]\nport = \"many\"\n", &["line 2", "port = \"many\""]),
        ("[server]\nport = 99999\n", &["line 2", "99999"]),
        ("[server]\nsessions_per_device = 0\n", &["sessions_per_device"]),
        ("[server]\nliveness_timeout = \"soon\"\n", &["'soon' is no length of time", "90s"]),
        ("[server]\nliveness_timeout = 0\n", &["liveness_timeout must be more than 0"]),
        ("[server]\nallowed_hosts = \"a.example:80\"\n", &["a.example:80"]),
        ("[server]\nallowed_hosts = [\"https://a.example\"]\n", &["https://a.example"]),
        ("[server]\nallowed_origins = [\"a.example\"]\n", &["a.example", "SCHEME://HOST"]),
        ("[server\n", &["line 1"]),
        ("[server]\nport = 1\nport = 2\n", &["line 3", "duplicate"]),
        ("[server]\nhost = \"no such host\"\n", &["no such host", "no such address"]),
        ("[server]\npublic_url = \"ftp://box\"\n", &["public_url", "ftp"]),
        ("[server]\nproxy_key_hash = \"abc\"\n", &["proxy_key_hash", "43 characters"]),
    ] {
        fs::write(home.path().join("settings.toml"), text).unwrap();
        let done = serve(&home).await;
        assert_eq!((done.code, done.stdout.as_str()), (2, ""), "{text:?}: {done:?}");
        for says in says {
            assert!(done.stderr.contains(says), "{text:?} does not say {says:?}: {done:?}");
        }
        assert!(!home.files().contains(&"state".to_owned()), "{text:?}: state was made");
        assert!(done.stderr.lines().count() < 12, "too many words: {done:?}");
    }
}

#[tokio::test]
async fn a_settings_file_that_cannot_be_read_is_named() {
    let home = Home::new();
    let path = home.path().join("settings.toml");
    for make in [
        (&|| {}) as &dyn Fn(),
        &|| fs::create_dir(&path).unwrap(),
        &|| {
            fs::remove_dir(&path).unwrap();
            fs::write(&path, [0xff, 0xfe]).unwrap();
        },
        &|| fs::write(&path, " ".repeat(1024 * 1024 + 1)).unwrap(),
    ] {
        make();
        let done = serve(&home).await;
        assert!(done.code == 2 && done.stderr.contains("settings.toml"), "{done:?}");
    }
}

#[tokio::test]
async fn a_mistake_beside_a_key_does_not_show_the_key() {
    let home = Home::new();
    for line in
        ["api_key = 5ecret", "api_key = [51234]", "apikey = \"5ecret\"", "token = \"5ecret\""]
    {
        fs::write(home.path().join("settings.toml"), format!("[server]\n{line}\n")).unwrap();
        let done = serve(&home).await;
        assert!(done.code == 2 && done.stderr.contains("line 2"), "{done:?}");
        assert!(!done.stderr.contains("5ecret") && !done.stderr.contains("51234"), "{done:?}");
    }
}
