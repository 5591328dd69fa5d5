//! Pages in a browser, and names that were made to resolve to this machine.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::common::{http_client, within};
use crate::fleet::{Fleet, SHARED};

const ROUTES: [&str; 10] = [
    "/ws",
    "/healthz",
    "/readyz",
    "/metrics",
    "/api/docs",
    "/api/docs/",
    "/api/openapi.json",
    "/api/v1/devices",
    "/api/clients",
    "/no/such/route",
];

/// The status that answers a request with these headers.
async fn status(fleet: &Fleet, path: &str, headers: &[(&str, &str)]) -> u16 {
    let key = fleet.key(SHARED);
    let mut head =
        format!("GET {path} HTTP/1.1\r\nAuthorization: Bearer {key}\r\nConnection: close");
    if path == "/ws" {
        head = format!(
            "GET {path} HTTP/1.1\r\nAuthorization: Bearer {key}\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
        );
    }
    for (name, value) in headers {
        head.push_str(&format!("\r\n{name}: {value}"));
    }
    head.push_str("\r\n\r\n");
    let asking = async {
        let mut stream = TcpStream::connect(("127.0.0.1", fleet.server.port)).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        std::str::from_utf8(&answer[9..]).unwrap().parse().unwrap()
    };
    within("an answer", asking).await
}

#[tokio::test]
async fn a_foreign_host_is_refused_on_every_route() {
    let fleet = Fleet::start(&[]).await;
    let port = fleet.server.port;
    let foreign = [
        "attacker.example",
        "localhost.attacker.example",
        "127.0.0.1.attacker.example",
        "192.0.2.7",
        "0.0.0.0",
        "[2001:db8::1]",
        "localhost@attacker.example",
        "",
        "a b",
    ];
    for path in ROUTES {
        for host in foreign {
            let with_port = format!("{host}:{port}");
            for host in [host, &with_port] {
                assert_eq!(status(&fleet, path, &[("Host", host)]).await, 403, "{path} {host:?}");
            }
        }
        assert_eq!(status(&fleet, path, &[]).await, 403, "{path} without a host");
        let two = [("Host", "localhost"), ("Host", "localhost")];
        assert!([400, 403].contains(&status(&fleet, path, &two).await), "{path} with two hosts");
        // The target says another host than the header.
        let absolute = format!("http://attacker.example{path}");
        assert_eq!(status(&fleet, &absolute, &[("Host", "localhost")]).await, 403, "{absolute}");
    }
}

#[tokio::test]
async fn a_page_of_another_origin_is_refused_on_every_route() {
    let fleet = Fleet::start(&[]).await;
    let host = format!("127.0.0.1:{}", fleet.server.port);
    let (own, other_port) = (format!("http://{host}"), "http://127.0.0.1:1".to_owned());
    let other_name = format!("http://localhost:{}", fleet.server.port);
    let lookalike = format!("{own}.attacker.example");
    let with_user = format!("http://{host}@attacker.example");
    let foreign = [
        "https://attacker.example",
        &other_port,
        &other_name,
        &lookalike,
        &with_user,
        "null",
        "file://",
        "",
        "chrome-extension://abcdef",
        "http://127.0.0.1",
    ];
    for path in ROUTES {
        for origin in foreign {
            let headers = [("Host", &*host), ("Origin", origin)];
            assert_eq!(status(&fleet, path, &headers).await, 403, "{path} {origin:?}");
        }
        let twice = [("Host", &*host), ("Origin", &own), ("Origin", &own)];
        assert_eq!(status(&fleet, path, &twice).await, 403, "{path} with two origins");
    }
}

#[tokio::test]
async fn programs_and_the_servers_own_pages_pass_under_each_of_its_names() {
    let fleet = Fleet::start(&[]).await;
    let port = fleet.server.port;
    for (path, expected) in ROUTES.iter().zip([101, 200, 200, 200, 303, 200, 200, 200, 200, 404]) {
        for host in ["127.0.0.1", "127.1.2.3", "localhost", "LOCALHOST", "localhost.", "[::1]"] {
            let (host, bare) = (format!("{host}:{port}"), host.to_owned());
            let own = format!("http://{host}");
            assert_eq!(status(&fleet, path, &[("Host", &bare)]).await, expected, "{path} {bare}");
            let headers = [("Host", &*host), ("Origin", &own)];
            assert_eq!(status(&fleet, path, &headers).await, expected, "{path} {own}");
        }
    }
}

#[tokio::test]
async fn the_settings_admit_hosts_and_origins_and_nothing_beyond_them() {
    let flags = [
        "--allowed-hosts",
        "agents.example,*.lab.example",
        "--allowed-origins",
        "https://pages.example:8443",
    ];
    let fleet = Fleet::start_with(&[], &flags).await;
    for (host, origin, expected) in [
        ("agents.example", None, 200),
        ("AGENTS.example:81", None, 200),
        ("a.b.lab.example", None, 200),
        ("localhost", None, 200),
        ("lab.example", None, 403),
        ("xagents.example", None, 403),
        ("agents.example.attacker.example", None, 403),
        ("localhost", Some("https://pages.example:8443"), 200),
        ("localhost", Some("http://pages.example:8443"), 403),
        ("localhost", Some("https://pages.example"), 403),
        ("localhost", Some("null"), 403),
        ("agents.example", Some("http://agents.example"), 200),
        ("agents.example", Some("http://localhost"), 403),
        ("attacker.example", Some("https://pages.example:8443"), 403),
    ] {
        let mut headers = vec![("Host", host)];
        headers.extend(origin.map(|origin| ("Origin", origin)));
        for path in ["/healthz", "/api/clients"] {
            assert_eq!(status(&fleet, path, &headers).await, expected, "{path} {headers:?}");
        }
    }
    for (flag, wrong) in [
        ("--allowed-hosts", "https://agents.example"),
        ("--allowed-hosts", "agents.example:80"),
        ("--allowed-origins", "agents.example"),
        ("--allowed-origins", "https://agents.example/path"),
        ("--allowed-origins", "null"),
    ] {
        let done = fleet.run(&["serve", "--port", "0", flag, wrong]).await;
        assert!(done.code == 2 && done.stderr.contains(wrong), "{done:?}");
    }
}

#[tokio::test]
async fn a_refused_page_is_in_the_audit_log_with_where_it_came_from() {
    let fleet = Fleet::start(&[]).await;
    assert_eq!(status(&fleet, "/healthz", &[("Host", "attacker.example")]).await, 403);
    let headers = [("Host", "localhost"), ("Origin", "https://attacker.example")];
    assert_eq!(status(&fleet, "/ws", &headers).await, 403);
    let line = |setting: &str| {
        let lines = fleet.audit();
        let is_it = |reason: &serde_json::Value| {
            reason.as_str().is_some_and(|reason| reason.contains(setting))
        };
        lines.into_iter().find(|line| is_it(&line["reason"]))
    };
    for setting in ["allowed_hosts", "allowed_origins"] {
        crate::common::until(setting, || line(setting).is_some()).await;
        let line = line(setting).unwrap();
        assert_eq!(line["event"], "refused");
        assert!(line["address"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
        assert!(line["reason"].as_str().unwrap().contains("attacker.example"), "{line}");
    }
}

#[tokio::test]
async fn a_page_that_tries_for_ever_does_not_fill_the_logs() {
    const TRIES: usize = 300;
    let fleet = Fleet::start(&[]).await;
    let started = std::time::Instant::now();
    let client = http_client();
    for _ in 0..TRIES {
        let request = client.get(fleet.http("/healthz")).header("Host", "attacker.example");
        assert_eq!(within("an answer", request.send()).await.unwrap().status(), 403);
    }
    // Sixty, and one more for each second that it took.
    let most = 61 + usize::try_from(started.elapsed().as_secs()).unwrap();
    let told = fleet.server.process.stderr().matches("a request was refused").count();
    assert!((60..=most).contains(&told), "{told} lines");
    // Whoever comes now is refused all the same, and counted.
    let metrics = client.get(fleet.http("/metrics")).bearer_auth(fleet.key(SHARED)).send();
    let text = within("an answer", metrics).await.unwrap().text().await.unwrap();
    let counted = format!("refusals_total{{reason=\"forbidden\"}} {TRIES}");
    assert!(text.contains(&counted), "{text}");
    let (_, clients) = fleet.get(SHARED, "/api/clients").await;
    assert_eq!(clients, json!({"online_clients": []}));
    let audited = fleet.audit().iter().filter(|line| line["event"] == "refused").count();
    assert!(audited <= most, "{audited} lines");
}
