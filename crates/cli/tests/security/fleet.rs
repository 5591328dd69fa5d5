//! A server for which keys were created.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::common::process::state_dir;
use crate::common::{Done, Home, Peer, Server, http_client, until, within};

/// A server, and the keys that were created for it, by name.
pub(crate) struct Fleet {
    pub(crate) server: Server,
    keys: BTreeMap<String, String>,
    /// How often the keys have changed while it runs.
    changes: usize,
}

/// The name of the generated key.
pub(crate) const SHARED: &str = "shared";

impl Fleet {
    /// Starts a server with keys: each its name, and what else `key create` is told.
    pub(crate) async fn start(keys: &[&str]) -> Self {
        Self::start_with(keys, &[]).await
    }

    /// The same with flags for the server.
    pub(crate) async fn start_with(keys: &[&str], flags: &[&str]) -> Self {
        let home = Arc::new(Home::new());
        let state = state_dir(&home);
        let mut created = BTreeMap::new();
        for key in keys {
            let args = [&["key", "create", "--state-dir", &state, "--name"], &*words(key)].concat();
            let done = home.start(&args).done().await;
            assert_eq!(done.code, 0, "{done:?}");
            created.insert(words(key)[0].to_owned(), done.stdout.trim().to_owned());
        }
        let server = Server::start_in(home, 0, flags).await;
        created.insert(SHARED.to_owned(), server.key());
        Self { server, keys: created, changes: 0 }
    }

    /// Creates a key on the running server, which has taken it up then.
    pub(crate) async fn create(&mut self, key: &str) {
        let done = self.run(&[&["key", "create", "--name"], &*words(key)].concat()).await;
        assert_eq!(done.code, 0, "{done:?}");
        self.keys.insert(words(key)[0].to_owned(), done.stdout.trim().to_owned());
        self.changed().await;
    }

    /// Revokes a key, which the running server has taken up then.
    pub(crate) async fn revoke(&mut self, name: &str) {
        let done = self.run(&["key", "revoke", name]).await;
        assert_eq!((done.code, done.stdout.as_str()), (0, ""), "{done:?}");
        self.changed().await;
    }

    /// Waits until the server has taken up one more change of the keys.
    async fn changed(&mut self) {
        self.changes += 1;
        self.server.process.says_times("the created keys have changed", self.changes).await;
    }

    pub(crate) async fn run(&self, args: &[&str]) -> Done {
        self.server.run(args).await
    }

    pub(crate) fn key(&self, name: &str) -> &str {
        &self.keys[name]
    }

    /// A connection with this key; nothing is said yet.
    pub(crate) async fn peer(&self, key: &str) -> Peer {
        Peer::connect(self.server.port, self.key(key)).await.unwrap()
    }

    /// A registered device.
    pub(crate) async fn device(&self, key: &str, id: &str) -> Peer {
        let mut peer = self.peer(key).await;
        peer.register_device(id).await;
        peer
    }

    /// A registered constellation.
    pub(crate) async fn constellation(&self, key: &str, id: &str, target: Value) -> Peer {
        let mut peer = self.peer(key).await;
        peer.register_constellation(id, target).await;
        peer
    }

    /// Asks with a key. Returns the status and the JSON of the answer, `null` if it is none.
    pub(crate) async fn get(&self, key: &str, path: &str) -> (u16, Value) {
        let request = http_client().get(self.http(path)).bearer_auth(self.key(key));
        answer(request).await
    }

    pub(crate) async fn post(&self, key: &str, path: &str, body: &Value) -> (u16, Value) {
        let request = http_client().post(self.http(path)).bearer_auth(self.key(key));
        let request = request.header("content-type", "application/json").body(body.to_string());
        answer(request).await
    }

    pub(crate) fn http(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.server.port)
    }

    /// What the audit log has so far.
    pub(crate) fn audit(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.server.state_file("audit.jsonl")).unwrap();
        // The last line may be half written.
        let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        lines.map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits for a line of the audit log that has these fields.
    pub(crate) async fn audited(&self, fields: Value) -> Value {
        let mut found = None;
        until(&format!("an audit line {fields}"), || {
            found = self.audit().into_iter().find(|line| has(line, &fields));
            found.is_some()
        })
        .await;
        found.unwrap()
    }

    /// How much of everything there is.
    pub(crate) async fn counts(&self) -> Value {
        let (status, about) = self.get(SHARED, "/api/v1/server").await;
        assert_eq!(status, 200, "{about}");
        about["counts"].clone()
    }

    /// Runs a task of this requester to its good end on this device.
    pub(crate) async fn works(&self, requester: &mut Peer, device: &mut Peer) {
        let session = requester.submit(&device.id, &crate::common::plan("pwd")).await;
        requester.expect_ack(&session).await;
        let command = device.expect("command").await;
        device.answer_well(&command).await;
        requester.expect_end(&session, "completed").await;
        device.expect_end(&session, "completed").await;
    }
}

/// A request's status and JSON.
pub(crate) async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
    let asking = async {
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        (status, response.text().await.unwrap())
    };
    let (status, text) = within("an answer", asking).await;
    (status, serde_json::from_str(&text).unwrap_or_default())
}

/// A task for the HTTP API.
pub(crate) fn http_task(device: &str, name: &str) -> Value {
    json!({"device": device, "request": crate::common::plan("pwd"), "task_name": name})
}

/// Whether a line has these fields.
pub(crate) fn has(line: &Value, fields: &Value) -> bool {
    fields.as_object().unwrap().iter().all(|(key, value)| line[key] == *value)
}

/// A refusal of a registration: the error, then the close.
pub(crate) async fn refused(peer: &mut Peer) -> (String, u16) {
    let error = peer.expect_error().await;
    (error, peer.expect_close().await.0)
}

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}
