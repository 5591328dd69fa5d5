//! The ids of the protocol, one type each, so that none can stand in for another; and [`TaskName`], a label for
//! people.
//!
//! An id that a peer chose is 1 to 256 characters without control characters. An empty string is
//! read as "absent", as the Python peers treat it.

use std::fmt;
use std::sync::Arc;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// The most characters an id may have.
pub const MAX_ID_CHARS: usize = 256;

/// The most characters a task name may have; longer ones are cut.
pub const MAX_TASK_NAME_CHARS: usize = 128;

/// Why a text is no id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an id must be 1 to {MAX_ID_CHARS} characters without control characters")]
pub struct InvalidId;

fn is_valid(text: &str) -> bool {
    // Nearly every id is short and printable ASCII, which takes one pass over its bytes.
    let is_plain = |byte: &u8| (b' '..=b'~').contains(byte);
    if text.len() <= MAX_ID_CHARS && text.as_bytes().iter().all(is_plain) {
        return !text.is_empty();
    }
    !text.is_empty()
        && text.len() <= MAX_ID_CHARS * 4
        && text.chars().count() <= MAX_ID_CHARS
        && !text.chars().any(char::is_control)
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks a text and makes it an id.
            ///
            /// # Errors
            /// When it is empty, longer than [`MAX_ID_CHARS`] or holds a control character.
            pub fn new(text: &str) -> Result<Self, InvalidId> {
                if is_valid(text) { Ok(Self(text.into())) } else { Err(InvalidId) }
            }

            /// The id as the wire shows it.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
                Self::new(&text).map_err(de::Error::custom)
            }
        }

        impl FromWire for $name {
            fn from_wire(text: &str) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }
    )*};
}

ids! {
    /// Who a client says it is.
    ClientId
    /// The wire's name for one task run. A client may choose it, and may use it again once that
    /// session ended.
    SessionId
    /// The client's id of a request.
    RequestId
    /// The server's id of a message; of a COMMAND it is the *R* that its results echo.
    ResponseId
    /// One action of a COMMAND.
    CallId
}

/// What [`optional`] can read: an id out of a text of the wire.
pub(crate) trait FromWire: Sized {
    fn from_wire(text: &str) -> Result<Self, InvalidId>;
}

/// Reads an id that may be missing, `null` or empty, all of which mean "absent".
pub(crate) fn optional<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromWire,
{
    struct OptionalId<T>(std::marker::PhantomData<T>);

    impl<'de, T: FromWire> Visitor<'de> for OptionalId<T> {
        type Value = Option<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an id (a string) or null")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_none<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
            d.deserialize_str(self)
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            if text.is_empty() {
                return Ok(None);
            }
            T::from_wire(text).map(Some).map_err(E::custom)
        }
    }

    deserializer.deserialize_option(OptionalId(std::marker::PhantomData))
}

/// A human label of a task: safe as a file name, not unique.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TaskName(Arc<str>);

impl TaskName {
    /// Makes any text a task name: characters outside `[A-Za-z0-9._-]` become `_`, leading dots go,
    /// and what is over [`MAX_TASK_NAME_CHARS`] is cut. `None` when nothing is left.
    #[must_use]
    pub fn sanitize(text: &str) -> Option<Self> {
        let safe = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
        let name: String =
            text.trim_start_matches('.').chars().map(safe).take(MAX_TASK_NAME_CHARS).collect();
        (!name.is_empty()).then(|| Self(name.into()))
    }

    /// The name as the wire shows it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TaskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_bounds() {
        assert!(ClientId::new("d").is_ok());
        assert!(ClientId::new(&"ä".repeat(256)).is_ok());
        for bad in ["", "a\nb", "\u{0}", "\u{7f}", &"x".repeat(257)] {
            assert_eq!(ClientId::new(bad), Err(InvalidId), "{bad:?}");
        }
    }

    #[test]
    fn a_task_name_is_safe_as_a_file_name() {
        let name = |text| TaskName::sanitize(text).map(|name| name.to_string());
        assert_eq!(name("tidy-up_1.2").as_deref(), Some("tidy-up_1.2"));
        assert_eq!(name("../../etc/passwd").as_deref(), Some("_.._etc_passwd"));
        assert_eq!(name("späte Größe").as_deref(), Some("sp_te_Gr__e"));
        assert_eq!(name("..."), None);
        assert_eq!(name(""), None);
        assert_eq!(name(&"n".repeat(500)).map(|n| n.len()), Some(MAX_TASK_NAME_CHARS));
    }
}
