//! The command line: what can be typed, and the help for it.

use std::path::PathBuf;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::log::Format;
use crate::settings::{self, ClientKeys, DeviceKeys, Lifetime, Seconds, ServerKeys};

/// Let AI agents, and people, work on a fleet of computers.
#[derive(Debug, Parser)]
#[command(name = "flightdeck", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "Examples:
  flightdeck demo                              See it work, on this machine alone
  flightdeck serve                             Start the server
  flightdeck device                            Make this machine a device of it
  flightdeck devices                           Who is online
  flightdeck exec --on mybox -- df -h          Run a command on a device
  flightdeck tasks                             What was submitted, and what became of it

Exit codes: 0 completed, 1 the task failed, 2 wrong usage, 3 cancelled, 4 server unreachable or
refused. `exec` passes the command's own code on, and says with 120 to 125 why there is none.")]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    /// Reads the command line. The help of each setting names its default.
    pub(crate) fn read() -> Self {
        let rows = settings::defaults();
        let described = |mut command: clap::Command| {
            for row in rows.iter().filter(|row| !row.value.is_empty()) {
                // Servers and devices have some keys of one name.
                let is_its = |arg: &clap::Arg| {
                    arg.get_id() == row.key && arg.get_env() == Some(row.variable.as_ref())
                };
                if command.get_arguments().any(is_its) {
                    let (value, unit) = (&row.value, row.unit);
                    let help = format!("{} [default: {value}{unit}]", row.about);
                    command = command.mut_arg(row.key, |arg| arg.help(help));
                }
            }
            command
        };
        let command = Self::command()
            .mut_subcommands(described)
            .mut_subcommand("device", |device| device.mut_subcommands(described))
            .mut_subcommand("task", |task| task.mut_subcommands(described));
        Self::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit())
    }
}

/// What every command takes.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// The settings file [default: ~/.config/flightdeck/config.toml, if it is there]
    #[arg(long, global = true, value_name = "FILE", env = "FLIGHTDECK_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Where keys, the audit log and the status of devices are kept [default: ~/.local/state/flightdeck]
    #[arg(long, global = true, value_name = "FOLDER", env = "FLIGHTDECK_STATE_DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// What to log on stderr: error, warn, info, debug, trace, or a filter such as link=debug
    #[arg(long, global = true, value_name = "FILTER", env = "FLIGHTDECK_LOG")]
    pub(crate) log: Option<String>,
    /// The form of what goes to stderr: text, or json, one object a line [default: text]
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        env = "FLIGHTDECK_LOG_FORMAT",
        hide_possible_values = true
    )]
    pub(crate) log_format: Option<Format>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Demo(Demo),
    Serve(Box<Serve>),
    Device(Box<Device>),
    Devices(Devices),
    Backup(Backup),
    Exec(Exec),
    Run(Run),
    Tasks(Tasks),
    #[command(subcommand)]
    Task(TaskCommand),
    #[command(subcommand)]
    Key(Key),
    #[command(subcommand)]
    Config(Config),
    Completions(Completions),
    #[command(hide = true)]
    Watchdog,
}

/// Show the whole thing at work on this machine: server, device, task, outcome
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  flightdeck demo            Run it once
  flightdeck demo --keep     Stay up afterwards, to play with
  flightdeck demo --json     Show the AIP frames of both links, one a line")]
pub(crate) struct Demo {
    /// Stay up until Ctrl-C, with a server to connect to
    #[arg(long)]
    pub(crate) keep: bool,
    /// Print the AIP frames of both links instead, one a line
    #[arg(long)]
    pub(crate) json: bool,
}

/// Start the agent server
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  flightdeck serve
  flightdeck serve --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem
  flightdeck serve --sessions-per-device 4 --queue-per-device 20")]
pub(crate) struct Serve {
    #[command(flatten)]
    pub(crate) server: ServerKeys,
}

/// Make this machine a device: it takes commands from a server and runs what you allow
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "Examples:
  flightdeck device
  flightdeck device --id build-box --server wss://10.0.0.5:5000 --ca-file cert.pem
  flightdeck device --dry-run                        Show the tools, and what becomes of a call
  flightdeck device --root /srv/data                 Open these files instead of your home folder
  flightdeck device --exec shell --sandbox           Any command, writing below the roots only
  flightdeck device --mcp mcp.json                   Offer the tools of MCP servers
  flightdeck device --request '{\"commands\":[…]}'     Submit a task for this device itself
  flightdeck device install --id build-box           Run it as a service from now on
  flightdeck device status                           How the devices on this machine are doing

Exit codes: 0 it was told to stop; 2 a wrong setting; 4 the server cannot be reached or refuses
it, with --max-retries; without that it tries again for ever.")]
pub(crate) struct Device {
    #[command(subcommand)]
    pub(crate) command: Option<DeviceCommand>,
    #[command(flatten)]
    pub(crate) device: DeviceKeys,
    #[command(flatten)]
    pub(crate) client: ClientKeys,
    /// A task to submit for this device itself, once it is connected
    #[arg(long, value_name = "TEXT")]
    pub(crate) request: Option<String>,
    /// The label of that task
    #[arg(long, value_name = "NAME", requires = "request")]
    pub(crate) task_name: Option<String>,
    /// Show the tools and what the policy says of each, instead of connecting; MCP servers are started to ask them
    #[arg(long, conflicts_with = "request")]
    pub(crate) dry_run: bool,
    /// With --dry-run: print JSON, one tool a line
    #[arg(long, requires = "dry_run")]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeviceCommand {
    Status(DeviceStatus),
    Install(Box<DeviceInstall>),
    Uninstall(DeviceUninstall),
}

/// Show how your devices on this machine are doing
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  flightdeck device status
  flightdeck device status --id build-box --json
  sudo flightdeck --state-dir /var/lib/flightdeck-device device status     A service of the machine

Exit codes: 0 all that are shown are connected; 1 one of them is not, or there is none.")]
pub(crate) struct DeviceStatus {
    /// Only this device [default: all of yours on this machine]
    #[arg(long, visible_alias = "client-id", value_name = "ID")]
    pub(crate) id: Option<String>,
    /// The file that the device was told to write, if it has a --status-file
    #[arg(long, value_name = "FILE", env = "FLIGHTDECK_STATUS_FILE", hide_env_values = true)]
    pub(crate) status_file: Option<String>,
    /// Print JSON, one device a line
    #[arg(long)]
    pub(crate) json: bool,
}

/// Run the device as a service of systemd, from now on and after each start of the machine
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  flightdeck device install --server wss://10.0.0.5:5000
  sudo flightdeck device install --id build-box --root /srv/data
  sudo flightdeck device install --exec shell --run-as builder
  flightdeck device install --print                  Only show the unit

It takes the flags of `flightdeck device`, and the service runs with them. The key goes into a
file that only its owner can read, not into the unit. Install it again to change the flags.
Nobody can be asked in a service: what the policy asks about is refused.
A service of the machine does not read your settings file: name rules with --policy and MCP
servers with --mcp.")]
pub(crate) struct DeviceInstall {
    #[command(flatten)]
    pub(crate) scope: DeviceScope,
    /// The user that a service of the machine runs as [default: one of its own, that owns nothing]
    #[arg(long, value_name = "USER", conflicts_with = "user")]
    pub(crate) run_as: Option<String>,
    /// Print the unit, and change nothing
    #[arg(long)]
    pub(crate) print: bool,
    #[command(flatten)]
    pub(crate) device: DeviceKeys,
    #[command(flatten)]
    pub(crate) client: ClientKeys,
}

/// Stop the service that `install` made, and remove it
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  flightdeck device uninstall
  sudo flightdeck device uninstall --id build-box")]
pub(crate) struct DeviceUninstall {
    #[command(flatten)]
    pub(crate) scope: DeviceScope,
    /// The --id that `install` was given, if any
    #[arg(long, visible_alias = "client-id", value_name = "ID", env = "FLIGHTDECK_DEVICE_ID")]
    pub(crate) id: Option<String>,
}

/// Whose service it is.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct DeviceScope {
    /// A service of yours: runs while you are logged in [default, unless you are root]
    #[arg(long, conflicts_with = "system")]
    pub(crate) user: bool,
    /// A service of the machine: runs from its start on; wants root [default for root]
    #[arg(long)]
    pub(crate) system: bool,
}

/// List the devices that are online or expected back, and what each is busy with
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  flightdeck devices
  flightdeck devices --json")]
pub(crate) struct Devices {
    #[command(flatten)]
    pub(crate) client: ClientKeys,
    /// Print what the server says of each, one device a line
    #[arg(long)]
    pub(crate) json: bool,
}

/// Copy a server's tasks into a folder of its machine, while it runs
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  flightdeck backup /var/backups/flightdeck-monday
  flightdeck serve --data /var/backups/flightdeck-monday     Start with such a copy

It wants an operator's key. Copying the database's files by hand makes no good copy while the
server runs. A server that starts with a copy takes itself for another one: the outcome of every
task that is open in it is unknown.")]
pub(crate) struct Backup {
    #[command(flatten)]
    pub(crate) client: ClientKeys,
    /// The folder, which is made if there is none, and has to be empty
    pub(crate) folder: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Run a command on one device or several
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  flightdeck exec --on mybox -- df -h
  flightdeck exec --on a --on b -- uptime
  flightdeck exec --all -- uname -r
  flightdeck exec --on mybox -- 'dmesg | tail'       With a device that runs --exec shell
  flightdeck exec --on mybox --detach -- make        Leave it running, and print its task's id

Several words are passed on as they are; a single one is passed on as a whole command line.

A lost connection or a restarted server costs nothing: it comes back, with a line on stderr. If this
command itself ends, the server cancels what runs after a minute, unless it is detached. Ctrl-C
cancels it and waits for the device to confirm that; a second one leaves at once.

Exit codes: the command's own, of several the greatest. Where there is none: 120 cancelled; 121 its
outcome is unknown; 122 it was never sent; 123 server or device unreachable, or refused; 124 timed
out; 125 anything else, a setting that forbids it included; 2 for a wrong command line only.

With --json each device is an object on stdout: device, task, status (completed, failed, cancelled),
known (outcome_unknown, never_sent; of a cancel not_confirmed, stopped, finished, could_not_stop),
refused (final, retry), error, exit_code, stdout, stderr. On stderr an object says each task's id as
soon as the server has it.")]
pub(crate) struct Exec {
    #[command(flatten)]
    pub(crate) client: ClientKeys,
    /// The device; may be repeated
    #[arg(long, value_name = "ID", required_unless_present = "all")]
    pub(crate) on: Vec<String>,
    /// Every device that is online
    #[arg(long, conflicts_with = "on")]
    pub(crate) all: bool,
    /// Longest time for the command: seconds (30) or with a unit (90s, 5m) [default: the device's, 30 s]
    #[arg(long, value_name = "TIME")]
    pub(crate) timeout: Option<Seconds>,
    /// The folder to run in
    #[arg(long, value_name = "FOLDER")]
    pub(crate) cwd: Option<String>,
    /// Print one JSON object for each device, one a line
    #[arg(long)]
    pub(crate) json: bool,
    /// Print the task's id and leave; see `flightdeck task`
    #[arg(long)]
    pub(crate) detach: bool,
    /// The command
    #[arg(required = true, trailing_var_arg = true)]
    pub(crate) command: Vec<String>,
}

/// Submit a task to a device and follow it to its outcome
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  flightdeck run --on mybox '{\"commands\":[{\"tool_name\":\"get_system_info\"}]}'
  flightdeck run --on mybox - < plan.json
  flightdeck run --on mybox --detach - < plan.json    Leave it running, and print the task's id

The outcome goes to stdout, the progress to stderr.

A lost connection or a restarted server costs nothing: it comes back, with a line on stderr. If this
command itself ends, the server cancels the task after a minute, unless it is detached. Ctrl-C
cancels the task and waits for the device to confirm that; a second one leaves at once.

Exit codes: 0 completed, 1 the task failed, 2 wrong usage, 3 cancelled, 4 server unreachable or lost.

With --json stderr has an object for each event (accepted with the task's id, progress, disconnected,
reconnected) and stdout one for the end: task, status (completed, failed, cancelled), known
(outcome_unknown, never_sent; of a cancel not_confirmed, stopped, finished, could_not_stop), lost,
refused (final, retry), error, result.")]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) client: ClientKeys,
    /// The device
    #[arg(long, value_name = "ID")]
    pub(crate) on: String,
    /// A label for the task
    #[arg(long, value_name = "NAME")]
    pub(crate) task_name: Option<String>,
    /// Longest time for one of its commands: seconds (30) or with a unit (90s, 5m) [default: the server's, 300 s]
    #[arg(long, value_name = "TIME")]
    pub(crate) command_timeout: Option<Seconds>,
    /// Print JSON, one event a line
    #[arg(long)]
    pub(crate) json: bool,
    /// Print the task's id and leave; see `flightdeck task`
    #[arg(long)]
    pub(crate) detach: bool,
    /// What to do: text, a plan ({"commands":[…]}), or - to read it from standard input
    pub(crate) text: String,
}

/// List the tasks that were submitted, newest first: who, where, what, and what became of them
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  flightdeck tasks
  flightdeck tasks --device mybox --state running
  flightdeck tasks --watch                           Until Ctrl-C
  flightdeck tasks --json --limit 500 | jq .error

An operator's key shows everybody's tasks, any other those that were submitted with it.")]
pub(crate) struct Tasks {
    #[command(flatten)]
    pub(crate) client: ClientKeys,
    /// Only tasks for this device
    #[arg(long, visible_alias = "on", value_name = "ID")]
    pub(crate) device: Option<String>,
    /// Only tasks in this state
    #[arg(long, value_name = "STATE")]
    pub(crate) state: Option<TaskState>,
    /// Only tasks of this name
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Only tasks that were submitted with the key of this name
    #[arg(long, value_name = "NAME")]
    pub(crate) key: Option<String>,
    /// Only tasks of this requester
    #[arg(long, value_name = "ID")]
    pub(crate) requester: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 20)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub(crate) limit: u16,
    /// Go on showing what changes
    #[arg(long)]
    pub(crate) watch: bool,
    /// Print what the server says of each, one task a line
    #[arg(long)]
    pub(crate) json: bool,
}

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum TaskState {
    Queued,
    Running,
    Completed,
    Failed,
    Cancelled,
}

impl TaskState {
    /// As the HTTP API has it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Look at one task, or cancel it
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  flightdeck task show 019ab3c4-5d6e                 The beginning of its id is enough
  flightdeck task follow 019ab3c4-5d6e               Until it ends
  flightdeck task result 019ab3c4-5d6e > out.json
  flightdeck task cancel 019ab3c4-5d6e

Exit codes of `follow` and `result`: 0 it completed, 1 it failed or is not over, 3 it was cancelled,
4 server unreachable or refused. `cancel`: 0 it is cancelled, 1 it is not.")]
pub(crate) enum TaskCommand {
    /// Show it with its steps
    Show(OneTask),
    /// Show its steps as they happen, and then what it returned
    Follow(OneTask),
    /// Cancel it, and wait until its device has confirmed that it stopped
    Cancel(OneTask),
    /// Print what it returned
    Result(OneTask),
}

/// Which task.
#[derive(Debug, Args)]
pub(crate) struct OneTask {
    #[command(flatten)]
    pub(crate) client: ClientKeys,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Its id, or as much of the beginning of it as tells it from others; `flightdeck tasks` shows it
    pub(crate) id: String,
}

/// The keys of the server on this machine
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  flightdeck key create --name lab-1 --role device --client lab-1
  flightdeck key create --name galaxy --role constellation --target 'lab-*' --expires 30d
  flightdeck key list
  flightdeck key revoke lab-1

A running server takes each change up within a second.")]
pub(crate) enum Key {
    /// Print the key that the server on this machine generated
    Show,
    Create(CreateKey),
    /// List the created keys
    List {
        /// Print JSON, one key a line
        #[arg(long)]
        json: bool,
    },
    /// Revoke a created key: its connections are closed at once
    Revoke {
        /// The key's name, or its id
        name: String,
    },
}

/// Create a key, and print it: it is not shown again
#[derive(Debug, Args)]
pub(crate) struct CreateKey {
    /// A label for people: in listings and logs
    #[arg(long, value_name = "NAME")]
    pub(crate) name: String,
    /// What its holder may be
    #[arg(long)]
    pub(crate) role: KeyRole,
    /// Which ids its holder may register with; * stands for any characters [default: any]
    #[arg(long, value_name = "ID-PATTERN")]
    pub(crate) client: Option<server::Pattern>,
    /// Which devices its holder may work with; * stands for any characters [default: any]
    #[arg(long, value_name = "DEVICE-PATTERN")]
    pub(crate) target: Option<server::Pattern>,
    /// How long it opens: 12h, 30d, 8w [default: until it is revoked]
    #[arg(long, value_name = "TIME")]
    pub(crate) expires: Option<Lifetime>,
}

/// What the holder of a key may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum KeyRole {
    /// Executes: registers as a device
    Device,
    /// Orchestrates: registers as a constellation and submits tasks, also over HTTP
    Constellation,
    /// Runs the place: what a constellation may, and sees and cancels everybody's tasks
    Operator,
}

/// The settings
#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Print the settings in force, keys redacted
    Show {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the reference of all settings, as Markdown
    Reference,
}

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "Example:
  flightdeck completions bash > ~/.local/share/bash-completion/completions/flightdeck")]
pub(crate) struct Completions {
    /// The shell
    pub(crate) shell: clap_complete::Shell,
}
