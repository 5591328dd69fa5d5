//! `/api/v1/backup`: a copy of the store, on the server's machine.

use std::path::PathBuf;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Json;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::access::Holder;
use super::body;
use super::problem::Problem;
use super::submit;
use crate::audit::{Entry, Event};
use crate::front::Caller;
use crate::server::Server;

/// Where a copy is to go.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewBackup {
    /// A folder of the server's machine, as an absolute path; it is made if there is none, and has to be empty.
    #[schema(value_type = String, example = "/var/backups/flightdeck-monday")]
    folder: PathBuf,
}

/// A copy that was made.
#[derive(Serialize, ToSchema)]
pub(super) struct Backup {
    /// Where it is.
    #[schema(value_type = String)]
    folder: PathBuf,
    /// What it takes.
    bytes: u64,
}

/// Copy the store, while it is in use
///
/// For operators. The copy is whole as of a moment; a server that starts with it (`--data`) takes itself for another
/// one, and the outcome of every task that is open in it is unknown.
#[utoipa::path(
    post, path = "/backup", tag = "server", operation_id = "make_backup", request_body = NewBackup,
    responses(
        (status = OK, body = Backup, description = "The copy"),
        (status = BAD_REQUEST, body = Problem, description = "`bad_folder`, `body_unreadable`"),
        (status = REQUEST_TIMEOUT, body = Problem, description = "`body_too_slow`"),
        (status = PAYLOAD_TOO_LARGE, body = Problem, description = "`body_too_large`"),
        (status = UNPROCESSABLE_ENTITY, body = Problem, description = "`body_invalid`"),
        (status = SERVICE_UNAVAILABLE, body = Problem, description = "`backup_failed`")
    )
)]
pub(super) async fn make(
    State(server): State<Server>,
    Extension(holder): Extension<Holder>,
    caller: Option<Extension<Caller>>,
    body: Body,
) -> Result<Json<Backup>, Problem> {
    let NewBackup { folder } = body::json(body, server.config()).await?;
    if !folder.is_absolute() {
        let text = "folder: it has to be an absolute path on the server's machine";
        return Err(Problem::new(StatusCode::BAD_REQUEST, "bad_folder", text));
    }
    let made = server.store().backup(&folder).await;
    let key = holder.name();
    let shown = folder.display().to_string();
    let why = made.as_ref().err().map(ToString::to_string);
    server.audit().record(Entry {
        key: Some(key),
        address: submit::address(caller),
        folder: Some(&shown),
        outcome: Some(if why.is_none() { "completed" } else { "failed" }),
        reason: why.as_deref(),
        ..Entry::new(Event::Backup)
    });
    match made {
        Ok(bytes) => {
            tracing::info!(key, folder = shown, bytes, "a copy of the store was made");
            Ok(Json(Backup { folder, bytes }))
        }
        Err(error) => {
            tracing::warn!(key, %error, "no copy of the store was made");
            let text = error.to_string();
            Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "backup_failed", text))
        }
    }
}
