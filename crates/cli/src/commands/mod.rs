//! One file a command.

pub(crate) mod backup;
pub(crate) mod config;
pub(crate) mod demo;
pub(crate) mod device;
pub(crate) mod devices;
mod dry_run;
pub(crate) mod exec;
mod follow;
pub(crate) mod join_token;
pub(crate) mod key;
pub(crate) mod login;
pub(crate) mod run;
pub(crate) mod serve;
pub(crate) mod task;
pub(crate) mod tasks;
