//! `flightdeck device install` and `uninstall`: the device as a service of systemd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use link::ServerUrl;
use secrecy::{ExposeSecret, SecretString};

use super::checks::{self, Files};
use super::status_file::file_word;
use super::unit::{self, Scope, Unit};
use crate::args::{DeviceInstall, DeviceScope, DeviceUninstall, Global};
use crate::connect::{find_key, in_force};
use crate::invitation::Invitation;
use crate::output::{print, safe};
use crate::policy::PolicyFile;
use crate::settings::{ApiKey, ClientValues, DeviceKeys, DeviceValues, ExecMode, File};
use crate::state::{StateFolder, expand_home, home, replace_private_file};
use crate::{Code, Ended};

/// Keys whose values are files or folders, which a service would look for elsewhere.
const PATHS: [&str; 6] = ["root", "mcp", "policy", "ca_file", "status_file", "token_file"];

/// Keys that never go into the unit: others can read it.
const SECRETS: [&str; 2] = ["token", "token_file"];

/// What a device behind a proxy needs too.
pub(super) const PROXIES: [&str; 8] = [
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
];

/// Where a user's settings, rules and keys are, if not in the usual places.
const FOLDERS: [&str; 2] = ["XDG_CONFIG_HOME", "XDG_STATE_HOME"];

/// Where the pieces of a service are.
struct Place {
    is_system: bool,
    name: String,
    unit: PathBuf,
    environment: PathBuf,
}

pub(super) fn install(args: DeviceInstall, global: &Global) -> Ended {
    if !args.print {
        check_system()?;
    }
    let file = File::load(global.config.as_deref())?;
    let id = args.device.id.clone().filter(|id| !id.is_empty());
    let place = Place::new(args.scope, id.as_deref(), global)?;
    let given = given(&place, &file, &args, global)?;
    let listed = file.path.zip(Some(file.mcp));
    let device = args.device.resolve(file.device);
    let client = in_force(args.client, file.client);
    let server: ServerUrl = client.server.exposed().parse().context("--server")?;
    // What the service would refuse is refused here.
    super::settings(&device, &server)?;
    let invitation = args.join.as_ref().and_then(ApiKey::secret);
    let invitation = invitation.map(|typed| invited(typed, args.insecure)).transpose()?;
    let key = match &invitation {
        Some(_) => None,
        None => place.key(&client, &server, global)?,
    };
    let files = Files::of(&device, &client, global)?;
    if place.is_system && args.run_as.is_none() {
        files.warn_of_closed();
    }
    let lists = listed.as_ref().is_some_and(|(_, servers)| !servers.is_empty());
    let has_servers = lists || !device.mcp.0.is_empty();
    checks::warn_of_left_out(listed, &device, &place.systemctl_edit());
    let mut flags = flags(&given, &server.to_string(), place.own_state(global), global)?;
    flags.extend(args.insecure.then(|| "--insecure".to_owned()));
    let unit = Unit {
        scope: scope(&place, args.run_as, global)?,
        program: std::env::current_exe().context("cannot find this program")?,
        args: flags,
        environment_file: place.environment.clone(),
        roots: roots(&device, place.is_system)?,
        // Whether nothing that it runs is meant to write outside its roots.
        is_confined: device.sandbox || (device.exec != ExecMode::Shell && !has_servers),
    };
    if unit.args.iter().any(|arg| arg.contains(char::is_control)) {
        return Err(anyhow::anyhow!("a unit cannot hold flags with control characters").into());
    }
    if args.print {
        print(&unit.text())?;
        return Ok(Code::COMPLETED);
    }
    place.write(&unit.text(), &place.environment(key, invitation)?)?;
    say!("Wrote {} and {}", place.unit.display(), place.environment.display());
    place.start()
}

pub(super) fn uninstall(args: &DeviceUninstall, global: &Global) -> Ended {
    check_system()?;
    let place = Place::new(args.scope, args.id.as_deref().filter(|id| !id.is_empty()), global)?;
    if !place.unit.exists() {
        let shown = safe(&place.unit.display().to_string());
        let others: String = installed().iter().map(|unit| format!("\n  {}", safe(unit))).collect();
        let others = if others.is_empty() { others } else { format!("; there is:{others}") };
        let text =
            format!("there is no service {shown}; name it with --id, --user or --system{others}");
        return Err(anyhow::anyhow!(text).into());
    }
    place.stop()
}

/// The address that the service joins at when it is started first.
fn invited(typed: &SecretString, is_insecure: bool) -> anyhow::Result<SecretString> {
    let invitation = Invitation::typed(typed)?;
    invitation.check_way(is_insecure)?;
    Ok(invitation.address())
}

/// On other systems, what to do instead.
fn check_system() -> anyhow::Result<()> {
    if cfg!(target_os = "macos") {
        bail!(
            "services are made for systemd only; on macOS, have launchd run `flightdeck device` by a \
             property list in ~/Library/LaunchAgents with RunAtLoad and KeepAlive"
        );
    }
    if cfg!(windows) {
        bail!(
            "services are made for systemd only; on Windows, have the Task Scheduler run \
             `flightdeck device` at log on, and again whenever it fails"
        );
    }
    if cfg!(not(target_os = "linux")) {
        bail!("services are made for systemd only; have your system's own run `flightdeck device`");
    }
    Ok(())
}

impl Place {
    fn new(scope: DeviceScope, id: Option<&str>, global: &Global) -> anyhow::Result<Self> {
        let is_system = scope.system || (!scope.user && is_root());
        let word = id.map(file_word);
        let name = unit::name(word.as_deref());
        let environment = name.replace(".service", ".env");
        let (units, private) = match is_system {
            true => (unit::system_folder().to_owned(), PathBuf::from("/etc/flightdeck")),
            false => {
                let state = StateFolder::new(global.state_dir.clone())?;
                (user_units()?, absolute(state.path())?)
            }
        };
        Ok(Self {
            is_system,
            unit: units.join(&name),
            environment: private.join(environment),
            name,
        })
    }

    /// The key first: the unit is nothing without it.
    fn write(&self, unit: &str, environment: &str) -> anyhow::Result<()> {
        let parent = |path: &Path| path.parent().map(Path::to_owned).unwrap_or_default();
        let cannot = |path: &Path| format!("cannot write {}{}", path.display(), self.hint());
        match self.is_system {
            true => fs::create_dir_all(parent(&self.environment))
                .with_context(|| cannot(&self.environment))?,
            false => StateFolder::new(Some(parent(&self.environment)))?.create()?,
        }
        replace_private_file(&self.environment, environment)
            .with_context(|| cannot(&self.environment))?;
        fs::create_dir_all(parent(&self.unit)).with_context(|| cannot(&self.unit))?;
        fs::write(&self.unit, unit).with_context(|| cannot(&self.unit))
    }

    /// The key that the service is given; none where it finds that of this machine's server itself.
    fn key(
        &self,
        client: &ClientValues,
        server: &ServerUrl,
        global: &Global,
    ) -> anyhow::Result<Option<SecretString>> {
        let key = find_key(client, server, global)?;
        let is_given = client.token.secret().is_some()
            || !client.token_file.is_empty()
            || server.token().is_some();
        if !is_given && !self.is_system && server.is_loopback() {
            return Ok(None);
        }
        if key.is_none() {
            say!("warning: no key was given (--token-file FILE); most servers want one");
        }
        Ok(key)
    }

    /// The lines of the file that only the service reads: the key, the way through a proxy, which may have
    /// a password, and where its user's folders are.
    fn environment(
        &self,
        key: Option<SecretString>,
        invitation: Option<SecretString>,
    ) -> anyhow::Result<String> {
        let key = key.map(|key| ("FLIGHTDECK_TOKEN", key.expose_secret().to_owned()));
        let join = invitation.map(|join| ("FLIGHTDECK_JOIN", join.expose_secret().to_owned()));
        let key = key.into_iter().chain(join);
        let folders = FOLDERS.iter().filter(|_| !self.is_system);
        let names = PROXIES.iter().chain(folders);
        let taken_on = names.filter_map(|name| Some((*name, std::env::var(name).ok()?)));
        let variables: Vec<_> = key.chain(taken_on).collect();
        if let Some((name, _)) =
            variables.iter().find(|(_, value)| value.contains(char::is_control))
        {
            bail!("{name} has control characters in it, which its file cannot hold");
        }
        Ok(variables.iter().map(|(name, value)| unit::variable(name, value)).collect())
    }

    /// The state folder that was named; a service of the machine has one of its own.
    fn own_state<'a>(&self, global: &'a Global) -> Option<&'a Path> {
        global.state_dir.as_deref().filter(|_| !self.is_system)
    }

    fn hint(&self) -> String {
        match self.is_system && !is_root() {
            true => "; a service of the machine needs sudo, one of yours --user".to_owned(),
            false => String::new(),
        }
    }

    /// The command that adds to the unit.
    fn systemctl_edit(&self) -> String {
        let user = if self.is_system { "" } else { "--user " };
        format!("systemctl {user}edit {}", self.name)
    }

    fn start(&self) -> Ended {
        self.systemctl(&[&["daemon-reload"], &["enable", &self.name], &["restart", &self.name]])?;
        let user = if self.is_system { "" } else { "--user " };
        let name = &self.name;
        say!("See how it is doing: systemctl {user}status {name}, flightdeck device status");
        if !self.is_system {
            say!("To have it run while you are not logged in: loginctl enable-linger");
        }
        Ok(Code::COMPLETED)
    }

    fn stop(&self) -> Ended {
        self.systemctl(&[&["disable", "--now", &self.name]])?;
        for path in [&self.unit, &self.environment] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    let cannot = format!("cannot remove {}{}", path.display(), self.hint());
                    return Err(anyhow::Error::from(error).context(cannot).into());
                }
                _ => say!("Removed {}", path.display()),
            }
        }
        self.systemctl(&[&["daemon-reload"]])?;
        Ok(Code::COMPLETED)
    }

    /// Has systemd do something; where it does not run, as in a container, says what would be done.
    fn systemctl(&self, calls: &[&[&str]]) -> anyhow::Result<()> {
        let scope: &[&str] = if self.is_system { &[] } else { &["--user"] };
        let is_running = Path::new("/run/systemd/system").is_dir();
        if !is_running {
            say!("systemd does not run here. Where it does:");
        }
        for call in calls {
            let words = [scope, call].concat();
            let shown = format!("systemctl {}", words.join(" "));
            if !is_running {
                say!("  {shown}");
                continue;
            }
            let status = Command::new("systemctl").args(&words).status();
            let status = status.with_context(|| format!("cannot run {shown}"))?;
            anyhow::ensure!(status.success(), "{shown} failed ({status}){}", self.hint());
        }
        Ok(())
    }
}

fn scope(place: &Place, run_as: Option<String>, global: &Global) -> anyhow::Result<Scope> {
    if place.is_system {
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.$@".contains(c);
        if let Some(user) = run_as.as_ref().filter(|user| !user.chars().all(is_name)) {
            bail!("--run-as {user:?} is no user's name");
        }
        return Ok(Scope::System(run_as));
    }
    anyhow::ensure!(run_as.is_none(), "--run-as is for services of the machine: --system");
    let state = StateFolder::new(global.state_dir.clone())?;
    Ok(Scope::User { state: absolute(state.path())? })
}

/// What the service is to be told: what was given here, and what it would not find in the settings file, or
/// find to mean something else.
fn given(
    place: &Place,
    file: &File,
    args: &DeviceInstall,
    global: &Global,
) -> anyhow::Result<Vec<(&'static str, String)>> {
    let mut given = [args.device.given(), args.client.given()].concat();
    // A service of the machine has another home; one of a user starts in another folder.
    let is_elsewhere = place.is_system && global.config.is_none();
    if is_elsewhere {
        check_left_behind(file, &args.device)?;
    }
    let in_file = [file.device.given(), file.client.given()].concat();
    let are_flags: Vec<_> = given.iter().map(|(key, _)| *key).collect();
    given.extend(in_file.into_iter().filter(|(key, value)| {
        let is_lost = is_elsewhere || (PATHS.contains(key) && is_relative(value));
        is_lost && !are_flags.contains(key)
    }));
    Ok(given)
}

/// The flags of the service: those that were given, but no secrets.
fn flags(
    given: &[(&'static str, String)],
    server: &str,
    state: Option<&Path>,
    global: &Global,
) -> anyhow::Result<Vec<String>> {
    let mut flags = Vec::new();
    for (name, path) in [("config", global.config.as_deref()), ("state-dir", state)] {
        if let Some(path) = path {
            flags.push(format!("--{name}={}", absolute(path)?.display()));
        }
    }
    flags.extend(global.log.iter().map(|log| format!("--log={log}")));
    flags.extend(global.log_format.iter().map(|format| format!("--log-format={format}")));
    for (key, value) in given.iter().filter(|(key, _)| !SECRETS.contains(key)) {
        let value = match *key {
            "server" => server.to_owned(),
            key if PATHS.contains(&key) => absolute_paths(value)?,
            _ => value.clone(),
        };
        flags.push(format!("--{}={value}", key.replace('_', "-")));
    }
    Ok(flags)
}

/// Refuses what a service with another home would do without in silence: MCP servers of the owner's own
/// settings file, and the policy beside it.
fn check_left_behind(file: &File, given: &DeviceKeys) -> anyhow::Result<()> {
    let remedy = "a service of the machine does not find it there: put it where the service may read it, \
                  such as below /etc/flightdeck, and name it with";
    if let Some(path) = file.path.as_ref().filter(|_| !file.mcp.is_empty()) {
        bail!(
            "the settings file {} lists MCP servers, and {remedy} --config or --mcp",
            path.display()
        );
    }
    let named = given.policy.as_ref().or(file.device.policy.as_ref());
    if named.is_none_or(String::is_empty)
        && let Some(policy) = PolicyFile::load("", None)?.path
    {
        bail!("there is a policy, {}, and {remedy} --policy", policy.display());
    }
    Ok(())
}

/// What the device may write: its roots, or where it has none the home folder of its user.
fn roots(device: &DeviceValues, is_system: bool) -> anyhow::Result<Vec<PathBuf>> {
    match (device.root.0.is_empty(), is_system) {
        // The home of a service of the machine is its own.
        (true, true) => Ok(Vec::new()),
        (true, false) => Ok(home().into_iter().collect()),
        (false, _) => device.root.0.iter().map(|root| absolute(root)).collect(),
    }
}

/// The units of devices, of the user and of the machine.
fn installed() -> Vec<String> {
    let folders = user_units().into_iter().chain([unit::system_folder().to_owned()]);
    let files = folders.filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    let is_unit = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("flightdeck-device") && name.ends_with(".service")
    };
    files.map(|file| file.path()).filter(is_unit).map(|path| path.display().to_string()).collect()
}

fn user_units() -> anyhow::Result<PathBuf> {
    let named = std::env::var_os("XDG_CONFIG_HOME").filter(|path| !path.is_empty());
    let folder = match named {
        Some(folder) => PathBuf::from(folder),
        None => home().context("there is no home folder for the unit")?.join(".config"),
    };
    Ok(folder.join("systemd/user"))
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    let path = expand_home(path);
    std::path::absolute(&path).with_context(|| format!("{}", path.display()))
}

fn is_relative(value: &str) -> bool {
    std::env::split_paths(value).any(|path| expand_home(&path).is_relative())
}

fn absolute_paths(value: &str) -> anyhow::Result<String> {
    let paths: Vec<_> =
        std::env::split_paths(value).map(|path| absolute(&path)).collect::<Result<_, _>>()?;
    let joined = std::env::join_paths(paths).context("a path with a colon in it")?;
    Ok(joined.to_string_lossy().into_owned())
}

fn is_root() -> bool {
    #[cfg(unix)]
    return rustix::process::geteuid().is_root();
    #[cfg(not(unix))]
    false
}
