//! `GET /ws`: the upgrade to AIP.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Response, StatusCode};
use axum::response::IntoResponse;

use super::access::{self, Denied};
use super::join;
use super::ufo::detail;
use crate::accept::{self, Visitor};
use crate::front::Caller;
use crate::metrics::RefusalReason;
use crate::server::Server;

/// Refuses a wrong key before the upgrade.
pub(super) async fn upgrade(State(server): State<Server>, mut request: Request) -> Response<Body> {
    let address = request.extensions().get::<Caller>().map(|caller| caller.address);
    let proved = join::prove(&server, &request);
    if proved.is_none() && server.keyring().shows_unknown(request.headers(), request.uri()) {
        server.look_for_keys().await;
    }
    let holder = match proved.unwrap_or_else(|| access::authenticate(&server, &request)) {
        Ok(holder) => holder,
        Err(Denied::WrongKey) => return StatusCode::FORBIDDEN.into_response(),
        Err(denied) => return denied.into_response(),
    };
    if !server.has_room() {
        server.metrics().count_refused(RefusalReason::NoRoom);
        return detail(
            StatusCode::SERVICE_UNAVAILABLE,
            "The server is at its limit of connections",
        );
    }
    let Some(key) = accept::upgrade_key(&request) else {
        return detail(StatusCode::NOT_FOUND, "Not Found");
    };
    let response = accept::switch(key);
    server.spawn_upgraded(hyper::upgrade::on(&mut request), Visitor { holder, address });
    response
}
