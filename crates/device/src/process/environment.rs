//! What a child is told of the device's environment.

use std::ffi::OsString;

/// Where programs are looked for, whatever the device's own PATH says.
#[cfg(unix)]
const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The language of a child whose caller has none that is UTF-8.
#[cfg(unix)]
const PLAIN_LANGUAGE: &str = "C.UTF-8";

/// What Windows needs of the device's environment to start programs at all.
#[cfg(not(unix))]
const KEPT_VARIABLES: [&str; 12] = [
    "PATH",
    "PATHEXT",
    "SystemRoot",
    "SystemDrive",
    "ComSpec",
    "TEMP",
    "TMP",
    "USERPROFILE",
    "USERNAME",
    "APPDATA",
    "LOCALAPPDATA",
    "ProgramData",
];

/// Gives the environment for a child: a fixed system PATH, who the user is, a UTF-8 language, a
/// terminal without tricks, and where time zone and temporary files are, if set. Nothing else of
/// the device's environment, so no keys and no tokens.
pub fn scrubbed_env() -> Vec<(OsString, OsString)> {
    scrub(|name| std::env::var_os(name).filter(|value| !value.is_empty()))
}

/// [`scrubbed_env`] of the environment that `variable` looks up.
#[cfg(unix)]
fn scrub(variable: impl Fn(&str) -> Option<OsString>) -> Vec<(OsString, OsString)> {
    let user = variable("USER").or_else(|| variable("LOGNAME"));
    let login = variable("LOGNAME").or_else(|| variable("USER"));
    let language = variable("LANG").filter(is_utf8);
    let entries = [
        ("PATH", Some(SYSTEM_PATH.into())),
        ("HOME", variable("HOME").or_else(|| Some("/".into()))),
        ("USER", user),
        ("LOGNAME", login),
        ("LANG", language.or_else(|| Some(PLAIN_LANGUAGE.into()))),
        ("LC_ALL", variable("LC_ALL").filter(is_utf8)),
        ("TERM", Some("dumb".into())),
        ("TZ", variable("TZ")),
        ("TMPDIR", variable("TMPDIR")),
    ];
    entries.into_iter().filter_map(|(name, value)| Some((name.into(), value?))).collect()
}

/// Whether a locale's name says that it is UTF-8.
#[cfg(unix)]
fn is_utf8(locale: &OsString) -> bool {
    let locale = locale.to_string_lossy().to_ascii_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}

#[cfg(not(unix))]
fn scrub(variable: impl Fn(&str) -> Option<OsString>) -> Vec<(OsString, OsString)> {
    let kept = KEPT_VARIABLES.iter();
    kept.filter_map(|name| Some((OsString::from(name), variable(name)?))).collect()
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    fn scrubbed(variables: &[(&str, &str)]) -> Vec<String> {
        let look_up = |name: &str| variables.iter().find(|entry| entry.0 == name);
        let scrubbed = scrub(|name| look_up(name).map(|entry| entry.1.into()));
        let show = |(name, value): &(OsString, OsString)| format!("{name:?}={value:?}");
        scrubbed.iter().map(show).map(|entry| entry.replace('"', "")).collect()
    }

    #[test]
    fn the_scrubbed_environment_holds_no_secrets() {
        let shown = scrubbed(&[
            ("HOME", "/home/ada"),
            ("USER", "ada"),
            ("PATH", "/tmp/evil"),
            ("API_KEY", "secret"),
            ("TZ", "Europe/Paris"),
        ]);
        let path = format!("PATH={SYSTEM_PATH}");
        let expected = ["HOME=/home/ada", "USER=ada", "LOGNAME=ada", "LANG=C.UTF-8", "TERM=dumb"];
        let expected = [&[path.as_str()], &expected[..], &["TZ=Europe/Paris"]].concat();
        assert_eq!(shown, expected);
    }

    #[test]
    fn only_a_utf8_language_is_passed_on() {
        let language = |lang, all| {
            let mut shown = scrubbed(&[("LANG", lang), ("LC_ALL", all)]);
            shown.retain(|entry| entry.starts_with('L'));
            shown
        };
        assert_eq!(language("de_DE.UTF-8", "C"), ["LANG=de_DE.UTF-8"]);
        assert_eq!(language("C", "en_US.utf8"), ["LANG=C.UTF-8", "LC_ALL=en_US.utf8"]);
    }
}
