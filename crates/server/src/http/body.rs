//! The body of a request: bounded in size and in time.

use std::time::Duration;

use aip::payload::Object;
use axum::body::Body;
use axum::http::StatusCode;
use bytes::Bytes;
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;

use super::problem::Problem;
use crate::config::Config;

/// Room for what stands around a task's text.
const ENVELOPE_BYTES: usize = 64 * 1024;

/// How much more than the limit is read and dropped, so that a client that is still writing gets the
/// answer and not a broken connection.
const MAX_DROPPED_BYTES: usize = 16 * 1024 * 1024;

/// And for how long.
const MAX_DROPPING: Duration = Duration::from_secs(1);

/// Why a body is not there.
enum Unread {
    TooLarge,
    BrokenOff,
}

/// Reads a body whole.
pub(super) async fn read(body: Body, config: &Config) -> Result<Bytes, Problem> {
    // In JSON a character may take twice its bytes, and more where it is a control character.
    let limit = config.max_request_bytes.saturating_mul(2).saturating_add(ENVELOPE_BYTES);
    read_within(body, config, limit).await
}

async fn read_within(body: Body, config: &Config, limit: usize) -> Result<Bytes, Problem> {
    match tokio::time::timeout(config.body_timeout, collect(body, limit)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(Unread::TooLarge)) => Err(Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            format!("The body has more than {limit} bytes"),
        )),
        Ok(Err(Unread::BrokenOff)) => Err(Problem::new(
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

async fn collect(mut body: Body, limit: usize) -> Result<Bytes, Unread> {
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Unread::BrokenOff)?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + data.len() > limit {
            drop(whole);
            // What is dropped needs no answer of its own.
            let _dropped = tokio::time::timeout(MAX_DROPPING, drop_rest(body)).await;
            return Err(Unread::TooLarge);
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.into())
}

/// Reads what still comes, up to a bound, and drops it.
async fn drop_rest(mut body: Body) {
    let mut left = MAX_DROPPED_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        match left.checked_sub(bytes) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

/// Reads a body that is JSON.
pub(super) async fn json<T: DeserializeOwned>(body: Body, config: &Config) -> Result<T, Problem> {
    valid(&read(body, config).await?)
}

/// The same of no more than `limit` bytes.
pub(super) async fn small<T: DeserializeOwned>(
    body: Body,
    config: &Config,
    limit: usize,
) -> Result<T, Problem> {
    valid(&read_within(body, config, limit).await?)
}

fn valid<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    parse(bytes).map_err(|error| {
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
