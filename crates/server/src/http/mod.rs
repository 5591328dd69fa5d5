//! The HTTP side: the upgrade to WebSocket, UFO's routes in UFO's form, and ours under `/api/v1`.

mod about;
mod access;
mod answer;
mod backup;
mod body;
mod devices;
mod join;
mod openapi;
mod ops;
mod output;
mod problem;
mod submit;
mod task_view;
mod tasks;
#[cfg(test)]
mod tests;
mod ufo;
mod web_socket;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{Response, StatusCode, Uri};
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, get};
use hyper::body::Incoming;
use utoipa::OpenApi;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouterExt};
use utoipa_axum::routes;
use utoipa_swagger_ui::{self as swagger_ui, SwaggerUi};

use crate::server::Server;
use problem::Problem;

/// Where our own API begins.
const V1: &str = "/api/v1";

/// All routes.
pub(crate) fn router(server: Server) -> Router {
    let (api, description) = api(&server).split_for_parts();
    let docs = SwaggerUi::new("/api/docs")
        .url("/api/openapi.json", openapi::complete(description))
        // The page would ask a public validator what it thinks of the description.
        .config(swagger_ui::Config::default().use_base_layout().validator_url("none"));
    api.route("/ws", only(get(web_socket::upgrade)))
        .fallback(not_found)
        .layer(map_response(async |answer| answer::unstored(answer)))
        .merge(Router::from(docs).layer(map_response(async |page| answer::docs(page))))
        .with_state(server)
}

/// The description of the HTTP API, as JSON.
pub(crate) fn description(server: &Server) -> String {
    let (_router, description) = api(server).split_for_parts();
    let mut text = openapi::complete(description).to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

/// The routes that are described.
fn api(server: &Server) -> OpenApiRouter<Server> {
    OpenApiRouter::with_openapi(openapi::Description::openapi())
        .nest(V1, our_routes(server))
        .merge(ufo_routes(server))
        .merge(ops_routes(server))
}

/// Our own API.
fn our_routes(server: &Server) -> OpenApiRouter<Server> {
    let operators = OpenApiRouter::new()
        .routes(routes!(about::show).map(ours))
        .routes(routes!(backup::make).map(ours))
        .routes(routes!(join::rejoin).map(ours))
        .route_layer(from_fn_with_state(server.clone(), access::operators));
    OpenApiRouter::new()
        .routes(routes!(devices::list).map(ours))
        .routes(routes!(devices::show).map(ours))
        .routes(routes!(tasks::list, tasks::submit).map(ours))
        .routes(routes!(tasks::show).map(ours))
        .routes(routes!(tasks::wait).map(ours))
        .routes(routes!(tasks::cancel).map(ours))
        .routes(routes!(output::output).map(ours))
        .route_layer(from_fn_with_state(server.clone(), access::orchestrators))
        .merge(operators)
        // Who joins has no key yet.
        .routes(routes!(join::challenge).map(ours))
        .routes(routes!(join::join).map(ours))
        .routes(routes!(join::login).map(ours))
}

/// UFO's routes.
fn ufo_routes(server: &Server) -> OpenApiRouter<Server> {
    OpenApiRouter::new()
        .routes(routes!(ufo::clients).map(only))
        .routes(routes!(ufo::health).map(only))
        .routes(routes!(ufo::dispatch).map(only))
        .routes(routes!(ufo::task_result).map(only))
        .route_layer(from_fn_with_state(server.clone(), access::ufo))
}

/// What an operator's machinery asks.
fn ops_routes(server: &Server) -> OpenApiRouter<Server> {
    OpenApiRouter::new()
        .routes(routes!(ops::metrics).map(only))
        .route_layer(from_fn_with_state(server.clone(), access::operators))
        .routes(routes!(ops::alive).map(only))
        .routes(routes!(ops::ready).map(only))
}

/// The answer to a request that Host or Origin forbid.
pub(crate) fn forbidden(reason: &str) -> Response<Body> {
    answer::unstored(Problem::new(StatusCode::FORBIDDEN, "forbidden", reason).into_response())
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

/// A route that answers the other methods as ours do.
fn ours(route: MethodRouter<Server>) -> MethodRouter<Server> {
    route.fallback(method_not_allowed)
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
