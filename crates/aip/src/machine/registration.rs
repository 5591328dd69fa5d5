//! The first exchange on a connection: REGISTER and its confirmation or refusal.

use serde::Deserialize;

use crate::close::CloseCode;
use crate::codec::DecodeError;
use crate::id::{ClientId, ResponseId};
use crate::message::{
    ClientMessage, ClientMessageType, ClientType, Confirmed, Extension, Mismatch, ServerMessage,
    ServerMessageType, Status,
};
use crate::payload::{self, Payload};

/// The platform of a device that does not say.
const DEFAULT_PLATFORM: &str = "windows";

/// The most characters of a platform's name; the rest is cut.
const MAX_PLATFORM_CHARS: usize = 32;

/// Who registers, as read off a valid REGISTER.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// Who it says it is.
    pub client_id: ClientId,
    /// Its role.
    pub client_type: ClientType,
    /// The device that a constellation wants to work with.
    pub target_id: Option<ClientId>,
    /// A device's platform.
    pub platform: String,
    /// A device's facts: a JSON object.
    pub system_info: Option<Payload>,
    /// What it asks for of the extension; `None` for a legacy peer.
    pub extension: Option<Extension>,
}

/// Why a registration is refused. The texts are the Python server's, where it has one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The first frame could not be read.
    #[error(transparent)]
    Unreadable(#[from] DecodeError),
    /// The first frame was binary.
    #[error("First message must be a registration message, as text")]
    Binary,
    /// No `client_id`.
    #[error("Client ID is required for WebSocket registration")]
    ClientIdRequired,
    /// The first message was of another type.
    #[error("First message must be a registration message")]
    NotRegistration,
    /// The metadata has a field of the wrong shape.
    #[error("Invalid message: metadata: {0}")]
    Metadata(String),
    /// A constellation's target is no connected device.
    #[error("Target device '{0}' is not connected")]
    TargetNotConnected(ClientId),
    /// The id is taken by a live connection.
    #[error("client_id '{0}' is already registered; duplicate registrations are not allowed")]
    AlreadyRegistered(ClientId),
    /// The key does not let its holder register so.
    #[error("{0}")]
    NotAllowed(String),
    /// Nothing came in time.
    #[error("No registration within {0} s")]
    TooLate(u64),
    /// The server is going away.
    #[error("The server is shutting down")]
    ShuttingDown,
    /// What it asks for of the extension, or says of its identity, has the wrong shape.
    #[error("Invalid message: metadata.flightdeck{0}")]
    BadExtension(String),
    /// It names another server's memory, or one that is no more.
    #[error("This server's store is '{0}': come with what you hold for that one, or without")]
    OtherStore(String),
    /// Its resume key is not known.
    #[error("The resume key is not known: forget it, and come without")]
    UnknownKey,
    /// A newer connection of it was here before.
    #[error("A newer connection of this client was here before: its number was {0}")]
    Outdated(u64),
    /// It is who it says, but another client has its id now.
    #[error("client_id '{0}' is in use by another client")]
    InUse(ClientId),
    /// The device of this id is away, and the newcomer has another key.
    #[error("Device '{0}' is expected back")]
    ExpectedBack(ClientId),
    /// A newer connection of it came before this one was confirmed.
    #[error("A newer connection of this client came")]
    Overtaken,
    /// What it has to be told could not be stored in time.
    #[error("The server could not store that you are here; try again later")]
    NotStored,
    /// Its key has as many clients, or as much that was not fetched, as it may.
    #[error("This key has {0}, which is as much as may be; try again later")]
    TooMuch(String),
}

impl Refusal {
    /// How to close the connection after the refusal was told.
    #[must_use]
    pub const fn close_code(&self) -> CloseCode {
        match self {
            Self::Unreadable(DecodeError::TooBig { .. }) => CloseCode::TOO_BIG,
            Self::TargetNotConnected(_)
            | Self::OtherStore(_)
            | Self::UnknownKey
            | Self::InUse(_)
            | Self::ExpectedBack(_) => CloseCode::NORMAL,
            Self::Outdated(_) | Self::Overtaken => CloseCode::REPLACED,
            Self::TooMuch(_) | Self::NotStored => CloseCode::OVERLOADED,
            Self::TooLate(_) => CloseCode::NO_REGISTRATION,
            Self::ShuttingDown => CloseCode::GOING_AWAY,
            _ => CloseCode::POLICY,
        }
    }

    /// Whether the same may be taken later, as the ERROR to a client with *ack* says.
    #[must_use]
    pub const fn may_retry(&self) -> bool {
        matches!(self, Self::TooMuch(_) | Self::NotStored)
    }

    /// What the client shall come with instead, if that would help.
    #[must_use]
    pub fn mismatch(&self) -> Option<Mismatch> {
        let none = Mismatch::default();
        match self {
            Self::OtherStore(store) => Some(Mismatch { store: Some(store.clone()), ..none }),
            Self::UnknownKey => Some(Mismatch { key: Some("unknown".to_owned()), ..none }),
            Self::Outdated(n) => Some(Mismatch { n: Some(*n), ..none }),
            _ => None,
        }
    }
}

/// What REGISTER carries in its `metadata`, as far as it matters here.
#[derive(Debug, Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    platform: Option<String>,
    #[serde(default, deserialize_with = "payload::optional_object")]
    system_info: Option<Payload>,
}

impl Registration {
    /// Reads the first message of a connection.
    ///
    /// # Errors
    /// When it is no REGISTER, names no client, or its metadata has the wrong shape.
    pub fn read(message: ClientMessage) -> Result<Self, Refusal> {
        let client_id = message.client_id.ok_or(Refusal::ClientIdRequired)?;
        if message.kind != ClientMessageType::Register {
            return Err(Refusal::NotRegistration);
        }
        let extension = Extension::of(message.metadata.as_ref()).map_err(Refusal::BadExtension)?;
        let metadata = match message.metadata {
            Some(metadata) => metadata.parse::<Metadata>().map_err(|error| {
                Refusal::Metadata(error.to_string().chars().take(200).collect())
            })?,
            None => Metadata::default(),
        };
        let constellation = message.client_type == ClientType::Constellation;
        Ok(Self {
            client_id,
            client_type: message.client_type,
            target_id: message.target_id.filter(|_| constellation),
            platform: platform(metadata.platform),
            system_info: metadata.system_info,
            extension,
        })
    }
}

fn platform(given: Option<String>) -> String {
    let name = given.filter(|name| !name.is_empty()).unwrap_or_else(|| DEFAULT_PLATFORM.to_owned());
    name.to_lowercase().chars().filter(|c| !c.is_control()).take(MAX_PLATFORM_CHARS).collect()
}

/// The server's answer to a good registration.
#[must_use]
pub fn confirm(
    response_id: ResponseId,
    timestamp: String,
    granted: Option<&Confirmed>,
) -> ServerMessage {
    ServerMessage {
        response_id: Some(response_id),
        timestamp: Some(timestamp),
        result: granted.and_then(Confirmed::to_result),
        ..ServerMessage::new(ServerMessageType::Heartbeat, Status::Ok)
    }
}

/// Reads the server's first reply: what it granted of the extension, `None` from a Python server.
///
/// # Errors
/// The server's text, when it refused.
pub fn read_confirmation(reply: &ServerMessage) -> Result<Option<Confirmed>, String> {
    if reply.status == Status::Ok {
        return Ok(Confirmed::of(reply.result.as_ref()));
    }
    Err(reply.error.clone().unwrap_or_else(|| "the server gave no reason".to_owned()))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::codec::Wire;
    use crate::message::Feature;

    fn read(text: &'static str) -> Result<Registration, Refusal> {
        Registration::read(ClientMessage::decode(&Bytes::from_static(text.as_bytes()))?)
    }

    #[test]
    fn a_python_device_needs_only_its_id() {
        let registration = read(r#"{"type":"register","client_id":"d"}"#).unwrap();
        assert_eq!(registration.client_type, ClientType::Device);
        assert_eq!(registration.platform, "windows");
        assert_eq!(registration.extension, None);
    }

    #[test]
    fn the_order_of_the_checks_is_the_protocols() {
        assert_eq!(read(r#"{"type":"task"}"#), Err(Refusal::ClientIdRequired));
        assert_eq!(read(r#"{"type":"task","client_id":"d"}"#), Err(Refusal::NotRegistration));
        assert_eq!(read(r#"{"type":"teleport","client_id":"d"}"#), Err(Refusal::NotRegistration));
        let odd = read(r#"{"type":"register","client_id":"d","metadata":{"platform":5}}"#);
        assert!(matches!(odd, Err(Refusal::Metadata(_))), "{odd:?}");
    }

    #[test]
    fn the_extension_is_read_and_what_is_unknown_of_it_is_no_fault() {
        let text = r#"{"type":"register","client_id":"d","target_id":"x","metadata":{"platform":"Linux",
            "flightdeck":{"version":3,"features":["progress","telepathy"],"new":1}}}"#;
        let registration = read(text).unwrap();
        let features = registration.extension.unwrap().features;
        assert_eq!(features, [Feature::Progress, Feature::Unknown]);
        assert_eq!(registration.platform, "linux");
        assert_eq!(registration.target_id, None, "a device has no target");
    }

    #[test]
    fn an_extension_of_the_wrong_shape_is_refused_by_the_name_of_the_part() {
        let metadata = |flightdeck: &str| {
            let text = format!(
                r#"{{"type":"register","client_id":"d","metadata":{{"flightdeck":{flightdeck}}}}}"#
            );
            Registration::read(ClientMessage::decode(&Bytes::from(text)).unwrap())
        };
        let resume = |resume: &str| metadata(&format!(r#"{{"version":1,"resume":{resume}}}"#));
        let long = format!(r#"{{"journal":"f.b","n":1,"key":"{}"}}"#, "k".repeat(129));
        for (refused, part) in [
            (metadata("5"), ""),
            (metadata("{}"), ".version is missing"),
            (metadata(r#"{"version":"1"}"#), ".version"),
            (metadata(r#"{"version":1,"features":"ack"}"#), ".features"),
            (resume("[]"), ".resume"),
            (resume(r#"{"n":1}"#), ".resume.journal is missing"),
            (resume(r#"{"journal":"f","n":1}"#), ".resume.journal"),
            (resume(r#"{"journal":"f.b"}"#), ".resume.n is missing"),
            (resume(r#"{"journal":"f.b","n":-1}"#), ".resume.n"),
            (resume(r#"{"journal":"f.b","n":1,"store":7}"#), ".resume.store"),
            (resume(&long), ".resume.key"),
            (resume(r#"{"journal":"f.b","n":1,"newest":""}"#), ".resume.newest"),
            (
                resume(r#"{"journal":"f.b","n":1,"commands":[{"R":"r","state":"?"}]}"#),
                ".resume.commands",
            ),
        ] {
            let refused = refused.unwrap_err();
            let text = refused.to_string();
            assert!(
                text.starts_with(&format!("Invalid message: metadata.flightdeck{part}")),
                "{text}"
            );
            assert_eq!(refused.close_code(), CloseCode::POLICY);
            assert!(!text.contains("kkk"), "a key is a secret: {text}");
        }
        for legacy in ["null", r#"{"version":1,"features":null,"resume":null}"#] {
            assert!(metadata(legacy).unwrap().extension.is_none_or(|one| one.resume.is_none()));
        }
        let full = r#"{"journal":"f.b","n":7,"store":"s","key":null,"commands":[{"R":"r","state":"done"}],"x":1}"#;
        let read = resume(full).unwrap().extension.unwrap().resume.unwrap();
        assert_eq!((read.n, read.commands.len(), read.key), (7, 1, None));
    }

    #[test]
    fn a_confirmation_is_what_has_status_ok() {
        let reply = |text: &'static str| {
            read_confirmation(&ServerMessage::decode(&Bytes::from_static(text.as_bytes())).unwrap())
        };
        assert_eq!(reply(r#"{"type":"heartbeat","status":"ok"}"#), Ok(None));
        assert_eq!(
            reply(r#"{"type":"error","status":"error","error":"no"}"#),
            Err("no".to_owned())
        );
        let granted = Confirmed {
            version: 1,
            server: "s".into(),
            connection: "c".into(),
            ..Confirmed::default()
        };
        let message = confirm(ResponseId::new("r").unwrap(), "t".to_owned(), Some(&granted));
        assert_eq!(read_confirmation(&message), Ok(Some(granted)));
    }
}
