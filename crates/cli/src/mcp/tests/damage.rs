use proptest::prelude::*;

use super::common::COMMON;
use super::ufo::UFO;
use super::*;

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
