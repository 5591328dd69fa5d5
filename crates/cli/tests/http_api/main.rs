//! The HTTP API as its users meet it: the real binary, real devices and raw peers on the other side.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod client;
#[path = "../common/mod.rs"]
mod common;
mod devices;
mod docs;
mod keys;
mod limits;
mod lists;
mod repeats;
mod routes;
mod stops;
mod tasks;
mod ufo;
