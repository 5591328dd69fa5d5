//! What can be typed after `flightdeck login` and `logout`.

use clap::Args;

use crate::settings::ApiKey;

/// Log in to a server on another machine, as its operator; without an address, list the logins
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  flightdeck join-token create --name me --role operator     On the server's machine: prints the line
  flightdeck login 'wss://10.0.0.5:5000#…'                   Type it here
  flightdeck login --name fleet -                            The same, read from standard input
  flightdeck devices --server fleet
  flightdeck login                                           List the logins

The server's address and public key, and the key that was made, are kept in the state folder, where
only you can read them.")]
pub(crate) struct Login {
    /// The address that was printed; - reads it from standard input
    #[arg(value_name = "URL", env = "FLIGHTDECK_LOGIN", hide_env_values = true)]
    pub(crate) join: Option<ApiKey>,
    /// What to call the server here, for --server NAME [default: its host; with its port if another has that name]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Log in without TLS over a network that is trusted
    #[arg(long)]
    pub(crate) insecure: bool,
}

/// Forget a login
#[derive(Debug, Args)]
pub(crate) struct Logout {
    /// What the server is called here
    pub(crate) name: String,
}
