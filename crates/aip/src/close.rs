//! WebSocket close codes: what each means, and whether a client should come back after it.

use std::fmt;

/// Why a connection was closed, as the number in the close frame. Every close that Flightdeck sends
/// carries a reason text too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CloseCode(pub u16);

/// The reason of a [`CloseCode::POLICY`] that ends what a client was allowed: a device stops what runs then.
pub const KEY_GONE: &str = "the key was revoked or has expired";

impl CloseCode {
    /// Done, or refused for now: what is missing may be there in a second.
    pub const NORMAL: Self = Self(1000);
    /// The server goes away (shutdown, restart).
    pub const GOING_AWAY: Self = Self(1001);
    /// Refused as you are: the same registration will be refused again.
    pub const POLICY: Self = Self(1008);
    /// A message was larger than the limit.
    pub const TOO_BIG: Self = Self(1009);
    /// The server is overloaded.
    pub const OVERLOADED: Self = Self(1013);
    /// Replaced by a newer connection of the same client.
    pub const REPLACED: Self = Self(4001);
    /// No registration came in time.
    pub const NO_REGISTRATION: Self = Self(4002);
    /// The outgoing queue overflowed: the peer reads too slowly.
    pub const TOO_SLOW: Self = Self(4003);
    /// No sign of life for too long.
    pub const NO_LIFE: Self = Self(4004);

    /// Whether a client must not come back with the same registration: its human has to change
    /// something first. Everything else means "try again later".
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::POLICY | Self::REPLACED)
    }

    /// What the code means, in a few words, for people.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self.0 {
            1000 => "closed normally",
            1001 => "going away",
            1005 => "closed without a reason",
            1006 => "connection lost",
            1008 => "refused",
            1009 => "message too big",
            1011 => "internal error",
            1012 => "the server restarts",
            1013 => "overloaded",
            4001 => "replaced by a newer connection",
            4002 => "no registration in time",
            4003 => "too slow",
            4004 => "no sign of life",
            _ => "closed",
        }
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.0, self.meaning())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_refused_and_replaced_are_final() {
        let finals: Vec<u16> = (1000..5000).filter(|code| CloseCode(*code).is_final()).collect();
        assert_eq!(finals, [1008, 4001]);
    }
}
