//! What can be typed after `flightdeck device`.

use clap::{Args, Subcommand};

use crate::settings::{ApiKey, ClientKeys, DeviceKeys};

/// Make this machine a device: it takes commands from a server and runs what you allow
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "Examples:
  flightdeck device
  flightdeck device --join 'wss://10.0.0.5:5000#…'   Join a server on another machine, once
  flightdeck device --dry-run                        Show the tools, and what becomes of a call
  flightdeck device --root /srv/data                 Open these files instead of your home folder
  flightdeck device --exec shell --sandbox           Any command, writing below the roots only
  flightdeck device --mcp mcp.json                   Offer the tools of MCP servers
  flightdeck device --request '{\"commands\":[…]}'     Submit a task for this device itself
  flightdeck device install --id build-box           Run it as a service from now on
  flightdeck device status                           How the devices on this machine are doing
  flightdeck device log                              What they have run

Exit codes: 0 it was told to stop; 2 a wrong setting; 4 the server cannot be reached or refuses
it, with --max-retries; without that it tries again for ever.")]
pub(crate) struct Device {
    #[command(subcommand)]
    pub(crate) command: Option<DeviceCommand>,
    #[command(flatten)]
    pub(crate) device: DeviceKeys,
    #[command(flatten)]
    pub(crate) client: ClientKeys,
    /// Join a server with the address that `flightdeck join-token create` printed there; - reads it from standard input
    #[arg(long, value_name = "URL", env = "FLIGHTDECK_JOIN", hide_env_values = true)]
    pub(crate) join: Option<ApiKey>,
    /// With --join: join without TLS over a network that is trusted
    #[arg(long, requires = "join")]
    pub(crate) insecure: bool,
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
    Log(DeviceLog),
    Rejoin(Box<DeviceRejoin>),
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

/// Show what your devices on this machine have run, for which tasks, and how it ended
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  flightdeck device log
  flightdeck device log --id build-box --last 1000 --json
  sudo flightdeck --state-dir /var/lib/flightdeck-device device log     A service of the machine

Exit codes: 0 something was run; 1 nothing was.")]
pub(crate) struct DeviceLog {
    /// Only this device [default: all of yours on this machine]
    #[arg(long, visible_alias = "client-id", value_name = "ID")]
    pub(crate) id: Option<String>,
    /// How many calls are shown, the newest ones
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub(crate) last: usize,
    /// Print JSON, one call a line, as the file has it
    #[arg(long)]
    pub(crate) json: bool,
}

/// Let a device join again whose id is not new: prints the line for its machine; wants an operator's key
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  flightdeck device rejoin lab-1
  flightdeck device rejoin lab-1 --server fleet

What it prints opens for this id alone, once, within an hour. The key pair that was bound to the id is
replaced when it is used.")]
pub(crate) struct DeviceRejoin {
    /// The id of the device
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) client: ClientKeys,
}

/// Run the device as a service of systemd, from now on and after each start of the machine
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  flightdeck device install --join -                 Read the address to join at; see join-token
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
    /// Join a server with the address that `flightdeck join-token create` printed there; - reads it from standard input
    #[arg(long, value_name = "URL", env = "FLIGHTDECK_JOIN", hide_env_values = true)]
    pub(crate) join: Option<ApiKey>,
    /// With --join: join without TLS over a network that is trusted
    #[arg(long, requires = "join")]
    pub(crate) insecure: bool,
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
