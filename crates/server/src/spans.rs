//! The spans of the log, by which a line says which connection or which task it is about.
//!
//! They are at the level of errors, so that no filter which lets a line through drops what the line leaves to them.
//! They have no parent: work on a task goes on wherever an event came in, and that connection is not the task's.

use std::net::SocketAddr;

use aip::ClientId;
use tracing::span::EnteredSpan;
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

/// The span that all of a registered connection runs in, if the filter lets through what `link` logs about connections.
/// A span that is entered at every poll makes a heartbeat 2 % dearer, and takes 600 bytes of each connection; so usually
/// the actor enters a fresh one where it logs ([`Handle::span`]).
pub(crate) fn around(client: &Handle) -> Option<Span> {
    let is_link_logged = tracing::enabled!(target: "link::connection", Level::DEBUG);
    is_link_logged.then(|| client.span())
}

fn task(task: &Task) -> Span {
    tracing::error_span!(parent: None, "task", task = %task.id, session = %task.session_id)
}

/// The span of the task that is worked on, which is left when this is dropped. What is to be done about one task mostly
/// comes in a row, and a span for each piece of it would cost more.
#[derive(Default)]
pub(crate) struct TaskSpan {
    id: Option<TaskId>,
    entered: Option<EnteredSpan>,
}

impl TaskSpan {
    /// Enters the span of a task, or none, in the place of the one before.
    pub(crate) fn enter(&mut self, about: Option<&Task>) {
        let id = about.map(|task| task.id);
        if self.id != id {
            self.entered = None;
            self.entered = about.map(|about| task(about).entered());
            self.id = id;
        }
    }
}
