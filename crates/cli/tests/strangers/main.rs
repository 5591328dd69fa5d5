//! The whole device with MCP servers that strangers wrote: a real `flightdeck serve`, a real
//! `flightdeck device --mcp FILE`, and servers from npm and PyPI, whose versions are in `servers/`.
//!
//! It is run by `cargo test -p flightdeck --test strangers -- --ignored`, and wants Node.js with npm and
//! Python with venv. What it installs goes below `target/`, once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod install;
mod machine;

mod fastmcp;
mod listing;
mod npm;
mod trouble;
mod ufo;
