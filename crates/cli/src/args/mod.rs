//! The command line: what can be typed, and the help for it.

mod device;
mod join_token;
mod key;
mod login;
mod task;

use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

pub(crate) use self::device::{
    Device, DeviceCommand, DeviceInstall, DeviceLog, DeviceRejoin, DeviceScope, DeviceStatus,
    DeviceUninstall,
};
pub(crate) use self::join_token::{CreateJoinToken, JoinRole, JoinToken};
pub(crate) use self::key::{CreateKey, Key, KeyRole};
pub(crate) use self::login::{Login, Logout};
pub(crate) use self::task::{Exec, FollowTask, OneTask, Run, TaskCommand, Tasks, Variable};
use crate::log::Format;
use crate::settings::{self, ClientKeys, ServerKeys};

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

/// Adds what a command takes.
type Augment = fn(clap::Command) -> clap::Command;

/// What each command takes, in the order of the help.
const ALL: [(&str, Augment); 15] = [
    ("demo", Demo::augment_args),
    ("serve", Serve::augment_args),
    ("device", Device::augment_args),
    ("devices", Devices::augment_args),
    ("backup", Backup::augment_args),
    ("exec", Exec::augment_args),
    ("run", Run::augment_args),
    ("tasks", Tasks::augment_args),
    ("task", |command| of_several(TaskCommand::augment_subcommands(command))),
    ("key", |command| of_several(Key::augment_subcommands(command))),
    ("join-token", |command| of_several(JoinToken::augment_subcommands(command))),
    ("login", Login::augment_args),
    ("logout", Logout::augment_args),
    ("config", |command| of_several(Config::augment_subcommands(command))),
    ("completions", Completions::augment_args),
];

/// A command of which one of several is to be named.
fn of_several(command: clap::Command) -> clap::Command {
    command.subcommand_required(true).arg_required_else_help(true)
}

impl Cli {
    /// Reads the command line. The help of each setting names its default.
    pub(crate) fn read() -> Self {
        if let Some(read) = Self::read_first() {
            return read;
        }
        let mut command = Self::command();
        let matches = command.try_get_matches_from_mut(std::env::args_os());
        // To take it apart takes as long as to put it together, and the program ends soon.
        std::mem::forget(command);
        let matches = matches.unwrap_or_else(|error| {
            // Only help says what the defaults are, and to find them out takes as long as all the rest.
            if error.kind() == ErrorKind::DisplayVersion {
                error.exit()
            } else if error.exit_code() == 0
                || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
            {
                Self::with_defaults().get_matches()
            } else {
                error.exit()
            }
        });
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    /// Reads a command line that begins with its command, and has nothing wrong, without putting together all the
    /// others: that would be a tenth of what a whole `exec` takes.
    fn read_first() -> Option<Self> {
        let first = std::env::args_os().nth(1)?;
        let (name, augment) = ALL.into_iter().find(|(name, _)| first == *name)?;
        let own = augment(clap::Command::new(name));
        let mut command = Global::augment_args(clap::Command::new("flightdeck")).subcommand(own);
        let matches = command.try_get_matches_from_mut(std::env::args_os());
        // To take it apart takes as long as to put it together, and the program ends soon.
        std::mem::forget(command);
        Self::from_arg_matches(&matches.ok()?).ok()
    }

    /// What can be typed, with the defaults of the settings in its help.
    pub(crate) fn with_defaults() -> clap::Command {
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
        // What is put off until a command is used cannot be changed, and says nothing of itself.
        let whole = |command: clap::Command, (n, (name, augment)): (usize, (_, Augment))| {
            command.mut_subcommand(name, |_| {
                let fresh = augment(clap::Command::new(name)).display_order(n);
                described(fresh).mut_subcommands(described)
            })
        };
        ALL.into_iter().enumerate().fold(Self::command(), whole)
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

/// Each is put together when it is used: all of them together take longer than most commands.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
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
    JoinToken(JoinToken),
    Login(Login),
    Logout(Logout),
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
  flightdeck serve --host 0.0.0.0                    Let other machines in, over TLS
  flightdeck serve --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem
  flightdeck serve --sessions-per-device 4 --queue-per-device 20")]
pub(crate) struct Serve {
    #[command(flatten)]
    pub(crate) server: ServerKeys,
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
