//! The agent server: it knows who is connected, where each task is, and what to do next.
//!
//! - [`Server`]: start, accept, shut down. Its [`router`](Server::router) and
//!   [`accept`](Server::accept) let it be mounted in another axum program.
//! - [`agent`]: decides the next step of a task.
//! - [`store`]: where the journal of each task goes.
//!
//! Inside: `accept` (upgrade to registered connection), `connection` (its actor), `hub` (the one place that decides
//! who is there, where each task stands and which answer settles which command), `drive` (carries out what the hub
//! decides), `session` (what a task is), `http`, `metrics` (what is counted), `spans` (which
//! connection or task a line of the log is about).

mod accept;
pub mod agent;
mod audit;
mod auth;
mod config;
mod connection;
mod deliver;
mod drive;
mod facts;
mod front;
mod handle;
mod hosts;
mod http;
mod hub;
mod limits;
mod metrics;
mod patient;
mod server;
mod session;
mod spans;
pub mod store;
mod tls;

pub use audit::{Audit, AuditSettings, KeyChange, append_key_change};
pub use auth::{
    BookChange, FirstUse, JoinToken, KeyBook, KeyLook, KeyRecord, KeyStore, Keys, NewJoinToken,
    NewKey, Pattern, Role, generate_key,
};
pub use config::{Config, MIN_BYTES_IN_FLIGHT, MIN_OUTBOX_MESSAGES};
pub use front::listen;
pub use hosts::{HostPattern, InvalidPattern, OriginPattern};
pub use server::{ServeError, Server, Services, Snapshot};
pub use session::{
    Call, CallResult, CallStatus, Finish, IdentityRecord, Incarnation, KeyHash, KeyName,
    RequestHash, Requester, Step, Task, TaskId, Terms,
};
pub use tls::{Tls, TlsError};
