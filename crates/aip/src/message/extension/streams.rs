//! What the extension adds to a task's streams: what a requester asks for, chunks of output and of input, and how far
//! each end has taken them.
//!
//! Upstream is what a device says of a COMMAND: output, and how much of the input it took. Downstream is what the
//! requester says: how much of the output it took, and input. The server passes both on.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize};

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
        self.output || self.input
    }
}

/// What a COMMAND says of its streams, as its `result`.
#[derive(Serialize, Deserialize)]
struct WithStreams {
    streams: Streams,
}

impl Streams {
    /// The `result` of a COMMAND.
    #[must_use]
    pub fn to_result(&self) -> Option<Payload> {
        Payload::from_value(&Keyed { flightdeck: WithStreams { streams: *self } }).ok()
    }

    /// What a COMMAND says of its streams; nothing, usually.
    #[must_use]
    pub fn of(result: Option<&Payload>) -> Option<Self> {
        result?.parse::<Keyed<WithStreams>>().ok().map(|keyed| keyed.flightdeck.streams)
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

/// Some bytes of a stream, as JSON has them: whoever passes them on does not look into them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// A JSON string: the text itself.
    Text(Payload),
    /// A JSON string: base64 of bytes that are no text.
    Base64(Payload),
}

/// Of which size an escape is that JSON needs for a control character without a short one.
const LONG_ESCAPE: usize = 6;

impl Data {
    /// These bytes: as text where they are UTF-8, unless that would need more room than base64.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let is_long = |byte: &&u8| {
            **byte < b' ' && !matches!(**byte, b'\n' | b'\r' | b'\t' | b'\x08' | b'\x0c')
        };
        let text = std::str::from_utf8(bytes).ok().filter(|_| {
            let long = bytes.iter().filter(is_long).count();
            long * LONG_ESCAPE <= bytes.len() / 3
        });
        match text {
            Some(text) => Self::Text(Payload::string(text)),
            None => {
                let mut json = String::with_capacity(bytes.len().div_ceil(3) * 4 + 2);
                json.push('"');
                STANDARD.encode_string(bytes, &mut json);
                json.push('"');
                Self::Base64(Payload::trusted(json.into_bytes()))
            }
        }
    }

    /// How many bytes they are; `None` if they cannot be read.
    #[must_use]
    pub fn len(&self) -> Option<u64> {
        let length = match self {
            Self::Text(text) => text_length(inner(text)?)?,
            Self::Base64(coded) => {
                let coded = inner(coded)?;
                let padding = coded.iter().rev().take(2).take_while(|byte| **byte == b'=').count();
                (coded.len() % 4 == 0).then_some(coded.len() / 4 * 3 - padding.min(coded.len()))?
            }
        };
        u64::try_from(length).ok()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }

    /// The bytes; `None` if they cannot be read.
    #[must_use]
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        match self {
            Self::Text(text) => text.parse::<String>().ok().map(String::into_bytes),
            Self::Base64(coded) => STANDARD.decode(inner(coded)?).ok(),
        }
    }

    const fn key(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Base64(_) => "base64",
        }
    }

    const fn payload(&self) -> &Payload {
        match self {
            Self::Text(payload) | Self::Base64(payload) => payload,
        }
    }

    fn read<E: de::Error>(text: Option<Payload>, base64: Option<Payload>) -> Result<Self, E> {
        let is_string = |payload: &Payload| payload.as_bytes().first() == Some(&b'"');
        let data = match (text, base64) {
            (Some(text), None) => Self::Text(text),
            (None, Some(coded)) => Self::Base64(coded),
            (None, None) => Self::Text(Payload::string("")),
            (Some(_), Some(_)) => return Err(E::custom("a chunk has either text or base64")),
        };
        match is_string(data.payload()) {
            true => Ok(data),
            false => Err(E::custom("the bytes of a chunk are a string")),
        }
    }
}

/// What stands between the quotes of a JSON string.
fn inner(payload: &Payload) -> Option<&[u8]> {
    payload.as_bytes().strip_prefix(b"\"")?.strip_suffix(b"\"")
}

/// How many bytes of UTF-8 a JSON string is, from between its quotes; `None` of one that is no Unicode.
fn text_length(mut rest: &[u8]) -> Option<usize> {
    let mut length = 0;
    while let Some(at) = rest.iter().position(|byte| *byte == b'\\') {
        length += at;
        let (count, escape) = escaped(rest.get(at + 1..)?)?;
        length += count;
        rest = rest.get(at + 1 + escape..)?;
    }
    Some(length + rest.len())
}

/// Of an escape behind its backslash: how many bytes it stands for, and how many it takes.
fn escaped(rest: &[u8]) -> Option<(usize, usize)> {
    if *rest.first()? != b'u' {
        return Some((1, 1));
    }
    let unit = |digits: &[u8]| u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
    match unit(rest.get(1..5)?)? {
        0..0x80 => Some((1, 5)),
        0x80..0x800 => Some((2, 5)),
        0xD800..0xDC00 => {
            let low = rest.get(5..)?.strip_prefix(b"\\u")?;
            (0xDC00..0xE000).contains(&unit(low.get(..4)?)?).then_some((4, 11))
        }
        0xDC00..0xE000 => None,
        _ => Some((3, 5)),
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

impl Upstream {
    /// What a device's HEARTBEAT says of streams; `None` of one that says nothing of them.
    #[must_use]
    pub fn of(metadata: Option<&Payload>) -> Option<Self> {
        metadata?.parse_carried::<Keyed<UpParts>>().ok()?.flightdeck.upstream()
    }

    /// The `metadata` of a HEARTBEAT.
    #[must_use]
    pub fn to_metadata(&self) -> Payload {
        keyed(self.room(), |object| self.write(object))
    }

    fn room(&self) -> usize {
        /// What a chunk takes beside its bytes, about.
        const CHUNK_ROOM: usize = 160;

        match self {
            Self::Chunks(chunks) => {
                chunks.iter().map(|chunk| CHUNK_ROOM + chunk.data.payload().len()).sum()
            }
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

impl Passed {
    /// The `result` of a HEARTBEAT to the requester.
    #[must_use]
    pub fn to_result(&self) -> Payload {
        keyed(self.upstream.room(), |object| {
            object.string("task", &self.task);
            object.number("step", self.step.into());
            self.upstream.write(object);
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
    let mut out = Vec::with_capacity(room + 160);
    let mut outer = codec::Object::open(&mut out);
    let mut object = codec::Object::open(outer.key("flightdeck"));
    write(&mut object);
    object.close();
    outer.close();
    Payload::trusted(out)
}

/// Cuts bytes so that no character is in two parts: the first part, which may be all of them.
#[must_use]
pub fn whole_characters(bytes: &[u8]) -> &[u8] {
    let cut = match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        _ => bytes.len(),
    };
    bytes.get(..cut).unwrap_or(bytes)
}

#[cfg(test)]
mod tests;
