//! The closed sets of words of the protocol: read in any letter case, written in lower case.

use std::fmt;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

macro_rules! words {
    ($($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            /// Every value, in the order of the protocol's text.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The word on the wire.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// Reads a word in any letter case.
            #[must_use]
            pub fn from_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.as_str().eq_ignore_ascii_case(word))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Word;

                impl Visitor<'_> for Word {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str(concat!("one of" $(, " `", $text, "`")*))
                    }

                    fn visit_str<E: de::Error>(self, word: &str) -> Result<$name, E> {
                        $name::from_word(word)
                            .ok_or_else(|| E::invalid_value(de::Unexpected::Str(word), &self))
                    }
                }

                deserializer.deserialize_str(Word)
            }
        }
    )*};
}

words! {
    /// How it stands with what the message is about.
    Status {
        /// Going on.
        Continue = "continue",
        /// Ended well.
        Completed = "completed",
        /// Ended badly.
        Failed = "failed",
        /// Fine; what a missing status means.
        Ok = "ok",
        /// Something went wrong.
        Error = "error",
    }

    /// The role of a client.
    ClientType {
        /// Executes commands.
        Device = "device",
        /// Orchestrates: submits tasks for devices.
        Constellation = "constellation",
    }

    /// What a tool does to the machine.
    ToolType {
        /// Observes.
        DataCollection = "data_collection",
        /// Changes.
        Action = "action",
    }

    /// How one action of a COMMAND ended.
    ResultStatus {
        /// The tool ran.
        Success = "success",
        /// The tool could not run, or said that it failed.
        Failure = "failure",
        /// An action before it failed.
        Skipped = "skipped",
        /// There is nothing to say.
        None = "none",
    }

    /// What a server can say.
    ServerMessageType {
        /// Do this task: submit it as your own.
        Task = "task",
        /// An acknowledgement.
        Heartbeat = "heartbeat",
        /// The outcome of a task.
        TaskEnd = "task_end",
        /// Run these tools.
        Command = "command",
        /// Something was wrong with what you sent.
        Error = "error",
        /// Send your facts.
        DeviceInfoRequest = "device_info_request",
        /// A device's facts.
        DeviceInfoResponse = "device_info_response",
    }

    /// The kinds of device that a Python server knows.
    Platform {
        /// Microsoft Windows.
        Windows = "windows",
        /// Linux.
        Linux = "linux",
        /// A phone or tablet.
        Mobile = "mobile",
    }
}

/// What a client can say. A type that this version does not know is kept, so that it can be named in
/// the answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ClientMessageType {
    /// Who I am.
    Register,
    /// I am alive.
    Heartbeat,
    /// Do this task.
    Task,
    /// An acknowledgement or a cancel (extension).
    TaskEnd,
    /// What became of a COMMAND.
    CommandResults,
    /// Which facts are known of a device?
    DeviceInfoRequest,
    /// My facts.
    DeviceInfoResponse,
    /// Something was wrong with what you sent.
    Error,
    /// A word that is none of these.
    Unknown(Box<str>),
}

impl ClientMessageType {
    /// Every known type.
    pub const KNOWN: [Self; 8] = [
        Self::Register,
        Self::Heartbeat,
        Self::Task,
        Self::TaskEnd,
        Self::CommandResults,
        Self::DeviceInfoRequest,
        Self::DeviceInfoResponse,
        Self::Error,
    ];

    /// The word on the wire.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Register => "register",
            Self::Heartbeat => "heartbeat",
            Self::Task => "task",
            Self::TaskEnd => "task_end",
            Self::CommandResults => "command_results",
            Self::DeviceInfoRequest => "device_info_request",
            Self::DeviceInfoResponse => "device_info_response",
            Self::Error => "error",
            Self::Unknown(word) => word,
        }
    }
}

impl fmt::Display for ClientMessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ClientMessageType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Word;

        impl Visitor<'_> for Word {
            type Value = ClientMessageType;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a message type (a string)")
            }

            fn visit_str<E>(self, word: &str) -> Result<ClientMessageType, E> {
                let known = ClientMessageType::KNOWN
                    .into_iter()
                    .find(|known| known.as_str().eq_ignore_ascii_case(word));
                Ok(known.unwrap_or_else(|| ClientMessageType::Unknown(word.into())))
            }
        }

        deserializer.deserialize_str(Word)
    }
}

impl Default for Status {
    /// What a missing status means.
    fn default() -> Self {
        Self::Ok
    }
}

impl Default for ClientType {
    /// What a missing client type means.
    fn default() -> Self {
        Self::Device
    }
}

/// Reads a word that may be missing or `null`, which both mean its default.
pub(super) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}
