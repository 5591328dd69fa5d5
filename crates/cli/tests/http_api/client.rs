//! Users of the HTTP API: one that speaks it well, and one that writes raw bytes.

use std::io::ErrorKind;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::common::{Server, http_client, within};

/// Somebody with a key.
#[derive(Clone)]
pub(crate) struct Api {
    client: reqwest::Client,
    port: u16,
    key: String,
}

/// What it was answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) text: String,
}

impl Api {
    /// Whoever has the server's own key.
    pub(crate) fn of(server: &Server) -> Self {
        Self::with_key(server, &server.key())
    }

    pub(crate) fn with_key(server: &Server, key: &str) -> Self {
        Self { client: http_client(), port: server.port, key: key.to_owned() }
    }

    pub(crate) fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        self.client.request(method.parse().unwrap(), url).header("X-API-Key", &self.key)
    }

    pub(crate) async fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        let response = within("an answer", request.send()).await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Answer { status, headers, text: within("its body", response.text()).await.unwrap() }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(self.request("GET", path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> Answer {
        self.send(self.request("POST", path).body(body)).await
    }

    /// Submits a task that must be taken.
    pub(crate) async fn submit(&self, task: &Value) -> Value {
        self.post("/api/v1/tasks", task.to_string()).await.ok(201)
    }

    /// Submits a plan of one command that must be taken. Returns the id of the task.
    pub(crate) async fn submit_plan(&self, device: &str) -> String {
        let plan = json!({"commands": [{"tool_name": "t"}]});
        id(&self.submit(&json!({"device": device, "request": plan})).await)
    }

    pub(crate) async fn task(&self, id: &str) -> Value {
        self.get(&format!("/api/v1/tasks/{id}")).await.ok(200)
    }

    pub(crate) async fn cancel(&self, id: &str) -> Answer {
        self.post(&format!("/api/v1/tasks/{id}/cancel"), "").await
    }

    /// Waits for the end of a task.
    pub(crate) async fn end_of(&self, id: &str) -> Value {
        let task = self.get(&format!("/api/v1/tasks/{id}/wait?timeout_s=25")).await.ok(200);
        assert!(task["ended_at"].is_string(), "it did not end: {task}");
        task
    }
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// What a good answer says.
    pub(crate) fn ok(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), "application/json", "{self:?}");
        self.json()
    }

    /// What a bad answer says to people.
    pub(crate) fn problem(&self, status: u16, code: &str) -> String {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        let problem = self.json();
        assert_eq!((&problem["status"], &problem["code"]), (&json!(status), &json!(code)));
        problem["detail"].as_str().unwrap().to_owned()
    }
}

/// The shortest body that is too large where a task's text may have 1000 bytes. A longer one could
/// find the connection closed before it is sent.
pub(crate) const TOO_LARGE: usize = 2 * 1000 + 64 * 1024 + 1;

/// The id of a task.
pub(crate) fn id(task: &Value) -> String {
    task["id"].as_str().unwrap().to_owned()
}

/// A connection for raw bytes.
pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    port: u16,
    key: String,
    /// What came and was not looked at yet.
    seen: Vec<u8>,
}

impl Raw {
    pub(crate) async fn connect(server: &Server) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
        Self { stream, port: server.port, key: server.key(), seen: Vec::new() }
    }

    /// A request's head, with its key, further header lines and the blank line.
    pub(crate) fn head(&self, line: &str, more: &[&str]) -> String {
        let more: String = more.iter().map(|line| format!("{line}\r\n")).collect();
        let (port, key) = (self.port, &self.key);
        format!("{line} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nX-API-Key: {key}\r\n{more}\r\n")
    }

    /// Writes; a server that has heard enough may have hung up already.
    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        let written = within("writing", self.stream.write_all(bytes.as_ref())).await;
        let kind = written.err().map(|error| error.kind());
        let hung_up = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];
        assert!(kind.is_none_or(|kind| hung_up.contains(&kind)), "{kind:?}");
    }

    /// The next answer: its status, and its body as its `Content-Length` says.
    pub(crate) async fn answer(&mut self) -> (u16, String) {
        let head = self.until_blank_line().await;
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let lines = head.to_lowercase();
        let length = lines.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length = length.map_or(0, |length| length.parse().unwrap());
        while self.seen.len() < length {
            assert!(self.more().await, "it broke off: {head}");
        }
        let body = self.seen.drain(..length).collect();
        (status, String::from_utf8(body).unwrap())
    }

    async fn until_blank_line(&mut self) -> String {
        loop {
            if let Some(end) = self.seen.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = self.seen.drain(..end + 4).collect();
                return String::from_utf8(head).unwrap();
            }
            assert!(self.more().await, "no answer: {:?}", String::from_utf8_lossy(&self.seen));
        }
    }

    /// Reads on. `false` at the end.
    pub(crate) async fn more(&mut self) -> bool {
        let mut piece = vec![0; 64 * 1024];
        let read = within("more, or the end", self.stream.read(&mut piece)).await;
        let Ok(n @ 1..) = read else { return false };
        self.seen.extend_from_slice(&piece[..n]);
        true
    }

    /// Waits for the end. Returns how much came before it.
    pub(crate) async fn end(&mut self) -> usize {
        while self.more().await {}
        self.seen.len()
    }
}
