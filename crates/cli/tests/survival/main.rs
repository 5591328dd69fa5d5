//! What a user keeps whose server dies, whose network breaks or who asks for too much: `run`, `exec` and the HTTP API with
//! real processes, which are killed with -9. The larger ones are ignored, and made by hand:
//!
//! ```text
//! cargo test -p flightdeck --test survival -- --ignored
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../http_api/client.rs"]
#[allow(dead_code, reason = "other tests need the rest")]
mod client;
#[path = "../common/mod.rs"]
mod common;
#[path = "../security/proxy.rs"]
#[allow(dead_code, reason = "other tests need the rest")]
mod proxy;

mod codes;
mod gate;
mod killed;
mod links;
mod quotas;
mod spool;
mod stops;
mod streams;
