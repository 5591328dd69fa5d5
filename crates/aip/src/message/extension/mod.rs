//! The opt-in extension `flightdeck`: what stands under that key in a client's `metadata` and in a
//! server's `result`. A peer that did not ask for it never sees any of it.

mod resume;
mod streams;
mod task;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{ActionResult, ClientType, Command, exit_code};
use crate::payload::{Object, Payload};

pub use resume::{
    Held, HeldState, Instruction, JournalId, Mismatch, Resume, ResumeRefused, Resumed,
};
pub use streams::{
    Channel, Chunk, CommandNote, Data, Downstream, Input, InputTaken, MAX_CHUNK_BYTES,
    MAX_WINDOW_BYTES, MIN_WINDOW_BYTES, OutputTaken, Passed, ReadSpool, Spooled, Streams, Upstream,
    whole_characters,
};
pub use task::{
    Accepted, Cancel, CancelAfter, OnDisconnect, Refused, ResultAck, Taken, TaskRefused,
    TaskSettings, Word,
};

/// The version of the extension.
pub const VERSION: u32 = 1;

/// One thing that a peer can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", from = "String")]
pub enum Feature {
    /// A line for each step of a task, as it happens.
    Progress,
    /// A requester gets outcomes until it acknowledges them; a device gets an answer to its results.
    Ack,
    /// A requester may send a TASK again.
    RequestId,
    /// A requester may cancel; a device confirms a cancel.
    Cancel,
    /// A requester may leave its tasks running.
    Detach,
    /// A device keeps a journal, and takes over its old connection.
    Resume,
    /// A requester may ask for complete output; a device can send it.
    Output,
    /// A requester may send standard input; a device can take it.
    Input,
    /// A device takes the argument `env` of `execute_command`.
    Env,
    /// A feature that this version does not know.
    Unknown,
}

impl From<String> for Feature {
    fn from(word: String) -> Self {
        match word.to_ascii_lowercase().as_str() {
            "progress" => Self::Progress,
            "ack" => Self::Ack,
            "request_id" => Self::RequestId,
            "cancel" => Self::Cancel,
            "detach" => Self::Detach,
            "resume" => Self::Resume,
            "output" => Self::Output,
            "input" => Self::Input,
            "env" => Self::Env,
            _ => Self::Unknown,
        }
    }
}

/// Some of the features: what one connection was granted, or one task has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features(u16);

impl Features {
    const ALL: [Feature; 9] = [
        Feature::Progress,
        Feature::Ack,
        Feature::RequestId,
        Feature::Cancel,
        Feature::Detach,
        Feature::Resume,
        Feature::Output,
        Feature::Input,
        Feature::Env,
    ];

    /// Those of the features asked for that a client of this role is granted: what is not known, not for the role, or
    /// asked for without what it needs is left out.
    #[must_use]
    pub fn granted(asked: &[Feature], role: ClientType) -> Self {
        let is_device = role == ClientType::Device;
        let has_ack = asked.contains(&Feature::Ack);
        let may = |feature| match feature {
            Feature::Progress | Feature::Ack => true,
            Feature::Cancel => has_ack,
            Feature::RequestId | Feature::Detach => has_ack && !is_device,
            Feature::Resume => has_ack && is_device,
            Feature::Output => has_ack || is_device,
            Feature::Input => asked.contains(&Feature::Output) && (has_ack || is_device),
            Feature::Env => is_device,
            Feature::Unknown => false,
        };
        let granted = Self::ALL.into_iter().filter(|one| asked.contains(one) && may(*one));
        Self(granted.fold(0, |bits, feature| bits | Self::bit(feature)))
    }

    const fn bit(feature: Feature) -> u16 {
        match feature {
            Feature::Progress => 1,
            Feature::Ack => 2,
            Feature::RequestId => 4,
            Feature::Cancel => 8,
            Feature::Detach => 16,
            Feature::Resume => 32,
            Feature::Output => 64,
            Feature::Input => 128,
            Feature::Env => 256,
            Feature::Unknown => 0,
        }
    }

    /// Whether this one is among them.
    #[must_use]
    pub const fn has(self, feature: Feature) -> bool {
        self.0 & Self::bit(feature) != 0
    }

    /// One after the other.
    #[must_use]
    pub fn list(self) -> Vec<Feature> {
        Self::ALL.into_iter().filter(|feature| self.has(*feature)).collect()
    }
}

impl FromIterator<Feature> for Features {
    /// Exactly these, as they were [granted](Self::granted) before; one that is not known is left out.
    fn from_iter<T: IntoIterator<Item = Feature>>(features: T) -> Self {
        Self(features.into_iter().fold(0, |bits, feature| bits | Self::bit(feature)))
    }
}

/// What a client asks for in REGISTER, as `metadata.flightdeck`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extension {
    /// The version that the client speaks.
    pub version: u32,
    /// What it asks for.
    #[serde(default)]
    pub features: Vec<Feature>,
    /// Of a device: how many tasks made only of `execute_command` and the tools of `Files` it takes at the same time. One
    /// that does not say takes one, as Python's do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_once: Option<u32>,
    /// Who it is, and what it still has: from every client that asks for `ack`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<Resume>,
}

/// The most lines that are kept of one [`Output`].
const MAX_LINES: usize = 100;

/// The most bytes that are kept of one line of an [`Output`].
const MAX_LINE_BYTES: usize = 8 * 1024;

/// What a tool tells while it runs, as `metadata.flightdeck.output` of a device's HEARTBEAT with status
/// `continue`, the `session_id` and, as `prev_response_id`, the id of the COMMAND.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// The lines, oldest first.
    pub lines: Vec<String>,
}

/// What the server grants, in the confirmation's `result.flightdeck`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Confirmed {
    /// The version that the server speaks.
    pub version: u32,
    /// What it grants.
    #[serde(default)]
    pub features: Vec<Feature>,
    /// The server's name and version.
    #[serde(default)]
    pub server: String,
    /// The server's id of this connection.
    #[serde(default)]
    pub connection: String,
    /// The hash of the public key that the server's TLS certificate will have next (SHA-256 of the SPKI, base64url
    /// without `=`): who knows the server by its key takes that one too from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_key: Option<String>,
    /// What an `ack` client is told of its identity.
    #[serde(default, flatten, skip_serializing_if = "Option::is_none")]
    pub resumed: Option<Resumed>,
}

/// How a step stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepStatus {
    /// Waiting for its turn on the device.
    Queued,
    /// Sent to the device.
    Running,
    /// The tool ran.
    Success,
    /// The tool could not run, or said that it failed.
    Failure,
    /// A step before it failed.
    Skipped,
    /// A status that this version does not know.
    #[serde(other)]
    None,
}

/// What a progress message says of a step, as `result.flightdeck.step`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The number of the step, from 1; 0 while the task waits.
    pub n: u32,
    /// The tool.
    #[serde(default)]
    pub tool_name: String,
    /// Its arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Payload>,
    /// How the step stands.
    pub status: StepStatus,
    /// The beginning of what it returned, or its error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_head: Option<String>,
    /// With what the command that it ran exited, where that is no 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    /// Milliseconds since the command was sent.
    pub elapsed_ms: u64,
}

/// The key under which the extension stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Keyed<T> {
    flightdeck: T,
}

/// The same where it may be missing.
#[derive(Deserialize)]
struct Optional<T> {
    flightdeck: Option<T>,
}

/// The most characters of what a text says of a part that cannot be read.
const MAX_FAULT_CHARS: usize = 200;

/// Reads a part of the extension; `null` is none.
fn part<T: DeserializeOwned>(name: &str, value: Option<&Payload>) -> Result<Option<T>, String> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(None) };
    let fault = |error: serde_json::Error| {
        format!("{name}: {}", error.to_string().chars().take(MAX_FAULT_CHARS).collect::<String>())
    };
    value.parse().map(Some).map_err(fault)
}

#[derive(Serialize, Deserialize)]
struct WithOutput {
    output: Output,
}

#[derive(Serialize, Deserialize)]
struct WithStep {
    step: Step,
}

impl Extension {
    /// What a client asks for, read out of its `metadata`; `None` for a legacy peer, which has no such key.
    ///
    /// # Errors
    /// Which part of it has the wrong shape.
    pub fn of(metadata: Option<&Payload>) -> Result<Option<Self>, String> {
        #[derive(Deserialize)]
        struct Parts {
            version: Option<Payload>,
            features: Option<Payload>,
            at_once: Option<Payload>,
            resume: Option<Payload>,
        }

        let Some(metadata) = metadata else { return Ok(None) };
        // What is no object at all is somebody else's to refuse.
        let keyed = metadata.parse::<Object<Optional<Payload>>>().ok();
        let Some(asked) = keyed.and_then(|Object(keyed)| keyed.flightdeck) else {
            return Ok(None);
        };
        let parts = part::<Object<Parts>>("", Some(&asked))?.map(|Object(parts)| parts);
        let Some(Parts { version, features, at_once, resume }) = parts else { return Ok(None) };
        Ok(Some(Self {
            version: part(".version", version.as_ref())?.ok_or(".version is missing")?,
            features: part(".features", features.as_ref())?.unwrap_or_default(),
            at_once: part(".at_once", at_once.as_ref())?,
            resume: Resume::of(resume.as_ref())?,
        }))
    }
}

impl Output {
    /// A HEARTBEAT's `metadata`.
    #[must_use]
    pub fn to_metadata(&self) -> Option<Payload> {
        Payload::from_value(&Keyed { flightdeck: WithOutput { output: self.clone() } }).ok()
    }

    /// The output in a HEARTBEAT, cut at its bounds; `None` in one that only says that its sender lives.
    #[must_use]
    pub fn of(metadata: Option<&Payload>) -> Option<Self> {
        let keyed = metadata?.parse::<Keyed<WithOutput>>().ok()?;
        let mut lines = keyed.flightdeck.output.lines;
        lines.truncate(MAX_LINES);
        for line in &mut lines {
            let end =
                (0..=MAX_LINE_BYTES.min(line.len())).rev().find(|at| line.is_char_boundary(*at));
            line.truncate(end.unwrap_or(0));
        }
        Some(Self { lines })
    }
}

impl Confirmed {
    /// The confirmation's `result`.
    #[must_use]
    pub fn to_result(&self) -> Option<Payload> {
        Payload::from_value(&Keyed { flightdeck: self }).ok()
    }

    /// What a server granted, read out of its confirmation; `None` from a Python server.
    #[must_use]
    pub fn of(result: Option<&Payload>) -> Option<Self> {
        result?.parse::<Keyed<Self>>().ok().map(|keyed| keyed.flightdeck)
    }
}

impl Step {
    /// A progress message's `result`.
    #[must_use]
    pub fn to_result(&self) -> Option<Payload> {
        Payload::from_value(&Keyed { flightdeck: WithStep { step: self.clone() } }).ok()
    }

    /// The step of a progress message.
    #[must_use]
    pub fn of(result: Option<&Payload>) -> Option<Self> {
        result?.parse::<Keyed<WithStep>>().ok().map(|keyed| keyed.flightdeck.step)
    }

    /// A step that was sent just now.
    #[must_use]
    pub fn running(n: u32, command: &Command) -> Self {
        Self {
            n,
            tool_name: command.tool_name.clone(),
            parameters: command.parameters.clone(),
            status: StepStatus::Running,
            result_head: None,
            exit_code: None,
            elapsed_ms: 0,
        }
    }

    /// The same step with what became of it; at most `head` characters of that are kept.
    #[must_use]
    pub fn ended(self, result: &ActionResult, elapsed_ms: u64, head: usize) -> Self {
        let status = match result.status {
            super::ResultStatus::Success => StepStatus::Success,
            super::ResultStatus::Failure => StepStatus::Failure,
            super::ResultStatus::Skipped => StepStatus::Skipped,
            super::ResultStatus::None => StepStatus::None,
        };
        let text = result.error.as_deref().or(result.result.as_ref().map(Payload::as_str));
        let result_head = text.map(|text| text.chars().take(head).collect());
        let exit_code = result.result.as_ref().and_then(exit_code).filter(|code| *code != 0);
        Self { status, result_head, exit_code, elapsed_ms, ..self }
    }
}
