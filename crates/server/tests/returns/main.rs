//! What dies and comes back: requesters, devices and the server, seen from both ends of in-memory links with paused time.
//! Each test is a case of what the protocol promises about loss and return.

#![allow(clippy::unwrap_used, clippy::panic)]

mod party;
#[path = "../common/peer.rs"]
#[allow(dead_code, reason = "other tests need the rest")]
mod peer;
mod rig;

mod crowd;
mod devices;
mod identities;
mod requesters;
mod servers;
mod streams;
mod times;
mod together;
