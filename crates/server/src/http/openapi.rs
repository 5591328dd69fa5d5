//! The description of the HTTP API, generated from the code.

use utoipa::openapi::security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};

/// What stands around the routes.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Flightdeck",
        description = "The agent server's HTTP API. Errors are `application/problem+json` with a \
            `code` that keeps its meaning. The routes that UFO's server has too \
            (`/api/clients`, `/api/health`, `/api/dispatch`, `/api/task_result/{task_name}`) keep \
            UFO's forms and are described in docs/ufo-compatibility.md."
    ),
    modifiers(&Keys),
    security(("key" = []), ("bearer" = [])),
    tags(
        (name = "devices", description = "Who is online"),
        (name = "tasks", description = "What is to be done, and what became of it"),
        (name = "server", description = "The server itself")
    )
)]
pub(super) struct Description;

/// How a request shows its key.
struct Keys;

impl Modify for Keys {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let components = openapi.components.get_or_insert_default();
        let header = ApiKey::Header(ApiKeyValue::new("X-API-Key"));
        components.add_security_scheme("key", SecurityScheme::ApiKey(header));
        let bearer = Http::new(HttpAuthScheme::Bearer);
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    }
}
