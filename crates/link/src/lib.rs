//! AIP over a wire: the one place that touches frames and sockets.
//!
//! - [`ambient`]: the time of day, chance and tasks, which a simulation decides.
//! - [`budget`]: one bound for the bytes of large messages, over all connections.
//! - [`socket`]: a stream of frames, over WebSocket or (in tests) an in-memory pair.
//! - [`outbox`]: the bounded queue through which others hand messages to a connection.
//! - [`connection`]: what a connection's actor waits on, one event at a time.
//! - [`client`]: the loop of every client: connect, register, run, back off, come back.
//! - [`identity`]: who a client is and how it proves that when it comes back, in a file or in memory.
//! - [`dial`]: where a server is, and how to reach it; [`tls`]: whose certificates are trusted;
//!   [`proxy`]: the way through an HTTP proxy; `tcp`: whichever address of a host answers first; `handshake`: the
//!   upgrade to WebSocket.
//! - [`pin`]: by which public key a server is known again; [`proof`]: how a device proves which key pair it has.
//! - `private`: files that nobody but their owner may read.
//! - `turn`: how much an actor does before others get their turn.
//! - `spans`: which client and connection a line of the log is about.
//! - `sleep`: whether the machine slept, which a client must find out by itself.
//!
//! It decides nothing about tasks or tools: that is for the crates above it.

pub mod ambient;
pub mod budget;
pub mod client;
pub mod connection;
pub mod dial;
mod frames;
mod handshake;
pub mod identity;
pub mod memory;
pub mod outbox;
pub mod pin;
mod private;
pub mod proof;
pub mod proxy;
mod sleep;
pub mod socket;
mod spans;
mod tcp;
pub mod tls;
mod transport;
mod turn;

pub use ambient::Ambient;
pub use budget::{Budget, Kept};
pub use client::{Client, ClientSettings, Connector, Exit, Role, TokenSource};
pub use connection::{Connection, Direction, Event, Tap};
pub use dial::{DialError, ServerUrl, UrlError};
pub use identity::{Identity, IdentityError, Retention};
pub use outbox::{Alive, Bound, NotQueued, Outbox, OutboxLimits, Overflow};
pub use pin::{InvalidPin, Pin, Pins};
pub use private::private;
pub use proof::{DeviceKey, KeyPair};
pub use proxy::{Proxy, ProxyError};
pub use sleep::elapse;
pub use socket::{Closed, Frame, Incoming, Socket};
pub use tls::{Trust, TrustError};
