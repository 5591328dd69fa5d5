//! Errors of the HTTP API, as `application/problem+json` (RFC 9457) with a code that stays.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::{IntoResponse, Json};
use serde::Serialize;
use utoipa::ToSchema;

use crate::hub::{CannotBegin, SubmitError};
use crate::store::StoreError;

/// The media type of an error.
pub(super) const KIND: &str = "application/problem+json";

/// What went wrong with a request.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Problem {
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599, example = 404)]
    status: u16,
    /// What the status means.
    #[schema(example = "Not Found")]
    title: &'static str,
    /// What went wrong, for programs. A code keeps its meaning.
    #[schema(example = "device_not_online")]
    code: &'static str,
    /// What went wrong and what to do, for people.
    #[schema(example = "Target device 'lab-1' is not connected")]
    detail: String,
}

/// The answer to a holder whose role is too small.
pub(super) const NOT_ALLOWED: &str = "The role of this key does not allow it";

impl Problem {
    pub(super) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        Self { status: status.as_u16(), title, code, detail: detail.into() }
    }

    /// The store could not be asked.
    pub(super) fn unreadable(error: &StoreError) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "store_failed", error.to_string())
    }

    pub(super) fn no_such_task() -> Self {
        let detail = "There is no such task, or it is not yours to see, or it was forgotten";
        Self::new(StatusCode::NOT_FOUND, "task_not_found", detail)
    }

    pub(super) fn invalid_key() -> Self {
        let detail = "Invalid API key; send it as X-API-Key or as Authorization: Bearer";
        Self::new(StatusCode::UNAUTHORIZED, "invalid_key", detail)
    }

    pub(super) fn not_allowed() -> Self {
        Self::new(StatusCode::FORBIDDEN, "not_allowed", NOT_ALLOWED)
    }

    pub(super) fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    pub(super) fn detail(&self) -> &str {
        &self.detail
    }
}

impl From<SubmitError> for Problem {
    fn from(error: SubmitError) -> Self {
        let (status, code) = match &error {
            SubmitError::NotADevice => (StatusCode::BAD_REQUEST, "not_a_device"),
            SubmitError::NotConnected(_) => (StatusCode::NOT_FOUND, "device_not_online"),
            SubmitError::NotAuthorized | SubmitError::NotGranted(_) => {
                (StatusCode::FORBIDDEN, "not_allowed")
            }
            SubmitError::TooLong { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "request_too_long"),
            SubmitError::Timeout { .. } => (StatusCode::BAD_REQUEST, "bad_command_timeout"),
            SubmitError::NoInput(_) => (StatusCode::CONFLICT, "no_input"),
            SubmitError::Replaced => (StatusCode::CONFLICT, "replaced"),
            SubmitError::Away(_) => (StatusCode::SERVICE_UNAVAILABLE, "device_away"),
            SubmitError::TooMuch(_) => (StatusCode::SERVICE_UNAVAILABLE, "too_much_undelivered"),
            SubmitError::RequestUsed(_) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_used")
            }
            SubmitError::Lost => (StatusCode::CONFLICT, "task_lost"),
            SubmitError::KeyGone => (StatusCode::UNAUTHORIZED, "invalid_key"),
            SubmitError::CannotBegin(why) => match why {
                CannotBegin::OwnedByAnother(_) | CannotBegin::AlreadyRunning(_) => {
                    (StatusCode::CONFLICT, "session_in_use")
                }
                CannotBegin::QueueFull { .. } => (StatusCode::SERVICE_UNAVAILABLE, "queue_full"),
                CannotBegin::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
            },
        };
        Self::new(status, code, error.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response<Body> {
        let retry = self.status() == StatusCode::SERVICE_UNAVAILABLE;
        let mut response = (self.status(), Json(self)).into_response();
        let headers = response.headers_mut();
        let kind = HeaderValue::from_static(KIND);
        headers.insert(header::CONTENT_TYPE, kind);
        if retry {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
        }
        response
    }
}
