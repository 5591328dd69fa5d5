//! A raw peer that reads and answers pings by itself, as a real one does.

use std::time::Duration;

use aip::CloseCode;
use aip::codec::Wire;
use aip::{ClientMessage, ServerMessage};
use bytes::Bytes;
use link::memory::KillSwitch;
use link::{Closed, Event};
use serde_json::{Value, json};
use server::Server;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::peer::{NEVER, Peer};

pub(crate) struct Party {
    id: &'static str,
    role: &'static str,
    pub(crate) switch: KillSwitch,
    /// `None` says goodbye.
    to: UnboundedSender<Option<Value>>,
    from: UnboundedReceiver<Result<ServerMessage, Closed>>,
}

impl From<Peer> for Party {
    fn from(peer: Peer) -> Self {
        let Peer { id, role, mut connection, switch } = peer;
        let (to, mut say) = unbounded_channel::<Option<Value>>();
        let (hear, from) = unbounded_channel();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    biased;
                    said = say.recv() => match said {
                        Some(Some(message)) => {
                            let text = Bytes::from(message.to_string());
                            connection.reply(&ClientMessage::decode(&text).unwrap());
                        }
                        Some(None) => return connection.close(CloseCode::NORMAL, "").await,
                        None => return,
                    },
                    event = connection.next_event(None) => match event {
                        Event::Message(message) => drop(hear.send(Ok(message))),
                        Event::Closed(closed) => {
                            drop(hear.send(Err(closed)));
                            return;
                        }
                        event => panic!("{event:?}"),
                    },
                }
            }
        });
        Self { id, role, switch, to, from }
    }
}

impl Party {
    pub(crate) async fn join(server: &Server, id: &'static str, role: &'static str) -> Self {
        Peer::join(server, id, role).await.into()
    }

    pub(crate) fn say(&mut self, mut message: Value) {
        message["client_id"] = json!(self.id);
        message["client_type"] = json!(self.role);
        self.to.send(Some(message)).unwrap();
    }

    async fn next(&mut self, within: Duration) -> Option<Result<Value, Closed>> {
        let heard = tokio::time::timeout(within, self.from.recv()).await.ok()?.unwrap();
        Some(heard.map(|message| serde_json::from_slice(&message.encode()).unwrap()))
    }

    /// The next message, which must be of this type.
    pub(crate) async fn expect(&mut self, kind: &str) -> Value {
        match self.next(NEVER).await {
            Some(Ok(message)) => {
                assert_eq!(message["type"], kind, "{}: {message}", self.id);
                message
            }
            other => panic!("{}: {other:?}", self.id),
        }
    }

    /// The next message, whatever it is.
    pub(crate) async fn hear(&mut self) -> Value {
        match self.next(NEVER).await {
            Some(Ok(message)) => message,
            other => panic!("{}: {other:?}", self.id),
        }
    }

    pub(crate) async fn closed(&mut self) -> Closed {
        match self.next(NEVER).await {
            Some(Err(closed)) => closed,
            other => panic!("{}: {other:?}", self.id),
        }
    }

    pub(crate) async fn expect_silence(&mut self, duration: Duration) {
        if let Some(heard) = self.next(duration).await {
            panic!("{}: {heard:?}", self.id);
        }
    }

    pub(crate) async fn leave(self) {
        self.to.send(None).unwrap();
        // The link works by itself.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
