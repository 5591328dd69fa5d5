//! A registered peer, as the server sees it: who it is, and what it may say.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::id::{ClientId, RequestId, ResponseId, SessionId, TaskName};
use crate::message::{
    ActionResult, Cancel, ClientMessage, ClientMessageType, ClientType, Feature, Features,
    OnDisconnect, Output, Status, TaskSettings, Word,
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
    /// The requester's id of it, by which it is known when it is sent again; from who may.
    pub request_id: Option<RequestId>,
    /// The store id under which it was first sent.
    pub store: Option<String>,
    /// What becomes of it when its requester's connection is lost.
    pub on_disconnect: OnDisconnect,
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

    /// A sign of life; with status `continue` and the extension's `output` in it, what a tool tells.
    fn heartbeat(&self, message: ClientMessage) -> Request {
        let is_device = self.client_type == ClientType::Device;
        if !is_device || message.status != Status::Continue {
            return Request::Heartbeat;
        }
        let output = Output::of(message.metadata.as_ref());
        match (message.session_id, message.prev_response_id, output) {
            (Some(session_id), Some(response_id), Some(output)) => {
                Request::Output { session_id, response_id, output }
            }
            _ => Request::Heartbeat,
        }
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
            request_id,
            store: settings.store.filter(|_| may_repeat),
            on_disconnect: settings.on_disconnect.unwrap_or_default(),
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
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::codec::Wire;

    fn peer(client_type: ClientType, target: Option<&str>) -> Peer {
        Peer {
            client_id: ClientId::new("me").unwrap(),
            client_type,
            target_id: target.map(|id| ClientId::new(id).unwrap()),
            is_bound: true,
            features: Features::default(),
        }
    }

    fn says(peer: &Peer, text: &str) -> Result<Request, String> {
        let message = ClientMessage::decode(&Bytes::copy_from_slice(text.as_bytes())).unwrap();
        peer.admit(message).map_err(|rejection| rejection.text)
    }

    #[test]
    fn nobody_speaks_for_another() {
        let device = peer(ClientType::Device, None);
        for kind in ["heartbeat", "task", "command_results", "error", "device_info_response"] {
            let text = format!(r#"{{"type":"{kind}","client_id":"you"}}"#);
            let refused = says(&device, &text).unwrap_err();
            assert_eq!(refused, "client_id does not match the registered connection", "{kind}");
        }
        for kind in ["task", "command_results", "device_info_request"] {
            let text =
                format!(r#"{{"type":"{kind}","client_type":"constellation","client_id":"me"}}"#);
            let refused = says(&device, &text).unwrap_err();
            assert_eq!(refused, "client_type does not match the registered connection", "{kind}");
        }
    }

    #[test]
    fn a_heartbeat_may_claim_any_role() {
        let constellation = peer(ClientType::Constellation, None);
        let galaxy = r#"{"type":"heartbeat","client_type":"device","client_id":"me"}"#;
        assert_eq!(says(&constellation, galaxy), Ok(Request::Heartbeat));
    }

    #[test]
    fn what_a_tool_tells_is_a_heartbeat_of_a_device_that_continues() {
        let device = peer(ClientType::Device, None);
        let tells = r#"{"type":"heartbeat","status":"continue","session_id":"S","prev_response_id":"R",
            "metadata":{"flightdeck":{"output":{"lines":["a","b"]}}}}"#;
        let Ok(Request::Output { session_id, output, .. }) = says(&device, tells) else { panic!() };
        assert_eq!((session_id.as_str(), output.lines.join(",")), ("S", "a,b".to_owned()));
        let constellation = peer(ClientType::Constellation, None);
        assert_eq!(says(&constellation, tells), Ok(Request::Heartbeat));
        for broken in [("continue", "ok"), ("\"S\"", "null"), ("lines", "words")] {
            let text = tells.replace(broken.0, broken.1);
            assert_eq!(says(&device, &text), Ok(Request::Heartbeat), "{text}");
        }
    }

    #[test]
    fn who_may_have_which_task_run() {
        let device = peer(ClientType::Device, None);
        let own = r#"{"type":"task","request":"r"}"#;
        assert!(
            matches!(says(&device, own), Ok(Request::Task(task)) if task.target_id.as_str() == "me")
        );
        let others = r#"{"type":"task","request":"r","target_id":"d"}"#;
        assert_eq!(
            says(&device, others).unwrap_err(),
            "Device clients may not target other devices"
        );

        let task = |target: &str| {
            format!(r#"{{"type":"task","client_type":"constellation","request":"r"{target}}}"#)
        };
        let free = peer(ClientType::Constellation, None);
        assert!(says(&free, &task(r#","target_id":"d""#)).is_ok());
        let without = says(&free, &task("")).unwrap_err();
        assert_eq!(without, "Constellation task requests require target_id");
        let bound = peer(ClientType::Constellation, Some("d"));
        assert!(says(&bound, &task(r#","target_id":"d""#)).is_ok());
        let other = says(&bound, &task(r#","target_id":"e""#)).unwrap_err();
        assert_eq!(other, "Not authorized to run tasks on this device");
        let features =
            Features::granted(&[Feature::Ack, Feature::RequestId], ClientType::Constellation);
        let may_repeat = Peer { features, ..bound };
        let repeated = task(r#","target_id":"e","request_id":"q""#);
        let Ok(Request::Task(task)) = says(&may_repeat, &repeated) else { panic!() };
        assert_eq!(may_repeat.may_submit(&task), Err(&*other), "its server asks when it is new");
    }

    #[test]
    fn a_task_without_content_is_refused() {
        let device = peer(ClientType::Device, None);
        for request in ["", r#","request":"""#, r#","request":"  ""#, r#","request":null"#] {
            let text = format!(r#"{{"type":"task"{request}}}"#);
            assert_eq!(says(&device, &text).unwrap_err(), "Empty task content");
        }
    }

    #[test]
    fn facts_are_for_constellations_to_ask_and_devices_to_tell() {
        let device = peer(ClientType::Device, None);
        let ask = |role: &str| {
            format!(r#"{{"type":"device_info_request","client_type":"{role}","target_id":"d"}}"#)
        };
        let refused = says(&device, &ask("device")).unwrap_err();
        assert_eq!(refused, "DEVICE_INFO_REQUEST is permitted only for constellation clients");
        let bound = peer(ClientType::Constellation, Some("e"));
        let refused = says(&bound, &ask("constellation")).unwrap_err();
        assert_eq!(refused, "Not authorized to request device info for this device");
        let tell = r#"{"type":"device_info_response","client_type":"constellation","metadata":{}}"#;
        assert!(says(&bound, tell).is_err());
        assert!(says(&device, tell).is_ok());
    }

    #[test]
    fn what_is_unknown_is_named() {
        let device = peer(ClientType::Device, None);
        for kind in ["register", "teleport", "task_end"] {
            let text = format!(r#"{{"type":"{kind}"}}"#);
            assert_eq!(says(&device, &text), Err(format!("Unknown message type: {kind}")));
        }
    }

    #[test]
    fn acknowledgements_and_cancels_are_read_from_those_who_were_granted_them() {
        let all = [Feature::Ack, Feature::RequestId, Feature::Cancel, Feature::Resume];
        let granted = |role| Peer { features: Features::granted(&all, role), ..peer(role, None) };
        let requester = granted(ClientType::Constellation);
        let ack = r#"{"type":"task_end","status":"ok","session_id":"S","prev_response_id":"T"}"#;
        let said = says(&requester, ack);
        assert!(matches!(said, Ok(Request::Acknowledge { task }) if task.as_str() == "T"));
        let cancel = r#"{"type":"task_end","status":"failed","session_id":"S","request_id":"q",
            "metadata":{"flightdeck":{"cancel":"request"}}}"#;
        let said = says(&requester, cancel);
        assert!(matches!(said, Ok(Request::Cancel { task: None, .. })), "{said:?}");
        let confirmed = r#"{"type":"task_end","status":"ok","session_id":"S","prev_response_id":"R",
            "metadata":{"flightdeck":{"cancel":"stopped"}}}"#;
        let device = granted(ClientType::Device);
        let said = says(&device, confirmed);
        assert!(matches!(said, Ok(Request::Stopped { word: Word::Stopped, .. })), "{said:?}");
        for (peer, text) in [
            (&device, ack),
            (&device, cancel),
            (&requester, confirmed),
            (&peer(ClientType::Constellation, None), ack),
        ] {
            assert_eq!(says(peer, text), Err("Unknown message type: task_end".to_owned()));
        }
    }

    #[test]
    fn who_may_asks_after_a_task_and_leaves_it_running() {
        let text = r#"{"type":"task","client_type":"constellation","session_id":"S","request_id":"q",
            "target_id":"d","metadata":{"flightdeck":{"task":"T","on_disconnect":"continue"}}}"#;
        let legacy = peer(ClientType::Constellation, None);
        let whole = text.replace(r#""target_id""#, r#""request":"r","target_id""#);
        assert!(says(&legacy, &whole).unwrap_err().contains("on_disconnect was not granted"));
        let asked = [Feature::Ack, Feature::RequestId, Feature::Detach];
        let features = Features::granted(&asked, ClientType::Constellation);
        let peer = Peer { features, ..legacy };
        assert!(matches!(says(&peer, text), Ok(Request::AskAfter { task, .. }) if task == "T"));
        let text = text.replace(r#""task":"T""#, r#""store":"s""#);
        let text = text.replace(r#""target_id""#, r#""request":"r","target_id""#);
        let Ok(Request::Task(task)) = says(&peer, &text) else { panic!() };
        assert_eq!(task.on_disconnect, OnDisconnect::Continue);
        assert_eq!(task.store.as_deref(), Some("s"));
    }

    #[test]
    fn an_error_without_text_is_an_unknown_error() {
        let device = peer(ClientType::Device, None);
        let error = |text: &str| match says(&device, text) {
            Ok(Request::Error { text, .. }) => text,
            other => panic!("{other:?}"),
        };
        assert_eq!(error(r#"{"type":"error","error":"it broke"}"#), "it broke");
        assert_eq!(error(r#"{"type":"error","error":""}"#), "Unknown error");
        assert_eq!(error(r#"{"type":"error"}"#), "Unknown error");
    }
}
