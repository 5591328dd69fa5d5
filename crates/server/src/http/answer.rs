//! What our routes share: reading a name out of a path, writing a large answer, and the headers of
//! every answer.

use std::convert::Infallible;

use axum::body::Body;
use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use serde::Serialize;

use super::problem::Problem;

/// What the pages of `/api/docs` may load: what this server has, and nothing from anywhere else. The
/// page styles itself from its script, and has pictures in its style sheet.
const DOCS_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
    img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";

/// The `{id}` of a path. One that is no UTF-8 names nothing, so it reads as empty.
pub(super) struct Id(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        Ok(Self(path.map(|Path(id)| id).unwrap_or_default()))
    }
}

/// Answers with what may be large: it is made and written on a thread of its own, so that no other
/// request waits for it.
pub(super) async fn on_thread<T: Serialize>(
    make: impl FnOnce() -> T + Send + 'static,
) -> Result<Response<Body>, Problem> {
    match tokio::task::spawn_blocking(move || serde_json::to_vec(&make())).await {
        Ok(Ok(text)) => Ok(json(text)),
        _ => {
            let text = "The answer could not be written";
            Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", text))
        }
    }
}

/// Answers with JSON that is written already.
pub(super) fn json(text: Vec<u8>) -> Response<Body> {
    let kind = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    ([kind], text).into_response()
}

/// Sets the headers of every answer: browsers take its content type as it is, and no cache keeps it.
pub(super) fn unstored(mut response: Response<Body>) -> Response<Body> {
    set(&mut response, header::CACHE_CONTROL, "no-store");
    plain(&mut response);
    response
}

/// Puts the headers of the pages of `/api/docs` on.
pub(super) fn docs(mut response: Response<Body>) -> Response<Body> {
    set(&mut response, header::CONTENT_SECURITY_POLICY, DOCS_POLICY);
    set(&mut response, header::REFERRER_POLICY, "no-referrer");
    plain(&mut response);
    response
}

fn plain(response: &mut Response<Body>) {
    set(response, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
}

fn set(response: &mut Response<Body>, name: HeaderName, value: &'static str) {
    response.headers_mut().insert(name, HeaderValue::from_static(value));
}
