//! The facts a device registers with: what machine it is and what can be done on it.
//!
//! It must not know the server, the protocol or any tool: it only looks at the machine. It asks
//! no one on the network, and it never fails: what can't be found is empty or 0.

use std::{
    ffi::{OsStr, OsString},
    path::Path,
};

use aip::message::SystemInfo;
use serde_json::{Map, Value};

/// The version of the shape of [`SystemInfo`].
pub const SCHEMA_VERSION: &str = "1.0";

/// How many bytes a gigabyte has here, as every device of the constellation counts them.
const BYTES_PER_GIGABYTE: f64 = (1u64 << 30) as f64;

/// The address of a machine that has no other.
const LOOPBACK: &str = "127.0.0.1";

/// The name of a machine that has none.
const NAMELESS: &str = "device";

/// The longest name that [`host_name`] gives, in characters.
const MAX_HOST_NAME: usize = 64;

/// The programs that count as a browser.
const BROWSERS: [&str; 12] = [
    "google-chrome",
    "google-chrome-stable",
    "chromium",
    "chromium-browser",
    "chrome",
    "firefox",
    "firefox-esr",
    "microsoft-edge",
    "microsoft-edge-stable",
    "brave-browser",
    "opera",
    "vivaldi",
];

/// What the device's own tools can do, which the machine can't tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offers {
    /// Commands can be executed.
    pub commands: bool,
    /// Files can be read or written.
    pub files: bool,
}

/// Looks at this machine. Takes some milliseconds, as it reads the system's files.
pub fn collect(device_id: &str, platform: &str, offers: Offers) -> SystemInfo {
    SystemInfo {
        device_id: device_id.to_owned(),
        platform: platform.to_owned(),
        os_version: os_version(),
        cpu_count: std::thread::available_parallelism().map_or(0, usize::from),
        memory_total_gb: memory_total_gb(),
        hostname: gethostname::gethostname().to_string_lossy().into_owned(),
        ip_address: ip_address(),
        supported_features: supported_features(offers),
        platform_type: platform_type().to_owned(),
        schema_version: SCHEMA_VERSION.to_owned(),
        custom_metadata: custom_metadata(platform, std::env::consts::OS),
    }
}

/// Says what can be done on this machine, and nothing that can't: "cli" and "file_system" if
/// offered, "gui" if there is a display, "browser" if one is installed.
pub fn supported_features(offers: Offers) -> Vec<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    features(offers, has_display(|name| std::env::var_os(name)), has_browser(&path))
}

/// The platform of the machine this was built for. A Mac counts as "linux", whose tools it
/// shares; [`SystemInfo::custom_metadata`] then has its real name.
pub fn default_platform() -> &'static str {
    if cfg!(windows) {
        "windows"
    } else if cfg!(any(target_os = "android", target_os = "ios")) {
        "mobile"
    } else {
        "linux"
    }
}

/// The machine's name in letters that fit a client id: ASCII letters and digits, `-`, `_` and
/// `.`; never empty.
pub fn host_name() -> String {
    fit_for_id(&gethostname::gethostname().to_string_lossy())
}

/// The kernel's own words, which is what Python's `platform.version()` gives.
#[cfg(target_os = "linux")]
fn os_version() -> String {
    let version = std::fs::read_to_string("/proc/sys/kernel/version");
    version.map(|version| version.trim().to_owned()).unwrap_or_default()
}

#[cfg(not(target_os = "linux"))]
fn os_version() -> String {
    sysinfo::System::long_os_version().unwrap_or_default()
}

fn memory_total_gb() -> f64 {
    let Ok(mut system) = sysinfo::System::new() else { return 0.0 };
    system.refresh_memory_specifics(sysinfo::MemoryRefreshKind::nothing().with_ram());
    (system.total_memory() as f64 / BYTES_PER_GIGABYTE * 100.0).round() / 100.0
}

/// The address the system would use towards its network, read from its own tables.
fn ip_address() -> String {
    local_ip_address::local_ip().map_or_else(|_| LOOPBACK.to_owned(), |address| address.to_string())
}

fn platform_type() -> &'static str {
    if default_platform() == "mobile" { "mobile" } else { "computer" }
}

fn custom_metadata(platform: &str, system: &str) -> Map<String, Value> {
    let mut metadata = Map::new();
    if platform != system {
        metadata.insert("system".to_owned(), system.into());
    }
    metadata
}

fn features(offers: Offers, display: bool, browser: bool) -> Vec<String> {
    let known = [
        ("cli", offers.commands),
        ("gui", display),
        ("browser", browser),
        ("file_system", offers.files),
    ];
    known.into_iter().filter(|(_, there)| *there).map(|(name, _)| name.to_owned()).collect()
}

/// Windows and macOS always have a desktop; elsewhere a display has been announced or isn't there.
fn has_display(variable: impl Fn(&str) -> Option<OsString>) -> bool {
    let announced = |name| variable(name).is_some_and(|value| !value.is_empty());
    cfg!(any(windows, target_os = "macos")) || announced("DISPLAY") || announced("WAYLAND_DISPLAY")
}

fn has_browser(path: &OsStr) -> bool {
    let suffix = std::env::consts::EXE_SUFFIX;
    let is_there = |directory: &Path| {
        BROWSERS.iter().any(|name| is_executable(&directory.join(format!("{name}{suffix}"))))
    };
    // An empty entry would mean the current directory, which is nowhere in particular.
    std::env::split_paths(path).any(|directory| directory.is_absolute() && is_there(&directory))
}

#[cfg(unix)]
fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(not(unix))]
fn is_executable(file: &Path) -> bool {
    file.is_file()
}

fn fit_for_id(name: &str) -> String {
    let fits = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    let name = name.chars().take(MAX_HOST_NAME);
    let name: String = name.map(|letter| if fits(letter) { letter } else { '-' }).collect();
    let name = name.trim_matches(['-', '.']);
    if name.is_empty() { NAMELESS.to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_tells_all_facts_under_their_names() {
        let info = collect("desk", default_platform(), Offers { commands: true, files: true });
        let told = serde_json::to_value(&info).unwrap();
        let mut names: Vec<&String> = told.as_object().unwrap().keys().collect();
        names.sort();
        let expected = "cpu_count custom_metadata device_id hostname ip_address memory_total_gb \
            os_version platform platform_type schema_version supported_features";
        assert_eq!(names, expected.split_whitespace().collect::<Vec<_>>());
        assert_eq!(told["device_id"], "desk");
        assert_eq!(told["schema_version"], "1.0");
        assert!(info.cpu_count > 0);
        assert!(info.ip_address.parse::<std::net::IpAddr>().is_ok());
    }

    #[test]
    fn the_memory_is_told_with_two_decimals() {
        let memory = memory_total_gb();
        assert!(memory > 0.0);
        assert_eq!(format!("{memory:.2}").parse::<f64>().unwrap(), memory);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_version_is_the_kernels() {
        assert!(os_version().starts_with('#'), "{}", os_version());
    }

    #[test]
    fn a_machine_promises_only_what_it_has() {
        assert!(features(Offers::default(), false, false).is_empty());
        assert_eq!(features(Offers { commands: true, files: false }, false, false), ["cli"]);
        let all = features(Offers { commands: true, files: true }, true, true);
        assert_eq!(all, ["cli", "gui", "browser", "file_system"]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_display_is_one_that_is_announced() {
        let with = |name: &'static str, value: &'static str| {
            has_display(move |asked| (asked == name).then(|| value.into()))
        };
        assert!(with("DISPLAY", ":0") && with("WAYLAND_DISPLAY", "wayland-0"));
        assert!(!with("DISPLAY", "") && !with("OTHER", "1"));
    }

    #[cfg(unix)]
    #[test]
    fn a_browser_is_one_that_can_be_started() {
        use std::{fs, os::unix::fs::PermissionsExt};
        let directory = tempfile::tempdir().unwrap();
        let path = std::env::join_paths([Path::new("/no/such/place"), directory.path()]).unwrap();
        assert!(!has_browser(&path));
        let browser = directory.path().join("firefox");
        fs::write(&browser, "").unwrap();
        fs::set_permissions(&browser, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(!has_browser(&path));
        fs::set_permissions(&browser, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(has_browser(&path));
    }

    #[test]
    fn a_system_the_platform_does_not_name_is_told() {
        assert!(custom_metadata("linux", "linux").is_empty());
        assert_eq!(custom_metadata("linux", "macos")["system"], "macos");
    }

    #[test]
    fn a_host_name_fits_an_id() {
        assert_eq!(fit_for_id("ada-laptop.local"), "ada-laptop.local");
        assert_eq!(fit_for_id("Ada’s Mac"), "Ada-s-Mac");
        assert_eq!(fit_for_id(""), "device");
        assert_eq!(fit_for_id("…"), "device");
        assert!(!host_name().is_empty());
    }
}
