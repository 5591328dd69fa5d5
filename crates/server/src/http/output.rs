//! `/api/v1/tasks/{id}/output`: what a command wrote whose requester did not wait for it, from its device.

use std::io;
use std::time::Duration;

use aip::message::{Channel, Chunk};
use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query as Parameters, State};
use axum::http::{HeaderName, HeaderValue, Response, StatusCode, header};
use futures_util::stream;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::access::Holder;
use super::answer::Id;
use super::problem::Problem;
use super::tasks::{Journal, journal};
use crate::hub::{CannotAsk, SpoolPlace};
use crate::server::Server;
use crate::store::Record;

/// Longest wait for one answer of the device.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// Time between two looks for more of a command that runs.
const PACE: Duration = Duration::from_millis(200);

/// The header with the offset at which the body begins.
const OFFSET: HeaderName = HeaderName::from_static("flightdeck-offset");

/// One of the streams that a command writes.
#[derive(Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Stream {
    /// Standard output.
    #[default]
    Stdout,
    /// Standard error.
    Stderr,
}

/// Which output.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// The number of the step, from 1; 1 if missing.
    #[param(nullable = false, minimum = 1)]
    step: Option<u32>,
    /// `stdout`, if missing.
    #[param(nullable = false, inline)]
    stream: Option<Stream>,
    /// From which byte on, 0 if missing.
    #[param(nullable = false)]
    from: Option<u64>,
    /// The key, where it is shown so; see [`crate::auth`].
    #[param(ignore)]
    #[serde(rename = "token")]
    _token: Option<String>,
}

/// Read what a command wrote
///
/// Of a task that was submitted with `streams.spool`, as `exec --detach` does: its device keeps what it writes. The
/// answer goes on until the command has ended. It begins at `flightdeck-offset`, which is higher than was asked for where
/// the device has let go of the beginning. One that breaks off can be asked for again, from where it broke off.
#[utoipa::path(
    get, path = "/tasks/{id}/output", tag = "tasks", operation_id = "task_output",
    params(("id" = String, Path, description = "The id of the task"), Wanted),
    responses(
        (status = OK, description = "The bytes", content_type = "application/octet-stream", headers(
            ("flightdeck-offset" = u64, description = "Which byte of the stream the first one is"))),
        (status = BAD_REQUEST, body = Problem, description = "`bad_query`"),
        (status = NOT_FOUND, body = Problem,
            description = "`task_not_found`, `no_such_step`, `output_not_kept`"),
        (status = CONFLICT, body = Problem,
            description = "`device_away`; `step_not_begun`: it has not come to that yet"),
        (status = SERVICE_UNAVAILABLE, body = Problem, description = "`too_many_readers`")
    )
)]
pub(super) async fn output(
    State(server): State<Server>,
    Extension(holder): Extension<Holder>,
    Id(id): Id,
    wanted: Result<Parameters<Wanted>, QueryRejection>,
) -> Result<Response<Body>, Problem> {
    let bad = |text: String| Problem::new(StatusCode::BAD_REQUEST, "bad_query", text);
    let Parameters(wanted) = wanted.map_err(|error| bad(error.body_text()))?;
    let step = wanted.step.unwrap_or(1);
    let stream = match wanted.stream.unwrap_or_default() {
        Stream::Stdout => Channel::Stdout,
        Stream::Stderr => Channel::Stderr,
    };
    let journal = journal(&server, &holder, &id).await?;
    let place = place(&journal, step, stream)?;
    let mut reader = Reader { server, holder, place, at: wanted.from.unwrap_or(0), is_over: false };
    let first = reader.ask().await?;
    let begin = first.first().map_or(reader.at, |chunk| chunk.offset.max(reader.at));
    reader.at = begin;
    let body = stream::try_unfold((reader, first), |(mut reader, chunks)| async move {
        let next = reader.next(chunks).await?;
        Ok::<_, io::Error>(next.map(|bytes| (bytes, (reader, Vec::new()))))
    });
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(OFFSET, HeaderValue::from(begin));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    Ok(response)
}

/// Where the output of a step is.
fn place(journal: &Journal, step: u32, stream: Channel) -> Result<SpoolPlace, Problem> {
    let (task, records) = (&journal.summary.task, &journal.records);
    if !task.terms.streams.is_some_and(|streams| streams.spool) {
        return Err(not_kept(
            "The output of this task is not kept: its results have what there is",
        ));
    }
    let at = usize::try_from(step).ok().and_then(|step| step.checked_sub(1));
    let decided = records.iter().filter_map(|record| match record {
        Record::Decided { response_id, device, .. } => Some((response_id, *device)),
        _ => None,
    });
    let Some((response_id, device)) = at.and_then(|at| decided.clone().nth(at)) else {
        let is_over = records.iter().any(|record| matches!(record, Record::Ended(_)));
        return Err(match is_over {
            true => {
                let text = format!("The task has no step {step}");
                Problem::new(StatusCode::NOT_FOUND, "no_such_step", text)
            }
            false => {
                let text = format!("Step {step} has not begun yet");
                Problem::new(StatusCode::CONFLICT, "step_not_begun", text)
            }
        });
    };
    let moved = records.iter().rev().find_map(|record| match record {
        Record::Readdressed { response_id: id, device, .. } if id == response_id => Some(*device),
        _ => None,
    });
    Ok(SpoolPlace {
        device: moved.unwrap_or(device),
        session_id: task.session_id.clone(),
        response_id: response_id.clone(),
        stream,
    })
}

fn not_kept(text: &str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "output_not_kept", text)
}

/// Reads a stream to its end.
struct Reader {
    server: Server,
    holder: Holder,
    place: SpoolPlace,
    /// Which byte comes next.
    at: u64,
    is_over: bool,
}

impl Reader {
    /// What comes next, which `chunks` may have; nothing at the end.
    async fn next(&mut self, mut chunks: Vec<Chunk>) -> io::Result<Option<Bytes>> {
        let broken = |why: &str| io::Error::other(why.to_owned());
        while !self.is_over {
            let mut bytes = Vec::new();
            for chunk in chunks.drain(..) {
                if chunk.offset != self.at {
                    return Err(broken("the device has let go of what comes next"));
                }
                let own = chunk.data.to_bytes().ok_or_else(|| broken("it cannot be read"))?;
                self.at += own.len() as u64;
                self.is_over |= chunk.end;
                bytes.extend_from_slice(&own);
            }
            if !bytes.is_empty() {
                return Ok(Some(bytes.into()));
            }
            if self.is_over {
                break;
            }
            if !self.server.keyring().is_valid(&self.holder) {
                return Err(broken("the key opens no more"));
            }
            tokio::select! {
                () = tokio::time::sleep(PACE) => {}
                () = self.server.answering_last() => return Err(broken("the server stops")),
            }
            chunks = self.ask().await.map_err(|_| broken("the device cannot be asked"))?;
        }
        Ok(None)
    }

    /// Asks the device for what it has.
    async fn ask(&self) -> Result<Vec<Chunk>, Problem> {
        let away = || {
            let text = "The device that has the output is away; try again when it is back";
            Problem::new(StatusCode::CONFLICT, "device_away", text)
        };
        let asked = self.server.act(|hub, moment| hub.ask_for_spool(moment, &self.place, self.at));
        let (id, answer) = asked.map_err(|error| match error {
            CannotAsk::Away => away(),
            CannotAsk::KeepsNothing => not_kept("The device keeps no output"),
            CannotAsk::TooMany => {
                let text = "Too many are reading output already; try again later";
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_readers", text)
            }
        })?;
        let forgotten = Forget { server: &self.server, id };
        let answer = tokio::time::timeout(ANSWER_TIME, answer).await;
        drop(forgotten);
        let chunks = answer.ok().and_then(Result::ok).ok_or_else(away)?;
        if chunks.is_empty() {
            return Err(not_kept("The device keeps nothing of this command any more"));
        }
        Ok(chunks)
    }
}

/// Forgets a question, also when nobody waits any more.
struct Forget<'a> {
    server: &'a Server,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.server.act(|hub, _| hub.forget_question(self.id));
    }
}
