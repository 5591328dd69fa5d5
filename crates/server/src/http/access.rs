//! Who may use a route.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{OriginalUri, Request, State};
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::middleware::Next;
use axum::response::IntoResponse;

use super::problem::{NOT_ALLOWED, Problem};
use super::ufo;
use crate::audit::{Entry, Event};
use crate::auth::Principal;
use crate::front::Caller;
use crate::limits::Verdict;
use crate::metrics::RefusalReason;
use crate::server::Server;

/// Who sends a request; handlers take it as an extension.
pub(super) type Holder = Arc<Principal>;

/// Why a request is not let in.
pub(super) enum Denied {
    /// No valid key.
    WrongKey,
    /// No valid key, and too many wrong ones from this address before.
    TooMany { retry_after: Duration },
    /// A device's signature that proves nothing, for this reason.
    NotProved(String),
    /// A valid key, which does not open this.
    NotAllowed,
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
    let path = request.extensions().get::<OriginalUri>().map(|OriginalUri(uri)| uri.path());
    Err(wrong_key(server, caller, path, None))
}

/// Counts and writes down that somebody has shown nothing that opens: [`Denied::WrongKey`], unless it was one too many.
pub(super) fn wrong_key(
    server: &Server,
    caller: Option<&Caller>,
    path: Option<&str>,
    why: Option<&str>,
) -> Denied {
    server.metrics().count_refused(RefusalReason::WrongKey);
    let address = caller.map(|caller| caller.address);
    let verdict = address.map(|address| server.failed_keys().failed(address.ip()));
    if let Some(Verdict::Limited { retry_after }) = verdict {
        return Denied::TooMany { retry_after };
    }
    let address_shown = address.map(tracing::field::display);
    tracing::info!(address = address_shown, path, why, "a wrong key or none was refused");
    server.audit().record(Entry { address, reason: why, ..Entry::new(Event::KeyRefused) });
    Denied::WrongKey
}

/// Lets in holders that may submit tasks, and answers others in the terms of our API.
pub(super) async fn orchestrators(
    State(server): State<Server>,
    request: Request,
    next: Next,
) -> Response<Body> {
    let let_in = let_in(&server, request, next, Principal::is_orchestrator);
    let_in.await.unwrap_or_else(IntoResponse::into_response)
}

/// Lets in holders that may see everything.
pub(super) async fn operators(
    State(server): State<Server>,
    request: Request,
    next: Next,
) -> Response<Body> {
    let let_in = let_in(&server, request, next, Principal::is_operator);
    let_in.await.unwrap_or_else(IntoResponse::into_response)
}

/// Lets in holders that may submit tasks, and answers others in the terms of UFO's API.
pub(super) async fn ufo(
    State(server): State<Server>,
    request: Request,
    next: Next,
) -> Response<Body> {
    match let_in(&server, request, next, Principal::is_orchestrator).await {
        Ok(response) => response,
        Err(Denied::WrongKey) => ufo::detail(StatusCode::UNAUTHORIZED, "Invalid API key"),
        Err(Denied::NotAllowed) => ufo::detail(StatusCode::FORBIDDEN, NOT_ALLOWED),
        Err(denied) => denied.into_response(),
    }
}

/// Passes a request on with its [`Holder`], if its key is enough.
async fn let_in(
    server: &Server,
    mut request: Request,
    next: Next,
    is_enough: fn(&Principal) -> bool,
) -> Result<Response<Body>, Denied> {
    if server.keyring().shows_unknown(request.headers(), request.uri()) {
        server.look_for_keys().await;
    }
    let holder = authenticate(server, &request)?;
    if !is_enough(&holder) {
        server.audit().record(Entry {
            key: Some(holder.name()),
            address: request.extensions().get::<Caller>().map(|caller| caller.address),
            reason: Some(NOT_ALLOWED),
            ..Entry::new(Event::Refused)
        });
        return Err(Denied::NotAllowed);
    }
    request.extensions_mut().insert(holder);
    Ok(next.run(request).await)
}

impl IntoResponse for Denied {
    fn into_response(self) -> Response<Body> {
        let retry_after = match self {
            Self::WrongKey => return Problem::invalid_key().into_response(),
            Self::NotAllowed => return Problem::not_allowed().into_response(),
            Self::NotProved(why) => {
                return Problem::new(StatusCode::FORBIDDEN, "not_proved", why).into_response();
            }
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
