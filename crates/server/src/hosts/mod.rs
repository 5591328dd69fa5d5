//! Which hosts a request may be for, and whose pages may send one: the check of `Host` and `Origin`
//! that every request passes first, WebSockets included.
//!
//! A server on a user's own machine can be reached by every page that the user's browser shows. Two
//! checks keep such pages out, whatever the browser holds:
//!
//! - **Origin.** A browser names the page that makes a request, and a page of another origin is
//!   refused. Programs send no `Origin`, and pass.
//! - **Host.** By *DNS rebinding* a page makes its own name resolve to our address; to the browser we
//!   are then the page's own server. The `Host` is still the page's name, and not one of ours.
//!
//! Neither proves who sends the request: a program can write any header. That is what keys are for.

mod name;

use std::fmt;
use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri, header};

use name::{Host, Name, Origin};
pub use name::{HostPattern, InvalidPattern, OriginPattern};

/// Why a request is refused, as the body of a 403. The texts name the setting that would admit it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Forbidden {
    #[error("The request does not say which host it is for: send one Host header")]
    NoHost,
    #[error("The request has more than one Host header: send one")]
    RepeatedHost,
    #[error("The Host header is not HOST or HOST:PORT")]
    UnreadableHost,
    /// The host, without its port.
    #[error(
        "This server does not go by the name '{0}'; if it should, add the name to the setting \
         allowed_hosts"
    )]
    UnknownHost(String),
    #[error("The request has more than one Origin header: send one, or none")]
    RepeatedOrigin,
    #[error(
        "The Origin header is not SCHEME://HOST or SCHEME://HOST:PORT; a page that is opened from a \
         file, or in a sandbox, may not use this server: serve the page over HTTP and add its origin \
         to the setting allowed_origins"
    )]
    UnreadableOrigin,
    #[error(
        "Pages from '{0}' may not use this server; if they should, add that origin to the setting \
         allowed_origins"
    )]
    UnknownOrigin(String),
}

/// Says whether the server's certificate is valid for a name or an address. It gets the text without
/// brackets, port or closing dot, in the case it came in; it compares without regard to case.
pub(crate) type IsCertified = Box<dyn Fn(&str) -> bool + Send + Sync>;

/// The hosts that this server answers for.
///
/// Always: `localhost` and the loopback addresses. Beyond them:
///
/// - the address that it listens on;
/// - when that is the unspecified one (`0.0.0.0`, `::`), *every* address. The server cannot know all
///   of its addresses (they come and go, and a port may be forwarded), and need not: rebinding takes a
///   name that the attacker makes resolve to us. A host that is an address was not resolved at all: the
///   page at hand came from that very address, or is of another origin and fails that check;
/// - the machine's names, those the certificate is valid for, and those in `allowed_hosts`.
pub(crate) struct AllowedHosts {
    patterns: Vec<HostPattern>,
    every_ip: bool,
    is_certified: Option<IsCertified>,
}

impl AllowedHosts {
    /// `bound` is the address that the server listens on, if it listens itself. `machine` are
    /// the machine's names; what cannot be a host's name is left out.
    pub(crate) fn new(
        configured: &[HostPattern],
        bound: Option<IpAddr>,
        machine: &[String],
        is_certified: Option<IsCertified>,
    ) -> Self {
        let mut patterns = configured.to_vec();
        // A machine may have any name, but it must not open the door to every host.
        let is_name = |name: &&String| !name.contains('*');
        patterns.extend(machine.iter().filter(is_name).filter_map(|name| name.parse().ok()));
        patterns.extend(bound.map(HostPattern::ip));
        let every_ip = bound.is_some_and(|ip| ip.to_canonical().is_unspecified());
        Self { patterns, every_ip, is_certified }
    }

    fn admits(&self, name: &Name<'_>) -> bool {
        let is_default = match name {
            Name::Ip(ip) => ip.is_loopback() || self.every_ip,
            Name::Dns(name) => name.eq_ignore_ascii_case("localhost"),
        };
        is_default
            || self.patterns.iter().any(|pattern| pattern.admits(name))
            || self.is_certified.as_ref().is_some_and(|is_certified| match name {
                Name::Ip(ip) => is_certified(&ip.to_string()),
                Name::Dns(name) => is_certified(name),
            })
    }
}

/// The origins whose pages may use this server: its own, and those in `allowed_origins`.
pub(crate) struct AllowedOrigins(Vec<OriginPattern>);

impl AllowedOrigins {
    pub(crate) fn new(configured: &[OriginPattern]) -> Self {
        Self(configured.to_vec())
    }

    /// `own` is the host that the request is for, which must have been admitted.
    fn check(&self, header: &HeaderValue, own: &Host<'_>) -> Result<(), Forbidden> {
        if self.0.iter().any(OriginPattern::is_any) {
            return Ok(());
        }
        let text = header.to_str().map_err(|_| Forbidden::UnreadableOrigin)?;
        // `null` is no origin in this form, and every sandboxed page has it.
        let origin = Origin::parse(text).ok_or(Forbidden::UnreadableOrigin)?;
        if origin.is_of(own) || self.0.iter().any(|pattern| pattern.admits(&origin)) {
            Ok(())
        } else {
            Err(Forbidden::UnknownOrigin(text.to_owned()))
        }
    }
}

/// The check of every request. It allocates only to refuse.
pub(crate) struct Gate {
    hosts: AllowedHosts,
    origins: AllowedOrigins,
}

impl Gate {
    pub(crate) fn new(hosts: AllowedHosts, origins: AllowedOrigins) -> Self {
        Self { hosts, origins }
    }

    /// Whether the request is for one of our hosts, and from a program or a page that may.
    ///
    /// # Errors
    /// Why not, to be answered with 403.
    pub(crate) fn check(&self, headers: &HeaderMap, uri: &Uri) -> Result<(), Forbidden> {
        let host = self.host(headers, uri)?;
        match single(headers, &header::ORIGIN).map_err(|Repeated| Forbidden::RepeatedOrigin)? {
            Some(origin) => self.origins.check(origin, &host),
            None => Ok(()),
        }
    }

    /// The host that a request is for. A target in absolute form goes before the header (RFC 9112,
    /// 3.2.2), but a header that is there must be one of ours as well.
    fn host<'a>(&self, headers: &'a HeaderMap, uri: &'a Uri) -> Result<Host<'a>, Forbidden> {
        let header = single(headers, &header::HOST).map_err(|Repeated| Forbidden::RepeatedHost)?;
        let header = header.map(|header| header.to_str().unwrap_or_default());
        let target = uri.authority().map(|authority| authority.as_str());
        let mut host = Err(Forbidden::NoHost);
        for named in [header, target].into_iter().flatten() {
            host = Ok(self.admitted(named)?);
        }
        host
    }

    fn admitted<'a>(&self, named: &'a str) -> Result<Host<'a>, Forbidden> {
        let host = Host::parse(named).ok_or(Forbidden::UnreadableHost)?;
        if self.hosts.admits(&host.name) {
            Ok(host)
        } else {
            Err(Forbidden::UnknownHost(host.name.to_string()))
        }
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts = &self.hosts.patterns;
        f.debug_struct("Gate").field("hosts", hosts).field("origins", &self.origins.0).finish()
    }
}

/// A header is there more than once, so that two readers may take two values.
struct Repeated;

fn single<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> Result<Option<&'a HeaderValue>, Repeated> {
    let mut values = headers.get_all(name).iter();
    let value = values.next();
    if values.next().is_some() { Err(Repeated) } else { Ok(value) }
}

#[cfg(test)]
mod tests;
