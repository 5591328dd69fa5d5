//! UFO's HTTP routes.

use serde_json::{Value, json};

use crate::common::{plan, plan_of};
use crate::row::*;

pub(crate) fn group() -> Group {
    let rows = [keys(), clients(), dispatch(), refusals(), outcomes(), routes()];
    Group { title: "HTTP", rows: rows.into_iter().flatten().collect() }
}

/// Every route with these headers: refused for its key.
fn refused(headers: &[(&'static str, &'static str)]) -> Vec<Step> {
    let routes = [
        ("GET", "/api/clients", None),
        ("GET", "/api/health", None),
        ("GET", "/api/task_result/x", None),
        ("POST", "/api/dispatch", Some(r#"{"request": "r"}"#)),
    ];
    let invalid = exactly(json!({"detail": "Invalid API key"}));
    let steps = routes
        .into_iter()
        .map(|(method, path, body)| http(method, path, headers, body, 401, invalid.clone()));
    steps.collect()
}

fn keys() -> Vec<Row> {
    vec![
        same(
            "A wrong or empty `X-API-Key` is answered with 401",
            [refused(&[("X-API-Key", "wrong")]), refused(&[("X-API-Key", "")])].concat(),
        )
        .golden(&["http"]),
        ours(
            "A missing key is answered with 401",
            "UFO answers 422, which names the header",
            refused(&[]),
        )
        .golden(&["http"]),
        ours(
            "A key that is not ASCII is answered with 401",
            "UFO answers 500",
            refused(&[("X-API-Key", "kéy")]),
        )
        .golden(&["http"]),
        ours(
            "The key may come as `Authorization: Bearer`",
            "it is how most programs send one",
            [http(
                "GET",
                "/api/health",
                &[("Authorization", "Bearer $KEY")],
                None,
                200,
                json!({"status": "healthy"}),
            )],
        ),
    ]
}

fn clients() -> Vec<Row> {
    let online = |ids: Value| exactly(json!({"online_clients": ids}));
    vec![
        same(
            "`GET /api/clients` lists who is connected, device or not",
            [
                get("/api/clients", 200, online(json!([]))),
                device("d"),
                get("/api/clients", 200, online(json!(["$d"]))),
                constellation("g"),
                get(
                    "/api/clients",
                    200,
                    json!({"online_clients": in_any_order(json!(["$d", "$g"]))}),
                ),
                hang_up("d"),
                get("/api/clients", 200, online(json!(["$g"]))),
            ],
        )
        .flags(&[])
        .golden(&["http"]),
        same(
            "`GET /api/health` says `healthy`, and who is connected",
            [
                device("d"),
                get(
                    "/api/health",
                    200,
                    exactly(json!({"status": "healthy", "online_clients": ["$d"]})),
                ),
            ],
        )
        .flags(&[])
        .golden(&["http"]),
    ]
}

fn dispatched(body: &Value, name: impl Into<Value>, session: &str) -> Step {
    let answer = json!({"status": "dispatched", "client_id": "$d", "session_id": session,
        "task_name": name.into()});
    post("/api/dispatch", body, 200, answer)
}

fn dispatch() -> Vec<Row> {
    let request = plan("pwd");
    let task = json!({"client_id": "$d", "request": request, "task_name": "my.task-1"});
    vec![
        ours(
            "`POST /api/dispatch` starts the session that it names in its answer",
            "UFO pushes a TASK, which the device submits again under another id",
            [
                device("d"),
                dispatched(&task, "my.task-1", "$S"),
                hear(
                    "d",
                    "command",
                    json!({"session_id": "$S", "task_name": "my.task-1",
                    "agent_name": "LinuxAgent", "response_id": "$R",
                    "actions": [{"tool_name": "execute_command", "call_id": "$R_call"}]}),
                ),
                works("d", "$S", "$R"),
                end("d", "$S", "completed"),
            ],
        )
        .golden(&["dispatch_push", "real_device_self_task_dispatch", "http"]),
        same(
            "A dispatch without a `task_name` gets one",
            [
                device("d"),
                dispatched(&json!({"client_id": "$d", "request": request}), "$name", "$S"),
                hear(
                    "d",
                    "command",
                    json!({"session_id": "$S", "task_name": "$name",
                    "response_id": "$R", "actions": [{"call_id": "$R_call"}]}),
                ),
                works("d", "$S", "$R"),
                end("d", "$S", "completed"),
            ],
        )
        .golden(&["dispatch_push", "http"]),
        ours(
            "A dispatched task takes its turn like any other",
            "a desktop has one pair of hands",
            then(
                a_running_task(),
                [dispatched(&task, "my.task-1", "$S2"), silence("d")]
                    .into_iter()
                    .chain(it_completes())
                    .chain([
                        command("d", "$S2", "$R2"),
                        works("d", "$S2", "$R2"),
                        end("d", "$S2", "completed"),
                    ]),
            ),
        ),
    ]
}

/// A dispatch that is refused with this text.
fn refusal(body: &Value, status: u16, detail: &str) -> Step {
    post("/api/dispatch", body, status, exactly(json!({"detail": detail})))
}

fn refusals() -> Vec<Row> {
    const NAME: &str = "Invalid task_name: must be a non-empty string of characters [A-Za-z0-9._-] and must not start with '.'";
    let named = |name: Value| json!({"client_id": "$d", "request": plan("pwd"), "task_name": name});
    let malformed =
        |body: Option<&str>| http("POST", "/api/dispatch", &[KEY], body, 422, json!({}));
    vec![
        same(
            "A dispatch to nobody is 404",
            [refusal(
                &json!({"client_id": "$nobody", "request": "run 1"}),
                404,
                "Client not online",
            )],
        )
        .golden(&["http"]),
        same(
            "A dispatch needs a request and a client",
            [
                device("d"),
                refusal(&json!({"client_id": "$d", "request": ""}), 400, "Empty task content"),
                refusal(&json!({"client_id": "$d"}), 400, "Empty task content"),
                refusal(&json!({}), 400, "Empty task content"),
                refusal(&json!({"request": "run 1"}), 400, "Empty client ID"),
                refusal(&json!({"client_id": "", "request": "run 1"}), 400, "Empty client ID"),
            ],
        )
        .golden(&["http"]),
        same(
            "A `task_name` that is no safe name is refused",
            then(
                vec![device("d")],
                ["../x", "a/b", "", ".hid", "a b", "ä"]
                    .into_iter()
                    .map(|name| refusal(&named(json!(name)), 400, NAME)),
            ),
        )
        .golden(&["http"]),
        same(
            "A `task_name` that is no text is refused in the same words",
            [
                device("d"),
                refusal(&named(json!(5)), 400, NAME),
                refusal(&named(Value::Null), 400, NAME),
            ],
        )
        .golden(&["http"]),
        ours(
            "A dispatch to a constellation is 400",
            "UFO pushes the task at it",
            [
                constellation("g"),
                post(
                    "/api/dispatch",
                    &json!({"client_id": "$g", "request": plan("pwd")}),
                    400,
                    json!({"detail": some_text()}),
                ),
                silence("g"),
            ],
        )
        .golden(&["http"]),
        ours(
            "A request or a client that is no text is 422",
            "UFO answers 500",
            [
                device("d"),
                post("/api/dispatch", &json!({"client_id": "$d", "request": 5}), 422, json!({})),
                post("/api/dispatch", &json!({"client_id": 5, "request": "r"}), 422, json!({})),
                silence("d"),
            ],
        )
        .golden(&["http"]),
        same(
            "A body that is missing, broken or no object is 422",
            [malformed(Some("[1]")), malformed(Some("{oops")), malformed(None)],
        )
        .golden(&["http"]),
    ]
}

fn outcomes() -> Vec<Row> {
    let result_of = |request: &str, steps: Value| json!({"status": "done", "result": exactly(json!([{"request": request, "result": steps}]))});
    let pending = || exactly(json!({"status": "pending"}));
    let task = |session: &str, request: &str| {
        say(
            "g",
            "task",
            json!({"session_id": session, "task_name": "$name", "target_id": "$d",
            "request": request}),
        )
    };
    let bad = json!({"status": "failure", "error": "e1", "call_id": "$R2_call"});
    let (good_plan, bad_plan) = (plan("pwd"), plan_of(&["a", "b"]));
    vec![
        same(
            "The result of a task that nobody knows is `pending`",
            [get("/api/task_result/$never", 200, pending())],
        )
        .golden(&["http"]),
        ours(
            "The result of a task is `pending` while it runs and `done` with its result afterwards",
            "by its version, UFO freezes and answers nobody any more, or says `pending` for ever",
            [
                device("d"),
                galaxy("g", "$d"),
                task("$S", &good_plan),
                ack("g", "$S"),
                command("d", "$S", "$R"),
                get("/api/task_result/$name", 200, pending()),
                works("d", "$S", "$R"),
                end("g", "$S", "completed"),
                end("d", "$S", "completed"),
                get("/api/task_result/$name", 200, result_of(&good_plan, json!([[good("$R")]]))),
                get("/api/health", 200, json!({"status": "healthy"})),
            ],
        )
        .golden(&["http"]),
        ours(
            "A failed task is `done` too, with what there is; the newest task of a name counts",
            "by its version, UFO freezes and answers nobody any more, or says `pending` for ever",
            [
                device("d"),
                galaxy("g", "$d"),
                task("$S", &good_plan),
                ack("g", "$S"),
                command("d", "$S", "$R"),
                works("d", "$S", "$R"),
                end("g", "$S", "completed"),
                end("d", "$S", "completed"),
                task("$S2", &bad_plan),
                ack("g", "$S2"),
                command("d", "$S2", "$R2"),
                get("/api/task_result/$name", 200, pending()),
                results("d", "$S2", "$R2", json!([bad])),
                end("g", "$S2", "failed"),
                end("d", "$S2", "failed"),
                get("/api/task_result/$name", 200, result_of(&bad_plan, json!([[bad]]))),
            ],
        ),
        ours(
            "A dispatched task has its result under its name",
            "by its version, UFO freezes and answers nobody any more, or says `pending` for ever",
            [
                device("d"),
                dispatched(&json!({"client_id": "$d", "request": good_plan}), "$name", "$S"),
                command("d", "$S", "$R"),
                works("d", "$S", "$R"),
                end("d", "$S", "completed"),
                get("/api/task_result/$name", 200, result_of(&good_plan, json!([[good("$R")]]))),
            ],
        )
        .golden(&["http"]),
    ]
}

fn routes() -> Vec<Row> {
    vec![
        same(
            "The wrong method is 405",
            [
                get("/api/dispatch", 405, exactly(json!({"detail": "Method Not Allowed"}))),
                post(
                    "/api/clients",
                    &json!({}),
                    405,
                    exactly(json!({"detail": "Method Not Allowed"})),
                ),
            ],
        )
        .golden(&["http"]),
        same(
            "What there is not is 404",
            [get("/nope", 404, exactly(json!({"detail": "Not Found"})))],
        )
        .golden(&["http"]),
    ]
}
