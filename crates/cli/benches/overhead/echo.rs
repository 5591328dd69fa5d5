//! What answers at once: the programs that this benchmark starts from its own binary, to be called by the
//! device and directly.

use std::convert::Infallible;
use std::io::{BufRead, Write};

use axum::body::Body;
use axum::extract::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::serve::ListenerExt;
use futures_util::{SinkExt, StreamExt, stream};
use serde_json::{Value, json};
use tokio_websockets::ClientBuilder;

/// The programs, by the first argument that starts them.
pub(crate) const STDIO: &str = "mcp-stdio";
pub(crate) const HTTP: &str = "mcp-http";
pub(crate) const WEB_SOCKET: &str = "web-socket";

/// Runs the one that is asked for, to its end. `false` if none is.
pub(crate) fn ran(args: &[String]) -> bool {
    match args {
        [name, ..] if name == STDIO => serve_stdio(),
        [name, ..] if name == HTTP => block_on(serve_http()),
        [name, url, ..] if name == WEB_SOCKET => block_on(echo_web_socket(url)),
        _ => return false,
    }
    true
}

/// A runtime of one thread, so that no answer is passed between threads.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// An MCP server with the tool `echo`. Nothing for a message that wants no answer.
fn answer(message: &Value) -> Option<Value> {
    let id = message.get("id")?;
    let params = &message["params"];
    let result = match message["method"].as_str()? {
        "initialize" => json!({"protocolVersion": params["protocolVersion"],
            "capabilities": {"tools": {}}, "serverInfo": {"name": "echo", "version": "1"}}),
        "tools/list" => json!({"tools": [{"name": "echo", "inputSchema": {"type": "object"}}]}),
        "tools/call" => json!({"content": [], "structuredContent": params["arguments"]}),
        _ => {
            let error = json!({"code": -32601, "message": "no such method"});
            return Some(json!({"jsonrpc": "2.0", "id": id, "error": error}));
        }
    };
    Some(json!({"jsonrpc": "2.0", "id": id, "result": result}))
}

fn serve_stdio() {
    let mut stdout = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let message = serde_json::from_str(&line.unwrap()).unwrap();
        if let Some(answer) = answer(&message) {
            stdout.write_all(format!("{answer}\n").as_bytes()).unwrap();
            stdout.flush().unwrap();
        }
    }
}

/// Answers at `/json` and `/sse`, each in its way. Says its port on stderr.
async fn serve_http() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    eprintln!("port {};", listener.local_addr().unwrap().port());
    let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
    let router = axum::Router::new().route("/json", post(as_json)).route("/sse", post(as_stream));
    axum::serve(listener, router).await.unwrap();
}

async fn as_json(Json(message): Json<Value>) -> Response {
    let answer = answer(&message).map(|answer| Json(answer).into_response());
    answer.unwrap_or_else(|| StatusCode::ACCEPTED.into_response())
}

async fn as_stream(Json(message): Json<Value>) -> Response {
    let Some(answer) = answer(&message) else { return StatusCode::ACCEPTED.into_response() };
    let event = format!("event: message\ndata: {answer}\n\n");
    let body = Body::from_stream(stream::iter([Ok::<_, Infallible>(event)]));
    ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
}

/// A peer that says back what it is told: what the WebSocket and two processes cost without a device.
async fn echo_web_socket(url: &str) {
    let (mut socket, _) = ClientBuilder::new().uri(url).unwrap().connect().await.unwrap();
    let register = json!({"type": "register", "client_id": "echo"}).to_string();
    socket.send(tokio_websockets::Message::text(register)).await.unwrap();
    while let Some(Ok(message)) = socket.next().await {
        if message.is_text() && socket.send(message).await.is_err() {
            break;
        }
    }
}
