//! A task, as it was accepted, and what was done for it: what agents decide over and the store keeps.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use aip::message::{Feature, Features, OnDisconnect, Streams, exit_code};
use aip::{CallId, ClientId, ClientType, Payload, RequestId, ResultStatus, SessionId, TaskName};
use jiff::Timestamp;
use uuid::Uuid;

use super::Incarnation;

/// The server's own id of a task, unique for ever: the journal and the HTTP API know it by this one. Of two
/// tasks of one server the later one has the greater id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TaskId(Uuid);

impl TaskId {
    /// No task's.
    pub(crate) const NONE: Self = Self(Uuid::nil());

    pub(crate) const fn new(id: Uuid) -> Self {
        Self(id)
    }

    pub(crate) const fn uuid(&self) -> Uuid {
        self.0
    }

    /// Its 16 bytes: their order is that of the tasks.
    pub(crate) const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    pub(crate) const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    #[cfg(test)]
    pub(crate) fn fresh() -> Self {
        Self(Uuid::now_v7())
    }
}

/// Hashes what nobody else can choose and whose low half is random, such as a [`TaskId`].
#[derive(Debug, Default)]
pub(crate) struct LowHalf(u64);

impl Hasher for LowHalf {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for eight in bytes.rchunks(8).take(1) {
            self.0 = eight.iter().fold(self.0, |hash, byte| hash << 8 | u64::from(*byte));
        }
    }

    fn write_u128(&mut self, id: u128) {
        // Its low half is the random one.
        self.0 = id as u64;
    }
}

impl Hash for TaskId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(self.0.as_u128());
    }
}

impl FromStr for TaskId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        Uuid::from_str(text).map(Self)
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What makes two requests the same: SHA-256 over all that was asked for. As text, in hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestHash([u8; 32]);

impl RequestHash {
    /// What no request has: stands for one that cannot be read any more.
    pub(crate) const NONE: Self = Self([0; 32]);

    /// Of a digest.
    #[must_use]
    pub const fn new(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// Of its text.
    pub(crate) fn of_text(text: &str) -> Option<Self> {
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let byte = |[high, low]: &[u8; 2]| u8::try_from(digit(*high)? << 4 | digit(*low)?).ok();
        let mut digest = [0; 32];
        if pairs.len() != digest.len() || !rest.is_empty() {
            return None;
        }
        for (to, pair) in digest.iter_mut().zip(pairs) {
            *to = byte(pair)?;
        }
        Some(Self(digest))
    }
}

impl fmt::Display for RequestHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digit = |half: u8| char::from_digit(half.into(), 16).unwrap_or_default();
        let mut text = String::with_capacity(self.0.len() * 2);
        for byte in self.0 {
            text.extend([digit(byte >> 4), digit(byte & 0xf)]);
        }
        f.write_str(&text)
    }
}

/// Who wants a task, by name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Requester {
    /// A client.
    Client(ClientId),
    /// A user of the HTTP API, who has the key of this name.
    Http(Arc<str>),
}

impl fmt::Display for Requester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(id) => id.fmt(f),
            Self::Http(key) => write!(f, "HTTP, key {key}"),
        }
    }
}

/// The key that a task was submitted with: its names, never the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyName {
    /// The label.
    pub name: Arc<str>,
    /// The public id of a created key; the shared key has none.
    pub id: Option<Arc<str>>,
}

impl KeyName {
    /// The public id or, of the shared key, the label.
    pub(crate) fn public(&self) -> &Arc<str> {
        self.id.as_ref().unwrap_or(&self.name)
    }
}

/// A task, as it was accepted. It never changes.
#[derive(Debug, PartialEq, Eq)]
pub struct Task {
    /// The server's own id.
    pub id: TaskId,
    /// The wire's name for this run.
    pub session_id: SessionId,
    /// The label for people.
    pub task_name: TaskName,
    /// What to do.
    pub request: String,
    /// Who wants it.
    pub requester: Requester,
    /// Which device does it.
    pub device: ClientId,
    /// Which section of a Python device's `mcp.yaml` its commands are for.
    pub agent_name: String,
    /// Longest time for one of its commands.
    pub command_timeout: Duration,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// The key that it was submitted with.
    pub key: KeyName,
    /// What else was agreed on when it was accepted.
    pub terms: Terms,
}

/// What was agreed on when a task was accepted: what a server that comes back must know of its requester and device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Terms {
    /// The requester's identity; the HTTP API has none.
    pub requester: Option<Incarnation>,
    /// The requester's role.
    pub role: Option<ClientType>,
    /// From which address it came.
    pub address: Option<SocketAddr>,
    /// The device's identity.
    pub device: Incarnation,
    /// The public id of the API key that the device had shown; the shared key has none.
    pub device_key: Option<Arc<str>>,
    /// What the requester was granted.
    pub features: Features,
    /// What becomes of it when the requester's connection is lost.
    pub on_disconnect: OnDisconnect,
    /// Whether it wants no time limit but those that the server's owner has set.
    pub no_time_limit: bool,
    /// The requester's id of it, by which it is known when it is sent again.
    pub request_id: Option<RequestId>,
    /// What was asked for with that id.
    pub request_hash: Option<RequestHash>,
    /// The streams that the requester gets of its commands.
    pub streams: Option<Streams>,
}

impl Terms {
    /// Whether its outcome is kept until the requester acknowledges it.
    #[must_use]
    pub const fn is_acknowledged(&self) -> bool {
        self.features.has(Feature::Ack)
    }
}

/// One tool call of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Which tool.
    pub tool_name: String,
    /// Its arguments: a JSON object.
    pub parameters: Option<Payload>,
    /// Whether the tool only observes.
    pub observes: bool,
    /// The wire's id of the call, once it is sent.
    pub call_id: Option<CallId>,
}

/// How a tool call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallStatus {
    /// The tool ran.
    Success,
    /// The tool could not run, or said that it failed.
    Failure,
    /// A call before it failed.
    Skipped,
    /// The device said nothing.
    None,
}

/// What became of a tool call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallResult {
    /// How it ended.
    pub status: CallStatus,
    /// What went wrong, for people.
    pub error: Option<String>,
    /// What the tool returned.
    pub result: Option<Payload>,
    /// Where the tool lives.
    pub namespace: Option<String>,
    /// The wire's id of the call.
    pub call_id: Option<CallId>,
}

/// What a result takes of memory and of a message beside its value and its error, about, in bytes.
const RESULT_BYTES: usize = 160;

impl CallResult {
    /// A call that failed, and why.
    #[must_use]
    pub fn failure(call_id: Option<CallId>, error: impl Into<String>) -> Self {
        let error = Some(error.into());
        Self { status: CallStatus::Failure, error, result: None, namespace: None, call_id }
    }

    /// With what the command that it ran exited, where that is no 0.
    #[must_use]
    pub fn nonzero_exit(&self) -> Option<i64> {
        self.result.as_ref().and_then(exit_code).filter(|code| *code != 0)
    }

    /// What it takes of a message, about, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        RESULT_BYTES + self.error.as_ref().map_or(0, String::len) + self.value_bytes()
    }

    /// The size of its value, in bytes.
    pub(crate) fn value_bytes(&self) -> usize {
        self.result.as_ref().map_or(0, Payload::len)
    }

    /// Whether the calls behind it do not run.
    pub(crate) const fn is_bad(&self) -> bool {
        matches!(self.status, CallStatus::Failure | CallStatus::Skipped)
    }
}

/// One step of a task that is over: what was asked of the device, and what became of it.
#[derive(Debug, Clone)]
pub struct Step {
    /// What was asked.
    pub calls: Arc<[Call]>,
    /// One result for each call, in the same order.
    pub results: Arc<[CallResult]>,
    /// Whether it only asked for the device's tools.
    pub is_discovery: bool,
}

/// What a completed task returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finish {
    /// The results of all its steps.
    Results,
    /// A value of the agent's own.
    Value(Payload),
}

impl From<ResultStatus> for CallStatus {
    fn from(status: ResultStatus) -> Self {
        match status {
            ResultStatus::Success => Self::Success,
            ResultStatus::Failure => Self::Failure,
            ResultStatus::Skipped => Self::Skipped,
            ResultStatus::None => Self::None,
        }
    }
}

impl From<CallStatus> for ResultStatus {
    fn from(status: CallStatus) -> Self {
        match status {
            CallStatus::Success => Self::Success,
            CallStatus::Failure => Self::Failure,
            CallStatus::Skipped => Self::Skipped,
            CallStatus::None => Self::None,
        }
    }
}

impl From<aip::ActionResult> for CallResult {
    fn from(result: aip::ActionResult) -> Self {
        let aip::ActionResult { status, error, result, namespace, call_id } = result;
        Self { status: status.into(), error, result, namespace, call_id }
    }
}

/// The namespace that UFO's Linux devices and ours have in common, as it stands before a tool's name.
const SHARED_NAMESPACE: &str = "BashExecutor::";

impl Call {
    /// The call, as an action of a COMMAND. A device that knows no namespaces, as UFO's do not, is told the plain
    /// name.
    pub(crate) fn to_command(&self, knows_namespaces: bool) -> aip::Command {
        let name = if knows_namespaces { &self.tool_name } else { self.plain_name() };
        aip::Command {
            tool_name: name.to_owned(),
            parameters: self.parameters.clone(),
            tool_type: self.tool_type(),
            call_id: self.call_id.clone(),
        }
    }

    /// The tool's name without the namespace that UFO's Linux devices and ours have in common.
    pub(crate) fn plain_name(&self) -> &str {
        self.tool_name.strip_prefix(SHARED_NAMESPACE).unwrap_or(&self.tool_name)
    }

    /// The wire's word for whether it only observes.
    pub(crate) const fn tool_type(&self) -> aip::ToolType {
        if self.observes { aip::ToolType::DataCollection } else { aip::ToolType::Action }
    }
}
