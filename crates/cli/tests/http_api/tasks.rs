//! Tasks that are submitted, looked into and waited for.

use serde_json::{Value, json};

use crate::client::{Api, TOO_LARGE, id};
use crate::common::{Server, plan, plan_of};

/// JSON that only passes through unharmed if nobody reads and writes it anew.
const ODD: &str = r#"{"z":1,"a":123456789012345678901234567890,"f":1.10,"s":"\u00e9\ud83d\ude00"}"#;

#[tokio::test]
async fn a_submitted_task_runs_like_any_other() {
    let server = Server::start().await;
    let (api, mut device) = (Api::of(&server), server.raw_device("d").await);
    let task = json!({"device": "d", "task_name": "my task", "session_id": "S1",
        "command_timeout_s": 60, "request": {"commands": [{"tool_name": "t", "parameters": {"a": 1}}]}});
    let answer = api.post("/api/v1/tasks", task.to_string()).await;
    let submitted = answer.ok(201);
    assert_eq!(answer.header("location"), format!("/api/v1/tasks/{}", id(&submitted)));
    let command = device.expect("command").await;
    assert_eq!((&command["session_id"], &command["task_name"]), (&json!("S1"), &json!("my_task")));
    assert_eq!(command["actions"][0]["parameters"], json!({"a": 1}));

    let running = api.get(answer.header("location")).await.ok(200);
    for (field, value) in [
        ("id", &submitted["id"]),
        ("session_id", &json!("S1")),
        ("task_name", &json!("my_task")),
        ("device", &json!("d")),
        ("requester", &json!("HTTP, key local")),
        ("key", &json!("local")),
        ("state", &json!("running")),
        ("step_count", &json!(1)),
        ("ended_at", &Value::Null),
    ] {
        assert_eq!(&running[field], value, "{field}");
    }
    let step = &running["steps"][0];
    assert_eq!((&step["n"], &step["settled_at"]), (&json!(1), &Value::Null));
    assert_eq!(
        step["actions"][0],
        json!({"tool_name": "t", "parameters": {"a": 1},
        "tool_type": "action"})
    );

    device.answer_well(&command).await;
    device.expect_end("S1", "completed").await;
    let ended = api.end_of(&id(&submitted)).await;
    assert_eq!((&ended["state"], &ended["error"]), (&json!("completed"), &Value::Null));
    assert!(ended["steps"][0]["settled_at"].is_string(), "{ended}");
    let action = &ended["steps"][0]["actions"][0];
    assert_eq!((&action["status"], &action["result"]["stdout"]), (&json!("success"), &json!("ok")));
    let line = api.get("/api/v1/tasks").await.ok(200)["tasks"][0].clone();
    assert_eq!((&line["steps"], &line["request"]), (&Value::Null, &Value::Null), "a list is short");
}

#[tokio::test]
async fn a_plan_may_be_an_object_or_text_and_plain_words_fail_with_what_to_do() {
    let server = Server::start().await;
    let (api, _device) = (Api::of(&server), server.device("d", &[]).await);
    let object: Value = serde_json::from_str(&plan("pwd")).unwrap();
    for request in [object, json!(plan("pwd"))] {
        let task = api.submit(&json!({"device": "d", "request": request})).await;
        let ended = api.end_of(&id(&task)).await;
        assert_eq!(ended["state"], "completed", "{ended}");
        assert_eq!(ended["steps"][0]["actions"][0]["result"]["exit_code"], 0, "{ended}");
    }
    let task = api.submit(&json!({"device": "d", "request": "tidy up"})).await;
    let ended = api.end_of(&id(&task)).await;
    assert_eq!((&ended["state"], &ended["steps"]), (&json!("failed"), &json!([])));
    assert!(ended["error"].as_str().unwrap().contains("plan"), "{ended}");
}

#[tokio::test]
async fn what_cannot_be_submitted_is_refused_with_its_code() {
    let server = Server::start_with(&["--max-request-bytes", "1000"]).await;
    let api = Api::of(&server);
    let mut device = server.raw_device("d").await;
    let _galaxy = server.raw_constellation("g").await;
    let of = |more: &str| format!(r#"{{"device":"d","request":{}{more}}}"#, plan("pwd"));
    let deep = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    for (body, status, code) in [
        (String::new(), 422, "body_invalid"),
        ("{oops".to_owned(), 422, "body_invalid"),
        ("[1]".to_owned(), 422, "body_invalid"),
        ("{}".to_owned(), 422, "body_invalid"),
        (r#"{"device":"d"}"#.to_owned(), 422, "body_invalid"),
        (r#"{"device":5,"request":"r"}"#.to_owned(), 422, "body_invalid"),
        (of(r#","sesion_id":"typo""#), 422, "body_invalid"),
        (of(r#","command_timeout_s":"60""#), 422, "body_invalid"),
        (of(r#","command_timeout_s":1e999"#), 422, "body_invalid"),
        (of(&format!(r#","session_id":{}"#, deep(1000))), 422, "body_invalid"),
        (" ".repeat(TOO_LARGE), 413, "body_too_large"),
        (format!(r#"{{"device":"d","request":{}}}"#, deep(10_000)), 422, "body_invalid"),
        (r#"{"device":"d","request":5}"#.to_owned(), 400, "bad_task"),
        (r#"{"device":"d","request":null}"#.to_owned(), 400, "bad_task"),
        (r#"{"device":"d","request":[]}"#.to_owned(), 400, "bad_task"),
        (r#"{"device":"d","request":" "}"#.to_owned(), 400, "bad_task"),
        (r#"{"device":"","request":"r"}"#.to_owned(), 400, "bad_task"),
        (of(r#","session_id":"a\nb""#), 400, "bad_task"),
        (of(r#","command_timeout_s":0"#), 400, "bad_command_timeout"),
        (of(r#","command_timeout_s":-1"#), 400, "bad_command_timeout"),
        (of(r#","command_timeout_s":1e300"#), 400, "bad_command_timeout"),
        (of(r#","no_time_limit":1"#), 422, "body_invalid"),
        (r#"{"device":"g","request":"r"}"#.to_owned(), 400, "not_a_device"),
        (r#"{"device":"nobody","request":"r"}"#.to_owned(), 404, "device_not_online"),
        (format!(r#"{{"device":"d","request":"{}"}}"#, "x".repeat(1001)), 413, "request_too_long"),
    ] {
        let shown: String = body.chars().take(80).collect();
        let detail = api.post("/api/v1/tasks", body).await.problem(status, code);
        assert!(!detail.is_empty() && detail.len() < 500, "{shown}: {detail}");
    }
    let told = api.post("/api/v1/tasks", of(r#","command_timeout_s":1e300"#)).await;
    assert!(told.problem(400, "bad_command_timeout").contains("more than 0 and at most"));
    api.post("/api/v1/tasks", vec![b'{', 0xff]).await.problem(422, "body_invalid");
    let known = api.get("/api/v1/tasks").await.ok(200);
    assert_eq!(known, json!({"tasks": []}), "nothing of it became a task");

    api.submit(&json!({"device": "d", "request": plan("pwd"), "session_id": "S"})).await;
    api.post("/api/v1/tasks", of(r#","session_id":"S""#)).await.problem(409, "session_in_use");
    let command = device.expect("command").await;
    device.answer_well(&command).await;
    device.expect_end("S", "completed").await;
    device.beat().await;
}

#[tokio::test]
async fn results_are_shown_as_they_came() {
    let server = Server::start().await;
    let (api, mut device) = (Api::of(&server), server.raw_device("d").await);
    let body = format!(
        r#"{{"device":"d","request":{{"commands":[{{"tool_name":"t","parameters":{ODD}}}]}}}}"#
    );
    let task = id(&api.post("/api/v1/tasks", body).await.ok(201));
    let command = device.expect("command").await;
    let result = json!([{"status": "success", "result": "HERE",
        "call_id": command["actions"][0]["call_id"]}]);
    let fields = json!({"session_id": command["session_id"], "action_results": result,
        "prev_response_id": command["response_id"]});
    device.send(device.message("command_results", &fields).replace("\"HERE\"", ODD)).await;
    api.end_of(&task).await;
    let shown = api.get(&format!("/api/v1/tasks/{task}")).await.text;
    assert_eq!(shown.matches(&format!(r#""parameters":{ODD}"#)).count(), 1, "{shown}");
    assert_eq!(shown.matches(&format!(r#""result":{ODD}"#)).count(), 1, "{shown}");
}

#[tokio::test]
async fn results_that_no_task_end_can_carry_are_there_whole() {
    const BYTES: usize = 60 << 20;
    let server = Server::start().await;
    let (api, mut device) = (Api::of(&server), server.raw_device("d").await);
    let task = id(&api.submit(&json!({"device": "d", "request": plan_of(&["a", "b"])})).await);
    for letter in ["a", "b"] {
        let command = device.expect("command").await;
        let result = json!({"status": "success", "result": letter.repeat(BYTES),
            "call_id": command["actions"][0]["call_id"]});
        device.answer(&command, json!([result])).await;
    }
    let end = device.expect("task_end").await;
    let named = json!({"truncated": true, "bytes": BYTES + 2, "task": task});
    assert_eq!(end["result"][0]["result"][0][0]["result"], named);
    let whole = api.end_of(&task).await;
    for (step, letter) in [(0, "a"), (1, "b")] {
        let result = whole["steps"][step]["actions"][0]["result"].as_str().unwrap();
        assert!(result.len() == BYTES && result.starts_with(letter), "{}", result.len());
    }
}

#[tokio::test]
async fn waiting_ends_with_the_task_or_with_the_time() {
    let server = Server::start().await;
    let (api, mut device) = (Api::of(&server), server.raw_device("d").await);
    let task = api.submit_plan("d").await;
    let wait = |query: &str| format!("/api/v1/tasks/{task}/wait{query}");
    for query in ["?timeout_s=0", "?timeout_s=0.01"] {
        let now = api.get(&wait(query)).await.ok(200);
        assert_eq!((&now["state"], &now["id"]), (&json!("running"), &json!(task)), "{query}");
    }
    for query in ["-1", "301", "NaN", "inf", "x", "", "1e999", "1&timeout_s=2", "1&time=2"] {
        let answer = api.get(&wait(&format!("?timeout_s={query}"))).await;
        assert!(!answer.problem(400, "bad_timeout").is_empty(), "{query}");
    }
    let command = device.expect("command").await;
    let working = async {
        device.answer_well(&command).await;
        device.expect("task_end").await
    };
    let waits = [(); 3].map(|()| api.end_of(&task));
    let [one, two, three] = waits;
    let (one, two, three, _) = tokio::join!(one, two, three, working);
    for ended in [one, two, three, api.get(&wait("")).await.ok(200)] {
        assert_eq!(ended["state"], "completed");
        assert_eq!(ended["steps"][0]["actions"][0]["status"], "success");
    }
}

#[tokio::test]
async fn what_is_not_known_cannot_be_waited_for_shown_or_cancelled() {
    let server = Server::start().await;
    let api = Api::of(&server);
    for id in ["nope", "%FF", "%00", "..%2F", "019ab3c4-5d6e-7f80-9a1b-2c3d4e5f6071"] {
        let path = format!("/api/v1/tasks/{id}");
        api.get(&path).await.problem(404, "task_not_found");
        api.get(&format!("{path}/wait")).await.problem(404, "task_not_found");
        api.cancel(id).await.problem(404, "task_not_found");
    }
}
