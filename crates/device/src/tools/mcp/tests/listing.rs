//! Servers whose lists of tools are wrong, or too much.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use tokio::net::TcpListener;

use super::http::result_of;
use super::server::LISTS;
use super::*;

/// What one tool each is wrong with; the last one is good.
const ODD: &str = r#"[
    null, 7, "x", {}, {"name": 7, "inputSchema": {}}, {"name": "no schema"},
    {"name": "no object", "inputSchema": true}, {"name": "half", "title": "\ud800", "inputSchema": {}},
    {"name": "vague", "inputSchema": {}, "title": 1, "description": 9, "outputSchema": true, "_meta": [],
     "annotations": {"readOnlyHint": "yes"}},
    {"name": "twice", "title": "first", "inputSchema": {}}, {"name": "twice", "inputSchema": {}},
    {"name": "", "inputSchema": {}}, {"name": "a\u202eb", "inputSchema": {}}, {"name": "a::b", "inputSchema": {}},
    {"name": "a\u001b[2J", "inputSchema": {}}, {"name": "a\u3164", "inputSchema": {}},
    {"name": "e\u0301t\u00e9 日", "inputSchema": {"type": "object"}}
]"#;

/// Those of them that can be called.
const KEPT: [&str; 4] = ["no schema", "vague", "twice", "e\u{301}té 日"];

fn names(host: &Host) -> Vec<String> {
    let tools = host.tools(&Caller::default());
    tools.iter().map(|tool| tool.info.tool_name.clone()).collect()
}

async fn settled(manners: &str) -> Host {
    let host = host(manners, &std::env::temp_dir());
    timeout(PATIENCE, host.settled()).await.unwrap();
    assert_eq!(host.out_of_service(), Vec::<String>::new());
    host
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_that_cannot_be_read_hides_no_other() {
    let host = settled(&format!("{LISTS}{}", ODD.replace('\n', " "))).await;
    assert_eq!(names(&host), KEPT);
    let tools = host.tools(&Caller::default());
    let no_arguments = json!({"type": "object", "properties": {}});
    assert_eq!(tools[0].info.input_schema, Some(no_arguments));
    let vague = &tools[1].info;
    assert_eq!((&vague.title, &vague.description, &vague.output_schema), (&None, &None, &None));
    assert_eq!((vague.tool_type, &vague.annotations), (ToolType::Action, &None));
    assert_eq!(tools[2].info.title.as_deref(), Some("first"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fat_server_is_listed_as_far_as_there_is_room_and_leaves_room_for_others() {
    let host = settled("fat").await;
    let small = ["small 0", "small 1", "small 2", "small 3"];
    let (large, others): (Vec<_>, Vec<_>) =
        names(&host).into_iter().partition(|name| name.starts_with("large"));
    assert_eq!((large.len(), &others[..]), (5, &small.map(str::to_owned)[..]));
    let infos: Vec<_> =
        host.tools(&Caller::default()).iter().map(|tool| tool.info.clone()).collect();
    assert!(serde_json::to_vec(&infos).unwrap().len() <= 1 << 20);
}

/// Answers with JSON, or with an event.
async fn handle(State(is_event): State<bool>, Json(message): Json<Value>) -> Response {
    if message["id"].is_null() {
        return axum::http::StatusCode::ACCEPTED.into_response();
    }
    let result = match message["method"].as_str() {
        // What is no text at all, the library reads first in a JSON body.
        Some("tools/list") if is_event => ODD.replace('\n', " "),
        Some("tools/list") => ODD.replace("\\ud800", "").replace('\n', " "),
        _ => result_of(&message).unwrap().to_string(),
    };
    let result =
        if message["method"] == "tools/list" { format!("{{\"tools\":{result}}}") } else { result };
    let answer = format!("{{\"jsonrpc\":\"2.0\",\"id\":{},\"result\":{result}}}", message["id"]);
    match is_event {
        true => ([("content-type", "text/event-stream")], format!("data: {answer}\n\n")),
        false => ([("content-type", "application/json")], answer),
    }
    .into_response()
}

#[tokio::test(flavor = "multi_thread")]
async fn over_http_too_a_tool_that_cannot_be_read_hides_no_other() {
    for is_event in [true, false] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let router = Router::new().route("/mcp", post(handle)).with_state(is_event);
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let url = format!("http://127.0.0.1:{port}/mcp");
        let settings = ServerSettings {
            transport: Transport::Http { url, headers: BTreeMap::new() },
            ..settings("http", "", Path::new("/"))
        };
        let host = start(&[settings], &limits());
        timeout(PATIENCE, host.settled()).await.unwrap();
        assert_eq!(host.out_of_service(), Vec::<String>::new());
        let mut names = names(&host);
        names.retain(|name| name != "half");
        assert_eq!(names, KEPT, "{is_event}");
    }
}
