//! What an operator's machinery asks: is it alive, does it take work, what has it counted.

use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, StatusCode, header};
use axum::response::IntoResponse;

use crate::metrics::CONTENT_TYPE;
use crate::server::Server;

/// Say that the process is alive
///
/// Looks at nothing, so that nothing can hold it up.
#[utoipa::path(
    get, path = "/healthz", tag = "operations", operation_id = "is_alive", security(()),
    responses((status = OK, body = String, content_type = "text/plain", description = "`ok`"))
)]
pub(super) async fn alive() -> &'static str {
    "ok"
}

/// Say whether new peers and tasks are taken
#[utoipa::path(
    get, path = "/readyz", tag = "operations", operation_id = "is_ready", security(()),
    responses(
        (status = OK, body = String, content_type = "text/plain", description = "`ready`, and whether the store may have lost tasks before this start"),
        (status = SERVICE_UNAVAILABLE, body = String, content_type = "text/plain",
            description = "`stopping`, or that the store would not write, and of how many tasks")
    )
)]
pub(super) async fn ready(State(server): State<Server>) -> (StatusCode, String) {
    let unstored = server.hub().levels().unstored;
    let health = server.store().health();
    if server.is_stopping() {
        (StatusCode::SERVICE_UNAVAILABLE, "stopping".to_owned())
    } else if unstored > 0 {
        let text = format!("the store fails: {unstored} tasks stay open until it writes again");
        (StatusCode::SERVICE_UNAVAILABLE, text)
    } else if let Some(trouble) = health.trouble {
        (StatusCode::SERVICE_UNAVAILABLE, format!("the store takes no new tasks: {trouble}"))
    } else if health.has_lost || server.hub().has_lost() {
        let lost = "the store may have lost tasks before this start; see the log";
        (StatusCode::OK, format!("ready; {lost}"))
    } else {
        (StatusCode::OK, "ready".to_owned())
    }
}

/// Show the metrics, as OpenMetrics text
///
/// For operators. docs/operations.md tells what each means.
#[utoipa::path(
    get, path = "/metrics", tag = "operations", operation_id = "show_metrics",
    responses((status = OK, body = String, content_type = CONTENT_TYPE, description = "Them all"))
)]
pub(super) async fn metrics(State(server): State<Server>) -> Response<Body> {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], server.metrics().render(&server)).into_response()
}
