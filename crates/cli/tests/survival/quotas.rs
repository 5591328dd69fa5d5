//! What the clients of one key may have the server keep for them, and what others notice of it.

use serde_json::{Value, json};

use crate::client::Api;
use crate::common::{Done, Peer, Process, Server, plan};
use crate::gate::Gate;

/// Makes two keys for those who submit tasks, and waits until the server knows them.
async fn keys(server: &mut Server) -> [String; 2] {
    let mut keys = Vec::new();
    for name in ["own", "other"] {
        let made = server.run(&["key", "create", "--name", name, "--role", "constellation"]).await;
        keys.push(made.stdout.trim().to_owned());
        server.process.says_times("the created keys have changed", keys.len()).await;
    }
    keys.try_into().unwrap()
}

fn exec(server: &Server, key: &str, command: &str) -> Process {
    let mut exec = server.command(&["exec", "--on", "box", "--", command]);
    Process::start(exec.env("FLIGHTDECK_TOKEN", key))
}

/// Whether it was refused for now, with a text that names this.
fn is_refused_for_now(done: &Done, what: &str) -> bool {
    done.code == 123 && done.stderr.contains(what) && done.stderr.contains("try again later")
}

#[tokio::test]
async fn a_key_has_so_many_clients_and_a_further_one_is_refused_until_one_has_left() {
    let limits = ["--identities-per-key", "3", "--sessions-per-device", "8"];
    let (mut server, gate) = (Server::start_with(&limits).await, Gate::new());
    let _device = server.device("box", &["--exec", "shell"]).await;
    let [own, other] = keys(&mut server).await;
    let clients: Vec<_> = (0..3).map(|n| exec(&server, &own, &gate.command(n))).collect();
    gate.has_begun(3).await;

    let refused = exec(&server, &own, "echo refused").done().await;
    assert!(is_refused_for_now(&refused, "This key has 3 clients"), "{refused:?}");
    let not_touched = exec(&server, &other, "echo other").done().await;
    assert_eq!((not_touched.code, &*not_touched.stdout), (0, "other\n"), "{not_touched:?}");

    gate.open();
    for client in clients {
        let done = client.done().await;
        assert_eq!(done.code, 0, "{done:?}");
    }
    let again = exec(&server, &own, "echo again").done().await;
    assert_eq!((again.code, &*again.stdout), (0, "again\n"), "{again:?}");
}

/// Somebody who gets outcomes until they are acknowledged, and tells so when it wants.
struct Forgetful(Peer);

impl Forgetful {
    async fn come(server: &Server, key: &str) -> Self {
        let mut peer = Peer::connect(server.port, key).await.unwrap();
        (peer.id, peer.role) = ("q".to_owned(), "constellation");
        let asks = json!({"version": 1, "features": ["ack", "request_id"],
            "resume": {"journal": "file.boot", "n": 1}});
        peer.say("register", json!({"metadata": {"flightdeck": asks}})).await;
        peer.expect("heartbeat").await;
        Self(peer)
    }

    async fn ask_for(&mut self, request_id: &str) {
        let task = json!({"session_id": format!("S-{request_id}"), "task_name": "t",
            "target_id": "d", "request": plan("echo"), "request_id": request_id});
        self.0.say("task", task).await;
    }

    async fn acknowledge(&mut self, end: &Value) {
        let taken = json!({"status": "ok", "session_id": end["session_id"],
            "prev_response_id": end["response_id"]});
        self.0.say("task_end", taken).await;
    }
}

#[tokio::test]
async fn a_key_that_does_not_fetch_its_outcomes_gets_no_more_until_it_has() {
    let mut server = Server::start_with(&["--undelivered-bytes", "50000"]).await;
    let mut device = server.raw_device("d").await;
    let [own, other] = keys(&mut server).await;
    let mut forgetful = Forgetful::come(&server, &own).await;
    forgetful.ask_for("1").await;
    forgetful.0.expect_ack("S-1").await;
    let command = device.expect("command").await;
    let large = json!([{"status": "success", "result": "x".repeat(60_000),
        "call_id": command["actions"][0]["call_id"]}]);
    device.answer(&command, large).await;
    device.expect("task_end").await;
    let end = forgetful.0.expect("task_end").await;

    forgetful.ask_for("2").await;
    let refused = forgetful.0.expect("error").await;
    let told = &refused["result"]["flightdeck"];
    assert_eq!(told, &json!({"request_id": "2", "refused": "retry"}));
    let why = "This key has 50000 bytes of outcomes that were not fetched";
    assert!(refused["error"].as_str().unwrap().starts_with(why), "{refused}");
    let newcomer = exec(&server, &own, "echo refused").done().await;
    assert!(is_refused_for_now(&newcomer, why), "{newcomer:?}");
    let task = json!({"device": "d", "request": plan("echo")}).to_string();
    let over_http = Api::with_key(&server, &own).post("/api/v1/tasks", task.clone()).await;
    assert!(over_http.problem(503, "too_much_undelivered").starts_with(why), "{over_http:?}");
    assert!(!over_http.header("retry-after").is_empty(), "{over_http:?}");
    // What was accepted can still be asked after, and others notice nothing.
    forgetful.ask_for("1").await;
    forgetful.0.expect_ack("S-1").await;
    assert_eq!(forgetful.0.expect("task_end").await["response_id"], end["response_id"]);
    Api::with_key(&server, &other).post("/api/v1/tasks", task).await.ok(201);
    let command = device.expect("command").await;
    device.answer_well(&command).await;
    device.expect("task_end").await;

    forgetful.acknowledge(&end).await;
    forgetful.ask_for("3").await;
    forgetful.0.expect_ack("S-3").await;
    device.expect("command").await;
}
