//! The Agent Interaction Protocol (AIP), as Flightdeck speaks it.
//!
//! This crate is the pure core: messages, their JSON text, and the state machines that both ends of
//! a connection need. It depends on no async runtime, reads no clock, draws no random number and
//! does no I/O: time and chance come in as arguments, decisions come out as values.
//!
//! - [`message`]: what can be said ([`ClientMessage`], [`ServerMessage`] and their payloads).
//! - [`codec`]: text to message and back, with the limits on size and nesting.
//! - [`close`]: WebSocket close codes, and which of them mean "come back".
//! - [`visible`]: characters that leave no mark, escaped where ids and names are shown or logged.
//! - [`machine`]: registration, what a registered peer may say, pending replies, liveness, backoff.

pub mod close;
pub mod codec;
pub mod id;
mod json_string;
pub mod machine;
pub mod message;
pub mod payload;
pub mod timestamp;
pub mod visible;

pub use close::{CloseCode, KEY_GONE};
pub use codec::{DecodeError, Limits};
pub use id::{CallId, ClientId, RequestId, ResponseId, SessionId, TaskName};
pub use message::{
    ActionResult, ClientMessage, ClientMessageType, ClientType, Command, ResultStatus,
    ServerMessage, ServerMessageType, Status, ToolInfo, ToolType,
};
pub use payload::Payload;
