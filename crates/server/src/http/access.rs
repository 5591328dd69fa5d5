//! Who may use a route.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::middleware::Next;
use axum::response::IntoResponse;

use super::problem::{NOT_ALLOWED, Problem};
use super::ufo;
use crate::audit::{Entry, Event};
use crate::auth::Principal;
use crate::front::Caller;
use crate::limits::Verdict;
use crate::metrics::Refused;
use crate::server::Server;

/// Who sends a request; handlers take it as an extension.
pub(super) type Holder = Arc<Principal>;

/// Why nobody is let in.
pub(super) enum Denied {
    /// No valid key.
    WrongKey,
    /// No valid key, and too many wrong ones from this address before.
    TooMany { retry_after: Duration },
}

/// Who shows a valid key.
pub(super) fn authenticate(server: &Server, request: &Request) -> Result<Holder, Denied> {
    let caller = request.extensions().get::<Caller>();
    if let Some(holder) = server.keyring().authenticate(request.headers(), request.uri()) {
        if let Some(caller) = caller {
            caller.has_valid_key();
        }
        return Ok(holder);
    }
    server.metrics().count_refused(Refused::WrongKey);
    let address = caller.map(|caller| caller.address);
    let verdict = address.map(|address| server.failed_keys().failed(address.ip()));
    if let Some(Verdict::Limited { retry_after }) = verdict {
        return Err(Denied::TooMany { retry_after });
    }
    tracing::info!(?address, path = request.uri().path(), "a wrong key or none was refused");
    server.audit().record(Entry { address, ..Entry::new(Event::KeyRefused) });
    Err(Denied::WrongKey)
}

/// Lets in whoever may submit tasks, in the terms of our API.
pub(super) async fn orchestrators(
    State(server): State<Server>,
    request: Request,
    next: Next,
) -> Response<Body> {
    match authenticate(&server, &request) {
        Ok(holder) if holder.is_orchestrator() => run(request, holder, next).await,
        Ok(holder) => not_allowed(&server, &request, &holder),
        Err(denied) => denied.into_response(),
    }
}

/// Lets in whoever may see everything.
pub(super) async fn operators(
    State(server): State<Server>,
    request: Request,
    next: Next,
) -> Response<Body> {
    match authenticate(&server, &request) {
        Ok(holder) if holder.is_operator() => run(request, holder, next).await,
        Ok(holder) => not_allowed(&server, &request, &holder),
        Err(denied) => denied.into_response(),
    }
}

/// Lets in whoever may submit tasks, in the terms of UFO's API.
pub(super) async fn ufo(
    State(server): State<Server>,
    request: Request,
    next: Next,
) -> Response<Body> {
    match authenticate(&server, &request) {
        Ok(holder) if holder.is_orchestrator() => run(request, holder, next).await,
        Ok(holder) => {
            note_not_allowed(&server, &request, &holder);
            ufo::detail(StatusCode::FORBIDDEN, NOT_ALLOWED)
        }
        Err(Denied::WrongKey) => ufo::detail(StatusCode::UNAUTHORIZED, "Invalid API key"),
        Err(too_many) => too_many.into_response(),
    }
}

fn not_allowed(server: &Server, request: &Request, holder: &Holder) -> Response<Body> {
    note_not_allowed(server, request, holder);
    Problem::not_allowed().into_response()
}

fn note_not_allowed(server: &Server, request: &Request, holder: &Holder) {
    server.audit().record(Entry {
        key: Some(holder.name()),
        address: request.extensions().get::<Caller>().map(|caller| caller.address),
        reason: Some(NOT_ALLOWED),
        ..Entry::new(Event::Refused)
    });
}

async fn run(mut request: Request, holder: Holder, next: Next) -> Response<Body> {
    request.extensions_mut().insert(holder);
    next.run(request).await
}

impl IntoResponse for Denied {
    fn into_response(self) -> Response<Body> {
        let retry_after = match self {
            Self::WrongKey => return Problem::invalid_key().into_response(),
            Self::TooMany { retry_after } => retry_after.as_secs() + 1,
        };
        let text = format!("Too many wrong keys from this address; wait {retry_after} s");
        let status = StatusCode::TOO_MANY_REQUESTS;
        let mut response = Problem::new(status, "too_many_wrong_keys", text).into_response();
        let headers = response.headers_mut();
        headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after));
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        response
    }
}
