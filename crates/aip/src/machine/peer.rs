//! A registered peer, as the server sees it: who it is, and what it may say.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::id::{ClientId, RequestId, ResponseId, SessionId, TaskName};
use crate::message::{
    ActionResult, Cancel, ClientMessage, ClientMessageType, ClientType, Downstream, Feature,
    Features, OnDisconnect, Output, Spooled, Status, Streams, TaskSettings, Upstream, Word,
};
use crate::payload::Payload;

/// The identity that a connection is pinned to by its registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Who it is.
    pub client_id: ClientId,
    /// Its role.
    pub client_type: ClientType,
    /// The device that a constellation declared as its target.
    pub target_id: Option<ClientId>,
    /// Whether it may work with that device only, because its key does not itself name more.
    pub is_bound: bool,
    /// What it was granted of the extension.
    pub features: Features,
}

/// What a peer asks for, once it is known that it may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// It is alive.
    Heartbeat,
    /// A device tells what a tool says while it runs.
    Output {
        /// The session that the COMMAND belongs to.
        session_id: SessionId,
        /// The COMMAND, *R*.
        response_id: ResponseId,
        /// What it tells.
        output: Output,
    },
    /// A device says something of the streams of a COMMAND.
    Upstream {
        /// The session that the COMMAND belongs to.
        session_id: SessionId,
        /// The COMMAND, *R*.
        response_id: ResponseId,
        /// What it says.
        upstream: Upstream,
    },
    /// A device answers what it has kept of the output of a COMMAND.
    Spooled(Spooled),
    /// A requester says something of the streams of a task.
    Downstream {
        /// The task, *T*.
        task: ResponseId,
        /// What it says.
        downstream: Downstream,
    },
    /// It submits a task.
    Task(TaskRequest),
    /// It asks after a task that was accepted: its ACK again, and its TASK_END if there is one.
    AskAfter {
        /// The session that it names.
        session_id: SessionId,
        /// The request that the task was accepted for.
        request_id: Option<RequestId>,
        /// The task, *T*.
        task: String,
    },
    /// A requester has taken an outcome.
    Acknowledge {
        /// The task, *T*.
        task: ResponseId,
    },
    /// A requester wants a task to end.
    Cancel {
        /// The session that it names.
        session_id: SessionId,
        /// The task, *T*; before its ACK only its request is known.
        task: Option<ResponseId>,
        /// The request that it was sent as.
        request_id: Option<RequestId>,
    },
    /// A device says what became of a command that it was told to stop.
    Stopped {
        /// The COMMAND, *R*.
        response_id: ResponseId,
        /// What became of it.
        word: Word,
    },
    /// A device answers a COMMAND.
    Results(CommandResults),
    /// A constellation asks for a device's facts.
    DeviceInfo {
        /// Which device.
        target_id: ClientId,
        /// The id that the answer shall carry.
        request_id: Option<RequestId>,
    },
    /// A device sends its facts anew: a JSON object.
    DeviceFacts(Option<Payload>),
    /// It reports that something was wrong with what it got.
    Error {
        /// Its text.
        text: String,
        /// The session it names.
        session_id: Option<SessionId>,
    },
}

/// A task as its requester submits it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskRequest {
    /// The id that the requester chose for the run.
    pub session_id: Option<SessionId>,
    /// The label that the requester chose, made safe.
    pub task_name: Option<TaskName>,
    /// The device that shall do it.
    pub target_id: ClientId,
    /// What to do: never empty.
    pub request: String,
    /// Longest time for one of its commands, if it shall be another than the server's default.
    pub command_timeout: Option<Duration>,
    /// Whether it wants no limit but that.
    pub no_time_limit: bool,
    /// The requester's id of it, by which it is known when it is sent again; from who may.
    pub request_id: Option<RequestId>,
    /// The store id under which it was first sent.
    pub store: Option<String>,
    /// What becomes of it when its requester's connection is lost.
    pub on_disconnect: OnDisconnect,
    /// The streams that it asks for, from who may.
    pub streams: Option<Streams>,
    /// What else tells it from another one with the same `request_id`.
    pub as_sent: AsSent,
}

/// What a requester wrote into a TASK where something else is made of it: an absent part differs from an empty one, and
/// from its default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AsSent {
    /// The label.
    pub task_name: Option<String>,
    /// See [`TaskSettings::as_sent`].
    pub settings: Option<BTreeMap<String, Payload>>,
}

/// What a device says became of a COMMAND.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandResults {
    /// The session that it names.
    pub session_id: Option<SessionId>,
    /// The COMMAND that it answers, *R*.
    pub response_id: Option<ResponseId>,
    /// One result for each action.
    pub results: Vec<ActionResult>,
}

/// Why a message is refused. The connection stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The error text that goes back.
    pub text: String,
    /// The session that the message named.
    pub session_id: Option<SessionId>,
    /// The request that it named.
    pub request_id: Option<RequestId>,
    /// Whether it was a TASK, whose requester waits for a TASK_END.
    pub is_task: bool,
}

impl Peer {
    /// Decides whether this peer may say this.
    ///
    /// # Errors
    /// What to answer instead, when it may not.
    pub fn admit(&self, message: ClientMessage) -> Result<Request, Rejection> {
        let (session_id, request_id) = (message.session_id.clone(), message.request_id.clone());
        let is_task = message.kind == ClientMessageType::Task;
        self.check_identity(&message).and_then(|()| self.read(message)).map_err(|text| Rejection {
            text,
            session_id,
            request_id,
            is_task,
        })
    }

    fn check_identity(&self, message: &ClientMessage) -> Result<(), String> {
        if message.client_id.as_ref().is_some_and(|id| *id != self.client_id) {
            return Err("client_id does not match the registered connection".to_owned());
        }
        let pinned = matches!(
            message.kind,
            ClientMessageType::Task
                | ClientMessageType::CommandResults
                | ClientMessageType::DeviceInfoRequest
        );
        if pinned && message.client_type != self.client_type {
            return Err("client_type does not match the registered connection".to_owned());
        }
        Ok(())
    }

    /// A sign of life; with status `continue` what it says of streams, or what a tool tells.
    fn heartbeat(&self, message: ClientMessage) -> Request {
        let (Some(session_id), Some(about)) = (message.session_id, message.prev_response_id) else {
            return Request::Heartbeat;
        };
        let metadata = message.metadata.as_ref();
        let says = match (message.status, self.client_type) {
            (Status::Continue, ClientType::Device) => self.device_says(session_id, about, metadata),
            (Status::Continue, ClientType::Constellation) if self.features.has(Feature::Output) => {
                Downstream::of(metadata)
                    .map(|downstream| Request::Downstream { task: about, downstream })
            }
            _ => None,
        };
        says.unwrap_or(Request::Heartbeat)
    }

    fn device_says(
        &self,
        session_id: SessionId,
        response_id: ResponseId,
        metadata: Option<&Payload>,
    ) -> Option<Request> {
        if self.features.has(Feature::Output)
            && let Some(upstream) = Upstream::of(metadata)
        {
            return Some(Request::Upstream { session_id, response_id, upstream });
        }
        if self.features.has(Feature::Output)
            && let Some(spooled) = Spooled::of(metadata)
        {
            return Some(Request::Spooled(spooled));
        }
        let output = Output::of(metadata)?;
        Some(Request::Output { session_id, response_id, output })
    }

    fn read(&self, message: ClientMessage) -> Result<Request, String> {
        match message.kind {
            ClientMessageType::Heartbeat => Ok(self.heartbeat(message)),
            ClientMessageType::Task => self.task(message),
            ClientMessageType::CommandResults => Ok(Request::Results(CommandResults {
                session_id: message.session_id,
                response_id: message.prev_response_id,
                results: message.action_results.unwrap_or_default(),
            })),
            ClientMessageType::DeviceInfoRequest => self.device_info(message),
            ClientMessageType::DeviceInfoResponse if self.client_type == ClientType::Device => {
                Ok(Request::DeviceFacts(message.metadata))
            }
            ClientMessageType::DeviceInfoResponse => {
                Err("DEVICE_INFO_RESPONSE is permitted only for device clients".to_owned())
            }
            ClientMessageType::Error => Ok(Request::Error {
                text: message
                    .error
                    .filter(|text| !text.is_empty())
                    .unwrap_or_else(|| "Unknown error".to_owned()),
                session_id: message.session_id,
            }),
            ClientMessageType::TaskEnd => {
                let unknown = || unknown_type(&ClientMessageType::TaskEnd);
                self.task_end(message).ok_or_else(unknown)
            }
            kind @ (ClientMessageType::Register | ClientMessageType::Unknown(_)) => {
                Err(unknown_type(&kind))
            }
        }
    }

    /// A client's TASK_END: an acknowledgement, a cancel, or a device's word on one; from who was granted that.
    fn task_end(&self, message: ClientMessage) -> Option<Request> {
        let has = |feature| self.features.has(feature);
        let word = Cancel::of(message.metadata.as_ref()).map(|cancel| cancel.cancel);
        if self.client_type == ClientType::Device {
            let word = word.filter(|word| *word != Word::Request && has(Feature::Cancel))?;
            return Some(Request::Stopped { response_id: message.prev_response_id?, word });
        }
        match (message.status, word) {
            (Status::Ok, None) if has(Feature::Ack) => {
                Some(Request::Acknowledge { task: message.prev_response_id? })
            }
            (Status::Failed, Some(Word::Request)) if has(Feature::Cancel) => {
                Some(Request::Cancel {
                    session_id: message.session_id?,
                    task: message.prev_response_id,
                    request_id: message.request_id,
                })
            }
            _ => None,
        }
    }

    fn task(&self, message: ClientMessage) -> Result<Request, String> {
        let settings = TaskSettings::of(message.metadata.as_ref())?;
        let may_repeat = self.features.has(Feature::RequestId);
        let request_id = message.request_id.filter(|_| may_repeat);
        if let Some(task) =
            settings.task.clone().filter(|_| may_repeat && message.request.is_none())
            && let Some(session_id) = message.session_id.clone()
        {
            return Ok(Request::AskAfter { session_id, request_id, task });
        }
        let target_id = self.task_target(message.target_id)?;
        let request = message.request.filter(|request| !request.trim().is_empty());
        let command_timeout = settings.command_timeout()?;
        let as_sent = AsSent {
            settings: request_id
                .as_ref()
                .and_then(|_| TaskSettings::as_sent(message.metadata.as_ref())),
            task_name: message.task_name,
        };
        let task = TaskRequest {
            session_id: message.session_id,
            task_name: as_sent.task_name.as_deref().and_then(TaskName::sanitize),
            target_id,
            request: request.ok_or("Empty task content")?,
            command_timeout,
            no_time_limit: settings.no_time_limit == Some(true),
            request_id,
            store: settings.store.filter(|_| may_repeat),
            on_disconnect: settings.on_disconnect.unwrap_or_default(),
            streams: settings.streams.filter(|_| self.features.has(Feature::Output)),
            as_sent,
        };
        if task.request_id.is_none() {
            self.may_submit(&task)?;
        }
        Ok(Request::Task(task))
    }

    /// Whether it may have a task run. [`Self::admit`] asks this of a TASK without a `request_id`; of any other its
    /// server has to, once it knows that it is a new one: what was accepted before is not refused.
    ///
    /// # Errors
    /// Why not.
    pub fn may_submit(&self, task: &TaskRequest) -> Result<(), &'static str> {
        if task.on_disconnect != OnDisconnect::Cancel && !self.features.has(Feature::Detach) {
            return Err("on_disconnect was not granted: only \"cancel\" is possible");
        }
        if self.client_type == ClientType::Constellation && !self.may_reach(&task.target_id) {
            return Err("Not authorized to run tasks on this device");
        }
        Ok(())
    }

    fn task_target(&self, target_id: Option<ClientId>) -> Result<ClientId, String> {
        match self.client_type {
            ClientType::Device => match target_id {
                Some(id) if id != self.client_id => {
                    Err("Device clients may not target other devices".to_owned())
                }
                _ => Ok(self.client_id.clone()),
            },
            ClientType::Constellation => {
                target_id.ok_or_else(|| "Constellation task requests require target_id".to_owned())
            }
        }
    }

    fn device_info(&self, message: ClientMessage) -> Result<Request, String> {
        if self.client_type != ClientType::Constellation {
            return Err(
                "DEVICE_INFO_REQUEST is permitted only for constellation clients".to_owned()
            );
        }
        let target_id = message
            .target_id
            .or_else(|| self.target_id.clone())
            .ok_or("DEVICE_INFO_REQUEST requires target_id")?;
        if !self.may_reach(&target_id) {
            return Err("Not authorized to request device info for this device".to_owned());
        }
        Ok(Request::DeviceInfo { target_id, request_id: message.request_id })
    }

    /// A constellation that declared a target at registration reaches that one only.
    fn may_reach(&self, target: &ClientId) -> bool {
        !self.is_bound || self.target_id.as_ref().is_none_or(|declared| declared == target)
    }
}

fn unknown_type(kind: &ClientMessageType) -> String {
    let kind: String = kind.as_str().chars().take(64).collect();
    format!("Unknown message type: {}", kind.escape_debug())
}

#[cfg(test)]
mod tests;
