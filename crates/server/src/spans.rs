//! The spans of the log, by which a line says which connection or which task it is about.
//!
//! They are at the level of errors, so that no filter which lets a line through drops what the line leaves to them.
//! They have no parent: work on a task goes on wherever an event came in, and that connection is not the task's.

use std::net::SocketAddr;

use aip::ClientId;
use tracing::{Level, Span};

use crate::handle::{ConnectionId, Handle};
use crate::session::{Task, TaskId};

/// The span of a connection, whose client may be recorded later.
pub(crate) fn connection(
    id: ConnectionId,
    address: Option<SocketAddr>,
    client: Option<&ClientId>,
) -> Span {
    tracing::error_span!(
        parent: None,
        "connection",
        connection = %id,
        address = address.map(tracing::field::display),
        client = client.map(tracing::field::display),
    )
}

/// The span that a registered connection runs in: its own if the filter lets through what `link` logs about
/// connections, else none. A span that is entered at every poll makes a heartbeat 2 % dearer, and takes 600 bytes of
/// each connection; so the actor enters a fresh one where it logs ([`Handle::span`]).
pub(crate) fn around(client: &Handle) -> Span {
    let is_link_logged = tracing::enabled!(target: "link::connection", Level::DEBUG);
    if is_link_logged { client.span() } else { Span::none() }
}

fn task(task: &Task) -> Span {
    tracing::error_span!(parent: None, "task", task = %task.id, session = %task.session_id)
}

/// The span of the task that was worked on last. What is to be done about one task mostly comes in a row, and a span
/// for each piece of it would cost more.
#[derive(Default)]
pub(crate) struct TaskSpan {
    id: Option<TaskId>,
    span: Option<Span>,
}

impl TaskSpan {
    /// Does something about a task, if it is about one, in the task's span.
    pub(crate) fn run<T>(&mut self, about: Option<&Task>, work: impl FnOnce() -> T) -> T {
        let id = about.map(|task| task.id);
        if self.id != id {
            *self = Self { id, span: about.map(task) };
        }
        match &self.span {
            Some(span) => span.in_scope(work),
            None => work(),
        }
    }
}
