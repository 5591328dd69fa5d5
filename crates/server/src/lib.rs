//! The agent server: it knows who is connected, where each task is, and what to do next.
//!
//! - [`Server`]: start, accept, shut down. Its [`router`](Server::router) and
//!   [`accept`](Server::accept) let it be mounted in another axum program.
//! - [`agent`]: decides the next step of a task.
//! - [`store`]: where the journal of each task goes.
//!
//! Inside: `accept` (upgrade to registered connection), `connection` (its actor), `registry` (who is
//! connected), `session` (a task's life), `dispatch` (a command, its device and its reply), `http`.

mod accept;
pub mod agent;
#[allow(dead_code)]
mod audit;
mod auth;
mod config;
mod connection;
mod dispatch;
#[allow(dead_code)]
mod hosts;
mod http;
#[allow(dead_code)]
mod limits;
mod registry;
mod server;
mod session;
pub mod store;

pub use audit::{Audit, AuditSettings};
pub use config::Config;
pub use hosts::{HostPattern, InvalidPattern, OriginPattern};
pub use server::{ServeError, Server, Snapshot, listen};
pub use session::{Task, TaskId};
