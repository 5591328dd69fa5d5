//! How a client connects, stays connected and comes back.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use aip::machine::LONGEST_WAIT;
use secrecy::SecretString;
use tokio::sync::Notify;

use crate::ambient::Ambient;
use crate::connection::{Tap, Watch};
use crate::dial::{DialError, ServerUrl};
use crate::outbox::OutboxLimits;
use crate::pin::Pins;
use crate::proof::DeviceKey;
use crate::proxy::Proxy;
use crate::socket::Socket;
use crate::tls::Trust;

/// Makes a connection to the server in another way than over the network.
pub type Connector =
    Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<Socket, DialError>> + Send>> + Send + Sync>;

/// Gives a key, if there is one.
pub type TokenSource = Arc<dyn Fn() -> Option<SecretString> + Send + Sync>;

/// How a client connects, stays connected and comes back.
#[derive(Clone)]
pub struct ClientSettings {
    /// Where the server is.
    pub server: ServerUrl,
    /// The key, if the server wants one.
    pub token: Option<SecretString>,
    /// Gives the key as it is now, at each try: one that lies in a file may come later than the client, or
    /// change. Where it gives none, [`Self::token`] counts. Must not take long.
    pub token_source: Option<TokenSource>,
    /// What a device proves itself with before each upgrade, instead of showing a key.
    pub device_key: Option<Arc<DeviceKey>>,
    /// Told when something has changed that may have kept the server from taking us: the next try comes at once then,
    /// and the waits start over.
    pub nudge: Option<Arc<Notify>>,
    /// The public keys by which the server is known again, where it is: one that it announces is kept there.
    pub pins: Option<Pins>,
    /// Whose certificates are trusted; a server behind TLS needs it.
    pub trust: Option<Trust>,
    /// The HTTP proxy to go through, if any.
    pub proxy: Option<Proxy>,
    /// Time between heartbeats.
    pub heartbeat_interval: Duration,
    /// Pings, and how long silence is borne.
    pub watch: Watch,
    /// The same once the server has granted `resume`: its device's window goes by how soon a loss is noticed.
    pub resume_watch: Watch,
    /// Longest wait for the connection, and then for the confirmation.
    pub connect_timeout: Duration,
    /// How many times in a row to try again before giving up; `None` means for ever.
    pub max_retries: Option<u32>,
    /// First wait before trying again, at most; it doubles up to [`Self::backoff_cap`]. When waits are
    /// longer or shorter is said at [`Reconnect`](aip::machine::Reconnect).
    pub backoff_base: Duration,
    /// Longest wait before trying again.
    pub backoff_cap: Duration,
    /// Bounds of the outgoing queue.
    pub outbox: OutboxLimits,
    /// Sees every frame.
    pub tap: Option<Tap>,
    /// Takes the place of the network.
    pub connector: Option<Connector>,
    /// The time of day, chance, ids and tasks.
    pub ambient: Ambient,
}

impl ClientSettings {
    /// A device's: pings every 20 s and waits 180 s for the pong, 20 s where it was granted `resume`; heartbeats every
    /// 120 s, comes back for ever.
    #[must_use]
    pub fn device(server: ServerUrl) -> Self {
        Self {
            server,
            token: None,
            token_source: None,
            device_key: None,
            pins: None,
            nudge: None,
            trust: None,
            proxy: None,
            heartbeat_interval: Duration::from_secs(120),
            watch: Watch { ping_every: Duration::from_secs(20), timeout: Duration::from_secs(180) },
            resume_watch: Watch {
                ping_every: Duration::from_secs(20),
                timeout: Duration::from_secs(40),
            },
            connect_timeout: Duration::from_secs(10),
            max_retries: None,
            backoff_base: Duration::from_secs(1),
            backoff_cap: Duration::from_secs(60),
            outbox: OutboxLimits::default(),
            tap: None,
            connector: None,
            ambient: Ambient::system(),
        }
    }

    /// A constellation's: pings and heartbeats every 30 s. It comes back for ever where its tasks wait for it, with waits
    /// of at most 15 s; elsewhere never.
    #[must_use]
    pub fn constellation(server: ServerUrl) -> Self {
        Self {
            heartbeat_interval: Duration::from_secs(30),
            watch: Watch { ping_every: Duration::from_secs(30), timeout: Duration::from_secs(90) },
            backoff_cap: Duration::from_secs(15),
            ..Self::device(server)
        }
    }

    /// The same with no wait beyond [`LONGEST_WAIT`].
    pub(super) fn sound(mut self) -> Self {
        self.heartbeat_interval = self.heartbeat_interval.min(LONGEST_WAIT);
        self.connect_timeout = self.connect_timeout.min(LONGEST_WAIT);
        self.backoff_base = self.backoff_base.min(LONGEST_WAIT);
        self.backoff_cap = self.backoff_cap.min(LONGEST_WAIT);
        self
    }
}
