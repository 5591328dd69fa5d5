//! One connection of a row. It lives in a task of its own and always reads, so that it answers pings
//! while its row waits for somebody else, as every living peer does.

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_websockets::Message;

use crate::common::Peer;

/// What came: a text, or the code and reason of the close.
pub(crate) type Heard = Result<String, (u16, String)>;

/// What a connection shall do.
enum Order {
    /// Say a ClientMessage, with all of Python's fields.
    Say(Value),
    Send(Message),
    /// Read nothing, until it shall wake.
    Sleep,
    Wake,
}

/// A connection, as its row holds it.
pub(crate) struct Connection {
    orders: mpsc::UnboundedSender<Order>,
    heard: mpsc::UnboundedReceiver<Heard>,
    task: JoinHandle<()>,
}

impl Connection {
    pub(crate) fn new(peer: Peer) -> Self {
        let (orders, ordered) = mpsc::unbounded_channel();
        let (hears, heard) = mpsc::unbounded_channel();
        let task = tokio::spawn(carry(peer, ordered, hears));
        Self { orders, heard, task }
    }

    pub(crate) fn say(&self, message: Value) {
        self.order(Order::Say(message));
    }

    pub(crate) fn send(&self, message: Message) {
        self.order(Order::Send(message));
    }

    pub(crate) fn sleep(&self) {
        self.order(Order::Sleep);
    }

    pub(crate) fn wake(&self) {
        self.order(Order::Wake);
    }

    /// What comes next.
    pub(crate) async fn next(&mut self) -> Heard {
        let gone = || Err((1006, "the connection is over".to_owned()));
        self.heard.recv().await.unwrap_or_else(gone)
    }

    /// Hangs up, politely.
    pub(crate) async fn close(self) {
        let Self { orders, heard: _heard, task } = self;
        drop(orders);
        task.await.unwrap();
    }

    /// Hangs up without a close.
    pub(crate) async fn cut(self) {
        self.task.abort();
        let _aborted = self.task.await;
    }

    /// A connection that is over takes no orders; the row hears of it.
    fn order(&self, order: Order) {
        let _over = self.orders.send(order);
    }
}

async fn carry(
    mut peer: Peer,
    mut orders: mpsc::UnboundedReceiver<Order>,
    hears: mpsc::UnboundedSender<Heard>,
) {
    let (mut is_awake, mut is_open) = (true, true);
    loop {
        let order = tokio::select! {
            order = orders.recv() => order,
            heard = hear(&mut peer), if is_awake && is_open => {
                is_open = heard.is_ok();
                let _nobody_listens = hears.send(heard);
                continue;
            }
        };
        // What cannot be sent is told by the close, which is read next.
        let _told = match order {
            Some(Order::Say(message)) => {
                let text = text(&mut peer, &message);
                peer.socket.send(Message::text(text)).await
            }
            Some(Order::Send(message)) => peer.socket.send(message).await,
            Some(Order::Sleep) => {
                is_awake = false;
                Ok(())
            }
            Some(Order::Wake) => {
                is_awake = true;
                Ok(())
            }
            None => {
                let _closed = peer.socket.close().await;
                return;
            }
        };
    }
}

/// A message of this peer, who is from now on whom it registers as.
fn text(peer: &mut Peer, message: &Value) -> String {
    let kind = message["type"].as_str().unwrap_or_default();
    if kind == "register" {
        let is_constellation = message["client_type"] == "constellation";
        peer.role = if is_constellation { "constellation" } else { "device" };
        if let Some(id) = message["client_id"].as_str() {
            peer.id = id.to_owned();
        }
    }
    peer.message(kind, message)
}

async fn hear(peer: &mut Peer) -> Heard {
    loop {
        let frame = match peer.socket.next().await {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Err((1006, error.to_string())),
            None => return Err((1006, "no close frame".to_owned())),
        };
        if let Some((code, reason)) = frame.as_close() {
            return Err((code.into(), reason.to_owned()));
        }
        if let Some(text) = frame.as_text() {
            return Ok(text.to_owned());
        }
    }
}
