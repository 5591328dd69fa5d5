//! Runs rows against the real binary, all rows of a group at the same time.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_websockets::Message;

use crate::common::{Peer, Server};
use crate::connection::Connection;
use crate::names::Names;
use crate::row::{Group, Link, Request, Row, Setup, Step};

/// The longest wait for one step.
const PATIENCE: Duration = Duration::from_secs(15);

/// Time between two looks at who is online.
const LOOK: Duration = Duration::from_millis(5);

/// Runs every row of a group, and says of each one that does not hold where it broke.
pub(crate) async fn holds(group: Group) {
    let shared = Arc::new(Server::start().await);
    let total = group.rows.len();
    let mut running = JoinSet::new();
    for row in group.rows {
        let shared = shared.clone();
        running.spawn(async move {
            // A panic below, such as a server that does not start, is this row's alone.
            let name = row.name;
            let ran = tokio::spawn(run_row(row, shared)).await;
            ran.unwrap_or_else(|panic| Err(panic.to_string())).map_err(|error| (name, error))
        });
    }
    let broken: Vec<_> = running.join_all().await.into_iter().filter_map(Result::err).collect();
    let told: Vec<_> = broken.iter().map(|(name, error)| format!("✗ {name}\n{error}\n")).collect();
    assert!(
        broken.is_empty(),
        "{} of {total} rows of \"{}\" do not hold:\n\n{}",
        broken.len(),
        group.title,
        told.join("\n")
    );
}

async fn run_row(row: Row, shared: Arc<Server>) -> Result<(), String> {
    static ROWS: AtomicUsize = AtomicUsize::new(1);
    let mut names = Names::new(ROWS.fetch_add(1, Ordering::Relaxed));
    let folder = tempfile::tempdir().unwrap();
    let server = match row.setup {
        Setup::Shared => shared,
        Setup::Flags(flags) => Arc::new(Server::start_with(flags).await),
        Setup::File(text) => {
            let path = folder.path().join("settings.toml");
            std::fs::write(&path, names.text(text)).unwrap();
            Arc::new(Server::start_with(&["--config", path.to_str().unwrap()]).await)
        }
    };
    names.set("KEY", server.key());
    let mut run = Run { server, names, links: HashMap::new(), registered: HashSet::new() };
    for (n, step) in row.steps.iter().enumerate() {
        run.take(step).await.map_err(|error| format!("  step {}: {step}\n  {error}", n + 1))?;
    }
    run.nothing_is_left().await
}

/// A row that is running.
struct Run {
    server: Arc<Server>,
    names: Names,
    links: HashMap<Link, Connection>,
    registered: HashSet<Link>,
}

impl Run {
    async fn take(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Open(link) => self.open(link).await,
            Step::Join(link, fields) => {
                self.open(link).await?;
                let mut register = fields.clone();
                register["type"] = json!("register");
                self.say(link, &register)?;
                self.hear(link, &json!({"type": "heartbeat", "status": "ok"})).await
            }
            Step::Say(link, message) => self.say(link, message),
            Step::SayText(link, text) => {
                let text = self.names.text(text);
                self.send(link, Message::text(text))
            }
            Step::SayBlanks(link, count) => self.send(link, Message::text(" ".repeat(*count))),
            Step::SayBinary(link, bytes) => {
                self.send(link, Message::binary(Bytes::from_static(bytes)))
            }
            Step::Hear(link, message) => self.hear(link, message).await,
            Step::HearAll(link, messages) => self.hear_all(link, messages).await,
            Step::HearText(link, part) => {
                let (text, part) = (self.next_text(link).await?, self.names.text(part));
                if text.contains(&part) { Ok(()) } else { Err(format!("got {text:.2000}")) }
            }
            Step::Silence(link) => self.silence(link).await,
            Step::Closed(link, code, reason) => self.closed(link, *code, reason).await,
            Step::HangUp(link) => {
                in_time(self.leave(link)?.close()).await?;
                self.forgotten(link).await
            }
            Step::Cut(link) => {
                self.leave(link)?.cut().await;
                self.forgotten(link).await
            }
            Step::FallSilent(link) => {
                self.link(link)?.sleep();
                self.forgotten(link).await?;
                self.link(link)?.wake();
                Ok(())
            }
            Step::Http(request, status, answer) => self.http(request, *status, answer).await,
            Step::StopServer => {
                self.server.process.signal(rustix::process::Signal::TERM);
                Ok(())
            }
        }
    }

    async fn open(&mut self, link: Link) -> Result<(), String> {
        let connecting = Peer::connect(self.server.port, self.names.value("KEY"));
        let mut peer = in_time(connecting).await?.map_err(|status| format!("HTTP {status}"))?;
        peer.id = self.names.value(link).to_owned();
        self.links.insert(link, Connection::new(peer));
        self.registered.remove(link);
        Ok(())
    }

    fn link(&mut self, link: Link) -> Result<&mut Connection, String> {
        self.links.get_mut(link).ok_or_else(|| format!("{link} is not connected"))
    }

    fn leave(&mut self, link: Link) -> Result<Connection, String> {
        self.links.remove(link).ok_or_else(|| format!("{link} is not connected"))
    }

    fn send(&mut self, link: Link, message: Message) -> Result<(), String> {
        self.link(link)?.send(message);
        Ok(())
    }

    fn say(&mut self, link: Link, message: &Value) -> Result<(), String> {
        let message = self.names.fill(message);
        self.link(link)?.say(message);
        Ok(())
    }

    /// The next text of a link.
    async fn next_text(&mut self, link: Link) -> Result<String, String> {
        let text = in_time(self.link(link)?.next()).await?;
        text.map_err(|(code, reason)| format!("got a close: {code} {reason}"))
    }

    /// The next message of a link.
    async fn next(&mut self, link: Link) -> Result<Value, String> {
        let text = self.next_text(link).await?;
        let got: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
        // What is not set is left out, in every message there is.
        let fields = got.as_object().ok_or("no object")?;
        if let Some((field, _)) = fields.iter().find(|(_, value)| value.is_null()) {
            return Err(format!("{field} is null in {text}"));
        }
        // Who was answered with a heartbeat is registered.
        if got["type"] == "heartbeat" {
            self.registered.insert(link);
        }
        Ok(got)
    }

    async fn hear(&mut self, link: Link, stated: &Value) -> Result<(), String> {
        let got = self.next(link).await?;
        let checked = self.names.check("message", stated, &got);
        checked.map_err(|error| format!("{error}\n  got: {got:.2000}"))
    }

    async fn hear_all(&mut self, link: Link, stated: &[Value]) -> Result<(), String> {
        let mut missing = stated.to_vec();
        while !missing.is_empty() {
            let got = self.next(link).await?;
            // What a message that does not fit would have captured is forgotten.
            let fits = missing.iter().enumerate().find_map(|(n, stated)| {
                let mut names = self.names.clone();
                names.check("message", stated, &got).is_ok().then_some((n, names))
            });
            let Some((n, names)) = fits else { return Err(format!("got: {got:.2000}")) };
            self.names = names;
            missing.remove(n);
        }
        Ok(())
    }

    async fn silence(&mut self, link: Link) -> Result<(), String> {
        self.say(link, &json!({"type": "heartbeat"}))?;
        let answer = json!({"type": "heartbeat", "status": "ok", "session_id": null});
        self.hear(link, &answer).await.map_err(|error| format!("not silent: {error}"))
    }

    /// No link has anything more to say.
    async fn nothing_is_left(&mut self) -> Result<(), String> {
        for link in self.links.keys().copied().collect::<Vec<_>>() {
            if self.registered.contains(link) {
                let left = self.silence(link).await;
                left.map_err(|error| format!("  after the last step, {link} is {error}"))?;
            }
        }
        Ok(())
    }

    async fn closed(&mut self, link: Link, code: u16, part: &str) -> Result<(), String> {
        let next = in_time(self.link(link)?.next()).await?;
        self.links.remove(link);
        match next {
            Err((closed, reason)) if closed == code && !reason.is_empty() => {
                let part = self.names.text(part);
                if reason.contains(&part) { Ok(()) } else { Err(format!("got reason {reason:?}")) }
            }
            other => Err(format!("got {other:?}")),
        }
    }

    /// Waits until the server does not list a client any more.
    async fn forgotten(&mut self, link: Link) -> Result<(), String> {
        let id = Value::String(self.names.value(link).to_owned());
        let (port, key) = (self.server.port, self.names.value("KEY").to_owned());
        let forgetting = async {
            loop {
                let request = format!(
                    "GET /api/clients HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nX-API-Key: {key}\r\n\r\n"
                );
                let online = exchange(port, &request).await?.body()?["online_clients"].take();
                if !online.as_array().ok_or("no list of clients")?.contains(&id) {
                    return Ok(());
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        in_time(forgetting).await?
    }

    async fn http(&mut self, request: &Request, status: u16, stated: &Value) -> Result<(), String> {
        let port = self.server.port;
        let path = self.names.text(&request.path);
        let mut text = format!("{} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n", request.method);
        for (name, value) in &request.headers {
            text += &format!("{name}: {}\r\n", self.names.text(value));
        }
        if let Some(body) = &request.body {
            let body = self.names.text(body);
            let length = body.len();
            text += "Content-Type: application/json\r\n";
            text += &format!("Content-Length: {length}\r\n\r\n{body}");
        } else {
            text += "\r\n";
        }
        let answer = in_time(exchange(port, &text)).await??;
        let got = || format!("got: {}{}", answer.head, answer.body);
        if answer.status()? != status {
            return Err(got());
        }
        if stated.is_null() {
            return Ok(());
        }
        if !answer.head.to_lowercase().contains("content-type: application/json") {
            return Err(format!("not JSON: {}", got()));
        }
        let checked = self.names.check("body", stated, &answer.body()?);
        checked.map_err(|error| format!("{error}\n  {}", got()))
    }
}

/// What answered an HTTP request.
struct Answer {
    head: String,
    body: String,
}

impl Answer {
    fn status(&self) -> Result<u16, String> {
        let status = self.head.get(9..12).and_then(|status| status.parse().ok());
        status.ok_or_else(|| format!("no status in {}", self.head))
    }

    fn body(&self) -> Result<Value, String> {
        serde_json::from_str(&self.body).map_err(|error| format!("{error} in {}", self.body))
    }

    /// How many bytes the body has.
    fn length(head: &str) -> usize {
        let lines = head.lines().filter_map(|line| line.split_once(':'));
        let mut lengths = lines.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        lengths.next().and_then(|(_, length)| length.trim().parse().ok()).unwrap_or(0)
    }
}

/// Sends a request as it is, and reads the head of the answer and as much body as it announces.
async fn exchange(port: u16, request: &str) -> Result<Answer, String> {
    let io = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.map_err(io)?;
    stream.write_all(request.as_bytes()).await.map_err(io)?;
    let mut read = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&read);
        if let Some((head, body)) = text.split_once("\r\n\r\n")
            && body.len() >= Answer::length(head)
        {
            return Ok(Answer { head: format!("{head}\n"), body: body.to_owned() });
        }
        if stream.read_buf(&mut read).await.map_err(io)? == 0 {
            return Err(format!("the answer broke off: {}", String::from_utf8_lossy(&read)));
        }
    }
}

/// Waits for something that a step must bring.
async fn in_time<T>(happens: impl Future<Output = T>) -> Result<T, String> {
    let waited = tokio::time::timeout(PATIENCE, happens).await;
    waited.map_err(|_| format!("got nothing within {PATIENCE:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::*;

    #[tokio::test]
    async fn a_row_that_does_not_hold_says_where() {
        let server = Arc::new(Server::start().await);
        let report = || say("d", "error", json!({"error": "it broke"}));
        let told = || hear_error("d", "it broke");
        for (steps, where_it_broke) in [
            (vec![device("d"), report(), silence("d")], "step 3: nothing is on its way to d"),
            (vec![device("d"), report()], "after the last step, d is not silent"),
            (vec![device("d"), report(), hear_error("d", "what")], "message.error: expected what"),
            (vec![device("d"), report(), hear("d", "task", json!({}))], "message.type"),
            (vec![device("d"), report(), closed("d", 1000, "")], "got Ok("),
            (
                vec![device("d"), report(), told(), get("/api/clients", 201, json!({}))],
                "HTTP/1.1 200",
            ),
            (vec![open("d"), report(), told()], "message.error: expected it broke"),
        ] {
            let error = run_row(same("", steps), server.clone()).await.unwrap_err();
            assert!(error.contains(where_it_broke), "{where_it_broke}: {error}");
        }
    }
}
