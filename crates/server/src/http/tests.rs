//! Who fails too often, from where it counts: this machine is exempt, so these callers have addresses
//! of elsewhere.

use std::net::{IpAddr, SocketAddr};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{Response, StatusCode, header};
use tower_service::Service;

use super::router;
use crate::auth::Keys;
use crate::config::Config;
use crate::front::Caller;
use crate::server::Server;

const ELSEWHERE: &str = "192.0.2.7:50312";

fn server() -> Server {
    let config =
        Config { failed_keys_per_minute: 3, max_unproven_per_address: 1, ..Config::default() };
    Server::new(config, Keys::local("right".to_owned().into()))
}

/// A caller as the front makes it after a while, if there is a place for its address.
fn caller(server: &Server, address: &str) -> Option<Caller> {
    let caller = Caller::new(address.parse().unwrap());
    caller.count(server.addresses()).then_some(caller)
}

async fn ask(routes: &mut Router, caller: &Caller, path: &str, key: &str) -> Response<Body> {
    let request = Request::get(path).header("X-API-Key", key).extension(caller.clone());
    routes.call(request.body(Body::empty()).unwrap()).await.unwrap()
}

fn retry_after(response: &Response<Body>) -> u64 {
    response.headers()[header::RETRY_AFTER].to_str().unwrap().parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn wrong_keys_of_an_address_are_told_to_wait_on_every_route_and_a_right_one_never() {
    let server = server();
    let mut routes = router(server.clone());
    let stranger = caller(&server, ELSEWHERE).unwrap();
    let wrong = [
        ("/api/v1/tasks", StatusCode::UNAUTHORIZED),
        ("/api/clients", StatusCode::UNAUTHORIZED),
        ("/ws", StatusCode::FORBIDDEN),
    ];
    for (path, refused) in wrong {
        assert_eq!(ask(&mut routes, &stranger, path, "wrong").await.status(), refused, "{path}");
    }
    for path in ["/api/v1/tasks", "/api/clients", "/ws", "/metrics", "/api/v1/server"] {
        let limited = ask(&mut routes, &stranger, path, "wrong").await;
        assert_eq!(limited.status(), StatusCode::TOO_MANY_REQUESTS, "{path}");
        assert!((1..=21).contains(&retry_after(&limited)), "{path}: {}", retry_after(&limited));
        assert_eq!(limited.headers()[header::CONTENT_TYPE], "application/problem+json", "{path}");
        assert_eq!(limited.headers()[header::CONNECTION], "close", "{path}");
    }
    let right = ask(&mut routes, &stranger, "/api/v1/tasks", "right").await;
    assert_eq!(right.status(), StatusCode::OK, "a right key is never told to wait");
    let open = ask(&mut routes, &stranger, "/healthz", "").await;
    assert_eq!(open.status(), StatusCode::OK);

    let other = caller(&server, "192.0.2.8:1").unwrap();
    let refused = ask(&mut routes, &other, "/api/v1/tasks", "wrong").await;
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED, "others are not to blame");
    let here = caller(&server, "127.0.0.1:1").unwrap();
    for _ in 0..100 {
        let refused = ask(&mut routes, &here, "/api/v1/tasks", "wrong").await;
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED, "this machine is exempt");
    }
}

#[tokio::test]
async fn who_shows_a_key_gives_its_place_among_strangers_to_the_next() {
    let server = server();
    let mut routes = router(server.clone());
    let first = caller(&server, ELSEWHERE).unwrap();
    assert!(caller(&server, ELSEWHERE).is_none(), "each address has so many places");
    for (path, key) in [("/healthz", ""), ("/api/v1/tasks", "wrong"), ("/api/docs/", "")] {
        ask(&mut routes, &first, path, key).await;
        assert!(caller(&server, ELSEWHERE).is_none(), "{path} proves nothing");
    }
    ask(&mut routes, &first, "/api/v1/tasks", "right").await;
    let second = caller(&server, ELSEWHERE).unwrap();
    drop(first);
    assert!(caller(&server, ELSEWHERE).is_none());
    drop(second);
    let address: IpAddr = ELSEWHERE.parse::<SocketAddr>().unwrap().ip();
    assert!(server.addresses().enter(address).is_some(), "and who leaves does too");
}
