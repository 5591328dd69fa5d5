//! The types of the settings' values: each reads from a flag and from TOML, and shows itself.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::{SignedDuration, Span, SpanRelativeTo};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::{self, Deserializer};

/// A value of a setting.
pub(crate) trait Setting {
    /// Whether it stands in quotes in the file.
    fn is_text(&self) -> bool {
        true
    }

    /// What a bare number of it counts.
    fn unit(&self) -> &'static str {
        ""
    }
}

impl Setting for String {}
impl Setting for Durability {}
impl Setting for ExecMode {}
impl Setting for FeatureList {}
impl Setting for RecordMode {}
impl Setting for ApiKey {}
impl Setting for ServerAddress {}

impl Setting for Retries {
    fn is_text(&self) -> bool {
        self.0.is_none()
    }
}

/// What stands in the file without quotes.
macro_rules! bare {
    ($($name:ty),*) => {$(
        impl Setting for $name {
            fn is_text(&self) -> bool {
                false
            }
        }
    )*};
}

bare!(bool, u16, u32, usize);

impl Setting for Seconds {
    fn is_text(&self) -> bool {
        false
    }

    fn unit(&self) -> &'static str {
        " s"
    }
}

/// A length of time: `30`, `0.5`, `90s`, `5m`, `1h30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seconds(pub(crate) Duration);

/// A time that need not be one: a word stands where there is none.
macro_rules! time_or {
    ($(#[doc = $doc:literal] $name:ident = $word:literal;)*) => {$(
        #[doc = $doc]
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) struct $name(pub(crate) Option<Duration>);

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                if text == $word {
                    return Ok(Self(None));
                }
                let time = text.parse::<Seconds>();
                time.map(|Seconds(time)| Self(Some(time)))
                    .map_err(|error| format!(concat!("{}, or '", $word, "'"), error))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.0 {
                    Some(time) => Seconds(time).fmt(f),
                    None => f.write_str($word),
                }
            }
        }

        impl Setting for $name {
            fn is_text(&self) -> bool {
                self.0.is_none()
            }

            fn unit(&self) -> &'static str {
                if self.0.is_some() { " s" } else { "" }
            }
        }
    )*};
}

time_or! {
    /// A length of time, or `auto`: what suits a task.
    Usual = "auto";
    /// A length of time, or `none`: no limit.
    Most = "none";
}

/// The longest time that a setting may name: a year.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

impl FromStr for Seconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let duration = match text.parse::<f64>() {
            Ok(seconds) => Duration::try_from_secs_f64(seconds).ok(),
            Err(_) => text.parse::<SignedDuration>().ok().and_then(|d| Duration::try_from(d).ok()),
        };
        match duration {
            Some(duration) if duration <= LONGEST => Ok(Self(duration)),
            _ => Err(format!(
                "'{text}' is no length of time; use seconds (30) or a unit (90s, 5m, 1h)"
            )),
        }
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.as_secs_f64())
    }
}

/// How long a key opens: `12h`, `30d`, `8w`. A day has 24 hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lifetime(pub(crate) SignedDuration);

impl FromStr for Lifetime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let span = text.parse::<Span>().ok();
        let span = span.and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()).ok());
        match span {
            Some(duration) if duration.is_positive() => Ok(Self(duration)),
            _ => Err(format!("'{text}' is no length of time; use a unit (12h, 30d, 8w)")),
        }
    }
}

/// Several values, separated by commas; in the file a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct List<T>(pub(crate) Vec<T>);

impl<T> Setting for List<T> {}

impl<T: FromStr> FromStr for List<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
        words.map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

impl<T: fmt::Display> fmt::Display for List<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&words.join(","))
    }
}

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Given {
            One(String),
            Many(Vec<String>),
        }

        let text = match Given::deserialize(deserializer)? {
            Given::One(text) => text,
            Given::Many(words) => words.join(","),
        };
        text.parse().map_err(de::Error::custom)
    }
}

/// How often to try again: a number, or `unlimited`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Retries(pub(crate) Option<u32>);

impl FromStr for Retries {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "unlimited" => Ok(Self(None)),
            number => number.parse().map(|n| Self(Some(n))).map_err(|_| {
                format!("'{text}' is no number of retries; use a whole number or 'unlimited'")
            }),
        }
    }
}

impl fmt::Display for Retries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(number) => number.fmt(f),
            None => f.write_str("unlimited"),
        }
    }
}

/// A number of bytes or of other things, or `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// What suits the machine or the setting
    Auto,
    Bytes(usize),
}

impl Room {
    /// The number, or what `auto` stands for.
    pub(crate) fn or(self, auto: usize) -> usize {
        match self {
            Self::Auto => auto,
            Self::Bytes(number) => number,
        }
    }
}

impl FromStr for Room {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            number => number
                .parse()
                .map(Self::Bytes)
                .map_err(|_| format!("'{text}' is no whole number, nor 'auto'")),
        }
    }
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Bytes(bytes) => bytes.fmt(f),
        }
    }
}

impl Setting for Room {
    fn is_text(&self) -> bool {
        *self == Self::Auto
    }
}

/// What tasks survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Durability {
    /// Any death of the server
    Process,
    /// Also a death of the machine
    Power,
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Process => "process",
            Self::Power => "power",
        })
    }
}

impl From<Durability> for server::store::Durability {
    fn from(durability: Durability) -> Self {
        match durability {
            Durability::Process => Self::Process,
            Durability::Power => Self::Power,
        }
    }
}

/// What `execute_command` may run on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ExecMode {
    /// Commands that only observe, without a shell
    Observe,
    /// Everything, through sh -c
    Shell,
    /// Nothing
    Off,
}

impl fmt::Display for ExecMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Observe => "observe",
            Self::Shell => "shell",
            Self::Off => "off",
        })
    }
}

/// What a device says it can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FeatureList {
    /// What is really there
    Auto,
    /// The fixed list of UFO's devices
    Ufo,
}

impl fmt::Display for FeatureList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Ufo => "ufo",
        })
    }
}

/// What a device's own record of its commands holds of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RecordMode {
    /// The command itself
    Text,
    /// A digest of it
    Digest,
    /// There is no record
    Off,
}

impl fmt::Display for RecordMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Digest => "digest",
            Self::Off => "off",
        })
    }
}

/// A key. It never shows itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct ApiKey(Option<SecretString>);

/// Where a server is, as it was typed. A key in it never shows itself.
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct ServerAddress(String);

impl ServerAddress {
    /// All of it.
    pub(crate) fn exposed(&self) -> &str {
        &self.0
    }

    pub(crate) fn has_key(&self) -> bool {
        self.0.contains('?')
    }
}

impl From<String> for ServerAddress {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ServerAddress {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.split_once('?') {
            Some((address, _)) => write!(f, "{address}?[redacted]"),
            None => f.write_str(&self.0),
        }
    }
}

impl ApiKey {
    pub(crate) fn secret(&self) -> Option<&SecretString> {
        self.0.as_ref()
    }
}

impl FromStr for ApiKey {
    type Err = std::convert::Infallible;

    /// An empty text is no key, as an empty variable is none.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        Ok(Self((!text.is_empty()).then(|| SecretString::from(text.to_owned()))))
    }
}

impl fmt::Display for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(key) if !key.expose_secret().is_empty() => f.write_str("[redacted]"),
            _ => Ok(()),
        }
    }
}

/// Reads a value from TOML in the form a flag has: a string, or a bare number.
macro_rules! deserialize_as_text {
    ($($name:ty),*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                #[derive(Deserialize)]
                #[serde(untagged)]
                enum Given {
                    Text(String),
                    Whole(i64),
                    Number(f64),
                }

                let text = match Given::deserialize(deserializer)? {
                    Given::Text(text) => text,
                    Given::Whole(number) => number.to_string(),
                    Given::Number(number) => number.to_string(),
                };
                text.parse().map_err(de::Error::custom)
            }
        }
    )*};
}

deserialize_as_text!(Seconds, Usual, Most, Retries, Room, ApiKey);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_and_without_a_unit() {
        let read = |text: &str| text.parse::<Seconds>().map(|seconds| seconds.0);
        assert_eq!(read("30"), Ok(Duration::from_secs(30)));
        assert_eq!(read("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(read("1h30m"), Ok(Duration::from_secs(5400)));
        for bad in ["", "-1", "soon", "1e300", "inf", "nan", "-5s"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_limit_need_not_be_one() {
        let read = |text: &str| text.parse::<Most>().map(|most| most.0);
        assert_eq!(read("none"), Ok(None));
        assert_eq!(read("1h"), Ok(Some(Duration::from_secs(3600))));
        assert!(read("auto").unwrap_err().ends_with("or 'none'"));
        assert_eq!(Usual(None).to_string().parse(), Ok(Usual(None)));
        assert_eq!((Most(None).is_text(), Most(None).unit()), (true, ""));
    }

    #[test]
    fn a_key_never_shows() {
        let key: ApiKey = "hunter2".parse().unwrap();
        assert!(!format!("{key} {key:?}").contains("hunter"));
        let server: ServerAddress = "ws://h:1/ws?token=hunter2".parse().unwrap();
        assert_eq!(format!("{server} {server:?}"), ["ws://h:1/ws?[redacted]"; 2].join(" "));
    }
}
