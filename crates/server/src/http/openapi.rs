//! The description of the HTTP API, generated from the code.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use serde_json::json;
use utoipa::openapi::schema::{Object, OneOf, Schema, Type};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{Content, OpenApi as Document, Ref, RefOr, Response};
use utoipa::{Modify, OpenApi, ToSchema};

use super::problem::{KIND as PROBLEM, Problem};

/// The answers of a route, by status.
type Known = BTreeMap<String, RefOr<Response>>;

/// Where a request must not come from.
const FORBIDDEN: &str = "`forbidden`: `Host` or `Origin` is not one of the server's";

/// The same, where a key is needed.
const NOT_ALLOWED: &str = "`not_allowed`: the role or the targets of the key do not allow it; \
    `forbidden`: `Host` or `Origin` is not one of the server's";

/// What stands around the routes.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Flightdeck",
        description = "The agent server's HTTP API.\n\n\
            A request shows a key as `X-API-Key` or as `Authorization: Bearer`. Errors are \
            `application/problem+json` with a `code` that keeps its meaning. New fields may be added to \
            answers at any time; in requests, unknown ones are refused.\n\n\
            The routes under `ufo` are those of UFO's server, in UFO's forms. AIP itself is spoken at \
            `/ws`, over WebSocket."
    ),
    components(schemas(Problem)),
    modifiers(&Keys),
    security(("key" = []), ("bearer" = [])),
    tags(
        (name = "devices", description = "Who is online"),
        (name = "tasks", description = "What is to be done, and what became of it"),
        (name = "join", description = "How machines and operators join"),
        (name = "server", description = "The server itself"),
        (name = "operations", description = "For whoever keeps the server running"),
        (name = "ufo", description = "UFO's own routes, in UFO's forms")
    )
)]
pub(super) struct Description;

/// How a request shows its key.
struct Keys;

impl Modify for Keys {
    fn modify(&self, openapi: &mut Document) {
        let components = openapi.components.get_or_insert_default();
        let header = ApiKey::Header(ApiKeyValue::new("X-API-Key"));
        components.add_security_scheme("key", SecurityScheme::ApiKey(header));
        let bearer = Http::new(HttpAuthScheme::Bearer);
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    }
}

/// The schema of a task's `request`.
pub(super) fn request() -> Schema {
    let plan = Object::builder()
        .description(Some("A plan"))
        .examples([json!({"commands": [{"tool_name": "get_system_info"}]})]);
    let text = Object::builder()
        .schema_type(Type::String)
        .pattern(Some(r"\S"))
        .description(Some("Text for an agent, or a plan as text"));
    let both = OneOf::builder().item(plan).item(text);
    both.description(Some("What to do: a plan, `{\"commands\":[…]}`, or text")).into()
}

/// Adds what all routes share: who is refused, and in which form errors come.
pub(super) fn complete(mut document: Document) -> Document {
    for item in document.paths.paths.values_mut() {
        for operation in [&mut item.get, &mut item.post].into_iter().flatten() {
            let responses = &mut operation.responses.responses;
            responses.values_mut().for_each(name_problem);
            // Routes that need no key say so themselves.
            if operation.security.is_some() {
                add(responses, StatusCode::FORBIDDEN, FORBIDDEN);
            } else {
                add(responses, StatusCode::FORBIDDEN, NOT_ALLOWED);
                add(responses, StatusCode::UNAUTHORIZED, "`invalid_key`");
                add(responses, StatusCode::TOO_MANY_REQUESTS, "`too_many_wrong_keys`");
            }
        }
    }
    document
}

/// An error's body is of its own kind.
fn name_problem(response: &mut RefOr<Response>) {
    let RefOr::T(response) = response else { return };
    for (kind, content) in std::mem::take(&mut response.content) {
        let is_problem = matches!(&content, RefOr::T(content) if is_problem(content));
        let kind = if is_problem { PROBLEM.to_owned() } else { kind };
        response.content.insert(kind, content);
    }
}

fn is_problem(content: &Content) -> bool {
    let Some(RefOr::Ref(schema)) = &content.schema else { return false };
    *schema == Ref::from_schema_name(Problem::name())
}

/// Adds an error, unless the route describes this status in a form of its own; a refusal because of
/// `Host` or `Origin` is the same everywhere.
fn add(responses: &mut Known, status: StatusCode, text: &str) {
    let own = responses.get_mut(status.as_str());
    if own.is_some() && status != StatusCode::FORBIDDEN {
        return;
    }
    let known = own.and_then(|own| match own {
        RefOr::T(response) => Some(response),
        RefOr::Ref(_) => None,
    });
    let content = Content::new(Some(Ref::from_schema_name(Problem::name())));
    match known {
        Some(response) => {
            response.content.insert(PROBLEM.to_owned(), content.into());
        }
        None => {
            let response = Response::builder().description(text).content(PROBLEM, content);
            responses.insert(status.as_str().to_owned(), response.into());
        }
    }
}
