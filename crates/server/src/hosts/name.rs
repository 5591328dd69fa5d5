//! How a request names a host, and how a setting names the hosts and origins that are allowed.
//!
//! Nothing here allocates when it reads a request.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// The longest host with a port: 253 characters of name (RFC 1035), a closing dot, `:65535`.
const MAX_HOST_CHARS: usize = 260;

/// The longest label of a name (RFC 1035).
const MAX_LABEL_CHARS: usize = 63;

/// A host without its port. Names compare without regard to case.
#[derive(Debug, Clone, Copy)]
pub(super) enum Name<'a> {
    Ip(IpAddr),
    Dns(&'a str),
}

impl PartialEq for Name<'_> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Ip(ip), Self::Ip(other)) => ip == other,
            (Self::Dns(name), Self::Dns(other)) => name.eq_ignore_ascii_case(other),
            _ => false,
        }
    }
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Dns(name) => f.write_str(name),
        }
    }
}

/// `host[:port]`, as in a Host header.
#[derive(Debug, Clone, Copy)]
pub(super) struct Host<'a> {
    pub(super) name: Name<'a>,
    pub(super) port: Option<u16>,
}

impl<'a> Host<'a> {
    /// Reads `name[:port]`, `1.2.3.4[:port]` or `[::1][:port]`. Everything else is none: user names,
    /// paths, spaces, letters beyond ASCII (on the wire such names are in their ASCII form).
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        if text.len() > MAX_HOST_CHARS {
            return None;
        }
        if let Some(rest) = text.strip_prefix('[') {
            let (ip, rest) = rest.split_once(']')?;
            let port = match rest {
                "" => None,
                rest => parse_port(rest.strip_prefix(':')?)?,
            };
            let ip = IpAddr::V6(ip.parse::<Ipv6Addr>().ok()?);
            return Some(Self { name: Name::Ip(ip.to_canonical()), port });
        }
        let (name, port) = match text.split_once(':') {
            Some((name, port)) => (name, parse_port(port)?),
            None => (text, None),
        };
        Some(Self { name: parse_name(name)?, port })
    }
}

/// A name or an IPv4 address. One dot at the end means the same name, written in full.
fn parse_name(text: &str) -> Option<Name<'_>> {
    let name = text.strip_suffix('.').unwrap_or(text);
    if let Ok(ip) = name.parse::<Ipv4Addr>() {
        return Some(Name::Ip(ip.into()));
    }
    name.split('.').all(is_label).then_some(Name::Dns(name))
}

fn is_label(label: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=MAX_LABEL_CHARS).contains(&label.len()) && label.bytes().all(is_allowed)
}

/// The digits after the colon; there may be none (RFC 3986). `None` when it is no port.
fn parse_port(digits: &str) -> Option<Option<u16>> {
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    if digits.is_empty() { Some(None) } else { digits.parse().ok().map(Some) }
}

/// `scheme://host[:port]`, as in an Origin header.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin<'a> {
    scheme: &'a str,
    host: Host<'a>,
}

impl<'a> Origin<'a> {
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let (scheme, host) = text.split_once("://")?;
        let is_scheme = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        if scheme.is_empty() || scheme.len() > MAX_LABEL_CHARS || !scheme.bytes().all(is_scheme) {
            return None;
        }
        Some(Self { scheme, host: Host::parse(host)? })
    }

    /// Whether it is a page of the host that the request is for: same name, same port.
    pub(super) fn is_of(&self, host: &Host<'_>) -> bool {
        let default = self.default_port();
        default.is_some() && self.host.name == host.name && self.port() == host.port.or(default)
    }

    fn is(&self, other: &Origin<'_>) -> bool {
        self.scheme.eq_ignore_ascii_case(other.scheme)
            && self.host.name == other.host.name
            && self.port() == other.port()
    }

    fn port(&self) -> Option<u16> {
        self.host.port.or(self.default_port())
    }

    /// Only of the schemes that a server's own pages have.
    fn default_port(&self) -> Option<u16> {
        let is = |scheme: &str| self.scheme.eq_ignore_ascii_case(scheme);
        if is("https") { Some(443) } else { is("http").then_some(80) }
    }
}

/// One entry of the setting `allowed_hosts`: `example.com`, `192.0.2.7`, `::1`, `*.example.com`
/// (whatever is below that name, at any depth, but not the name itself), or `*` (any host).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPattern(HostRule);

#[derive(Debug, Clone, PartialEq, Eq)]
enum HostRule {
    Any,
    Ip(IpAddr),
    Name(Box<str>),
    /// The name with the dot before it.
    Below(Box<str>),
}

impl HostPattern {
    pub(super) fn ip(ip: IpAddr) -> Self {
        Self(HostRule::Ip(ip.to_canonical()))
    }

    pub(super) fn admits(&self, name: &Name<'_>) -> bool {
        match (&self.0, name) {
            (HostRule::Any, _) => true,
            (HostRule::Ip(ip), name) => Name::Ip(*ip) == *name,
            (HostRule::Name(allowed), name) => Name::Dns(allowed) == *name,
            (HostRule::Below(parent), Name::Dns(name)) => {
                let start = name.len().checked_sub(parent.len());
                let end = start.filter(|start| *start > 0).and_then(|start| name.get(start..));
                end.is_some_and(|end| end.eq_ignore_ascii_case(parent))
            }
            (HostRule::Below(_), Name::Ip(_)) => false,
        }
    }
}

/// Why an entry of `allowed_hosts` or `allowed_origins` cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPattern {
    /// Not what `allowed_hosts` takes.
    #[error("{0:?} is no host: it takes a name or an address without port, *.NAME, or * for any")]
    Host(String),
    /// Not what `allowed_origins` takes.
    #[error("{0:?} is no origin: it takes SCHEME://HOST[:PORT] without a path, or * for any")]
    Origin(String),
}

impl FromStr for HostPattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        if text == "*" {
            return Ok(Self(HostRule::Any));
        }
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self::ip(ip));
        }
        let host = |text| Host::parse(text).filter(|host| host.port.is_none());
        match (host(text), text.strip_prefix("*.").and_then(host)) {
            (Some(Host { name: Name::Ip(ip), .. }), _) => Ok(Self::ip(ip)),
            (Some(Host { name: Name::Dns(name), .. }), _) => Ok(Self(HostRule::Name(name.into()))),
            (None, Some(Host { name: Name::Dns(name), .. })) => {
                Ok(Self(HostRule::Below(format!(".{name}").into())))
            }
            _ => Err(InvalidPattern::Host(text.to_owned())),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            HostRule::Any => f.write_str("*"),
            HostRule::Ip(ip) => ip.fmt(f),
            HostRule::Name(name) => f.write_str(name),
            HostRule::Below(parent) => write!(f, "*{parent}"),
        }
    }
}

/// One entry of the setting `allowed_origins`: `https://dash.example.com`, `http://10.0.0.7:3000`, or
/// `*` (any origin).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginPattern(Option<Box<str>>);

impl OriginPattern {
    pub(super) fn is_any(&self) -> bool {
        self.0.is_none()
    }

    pub(super) fn admits(&self, origin: &Origin<'_>) -> bool {
        let Some(allowed) = &self.0 else { return true };
        Origin::parse(allowed).is_some_and(|allowed| allowed.is(origin))
    }
}

impl FromStr for OriginPattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        if text == "*" {
            return Ok(Self(None));
        }
        // What is copied from a browser's address line ends in a slash.
        let origin = text.strip_suffix('/').unwrap_or(text);
        match Origin::parse(origin) {
            Some(_) => Ok(Self(Some(origin.into()))),
            None => Err(InvalidPattern::Origin(text.to_owned())),
        }
    }
}

impl fmt::Display for OriginPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_deref().unwrap_or("*"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admits(pattern: &str, host: &str) -> bool {
        let pattern: HostPattern = pattern.parse().unwrap();
        pattern.admits(&Host::parse(host).unwrap().name)
    }

    #[test]
    fn a_host_is_a_name_or_an_address_with_a_port_or_without() {
        for (text, name, port) in [
            ("example.com", "example.com", None),
            ("example.com.:80", "example.com", Some(80)),
            ("example.com:", "example.com", None),
            ("127.0.0.1:5000", "127.0.0.1", Some(5000)),
            ("127.0.0.1.", "127.0.0.1", None),
            ("[::1]", "::1", None),
            ("[::1]:65535", "::1", Some(65535)),
            ("[::ffff:127.0.0.1]:1", "127.0.0.1", Some(1)),
        ] {
            let host = Host::parse(text).unwrap();
            assert_eq!((host.name.to_string().as_str(), host.port), (name, port), "{text}");
        }
    }

    #[test]
    fn whatever_else_a_peer_writes_there_is_no_host() {
        let long = "a.".repeat(130) + "b";
        let label = "a".repeat(64);
        for text in [
            "",
            ".",
            "..",
            "a..b",
            ".a",
            ":80",
            "a:b",
            "a:+80",
            "a:65536",
            "a:1:2",
            "::1",
            "[::1",
            "[::1]80",
            "[a]",
            "[::1%25eth0]",
            "a b",
            "a/b",
            "a?b",
            "a#b",
            "a\\b",
            "a%2eb",
            "localhost@evil.example",
            "evil.example@localhost",
            "localhost,evil.example",
            "bücher.de",
            "a\0",
            &long,
            &label,
        ] {
            assert!(Host::parse(text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn a_star_stands_for_whatever_is_below_a_name_and_alone_for_anything() {
        assert!(admits("*.example.com", "a.Example.com:80"));
        assert!(admits("*.example.com", "a.b.example.com."));
        assert!(!admits("*.example.com", "example.com"));
        assert!(!admits("*.example.com", "badexample.com"));
        assert!(!admits("*.0.0.1.example", "127.0.0.1"));
        assert!(admits("*", "evil.example") && admits("*", "[2001:db8::1]"));
    }

    #[test]
    fn a_pattern_is_shown_as_it_was_given_and_a_bad_one_says_what_it_takes() {
        for text in ["*", "a.example", "*.a.example", "192.0.2.7", "2001:db8::1"] {
            assert_eq!(text.parse::<HostPattern>().unwrap().to_string(), text);
        }
        for text in ["", "a:80", "http://a", "a.*", "*.*.a", "**", "*.127.0.0.1", "*a"] {
            let error = text.parse::<HostPattern>().unwrap_err().to_string();
            assert!(error.contains("without port, *.NAME, or *"), "{error}");
        }
        for text in ["*", "https://a.example:8443", "tauri://localhost"] {
            assert_eq!(text.parse::<OriginPattern>().unwrap().to_string(), text);
        }
        for text in
            ["", "a.example", "https://", "https://a/b", "https://u@a", "https://*.a", "null"]
        {
            assert!(text.parse::<OriginPattern>().is_err(), "{text:?}");
        }
    }
}
