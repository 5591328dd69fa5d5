//! `/api/v1/tasks`: submit, list, look into, wait for, cancel.

use std::sync::Arc;
use std::time::Duration;

use aip::machine::TaskRequest;
use aip::{ClientId, Payload, SessionId, TaskName};
use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, Query as Parameters, State};
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::{IntoResponse, Json};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::access::Holder;
use super::problem::Problem;
use super::task_view::{Task, TaskState, Tasks, view};
use super::{body, ufo};
use crate::audit::{self, Event};
use crate::front::Caller;
use crate::server::Server;
use crate::session::{self, Session, Step, TaskId};
use crate::store::{Entry, Query, Summary};

/// Tasks of a list, unless it is asked for fewer.
const PAGE: usize = 50;

/// The most tasks of a list.
const MAX_PAGE: usize = 500;

/// The longest wait for a task in one request.
const MAX_WAIT: Duration = Duration::from_secs(300);

/// A task to submit.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewTask {
    /// The device that shall do it.
    device: String,
    /// What to do: text, or a plan (`{"commands":[…]}`), as an object or as text.
    #[schema(value_type = Object, example = json!({"commands": [{"tool_name": "get_system_info"}]}))]
    request: Payload,
    /// A label for people; characters outside `[A-Za-z0-9._-]` become `_`.
    #[serde(default)]
    task_name: Option<String>,
    /// The wire's name for the run; a fresh one if missing.
    #[serde(default)]
    session_id: Option<String>,
    /// Longest time for one of its commands, in seconds; the server's default if missing.
    #[serde(default)]
    command_timeout_s: Option<f64>,
}

/// Which tasks to list.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct Filter {
    /// Only tasks in this state.
    state: Option<TaskState>,
    /// Only tasks for this device.
    device: Option<String>,
    /// Only tasks of this name.
    task_name: Option<String>,
    /// Only tasks that are older than this one: the `next` of the page before.
    before: Option<String>,
    /// At most this many: 1 to 500, 50 if missing.
    limit: Option<usize>,
}

/// How long to wait.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct Wait {
    /// At most this many seconds: up to 300, 30 if missing.
    timeout_s: Option<f64>,
}

/// Submit a task
///
/// It runs like any other. The answer comes when it is stored; `Location` says where it is.
#[utoipa::path(
    post, path = "/tasks", tag = "tasks", request_body = NewTask,
    responses(
        (status = CREATED, body = Task),
        (status = BAD_REQUEST, body = Problem, description = "`bad_task`, `not_a_device`, `bad_command_timeout`"),
        (status = UNAUTHORIZED, body = Problem),
        (status = FORBIDDEN, body = Problem, description = "`not_allowed`"),
        (status = NOT_FOUND, body = Problem, description = "`device_not_online`"),
        (status = CONFLICT, body = Problem, description = "`session_in_use`"),
        (status = SERVICE_UNAVAILABLE, body = Problem, description = "`queue_full`, `shutting_down`")
    )
)]
pub(super) async fn submit(
    State(server): State<Server>,
    Extension(holder): Extension<Holder>,
    caller: Option<Extension<Caller>>,
    body: Body,
) -> Result<Response<Body>, Problem> {
    let new: NewTask = body::json(body, server.config()).await?;
    let request =
        new.read().map_err(|error| Problem::new(StatusCode::BAD_REQUEST, "bad_task", error))?;
    let task = match ufo::submit(&server, holder, ufo::address(caller), request).await {
        Ok(task) => task,
        Err(ufo::NotSubmitted::Refused(error)) => return Err(error.into()),
        Err(ufo::NotSubmitted::NotStored) => {
            let (status, text) = (StatusCode::SERVICE_UNAVAILABLE, "The task could not be stored");
            return Err(Problem::new(status, "not_stored", text));
        }
    };
    let location = HeaderValue::from_str(&format!("/api/v1/tasks/{}", task.id)).ok();
    let shown = view(&server, &Summary { task, steps: 0, ended: None });
    let mut response = (StatusCode::CREATED, Json(shown)).into_response();
    if let Some(location) = location {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

impl NewTask {
    fn read(self) -> Result<TaskRequest, String> {
        let target_id = ClientId::new(&self.device).map_err(|error| format!("device: {error}"))?;
        let session_id = self.session_id.as_deref().map(SessionId::new).transpose();
        let timeout = self.command_timeout_s.map(Duration::try_from_secs_f64).transpose();
        Ok(TaskRequest {
            session_id: session_id.map_err(|error| format!("session_id: {error}"))?,
            task_name: self.task_name.as_deref().and_then(TaskName::sanitize),
            target_id,
            request: request_text(&self.request)?,
            command_timeout: timeout.map_err(|error| format!("command_timeout_s: {error}"))?,
        })
    }
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
    get, path = "/tasks", tag = "tasks", params(Filter),
    responses(
        (status = OK, body = Tasks),
        (status = BAD_REQUEST, body = Problem, description = "`bad_filter`"),
        (status = UNAUTHORIZED, body = Problem)
    )
)]
pub(super) async fn list(
    State(server): State<Server>,
    Extension(holder): Extension<Holder>,
    filter: Result<Parameters<Filter>, axum::extract::rejection::QueryRejection>,
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
    loop {
        query.limit = MAX_PAGE;
        let found = server.store().tasks(&query);
        query.before = found.last().map(|last| last.task.id);
        let is_last = found.len() < MAX_PAGE;
        let shown = found.iter().map(|found| view(&server, found));
        let wanted = shown.filter(|task| state.is_none_or(|state| task.state() == state));
        tasks.extend(wanted.take(limit + 1 - tasks.len()));
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
    get, path = "/tasks/{id}", tag = "tasks",
    params(("id" = String, Path, description = "The id of the task")),
    responses(
        (status = OK, body = Task),
        (status = UNAUTHORIZED, body = Problem),
        (status = NOT_FOUND, body = Problem, description = "`task_not_found`")
    )
)]
pub(super) async fn show(
    State(server): State<Server>,
    Extension(holder): Extension<Holder>,
    Path(id): Path<String>,
) -> Result<Response<Body>, Problem> {
    let journal = journal(&server, &holder, &id)?;
    whole(&server, journal).await
}

/// Wait for a task to end
///
/// Answers as soon as it is over, else when the time is over, in both cases with the task as it is
/// then; its `state` tells which.
#[utoipa::path(
    get, path = "/tasks/{id}/wait", tag = "tasks",
    params(("id" = String, Path, description = "The id of the task"), Wait),
    responses(
        (status = OK, body = Task),
        (status = BAD_REQUEST, body = Problem, description = "`bad_timeout`"),
        (status = UNAUTHORIZED, body = Problem),
        (status = NOT_FOUND, body = Problem, description = "`task_not_found`")
    )
)]
pub(super) async fn wait(
    State(server): State<Server>,
    Extension(holder): Extension<Holder>,
    Path(id): Path<String>,
    wait: Result<Parameters<Wait>, axum::extract::rejection::QueryRejection>,
) -> Result<Response<Body>, Problem> {
    let bad = |text: String| Problem::new(StatusCode::BAD_REQUEST, "bad_timeout", text);
    let Parameters(wait) = wait.map_err(|error| bad(error.body_text()))?;
    let timeout = Duration::try_from_secs_f64(wait.timeout_s.unwrap_or(30.0));
    let timeout = timeout.ok().filter(|timeout| *timeout <= MAX_WAIT);
    let timeout = timeout.ok_or_else(|| bad(format!("timeout_s: 0 to {}", MAX_WAIT.as_secs())))?;
    let known = journal(&server, &holder, &id)?;
    if let Some(session) = open_session(&server, &known) {
        let over = server.sessions().wait_over(&session);
        // In both cases the answer is the task as it is then.
        let _over_or_too_long = tokio::time::timeout(timeout, over).await;
    }
    // It may have been a long wait.
    if !server.keyring().is_valid(&holder) {
        return Err(Problem::invalid_key());
    }
    whole(&server, journal(&server, &holder, &id)?).await
}

/// Cancel a task
///
/// A waiting task ends at once; of a running one the device is told to stop. To cancel again changes
/// nothing.
#[utoipa::path(
    post, path = "/tasks/{id}/cancel", tag = "tasks",
    params(("id" = String, Path, description = "The id of the task")),
    responses(
        (status = ACCEPTED, body = Task),
        (status = UNAUTHORIZED, body = Problem),
        (status = NOT_FOUND, body = Problem, description = "`task_not_found`"),
        (status = CONFLICT, body = Problem, description = "`task_over`: it had ended before")
    )
)]
pub(super) async fn cancel(
    State(server): State<Server>,
    Extension(holder): Extension<Holder>,
    caller: Option<Extension<Caller>>,
    Path(id): Path<String>,
) -> Result<Response<Body>, Problem> {
    let known = journal(&server, &holder, &id)?;
    let Some(session) = open_session(&server, &known) else {
        let text = "The task had ended before";
        return Err(Problem::new(StatusCode::CONFLICT, "task_over", text));
    };
    server.audit().record(audit::Entry {
        client: None,
        role: None,
        key: Some(holder.name()),
        address: ufo::address(caller),
        ..session::entry(&session, Event::Cancelled)
    });
    session.cancel(holder.name());
    let shown = view(&server, &known.summary());
    Ok((StatusCode::ACCEPTED, Json(shown)).into_response())
}

/// A task that is known, and what happened to it.
struct Journal {
    task: Arc<session::Task>,
    entries: Vec<Entry>,
}

impl Journal {
    fn summary(&self) -> Summary {
        let steps = self.entries.iter().filter(|entry| matches!(entry, Entry::Decided { .. }));
        let ended = self.entries.last().filter(|entry| matches!(entry, Entry::Ended { .. }));
        Summary { task: self.task.clone(), steps: steps.count(), ended: ended.cloned() }
    }
}

fn journal(server: &Server, holder: &Holder, id: &str) -> Result<Journal, Problem> {
    let entries = id.parse().ok().and_then(|id| server.store().journal(id));
    let entries = entries.ok_or_else(Problem::no_such_task)?;
    match entries.first() {
        Some(Entry::Created(task)) if holder.may_see_tasks_of(&task.holder) => {
            Ok(Journal { task: task.clone(), entries })
        }
        _ => Err(Problem::no_such_task()),
    }
}

fn open_session(server: &Server, journal: &Journal) -> Option<Arc<Session>> {
    server.sessions().get(journal.task.id)
}

/// The steps that are over.
pub(super) fn steps(journal: &[Entry]) -> Vec<Step> {
    let mut decided = None;
    let mut steps = Vec::new();
    for entry in journal {
        match entry {
            Entry::Decided { commands, .. } => decided = Some(commands),
            Entry::Answered { results, .. } => {
                let commands = decided.take().cloned().unwrap_or_else(|| Arc::new([]));
                steps.push(Step { commands, results: results.clone() });
            }
            Entry::Created(_) | Entry::Ended { .. } => {}
        }
    }
    steps
}

/// Writes a task with its steps, on a thread of its own, since it may be large.
async fn whole(server: &Server, journal: Journal) -> Result<Response<Body>, Problem> {
    let server = server.clone();
    let written = tokio::task::spawn_blocking(move || {
        let task = view(&server, &journal.summary()).with_steps(&journal.task, &journal.entries);
        serde_json::to_vec(&task)
    });
    match written.await {
        Ok(Ok(text)) => {
            let json = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            Ok(([json], text).into_response())
        }
        _ => {
            let text = "The task could not be written";
            Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", text))
        }
    }
}
