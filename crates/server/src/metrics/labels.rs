//! The closed sets of values that a metric's label can have.

use aip::machine::Refusal;
use aip::{ClientMessageType, ClientType, CloseCode, ServerMessageType, Status};

use crate::hub::{SessionState, Settlement, Unclaimed};

/// A label with a closed set of values.
pub(super) trait Label: Copy + 'static {
    /// The label's name.
    const NAME: &'static str;
    /// Every value, in the order of their indices.
    const ALL: &'static [Self];

    /// The value as it is shown.
    fn word(self) -> &'static str;

    /// Its place in [`Self::ALL`].
    fn index(self) -> usize;
}

macro_rules! labels {
    ($($(#[$doc:meta])* $vis:vis $name:ident as $label:literal {
        $($(#[$vdoc:meta])* $variant:ident = $word:literal,)*
    })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $vis enum $name { $($(#[$vdoc])* $variant,)* }

        impl Label for $name {
            const NAME: &'static str = $label;
            const ALL: &'static [Self] = &[$(Self::$variant,)*];

            fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    )*};
}

/// The protocol's own words as labels.
macro_rules! words_as_labels {
    ($($name:ident as $label:literal,)*) => {$(
        impl Label for $name {
            const NAME: &'static str = $label;
            const ALL: &'static [Self] = $name::ALL;

            fn word(self) -> &'static str {
                self.as_str()
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    )*};
}

words_as_labels! {
    ClientType as "role",
    ServerMessageType as "type",
}

labels! {
    /// Why a peer or a request was refused.
    pub(crate) RefusalReason as "reason" {
        /// The first frame could not be read, or was too large.
        Unreadable = "unreadable",
        /// The first frame was binary.
        Binary = "binary",
        /// REGISTER named no client.
        ClientIdRequired = "client_id_required",
        /// The first message was another one.
        NotRegistration = "not_registration",
        /// The metadata had the wrong shape.
        Metadata = "metadata",
        /// The declared target is no connected device.
        TargetNotConnected = "target_not_connected",
        /// The id is taken.
        AlreadyRegistered = "already_registered",
        /// The key does not let its holder register so.
        NotAllowed = "not_allowed",
        /// Nothing came in time.
        TooLate = "too_late",
        /// The server is going away.
        ShuttingDown = "shutting_down",
        /// What it says of its identity has the wrong shape, or is not so.
        NotProved = "not_proved",
        /// A newer connection of it was here, or came.
        Outdated = "outdated",
        /// Another client has its id, or is expected back with it.
        InUse = "in_use",
        /// Its key has as much as may be, or the store did not take it.
        NotKept = "not_kept",
        /// A wrong key or none, on a WebSocket or the API.
        WrongKey = "wrong_key",
        /// As many connections are open as may.
        NoRoom = "no_room",
        /// Host or Origin of a request forbid it.
        Forbidden = "forbidden",
    }

    /// What a message that came in is.
    pub(super) Received as "type" {
        Register = "register",
        Heartbeat = "heartbeat",
        Task = "task",
        TaskEnd = "task_end",
        CommandResults = "command_results",
        DeviceInfoRequest = "device_info_request",
        DeviceInfoResponse = "device_info_response",
        Error = "error",
        /// A word that is no type.
        Unknown = "unknown",
        /// No message, or a binary frame.
        Unreadable = "unreadable",
    }

    /// With which code a connection ended.
    pub(super) Close as "code" {
        Normal = "1000",
        GoingAway = "1001",
        NoStatus = "1005",
        Lost = "1006",
        Policy = "1008",
        TooBig = "1009",
        Overloaded = "1013",
        Replaced = "4001",
        TooSlow = "4003",
        NoLife = "4004",
        Other = "other",
    }

    /// Why results were dropped.
    pub(super) Dropped as "reason" {
        Unknown = "unknown",
        Late = "late",
    }

    /// How a task ended.
    pub(super) EndStatus as "status" {
        Completed = "completed",
        Failed = "failed",
    }
}

impl Label for SessionState {
    const NAME: &'static str = "state";
    const ALL: &'static [Self] = &[Self::Running, Self::Queued, Self::Stopping];

    fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Queued => "queued",
            Self::Stopping => "stopping",
        }
    }

    fn index(self) -> usize {
        self as usize
    }
}

impl Label for Settlement {
    const NAME: &'static str = "settlement";
    const ALL: &'static [Self] = &[Self::Answered, Self::TimedOut, Self::Lost, Self::Stopped];

    fn word(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::TimedOut => "timed_out",
            Self::Lost => "lost",
            Self::Stopped => "stopped",
        }
    }

    fn index(self) -> usize {
        self as usize
    }
}

impl From<&Refusal> for RefusalReason {
    fn from(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::Unreadable(_) => Self::Unreadable,
            Refusal::Binary => Self::Binary,
            Refusal::ClientIdRequired => Self::ClientIdRequired,
            Refusal::NotRegistration => Self::NotRegistration,
            Refusal::Metadata(_) | Refusal::BadExtension(_) => Self::Metadata,
            Refusal::TargetNotConnected(_) => Self::TargetNotConnected,
            Refusal::AlreadyRegistered(_) => Self::AlreadyRegistered,
            Refusal::NotAllowed(_) => Self::NotAllowed,
            Refusal::TooLate(_) => Self::TooLate,
            Refusal::ShuttingDown => Self::ShuttingDown,
            Refusal::OtherStore(_) | Refusal::UnknownKey => Self::NotProved,
            Refusal::Outdated(_) | Refusal::Overtaken => Self::Outdated,
            Refusal::InUse(_) | Refusal::ExpectedBack(_) => Self::InUse,
            Refusal::TooMuch(_) | Refusal::NotStored => Self::NotKept,
        }
    }
}

impl From<&ClientMessageType> for Received {
    fn from(kind: &ClientMessageType) -> Self {
        match kind {
            ClientMessageType::Register => Self::Register,
            ClientMessageType::Heartbeat => Self::Heartbeat,
            ClientMessageType::Task => Self::Task,
            ClientMessageType::TaskEnd => Self::TaskEnd,
            ClientMessageType::CommandResults => Self::CommandResults,
            ClientMessageType::DeviceInfoRequest => Self::DeviceInfoRequest,
            ClientMessageType::DeviceInfoResponse => Self::DeviceInfoResponse,
            ClientMessageType::Error => Self::Error,
            ClientMessageType::Unknown(_) => Self::Unknown,
        }
    }
}

impl From<CloseCode> for Close {
    fn from(code: CloseCode) -> Self {
        match code.0 {
            1000 => Self::Normal,
            1001 => Self::GoingAway,
            1005 => Self::NoStatus,
            1006 => Self::Lost,
            1008 => Self::Policy,
            1009 => Self::TooBig,
            1013 => Self::Overloaded,
            4001 => Self::Replaced,
            4003 => Self::TooSlow,
            4004 => Self::NoLife,
            _ => Self::Other,
        }
    }
}

impl From<Unclaimed> for Dropped {
    fn from(reason: Unclaimed) -> Self {
        match reason {
            Unclaimed::Unknown => Self::Unknown,
            Unclaimed::Late => Self::Late,
        }
    }
}

impl From<Status> for EndStatus {
    fn from(status: Status) -> Self {
        if status == Status::Completed { Self::Completed } else { Self::Failed }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn check<L: Label>() {
        let words: HashSet<_> = L::ALL.iter().map(|value| value.word()).collect();
        assert_eq!(words.len(), L::ALL.len(), "{} has a word twice", L::NAME);
        for (n, value) in L::ALL.iter().enumerate() {
            assert_eq!(value.index(), n, "{}", value.word());
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            assert!(value.word().chars().all(plain), "{}", value.word());
        }
    }

    #[test]
    fn every_value_has_its_own_place_and_a_plain_word() {
        check::<ClientType>();
        check::<ServerMessageType>();
        check::<SessionState>();
        check::<RefusalReason>();
        check::<Received>();
        check::<Close>();
        check::<Dropped>();
        check::<Settlement>();
        check::<EndStatus>();
    }

    #[test]
    fn a_message_is_counted_under_the_word_of_the_wire() {
        for kind in ClientMessageType::KNOWN {
            assert_eq!(Received::from(&kind).word(), kind.as_str());
        }
        let unknown = ClientMessageType::Unknown("teleport".into());
        assert_eq!(Received::from(&unknown).word(), "unknown");
    }

    #[test]
    fn a_close_is_counted_under_its_number() {
        for value in Close::ALL.iter().filter(|value| **value != Close::Other) {
            let code = CloseCode(value.word().parse().unwrap());
            assert_eq!(Close::from(code), *value);
        }
        assert_eq!(Close::from(CloseCode(3000)), Close::Other);
    }
}
