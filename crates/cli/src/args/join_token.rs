//! What can be typed after `flightdeck join-token`.

use clap::{Args, Subcommand};

use crate::settings::Lifetime;

/// Tokens with which other machines join the server on this machine
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  flightdeck join-token create --name lab-1
  flightdeck join-token create --name lab --client 'lab-*' --uses 20 --expires 1d
  flightdeck join-token create --name me --role operator
  flightdeck join-token list
  flightdeck join-token revoke lab

`create` prints the line to type on the other machine. No key travels: a device makes a key pair
itself, and its id is bound to that.")]
pub(crate) enum JoinToken {
    Create(CreateJoinToken),
    /// List the join tokens, with who used each first
    List {
        /// Print JSON, one token a line
        #[arg(long)]
        json: bool,
    },
    /// Revoke a join token; what it has opened stays, see `flightdeck key revoke`
    Revoke {
        /// The token's name, or its id
        name: String,
    },
}

/// Make a join token, and print the line that uses it: it is not shown again
#[derive(Debug, Args)]
pub(crate) struct CreateJoinToken {
    /// A label for people, in listings and logs; what joins with it is called so too
    #[arg(long, value_name = "NAME")]
    pub(crate) name: String,
    /// Which ids devices may join with; * stands for any characters [default: any that is new]
    #[arg(long, value_name = "ID-PATTERN")]
    pub(crate) client: Option<server::Pattern>,
    /// How often it may be used
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) uses: u32,
    /// How long it opens: 30m, 1h, 7d
    #[arg(long, value_name = "TIME", default_value = "1h")]
    pub(crate) expires: Lifetime,
    /// Who joins with it
    #[arg(long, default_value = "device")]
    pub(crate) role: JoinRole,
}

/// Who may use a join token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum JoinRole {
    /// A machine, with `flightdeck device --join`
    Device,
    /// A person, with `flightdeck login`
    Operator,
}
