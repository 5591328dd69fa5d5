//! Who may use a route.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Response, StatusCode};
use axum::middleware::Next;
use axum::response::IntoResponse;

use super::problem::Problem;
use super::ufo;
use crate::auth::Principal;
use crate::metrics::Refused;
use crate::server::Server;

/// Who sends a request; handlers take it as an extension.
pub(super) type Holder = Arc<Principal>;

/// Lets in whoever may submit tasks, in the terms of our API.
pub(super) async fn orchestrators(
    State(server): State<Server>,
    request: Request,
    next: Next,
) -> Response<Body> {
    match holder(&server, &request) {
        Some(holder) if holder.is_orchestrator() => run(request, holder, next).await,
        Some(_) => Problem::not_allowed().into_response(),
        None => wrong_key().into_response(),
    }
}

/// Lets in whoever may see everything.
pub(super) async fn operators(
    State(server): State<Server>,
    request: Request,
    next: Next,
) -> Response<Body> {
    match holder(&server, &request) {
        Some(holder) if holder.is_operator() => run(request, holder, next).await,
        Some(_) => Problem::not_allowed().into_response(),
        None => wrong_key().into_response(),
    }
}

/// Lets in whoever may submit tasks, in the terms of UFO's API.
pub(super) async fn ufo(
    State(server): State<Server>,
    request: Request,
    next: Next,
) -> Response<Body> {
    match holder(&server, &request) {
        Some(holder) if holder.is_orchestrator() => run(request, holder, next).await,
        Some(_) => ufo::detail(StatusCode::FORBIDDEN, "The role of this key does not allow it"),
        None => ufo::detail(StatusCode::UNAUTHORIZED, "Invalid API key"),
    }
}

fn holder(server: &Server, request: &Request) -> Option<Holder> {
    let holder = server.keyring().authenticate(request.headers(), request.uri());
    if holder.is_none() {
        server.metrics().count_refused(Refused::WrongKey);
    }
    holder
}

async fn run(mut request: Request, holder: Holder, next: Next) -> Response<Body> {
    request.extensions_mut().insert(holder);
    next.run(request).await
}

fn wrong_key() -> Problem {
    Problem::new(
        StatusCode::UNAUTHORIZED,
        "invalid_key",
        "Invalid API key; send it as X-API-Key or as Authorization: Bearer",
    )
}
