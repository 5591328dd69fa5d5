//! UFO's four routes, in UFO's forms: see `docs/ufo-compatibility.md`.

use std::net::SocketAddr;
use std::sync::Arc;

use aip::machine::{AsSent, TaskRequest};
use aip::message::OnDisconnect;
use aip::{ClientId, SessionId, TaskName};
use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, StatusCode};
use axum::response::{IntoResponse, Json};
use link::Ambient;
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::{IntoResponses, ToSchema};

use super::access::Holder;
use super::answer::{self, Id};
use super::submit::{self, NotSubmitted};
use super::{body, tasks};
use crate::front::Caller;
use crate::hub::SubmitError;
use crate::server::Server;
use crate::session::{self, steps};
use crate::store::{Ended, Query, StoreError, Summary};

/// Why a request failed, in the form of UFO's server.
#[derive(ToSchema)]
#[schema(as = UfoError)]
#[expect(dead_code, reason = "only its description is used")]
pub(super) struct Detail {
    #[schema(example = "Client not online")]
    detail: String,
}

/// Why a body is not valid, in the form of UFO's server.
#[derive(ToSchema)]
#[schema(as = UfoInvalid)]
#[expect(dead_code, reason = "only its description is used")]
pub(super) struct Invalid {
    detail: Vec<InvalidItem>,
}

/// One reason why a body is not valid.
#[derive(ToSchema)]
#[schema(as = UfoInvalidItem)]
#[expect(dead_code, reason = "only its description is used")]
struct InvalidItem {
    #[schema(example = "value_error")]
    r#type: String,
    #[schema(example = json!(["body"]))]
    loc: Vec<String>,
    msg: String,
}

/// Why a key does not open, in the form of UFO's server.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only its description is used")]
enum KeyRefusals {
    /// The key is wrong or missing
    #[response(status = UNAUTHORIZED)]
    WrongKey(Detail),
    /// The role of the key does not allow it
    #[response(status = FORBIDDEN)]
    WrongRole(Detail),
}

/// An error in the form of UFO's server.
pub(super) fn detail(status: StatusCode, detail: &str) -> Response<Body> {
    (status, Json(json!({ "detail": detail }))).into_response()
}

/// Who is online.
#[derive(Serialize, ToSchema)]
#[schema(as = UfoClients)]
pub(super) struct Clients {
    online_clients: Vec<String>,
}

/// That the server works, and who is online.
#[derive(Serialize, ToSchema)]
#[schema(as = UfoHealth)]
pub(super) struct Health {
    #[schema(example = "healthy")]
    status: &'static str,
    online_clients: Vec<String>,
}

/// List who is online
#[utoipa::path(
    get, path = "/api/clients", tag = "ufo", operation_id = "ufo_clients",
    responses(
        (status = OK, body = Clients, description = "Everybody for an operator, else the devices \
            that the key may work with"),
        KeyRefusals
    )
)]
pub(super) async fn clients(
    State(server): State<Server>,
    Extension(holder): Extension<Holder>,
) -> Json<Clients> {
    Json(Clients { online_clients: online(&server, &holder) })
}

/// Say that the server works
#[utoipa::path(
    get, path = "/api/health", tag = "ufo", operation_id = "ufo_health",
    responses((status = OK, body = Health, description = "It does"), KeyRefusals)
)]
pub(super) async fn health(
    State(server): State<Server>,
    Extension(holder): Extension<Holder>,
) -> Json<Health> {
    Json(Health { status: "healthy", online_clients: online(&server, &holder) })
}

/// The ids that a holder may see: of all clients for an operator, else of the devices that it may work with.
fn online(server: &Server, holder: &Holder) -> Vec<String> {
    let everybody = server.handles();
    let is_shown =
        |id: &ClientId, is_device| holder.is_operator() || (is_device && holder.may_reach(id));
    let shown = everybody.iter().filter(|client| is_shown(client.id(), client.is_device()));
    shown.map(|client| client.id().to_string()).collect()
}

/// A task to start.
// Read by hand, in the order of UFO's checks.
#[derive(ToSchema)]
#[schema(as = UfoDispatch)]
#[expect(dead_code, reason = "only its description is used")]
pub(super) struct DispatchBody {
    /// The device that shall do it.
    #[schema(example = "lab-1", min_length = 1)]
    client_id: String,
    /// What to do: text, or a plan as text.
    #[schema(example = "{\"commands\":[{\"tool_name\":\"get_system_info\"}]}", pattern = "\\S")]
    request: String,
    /// A label for people; a fresh one if missing.
    #[schema(
        nullable = false,
        example = "nightly-check",
        max_length = 128,
        pattern = "^[A-Za-z0-9_-][A-Za-z0-9._-]*$"
    )]
    task_name: Option<String>,
}

/// What `POST /api/dispatch` asks for.
struct Dispatch {
    client_id: ClientId,
    request: String,
    task_name: TaskName,
}

const BAD_TASK_NAME: &str = "Invalid task_name: must be a non-empty string of characters \
    [A-Za-z0-9._-] and must not start with '.'";

impl Dispatch {
    /// Reads the body. The checks come in the order of UFO's server.
    fn read(
        mut fields: Map<String, Value>,
        ambient: &Ambient,
    ) -> Result<Self, (StatusCode, String)> {
        let bad = |text: &str| (StatusCode::BAD_REQUEST, text.to_owned());
        let request = text(&fields, "request")?.filter(|request| !request.trim().is_empty());
        let request = request.ok_or_else(|| bad("Empty task content"))?.to_owned();
        let client_id = text(&fields, "client_id")?.filter(|id| !id.is_empty());
        let client_id = client_id.ok_or_else(|| bad("Empty client ID"))?;
        let offline = || (StatusCode::NOT_FOUND, "Client not online".to_owned());
        let client_id = ClientId::new(client_id).map_err(|_| offline())?;
        let task_name = match fields.remove("task_name") {
            None => session::fresh_task_name(ambient),
            Some(Value::String(name)) => TaskName::sanitize(&name)
                .filter(|safe| safe.as_str() == name)
                .ok_or_else(|| bad(BAD_TASK_NAME))?,
            Some(_) => return Err(bad(BAD_TASK_NAME)),
        };
        Ok(Self { client_id, request, task_name })
    }
}

/// A text field; `null` and missing mean the same.
fn text<'a>(
    fields: &'a Map<String, Value>,
    name: &str,
) -> Result<Option<&'a str>, (StatusCode, String)> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => {
            Err((StatusCode::UNPROCESSABLE_ENTITY, format!("{name}: Input should be a string")))
        }
    }
}

/// A task that was started.
#[derive(Serialize, ToSchema)]
#[schema(as = UfoDispatched)]
pub(super) struct Dispatched {
    #[schema(example = "dispatched")]
    status: &'static str,
    task_name: String,
    #[schema(value_type = String)]
    client_id: ClientId,
    #[schema(value_type = String)]
    session_id: SessionId,
}

/// Start a task
///
/// The server starts the session itself, where UFO's asks the device to.
#[utoipa::path(
    post, path = "/api/dispatch", tag = "ufo", operation_id = "ufo_dispatch",
    request_body = DispatchBody,
    responses(
        (status = OK, body = Dispatched, description = "It was started"),
        (status = BAD_REQUEST, body = Detail, description = "Empty content or client, a bad name, \
            or the client is no device"),
        (status = NOT_FOUND, body = Detail, description = "The client is not online"),
        (status = REQUEST_TIMEOUT, body = Detail, description = "The body was too slow"),
        (status = PAYLOAD_TOO_LARGE, body = Detail, description = "The body or the task is too long"),
        (status = UNPROCESSABLE_ENTITY, body = Invalid, description = "The body is not valid"),
        (status = SERVICE_UNAVAILABLE, body = Detail, description = "The device's queue is full, or \
            the server is shutting down"),
        KeyRefusals
    )
)]
pub(super) async fn dispatch(
    State(server): State<Server>,
    Extension(holder): Extension<Holder>,
    caller: Option<Extension<Caller>>,
    body: Body,
) -> Response<Body> {
    let bytes = match body::read(body, server.config()).await {
        Ok(bytes) => bytes,
        Err(problem) => return detail(problem.status(), problem.detail()),
    };
    let fields = match body::parse::<Map<String, Value>>(&bytes) {
        Ok(fields) => fields,
        Err(error) => return not_valid(&error),
    };
    let wanted = match Dispatch::read(fields, server.ambient()) {
        Ok(wanted) => wanted,
        Err((StatusCode::UNPROCESSABLE_ENTITY, error)) => return not_valid(&error),
        Err((status, text)) => return detail(status, &text),
    };
    match start(&server, holder, submit::address(caller), wanted).await {
        Ok(dispatched) => Json(dispatched).into_response(),
        Err(response) => response,
    }
}

/// As FastAPI says that a body is not what it should be.
fn not_valid(error: &str) -> Response<Body> {
    let detail = json!({"detail": [{"type": "value_error", "loc": ["body"], "msg": error}]});
    (StatusCode::UNPROCESSABLE_ENTITY, Json(detail)).into_response()
}

async fn start(
    server: &Server,
    holder: Holder,
    address: Option<SocketAddr>,
    wanted: Dispatch,
) -> Result<Dispatched, Response<Body>> {
    let request = TaskRequest {
        session_id: None,
        task_name: Some(wanted.task_name),
        target_id: wanted.client_id,
        request: wanted.request,
        command_timeout: None,
        no_time_limit: false,
        request_id: None,
        store: None,
        on_disconnect: OnDisconnect::Continue,
        streams: None,
        as_sent: AsSent::default(),
    };
    let task =
        submit::submit(server, holder, address, request).await.map_err(|error| refused(&error))?;
    Ok(Dispatched {
        status: "dispatched",
        task_name: task.task_name.to_string(),
        client_id: task.device.clone(),
        session_id: task.session_id.clone(),
    })
}

fn refused(why: &NotSubmitted) -> Response<Body> {
    let error = match why {
        NotSubmitted::NotStored(_) => {
            return detail(StatusCode::SERVICE_UNAVAILABLE, "The task could not be stored");
        }
        NotSubmitted::Refused(error) => error,
    };
    let status = match error {
        SubmitError::NotConnected(_) => {
            return detail(StatusCode::NOT_FOUND, "Client not online");
        }
        SubmitError::NotADevice | SubmitError::Timeout { .. } | SubmitError::NoInput(_) => {
            StatusCode::BAD_REQUEST
        }
        SubmitError::RequestUsed(_) | SubmitError::Lost => StatusCode::UNPROCESSABLE_ENTITY,
        SubmitError::Away(_) | SubmitError::TooMuch(_) => StatusCode::SERVICE_UNAVAILABLE,
        SubmitError::NotAuthorized | SubmitError::NotGranted(_) => StatusCode::FORBIDDEN,
        SubmitError::KeyGone => StatusCode::UNAUTHORIZED,
        SubmitError::TooLong { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        SubmitError::Replaced | SubmitError::CannotBegin(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    detail(status, &error.to_string())
}

/// What there is of a task.
#[derive(ToSchema)]
#[schema(as = UfoTaskResult)]
#[expect(dead_code, reason = "only its description is used")]
pub(super) struct TaskResult {
    /// `pending` or `done`.
    #[schema(example = "done")]
    status: String,
    /// When it is done, also if it failed: what the task returned, as in its TASK_END, but always whole.
    #[schema(value_type = Option<Value>)]
    result: Option<Value>,
}

/// Show what a task returned
///
/// Of the newest task of that name. A name that nobody has heard of is pending, as at UFO's server.
#[utoipa::path(
    get, path = "/api/task_result/{task_name}", tag = "ufo", operation_id = "ufo_task_result",
    params(("task_name" = String, Path, description = "The name of the task")),
    responses((status = OK, body = TaskResult, description = "What there is of it"), KeyRefusals)
)]
pub(super) async fn task_result(
    State(server): State<Server>,
    Extension(holder): Extension<Holder>,
    Id(task_name): Id,
) -> Response<Body> {
    let key = tasks::only_own(&holder);
    let query = Query { task_name: Some(task_name), key, limit: 1, ..Query::default() };
    let found = async {
        let newest = server.store().tasks(query).await?.into_iter().next();
        let Some(newest) = newest.filter(|task| task.ended.is_some()) else { return Ok(None) };
        // A list leaves out what to do and what was returned.
        let journal = server.store().journal(newest.task.id).await?.unwrap_or_default();
        let found = Summary::of(&journal).and_then(|known| Some((known.task, known.ended?)));
        let whole = |(task, ended): (_, Arc<Ended>)| (task, ended.finish.clone(), steps(&journal));
        Ok::<_, StoreError>(found.map(whole))
    };
    let (task, finish, steps) = match found.await {
        Ok(Some(found)) => found,
        Ok(None) => return pending(),
        Err(error) => return detail(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
    };
    let mut out = b"{\"status\":\"done\",\"result\":".to_vec();
    let written = tokio::task::spawn_blocking(move || {
        session::write_whole_result(&mut out, &task, &finish, &steps);
        out.push(b'}');
        out
    });
    match written.await {
        Ok(text) => answer::json(text),
        Err(_) => detail(StatusCode::INTERNAL_SERVER_ERROR, "The result could not be written"),
    }
}

fn pending() -> Response<Body> {
    Json(json!({ "status": "pending" })).into_response()
}
