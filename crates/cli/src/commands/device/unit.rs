//! The unit of systemd that runs a device as a service: what it may do is what the device's own settings
//! let it do, once more, held by the system.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// The folder below `/var/lib` in which a system service keeps its state.
const STATE_FOLDER: &str = "flightdeck-device";

/// For what is not meant to write outside its roots.
const CONFINED: [&str; 4] =
    ["ProtectSystem=strict", "ProtectHome=read-only", "PrivateTmp=yes", "UMask=0077"];

/// The same, of the machine.
const CONFINED_SYSTEM: [&str; 8] = [
    "CapabilityBoundingSet=",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "PrivateDevices=yes",
    "RestrictNamespaces=yes",
];

/// The same, of a user, who may have a display.
const CONFINED_USER: [&str; 2] =
    ["# The display, for screenshots.", "BindReadOnlyPaths=-/tmp/.X11-unix"];

/// Whose service it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Scope {
    /// A user's own.
    User {
        /// Where the device keeps its state.
        state: PathBuf,
    },
    /// The machine's, with the rights of this user, or of one that owns nothing.
    System(Option<String>),
}

/// A unit.
#[derive(Debug, Clone)]
pub(super) struct Unit {
    pub(super) scope: Scope,
    /// The program.
    pub(super) program: PathBuf,
    /// Its arguments, behind `device`.
    pub(super) args: Vec<String>,
    /// The file with the key.
    pub(super) environment_file: PathBuf,
    /// Folders that may be written.
    pub(super) roots: Vec<PathBuf>,
    /// Whether nothing that it runs is meant to write elsewhere.
    pub(super) is_confined: bool,
}

impl Unit {
    /// The unit's text.
    pub(super) fn text(&self) -> String {
        let mut text = String::from(
            "# Made by `flightdeck device install`. Change it with `systemctl edit`, or install it anew.\n",
        );
        let mut section = |name: &str, lines: Vec<String>| {
            // Writing into a string cannot fail.
            let _written = writeln!(text, "[{name}]\n{}\n", lines.join("\n"));
        };
        section("Unit", self.unit());
        section("Service", [self.service(), self.everybodys(), self.confinement()].concat());
        let target = if self.is_system() { "multi-user.target" } else { "default.target" };
        section("Install", vec![format!("WantedBy={target}")]);
        format!("{}\n", text.trim_end())
    }

    fn is_system(&self) -> bool {
        matches!(self.scope, Scope::System(_))
    }

    fn unit(&self) -> Vec<String> {
        let mut lines = vec![
            "Description=Flightdeck device".to_owned(),
            // It never gives up: the server may be gone for days.
            "StartLimitIntervalSec=0".to_owned(),
        ];
        if self.is_system() {
            lines.extend(
                ["Wants=network-online.target", "After=network-online.target"].map(str::to_owned),
            );
        }
        lines
    }

    fn service(&self) -> Vec<String> {
        let program = in_command(&self.program.display().to_string());
        let args: Vec<_> = self.args.iter().map(|arg| in_command(arg)).collect();
        let mut lines = vec![
            "Type=exec".to_owned(),
            format!("ExecStart={program} device {}", args.join(" ")).trim_end().to_owned(),
            format!("EnvironmentFile={}", specified(&self.environment_file.display().to_string())),
            "# Has it try again at once where it waits for its server.".to_owned(),
            "ExecReload=/bin/kill -HUP $MAINPID".to_owned(),
            "Restart=always".to_owned(),
            "RestartSec=5".to_owned(),
            "# 2 is a wrong setting, which another start would not help.".to_owned(),
            "RestartPreventExitStatus=2".to_owned(),
            "# The device itself stops what it runs, and tells the server how that ended."
                .to_owned(),
            "KillMode=mixed".to_owned(),
            "TimeoutStopSec=60".to_owned(),
        ];
        if let Scope::System(user) = &self.scope {
            lines.extend(of_the_machine(user.as_deref()));
        }
        lines
    }

    /// What costs nobody anything.
    fn everybodys(&self) -> Vec<String> {
        [
            "# One command too many ends that command, not the device.",
            "OOMPolicy=continue",
            "MemoryMax=75%",
            "TasksMax=2048",
            "NoNewPrivileges=yes",
            "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
            "RestrictRealtime=yes",
            "RestrictSUIDSGID=yes",
            "LockPersonality=yes",
            "SystemCallArchitectures=native",
        ]
        .map(str::to_owned)
        .into()
    }

    fn confinement(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.is_confined {
            lines.extend(CONFINED.map(str::to_owned));
            // A user's own manager has not the rights for those of the machine.
            let more = if self.is_system() { &CONFINED_SYSTEM[..] } else { &CONFINED_USER };
            lines.extend(more.iter().map(|line| (*line).to_owned()));
            lines.extend(self.writable());
            return lines;
        }
        lines.extend(
            [
                "# It may run any command (--exec shell) or has MCP servers, which write where they need to.",
                "# With --sandbox they are held to the roots.",
            ]
            .map(str::to_owned),
        );
        if let Scope::System(None) = self.scope {
            // A user that owns nothing is held by systemd all the same.
            lines.extend(self.writable());
        }
        lines
    }

    /// The folders that may be written although the rest may not.
    fn writable(&self) -> Option<String> {
        let state = match &self.scope {
            Scope::User { state } => Some(state),
            // The service's folder for its state is writable as it is.
            Scope::System(_) => None,
        };
        // One that is not there yet does not keep the service from starting.
        let path = |path: &PathBuf| quoted(&format!("-{}", specified(&path.display().to_string())));
        let paths: Vec<_> = self.roots.iter().chain(state).map(path).collect();
        (!paths.is_empty()).then(|| format!("ReadWritePaths={}", paths.join(" ")))
    }
}

fn of_the_machine(user: Option<&str>) -> Vec<String> {
    let folder = format!("/var/lib/{STATE_FOLDER}");
    let mut lines = vec![
        format!("StateDirectory={STATE_FOLDER} {STATE_FOLDER}/home"),
        "StateDirectoryMode=0700".to_owned(),
        format!("Environment=FLIGHTDECK_STATE_DIR={folder}"),
    ];
    match user {
        Some(user) => lines.push(format!("User={}", specified(user))),
        // Its home would be / otherwise, and that the folder which tools may read.
        None => {
            lines.extend(["DynamicUser=yes".to_owned(), format!("Environment=HOME={folder}/home")]);
        }
    }
    lines
}

/// The name of a device's unit.
pub(super) fn name(word: Option<&str>) -> String {
    word.map_or_else(|| "flightdeck-device".to_owned(), |word| format!("flightdeck-device-{word}"))
        + ".service"
}

/// Where the units of the machine are.
pub(super) fn system_folder() -> &'static Path {
    Path::new("/etc/systemd/system")
}

/// A word of a command line.
fn in_command(word: &str) -> String {
    quoted(&specified(word).replace('$', "$$"))
}

/// Text in which nothing stands for something else.
fn specified(text: &str) -> String {
    text.replace('%', "%%")
}

fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_./:=@,+%$[]".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""))
}

/// A line of the file with the key: a variable and its value.
pub(super) fn variable(name: &str, value: &str) -> String {
    let mut text = format!("{name}=\"");
    for c in value.chars() {
        if matches!(c, '"' | '\\' | '`' | '$') {
            text.push('\\');
        }
        text.push(c);
    }
    text + "\"\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(scope: Scope, is_confined: bool) -> Unit {
        Unit {
            scope,
            program: "/usr/local/bin/flightdeck".into(),
            args: vec!["--id=a b%$".to_owned(), "--server=wss://box:1/ws".to_owned()],
            environment_file: "/etc/flightdeck/device.env".into(),
            roots: vec!["/srv/my data".into()],
            is_confined,
        }
    }

    #[test]
    fn nothing_in_a_flag_stands_for_something_else() {
        let text = unit(Scope::System(None), true).text();
        let start =
            r#"ExecStart=/usr/local/bin/flightdeck device "--id=a b%%$$" --server=wss://box:1/ws"#;
        assert!(text.lines().any(|line| line == start), "{text}");
        assert!(text.contains("\nReadWritePaths=\"-/srv/my data\"\n"), "{text}");
        assert_eq!(variable("K", r#"a"b\c$d`e"#), "K=\"a\\\"b\\\\c\\$d\\`e\"\n");
    }

    #[test]
    fn what_only_observes_may_write_its_roots_alone() {
        let user = Scope::User { state: "/home/ada/state".into() };
        for scope in [Scope::System(None), Scope::System(Some("ada".to_owned())), user.clone()] {
            let confined = unit(scope.clone(), true).text();
            let open = unit(scope, false).text();
            for line in ["ProtectSystem=strict", "PrivateTmp=yes", "ProtectHome=read-only"] {
                assert!(confined.contains(line) && !open.contains(line), "{line}");
            }
            for text in [confined, open] {
                assert!(text.contains("\nNoNewPrivileges=yes\n"), "{text}");
                assert!(text.contains("\nKillMode=mixed\n"), "{text}");
            }
        }
        let text = unit(user, true).text();
        assert!(
            text.contains("-/home/ada/state") && !text.contains("CapabilityBoundingSet"),
            "{text}"
        );
    }
}
