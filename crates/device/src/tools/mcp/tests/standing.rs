//! The stream on which an HTTP server tells what nobody asked for.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use futures_util::{StreamExt, stream};
use tokio::net::TcpListener;

use super::http::{no_such_method, result_of};
use super::*;

/// How often the stream was opened, and how much was taken of it.
#[derive(Clone)]
struct Opened {
    breaks: bool,
    times: Arc<AtomicUsize>,
    taken: Arc<AtomicUsize>,
}

async fn handle(State(opened): State<Opened>, Json(message): Json<Value>) -> Response {
    let result = match message["method"].as_str() {
        // Once the stream is open again, there is a tool more.
        Some("tools/list") if opened.times.load(Ordering::Relaxed) > 1 => {
            json!({"tools": [{"name": "echo"}, {"name": "grown"}]})
        }
        _ if message["id"].is_null() => return StatusCode::ACCEPTED.into_response(),
        _ => match result_of(&message) {
            Some(result) => result,
            None => return no_such_method(&message["id"]),
        },
    };
    let answer = json!({"jsonrpc": "2.0", "id": message["id"], "result": result});
    ([("mcp-session-id", "s")], Json(answer)).into_response()
}

/// A line without an end at first, or one that breaks off; then news.
async fn standing(State(opened): State<Opened>) -> Response {
    let taken = opened.taken.clone();
    let piece = Bytes::from(vec![b'x'; 1 << 16]);
    let body = match (opened.times.fetch_add(1, Ordering::Relaxed), opened.breaks) {
        (0, true) => {
            let pieces = [Ok(piece), Err(std::io::Error::other("broken"))];
            Body::from_stream(stream::iter(pieces).then(|piece| async {
                tokio::task::yield_now().await;
                piece
            }))
        }
        (0, false) => Body::from_stream(stream::repeat(piece).map(move |piece| {
            taken.fetch_add(piece.len(), Ordering::Relaxed);
            Ok::<_, Infallible>(piece)
        })),
        _ => {
            let news = json!({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"});
            let news = Bytes::from(format!("data: {news}\n\n"));
            let open = stream::once(async { Ok::<_, Infallible>(news) }).chain(stream::pending());
            Body::from_stream(open)
        }
    };
    ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standing_stream_that_cannot_be_taken_costs_little_and_is_opened_again() {
    for breaks in [false, true] {
        let opened = Opened { breaks, times: Arc::default(), taken: Arc::default() };
        let router =
            Router::new().route("/mcp", post(handle).get(standing)).with_state(opened.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/mcp", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let settings = ServerSettings {
            transport: Transport::Http { url, headers: BTreeMap::new() },
            ..settings("http", "", Path::new("/"))
        };
        let host = start(&[settings], &limits());
        until(&host, |state| *state == ServerState::Up { tools: 2 }).await;
        // What is on its way, in the buffers of both, counts too.
        let taken = opened.taken.load(Ordering::Relaxed);
        assert!(taken < 64 << 20, "{taken}");
    }
}
