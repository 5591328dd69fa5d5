//! How a task comes in over HTTP, by our route or UFO's.

use std::net::SocketAddr;
use std::sync::Arc;

use aip::machine::TaskRequest;
use axum::Extension;
use tokio::sync::oneshot;

use super::access::Holder;
use crate::front::Caller;
use crate::hub::{From, Submission, SubmitError, Submitted};
use crate::server::Server;
use crate::session::Task;
use crate::store::{StoreError, Summary};
use crate::{audit, drive};

/// From where a request comes.
pub(super) fn address(caller: Option<Extension<Caller>>) -> Option<SocketAddr> {
    caller.map(|Extension(caller)| caller.address)
}

/// Why a task could not be submitted over HTTP.
pub(super) enum NotSubmitted {
    Refused(SubmitError),
    NotStored(StoreError),
}

/// Submits a task and waits until it is stored.
pub(super) async fn submit(
    server: &Server,
    holder: Holder,
    address: Option<SocketAddr>,
    request: TaskRequest,
) -> Result<Arc<Task>, NotSubmitted> {
    let (device, key) = (request.target_id.clone(), holder.clone());
    let submitted = try_submit(server, holder, address, request).await;
    if let Err(NotSubmitted::Refused(error)) = &submitted {
        server.audit().record(audit::Entry {
            key: Some(key.name()),
            address,
            device: Some(device.as_str()),
            reason: Some(&error.to_string()),
            ..audit::Entry::new(audit::Event::Refused)
        });
    }
    submitted
}

async fn try_submit(
    server: &Server,
    holder: Holder,
    address: Option<SocketAddr>,
    request: TaskRequest,
) -> Result<Arc<Task>, NotSubmitted> {
    let (stored, is_stored) = oneshot::channel();
    let shares = server.agent().shares_device(&request.request);
    let submission = Submission { request, holder, address, from: From::Http(stored), shares };
    let submitted = drive::submit(server, submission).map_err(NotSubmitted::Refused)?;
    is_stored.await.unwrap_or(Err(StoreError::Closed)).map_err(NotSubmitted::NotStored)?;
    match submitted {
        Submitted::New(task) => Ok(task),
        Submitted::Known(id) => {
            let journal = server.store().journal(id).await.map_err(NotSubmitted::NotStored)?;
            let known = Summary::of(&journal.unwrap_or_default());
            known.map(|known| known.task).ok_or(NotSubmitted::Refused(SubmitError::Lost))
        }
    }
}
