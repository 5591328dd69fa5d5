//! `GET /ws`: the upgrade to AIP.

use std::net::SocketAddr;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Response, StatusCode};
use axum::response::IntoResponse;

use super::ufo::detail;
use crate::accept::{self, Visitor};
use crate::metrics::Refused;
use crate::server::Server;

/// Refuses a wrong key before the upgrade.
pub(super) async fn upgrade(State(server): State<Server>, mut request: Request) -> Response<Body> {
    let address = request.extensions().get::<SocketAddr>().copied();
    let Some(holder) = server.keyring().authenticate(request.headers(), request.uri()) else {
        server.metrics().count_refused(Refused::WrongKey);
        tracing::info!(?address, "a WebSocket with a wrong key or none was refused");
        return StatusCode::FORBIDDEN.into_response();
    };
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
    server.spawn_upgraded(hyper::upgrade::on(&mut request), Visitor { holder, address });
    response
}
