//! What each role may be and ask.

use serde_json::{Value, json};

use crate::common::{Peer, Process, http_client, within};
use crate::fleet::{Fleet, SHARED, answer, refused};

const KEYS: [&str; 5] = [
    "lab --role device --client lab-*",
    "any --role device",
    "galaxy --role constellation --client galaxy-*",
    "narrow --role constellation --target lab-*",
    "boss --role operator",
];

#[tokio::test]
async fn a_key_opens_for_its_role_and_its_ids_only() {
    let fleet = Fleet::start(&KEYS).await;
    let (device, constellation) = ("device", "constellation");
    let for_role = |role: &str, asked: &str| {
        format!("This key is for the role {role}: it does not open for a {asked}")
    };
    let for_ids = |pattern: &str, id: &str| {
        format!("This key is for the ids '{pattern}': '{id}' is none of them")
    };
    for (key, role, id, refusal) in [
        ("lab", device, "lab-1", None),
        ("lab", device, "office-1", Some(for_ids("lab-*", "office-1"))),
        ("lab", device, "LAB-1", Some(for_ids("lab-*", "LAB-1"))),
        ("lab", constellation, "lab-2", Some(for_role("device", constellation))),
        ("any", device, "whatever", None),
        ("galaxy", constellation, "galaxy-1", None),
        ("galaxy", constellation, "other", Some(for_ids("galaxy-*", "other"))),
        ("galaxy", device, "galaxy-2", Some(for_role("constellation", device))),
        ("narrow", constellation, "n", None),
        ("boss", constellation, "b", None),
        ("boss", device, "bd", Some(for_role("operator", device))),
        (SHARED, device, "s", None),
        (SHARED, constellation, "t", None),
    ] {
        let mut peer = fleet.peer(key).await;
        match role {
            "device" => peer.say_device(id).await,
            _ => peer.say_constellation(id, Value::Null).await,
        }
        match refusal {
            None => {
                peer.expect("heartbeat").await;
                peer.beat().await;
            }
            Some(text) => assert_eq!(refused(&mut peer).await, (text, 1008), "{key} as {id}"),
        }
    }
}

#[tokio::test]
async fn a_refused_registration_leaves_nothing_behind_and_the_id_free() {
    let fleet = Fleet::start(&KEYS).await;
    let mut thief = fleet.peer("galaxy").await;
    thief.say_device("lab-1").await;
    thief.expect_error().await;
    // It is still closing when the owner comes.
    let _owner = fleet.device("lab", "lab-1").await;
    let (_, clients) = fleet.get(SHARED, "/api/clients").await;
    assert_eq!(clients, json!({"online_clients": ["lab-1"]}));
    thief.expect_close().await;
}

/// Who may use a route: the status for a device, a constellation, an operator, the shared key, nobody.
const ROUTES: [(&str, &str, [u16; 5]); 16] = [
    ("GET", "/metrics", [403, 403, 200, 200, 401]),
    ("GET", "/api/v1/server", [403, 403, 200, 200, 401]),
    ("POST", "/api/v1/backup", [403, 403, 422, 422, 401]),
    ("GET", "/api/v1/devices", [403, 200, 200, 200, 401]),
    ("GET", "/api/v1/devices/x", [403, 404, 404, 404, 401]),
    ("GET", "/api/v1/tasks", [403, 200, 200, 200, 401]),
    ("POST", "/api/v1/tasks", [403, 422, 422, 422, 401]),
    ("GET", "/api/v1/tasks/x", [403, 404, 404, 404, 401]),
    ("GET", "/api/v1/tasks/x/wait", [403, 404, 404, 404, 401]),
    ("POST", "/api/v1/tasks/x/cancel", [403, 404, 404, 404, 401]),
    ("GET", "/api/clients", [403, 200, 200, 200, 401]),
    ("GET", "/api/health", [403, 200, 200, 200, 401]),
    ("POST", "/api/dispatch", [403, 400, 400, 400, 401]),
    ("GET", "/api/task_result/x", [403, 200, 200, 200, 401]),
    ("GET", "/healthz", [200; 5]),
    ("GET", "/readyz", [200; 5]),
];

#[tokio::test]
async fn each_route_is_for_its_roles() {
    let fleet = Fleet::start(&KEYS).await;
    let keys = ["any", "galaxy", "boss", SHARED].map(|name| Some(fleet.key(name)));
    for (method, path, expected) in ROUTES {
        for (key, expected) in keys.into_iter().chain([None]).zip(expected) {
            let mut request = http_client().request(method.parse().unwrap(), fleet.http(path));
            if let Some(key) = key {
                request = request.bearer_auth(key);
            }
            if method == "POST" {
                request = request.body("{}");
            }
            let (status, body) = answer(request).await;
            assert_eq!(status, expected, "{method} {path}: {body}");
        }
    }
}

#[tokio::test]
async fn the_health_routes_tell_nothing_but_health() {
    let fleet = Fleet::start(&KEYS).await;
    let _device = fleet.device("lab", "lab-1").await;
    for (path, text) in [("/healthz", "ok"), ("/readyz", "ready")] {
        let response = within("an answer", http_client().get(fleet.http(path)).send()).await;
        assert_eq!(response.unwrap().text().await.unwrap(), text);
    }
}

#[tokio::test]
async fn a_given_key_is_called_legacy_in_the_log_and_over_http() {
    let fleet = Fleet::start(&KEYS).await;
    let (_, about) = fleet.get("boss", "/api/v1/server").await;
    assert_eq!(about["keys"], json!({"shared": "local", "created": KEYS.len()}));
    assert!(!fleet.server.process.stderr().contains("legacy"));

    let home = crate::common::Home::new();
    let serve = ["serve", "--port", "0", "--state-dir", "state"];
    let mut process =
        Process::start(home.command(&serve).env("FLIGHTDECK_API_KEY", "ufo's shared key"));
    process.says("Other machines").await;
    let log = process.stderr();
    assert!(log.contains("WARN") && log.contains("legacy"), "{log}");
    assert!(!log.contains("ufo's shared key"), "{log}");
    let port = log.split("ws://127.0.0.1:").nth(1).unwrap().split('/').next().unwrap();
    let url = format!("http://127.0.0.1:{port}/api/v1/server");
    let (status, about) = answer(http_client().get(url).bearer_auth("ufo's shared key")).await;
    assert_eq!((status, &about["keys"]["shared"]), (200, &json!("legacy")), "{about}");
    // It opens everything, for everybody.
    for role in ["device", "constellation"] {
        let port = port.parse().unwrap();
        let mut peer = Peer::connect(port, "ufo%27s%20shared%20key").await.unwrap();
        match role {
            "device" => peer.register_device("d").await,
            _ => peer.register_constellation("g", Value::Null).await,
        }
    }
}

#[tokio::test]
async fn the_key_on_the_command_line_is_warned_of() {
    let home = crate::common::Home::new();
    let mut process =
        home.start(&["serve", "--port", "0", "--state-dir", "state", "--api-key", "k3y"]);
    process.says("Other machines").await;
    let log = process.stderr();
    assert!(log.contains("other users of this machine can see a key"), "{log}");
}
