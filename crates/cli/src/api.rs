//! The server's HTTP API, as far as the command line uses it: the devices that are online, and copies of the store.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use link::Trust;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::connect::Target;

/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Longest wait for a copy of the store.
const BACKUP_TIMEOUT: Duration = Duration::from_secs(6 * 60 * 60);

/// The longest answer that is read, in bytes.
const MAX_BODY_BYTES: usize = 64 * 1024 * 1024;

#[derive(Debug, Deserialize)]
struct Devices {
    devices: Vec<Device>,
}

/// What a server says of a request that it refuses.
#[derive(Debug, Deserialize)]
struct Problem {
    detail: String,
}

/// A device that is online.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Device {
    pub(crate) id: String,
    pub(crate) platform: String,
    pub(crate) features: Vec<String>,
    pub(crate) connected_since: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) address: Option<String>,
    pub(crate) tasks: Vec<Task>,
}

/// A task of a device, running or waiting.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) state: String,
    pub(crate) since: Timestamp,
    /// The rest is there for whoever may see the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) task: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) session_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) task_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) requester: Option<String>,
}

/// A copy of the store that was made.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Backup {
    pub(crate) folder: PathBuf,
    pub(crate) bytes: u64,
}

/// Who is online.
pub(crate) async fn devices(target: &Target) -> Result<Vec<Device>, Failure> {
    let request = client(target)?.get(target.server.http("/api/v1/devices"));
    let body = answer(target, request, "list of devices").await?;
    let devices: Devices = read(target, &body, "list of devices")?;
    Ok(devices.devices)
}

/// Has the server copy its store into a folder of its machine.
pub(crate) async fn backup(target: &Target, folder: &Path) -> Result<Backup, Failure> {
    let wanted = serde_json::json!({ "folder": folder });
    let request = client(target)?
        .post(target.server.http("/api/v1/backup"))
        .timeout(BACKUP_TIMEOUT)
        .json(&wanted);
    let body = answer(target, request, "copies").await?;
    read(target, &body, "copy")
}

/// What the server answers to a request that it grants.
async fn answer(
    target: &Target,
    mut request: reqwest::RequestBuilder,
    what: &str,
) -> Result<Vec<u8>, Failure> {
    if let Some(key) = &target.key {
        request = request.header("X-API-Key", key.expose_secret());
    }
    let response = request.send().await.map_err(|error| unreachable(target, error))?;
    match response.status().as_u16() {
        200 => {}
        401 => {
            let text = format!("the server at {} refused the key (HTTP 401)", target.server);
            return Err(target.explain(link::Exit::Refused(text)));
        }
        status if matches!(status, 403 | 429 | 503) || is_problem(&response) => {
            let text = body(target, response).await?;
            let problem: Option<Problem> = serde_json::from_slice(&text).ok();
            let why = problem.map_or_else(|| format!("HTTP {status}"), |problem| problem.detail);
            let text = format!("the server at {} refuses: {why}", target.server);
            return Err(Failure::unreachable(anyhow::anyhow!(text)));
        }
        status => {
            return Err(Failure::unreachable(anyhow::anyhow!(
                "the server at {} has no {what} (HTTP {status}): it is no Flightdeck \
                 server{}",
                target.server,
                // What a server behind TLS answers to plain HTTP.
                if status == 400 && !target.server.is_tls() {
                    "; if it speaks TLS, use wss:// or https://"
                } else {
                    ""
                }
            )));
        }
    }
    body(target, response).await
}

/// Whether an answer says what is wrong in the form of our API.
fn is_problem(response: &reqwest::Response) -> bool {
    let kind = response.headers().get(reqwest::header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/problem+json"))
}

fn read<T: serde::de::DeserializeOwned>(
    target: &Target,
    body: &[u8],
    what: &str,
) -> Result<T, Failure> {
    serde_json::from_slice(body)
        .with_context(|| format!("what {} answers is no {what}", target.server))
        .map_err(Failure::unreachable)
}

fn client(target: &Target) -> anyhow::Result<reqwest::Client> {
    // Left to itself, the HTTP client would read the system's certificates for a plain server too.
    let trust = target.trust.clone().map_or_else(Trust::nobody, Ok)?;
    let builder = match &target.proxy {
        Some(proxy) => reqwest::Client::builder().proxy(proxy_of(proxy)?),
        None => reqwest::Client::builder().no_proxy(),
    };
    builder
        .timeout(TIMEOUT)
        .connect_timeout(target.connect_timeout())
        // The key is for this server and nobody that it points to.
        .redirect(reqwest::redirect::Policy::none())
        .tls_backend_preconfigured(trust.config())
        .build()
        .context("cannot make an HTTP client")
}

/// The same proxy as everything else goes through.
fn proxy_of(proxy: &link::Proxy) -> anyhow::Result<reqwest::Proxy> {
    let cannot = || format!("the proxy {proxy}");
    let made = reqwest::Proxy::all(proxy.to_string()).with_context(cannot)?;
    let Some(authorization) = proxy.authorization() else { return Ok(made) };
    let mut value = reqwest::header::HeaderValue::from_str(authorization.expose_secret())
        .with_context(cannot)?;
    value.set_sensitive(true);
    Ok(made.custom_http_auth(value))
}

/// The body of an answer, as long as it is no longer than it may be.
async fn body(target: &Target, mut response: reqwest::Response) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(target, error))? {
        if body.len() + chunk.len() > MAX_BODY_BYTES {
            let text = format!("{} answers with more than {MAX_BODY_BYTES} bytes", target.server);
            return Err(Failure::unreachable(anyhow::anyhow!(text)));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn unreachable(target: &Target, error: reqwest::Error) -> Failure {
    let error = error.without_url();
    if let Some(error) = link::tls::explain(&target.server, &error) {
        return target.explain(link::Exit::Refused(error.to_string()));
    }
    if error.is_connect() {
        let text = format!("no server answers at {}", target.server);
        return target.explain(link::Exit::Refused(text));
    }
    Failure::unreachable(anyhow::Error::from(error).context(format!("asking {}", target.server)))
}
