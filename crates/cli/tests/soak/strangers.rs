//! Those who never become members: wrong keys, no REGISTER or a bad one, half an HTTP request; and those
//! who use the HTTP API.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::common::{Peer, unique, within};
use crate::garbage;

/// Ids of tasks that were submitted over HTTP and are remembered, to look at them later.
const KNOWN_TASKS: usize = 50;

/// Comes, does something that leads nowhere, and goes.
pub(crate) async fn come_and_go(port: u16, key: String, mut rng: Rng) {
    let pause = Duration::from_millis(rng.u64(..4000));
    match rng.u8(..6) {
        0 => assert!(Peer::connect(port, "a-wrong-key").await.is_err()),
        1 => {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            // It may be closed on us at any byte.
            let _cut = stream.write_all(&garbage::head(&mut rng)).await;
            tokio::time::sleep(pause).await;
        }
        2 => {
            // Silent: it is told that it was too slow.
            let mut peer = Peer::connect(port, &key).await.unwrap();
            while peer.next().await.is_ok() {}
        }
        3 => {
            let _silent = Peer::connect(port, &key).await.unwrap();
            tokio::time::sleep(pause).await;
        }
        4 => {
            let mut peer = Peer::connect(port, &key).await.unwrap();
            peer.send(garbage::text(&mut rng, &unique("stranger"))).await;
            // One in a hundred is a REGISTER after all.
            while peer.next().await.is_ok_and(|message| message["type"] != "heartbeat") {}
        }
        _ => {
            let mut peer = Peer::connect(port, &key).await.unwrap();
            peer.say_constellation(&unique("stranger"), json!("nobody")).await;
            while peer.next().await.is_ok() {}
        }
    }
}

/// Whoever uses the HTTP API.
#[derive(Clone)]
pub(crate) struct Visitor {
    client: reqwest::Client,
    base: String,
    key: String,
    tasks: Arc<Mutex<VecDeque<String>>>,
}

impl Visitor {
    pub(crate) fn new(port: u16, key: String) -> Self {
        let base = format!("http://127.0.0.1:{port}");
        let trust = link::Trust::nobody().unwrap().config();
        let client = reqwest::Client::builder().no_proxy().tls_backend_preconfigured(trust).build();
        Self { client: client.unwrap(), base, key, tasks: Arc::default() }
    }

    /// What is at a path, as text.
    pub(crate) async fn read(&self, path: &str) -> String {
        let (status, text) = self.ask(Method::GET, path, None).await;
        assert_eq!(status, StatusCode::OK, "{path}: {text}");
        text
    }

    /// Sends one request of any kind, of which many make no sense.
    pub(crate) async fn visit(self, mut rng: Rng, device: String, request: String) {
        let task = self.known_task(&mut rng);
        let (method, path, body) = match rng.u8(..100) {
            0..10 => (Method::GET, "/api/v1/devices".to_owned(), None),
            10..15 => (Method::GET, format!("/api/v1/devices/{device}"), None),
            15..20 => (Method::GET, "/api/v1/tasks?state=failed&limit=20".to_owned(), None),
            20..25 => (Method::GET, format!("/api/v1/tasks?device={device}"), None),
            25..40 => {
                let body = json!({"device": device, "request": request});
                (Method::POST, "/api/v1/tasks".to_owned(), Some(body.to_string()))
            }
            40..50 => (Method::POST, format!("/api/v1/tasks/{task}/cancel"), None),
            50..58 => (Method::GET, format!("/api/v1/tasks/{task}"), None),
            58..64 => (Method::GET, format!("/api/v1/tasks/{task}/wait?timeout_s=1"), None),
            64..72 => {
                let body = json!({"client_id": device, "request": request});
                (Method::POST, "/api/dispatch".to_owned(), Some(body.to_string()))
            }
            72..78 => (Method::GET, "/metrics".to_owned(), None),
            78..82 => (Method::GET, "/api/v1/server".to_owned(), None),
            82..86 => (Method::GET, "/api/clients".to_owned(), None),
            86..90 => (Method::GET, format!("/api/task_result/{device}"), None),
            90..96 => {
                let path = *rng.choice(&["/api/v1/tasks", "/api/dispatch"]).unwrap();
                (Method::POST, path.to_owned(), Some(garbage::text(&mut rng, &device)))
            }
            _ => (Method::DELETE, "/api/v1/tasks".to_owned(), None),
        };
        let (status, text) = self.ask(method, &path, body).await;
        let fine = !status.is_server_error() || status == StatusCode::SERVICE_UNAVAILABLE;
        assert!(fine, "{path}: {status} {text}");
        if status == StatusCode::CREATED {
            self.remember(&serde_json::from_str(&text).unwrap());
        }
    }

    async fn ask(&self, method: Method, path: &str, body: Option<String>) -> (StatusCode, String) {
        let request = self.client.request(method, format!("{}{path}", self.base));
        let request = request.bearer_auth(&self.key);
        let request = match body {
            Some(body) => request.header("content-type", "application/json").body(body),
            None => request,
        };
        let asking = async {
            let response = request.send().await.unwrap();
            (response.status(), response.text().await.unwrap())
        };
        within(path, asking).await
    }

    fn known_task(&self, rng: &mut Rng) -> String {
        let tasks = self.tasks.lock().unwrap();
        let known = (!tasks.is_empty()).then(|| tasks[rng.usize(..tasks.len())].clone());
        known.unwrap_or_else(|| "no-such-task".to_owned())
    }

    fn remember(&self, task: &Value) {
        let mut tasks = self.tasks.lock().unwrap();
        tasks.push_back(task["id"].as_str().unwrap().to_owned());
        if tasks.len() > KNOWN_TASKS {
            tasks.pop_front();
        }
    }
}
