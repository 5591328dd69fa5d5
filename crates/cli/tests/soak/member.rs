//! A raw peer that lives on its own: it does what it is told, answers as its habits are, and keeps its
//! account.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::task::{Poll, ready};
use std::time::Duration;

use fastrand::Rng;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_websockets::Message;

use crate::account::{Account, Ends};
use crate::common::{PATIENCE, Peer, good_result};
use crate::garbage;

/// Orders that wait for a member; more are not taken.
const ORDERS: usize = 16;

/// Late answers that a device has in mind at most.
const LATE: usize = 16;

/// The longest wait for the outcomes that are still to come: a queue of eight tasks that all run into
/// their limits of time takes less than half of it.
const LAST_OUTCOMES: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Device,
    Constellation,
}

/// What a member is told to do.
#[derive(Debug)]
pub(crate) enum Order {
    /// Submits a task under this session id.
    Submit { session: String, target: String, request: String },
    /// Sends a message of this kind.
    Say(&'static str, Value),
    /// Sends garbage.
    Babble,
    /// Sends a binary frame.
    Binary(Vec<u8>),
    /// Sends what is no frame, and hangs up, perhaps after a while.
    Break,
    /// Says and hears nothing for so long.
    FallSilent(Duration),
    /// Closes as it should.
    Leave,
    /// Hangs up without a word.
    Cut,
    /// Waits for all outcomes, then leaves.
    Finish,
}

/// A member as its master sees it.
pub(crate) struct Member {
    pub(crate) role: Role,
    pub(crate) id: String,
    orders: mpsc::Sender<Order>,
    pub(crate) life: JoinHandle<Ends>,
}

impl Member {
    /// Joins under this id, which may be taken.
    pub(crate) fn join(port: u16, key: &str, role: Role, id: String, rng: Rng) -> Self {
        let (orders, taken) = mpsc::channel(ORDERS);
        let (key, name) = (key.to_owned(), id.clone());
        let life = tokio::spawn(async move {
            let peer = Peer::connect(port, &key).await.unwrap();
            let mut life = Life {
                peer,
                orders: taken,
                rng,
                late: VecDeque::new(),
                inbox: VecDeque::new(),
                account: Account::default(),
                may_be_cut: false,
                finishes_by: None,
            };
            life.live(role, name).await;
            life.account.ends
        });
        Self { role, id, orders, life }
    }

    /// Whether it took the order.
    pub(crate) fn tell(&self, order: Order) -> bool {
        self.orders.try_send(order).is_ok()
    }

    /// Tells it to end its life, whatever else it has to do, and waits for that.
    pub(crate) async fn end(self, order: Order) -> Ends {
        // It may be over already.
        let _gone = self.orders.send(order).await;
        self.life.await.unwrap()
    }
}

struct Life {
    peer: Peer,
    orders: mpsc::Receiver<Order>,
    rng: Rng,
    /// Answers to be given later, in the order of their times.
    late: VecDeque<(Instant, String)>,
    /// What came while it was sending.
    inbox: VecDeque<String>,
    account: Account,
    /// Whether it has given the server a reason to close.
    may_be_cut: bool,
    finishes_by: Option<Instant>,
}

impl Life {
    async fn live(&mut self, role: Role, id: String) {
        let is_device = role == Role::Device;
        self.peer.id = id;
        self.peer.role = if is_device { "device" } else { "constellation" };
        let mut metadata = json!({"platform": "linux", "system_info": {"cpu_count": 2}});
        if self.rng.bool() {
            metadata["flightdeck"] = json!({"version": 1, "features": ["progress"]});
        }
        if self.say("register", json!({ "metadata": metadata })).await.is_break() {
            return;
        }
        match self.peer.next().await {
            Ok(answer) if answer["type"] == "heartbeat" => {}
            // The id is taken, by one that lives.
            _refused => return,
        }
        while self.turn().await.is_continue() {
            let Some(by) = self.finishes_by else { continue };
            if self.account.is_settled() {
                let _gone = self.peer.socket.close().await;
                return;
            }
            let late = Instant::now() > by;
            assert!(!late, "{} was never told: {}", self.peer.id, self.account.unsettled());
        }
    }

    async fn turn(&mut self) -> ControlFlow<()> {
        if let Some(text) = self.inbox.pop_front() {
            return self.hear(&text).await;
        }
        let late = self.late.front().map(|(at, _)| *at);
        let wake_at = late.or(self.finishes_by).unwrap_or_else(|| Instant::now() + PATIENCE);
        tokio::select! {
            order = self.orders.recv() => self.obey(order.unwrap_or(Order::Leave)).await,
            frame = self.peer.next_or_never() => match frame {
                Ok(text) => self.hear(&text).await,
                Err(close) => {
                    assert!(self.may_be_cut, "{} was cut: {close:?}", self.peer.id);
                    ControlFlow::Break(())
                }
            },
            () = tokio::time::sleep_until(wake_at) => match late {
                Some(_) => {
                    let (_, answer) = self.late.pop_front().unwrap();
                    self.send(Message::text(answer)).await
                }
                None => ControlFlow::Continue(()),
            },
        }
    }

    async fn obey(&mut self, order: Order) -> ControlFlow<()> {
        match order {
            Order::Submit { session, target, request } => {
                self.account.note_submitted(&session);
                let task = json!({"session_id": session, "target_id": target, "request": request});
                return self.say("task", task).await;
            }
            Order::Say(kind, fields) => return self.say(kind, fields).await,
            Order::Babble => return self.babble().await,
            Order::Binary(bytes) => return self.send(Message::binary(bytes)).await,
            Order::Break => {
                let bytes = garbage::frames(&mut self.rng);
                let written = self.peer.socket.get_mut().write_all(&bytes).await;
                if written.is_ok() && self.rng.bool() {
                    tokio::time::sleep(Duration::from_millis(self.rng.u64(..3000))).await;
                }
            }
            Order::FallSilent(duration) => {
                self.may_be_cut = true;
                tokio::time::sleep(duration).await;
                return ControlFlow::Continue(());
            }
            Order::Leave => drop(self.peer.socket.close().await),
            Order::Cut => {}
            Order::Finish => {
                self.finishes_by = Some(Instant::now() + LAST_OUTCOMES);
                return ControlFlow::Continue(());
            }
        }
        ControlFlow::Break(())
    }

    async fn hear(&mut self, text: &str) -> ControlFlow<()> {
        let message: Value = serde_json::from_str(text).unwrap();
        if message["type"] == "command" {
            return self.handle_command(&message).await;
        }
        self.account.handle(&message);
        ControlFlow::Continue(())
    }

    /// Answers a command, or does what devices do that do not.
    async fn handle_command(&mut self, command: &Value) -> ControlFlow<()> {
        let mut results = json!([good_result(&command["actions"][0]["call_id"])]);
        let mut times = 1;
        match self.rng.u8(..100) {
            0..60 => {}
            60..68 if self.late.len() < LATE => {
                let at = Instant::now() + Duration::from_millis(self.rng.u64(..6000));
                let at = at.max(self.late.back().map_or(at, |(last, _)| *last));
                let answer = self.results(command, &results);
                self.late.push_back((at, answer));
                return ControlFlow::Continue(());
            }
            60..75 => return ControlFlow::Continue(()),
            75..79 => results[0]["status"] = json!("weird"),
            79..82 => times = 2,
            82..86 => results[0]["result"] = json!("x".repeat(self.rng.usize(..1_000_000))),
            86..88 => results[0]["call_id"] = json!("of-nobody"),
            88..91 => results[0]["status"] = json!("failure"),
            91..94 => results = json!([]),
            94..97 => return self.babble().await,
            97 => return ControlFlow::Break(()),
            _ => {
                let mut other = command.clone();
                other["session_id"] = json!("of-another");
                return self.send(Message::text(self.results(&other, &results))).await;
            }
        }
        for _ in 0..times {
            self.send(Message::text(self.results(command, &results))).await?;
        }
        ControlFlow::Continue(())
    }

    async fn babble(&mut self) -> ControlFlow<()> {
        let text = garbage::text(&mut self.rng, &self.peer.id);
        self.send(Message::text(text)).await
    }

    fn results(&self, command: &Value, results: &Value) -> String {
        let fields = json!({"session_id": command["session_id"], "action_results": results,
            "prev_response_id": command["response_id"]});
        self.peer.message("command_results", &fields)
    }

    async fn say(&mut self, kind: &str, fields: Value) -> ControlFlow<()> {
        let text = self.peer.message(kind, &fields);
        self.send(Message::text(text)).await
    }

    /// Sends, and takes in what comes meanwhile: a server that waits for its answers to be read reads
    /// nothing itself.
    async fn send(&mut self, message: Message) -> ControlFlow<()> {
        let (socket, inbox) = (&mut self.peer.socket, &mut self.inbox);
        let mut message = Some(message);
        let sending = std::future::poll_fn(|cx| {
            loop {
                if message.is_some() && socket.poll_ready_unpin(cx)?.is_ready() {
                    socket.start_send_unpin(message.take().unwrap())?;
                }
                if message.is_none() && socket.poll_flush_unpin(cx)?.is_ready() {
                    return Poll::Ready(Ok(()));
                }
                match ready!(socket.poll_next_unpin(cx)).transpose()? {
                    Some(frame) => inbox.extend(frame.as_text().map(str::to_owned)),
                    None => return Poll::Ready(Err(tokio_websockets::Error::AlreadyClosed)),
                }
            }
        });
        match tokio::time::timeout(PATIENCE, sending).await {
            Ok(Ok(())) => ControlFlow::Continue(()),
            Ok(Err(_)) if self.may_be_cut => ControlFlow::Break(()),
            failed => panic!("{} cannot send: {failed:?}", self.peer.id),
        }
    }
}
