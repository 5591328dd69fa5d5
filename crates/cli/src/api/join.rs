//! Joining: what a join token opens.

use std::time::Duration;

use anyhow::Context;
use reqwest::{Method, RequestBuilder, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::json;

use super::{Answer, Api, MAX_SHORT_BYTES, TIMEOUT};
use crate::{Code, Failure};

/// A device that has joined.
#[derive(Debug, Deserialize)]
pub(crate) struct Member {
    /// What its key pair is called at the server.
    pub(crate) key: String,
    /// The id of the server's store.
    pub(crate) store: String,
}

/// An operator's new key.
#[derive(Deserialize)]
pub(crate) struct Operator {
    pub(crate) key: String,
    pub(crate) name: String,
}

/// What lets a device join again.
#[derive(Deserialize)]
pub(crate) struct Rejoin {
    pub(crate) token: String,
    pub(crate) expires_at: String,
    /// The hash of the server's public key.
    pub(crate) key_hash: Option<String>,
}

impl Api<'_> {
    /// Makes an operator's key.
    pub(crate) async fn login(&self, token: &SecretString) -> Result<Operator, Failure> {
        let request = self.request(Method::POST, "/api/v1/login", &[])?;
        let answer = self.shown(token, request, TIMEOUT).await?;
        self.read(&answer, "answer to who logs in").map_err(refused)
    }

    /// Lets a device join again.
    pub(crate) async fn rejoin(&self, id: &str) -> Result<Rejoin, Failure> {
        // An id may have any characters.
        let mut path = Url::parse("http://x/api/v1/devices").context("the path")?;
        if let Ok(mut segments) = path.path_segments_mut() {
            segments.extend([id, "rejoin"]);
        }
        let answer = self.send(Method::POST, path.path(), &[], TIMEOUT).await?;
        self.read(&answer, "devices that join")
    }

    /// Binds an id to a public key.
    pub(crate) async fn join(
        &self,
        token: &SecretString,
        id: &str,
        public_key: &str,
    ) -> Result<Member, Failure> {
        let body = json!({"id": id, "public_key": public_key}).to_string();
        let request = self.request(Method::POST, "/api/v1/join", &[])?;
        let request = request.header("content-type", "application/json").body(body);
        let answer = self.shown(token, request, TIMEOUT).await?;
        self.read(&answer, "answer to a device that joins").map_err(refused)
    }

    /// The answer to who shows a join token, whatever it is.
    async fn shown(
        &self,
        token: &SecretString,
        request: RequestBuilder,
        timeout: Duration,
    ) -> Result<Answer, Failure> {
        let request = request.bearer_auth(token.expose_secret()).timeout(timeout);
        let response = request.send().await.map_err(|error| self.unreachable(error))?;
        let status = response.status().as_u16();
        Ok(Answer { status, body: self.body(response, MAX_SHORT_BYTES).await? })
    }
}

/// A refusal is the server's, not the task's.
fn refused(failure: Failure) -> Failure {
    match failure.code {
        Code::FAILED => {
            Failure { code: Code::UNREACHABLE, error: failure.error.context("the server refuses") }
        }
        _ => failure,
    }
}
