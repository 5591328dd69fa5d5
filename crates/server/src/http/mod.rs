//! The HTTP side: the upgrade to WebSocket, UFO's routes in UFO's form, and ours under `/api/v1`.

mod devices;
mod ops;

use std::net::SocketAddr;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Response, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Json};
use axum::routing::{MethodRouter, get};
use hyper::body::Incoming;
use serde::Serialize;

use crate::accept;
use crate::metrics::Refused;
use crate::server::Server;

/// All routes.
pub(crate) fn router(server: Server) -> Router {
    let api = Router::new()
        .route("/api/clients", only(get(clients)))
        .route("/api/health", only(get(health)))
        .route("/api/v1/devices", only(get(devices::list)))
        .route("/metrics", only(get(ops::metrics)))
        .route_layer(middleware::from_fn_with_state(server.clone(), require_key));
    Router::new()
        .merge(api)
        .route("/ws", only(get(web_socket)))
        .route("/healthz", only(get(ops::alive)))
        .route("/readyz", only(get(ops::ready)))
        .fallback(|| async { detail(StatusCode::NOT_FOUND, "Not Found") })
        .with_state(server)
}

/// Serves one request.
pub(crate) async fn call(router: &mut Router, request: Request<Incoming>) -> Response<Body> {
    use tower_service::Service;
    match router.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// A route that answers the other methods as UFO's server does.
fn only(route: MethodRouter<Server>) -> MethodRouter<Server> {
    route.fallback(|| async { detail(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed") })
}

/// An error in the form of UFO's server.
#[derive(Serialize)]
struct Detail {
    detail: &'static str,
}

fn detail(status: StatusCode, detail: &'static str) -> Response<Body> {
    (status, Json(Detail { detail })).into_response()
}

async fn require_key(State(server): State<Server>, request: Request, next: Next) -> Response<Body> {
    if server.key().admits(request.headers(), request.uri()) {
        next.run(request).await
    } else {
        server.metrics().count_refused(Refused::WrongKey);
        detail(StatusCode::UNAUTHORIZED, "Invalid API key")
    }
}

/// `GET /ws`: refuses a wrong key before the upgrade.
async fn web_socket(State(server): State<Server>, mut request: Request) -> Response<Body> {
    let address = request.extensions().get::<SocketAddr>().copied();
    if !server.key().admits(request.headers(), request.uri()) {
        server.metrics().count_refused(Refused::WrongKey);
        tracing::info!(?address, "a WebSocket with a wrong key or none was refused");
        return StatusCode::FORBIDDEN.into_response();
    }
    if !server.has_room() {
        server.metrics().count_refused(Refused::NoRoom);
        return detail(
            StatusCode::SERVICE_UNAVAILABLE,
            "The server is at its limit of connections",
        );
    }
    let Some(key) = accept::upgrade_key(request.headers()) else {
        return detail(StatusCode::NOT_FOUND, "Not Found");
    };
    let response = accept::switch(key);
    server.spawn_upgraded(hyper::upgrade::on(&mut request), address);
    response
}

#[derive(Serialize)]
struct Clients {
    online_clients: Vec<String>,
}

async fn clients(State(server): State<Server>) -> Json<Clients> {
    Json(Clients { online_clients: online(&server) })
}

#[derive(Serialize)]
struct Health {
    status: &'static str,
    online_clients: Vec<String>,
}

async fn health(State(server): State<Server>) -> Json<Health> {
    Json(Health { status: "healthy", online_clients: online(&server) })
}

fn online(server: &Server) -> Vec<String> {
    server.registry().all().iter().map(|client| client.id().to_string()).collect()
}
