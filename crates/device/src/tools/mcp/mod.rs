//! Tools that other programs offer, through the Model Context Protocol.

mod settings;

pub use settings::{Section, ServerSettings, Transport};
