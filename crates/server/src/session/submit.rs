//! How a task begins: checked, queued for its device, stored, acknowledged.

use std::sync::Arc;
use std::time::Duration;

use aip::machine::TaskRequest;
use aip::{ClientId, ServerMessage, ServerMessageType, Status};
use link::connection::timestamp;

use super::table::Refused;
use super::{Cause, Origin, Requester, Session, Task, Wanted, fresh_response_id, run};
use crate::audit::{self, Event};
use crate::registry::Client;
use crate::server::Server;
use crate::store::Entry;

/// Why a task cannot begin. Texts go to the requester.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SubmitError {
    #[error("Constellation tasks may only target device clients")]
    NotADevice,
    #[error("Target device '{0}' is not connected")]
    NotConnected(ClientId),
    #[error("Not authorized to run tasks on this device")]
    NotAuthorized,
    #[error("Task content of {bytes} bytes is over the limit of {limit} bytes")]
    TooLong { bytes: usize, limit: usize },
    #[error("command_timeout_s must be more than 0 and at most {}", longest.as_secs_f64())]
    Timeout { longest: Duration },
    #[error(transparent)]
    Refused(#[from] Refused),
}

impl SubmitError {
    /// Whether the refusal itself says that the session id names a task that is not over.
    pub(crate) const fn names_open_task(&self) -> bool {
        matches!(self, Self::Refused(refused) if refused.names_open_task())
    }
}

/// Begins a task that a connected client wants.
///
/// # Errors
/// When it cannot begin.
pub(crate) fn submit_for(
    server: &Server,
    client: &Arc<Client>,
    request: TaskRequest,
) -> Result<(), SubmitError> {
    if !client.may_reach(&request.target_id) {
        return Err(SubmitError::NotAuthorized);
    }
    let requester = Requester::Client(client.id().clone());
    let wanted = Wanted { request, requester, holder: client.holder.clone() };
    submit(server, wanted, Origin::Client(client.clone())).map(|_task| ())
}

/// Begins a task: checks its target, gives it its place in the queue, and runs it in a task of its
/// own, which answers with the ACK and later the TASK_END. Where the store commits at once, the ACK
/// is queued on return, so that it comes before any answer to a later message.
///
/// # Errors
/// When it cannot begin.
pub(crate) fn submit(
    server: &Server,
    wanted: Wanted,
    origin: Origin,
) -> Result<Arc<Task>, SubmitError> {
    let (config, target) = (server.config(), wanted.request.target_id.clone());
    let device = match server.registry().client(&target) {
        Some(client) if client.is_device() => client,
        Some(_) => return Err(SubmitError::NotADevice),
        None => return Err(SubmitError::NotConnected(target)),
    };
    let (bytes, limit) = (wanted.request.request.len(), config.max_request_bytes);
    if bytes > limit {
        return Err(SubmitError::TooLong { bytes, limit });
    }
    let timeout = wanted.request.command_timeout.unwrap_or(config.command_timeout);
    let longest = config.max_command_timeout.max(config.command_timeout);
    if timeout.is_zero() || timeout > longest {
        return Err(SubmitError::Timeout { longest });
    }
    let agent_name = config.agent_name(&device.platform);
    let session = Arc::new(Session::new(wanted, origin, &device, agent_name, timeout));
    let turn = server.sessions().begin(&session, config)?;
    // Whoever left while we looked the other way was not told of this session.
    if !server.registry().device(&target).is_some_and(|now| now.connection == device.connection) {
        session.stop(Cause::DeviceGone);
    }
    let task = session.task.clone();
    server.audit().record(entry(&session, Event::Submitted));
    let created = server.store().append(task.id, Entry::Created(task.clone()));
    let created = if created.is_done() {
        acknowledge(&session);
        None
    } else {
        Some(created)
    };
    tokio::spawn(run::run(server.clone(), session, created, turn));
    Ok(task)
}

pub(super) fn acknowledge(session: &Session) {
    session.note_stored();
    if let Some(requester) = session.requester() {
        requester.send(&ServerMessage {
            session_id: Some(session.task.session_id.clone()),
            timestamp: Some(timestamp()),
            response_id: Some(fresh_response_id()),
            ..ServerMessage::new(ServerMessageType::Heartbeat, Status::Ok)
        });
    }
}

/// What the audit log says of a session.
pub(crate) fn entry(session: &Session, event: Event) -> audit::Entry<'_> {
    let task = &session.task;
    let base = match &session.origin {
        Origin::Client(client) => client.entry(event),
        Origin::Http { address, .. } => audit::Entry {
            key: Some(task.holder.name()),
            address: *address,
            ..audit::Entry::new(event)
        },
    };
    audit::Entry {
        task: Some(task.id),
        session: Some(task.session_id.as_str()),
        device: Some(task.device.as_str()),
        ..base
    }
}
