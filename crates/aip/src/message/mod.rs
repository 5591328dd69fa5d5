//! What the peers can say to each other: [`ClientMessage`] to the server, [`ServerMessage`] from it.
//!
//! One flat object each, because that is what the wire is: every type of message uses some of the
//! fields. Which ones, and who may send them, is for [`crate::machine`] to decide; how they become
//! text is for [`crate::codec`].

mod client;
mod enums;
mod exit;
mod extension;
mod facts;
mod payloads;
mod server;

pub use client::ClientMessage;
pub use enums::{
    ClientMessageType, ClientType, Platform, ResultStatus, ServerMessageType, Status, ToolType,
};
pub use exit::exit_code;
pub use extension::{
    Accepted, Cancel, CancelAfter, Channel, Chunk, CommandNote, Confirmed, Data, Downstream,
    Extension, Feature, Features, Held, HeldState, Input, InputTaken, Instruction, JournalId,
    MAX_CHUNK_BYTES, MAX_WINDOW_BYTES, MIN_WINDOW_BYTES, Mismatch, OnDisconnect, Output,
    OutputTaken, Passed, ReadSpool, Refused, ResultAck, Resume, ResumeRefused, Resumed, Spooled,
    Step, StepStatus, Streams, Taken, TaskRefused, TaskSettings, Upstream, VERSION, Word,
    whole_characters,
};
pub use facts::{ConstellationMetadata, DeviceMetadata, SystemInfo};
pub use payloads::{ActionResult, Command, MAX_RESULTS, ToolInfo, TruncatedResult};
pub use server::ServerMessage;
