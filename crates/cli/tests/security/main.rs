//! What nobody may do, however they try, against the real binary over real sockets with created keys.
//!
//! One file for each way in. `fleet.rs` has the server with its keys, `proxy.rs` a network that
//! swallows everything.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod fleet;
#[allow(dead_code, reason = "other tests need the rest")]
mod proxy;

mod audit;
mod config;
mod growing;
mod half_open;
mod hosts;
mod keys;
mod reach;
mod revoking;
mod roles;
mod secrets;
mod spoofing;
