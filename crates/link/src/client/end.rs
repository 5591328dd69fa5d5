//! How a connection ended, and the loop of a client.

use aip::CloseCode;

use crate::dial::DialError;
use crate::socket::Closed;

/// Why the loop ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Exit {
    /// Its caller stopped it.
    #[error("stopped")]
    Stopped,
    /// The server will not take us as we are.
    #[error("{0}")]
    Refused(String),
    /// It tried as often as it was allowed to.
    #[error("{last} (after {tries} {})", if *.tries == 1 { "try" } else { "tries" })]
    GaveUp {
        /// How often it tried.
        tries: u32,
        /// What went wrong the last time.
        last: String,
    },
}

/// How one connection, or the attempt at one, ended.
pub(super) enum End {
    Stopped,
    Dial(DialError),
    Refused {
        text: String,
        code: CloseCode,
        /// Whether the next REGISTER will differ by what the refusal said.
        is_amended: bool,
    },
    Closed(Closed),
    /// It was found dead after the machine had slept: there is no reason to wait for the next try.
    Slept(Closed),
}

impl End {
    pub(super) fn is_final(&self) -> bool {
        match self {
            Self::Stopped => true,
            Self::Dial(error) => error.is_final(),
            Self::Refused { code, is_amended, .. } => code.is_final() && !is_amended,
            Self::Closed(closed) => closed.code.is_final() && !closed.by_us,
            Self::Slept(_) => false,
        }
    }

    pub(super) fn text(&self) -> String {
        match self {
            Self::Stopped => "stopped".to_owned(),
            Self::Dial(error) => error.to_string(),
            Self::Refused { text, .. } => format!("the server refused: {text}"),
            Self::Closed(closed) | Self::Slept(closed) => {
                format!("the connection ended: {closed}")
            }
        }
    }

    /// How the connection ended, if there was one.
    pub(super) const fn closed(&self) -> Option<&Closed> {
        match self {
            Self::Closed(closed) | Self::Slept(closed) => Some(closed),
            _ => None,
        }
    }
}
