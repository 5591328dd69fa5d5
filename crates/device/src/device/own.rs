//! The task that a device submits for itself: one that its owner gives with `--request`, or that a Python server
//! pushes.

use std::sync::{Mutex, MutexGuard, PoisonError};

use aip::message::{Accepted, Downstream, ReadSpool, ResultAck, TaskRefused};
use aip::{
    ClientMessage, ClientMessageType, Payload, RequestId, ResponseId, ServerMessage, SessionId,
    Status,
};
use serde_json::json;

use super::{DeviceEvent, DeviceRole};

/// The task that this device submitted for itself.
pub(super) struct OwnTask {
    session_id: SessionId,
    is_accepted: bool,
    /// The server's id of it, where the server wants to know that its outcome arrived.
    task: Option<ResponseId>,
}

/// What the connection shares with the COMMANDs that may end its own task.
pub(super) struct Own {
    /// One at a time.
    task: Mutex<Option<OwnTask>>,
    on_event: Box<dyn Fn(DeviceEvent) + Send + Sync>,
}

impl Own {
    pub(super) fn new(on_event: impl Fn(DeviceEvent) + Send + Sync + 'static) -> Self {
        Self { task: Mutex::default(), on_event: Box::new(on_event) }
    }

    fn task(&self) -> MutexGuard<'_, Option<OwnTask>> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the task that an outcome is about, if it is ours.
    pub(super) fn end(&self, end: ServerMessage) {
        let is_own = |task: &mut OwnTask| end.session_id.as_ref() == Some(&task.session_id);
        let ended = self.task().take_if(is_own);
        if ended.is_some() {
            self.tell(DeviceEvent::TaskEnded(Box::new(end)));
        }
    }

    /// The connection is gone. The task is not submitted again: this server may be at work on it, and would do it twice.
    pub(super) fn lose(&self, why: &str) {
        let own_task = self.task().take();
        let Some(own_task) = own_task else { return };
        let error = match own_task.is_accepted {
            true => format!("the connection was lost, so the outcome is unknown: {why}"),
            false => format!(
                "the connection was lost before the server accepted the task, so it may run or not; submit it again \
                 if it may be done twice: {why}"
            ),
        };
        let lost = ServerMessage::task_failed(error, own_task.session_id);
        self.tell(DeviceEvent::TaskEnded(Box::new(lost)));
    }

    pub(super) fn tell(&self, event: DeviceEvent) {
        (self.on_event)(event);
    }
}

impl DeviceRole {
    /// A Python server pushes tasks, which the device then submits as its own: one at a time.
    pub(super) fn handle_pushed_task(&mut self, task: ServerMessage) {
        let Some(request) = task.user_request else {
            return self.refuse("TASK without user_request".to_owned());
        };
        if self.own.task().is_some() {
            return self.refuse("A task of this device is running already".to_owned());
        }
        self.submit(request, task.task_name);
    }

    fn refuse(&self, text: String) {
        self.send(&self.error_report(text));
    }

    pub(super) fn submit(&mut self, request: String, task_name: Option<String>) {
        // A UUID is always a good id.
        let Ok(session_id) = SessionId::new(&self.ambient.uuid().to_string()) else { return };
        let own_task = OwnTask { session_id: session_id.clone(), is_accepted: false, task: None };
        *self.own.task() = Some(own_task);
        self.send(&ClientMessage {
            status: Status::Continue,
            session_id: Some(session_id),
            request: Some(request),
            task_name,
            request_id: RequestId::new(&self.ambient.uuid().to_string()).ok(),
            // Without it a Python server takes the device for one with Windows.
            metadata: Payload::from_value(&json!({"platform": self.platform})).ok(),
            ..self.message(ClientMessageType::Task)
        });
    }

    /// The answer to results of ours, or to a task of ours. The ACK of that names its session, which counts whatever we
    /// asked for. Any other `ok` is the answer to a heartbeat and names none.
    pub(super) fn handle_heartbeat(&mut self, message: ServerMessage) {
        if let Some(command) = message.response_id.as_ref()
            && let Some(downstream) = Downstream::of(message.result.as_ref())
        {
            return self.executor.handle_downstream(command, &downstream);
        }
        if let Some(command) = message.response_id.as_ref()
            && let Some(asked) = ReadSpool::of(message.result.as_ref())
        {
            let command = command.clone();
            return self.executor.handle_spool_question(message.session_id, command, asked);
        }
        if let Some(acknowledged) = message.response_id.as_ref()
            && ResultAck::of(message.result.as_ref()).is_some()
        {
            return self.executor.handle_acknowledged(acknowledged);
        }
        let accepted = Accepted::of(message.result.as_ref());
        let Some(session_id) = message.session_id.filter(|_| message.status == Status::Ok) else {
            return;
        };
        let mut task = self.own.task();
        if let Some(own_task) = task.as_mut().filter(|task| !task.is_accepted) {
            let task_id = accepted.and_then(|accepted| ResponseId::new(&accepted.task).ok());
            (own_task.session_id, own_task.task) = (session_id.clone(), task_id);
            own_task.is_accepted = true;
            drop(task);
            self.own.tell(DeviceEvent::TaskAccepted(session_id));
        }
    }

    /// A Python server refuses a task with an ERROR that names no session, and nothing else; a server that acknowledges
    /// says so in it.
    pub(super) fn handle_error(&mut self, message: ServerMessage) {
        let text = message.error.unwrap_or_else(|| "Unknown error".to_owned());
        let (names_none, is_refusal) =
            (message.session_id.is_none(), TaskRefused::of(message.result.as_ref()).is_some());
        let refused = self.own.task().take_if(|task| {
            let is_its = message.session_id.as_ref() == Some(&task.session_id);
            !task.is_accepted && (names_none || is_refusal && is_its)
        });
        self.own.tell(match refused {
            Some(task) => {
                DeviceEvent::TaskEnded(Box::new(ServerMessage::task_failed(text, task.session_id)))
            }
            None => DeviceEvent::ServerError(text),
        });
    }

    /// Tells a server that waits for it that the outcome of our own task is here.
    pub(super) fn acknowledge_outcome(&self, end: &ServerMessage) {
        let is_its = |task: &&OwnTask| task.task.is_some() && task.task == end.response_id;
        if self.own.task().as_ref().filter(is_its).is_some() {
            self.send(&ClientMessage {
                session_id: end.session_id.clone(),
                prev_response_id: end.response_id.clone(),
                ..self.message(ClientMessageType::TaskEnd)
            });
        }
    }
}
