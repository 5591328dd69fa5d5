//! An MCP server that is reached over streamable HTTP. What cannot be read of its answers is `posts.rs`.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use link::{DialError, ServerUrl, Trust};
use reqwest::header::{HeaderName, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{StatusCode, Url};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::common::client_side_sse::ExponentialBackoff;
use rmcp::transport::streamable_http_client::{
    StreamableHttpClientTransportConfig, StreamableHttpError,
};

use super::posts::Posts;

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a broken stream is opened again before the server counts as gone.
const MAX_REOPENINGS: usize = 3;

/// Most redirects of one request.
const MAX_REDIRECTS: usize = 3;

/// The transport to such a server.
pub(super) type Http = StreamableHttpClientTransport<Posts>;

/// Makes the transport; nothing is sent yet.
///
/// # Errors
/// When the address or a header cannot be used.
pub(super) fn transport(
    url: &str,
    headers: &BTreeMap<String, String>,
    trust: Option<&Trust>,
) -> Result<Http, String> {
    let address: Url = url.parse().map_err(|error| format!("its address is not valid: {error}"))?;
    let mut config =
        StreamableHttpClientTransportConfig::with_uri(url).custom_headers(custom(headers)?);
    let mut reopening = ExponentialBackoff::default();
    reopening.max_times = Some(MAX_REOPENINGS);
    config.retry_config = Arc::new(reopening);
    Ok(StreamableHttpClientTransport::with_client(Posts::new(client(&address, trust)?), config))
}

/// Whether a request came to nothing because of what was answered to it: the server is there.
pub(super) fn is_an_answer(error: &(dyn Error + 'static)) -> bool {
    use StreamableHttpError::{
        Deserialize, HttpStatus, ResponseBodyTooLarge, UnexpectedContentType,
        UnexpectedServerResponse,
    };
    let error = error.downcast_ref::<StreamableHttpError<reqwest::Error>>();
    error.is_some_and(|error| {
        matches!(
            error,
            HttpStatus(_)
                | UnexpectedServerResponse(_)
                | ResponseBodyTooLarge { .. }
                | UnexpectedContentType(_)
                | Deserialize(_)
        )
    })
}

/// Whether nothing was sent: there was no connection, not even one from before, to send it on.
pub(super) fn is_unsent(error: &(dyn Error + 'static)) -> bool {
    let error = error.downcast_ref::<StreamableHttpError<reqwest::Error>>();
    matches!(error, Some(StreamableHttpError::Client(error)) if error.is_connect())
}

/// An error of the transport in words, of all that it is about what is at its bottom.
pub(super) fn explain(error: &(dyn Error + 'static)) -> String {
    match error.downcast_ref::<StreamableHttpError<reqwest::Error>>() {
        Some(StreamableHttpError::Client(error)) => unreachable(error),
        _ => super::client::chain(error),
    }
}

/// Why a request came to nothing before anything answered it.
fn unreachable(error: &reqwest::Error) -> String {
    if let Some(why) = untrusted(error) {
        return why;
    }
    let whole = super::client::chain(error);
    match bottom(error) {
        _ if error.is_connect() && error.is_timeout() => {
            format!("nothing answers at its address within {} s", CONNECT_TIMEOUT.as_secs())
        }
        Some(why) if whole.contains("dns error") => format!("its host name is not found: {why}"),
        Some(why) if why.kind() == io::ErrorKind::ConnectionRefused => {
            "nothing listens at its address: connection refused".to_owned()
        }
        Some(why) if error.is_connect() => format!("no connection to its address: {why}"),
        _ => whole,
    }
}

/// What the system said, under all that is wrapped around it.
fn bottom(error: &reqwest::Error) -> Option<&io::Error> {
    let (mut next, mut found) = (error.source(), None);
    while let Some(error) = next {
        found = error.downcast_ref().or(found);
        next = error.source();
    }
    found
}

/// What is wrong with its certificate, or with TLS at all.
fn untrusted(error: &reqwest::Error) -> Option<String> {
    let server: ServerUrl = error.url()?.origin().ascii_serialization().parse().ok()?;
    Some(match link::tls::explain(&server, error)? {
        DialError::Certificate(_, why) => format!("its certificate is refused: {why}"),
        DialError::Tls(_, why) => format!("no TLS connection to it: {why}"),
        error => error.to_string(),
    })
}

fn client(address: &Url, trust: Option<&Trust>) -> Result<reqwest::Client, String> {
    let trust = match trust {
        Some(trust) => Ok(trust.clone()),
        None if address.scheme() == "https" => Trust::system(),
        None => Trust::nobody(),
    };
    let mut builder = reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .redirect(same_origin())
        .tls_backend_preconfigured(trust.map_err(|error| error.to_string())?.config());
    if is_loopback(address) {
        builder = builder.no_proxy();
    }
    builder.build().map_err(|error| super::client::chain(&error))
}

/// Follows what a server says of its own routes, such as one that wants `/mcp/`. Anything else would lose
/// the message, or show the headers to somebody else.
fn same_origin() -> Policy {
    Policy::custom(|attempt| {
        let keeps = [StatusCode::TEMPORARY_REDIRECT, StatusCode::PERMANENT_REDIRECT];
        let origin = attempt.previous().first().map(Url::origin);
        let follows = keeps.contains(&attempt.status())
            && origin == Some(attempt.url().origin())
            && attempt.previous().len() <= MAX_REDIRECTS;
        if follows { attempt.follow() } else { attempt.stop() }
    })
}

fn is_loopback(address: &Url) -> bool {
    match address.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

fn custom(headers: &BTreeMap<String, String>) -> Result<HashMap<HeaderName, HeaderValue>, String> {
    let read = |(name, value): (&String, &String)| {
        let header = name.parse().map_err(|_| format!("'{name}' is no name of a header"))?;
        let mut value = HeaderValue::from_str(value)
            .map_err(|_| format!("the value of the header '{name}' is not valid"))?;
        value.set_sensitive(true);
        Ok((header, value))
    };
    headers.iter().map(read).collect()
}
