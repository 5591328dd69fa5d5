//! `/api/v1/tasks`: submit, list, look into, wait for, cancel.

use std::time::Duration;

use aip::machine::{AsSent, TaskRequest};
use aip::message::OnDisconnect;
use aip::{ClientId, Payload, RequestId, SessionId, TaskName};
use axum::Extension;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query as Parameters, State};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use axum::response::{IntoResponse, Json};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::access::Holder;
use super::answer::{Id, on_thread};
use super::body;
use super::problem::Problem;
use super::submit::{self, NotSubmitted};
use super::task_view::{Task, TaskState, Tasks, view};
use crate::audit::{self, Event};
use crate::front::Caller;
use crate::server::Server;
use crate::session::TaskId;
use crate::store::{Query, Record, Summary};

/// Tasks of a list, unless it is asked for fewer.
const PAGE: usize = 50;

/// The most tasks of a list.
const MAX_PAGE: usize = 500;

/// The longest wait for a task in one request, in seconds.
const MAX_WAIT_S: f64 = 300.0;

/// A task to submit.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewTask {
    /// The device that shall do it.
    #[schema(example = "lab-1", max_length = 256, pattern = r"^[^\x00-\x1f\x7f-\x9f]+$")]
    device: String,
    #[schema(schema_with = super::openapi::request)]
    request: Payload,
    /// A label for people; characters outside `[A-Za-z0-9._-]` become `_`.
    #[serde(default)]
    #[schema(example = "nightly-check")]
    task_name: Option<String>,
    /// The wire's name for the run; a fresh one if missing.
    #[serde(default)]
    #[schema(max_length = 256, pattern = r"^[^\x00-\x1f\x7f-\x9f]+$")]
    session_id: Option<String>,
    /// Longest time for one of its commands, in seconds: at most the server's `max_command_timeout_s`;
    /// its `command_timeout_s` if missing.
    #[serde(default)]
    #[schema(minimum = 0.001, example = 60.0)]
    command_timeout_s: Option<f64>,
    /// Whether it wants no time limit but that: the defaults of the server do not count then, for a command and for the
    /// task. What the server's owner has set does.
    #[serde(default)]
    no_time_limit: bool,
}

/// Which tasks to list.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Filter {
    /// Only tasks in this state.
    #[param(nullable = false, inline)]
    state: Option<TaskState>,
    /// Only tasks for this device.
    #[param(nullable = false, max_length = 256, pattern = r"^[^\x00-\x1f\x7f-\x9f]+$")]
    device: Option<String>,
    /// Only tasks of this name.
    #[param(nullable = false)]
    task_name: Option<String>,
    /// Only tasks that are older than this one: the `next` of the page before.
    #[param(nullable = false, pattern = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
    before: Option<String>,
    /// At most this many: 1 to 500, 50 if missing.
    #[param(nullable = false, minimum = 1, maximum = 500)]
    limit: Option<usize>,
    /// The key, where it is shown so; see [`crate::auth`].
    #[param(ignore)]
    #[serde(rename = "token")]
    _token: Option<String>,
}

/// How long to wait.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Wait {
    /// At most this many seconds: up to 300, 30 if missing.
    #[param(nullable = false, minimum = 0, maximum = 300)]
    timeout_s: Option<f64>,
    /// As in [`Filter`].
    #[param(ignore)]
    #[serde(rename = "token")]
    _token: Option<String>,
}

/// Submit a task
///
/// It runs like any other. The answer comes when it is stored; `Location` says where it is. With an `Idempotency-Key`
/// it may be sent again, for a day: the same key names the same task.
#[utoipa::path(
    post, path = "/tasks", tag = "tasks", operation_id = "submit_task", request_body = NewTask,
    params(("Idempotency-Key" = Option<String>, Header, nullable = false, max_length = 256,
        description = "Names the task, so that it runs once however often it is sent")),
    responses(
        (status = CREATED, body = Task, description = "The task as it stands, without its steps",
            headers(("Location" = String, description = "Where the task is"))),
        (status = BAD_REQUEST, body = Problem,
            description = "`bad_task`, `not_a_device`, `bad_command_timeout`, `body_unreadable`"),
        (status = NOT_FOUND, body = Problem, description = "`device_not_online`"),
        (status = REQUEST_TIMEOUT, body = Problem, description = "`body_too_slow`"),
        (status = CONFLICT, body = Problem, description = "`session_in_use`"),
        (status = PAYLOAD_TOO_LARGE, body = Problem,
            description = "`request_too_long`, `body_too_large`"),
        (status = UNPROCESSABLE_ENTITY, body = Problem,
            description = "`body_invalid`, `idempotency_key_used`"),
        (status = SERVICE_UNAVAILABLE, body = Problem,
            description = "`queue_full`, `shutting_down`, `not_stored`, `device_away`, \
                `too_much_undelivered`",
            headers(("Retry-After" = u32, description = "Seconds to wait")))
    )
)]
pub(super) async fn submit(
    State(server): State<Server>,
    Extension(holder): Extension<Holder>,
    caller: Option<Extension<Caller>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response<Body>, Problem> {
    let bad = |error| Problem::new(StatusCode::BAD_REQUEST, "bad_task", error);
    let request_id = idempotency_key(&headers).map_err(bad)?;
    let new: NewTask = body::json(body, server.config()).await?;
    let request = TaskRequest { request_id, ..new.read().map_err(bad)? };
    let task = match submit::submit(&server, holder, submit::address(caller), request).await {
        Ok(task) => task,
        Err(NotSubmitted::Refused(error)) => return Err(error.into()),
        Err(NotSubmitted::NotStored(error)) => {
            let text = format!("The task could not be stored: {error}");
            let status = StatusCode::SERVICE_UNAVAILABLE;
            return Err(Problem::new(status, "not_stored", text));
        }
    };
    let location = HeaderValue::from_str(&format!("/api/v1/tasks/{}", task.id)).ok();
    // It may be over already.
    let journal = server.store().journal(task.id).await;
    let known = journal.ok().flatten().as_deref().and_then(Summary::of);
    let shown = view(&server.hub(), &known.unwrap_or_else(|| Summary::new(task)));
    let mut response = (StatusCode::CREATED, Json(shown)).into_response();
    if let Some(location) = location {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// The id by which a task is known when it is submitted again.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<RequestId>, String> {
    let mut keys = headers.get_all("idempotency-key").iter();
    let Some(key) = keys.next() else { return Ok(None) };
    if keys.next().is_some() {
        return Err("Idempotency-Key: it is there twice".to_owned());
    }
    let key = RequestId::new(key.to_str().unwrap_or_default());
    key.map(Some).map_err(|error| format!("Idempotency-Key: {error}"))
}

impl NewTask {
    fn read(self) -> Result<TaskRequest, String> {
        let timeout = self.command_timeout_s.and_then(|time| Payload::from_value(&time).ok());
        let unlimited = self.no_time_limit.then(|| Payload::from_value(&true).ok()).flatten();
        let settings = [("command_timeout_s", timeout), ("no_time_limit", unlimited)];
        let settings = settings.map(|(name, set)| Some((name.to_owned(), set?)));
        let target_id = ClientId::new(&self.device).map_err(|error| format!("device: {error}"))?;
        let session_id = self.session_id.as_deref().map(SessionId::new).transpose();
        Ok(TaskRequest {
            session_id: session_id.map_err(|error| format!("session_id: {error}"))?,
            task_name: self.task_name.as_deref().and_then(TaskName::sanitize),
            target_id,
            request: request_text(&self.request)?,
            command_timeout: self.command_timeout_s.map(duration),
            no_time_limit: self.no_time_limit,
            request_id: None,
            store: None,
            on_disconnect: OnDisconnect::Continue,
            streams: None,
            as_sent: AsSent {
                task_name: self.task_name,
                settings: Some(settings.into_iter().flatten().collect()),
            },
        })
    }
}

/// Seconds as a duration. What is none is as far out of bounds as can be, and refused with the bounds.
fn duration(seconds: f64) -> Duration {
    let beyond = if seconds < 0.0 { Duration::ZERO } else { Duration::MAX };
    Duration::try_from_secs_f64(seconds).unwrap_or(beyond)
}

/// A task's text: a string's content, or an object as it is written.
fn request_text(request: &Payload) -> Result<String, String> {
    let text = match request.as_str().as_bytes().first() {
        Some(b'"') => request.parse::<String>().map_err(|error| error.to_string())?,
        Some(b'{') => request.as_str().to_owned(),
        _ => return Err("request: it is neither text nor a plan".to_owned()),
    };
    if text.trim().is_empty() {
        return Err("request: it is empty".to_owned());
    }
    Ok(text)
}

/// List tasks, newest first
///
/// Everybody's for an operator, else those that were submitted with the same key.
#[utoipa::path(
    get, path = "/tasks", tag = "tasks", operation_id = "list_tasks", params(Filter),
    responses(
        (status = OK, body = Tasks, description = "A page of them, without their steps"),
        (status = BAD_REQUEST, body = Problem, description = "`bad_filter`")
    )
)]
pub(super) async fn list(
    State(server): State<Server>,
    Extension(holder): Extension<Holder>,
    filter: Result<Parameters<Filter>, QueryRejection>,
) -> Result<Json<Tasks>, Problem> {
    let bad = |text: String| Problem::new(StatusCode::BAD_REQUEST, "bad_filter", text);
    let Parameters(filter) = filter.map_err(|error| bad(error.body_text()))?;
    let limit = filter.limit.unwrap_or(PAGE);
    if limit == 0 || limit > MAX_PAGE {
        return Err(bad(format!("limit: 1 to {MAX_PAGE}")));
    }
    let state = filter.state;
    let mut query = filter.query(&holder).map_err(bad)?;
    let mut tasks = Vec::new();
    // A state of an open task is not in the store, so pages are read until there is enough.
    query.limit = if state.is_some() { MAX_PAGE } else { limit + 1 };
    loop {
        let found = server.store().tasks(query.clone()).await;
        let found = found.map_err(|error| Problem::unreadable(&error))?;
        query.before = found.last().map(|last| last.task.id);
        let is_last = found.len() < query.limit;
        let hub = server.hub();
        let shown = found.iter().map(|found| view(&hub, found));
        let wanted = shown.filter(|task| state.is_none_or(|state| task.state() == state));
        tasks.extend(wanted.take(limit + 1 - tasks.len()));
        drop(hub);
        if is_last || tasks.len() > limit {
            break;
        }
    }
    Ok(Json(Tasks::page(tasks, limit)))
}

impl Filter {
    fn query(self, holder: &Holder) -> Result<Query, String> {
        let before = self.before.map(|id| id.parse::<TaskId>()).transpose();
        let device = self.device.map(|id| ClientId::new(&id)).transpose();
        Ok(Query {
            before: before.map_err(|_| "before: it is no id of a task".to_owned())?,
            device: device.map_err(|error| format!("device: {error}"))?,
            task_name: self.task_name,
            key: only_own(holder),
            is_over: self.state.map(TaskState::is_over),
            limit: MAX_PAGE,
        })
    }
}

/// Whose tasks a holder may see: `None` for everybody's.
pub(super) fn only_own(holder: &Holder) -> Option<String> {
    holder.key_id().filter(|_| !holder.is_operator()).map(str::to_owned)
}

/// Show a task with its steps
///
/// The results are whole, also where a TASK_END had to cut them.
#[utoipa::path(
    get, path = "/tasks/{id}", tag = "tasks", operation_id = "show_task",
    params(("id" = String, Path, description = "The id of the task")),
    responses(
        (status = OK, body = Task, description = "The task with its steps"),
        (status = NOT_FOUND, body = Problem, description = "`task_not_found`")
    )
)]
pub(super) async fn show(
    State(server): State<Server>,
    Extension(holder): Extension<Holder>,
    Id(id): Id,
) -> Result<Response<Body>, Problem> {
    let journal = journal(&server, &holder, &id).await?;
    whole(server, journal).await
}

/// Wait for a task to end
///
/// Answers as soon as it is over, else when the time is over or the server stops, in any case with
/// the task as it is then; its `state` tells which.
#[utoipa::path(
    get, path = "/tasks/{id}/wait", tag = "tasks", operation_id = "wait_for_task",
    params(("id" = String, Path, description = "The id of the task"), Wait),
    responses(
        (status = OK, body = Task, description = "The task with its steps"),
        (status = BAD_REQUEST, body = Problem, description = "`bad_timeout`"),
        (status = NOT_FOUND, body = Problem, description = "`task_not_found`")
    )
)]
pub(super) async fn wait(
    State(server): State<Server>,
    Extension(holder): Extension<Holder>,
    Id(id): Id,
    wait: Result<Parameters<Wait>, QueryRejection>,
) -> Result<Response<Body>, Problem> {
    let bad = |text: String| Problem::new(StatusCode::BAD_REQUEST, "bad_timeout", text);
    let Parameters(wait) = wait.map_err(|error| bad(error.body_text()))?;
    let timeout = wait.timeout_s.unwrap_or(30.0);
    if !(0.0..=MAX_WAIT_S).contains(&timeout) {
        return Err(bad(format!("timeout_s: 0 to {MAX_WAIT_S}")));
    }
    let timeout = Duration::from_secs_f64(timeout);
    let known = journal(&server, &holder, &id).await?;
    let over = server.hub().watch(known.summary.task.id);
    if let Some(over) = over {
        // In any case the answer is the task as it is then. One that goes on after a restart does not end before.
        tokio::select! {
            _over_or_too_long = tokio::time::timeout(timeout, over) => {}
            () = server.answering_last() => {}
        }
    }
    // It may have been a long wait.
    if !server.keyring().is_valid(&holder) {
        return Err(Problem::invalid_key());
    }
    let journal = journal(&server, &holder, &id).await?;
    whole(server, journal).await
}

/// Cancel a task
///
/// A waiting task ends at once; of a running one the device is told to stop. To cancel again changes
/// nothing and is answered alike.
#[utoipa::path(
    post, path = "/tasks/{id}/cancel", tag = "tasks", operation_id = "cancel_task",
    params(("id" = String, Path, description = "The id of the task")),
    responses(
        (status = ACCEPTED, body = Task, description = "The task as it stands, without its steps"),
        (status = NOT_FOUND, body = Problem, description = "`task_not_found`"),
        (status = CONFLICT, body = Problem, description = "`task_over`: it had ended before")
    )
)]
pub(super) async fn cancel(
    State(server): State<Server>,
    Extension(holder): Extension<Holder>,
    caller: Option<Extension<Caller>>,
    Id(id): Id,
) -> Result<Response<Body>, Problem> {
    let known = journal(&server, &holder, &id).await?;
    let id_of_task = known.summary.task.id;
    let cancelled = server.act(|hub, moment| hub.cancel(moment, id_of_task, holder.name()));
    let Some(task) = cancelled else {
        let now = journal(&server, &holder, &id).await?;
        return over(&view(&server.hub(), &now.summary));
    };
    server.audit().record(audit::Entry {
        client: None,
        role: None,
        key: Some(holder.name()),
        address: submit::address(caller),
        ..audit::Entry::of(&task, Event::Cancelled)
    });
    let shown = view(&server.hub(), &known.summary);
    Ok((StatusCode::ACCEPTED, Json(shown)).into_response())
}

/// The answer to a request to cancel a task that is over.
fn over(task: &Task) -> Result<Response<Body>, Problem> {
    if task.state() == TaskState::Cancelled {
        return Ok((StatusCode::ACCEPTED, Json(task)).into_response());
    }
    let text = "The task had ended before";
    Err(Problem::new(StatusCode::CONFLICT, "task_over", text))
}

/// A task that is known, and what happened to it.
pub(super) struct Journal {
    pub(super) summary: Summary,
    pub(super) records: Vec<Record>,
}

/// The task of this id, if the holder may see it.
pub(super) async fn journal(
    server: &Server,
    holder: &Holder,
    id: &str,
) -> Result<Journal, Problem> {
    let id: TaskId = id.parse().map_err(|_| Problem::no_such_task())?;
    let found = server.store().journal(id).await.map_err(|error| Problem::unreadable(&error))?;
    let records = found.ok_or_else(Problem::no_such_task)?;
    let summary = Summary::of(&records).filter(|known| holder.may_see(&known.task));
    Ok(Journal { summary: summary.ok_or_else(Problem::no_such_task)?, records })
}

/// A task with its steps.
async fn whole(server: Server, journal: Journal) -> Result<Response<Body>, Problem> {
    on_thread(move || {
        let Journal { summary, records } = journal;
        let shown = view(&server.hub(), &summary);
        shown.with_steps(&summary.task, &records)
    })
    .await
}
