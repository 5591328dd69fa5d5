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
            "write" => return write(&message["id"], &params["arguments"]),
            manners => return wrong(manners, &elsewhere),
        },
        _ if message["id"].is_null() => return StatusCode::ACCEPTED.into_response(),
        _ => return no_such_method(&message["id"]),
    };
    Json(json!({"jsonrpc": "2.0", "id": message["id"], "result": result})).into_response()
}

/// Answers with this text, which says `$ID` for the id, as an event of a stream that stays open, or as JSON.
fn write(id: &Value, arguments: &Value) -> Response {
    let text = arguments["text"].as_str().unwrap().replace("$ID", &id.to_string());
    let status = StatusCode::from_u16(arguments["status"].as_u64().unwrap_or(200) as u16).unwrap();
    if arguments["event"] == false {
        return (status, body("application/json", Body::from(text))).into_response();
    }
    let event = Bytes::from(format!("event: message\ndata: {text}\n\n"));
    let open = stream::once(async { Ok::<_, Infallible>(event) }).chain(stream::pending());
    body("text/event-stream", Body::from_stream(open))
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
        "accepts" => StatusCode::ACCEPTED.into_response(),
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
        ("endless event", "256 MiB"),
        ("breaks", "broke off"),
        ("ends", "broke off"),
        ("empty", "broke off"),
        ("no event", "broke off"),
        ("accepts", "gives no answer"),
    ] {
        let error = call(&host, manners, json!({})).await.unwrap_err();
        let expected = "The MCP server 'http' did not answer as it should";
        assert!(error.contains(told) && error.contains(expected), "{manners}: {error}");
        assert_eq!(call(&host, "echo", json!({"a": 0})).await, Ok(json!({"a": 0})), "{manners}");
        assert!(stray.try_recv().is_err(), "{manners}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_cannot_be_read_or_is_not_to_the_call_fails_it_at_once() {
    let (settings, _stray) = serve().await;
    let host = start(&[settings], &limits());
    let unreadable = "did not answer as it should (its answer could not be read: ";
    let answer = |value: &str| {
        format!(r#"{{"jsonrpc":"2.0","id":$ID,"result":{{"structuredContent":{value}}}}}"#)
    };
    for (text, told) in [
        (answer(r#"{"a":"\ud800"}"#), unreadable),
        (answer("NaN"), unreadable),
        (answer("1e400"), unreadable),
        (answer("7").replace("$ID", "4711"), unreadable),
        (r#"{"jsonrpc":"2.0","id":$ID}"#.to_owned(), unreadable),
        (r#"{"jsonrpc":"2.0","id":null,"error":{"code":1,"message":"no"}}"#.to_owned(), "no"),
        (
            r#"{"jsonrpc":"2.0","id":"server-error","error":{"code":1,"message":"no"}}"#.to_owned(),
            "no",
        ),
    ] {
        let error = call(&host, "write", json!({"text": text})).await.unwrap_err();
        assert!(error.contains(told), "{text}: {error}");
        let whole = json!({"text": text, "event": false});
        let error = call(&host, "write", whole.clone()).await.unwrap_err();
        assert!(error.contains(told) || error.contains("did not answer"), "{text}: {error}");
    }
    let refused = r#"{"jsonrpc":"2.0","id":"server-error","error":{"code":1,"message":"no"}}"#;
    let refused = json!({"text": refused, "event": false, "status": 400});
    assert_eq!(call(&host, "write", refused).await, Err("no".to_owned()));
    assert_eq!(call(&host, "write", json!({"text": answer("7")})).await, Ok(json!(7)));
    let text = answer("123456789012345678901234567890").replace("\"jsonrpc\":\"2.0\",", "");
    let exact = payload(&host, "write", json!({"text": text})).await.unwrap();
    assert_eq!(exact.as_str(), "123456789012345678901234567890");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_be_reached_says_what_is_in_the_way() {
    let plain = listen(Router::new()).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    for (url, told) in [
        (
            format!("http://127.0.0.1:{closed}/mcp"),
            "nothing listens at its address: connection refused",
        ),
        (
            format!("https://127.0.0.1:{plain}/mcp"),
            "no TLS connection to it: what answers there speaks no TLS",
        ),
        ("http://no-such-host.invalid/mcp".to_owned(), "its host name is not found: "),
    ] {
        let host = start(&[at(&url)], &limits());
        timeout(PATIENCE, host.settled()).await.unwrap();
        let text = host.out_of_service().join("; ");
        assert!(text.contains(&format!("cannot be reached: {told}")), "{text}");
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
        ("endless event", "its first answer broke off, or was none"),
        ("endless events", "it did not answer within 3 s"),
        ("breaks", "its first answer broke off, or was none"),
        ("empty", "its first answer broke off, or was none"),
        ("no event", "its first answer broke off, or was none"),
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
        assert!(
            text.contains("'http' is not connected") && text.contains(told),
            "{manners}: {text}"
        );
        assert!(stray.try_recv().is_err(), "{manners}");
    }
}
