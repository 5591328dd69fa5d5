//! How a server is reached, from what its keys say: a program, or an address with headers.

use std::collections::BTreeMap;

use device::tools::mcp::Transport;
use reqwest::Url;
use reqwest::header::{HeaderName, HeaderValue};

use super::expand::Place;
use super::keys::shown;

/// The longest name of a server, in bytes.
pub(super) const MAX_NAME_BYTES: usize = 256;

/// Headers that the protocol itself sets.
const RESERVED: [&str; 8] = [
    "accept",
    "connection",
    "content-length",
    "content-type",
    "last-event-id",
    "mcp-protocol-version",
    "mcp-session-id",
    "transfer-encoding",
];

/// What a server may be called: the name stands in the keys of its tools.
///
/// # Errors
/// What is wrong with the name.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let why = match name {
        "" => "is empty".to_owned(),
        _ if name.len() > MAX_NAME_BYTES => format!("is longer than {MAX_NAME_BYTES} bytes"),
        _ if name.contains("::") => {
            "holds '::', which separates the parts of a tool's key".to_owned()
        }
        _ if name.chars().any(char::is_control) => "holds control characters".to_owned(),
        _ => return Ok(()),
    };
    Err(format!("its name {why}"))
}

/// A program.
///
/// # Errors
/// When a variable cannot be one.
pub(super) fn stdio(
    place: &Place<'_>,
    command: &str,
    args: Vec<String>,
    env: BTreeMap<String, String>,
    cwd: Option<&str>,
) -> Result<Transport, String> {
    if command.trim().is_empty() {
        return Err("command is empty".to_owned());
    }
    if env.keys().any(|name| name.is_empty() || name.contains(['=', '\0'])) {
        return Err(
            "env: the name of a variable is empty, or holds = or a null character".to_owned()
        );
    }
    let cwd = cwd.map(|folder| place.folder(folder));
    Ok(Transport::Stdio { command: place.program(command), args, env, cwd })
}

/// An address. Header names are the same in small letters.
///
/// # Errors
/// When the address or a header is none.
pub(super) fn http(url: &str, headers: BTreeMap<String, String>) -> Result<Transport, String> {
    let url = checked_url(url)?;
    let mut checked = BTreeMap::new();
    for (name, value) in headers {
        let label = format!("headers.{}", shown(&name));
        let name = checked_header(&name, &value).map_err(|why| format!("{label}: {why}"))?;
        if checked.insert(name, value).is_some() {
            return Err(format!("{label} stands twice; a header is the same in capital letters"));
        }
    }
    Ok(Transport::Http { url, headers: checked })
}

fn checked_url(text: &str) -> Result<String, String> {
    let url = Url::parse(text.trim())
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        .ok_or("url is no address; write http://HOST[:PORT]/PATH or https://…")?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("url holds a user name or password, which would not be sent; put it into \
                    headers, as Authorization"
            .to_owned());
    }
    Ok(url.into())
}

fn checked_header(name: &str, value: &str) -> Result<String, &'static str> {
    let name: HeaderName = name.parse().map_err(|_| "this is no name of a header")?;
    if RESERVED.contains(&name.as_str()) {
        return Err("the protocol sets this header itself; leave it out");
    }
    match HeaderValue::from_str(value) {
        Ok(_) => Ok(name.as_str().to_owned()),
        Err(_) => Err("its value holds a line break or other characters that no header may hold"),
    }
}
