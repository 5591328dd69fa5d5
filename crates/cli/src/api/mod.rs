//! The server's HTTP API, as far as the command line uses it: devices, tasks, and copies of the store.

mod backup;
mod devices;
mod join;
mod tasks;

use std::time::Duration;

use anyhow::Context;
use link::Trust;
use reqwest::{Method, RequestBuilder, Url};
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::connect::Target;
use crate::{Code, Failure};

pub(crate) use devices::{Device, DeviceTask};
pub(crate) use tasks::{Action, Listed, Output, PAGE, Query, Step, Task, TaskId};

/// Longest wait for an answer, beside what the server was asked to wait.
const TIMEOUT: Duration = Duration::from_secs(15);

/// The longest answer with the results of a task that is read, in bytes. They may take as much as a message, several
/// times.
const MAX_TASK_BYTES: usize = 1024 * 1024 * 1024;

/// The same of a list.
const MAX_LIST_BYTES: usize = 64 * 1024 * 1024;

/// The same of all that is short: a refusal, a key.
const MAX_SHORT_BYTES: usize = 64 * 1024;

/// What our server says of a request that it refuses. UFO's has no code.
#[derive(Debug, Deserialize)]
struct Problem {
    detail: String,
    code: String,
}

/// The API of one server.
pub(crate) struct Api<'a> {
    target: &'a Target,
    client: reqwest::Client,
}

/// A request with its answer. Statuses that say the same of every route have become failures already.
struct Answer {
    status: u16,
    body: Vec<u8>,
}

impl<'a> Api<'a> {
    pub(crate) fn new(target: &'a Target) -> anyhow::Result<Self> {
        Ok(Self { target, client: client(target)? })
    }

    async fn get(&self, path: &str, query: &[(&str, String)]) -> Result<Answer, Failure> {
        self.send(Method::GET, path, query, TIMEOUT).await
    }

    /// Sends a request. `timeout` is for the whole answer.
    async fn send(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        timeout: Duration,
    ) -> Result<Answer, Failure> {
        // Whoever answers may be no server of ours.
        let most = match path {
            "/api/v1/tasks" | "/api/v1/devices" => MAX_LIST_BYTES,
            path if path.starts_with("/api/v1/tasks/") => MAX_TASK_BYTES,
            _ => MAX_SHORT_BYTES,
        };
        self.answer(self.request(method, path, query)?, timeout, most).await
    }

    /// A request with the key.
    fn request(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<RequestBuilder, Failure> {
        let address = self.target.server.http(path);
        let mut url = Url::parse(&address).with_context(|| format!("{address} is no address"))?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let request = self.client.request(method, url);
        Ok(match &self.target.key {
            Some(key) => request.header("X-API-Key", key.expose_secret()),
            None => request,
        })
    }

    /// What the server answers, in `most` bytes at most. `timeout` is for the whole of it.
    async fn answer(
        &self,
        request: RequestBuilder,
        timeout: Duration,
        most: usize,
    ) -> Result<Answer, Failure> {
        let response =
            request.timeout(timeout).send().await.map_err(|error| self.unreachable(error))?;
        self.read_answer(response, most).await
    }

    /// The same of an answer whose beginning is there.
    async fn read_answer(
        &self,
        response: reqwest::Response,
        most: usize,
    ) -> Result<Answer, Failure> {
        let status = response.status().as_u16();
        if status == 401 {
            let text = format!("the server at {} refused the key (HTTP 401)", self.target.server);
            return Err(self.target.explain(link::Exit::Refused(text)));
        }
        let most = if response.status().is_success() { most } else { MAX_SHORT_BYTES };
        let body = self.body(response, most).await?;
        if matches!(status, 403 | 429 | 503) {
            let why = detail(&body).unwrap_or_else(|| format!("HTTP {status}"));
            let text = format!("the server at {} refuses: {why}", self.target.server);
            return Err(Failure::unreachable(anyhow::anyhow!(text)));
        }
        Ok(Answer { status, body })
    }

    /// The body of an answer, as long as it is no longer than it may be.
    async fn body(&self, mut response: reqwest::Response, most: usize) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.unreachable(error))? {
            if body.len() + chunk.len() > most {
                let server = &self.target.server;
                let text = format!("{server} answers with more than {most} bytes");
                return Err(Failure::unreachable(anyhow::anyhow!(text)));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn unreachable(&self, error: reqwest::Error) -> Failure {
        let (target, error) = (self.target, error.without_url());
        if let Some(error) = link::tls::explain(&target.server, &error) {
            return target.explain(link::Exit::Refused(error.to_string()));
        }
        if error.is_connect() {
            let text = format!("no server answers at {}", target.server);
            return target.explain(link::Exit::Refused(text));
        }
        Failure::unreachable(
            anyhow::Error::from(error).context(format!("asking {}", target.server)),
        )
    }

    /// What a good answer says. What the server refuses is a failure of the command; a server without such a route is
    /// none of ours.
    fn read<T: DeserializeOwned>(&self, answer: &Answer, what: &str) -> Result<T, Failure> {
        let body = self.good(answer, what)?;
        let read = serde_json::from_slice(body);
        let wrong = || format!("what {} answers is no {what}", self.target.server);
        read.with_context(wrong).map_err(Failure::unreachable)
    }

    /// The body of a good answer.
    fn good<'b>(&self, answer: &'b Answer, what: &str) -> Result<&'b [u8], Failure> {
        let Answer { status, body } = answer;
        if (200..300).contains(status) {
            return Ok(body);
        }
        if let Some(detail) = detail(body) {
            return Err(Failure { code: Code::FAILED, error: anyhow::anyhow!(detail) });
        }
        // What a server behind TLS answers to plain HTTP.
        let may_be_tls = *status == 400 && !self.target.server.is_tls();
        let hint = if may_be_tls { "; if it speaks TLS, use wss:// or https://" } else { "" };
        Err(Failure::unreachable(anyhow::anyhow!(
            "the server at {} has no {what} (HTTP {status}): it is no Flightdeck server{hint}",
            self.target.server,
        )))
    }
}

/// What our server says of a request that it refuses; `None` of what others say.
fn detail(body: &[u8]) -> Option<String> {
    serde_json::from_slice::<Problem>(body).ok().map(|problem| problem.detail)
}

/// The code of such a refusal.
fn code(body: &[u8]) -> Option<String> {
    serde_json::from_slice::<Problem>(body).ok().map(|problem| problem.code)
}

fn client(target: &Target) -> anyhow::Result<reqwest::Client> {
    // Left to itself, the HTTP client would read the system's certificates for a plain server too.
    let trust = target.trust.clone().map_or_else(Trust::nobody, Ok)?;
    let builder = match &target.proxy {
        Some(proxy) => reqwest::Client::builder().proxy(proxy_of(proxy)?),
        None => reqwest::Client::builder().no_proxy(),
    };
    builder
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
