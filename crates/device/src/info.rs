//! The facts a device registers with: what machine it is and what can be done on it.
//!
//! It must not know the server, the protocol or any tool: it only looks at the machine. It asks
//! no one on the network, and it never fails: what can't be found, or not in time, is empty or 0.

use std::{
    ffi::{OsStr, OsString},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aip::message::SystemInfo;
use serde_json::{Map, Value};
use tokio::task::JoinHandle;

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

/// The longest wait for the facts. A folder on a dead network drive can make one of them hang.
const FACTS_TIME: Duration = Duration::from_secs(2);

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

/// What can be done with a device's tools, which the machine can't tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offers {
    /// Commands can be executed.
    pub commands: bool,
    /// Files can be read or written.
    pub files: bool,
}

/// Which features a device tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Features {
    /// What is really there.
    #[default]
    Auto,
    /// The list that every UFO device of its platform tells, whatever is there: for orchestrators that
    /// choose by it.
    Ufo,
}

/// What the facts are about.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Who the device says it is.
    pub device_id: String,
    /// `windows`, `linux` or `mobile`.
    pub platform: String,
    /// Which features it tells.
    pub features: Features,
    /// Words by which it can be chosen among others.
    pub tags: Vec<String>,
}

/// Finds one fact or several, and writes them down.
type Finder = Box<dyn Fn(&Mutex<SystemInfo>) + Send + Sync>;

/// The facts of this machine, which are looked up anew now and then.
pub(crate) struct Facts {
    known: Arc<Mutex<SystemInfo>>,
    finders: Arc<Vec<Finder>>,
    looking: Option<JoinHandle<()>>,
}

impl Facts {
    /// Knows next to nothing before the first [`Self::refresh`]. Tools come and go: what they can do is asked
    /// each time.
    pub(crate) fn new(
        subject: &Subject,
        offers: impl Fn() -> Offers + Send + Sync + 'static,
    ) -> Self {
        Self::with(subject, finders(subject.clone(), offers))
    }

    fn with(subject: &Subject, finders: Vec<Finder>) -> Self {
        let known = SystemInfo {
            device_id: subject.device_id.clone(),
            platform: subject.platform.clone(),
            os_version: String::new(),
            cpu_count: 0,
            memory_total_gb: 0.0,
            hostname: String::new(),
            ip_address: LOOPBACK.to_owned(),
            supported_features: Vec::new(),
            platform_type: platform_type().to_owned(),
            schema_version: SCHEMA_VERSION.to_owned(),
            custom_metadata: custom_metadata(subject, std::env::consts::OS),
        };
        Self { known: Arc::new(Mutex::new(known)), finders: Arc::new(finders), looking: None }
    }

    /// What is known.
    pub(crate) fn known(&self) -> SystemInfo {
        lock(&self.known).clone()
    }

    /// Looks at this machine, on a thread for what blocks, and waits for that a little while. What is
    /// not found by then stays as it was; what fails or hangs takes nothing else with it.
    pub(crate) async fn refresh(&mut self) {
        self.refresh_within(FACTS_TIME).await;
    }

    /// The facts that are given, and that stay as they are.
    pub(crate) fn given(facts: SystemInfo) -> Self {
        Self { known: Arc::new(Mutex::new(facts)), finders: Arc::default(), looking: None }
    }

    async fn refresh_within(&mut self, limit: Duration) {
        if self.finders.is_empty() {
            return;
        }
        // One that hangs is not joined by others.
        let looking = self.looking.take().filter(|looking| !looking.is_finished());
        let mut looking = looking.unwrap_or_else(|| self.start_looking());
        if tokio::time::timeout(limit, &mut looking).await.is_err() {
            tracing::warn!("some facts about this machine could not be found in time");
        }
        self.looking = Some(looking);
    }

    fn start_looking(&self) -> JoinHandle<()> {
        let (known, finders) = (self.known.clone(), self.finders.clone());
        tokio::task::spawn_blocking(move || {
            for find in finders.iter() {
                if catch_unwind(AssertUnwindSafe(|| find(&known))).is_err() {
                    tracing::warn!("a fact about this machine could not be found");
                }
            }
        })
    }
}

fn lock(known: &Mutex<SystemInfo>) -> MutexGuard<'_, SystemInfo> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How each fact is found: what could hang comes last, and nothing is held while it is looked for.
fn finders(subject: Subject, offers: impl Fn() -> Offers + Send + Sync + 'static) -> Vec<Finder> {
    fn finder<T: 'static>(
        find: impl Fn() -> T + Send + Sync + 'static,
        put: impl Fn(&mut SystemInfo, T) + Send + Sync + 'static,
    ) -> Finder {
        Box::new(move |known| {
            let found = find();
            put(&mut lock(known), found);
        })
    }

    let cpu_count = || std::thread::available_parallelism().map_or(0, usize::from);
    let hostname = || gethostname::gethostname().to_string_lossy().into_owned();
    vec![
        finder(cpu_count, |known, found| known.cpu_count = found),
        finder(hostname, |known, found| known.hostname = found),
        finder(os_version, |known, found| known.os_version = found),
        finder(memory_total_gb, |known, found| known.memory_total_gb = found),
        finder(ip_address, |known, found| known.ip_address = found),
        finder(
            move || supported_features(&subject, offers()),
            |known, found| known.supported_features = found,
        ),
    ]
}

/// Says what can be done on this machine, and nothing that can't: "cli" and "file_system" if
/// offered, "gui" if there is a display, "browser" if one is installed. Or what every UFO device says.
fn supported_features(subject: &Subject, offers: Offers) -> Vec<String> {
    if subject.features == Features::Ufo {
        return ufo_features(&subject.platform, std::env::consts::OS);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    features(offers, has_display(|name| std::env::var_os(name)), has_browser(&path))
}

/// What every UFO device of a platform says. A Mac, which counts as "linux", has words of its own.
fn ufo_features(platform: &str, system: &str) -> Vec<String> {
    let desktop = ["gui", "cli", "browser", "file_system", "office"];
    let words = match (platform, system) {
        ("mobile", _) => vec!["mobile_touch", "mobile_apps", "camera", "gps"],
        ("windows", _) => [&desktop[..], &["windows_apps"]].concat(),
        (_, "macos") => [&desktop[..], &["macos_apps"]].concat(),
        _ => [&desktop[..], &["linux_apps"]].concat(),
    };
    words.into_iter().map(str::to_owned).collect()
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
    let found = local_ip_address::local_ip().or_else(|_| local_ip_address::local_ipv6());
    found.map_or_else(|_| LOOPBACK.to_owned(), |address| address.to_string())
}

fn platform_type() -> &'static str {
    if default_platform() == "mobile" { "mobile" } else { "computer" }
}

fn custom_metadata(subject: &Subject, system: &str) -> Map<String, Value> {
    let mut metadata = Map::new();
    if subject.platform != system {
        metadata.insert("system".to_owned(), system.into());
    }
    if !subject.tags.is_empty() {
        metadata.insert("tags".to_owned(), subject.tags.clone().into());
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

/// Windows and macOS always have a desktop; elsewhere a display is announced, and really there.
fn has_display(variable: impl Fn(&str) -> Option<OsString>) -> bool {
    let set = |name| variable(name).filter(|value| !value.is_empty());
    let x11 = set("DISPLAY").is_some_and(|display| has_x11(&display.to_string_lossy()));
    // A relative name is one in the folder of the session; an absolute one stays as it is.
    let wayland = set("WAYLAND_DISPLAY")
        .zip(set("XDG_RUNTIME_DIR").or_else(|| Some(OsString::new())))
        .is_some_and(|(display, folder)| Path::new(&folder).join(display).exists());
    cfg!(any(windows, target_os = "macos")) || x11 || wayland
}

/// Whether something listens for `:0`; a display on another machine, `box:0`, is believed.
fn has_x11(display: &str) -> bool {
    let Some(local) = display.strip_prefix("unix").unwrap_or(display).strip_prefix(':') else {
        return true;
    };
    let number = local.split('.').next().unwrap_or_default();
    let socket = format!("/tmp/.X11-unix/X{number}");
    // Linux has sockets without a file too.
    let without_file = || {
        let sockets = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
        sockets.lines().any(|line| line.ends_with(&format!("@{socket}")))
    };
    !number.is_empty() && (Path::new(&socket).exists() || without_file())
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

    fn subject(features: Features) -> Subject {
        Subject {
            device_id: "desk".to_owned(),
            platform: default_platform().to_owned(),
            features,
            tags: Vec::new(),
        }
    }

    #[tokio::test]
    async fn a_device_tells_all_facts_under_their_names() {
        let mut facts =
            Facts::new(&subject(Features::Auto), || Offers { commands: true, files: true });
        facts.refresh().await;
        let info = facts.known();
        let told = serde_json::to_value(&info).unwrap();
        let mut names: Vec<&String> = told.as_object().unwrap().keys().collect();
        names.sort();
        let expected = "cpu_count custom_metadata device_id hostname ip_address memory_total_gb \
            os_version platform platform_type schema_version supported_features";
        assert_eq!(names, expected.split_whitespace().collect::<Vec<_>>());
        assert_eq!(told["device_id"], "desk");
        assert_eq!(told["schema_version"], "1.0");
        assert!(info.cpu_count > 0 && !info.hostname.is_empty() && !info.os_version.is_empty());
        assert!(info.supported_features.contains(&"cli".to_owned()));
        assert!(info.ip_address.parse::<std::net::IpAddr>().is_ok());
    }

    #[tokio::test]
    async fn a_fact_that_fails_or_hangs_takes_no_other_with_it() {
        let put =
            |cpu_count| -> Finder { Box::new(move |known| lock(known).cpu_count = cpu_count) };
        let fails: Finder = Box::new(|_| panic!("no such file"));
        let (release, hang) = std::sync::mpsc::channel::<()>();
        let (started, starts) = std::sync::mpsc::channel();
        let hang = Mutex::new(hang);
        let hangs: Finder = Box::new(move |_| {
            started.send(()).unwrap();
            let _released = hang.lock().unwrap().recv();
        });
        let mut facts = Facts::with(&subject(Features::Auto), vec![fails, put(7), hangs, put(9)]);
        // On a busy machine the first look may take longer than it may, and goes on in the next.
        for _ in 0..100 {
            facts.refresh_within(Duration::from_millis(100)).await;
            if facts.known().cpu_count == 7 {
                break;
            }
        }
        facts.refresh_within(Duration::from_millis(100)).await;
        assert_eq!((facts.known().cpu_count, facts.known().device_id.as_str()), (7, "desk"));
        starts.recv_timeout(Duration::from_secs(30)).unwrap();
        facts.refresh_within(Duration::from_millis(100)).await;
        assert_eq!(starts.try_iter().count(), 0, "who hangs is not joined by others");
        drop(release);
        for _ in 0..100 {
            facts.refresh_within(Duration::from_millis(100)).await;
            if facts.known().cpu_count == 9 {
                return;
            }
        }
        panic!("what comes behind it is never found");
    }

    #[test]
    fn the_features_can_be_those_of_ufos_devices() {
        let words = |platform, system| ufo_features(platform, system).join(" ");
        let desktop = "gui cli browser file_system office";
        assert_eq!(words("linux", "linux"), format!("{desktop} linux_apps"));
        assert_eq!(words("windows", "windows"), format!("{desktop} windows_apps"));
        assert_eq!(words("linux", "macos"), format!("{desktop} macos_apps"));
        assert_eq!(words("mobile", "android"), "mobile_touch mobile_apps camera gps");
        assert_eq!(supported_features(&subject(Features::Ufo), Offers::default()).len(), 6);
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
    fn a_display_is_one_that_is_announced_and_there() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("wayland-0"), "").unwrap();
        let with = |variables: &[(&str, &str)]| {
            let found = |asked: &str| variables.iter().find(|(name, _)| *name == asked);
            has_display(|asked| found(asked).map(|(_, value)| value.into()))
        };
        let session = ("XDG_RUNTIME_DIR", folder.path().to_str().unwrap());
        assert!(with(&[("WAYLAND_DISPLAY", "wayland-0"), session]));
        assert!(with(&[("WAYLAND_DISPLAY", folder.path().join("wayland-0").to_str().unwrap())]));
        assert!(!with(&[("WAYLAND_DISPLAY", "wayland-7"), session]));
        assert!(with(&[("DISPLAY", "box:0")]), "on another machine");
        assert!(!with(&[("DISPLAY", ":64000")]) && !with(&[("DISPLAY", ":")]));
        assert!(!with(&[("DISPLAY", "")]) && !with(&[("OTHER", "1")]));
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
        let linux = |tags: &[&str]| Subject {
            platform: "linux".to_owned(),
            tags: tags.iter().map(|&tag| tag.to_owned()).collect(),
            ..subject(Features::Auto)
        };
        assert!(custom_metadata(&linux(&[]), "linux").is_empty());
        assert_eq!(custom_metadata(&linux(&[]), "macos")["system"], "macos");
        assert_eq!(custom_metadata(&linux(&["gpu"]), "linux")["tags"], serde_json::json!(["gpu"]));
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
