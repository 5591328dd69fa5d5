//! HTTP servers that come and go while they are called.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use futures_util::future::join_all;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::http::{no_such_method, result_of};
use super::*;

/// What a server saw, and whether it refuses everybody.
#[derive(Clone, Default)]
struct Seen(Arc<Counts>);

#[derive(Default)]
struct Counts {
    greeted: AtomicU32,
    called: AtomicU32,
    refuses: AtomicBool,
}

impl Seen {
    fn greeted(&self) -> u32 {
        self.0.greeted.load(Ordering::Relaxed)
    }

    fn called(&self) -> u32 {
        self.0.called.load(Ordering::Relaxed)
    }

    fn refuse(&self, refuses: bool) {
        self.0.refuses.store(refuses, Ordering::Relaxed);
    }
}

async fn handle(State(seen): State<Seen>, Json(message): Json<Value>) -> Response {
    match message["method"].as_str() {
        Some("initialize") => {
            seen.0.greeted.fetch_add(1, Ordering::Relaxed);
            if seen.0.refuses.load(Ordering::Relaxed) {
                return (StatusCode::INTERNAL_SERVER_ERROR, "out of luck").into_response();
            }
        }
        Some("tools/call") => {
            seen.0.called.fetch_add(1, Ordering::Relaxed);
            assert!(message["params"]["name"] == "echo", "it hangs up without an answer");
        }
        _ => {}
    }
    match result_of(&message) {
        Some(result) => {
            Json(json!({"jsonrpc": "2.0", "id": message["id"], "result": result})).into_response()
        }
        None if message["id"].is_null() => StatusCode::ACCEPTED.into_response(),
        None => no_such_method(&message["id"]),
    }
}

/// Each call has a connection of its own: none is sent on one that is just being closed.
async fn closing(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Serves what listens here.
fn serve_at(listener: TcpListener, seen: &Seen) -> JoinHandle<()> {
    let router = Router::new().route("/mcp", post(handle)).layer(map_response(closing));
    let router = router.with_state(seen.clone());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() })
}

async fn serve(port: u16, seen: &Seen) -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    (listener.local_addr().unwrap().port(), serve_at(listener, seen))
}

/// Ends a server: from now on its address refuses connections.
async fn end(serving: JoinHandle<()>) {
    serving.abort();
    let _ended = serving.await;
}

/// An address at which nothing listens.
async fn free_port() -> u16 {
    let (port, serving) = serve(0, &Seen::default()).await;
    end(serving).await;
    port
}

fn at(port: u16) -> ServerSettings {
    ServerSettings {
        transport: Transport::Http {
            url: format!("http://127.0.0.1:{port}/mcp"),
            headers: BTreeMap::new(),
        },
        ..settings("http", "", Path::new("/"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_finds_a_server_that_is_up_again_whenever_the_next_try_would_come() {
    let port = free_port().await;
    let host = start(&[at(port)], &limits());
    timeout(PATIENCE, host.settled()).await.unwrap();
    for _ in 0..5 {
        let error = call(&host, "echo", json!({})).await.unwrap_err();
        let told = "The MCP server 'http' is not connected: it cannot be reached: nothing listens at its \
            address: connection refused; the tool did not run";
        assert_eq!(error, told);
        let (_, serving) = serve(port, &Seen::default()).await;
        assert_eq!(call(&host, "echo", json!({"a": 1})).await, Ok(json!({"a": 1})));
        end(serving).await;
        let error = call(&host, "echo", json!({})).await.unwrap_err();
        assert_eq!(error, told, "the connection can only have been refused");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_looks_for_tools_finds_those_of_a_server_that_has_come_since() {
    let port = free_port().await;
    let host = start(&[at(port)], &limits());
    timeout(PATIENCE, host.settled()).await.unwrap();
    assert!(host.tools(&Caller::default()).is_empty());
    assert!(host.missing().unwrap().starts_with("MCP servers that are not available: 'http' ("));
    let (_, _serving) = serve(port, &Seen::default()).await;
    assert!(!host.is_settled());
    timeout(PATIENCE, host.settled()).await.unwrap();
    assert!(!host.tools(&Caller::default()).is_empty());
    assert!(host.is_settled());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_calls_to_a_server_that_is_down_share_its_tries() {
    let seen = Seen::default();
    seen.refuse(true);
    let (port, _serving) = serve(0, &seen).await;
    let host = start(&[at(port)], &limits());
    timeout(PATIENCE, host.settled()).await.unwrap();
    let (batches, side_by_side) = (4, 20);
    for _ in 0..batches {
        let calls = (0..side_by_side).map(|_| call(&host, "echo", json!({})));
        for answer in join_all(calls).await {
            let error = answer.unwrap_err();
            assert!(error.contains("HTTP 500") && error.contains("did not run"), "{error}");
        }
    }
    // A few tries are the device's own.
    let tries = seen.greeted();
    assert!((batches..4 * batches).contains(&tries), "{tries}");
    assert_eq!(seen.called(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_sent_is_sent_to_the_server_that_comes_within_the_same_try() {
    let (seen, (port, serving)) = (Seen::default(), serve(0, &Seen::default()).await);
    let (again, runtime) = (seen.clone(), tokio::runtime::Handle::current());
    // The server is there again by the time that the device connects anew.
    let on_event: OnEvent = Arc::new(move |event| {
        if event.state == ServerState::Starting {
            let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
            listener.set_nonblocking(true).unwrap();
            let _guard = runtime.enter();
            serve_at(TcpListener::from_std(listener).unwrap(), &again);
        }
    });
    let host = Host::start(&[at(port)], &limits(), None, &on_event);
    assert_eq!(call(&host, "echo", json!({})).await, Ok(json!({})));
    end(serving).await;
    assert_eq!(call(&host, "echo", json!({"a": 1})).await, Ok(json!({"a": 1})));
    assert_eq!(seen.called(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_side_by_side_that_were_not_sent_all_say_so() {
    let (port, serving) = serve(0, &Seen::default()).await;
    let host = start(&[at(port)], &limits());
    assert_eq!(call(&host, "echo", json!({})).await, Ok(json!({})));
    end(serving).await;
    for answer in join_all((0..8).map(|_| call(&host, "echo", json!({})))).await {
        let error = answer.unwrap_err();
        assert!(error.ends_with("; the tool did not run"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_was_sent_and_then_lost_is_not_sent_again() {
    let seen = Seen::default();
    let (port, _serving) = serve(0, &seen).await;
    let host = start(&[at(port)], &limits());
    for times in 1..4 {
        let error = call(&host, "hang up", json!({})).await.unwrap_err();
        assert!(error.contains("was lost in the middle of the call"), "{error}");
        assert!(error.ends_with("it is not known whether the tool ran"), "{error}");
        assert_eq!(seen.called(), times);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stays_down_for_one_reason_is_told_of_once() {
    let (seen, (port, serving)) = (Seen::default(), serve(0, &Seen::default()).await);
    end(serving).await;
    let (tell, mut told) = mpsc::unbounded_channel();
    let on_event: OnEvent = Arc::new(move |event| tell.send(event.state).unwrap());
    let host = Host::start(&[at(port)], &limits(), None, &on_event);
    let mut told = async || timeout(PATIENCE, told.recv()).await.unwrap().unwrap();
    for _ in 0..3 {
        call(&host, "echo", json!({})).await.unwrap_err();
    }
    let refused = told().await;
    assert!(
        matches!(&refused, ServerState::Down { why, .. } if why.contains("refused")),
        "{refused:?}"
    );

    seen.refuse(true);
    let (_, _serving) = serve(port, &seen).await;
    for _ in 0..3 {
        call(&host, "echo", json!({})).await.unwrap_err();
    }
    let failing = told().await;
    assert!(
        matches!(&failing, ServerState::Down { why, .. } if why.contains("500")),
        "{failing:?}"
    );

    seen.refuse(false);
    assert_eq!(call(&host, "echo", json!({})).await, Ok(json!({})));
    assert_eq!(told().await, ServerState::Up { tools: 1 });
}
