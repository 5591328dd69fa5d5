//! What the extension adds to a task's streams: what a requester asks for, chunks of output and of input, and how far
//! each end has taken them.
//!
//! Upstream is what a device says of a COMMAND: output, and how much of the input it took. Downstream is what the
//! requester says: how much of the output it took, and input. The server passes both on.

mod data;

use bytes::Bytes;
use serde::de::Deserializer;
use serde::{Deserialize, Serialize};

pub use self::data::{Data, whole_characters};
use super::super::{ClientMessage, ServerMessage};
use super::Keyed;
use crate::codec;
use crate::id::CallId;
use crate::payload::Payload;

/// The most bytes of a stream in one chunk: 64 KiB.
pub const MAX_CHUNK_BYTES: usize = 64 * 1024;

/// The most chunks that are read out of one message.
const MAX_CHUNKS: usize = 64;

/// The window of a stream where nobody says another one, and the largest there is: 1 MiB.
pub const MAX_WINDOW_BYTES: u32 = 1024 * 1024;

/// The smallest window of a stream: 4 KiB.
pub const MIN_WINDOW_BYTES: u32 = 4 * 1024;

/// What a requester asks for, as `streams` of a TASK's settings; what it gets, in the ACK and in each COMMAND.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(expecting = "an object")]
pub struct Streams {
    /// All output, as it is written.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub output: bool,
    /// The requester sends standard input.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub input: bool,
    /// The device keeps what the command writes, for whoever asks later.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub spool: bool,
    /// The most bytes of each stream that are on their way and not taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<u32>,
}

impl Streams {
    /// The window, within its bounds.
    #[must_use]
    pub fn window(&self) -> u32 {
        self.window.unwrap_or(MAX_WINDOW_BYTES).clamp(MIN_WINDOW_BYTES, MAX_WINDOW_BYTES)
    }

    /// Whether it is about any stream.
    #[must_use]
    pub const fn is_any(&self) -> bool {
        self.is_live() || self.spool
    }

    /// Whether anything passes between the command and its requester while it runs.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        self.output || self.input
    }
}

/// What a COMMAND says to a device of ours, as its `result`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandNote {
    /// The streams that its requester gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streams: Option<Streams>,
    /// Who wants it: a client's id, or who uses the HTTP API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requester: Option<String>,
    /// The name of the key that the requester has shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

impl CommandNote {
    /// The `result` of a COMMAND.
    #[must_use]
    pub fn to_result(&self) -> Option<Payload> {
        Payload::from_value(&Keyed { flightdeck: self }).ok()
    }

    /// What a COMMAND says; nothing, if it is a Python server's.
    #[must_use]
    pub fn of(result: Option<&Payload>) -> Option<Self> {
        result?.parse::<Keyed<Self>>().ok().map(|keyed| keyed.flightdeck)
    }
}

/// One of the streams that a command writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Channel {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Channel {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Stdout, Self::Stderr];

    /// As the wire has it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Some output of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The action whose output it is.
    pub call_id: Option<CallId>,
    /// Which stream.
    pub stream: Channel,
    /// How many chunks of this stream came before.
    pub n: u64,
    /// How many bytes of this stream came before.
    pub offset: u64,
    /// The lowest offset that the device still has.
    pub held: u64,
    /// The bytes.
    pub data: Data,
    /// Whether it is the last.
    pub end: bool,
}

impl<'de> Deserialize<'de> for Chunk {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Shape {
            #[serde(default)]
            call_id: Option<CallId>,
            stream: Channel,
            n: u64,
            offset: u64,
            held: u64,
            text: Option<Payload>,
            base64: Option<Payload>,
            #[serde(default)]
            end: bool,
        }

        let Shape { call_id, stream, n, offset, held, text, base64, end } =
            Shape::deserialize(deserializer)?;
        Ok(Self { call_id, stream, n, offset, held, data: Data::read(text, base64)?, end })
    }
}

impl Chunk {
    fn write(&self, out: &mut Vec<u8>) {
        let mut object = codec::Object::open(out);
        if let Some(call_id) = &self.call_id {
            object.string("call_id", call_id.as_str());
        }
        object.string("stream", self.stream.as_str());
        object.number("n", self.n);
        object.number("offset", self.offset);
        object.number("held", self.held);
        object.key(self.data.key()).extend_from_slice(self.data.payload().as_bytes());
        if self.end {
            object.key("end").extend_from_slice(b"true");
        }
        object.close();
    }
}

/// Some standard input for a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// The step whose command it is for.
    pub step: u32,
    /// How many chunks came before.
    pub n: u64,
    /// How many bytes came before.
    pub offset: u64,
    /// The bytes.
    pub data: Data,
    /// Whether nothing follows.
    pub end: bool,
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Shape {
            step: u32,
            n: u64,
            offset: u64,
            text: Option<Payload>,
            base64: Option<Payload>,
            #[serde(default)]
            end: bool,
        }

        let Shape { step, n, offset, text, base64, end } = Shape::deserialize(deserializer)?;
        Ok(Self { step, n, offset, data: Data::read(text, base64)?, end })
    }
}

impl Input {
    fn write(&self, out: &mut Vec<u8>) {
        let mut object = codec::Object::open(out);
        object.number("step", self.step.into());
        object.number("n", self.n);
        object.number("offset", self.offset);
        object.key(self.data.key()).extend_from_slice(self.data.payload().as_bytes());
        if self.end {
            object.key("end").extend_from_slice(b"true");
        }
        object.close();
    }
}

/// How much of a command's output its requester has taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputTaken {
    /// The step whose command it is.
    pub step: u32,
    /// Up to which offset of standard output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout: Option<u64>,
    /// Up to which offset of standard error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr: Option<u64>,
    /// Whether what lies behind is to be sent again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
}

impl OutputTaken {
    /// Up to which offset of a stream, if it says so.
    #[must_use]
    pub const fn of(&self, stream: Channel) -> Option<u64> {
        match stream {
            Channel::Stdout => self.stdout,
            Channel::Stderr => self.stderr,
        }
    }
}

/// How much of its input a command has taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputTaken {
    /// The action that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call_id: Option<CallId>,
    /// Up to which offset.
    pub stdin: u64,
    /// Whether it reads no more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub closed: bool,
}

/// What a device says of a COMMAND's streams, as `metadata.flightdeck` of its HEARTBEAT `continue`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstream {
    /// Output.
    Chunks(Vec<Chunk>),
    /// What it took of the input.
    Taken(InputTaken),
}

/// A server asks for what a device has kept of a stream, as `result.flightdeck.spool` of a HEARTBEAT `continue` about the
/// COMMAND.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadSpool {
    /// The number of the question.
    pub id: u64,
    /// Which stream.
    pub stream: Channel,
    /// From which offset on.
    pub from: u64,
}

/// The answer, as `metadata.flightdeck.spooled` of a HEARTBEAT `continue`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spooled {
    /// The number of the question.
    pub id: u64,
    /// What there is from that offset on, or from the lowest one that it has: an empty one where nothing more is there
    /// yet, none where it keeps nothing of this COMMAND.
    pub chunks: Vec<Chunk>,
}

/// What a requester says of a task's streams, as `metadata.flightdeck` of its HEARTBEAT `continue`; to the device the
/// server passes it as `result.flightdeck`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Downstream {
    /// What it took of the output.
    Taken(OutputTaken),
    /// Input.
    Input(Input),
}

/// What a server passes on to a requester of a task's streams, as `result.flightdeck`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passed {
    /// The task, *T*.
    pub task: String,
    /// The number of its step.
    pub step: u32,
    /// What its device says.
    pub upstream: Upstream,
}

/// The parts of what a device may say.
#[derive(Deserialize)]
struct UpParts {
    #[serde(default)]
    chunks: Option<Vec<Chunk>>,
    #[serde(default)]
    taken: Option<InputTaken>,
}

impl UpParts {
    fn upstream(self) -> Option<Upstream> {
        match (self.chunks, self.taken) {
            (Some(chunks), None) if chunks.len() <= MAX_CHUNKS => Some(Upstream::Chunks(chunks)),
            (None, Some(taken)) => Some(Upstream::Taken(taken)),
            _ => None,
        }
    }
}

impl ReadSpool {
    /// What a server's HEARTBEAT asks for; `None` of one that asks for nothing.
    #[must_use]
    pub fn of(result: Option<&Payload>) -> Option<Self> {
        #[derive(Deserialize)]
        struct Parts {
            spool: ReadSpool,
        }

        Some(result?.parse_carried::<Keyed<Parts>>().ok()?.flightdeck.spool)
    }

    /// The `result` of the HEARTBEAT.
    #[must_use]
    pub fn to_result(&self) -> Payload {
        keyed(0, |object| object.value("spool", self))
    }
}

impl Upstream {
    /// What a device's HEARTBEAT says of streams; `None` of one that says nothing of them.
    #[must_use]
    pub fn of(metadata: Option<&Payload>) -> Option<Self> {
        metadata?.parse_carried::<Keyed<UpParts>>().ok()?.flightdeck.upstream()
    }

    /// The frame of a HEARTBEAT, with this as its `metadata`.
    #[must_use]
    pub fn encode(&self, heartbeat: &ClientMessage) -> Bytes {
        codec::encode_client(heartbeat, self.room(), |out| {
            write_keyed(out, |object| self.write(object));
        })
    }

    fn room(&self) -> usize {
        match self {
            Self::Chunks(chunks) => room_of(chunks),
            Self::Taken(_) => CHUNK_ROOM,
        }
    }

    fn write(&self, object: &mut codec::Object<'_>) {
        match self {
            Self::Chunks(chunks) => {
                codec::write_list(object.key("chunks"), chunks, |out, chunk| chunk.write(out));
            }
            Self::Taken(taken) => object.value("taken", taken),
        }
    }
}

impl Spooled {
    /// What a device's HEARTBEAT has of it; `None` of one that has nothing.
    #[must_use]
    pub fn of(metadata: Option<&Payload>) -> Option<Self> {
        #[derive(Deserialize)]
        struct Parts {
            spooled: Shape,
        }

        #[derive(Deserialize)]
        struct Shape {
            id: u64,
            chunks: Vec<Chunk>,
        }

        let Keyed { flightdeck: Parts { spooled } } = metadata?.parse_carried().ok()?;
        let Shape { id, chunks } = spooled;
        (chunks.len() <= MAX_CHUNKS).then_some(Self { id, chunks })
    }

    /// The `metadata` of the HEARTBEAT.
    #[must_use]
    pub fn to_metadata(&self) -> Payload {
        keyed(room_of(&self.chunks), |object| {
            let mut spooled = codec::Object::open(object.key("spooled"));
            spooled.number("id", self.id);
            codec::write_list(spooled.key("chunks"), &self.chunks, |out, chunk| chunk.write(out));
            spooled.close();
        })
    }
}

/// What a chunk takes beside its bytes, about.
const CHUNK_ROOM: usize = 160;

/// What chunks take, about.
fn room_of(chunks: &[Chunk]) -> usize {
    chunks.iter().map(|chunk| CHUNK_ROOM + chunk.data.payload().len()).sum()
}

impl Passed {
    /// The frame of a HEARTBEAT to the requester, with this as its `result`.
    #[must_use]
    pub fn encode(&self, heartbeat: &ServerMessage) -> Bytes {
        codec::encode_server(heartbeat, self.upstream.room(), |out| {
            write_keyed(out, |object| {
                object.string("task", &self.task);
                object.number("step", self.step.into());
                self.upstream.write(object);
            });
        })
    }

    /// What a server passes on; `None` of a message that is about something else.
    #[must_use]
    pub fn of(result: Option<&Payload>) -> Option<Self> {
        #[derive(Deserialize)]
        struct Parts {
            task: String,
            step: Payload,
            #[serde(default)]
            chunks: Option<Vec<Chunk>>,
            #[serde(default)]
            taken: Option<InputTaken>,
        }

        let Keyed { flightdeck: Parts { task, step, chunks, taken } } =
            result?.parse_carried::<Keyed<Parts>>().ok()?;
        let upstream = UpParts { chunks, taken }.upstream()?;
        Some(Self { task, step: step.parse().ok()?, upstream })
    }
}

impl Downstream {
    /// What stands in a requester's `metadata`, or in the `result` that its device gets; `None` if it is nothing of this.
    #[must_use]
    pub fn of(part: Option<&Payload>) -> Option<Self> {
        #[derive(Deserialize)]
        struct Parts {
            #[serde(default)]
            taken: Option<OutputTaken>,
            #[serde(default)]
            input: Option<Input>,
        }

        let Keyed { flightdeck: Parts { taken, input } } =
            part?.parse_carried::<Keyed<Parts>>().ok()?;
        match (taken, input) {
            (Some(taken), None) => Some(Self::Taken(taken)),
            (None, Some(input)) => Some(Self::Input(input)),
            _ => None,
        }
    }

    /// The `metadata` of a requester's HEARTBEAT; the `result` of the server's to the device.
    #[must_use]
    pub fn to_payload(&self) -> Payload {
        match self {
            Self::Taken(taken) => keyed(0, |object| object.value("taken", taken)),
            Self::Input(input) => keyed(input.data.payload().len(), |object| {
                input.write(object.key("input"));
            }),
        }
    }

    /// The step that it is about.
    #[must_use]
    pub const fn step(&self) -> u32 {
        match self {
            Self::Taken(taken) => taken.step,
            Self::Input(input) => input.step,
        }
    }
}

/// An object under the extension's key.
fn keyed(room: usize, write: impl FnOnce(&mut codec::Object<'_>)) -> Payload {
    let mut out = Vec::with_capacity(room + CHUNK_ROOM);
    write_keyed(&mut out, write);
    Payload::trusted(out)
}

fn write_keyed(out: &mut Vec<u8>, write: impl FnOnce(&mut codec::Object<'_>)) {
    let mut outer = codec::Object::open(out);
    let mut object = codec::Object::open(outer.key("flightdeck"));
    write(&mut object);
    object.close();
    outer.close();
}

#[cfg(test)]
mod tests;
