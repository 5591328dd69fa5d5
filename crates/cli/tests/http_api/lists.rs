//! Lists of tasks: which ones, in which order, page by page.

use serde_json::{Value, json};

use crate::client::{Api, id};
use crate::common::Server;

fn ids(page: &Value) -> Vec<String> {
    page["tasks"].as_array().unwrap().iter().map(id).collect()
}

async fn list(api: &Api, query: &str) -> Vec<String> {
    ids(&api.get(&format!("/api/v1/tasks?{query}")).await.ok(200))
}

#[tokio::test]
async fn a_list_is_filtered_by_state_device_and_name() {
    let server = Server::start().await;
    let api = Api::of(&server);
    let (mut one, _two) = (server.raw_device("one").await, server.raw_device("two").await);
    let submit = async |device: &str, name: &str| {
        id(&api
            .submit(&json!({"device": device, "request": "{\"commands\":[{\"tool_name\":\"t\"}]}",
            "task_name": name}))
            .await)
    };
    let completed = submit("one", "a").await;
    let command = one.expect("command").await;
    one.answer_well(&command).await;
    api.end_of(&completed).await;
    let failed = id(&api.submit(&json!({"device": "one", "request": "?", "task_name": "b"})).await);
    api.end_of(&failed).await;
    let cancelled = submit("one", "a").await;
    api.cancel(&cancelled).await.ok(202);
    api.end_of(&cancelled).await;
    let running = submit("two", "a").await;
    let queued = submit("two", "b").await;

    let all = [&queued, &running, &cancelled, &failed, &completed];
    for (query, expected) in [
        ("", &all[..]),
        ("state=queued", &[&queued]),
        ("state=running", &[&running]),
        ("state=cancelled", &[&cancelled]),
        ("state=failed", &[&failed]),
        ("state=completed", &[&completed]),
        ("device=one", &all[2..]),
        ("device=two", &all[..2]),
        ("device=nobody", &[]),
        ("task_name=a", &[&running, &cancelled, &completed]),
        ("task_name=a&device=one&state=completed", &[&completed]),
        ("limit=2", &all[..2]),
        (&format!("before={cancelled}"), &all[3..]),
        (&format!("before={cancelled}&limit=1"), &all[3..4]),
        (&format!("before={completed}"), &[]),
    ] {
        assert_eq!(list(&api, query).await.iter().collect::<Vec<_>>(), expected, "{query}");
    }
    for query in [
        "limit=0",
        "limit=501",
        "limit=-1",
        "limit=x",
        "limit=1&limit=2",
        "state=done",
        "state=",
        "device=",
        "before=x",
        "color=red",
    ] {
        let answer = api.get(&format!("/api/v1/tasks?{query}")).await;
        assert!(!answer.problem(400, "bad_filter").is_empty(), "{query}");
    }
}

#[tokio::test]
async fn pages_have_neither_gaps_nor_repeats_while_new_tasks_come() {
    const TASKS: usize = 47;
    let server = Server::start().await;
    let api = Api::of(&server);
    let _devices = (server.raw_device("d").await, server.raw_device("other").await);
    let mut expected = Vec::new();
    for _ in 0..TASKS {
        expected.insert(0, api.submit_plan("d").await);
        api.submit_plan("other").await;
    }
    // Of a filter by state the server has to look at tasks that it does not show.
    for (filter, skipped) in [("device=d", 0), ("device=d&state=queued", 1)] {
        let expected = &expected[..TASKS - skipped];
        let (mut found, mut next) = (Vec::new(), String::new());
        loop {
            let path = format!("/api/v1/tasks?{filter}&limit=10{next}");
            let page = api.get(&path).await.ok(200);
            assert!(page["tasks"].as_array().unwrap().len() <= 10);
            found.extend(ids(&page));
            api.submit_plan("d").await;
            let Some(last) = page["next"].as_str() else { break };
            next = format!("&before={last}");
        }
        let newest = found.iter().position(|id| *id == expected[0]).unwrap();
        assert_eq!(found[newest..], *expected, "{filter}");
    }
}

#[tokio::test]
async fn so_many_ended_tasks_are_remembered_and_large_results_go_first() {
    let limits =
        ["--memory", "--history-tasks", "3", "--history-bytes", "100000", "--unfetched-bytes", "0"];
    let server = Server::start_with(&limits).await;
    let (api, mut device) = (Api::of(&server), server.raw_device("d").await);
    let mut tasks = Vec::new();
    for bytes in [1, 200_000, 1, 1, 1] {
        let task = api.submit_plan("d").await;
        let command = device.expect("command").await;
        let result = json!({"status": "success", "result": "x".repeat(bytes),
            "call_id": command["actions"][0]["call_id"]});
        device.answer(&command, json!([result])).await;
        device.expect("task_end").await;
        let ended = api.end_of(&task).await;
        let result = &ended["steps"][0]["actions"][0]["result"];
        let cut = json!({"truncated": true, "bytes": 200_002, "task": task});
        assert_eq!(*result, if bytes == 1 { json!("x") } else { cut });
        assert_eq!(ended["state"], "completed");
        tasks.insert(0, task);
        assert_eq!(list(&api, "").await, tasks[..tasks.len().min(3)]);
    }
    let forgotten = format!("/api/v1/tasks/{}", tasks[3]);
    api.get(&forgotten).await.problem(404, "task_not_found");
}
