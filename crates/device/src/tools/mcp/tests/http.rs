//! Against a real HTTP server, which answers each message with JSON.

use std::sync::atomic::{AtomicU32, Ordering};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::post;
use axum::{Json, Router};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;

/// How often a server was greeted, which is how many sessions it has seen.
#[derive(Clone, Default)]
struct Greeted(Arc<AtomicU32>);

impl Greeted {
    fn times(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

async fn handle(
    State(greeted): State<Greeted>,
    headers: HeaderMap,
    Json(message): Json<Value>,
) -> Response {
    if headers.get("x-api-key").is_none_or(|key| key != "5ecret") {
        return (StatusCode::UNAUTHORIZED, "who are you?").into_response();
    }
    if message["method"] == "initialize" {
        greeted.0.fetch_add(1, Ordering::Relaxed);
    }
    match result_of(&message) {
        Some(result) => {
            Json(json!({"jsonrpc": "2.0", "id": message["id"], "result": result})).into_response()
        }
        None if message["id"].is_null() => StatusCode::ACCEPTED.into_response(),
        None => no_such_method(&message["id"]),
    }
}

/// What a server with one tool answers, if it knows the message.
pub(super) fn result_of(message: &Value) -> Option<Value> {
    let params = &message["params"];
    Some(match message["method"].as_str()? {
        "initialize" => {
            json!({"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}},
                   "serverInfo": {"name": "http", "version": "1"}})
        }
        "tools/list" => json!({"tools": [{"name": "echo", "inputSchema": {"type": "object"}}]}),
        "tools/call" => json!({"content": [], "structuredContent": params["arguments"]}),
        _ => return None,
    })
}

/// What a server says to a message that it does not know.
pub(super) fn no_such_method(id: &Value) -> Response {
    let error = json!({"code": -32601, "message": "no such method"});
    Json(json!({"jsonrpc": "2.0", "id": id, "error": error})).into_response()
}

/// Serves at this port, or any that is free.
async fn serve(port: u16, greeted: &Greeted) -> (u16, JoinHandle<()>) {
    let router = Router::new()
        .route("/mcp/", post(handle))
        .route("/mcp", post(|| async { Redirect::temporary("/mcp/") }))
        .with_state(greeted.clone());
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (port, serving)
}

fn at(port: u16, key: &str) -> ServerSettings {
    ServerSettings {
        transport: Transport::Http {
            url: format!("http://127.0.0.1:{port}/mcp"),
            headers: BTreeMap::from([("X-API-Key".to_owned(), key.to_owned())]),
        },
        ..settings("http", "", Path::new("/"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_session_serves_all_calls() {
    let greeted = Greeted::default();
    let (port, _serving) = serve(0, &greeted).await;
    let host = start(&[at(port, "5ecret")], &limits());
    for value in [json!({"a": false}), json!({"b": []})] {
        assert_eq!(call(&host, "echo", value.clone()).await, Ok(value));
    }
    assert_eq!(greeted.times(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_is_a_clear_reason_that_does_not_show_it() {
    let (port, _serving) = serve(0, &Greeted::default()).await;
    let host = start(&[at(port, "wr0ng")], &limits());
    timeout(PATIENCE, host.settled()).await.unwrap();
    let text = host.out_of_service().join("; ");
    assert!(text.contains("401") && !text.contains("wr0ng"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_late_or_again_is_found() {
    let greeted = Greeted::default();
    let (port, serving) = serve(0, &greeted).await;
    serving.abort();
    let _ended = serving.await;
    let host = start(&[at(port, "5ecret")], &limits());
    timeout(PATIENCE, host.settled()).await.unwrap();
    let error = call(&host, "echo", json!({})).await.unwrap_err();
    assert!(error.contains("is not connected: it cannot be reached"), "{error}");

    let (_, serving) = serve(port, &greeted).await;
    until(&host, |state| matches!(state, ServerState::Up { .. })).await;
    assert_eq!(call(&host, "echo", json!({})).await, Ok(json!({})));

    serving.abort();
    let _ended = serving.await;
    // An open connection outlives the listener; what counts is that the device comes back to the next.
    let (_, _serving) = serve(port, &greeted).await;
    let answered = timeout(PATIENCE, async {
        while call(&host, "echo", json!({})).await.is_err() {
            tokio::task::yield_now().await;
        }
    });
    answered.await.expect("it never comes back");
}
