//! A server that says what the test tells it to, over wires in memory that the test can cut.

use std::sync::Arc;
use std::time::Duration;

use aip::codec::Wire;
use aip::machine::confirm;
use aip::message::{
    Accepted, Confirmed, Extension, Feature, Mismatch, Refused, Resume, ResumeRefused, Resumed,
    TaskRefused, TaskSettings,
};
use aip::{
    ClientMessage, ClientMessageType, CloseCode, RequestId, ResponseId, ServerMessage,
    ServerMessageType, SessionId, Status,
};
use constellation::{ClientId, ClientSettings, Constellation, Keep, NewTask, ServerUrl};
use link::connection::Watch;
use link::memory::{KillSwitch, pair};
use link::{Ambient, Connection, Event, Outbox, OutboxLimits};
use tokio::sync::mpsc;

/// The store of the server, unless a test has another.
pub(crate) const STORE: &str = "S1";

/// By when something must have happened.
const PATIENCE: Duration = Duration::from_secs(300);

/// Where connections come in.
pub(crate) struct Stage {
    pub(crate) settings: ClientSettings,
    coming: mpsc::UnboundedReceiver<Link>,
}

/// The server's end of one connection.
pub(crate) struct Link {
    outbox: Arc<Outbox>,
    heard: mpsc::UnboundedReceiver<ClientMessage>,
    switch: KillSwitch,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let (come, coming) = mpsc::unbounded_channel();
        let mut settings = ClientSettings::constellation(ServerUrl::default());
        settings.connector = Some(Arc::new(move || {
            let (near, far, switch) = pair();
            let outbox = Arc::new(Outbox::new(OutboxLimits::default()));
            let (hear, heard) = mpsc::unbounded_channel();
            let watch = Watch { ping_every: PATIENCE, timeout: PATIENCE * 2 };
            let mut connection = Connection::<ClientMessage>::new(far, outbox.clone(), watch, None);
            tokio::spawn(async move {
                loop {
                    match connection.next_event(None).await {
                        Event::Message(message) => drop(hear.send(message)),
                        Event::Closed(closed) => {
                            return connection.close(closed.code, &closed.reason).await;
                        }
                        _ => {}
                    }
                }
            });
            let _the_test_is_over = come.send(Link { outbox, heard, switch });
            Box::pin(std::future::ready(Ok(near)))
        }));
        Self { settings, coming }
    }

    /// The next connection, and how its client registers.
    pub(crate) async fn arrival(&mut self) -> (Link, Resume) {
        let mut link = within(self.coming.recv()).await.unwrap();
        let register = link.expect(ClientMessageType::Register).await;
        let extension = Extension::of(register.metadata.as_ref()).unwrap().unwrap();
        for feature in
            [Feature::Ack, Feature::RequestId, Feature::Cancel, Feature::Detach, Feature::Progress]
        {
            assert!(extension.features.contains(&feature), "{feature:?}");
        }
        (link, extension.resume.unwrap())
    }

    /// The next connection, confirmed as one of an identity that is known.
    pub(crate) async fn back(&mut self) -> Link {
        let (link, _) = self.arrival().await;
        link.confirm(STORE, false, true);
        link
    }

    /// Nobody connects any more.
    pub(crate) async fn nobody_comes(&mut self) {
        let coming = tokio::time::timeout(PATIENCE, self.coming.recv()).await;
        assert!(!matches!(coming, Ok(Some(_))), "somebody came");
    }

    /// A client in memory that is connected.
    pub(crate) async fn client(&mut self) -> (Constellation, Link) {
        let keep = Keep::in_memory(&Ambient::system());
        self.client_keeping(keep, false).await
    }

    pub(crate) async fn client_keeping(
        &mut self,
        keep: Keep,
        resumed: bool,
    ) -> (Constellation, Link) {
        let settings = self.settings.clone();
        let id = ClientId::new("q").unwrap();
        let connecting = Constellation::connect_keeping(settings, id, keep);
        let confirming = async {
            let (link, _) = self.arrival().await;
            link.confirm(STORE, false, resumed);
            link
        };
        let (client, link) = within(async { tokio::join!(connecting, confirming) }).await;
        (client.unwrap(), link)
    }
}

impl Link {
    pub(crate) fn say(&self, message: &ServerMessage) {
        self.outbox.push(message.encode()).unwrap();
    }

    /// Confirms the client, with all that a requester may be granted.
    pub(crate) fn confirm(&self, store: &str, former: bool, resumed: bool) {
        let features = vec![
            Feature::Progress,
            Feature::Ack,
            Feature::RequestId,
            Feature::Cancel,
            Feature::Detach,
        ];
        let resumed = Resumed {
            store: store.to_owned(),
            former,
            resumed,
            resume_key: "a-key".to_owned(),
            resume_window_s: None,
            commands: Default::default(),
        };
        self.confirm_as(Some(&Confirmed {
            version: 1,
            features,
            resumed: Some(resumed),
            ..Confirmed::default()
        }));
    }

    /// Confirms the client as a Python server does, or one that grants something else.
    pub(crate) fn confirm_as(&self, granted: Option<&Confirmed>) {
        self.say(&confirm(ResponseId::new("r").unwrap(), String::new(), granted));
    }

    /// Refuses the client for who it says it is.
    pub(crate) fn mismatch(&self, resume: Mismatch) {
        let result = ResumeRefused { resume }.to_result();
        self.say(&ServerMessage { result, ..ServerMessage::error("not so", None) });
        self.outbox.close(CloseCode::NORMAL, "come again");
    }

    /// The next message, heartbeats aside.
    pub(crate) async fn next(&mut self) -> ClientMessage {
        loop {
            let message = within(self.heard.recv()).await.expect("it hung up");
            if message.kind != ClientMessageType::Heartbeat {
                return message;
            }
        }
    }

    pub(crate) async fn expect(&mut self, kind: ClientMessageType) -> ClientMessage {
        let message = self.next().await;
        assert_eq!(message.kind, kind, "{message:?}");
        message
    }

    /// The next message, which must be a TASK that asks for something to be done.
    pub(crate) async fn task(&mut self) -> ClientMessage {
        let task = self.expect(ClientMessageType::Task).await;
        assert!(task.request.is_some(), "{task:?}");
        let settings = TaskSettings::of(task.metadata.as_ref()).unwrap();
        assert_eq!(settings.store.as_deref(), Some(STORE));
        task
    }

    /// The next message, which must ask after this task, and start nothing.
    pub(crate) async fn question(&mut self, task: &ClientMessage, id: &str) {
        let asked = self.expect(ClientMessageType::Task).await;
        assert_eq!((&asked.request, &asked.target_id), (&None, &None));
        assert_eq!((&asked.request_id, &asked.session_id), (&task.request_id, &task.session_id));
        let settings = TaskSettings::of(asked.metadata.as_ref()).unwrap();
        assert_eq!(settings.task.as_deref(), Some(id));
    }

    /// The next message, which must acknowledge the outcome of this task.
    pub(crate) async fn acknowledgement(&mut self, id: &str) {
        let said = self.expect(ClientMessageType::TaskEnd).await;
        let named = said.prev_response_id.as_ref().map(ResponseId::as_str);
        assert_eq!((said.status, named), (Status::Ok, Some(id)));
        assert_eq!(said.metadata, None, "an acknowledgement is no cancel");
    }

    /// Nothing more is said.
    pub(crate) async fn nothing_follows(&mut self) {
        tokio::time::sleep(Duration::from_secs(5)).await;
        while let Ok(message) = self.heard.try_recv() {
            assert_eq!(message.kind, ClientMessageType::Heartbeat, "{message:?}");
        }
    }

    pub(crate) fn accept(&self, task: &ClientMessage, id: &str) {
        let accepted =
            Accepted { task: id.to_owned(), request_id: task.request_id.clone(), streams: None };
        self.say(&ServerMessage {
            session_id: task.session_id.clone(),
            response_id: ResponseId::new("ack").ok(),
            result: accepted.to_payload(),
            ..ServerMessage::new(ServerMessageType::Heartbeat, Status::Ok)
        });
    }

    pub(crate) fn end(&self, task: &ClientMessage, id: &str) {
        self.end_session(task.session_id.as_ref(), id, None);
    }

    /// An outcome; failed, if there is an error.
    pub(crate) fn end_session(&self, session: Option<&SessionId>, id: &str, error: Option<&str>) {
        let status = if error.is_some() { Status::Failed } else { Status::Completed };
        self.say(&ServerMessage {
            session_id: session.cloned(),
            response_id: ResponseId::new(id).ok(),
            error: error.map(str::to_owned),
            ..ServerMessage::new(ServerMessageType::TaskEnd, status)
        });
    }

    pub(crate) fn refuse(&self, task: &ClientMessage, refused: Refused, text: &str) {
        let refusal = TaskRefused { request_id: task.request_id.clone(), refused };
        let result = refusal.to_payload();
        self.say(&ServerMessage { result, ..ServerMessage::error(text, task.session_id.clone()) });
    }

    /// Both ends lose the connection; what was said and not read is lost too.
    pub(crate) fn cut(self) {
        self.switch.cut();
    }
}

/// A task for somebody.
pub(crate) fn task() -> NewTask {
    NewTask::new(ClientId::new("d").unwrap(), "do it")
}

/// The cancel of a task by one of its ids.
pub(crate) fn is_cancel(said: &ClientMessage, task: Option<&str>, request: Option<&RequestId>) {
    assert_eq!((&said.kind, said.status), (&ClientMessageType::TaskEnd, Status::Failed));
    assert_eq!(said.prev_response_id.as_ref().map(ResponseId::as_str), task);
    assert_eq!(said.request_id.as_ref(), request);
    let metadata = said.metadata.as_ref().unwrap();
    assert_eq!(metadata.as_str(), r#"{"flightdeck":{"cancel":"request"}}"#);
}

pub(crate) async fn within<T>(happens: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, happens).await.expect("it never happened")
}
