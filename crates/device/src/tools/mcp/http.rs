//! An MCP server that is reached over streamable HTTP.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use link::Trust;
use reqwest::header::{HeaderName, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{StatusCode, Url};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::common::client_side_sse::ExponentialBackoff;
use rmcp::transport::streamable_http_client::{
    StreamableHttpClientTransportConfig, StreamableHttpError,
};

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest event of a stream. A message may be 100 MiB; escaped, it is more.
pub(super) const MAX_EVENT_BYTES: usize = 128 << 20;

/// How often a broken stream is opened again before the server counts as gone.
const MAX_REOPENINGS: usize = 3;

/// Most redirects of one request.
const MAX_REDIRECTS: usize = 3;

/// The transport to such a server.
pub(super) type Http = StreamableHttpClientTransport<reqwest::Client>;

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
    let mut config = StreamableHttpClientTransportConfig::with_uri(url)
        .custom_headers(custom(headers)?)
        .max_sse_event_size(MAX_EVENT_BYTES);
    let mut reopening = ExponentialBackoff::default();
    reopening.max_times = Some(MAX_REOPENINGS);
    config.retry_config = Arc::new(reopening);
    Ok(StreamableHttpClientTransport::with_client(client(&address, trust)?, config))
}

/// Whether a request came to nothing because of what was answered to it: the server is there.
pub(super) fn is_an_answer(error: &(dyn std::error::Error + 'static)) -> bool {
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
