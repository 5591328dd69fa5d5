//! What can be typed after `flightdeck key`.

use clap::{Args, Subcommand};

use crate::settings::Lifetime;

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
    /// List the created keys and the key pairs of devices, with when each was last used
    List {
        /// Print JSON, one key a line
        #[arg(long)]
        json: bool,
    },
    /// Revoke a created key, or the key pair of a device that has joined: its connections are closed at once
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
