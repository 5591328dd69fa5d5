//! A registered peer that says anything, and what must be true of its server whatever that is. Checked by
//! the test beside it, and by the fuzz target `connection`. Time is paused: nothing waits for real.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use aip::codec::About;
use aip::{CloseCode, DecodeError, ServerMessage};
use bytes::Bytes;
use link::connection::{Watch, now};
use link::memory::{KillSwitch, pair};
use link::{Closed, Connection, Event, Outbox, OutboxLimits};
use serde_json::{Value, json};
use server::{Config, Keys, Server, Snapshot};
use tokio::task::JoinHandle;

use crate::recorded::Recorded;

/// The device of a conversation, and its constellation; one of them says anything.
const DEVICE: &str = "d";
const CONSTELLATION: &str = "g";

/// The session of the first task that the device is given.
const SESSION: &str = "s";

/// In a frame these stand for what the last COMMAND had there.
const RESPONSE_ID: &str = "$R";
const CALL_ID: &str = "$C";

/// A frame that is not sent: time passes instead.
const WAIT: &[u8] = b"$W";

/// Longer than a command may take and its device be waited for after it.
const A_WHILE: Duration = Duration::from_secs(400);

/// Time in which all that is under way comes to rest, since time passes only when no task works.
const A_MOMENT: Duration = Duration::from_millis(1);

/// Longer than anything may take.
const NEVER: Duration = Duration::from_secs(24 * 3600);

/// Frames of a conversation that are sent; the queue towards the server holds so many.
const MAX_FRAMES: usize = 500;

const PLAN: &str = r#"{"commands":[{"tool_name":"t"},{"tool_name":"u"}]}"#;

/// The same inside a JSON string.
const PLAN_IN_JSON: &str = r#"{\"commands\":[{\"tool_name\":\"t\"},{\"tool_name\":\"u\"}]}"#;

/// What a server may close a registered connection with.
const CLOSES: [CloseCode; 6] = [
    CloseCode::GOING_AWAY,
    CloseCode::POLICY,
    CloseCode::TOO_BIG,
    CloseCode::REPLACED,
    CloseCode::TOO_SLOW,
    CloseCode::NO_LIFE,
];

/// What a peer says, and how.
#[derive(Debug, Clone)]
pub(crate) struct Conversation {
    /// How it says it: the bits below.
    pub(crate) manner: u8,
    pub(crate) frames: Vec<Bytes>,
}

/// It is a device, not a constellation.
pub(crate) const IS_DEVICE: u8 = 1;
/// It speaks the extension.
const IS_FLIGHTDECK: u8 = 2;
/// It says everything at once, without hearing what comes back.
const HURRIES: u8 = 4;
/// It leaves without a word.
const CUTS: u8 = 8;

impl Conversation {
    /// One for each client of a golden transcript, with the ids of this test's peers.
    pub(crate) fn recorded(recorded: &[Recorded]) -> Vec<Self> {
        let mut all = Vec::new();
        for transcript in recorded.chunk_by(|a, b| a.transcript == b.transcript) {
            let names = Names::of(transcript);
            let mut links: Vec<_> = transcript.iter().map(|frame| &frame.link).collect();
            links.sort();
            links.dedup();
            for link in links {
                let said =
                    transcript.iter().filter(|frame| frame.from_client && frame.link == *link);
                let mut frames: Vec<_> = said.map(|frame| names.apply(&frame.frame)).collect();
                let is_constellation = frames[0].contains("\"client_type\": \"constellation\"");
                frames.remove(0);
                let frames = frames.into_iter().map(Bytes::from).collect();
                all.push(Self { manner: u8::from(!is_constellation), frames });
            }
        }
        all
    }

    /// Reads one from its lines: the manner in the first byte, then a frame a line.
    #[allow(dead_code, reason = "for the fuzz target")]
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let (manner, lines) = bytes.split_first().unwrap_or((&0, b""));
        let frames = lines.split(|byte| *byte == b'\n').map(Bytes::copy_from_slice).collect();
        Self { manner: *manner, frames }
    }

    /// Writes one as its lines.
    #[allow(dead_code, reason = "for the fuzz target")]
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        [vec![b'@' | self.manner], self.frames.join(&b'\n')].concat()
    }

    /// Holds the conversation with a server of its own.
    ///
    /// # Errors
    /// What is not as it should be.
    pub(crate) fn check(&self) -> Result<(), String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .map_err(|error| error.to_string())?;
        runtime.block_on(self.hold())
    }

    fn has(&self, manner: u8) -> bool {
        self.manner & manner != 0
    }

    async fn hold(&self) -> Result<(), String> {
        let config = Config {
            queue_per_device: 3,
            max_request_bytes: 4096,
            history_tasks: 4,
            ..Config::default()
        };
        let server = Server::new(config, Keys::local("key".to_owned().into()));
        let (peer, other) = if self.has(IS_DEVICE) {
            let peer = Peer::join(&server, DEVICE, "device", self.has(IS_FLIGHTDECK)).await?;
            let other = Peer::join(&server, CONSTELLATION, "constellation", false).await?;
            (peer, Other::requester(other))
        } else {
            let other = Peer::join(&server, DEVICE, "device", false).await?;
            let flightdeck = self.has(IS_FLIGHTDECK);
            let peer = Peer::join(&server, CONSTELLATION, "constellation", flightdeck).await?;
            (peer, Other::worker(other))
        };
        self.talk(peer).await?;
        other.leave(!self.has(IS_DEVICE)).await?;
        at_rest(&server).await
    }

    /// The part of the peer that says anything.
    async fn talk(&self, mut peer: Peer) -> Result<(), String> {
        peer.settle(A_MOMENT).await?;
        for frame in self.frames.iter().take(MAX_FRAMES) {
            if frame == WAIT {
                peer.settle(A_WHILE).await?;
                continue;
            }
            peer.send(peer.filled_in(frame));
            if !self.has(HURRIES) {
                peer.settle(A_MOMENT).await?;
            }
        }
        peer.settle(A_MOMENT).await?;
        if peer.is_open {
            peer.beat().await?;
        }
        // Its own tasks wait only for the worker.
        if peer.is_open && !self.has(IS_DEVICE) && !peer.unended.is_empty() {
            return Err(format!("tasks without an end: {:?}", peer.unended));
        }
        if self.has(CUTS) {
            peer.switch.cut();
        }
        peer.connection.close(CloseCode::NORMAL, "").await;
        Ok(())
    }
}

/// What the ids of a transcript are here.
struct Names(Vec<(String, &'static str)>);

impl Names {
    fn of(transcript: &[Recorded]) -> Self {
        let mut names = Vec::new();
        let mut note = |value: &Value, name: &'static str| {
            names.extend(value.as_str().map(|id| (id.to_owned(), name)));
        };
        for frame in transcript {
            let Ok(message) = serde_json::from_str::<Value>(&frame.frame) else { continue };
            match (message["type"].as_str(), message["client_type"].as_str()) {
                (Some("register"), Some("constellation")) => {
                    note(&message["client_id"], CONSTELLATION);
                }
                (Some("register"), _) => note(&message["client_id"], DEVICE),
                (Some("task"), _) if frame.from_client => {
                    note(&message["session_id"], SESSION);
                    // What was asked of a model is a plan here.
                    note(&message["request"], PLAN_IN_JSON);
                }
                (Some("command"), _) => {
                    note(&message["session_id"], SESSION);
                    note(&message["response_id"], RESPONSE_ID);
                    let actions = message["actions"].as_array().into_iter().flatten();
                    actions.for_each(|action| note(&action["call_id"], CALL_ID));
                }
                _ => {}
            }
        }
        // An id may be part of another.
        names.sort_by_key(|(id, _)| std::cmp::Reverse(id.len()));
        Self(names)
    }

    fn apply(&self, frame: &str) -> String {
        self.0.iter().fold(frame.to_owned(), |frame, (id, name)| frame.replace(id, name))
    }
}

/// One end of a link to the server.
struct Peer {
    id: &'static str,
    connection: Connection<ServerMessage>,
    switch: KillSwitch,
    /// The last COMMAND that it was sent.
    command: Option<ServerMessage>,
    /// Sessions that were acknowledged and have not ended.
    unended: HashSet<String>,
    /// Tasks whose TASK_END it has.
    ended: usize,
    is_open: bool,
}

impl Peer {
    async fn join(
        server: &Server,
        id: &'static str,
        role: &str,
        is_flightdeck: bool,
    ) -> Result<Self, String> {
        let (theirs, ours, switch) = pair();
        let outbox = Arc::new(Outbox::new(OutboxLimits { messages: 1024, bytes: usize::MAX }));
        let watch = Watch { ping_every: Duration::from_secs(20), timeout: NEVER };
        let mut peer = Self {
            id,
            connection: Connection::new(ours, outbox, watch, None),
            switch,
            command: None,
            unended: HashSet::new(),
            ended: 0,
            is_open: true,
        };
        let extension = json!({"version": 1, "features": ["progress"]});
        let extension = is_flightdeck.then_some(extension);
        let metadata = json!({"platform": "linux", "flightdeck": extension});
        let register = json!({"type": "register", "client_id": id, "client_type": role,
            "metadata": metadata});
        peer.send(register.to_string().into());
        let confirmed = tokio::join!(server.accept(theirs, None), peer.hear(NEVER)).1?;
        match confirmed {
            Some(confirmation) if confirmation.error.is_none() => Ok(peer),
            other => Err(format!("{id} was not let in: {other:?}")),
        }
    }

    fn send(&self, frame: Bytes) {
        // It fails once the server has closed, which is found out by listening.
        let _closed = self.connection.outbox().push(frame);
    }

    /// A frame with the ids of the last command.
    fn filled_in(&self, frame: &Bytes) -> Bytes {
        let (Some(command), Ok(text)) = (&self.command, std::str::from_utf8(frame)) else {
            return frame.clone();
        };
        let response_id = command.response_id.as_ref().map_or("", |id| id.as_str());
        let call_id = command.actions.iter().flatten().find_map(|action| action.call_id.as_ref());
        let call_id = call_id.map_or("", |id| id.as_str());
        text.replace(RESPONSE_ID, response_id).replace(CALL_ID, call_id).into()
    }

    /// The next message, unless there is none for so long, or the connection is closed.
    async fn hear(&mut self, patience: Duration) -> Result<Option<ServerMessage>, String> {
        if !self.is_open {
            return Ok(None);
        }
        loop {
            return match self.connection.next_event(Some(now() + patience)).await {
                Event::Message(message) => {
                    self.note(&message)?;
                    Ok(Some(message))
                }
                Event::Due => Ok(None),
                Event::Closed(closed) => self.note_closed(&closed).map(|()| None),
                // A TASK for a session whose id can be none is refused under that id, as it came.
                Event::Unreadable(error, about) if is_about_odd_session(&error, &about) => continue,
                Event::Unreadable(error, _) => {
                    Err(format!("the server said what is none: {error}"))
                }
                Event::Binary => Err("the server sent a binary frame".to_owned()),
            };
        }
    }

    fn note(&mut self, message: &ServerMessage) -> Result<(), String> {
        use aip::{ServerMessageType as Type, Status};
        let session = message.session_id.as_ref().map(|id| id.as_str().to_owned());
        match (message.kind, session) {
            (Type::Command, _) => self.command = Some(message.clone()),
            (Type::Heartbeat, Some(session)) if message.status == Status::Ok => {
                if let Some(session) = self.unended.replace(session) {
                    return Err(format!("two ACKs for {session}"));
                }
            }
            (Type::TaskEnd, Some(session)) => {
                self.ended += 1;
                self.unended.remove(&session);
            }
            _ => {}
        }
        Ok(())
    }

    fn note_closed(&mut self, closed: &Closed) -> Result<(), String> {
        self.is_open = false;
        if CLOSES.contains(&closed.code) { Ok(()) } else { Err(format!("closed with {closed}")) }
    }

    /// Hears what there is until nothing comes for so long.
    async fn settle(&mut self, duration: Duration) -> Result<(), String> {
        while self.hear(duration).await?.is_some() {}
        Ok(())
    }

    /// A heartbeat, which must be answered at once.
    async fn beat(&mut self) -> Result<(), String> {
        let beat = json!({"type": "heartbeat", "client_id": self.id});
        self.send(beat.to_string().into());
        let start = now();
        while let Some(message) = self.hear(A_MOMENT).await? {
            let is_answer = message.kind == aip::ServerMessageType::Heartbeat;
            if is_answer && message.session_id.is_none() && now() == start {
                return Ok(());
            }
        }
        if self.is_open { Err("a heartbeat without an answer".to_owned()) } else { Ok(()) }
    }
}

/// The other peer of a conversation, which does as it should.
struct Other {
    switch: KillSwitch,
    life: JoinHandle<Result<(), String>>,
}

impl Other {
    /// A constellation that gives the device two tasks and waits for their ends.
    fn requester(mut peer: Peer) -> Self {
        const TASKS: usize = 2;
        for session in [SESSION, "another"] {
            let task = json!({"type": "task", "client_type": "constellation", "target_id": DEVICE,
                "session_id": session, "request": PLAN});
            peer.send(task.to_string().into());
        }
        let switch = peer.switch.clone();
        let life = async move {
            while peer.ended < TASKS {
                peer.hear(NEVER).await?.ok_or("a task of the other never ended")?;
            }
            // An end too many would come now.
            peer.settle(A_WHILE).await?;
            let is_right = peer.ended == TASKS && peer.unended.is_empty();
            is_right.then_some(()).ok_or_else(|| format!("{} ends of the other", peer.ended))
        };
        Self { switch, life: tokio::spawn(life) }
    }

    /// A device that does every command at once.
    fn worker(mut peer: Peer) -> Self {
        let switch = peer.switch.clone();
        let life = async move {
            while let Event::Message(message) = peer.connection.next_event(None).await {
                if message.kind != aip::ServerMessageType::Command {
                    continue;
                }
                peer.command = Some(message.clone());
                let results = json!({"type": "command_results", "session_id": message.session_id,
                    "prev_response_id": RESPONSE_ID,
                    "action_results": [{"status": "success", "call_id": CALL_ID}]});
                peer.send(peer.filled_in(&results.to_string().into()));
            }
            Ok(())
        };
        Self { switch, life: tokio::spawn(life) }
    }

    /// Leaves: a requester once its tasks are over, a worker at once.
    async fn leave(self, is_worker: bool) -> Result<(), String> {
        if is_worker {
            self.switch.cut();
        }
        self.life.await.map_err(|error| error.to_string())?
    }
}

fn is_about_odd_session(error: &DecodeError, about: &About) -> bool {
    let is_refusal = about.is("error") || about.is("task_end");
    is_refusal && error.to_string().contains("session_id: an id must be")
}

/// Waits until the server has forgotten everybody.
async fn at_rest(server: &Server) -> Result<(), String> {
    let mut left = server.snapshot();
    for _ in 0..1000 {
        if left == (Snapshot { dropped_results: left.dropped_results, ..Snapshot::default() }) {
            return Ok(());
        }
        tokio::time::sleep(A_MOMENT).await;
        left = server.snapshot();
    }
    Err(format!("left behind: {left:?}"))
}
