//! The device client: a machine that lends its hands.
//!
//! - [`Device`]: connects, registers with the facts of this machine, and comes back after a loss.
//! - `executor`: takes each COMMAND, runs its actions, answers every one.
//! - [`journal`]: what it took and did, so that neither a lost connection nor its own death does it twice.
//! - [`tools`]: what can be called, and within which limits.
//! - [`policy`]: the owner's say. `called`: what is told of each call to whoever keeps a record.
//! - `process`, [`watchdog`]: child processes that never outlive the device.
//! - [`confine`]: what no child may do.
//! - [`info`]: the facts. [`state`]: how the device is doing.

mod called;
pub mod confine;
pub mod device;
mod executor;
mod flow;
mod group;
pub mod info;
pub mod journal;
#[cfg(target_os = "linux")]
mod listing;
mod mark;
pub mod policy;
pub mod process;
pub mod progress;
mod spool;
pub mod state;
pub mod tools;
pub mod watchdog;

pub use called::{CallState, Called, OnCall};
pub use device::{Device, DeviceError, DeviceEvent, DeviceSettings};
pub use executor::Capacity;
pub use info::Features;
pub use journal::JournalSettings;
pub use spool::SpoolSettings;
pub use state::DeviceState;
pub use tools::Exec;
