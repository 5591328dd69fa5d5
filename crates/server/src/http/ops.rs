//! What an operator's machinery asks: is it alive, does it take work, what has it counted.

use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, StatusCode, header};
use axum::response::IntoResponse;

use crate::metrics::CONTENT_TYPE;
use crate::server::Server;

/// `GET /healthz`: the process answers. Looks at nothing, so that nothing can hold it up.
pub(super) async fn alive() -> &'static str {
    "ok"
}

/// `GET /readyz`: whether new peers and tasks are taken.
pub(super) async fn ready(State(server): State<Server>) -> (StatusCode, &'static str) {
    if server.is_stopping() {
        (StatusCode::SERVICE_UNAVAILABLE, "stopping")
    } else {
        (StatusCode::OK, "ready")
    }
}

/// `GET /metrics`, as OpenMetrics text.
pub(super) async fn metrics(State(server): State<Server>) -> Response<Body> {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], server.metrics().render(&server)).into_response()
}
