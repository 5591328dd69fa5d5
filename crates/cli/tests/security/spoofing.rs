//! Registered peers that claim what is not theirs: identities, results, sessions, names.

use serde_json::{Value, json};

use crate::common::{Peer, good_result, plan, plan_of, unique};
use crate::fleet::{Fleet, SHARED, has, http_task, refused};

/// A server, a device and a constellation with a running task, and a thief of each role.
struct Scene {
    fleet: Fleet,
    device: Peer,
    galaxy: Peer,
    session: String,
    command: Value,
    thieves: [Peer; 2],
}

impl Scene {
    /// All of them with keys of their own, or all with the shared one.
    async fn start(is_shared: bool) -> Self {
        let fleet = Fleet::start(&[
            "owner --role device",
            "galaxy --role constellation",
            "thief --role device",
            "rogue --role constellation",
        ])
        .await;
        let key = |own| if is_shared { SHARED } else { own };
        let mut device = fleet.device(key("owner"), "d").await;
        let mut galaxy = fleet.constellation(key("galaxy"), "g", json!("d")).await;
        let session = galaxy.submit("d", &plan("pwd")).await;
        galaxy.expect_ack(&session).await;
        let command = device.expect("command").await;
        let thieves = [
            fleet.device(key("thief"), "thief").await,
            fleet.constellation(key("rogue"), "rogue", Value::Null).await,
        ];
        Self { fleet, device, galaxy, session, command, thieves }
    }

    /// Nothing has happened: the device has heard nothing, and its true results are the outcome.
    async fn ends_well(mut self) {
        self.device.beat().await;
        self.galaxy.beat().await;
        self.device.answer_well(&self.command).await;
        let end = self.galaxy.expect_end(&self.session, "completed").await;
        assert_eq!(end["result"][0]["result"][0][0]["result"]["stdout"], "ok", "{end}");
        self.device.expect_end(&self.session, "completed").await;
        self.fleet.works(&mut self.galaxy, &mut self.device).await;
        for thief in &mut self.thieves {
            thief.beat().await;
        }
        let counts = self.fleet.counts().await;
        let at_rest = json!({"tasks_running": 0, "tasks_queued": 0, "queued_messages": 0});
        assert!(has(&counts, &at_rest), "{counts}");
    }
}

#[tokio::test]
async fn nobody_speaks_in_the_name_of_another() {
    for is_shared in [false, true] {
        let mut scene = Scene::start(is_shared).await;
        let (session, command) = (scene.session.clone(), scene.command["response_id"].clone());
        let forged = json!([good_result(&scene.command["actions"][0]["call_id"])]);
        for thief in &mut scene.thieves {
            for (kind, fields) in [
                ("heartbeat", json!({})),
                ("task", json!({"target_id": "d", "request": plan("pwd")})),
                ("task_end", json!({"session_id": session, "status": "failed"})),
                (
                    "command_results",
                    json!({"session_id": session, "prev_response_id": command,
                    "action_results": forged}),
                ),
                ("device_info_request", json!({"target_id": "d"})),
                ("device_info_response", json!({"metadata": {"hostname": "forged"}})),
                ("error", json!({"error": "x"})),
                ("register", json!({})),
            ] {
                for (id, role) in [("d", "device"), ("g", "constellation"), ("d", thief.role)] {
                    let mut fields = fields.clone();
                    fields["client_id"] = json!(id);
                    fields["client_type"] = json!(role);
                    thief.say(kind, fields).await;
                    let error = thief.expect_error().await;
                    let says = "client_id does not match the registered connection";
                    assert_eq!(error, says, "{kind} as {id} {role}");
                }
            }
        }
        scene.ends_well().await;
    }
}

#[tokio::test]
async fn nobody_speaks_in_another_role() {
    let mut scene = Scene::start(true).await;
    let [device, constellation] = &mut scene.thieves;
    let says = "client_type does not match the registered connection";
    for (thief, role) in [(device, "constellation"), (constellation, "device")] {
        for (kind, fields) in [
            ("task", json!({"target_id": "d", "request": plan("pwd")})),
            ("command_results", json!({"session_id": scene.session})),
            ("device_info_request", json!({"target_id": "d"})),
        ] {
            let mut fields = fields;
            fields["client_type"] = json!(role);
            thief.say(kind, fields).await;
            assert_eq!(thief.expect_error().await, says, "{kind} as {role}");
        }
    }
    scene.ends_well().await;
}

#[tokio::test]
async fn results_count_only_from_the_connection_that_was_asked() {
    for is_shared in [false, true] {
        let mut scene = Scene::start(is_shared).await;
        let call_id = scene.command["actions"][0]["call_id"].clone();
        let forged = json!([{"status": "success", "result": "forged", "call_id": call_id}]);
        for thief in &mut scene.thieves {
            for session in [json!(scene.session), Value::Null, json!("other")] {
                let fields = json!({"session_id": session, "action_results": forged,
                    "prev_response_id": scene.command["response_id"]});
                thief.say("command_results", fields).await;
                assert!(thief.expect_error().await.contains("no command of yours"));
            }
        }
        scene.ends_well().await;
    }
}

#[tokio::test]
async fn results_for_a_command_that_was_not_asked_settle_nothing() {
    let mut scene = Scene::start(false).await;
    let results = json!([{"status": "success", "result": "forged"}]);
    let command = scene.command["response_id"].clone();
    for (session, response_id) in [
        (json!(scene.session), json!(unique("forged"))),
        (json!(scene.session), Value::Null),
        (json!("other"), command.clone()),
        (Value::Null, command.clone()),
    ] {
        let fields = json!({"session_id": session, "prev_response_id": response_id,
            "action_results": results});
        scene.device.say("command_results", fields).await;
        let error = scene.device.expect_error().await;
        assert!(error.contains("no command of yours"), "{session} {response_id}: {error}");
    }
    scene.ends_well().await;
}

#[tokio::test]
async fn a_session_of_another_can_be_neither_taken_nor_ended() {
    for is_shared in [false, true] {
        let mut scene = Scene::start(is_shared).await;
        let session = scene.session.clone();
        let owned = format!("session_id '{session}' is owned by another client");
        for target in ["d", "thief"] {
            let [device, rogue] = &mut scene.thieves;
            let task = json!({"session_id": session, "target_id": target, "request": plan("pwd")});
            rogue.say("task", task).await;
            assert_eq!(rogue.expect_error().await, owned);
            // No TASK_END, which would look like the owner's.
            rogue.beat().await;
            device.beat().await;
        }
        for thief in &mut scene.thieves {
            let end = json!({"session_id": session, "status": "failed",
                "metadata": {"flightdeck": {"cancel": "request"}}});
            thief.say("task_end", end).await;
            assert_eq!(thief.expect_error().await, "Unknown message type: task_end");
            let broken = json!({"session_id": session, "type": "command_results",
                "action_results": [{"status": "nonsense"}],
                "prev_response_id": scene.command["response_id"]});
            thief.send(broken.to_string()).await;
            thief.expect_error().await;
        }
        // Over HTTP it is the same.
        let task = json!({"device": "d", "request": plan("pwd"), "session_id": session});
        let key = if is_shared { SHARED } else { "rogue" };
        let (status, answer) = scene.fleet.post(key, "/api/v1/tasks", &task).await;
        assert_eq!((status, &answer["code"]), (409, &json!("session_in_use")), "{answer}");
        scene.ends_well().await;
    }
}

#[tokio::test]
async fn a_session_is_not_taken_by_its_own_client_while_it_runs() {
    let mut scene = Scene::start(false).await;
    let task = json!({"session_id": scene.session, "target_id": "d", "request": plan("rm")});
    scene.galaxy.say("task", task).await;
    let running = format!("session_id '{}' is already running", scene.session);
    assert_eq!(scene.galaxy.expect_error().await, running);
    scene.ends_well().await;
}

#[tokio::test]
async fn a_thief_that_was_refused_and_leaves_takes_nothing_with_it() {
    for is_shared in [false, true] {
        let scene = Scene::start(is_shared).await;
        let session = scene.session.clone();
        let key = if is_shared { SHARED } else { "rogue" };
        for n in 0..3 {
            let id = format!("leaver-{n}");
            let mut leaver = scene.fleet.constellation(key, &id, Value::Null).await;
            let task = json!({"session_id": session, "target_id": "d", "request": plan("pwd")});
            leaver.say("task", task).await;
            leaver.expect_error().await;
            leaver.close().await;
            scene.fleet.audited(json!({"event": "disconnected", "client": id})).await;
        }
        let counts = scene.fleet.counts().await;
        assert!(has(&counts, &json!({"tasks_running": 1, "tasks_queued": 0})), "{counts}");
        scene.ends_well().await;
    }
}

#[tokio::test]
async fn a_task_that_is_refused_for_a_full_queue_leaves_the_queue_as_it_was() {
    let keys = ["owner --role device", "galaxy --role constellation", "rogue --role constellation"];
    let fleet = Fleet::start_with(&keys, &["--queue-per-device", "1"]).await;
    let mut device = fleet.device("owner", "d").await;
    let mut galaxy = fleet.constellation("galaxy", "g", Value::Null).await;
    let mut rogue = fleet.constellation("rogue", "rogue", Value::Null).await;
    let mut sessions = Vec::new();
    for _ in 0..2 {
        sessions.push(galaxy.submit("d", &plan("pwd")).await);
        galaxy.expect_ack(sessions.last().unwrap()).await;
    }
    // Another key has a place of its own in the queue, and no more.
    let own = rogue.submit("d", &plan("pwd")).await;
    rogue.expect_ack(&own).await;
    for _ in 0..5 {
        let refused = rogue.submit("d", &plan("pwd")).await;
        assert!(rogue.expect_error().await.contains("waiting already"));
        rogue.expect_end(&refused, "failed").await;
    }
    for session in &sessions {
        let command = device.expect("command").await;
        assert_eq!(command["session_id"], json!(session));
        device.answer_well(&command).await;
        galaxy.expect_end(session, "completed").await;
        device.expect_end(session, "completed").await;
    }
    let command = device.expect("command").await;
    device.answer_well(&command).await;
    rogue.expect_end(&own, "completed").await;
    device.expect_end(&own, "completed").await;
    rogue.close().await;
    fleet.works(&mut galaxy, &mut device).await;
}

#[tokio::test]
async fn a_device_asks_for_nobody_and_has_no_other_devices_information() {
    let mut scene = Scene::start(false).await;
    let [thief, _] = &mut scene.thieves;
    for target in ["d", "thief", "nobody"] {
        thief.say("device_info_request", json!({"target_id": target})).await;
        let says = "DEVICE_INFO_REQUEST is permitted only for constellation clients";
        assert_eq!(thief.expect_error().await, says);
        if target != "thief" {
            thief.say("task", json!({"target_id": target, "request": plan("pwd")})).await;
            assert_eq!(thief.expect_error().await, "Device clients may not target other devices");
        }
    }
    // What it says of itself stands under its own name.
    let facts = json!({"metadata": {"device_id": "d", "hostname": "forged"}});
    thief.say("device_info_response", facts).await;
    thief.beat().await;
    for (id, hostname) in [("d", "h"), ("thief", "forged")] {
        let (_, shown) = scene.fleet.get(SHARED, &format!("/api/v1/devices/{id}")).await;
        assert_eq!(shown["facts"]["device_id"], id, "{shown}");
        assert_eq!(shown["facts"]["hostname"], hostname, "{shown}");
    }
    scene.ends_well().await;
}

#[tokio::test]
async fn the_progress_and_the_outcome_of_a_task_are_its_requesters_alone() {
    let mut scene = Scene::start(true).await;
    // Each of the two asks for something on the same device, the second with a name that is taken.
    let [_, rogue] = &mut scene.thieves;
    let session = rogue.submit("d", &plan_of(&["pwd"])).await;
    rogue.expect_ack(&session).await;
    scene.device.answer_well(&scene.command).await;
    scene.galaxy.expect_end(&scene.session, "completed").await;
    scene.galaxy.beat().await;
    rogue.beat().await;
    scene.device.expect_end(&scene.session, "completed").await;
    let command = scene.device.expect("command").await;
    scene.device.answer_well(&command).await;
    let end = rogue.expect_end(&session, "completed").await;
    assert!(!end.to_string().contains(&scene.session), "{end}");
    scene.galaxy.beat().await;
}

/// Names that would be paths elsewhere, and what becomes of each.
const NAMES: [(&str, &str); 6] = [
    ("../../etc/passwd", "_.._etc_passwd"),
    ("/etc/passwd", "_etc_passwd"),
    ("..\\..\\x", "_.._x"),
    ("a/b", "a_b"),
    (".hidden", "hidden"),
    ("a\u{0}b", "a_b"),
];

#[tokio::test]
async fn a_task_name_is_a_label_and_never_a_path() {
    let fleet = Fleet::start(&["owner --role device", "galaxy --role constellation"]).await;
    let mut device = fleet.device("owner", "d").await;
    let mut galaxy = fleet.constellation("galaxy", "g", Value::Null).await;
    let before = files(&fleet);
    for (name, safe) in NAMES {
        let session = unique("named");
        let task = json!({"session_id": session, "task_name": name, "target_id": "d",
            "request": plan("pwd")});
        galaxy.say("task", task).await;
        galaxy.expect_ack(&session).await;
        let command = device.expect("command").await;
        assert_eq!(command["task_name"], safe, "{name:?}");
        device.answer_well(&command).await;
        galaxy.expect_end(&session, "completed").await;
        device.expect_end(&session, "completed").await;

        let dispatch = json!({"client_id": "d", "request": plan("pwd"), "task_name": name});
        let (status, answer) = fleet.post("galaxy", "/api/dispatch", &dispatch).await;
        assert_eq!(status, 400, "{name:?}: {answer}");
        let (status, answer) = fleet.post("galaxy", "/api/v1/tasks", &http_task("d", name)).await;
        assert_eq!((status, &answer["task_name"]), (201, &json!(safe)), "{name:?}");
        let command = device.expect("command").await;
        device.answer_well(&command).await;
        device.expect("task_end").await;
        let encoded: String = name.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let path = format!("/api/task_result/{encoded}");
        let (status, answer) = fleet.get("galaxy", &path).await;
        assert_eq!((status, &answer["status"]), (200, &json!("pending")), "{name:?}: {answer}");
    }
    assert_eq!(files(&fleet), before, "no name became a file");
}

#[tokio::test]
async fn after_a_restart_only_the_key_of_a_device_that_keeps_no_journal_gets_its_place() {
    let keys = ["owner --role device", "thief --role device"];
    let mut fleet = Fleet::start(&keys).await;
    let mut device = fleet.device("owner", "d").await;
    for name in ["first", "second"] {
        assert_eq!(fleet.post(SHARED, "/api/v1/tasks", &http_task("d", name)).await.0, 201);
    }
    device.expect("command").await;
    fleet.server.process.kill().await;
    fleet.server = fleet.server.start_again().await;
    let mut thief = fleet.peer("thief").await;
    thief.say_device("d").await;
    assert_eq!(refused(&mut thief).await, ("Device 'd' is expected back".to_owned(), 1000));
    let mut device = fleet.device("owner", "d").await;
    assert_eq!(device.expect("command").await["task_name"], "second");
}

/// The files of the server's state.
fn files(fleet: &Fleet) -> Vec<String> {
    let folder = fleet.server.state_file("");
    let names = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name());
    let mut names: Vec<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
