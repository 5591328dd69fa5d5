//! The body of a request: bounded in size and in time.

use std::error::Error;

use aip::payload::Object;
use axum::body::{Body, to_bytes};
use axum::http::StatusCode;
use bytes::Bytes;
use http_body_util::LengthLimitError;
use serde::de::DeserializeOwned;

use super::problem::Problem;
use crate::config::Config;

/// Room for what stands around a task's text.
const ENVELOPE_BYTES: usize = 64 * 1024;

/// Reads a body whole.
pub(super) async fn read(body: Body, config: &Config) -> Result<Bytes, Problem> {
    // In JSON a character may take twice its bytes, and more where it is a control character.
    let limit = config.max_request_bytes.saturating_mul(2).saturating_add(ENVELOPE_BYTES);
    match tokio::time::timeout(config.body_timeout, to_bytes(body, limit)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if is_too_large(&error) => Err(Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            format!("The body has more than {limit} bytes"),
        )),
        Ok(Err(_)) => Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "body_unreadable",
            "The body is not one in the form of HTTP, or it broke off",
        )),
        Err(_) => Err(Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            "body_too_slow",
            format!("The body did not come within {} s", config.body_timeout.as_secs_f64()),
        )),
    }
}

fn is_too_large(error: &axum::Error) -> bool {
    error.source().is_some_and(|source| source.is::<LengthLimitError>())
}

/// Reads a body that is JSON.
pub(super) async fn json<T: DeserializeOwned>(body: Body, config: &Config) -> Result<T, Problem> {
    let bytes = read(body, config).await?;
    parse(&bytes).map_err(|error| {
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        Problem::new(status, "body_invalid", format!("The body is not valid: {error}"))
    })
}

/// Parses JSON that is not nested too deeply.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    aip::codec::check_depth(bytes, aip::codec::MAX_DEPTH).map_err(|error| error.to_string())?;
    let read = serde_json::from_slice::<Object<T>>(bytes);
    read.map(|Object(read)| read).map_err(|error| error.to_string())
}
