//! Against a real HTTP server that answers calls in every wrong way.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{any, post};
use axum::{Json, Router};
use futures_util::{StreamExt, stream};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::http::no_such_method;
use super::*;

/// Where another server listens, to whom nothing may be sent.
#[derive(Clone)]
struct Elsewhere(String);

async fn handle(State(elsewhere): State<Elsewhere>, Json(message): Json<Value>) -> Response {
    let params = &message["params"];
    let result = match message["method"].as_str().unwrap_or("") {
        "initialize" => {
            json!({"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}},
                   "serverInfo": {"name": "hostile", "version": "1"}})
        }
        "tools/list" => json!({"tools": [{"name": "echo", "inputSchema": {"type": "object"}}]}),
        "tools/call" => match params["name"].as_str().unwrap_or("") {
            "echo" => json!({"content": [], "structuredContent": params["arguments"]}),
            manners => return wrong(manners, &elsewhere),
        },
        _ if message["id"].is_null() => return StatusCode::ACCEPTED.into_response(),
        _ => return no_such_method(&message["id"]),
    };
    Json(json!({"jsonrpc": "2.0", "id": message["id"], "result": result})).into_response()
}

/// What comes instead of an answer.
fn wrong(manners: &str, elsewhere: &Elsewhere) -> Response {
    let half = Bytes::from_static(b"event: message\ndata: {\"jsonrpc\": \"2.0\", \"id\"");
    let piece = Bytes::from(vec![b'x'; 1 << 20]);
    match manners {
        "html" => Html("<html>Log in first</html>").into_response(),
        "500" => (StatusCode::INTERNAL_SERVER_ERROR, "out of luck").into_response(),
        "404" => (StatusCode::NOT_FOUND, "no such page").into_response(),
        "redirects" => Redirect::temporary(&elsewhere.0).into_response(),
        "no json" => body("application/json", Body::from("{\"jsonrpc\":")),
        "endless json" => body("application/json", endless(piece)),
        "endless event" => body("text/event-stream", endless(piece)),
        "endless events" => {
            body("text/event-stream", endless(Bytes::from_static(b": still here\n\n")))
        }
        "breaks" => {
            let broken = std::io::Error::other("broken");
            let breaking = stream::once(async {
                // By now the first half is on its way.
                tokio::task::yield_now().await;
                Err(broken)
            });
            let pieces = stream::once(async { Ok(half) }).chain(breaking);
            body("text/event-stream", Body::from_stream(pieces))
        }
        "ends" => body("text/event-stream", Body::from(half)),
        "empty" => body("text/event-stream", Body::empty()),
        "no event" => body("text/event-stream", Body::from("data: <html>\n\n")),
        other => panic!("no manners {other}"),
    }
}

fn body(kind: &'static str, body: Body) -> Response {
    ([(header::CONTENT_TYPE, kind)], body).into_response()
}

fn endless(piece: Bytes) -> Body {
    Body::from_stream(stream::repeat(piece).map(Ok::<_, Infallible>))
}

/// Serves; the receiver is told what comes to the other host.
async fn serve() -> (ServerSettings, mpsc::Receiver<()>) {
    let (strayed, stray) = mpsc::channel(1);
    let other = any(move || async move {
        let _full = strayed.try_send(());
        StatusCode::OK
    });
    let other = listen(Router::new().fallback(other)).await;
    let router = Router::new()
        .route("/mcp", post(handle))
        .with_state(Elsewhere(format!("http://127.0.0.1:{other}/mcp")));
    let port = listen(router).await;
    (at(&format!("http://127.0.0.1:{port}/mcp")), stray)
}

async fn listen(router: Router) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    port
}

fn at(url: &str) -> ServerSettings {
    ServerSettings {
        transport: Transport::Http { url: url.to_owned(), headers: BTreeMap::new() },
        ..settings("http", "", Path::new("/"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_server_answers_to_a_call_fails_that_call_alone() {
    let (settings, mut stray) = serve().await;
    let host = start(&[settings], &limits());
    for (manners, told) in [
        ("html", "text/html"),
        ("500", "500"),
        ("404", "404"),
        ("redirects", "307"),
        ("no json", "JSON"),
        ("endless json", "16777216 bytes"),
        ("endless event", "134217728 bytes"),
        ("breaks", "broke off"),
        ("ends", "broke off"),
        ("empty", "broke off"),
        ("no event", "broke off"),
    ] {
        let error = call(&host, manners, json!({})).await.unwrap_err();
        let expected = "The MCP server 'http' did not answer as it should";
        assert!(error.contains(told) && error.contains(expected), "{manners}: {error}");
        assert_eq!(call(&host, "echo", json!({"a": 0})).await, Ok(json!({"a": 0})), "{manners}");
        assert!(stray.try_recv().is_err(), "{manners}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_never_comes_to_an_answer_has_the_time_limit_of_a_call() {
    let (settings, _stray) = serve().await;
    let limits = Limits { call_timeout: Duration::from_millis(200), ..limits() };
    let host = start(&[settings], &limits);
    let error = call(&host, "endless events", json!({})).await.unwrap_err();
    assert!(error.contains("Timed out after 0.2 s"), "{error}");
    assert_eq!(call(&host, "echo", json!({})).await, Ok(json!({})));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_answers_like_no_mcp_server_does_not_start_and_says_why() {
    for (manners, told) in [
        ("html", "what answers is no MCP server: Unexpected content type: Some(\"text/html"),
        ("500", "what answers is no MCP server: HTTP 500"),
        ("404", "404"),
        ("redirects", "307"),
        ("no json", "JSON"),
        ("endless json", "16777216 bytes"),
        ("endless event", "it ended before it had started"),
        ("endless events", "it did not start within 3 s"),
        ("breaks", "it ended before it had started"),
        ("empty", "it ended before it had started"),
        ("no event", "it ended before it had started"),
    ] {
        let (strayed, mut stray) = mpsc::channel(1);
        let other = any(move || async move {
            let _full = strayed.try_send(());
        });
        let other = listen(Router::new().fallback(other)).await;
        let elsewhere = Elsewhere(format!("http://127.0.0.1:{other}/mcp"));
        let answer = any(move || async move { wrong(manners, &elsewhere) });
        let port = listen(Router::new().fallback(answer)).await;
        // Only what never ends meets it: the others are given all the time they need.
        let start_timeout = match manners {
            "endless events" => Duration::from_secs(3),
            _ => PATIENCE,
        };
        let limits = Limits { start_timeout, ..limits() };
        let host = start(&[at(&format!("http://127.0.0.1:{port}/mcp"))], &limits);
        timeout(2 * PATIENCE, host.settled()).await.unwrap();
        let text = host.out_of_service().join("; ");
        assert!(text.contains("'http' does not run") && text.contains(told), "{manners}: {text}");
        assert!(stray.try_recv().is_err(), "{manners}");
    }
}
