//! The HTTP side: the upgrade to WebSocket, UFO's routes in UFO's form, and ours under `/api/v1`.

mod about;
mod access;
mod body;
mod devices;
mod openapi;
mod ops;
mod problem;
mod task_view;
mod tasks;
mod ufo;
mod web_socket;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{Response, StatusCode, Uri};
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, get, post};
use hyper::body::Incoming;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::SwaggerUi;

use crate::server::Server;
use problem::Problem;

/// Where our own API begins.
const V1: &str = "/api/v1";

/// All routes.
pub(crate) fn router(server: Server) -> Router {
    let (v1, description) = v1(&server).split_for_parts();
    let ufo = Router::new()
        .route("/api/clients", only(get(ufo::clients)))
        .route("/api/health", only(get(ufo::health)))
        .route("/api/dispatch", only(post(ufo::dispatch)))
        .route("/api/task_result/{task_name}", only(get(ufo::task_result)))
        .route_layer(from_fn_with_state(server.clone(), access::ufo));
    let metrics = Router::new()
        .route("/metrics", only(get(ops::metrics)))
        .route_layer(from_fn_with_state(server.clone(), access::operators));
    Router::new()
        .merge(ufo)
        .merge(v1.method_not_allowed_fallback(method_not_allowed))
        .merge(metrics)
        .route("/healthz", only(get(ops::alive)))
        .route("/readyz", only(get(ops::ready)))
        .route("/ws", only(get(web_socket::upgrade)))
        .merge(SwaggerUi::new("/api/docs").url("/api/openapi.json", description))
        .fallback(not_found)
        .with_state(server)
}

/// The description of our own API, as JSON.
pub(crate) fn description(server: &Server) -> String {
    let (_router, description) = v1(server).split_for_parts();
    let mut text = description.to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

/// Our own API.
fn v1(server: &Server) -> OpenApiRouter<Server> {
    let operators = OpenApiRouter::new()
        .routes(routes!(about::show))
        .route_layer(from_fn_with_state(server.clone(), access::operators));
    let routes = OpenApiRouter::new()
        .routes(routes!(devices::list))
        .routes(routes!(devices::show))
        .routes(routes!(tasks::list, tasks::submit))
        .routes(routes!(tasks::show))
        .routes(routes!(tasks::wait))
        .routes(routes!(tasks::cancel))
        .route_layer(from_fn_with_state(server.clone(), access::orchestrators))
        .merge(operators);
    OpenApiRouter::with_openapi(openapi::Description::openapi()).nest(V1, routes)
}

/// The answer to a request that Host or Origin forbid.
pub(crate) fn forbidden(reason: &str) -> Response<Body> {
    Problem::new(StatusCode::FORBIDDEN, "forbidden", reason).into_response()
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
    route.fallback(|| async { ufo::detail(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed") })
}

async fn method_not_allowed() -> Response<Body> {
    let text = "This route has other methods; see /api/docs";
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", text).into_response()
}

async fn not_found(uri: Uri) -> Response<Body> {
    if uri.path().starts_with(V1) {
        let text = "There is no such route; see /api/docs";
        return Problem::new(StatusCode::NOT_FOUND, "no_such_route", text).into_response();
    }
    ufo::detail(StatusCode::NOT_FOUND, "Not Found")
}
