//! Whole tasks of peers that say exactly what Python ones say, with our server (rule by rule they are in
//! `conformance/`); and our clients with a server that behaves as the Python one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::{Duration, Instant};

use common::process::AT_ONCE;
use common::{
    Home, Peer, Process, PythonServer, Server, good_result, plan, plan_of, unique, within,
};
use serde_json::{Value, json};

/// A Python device and a Galaxy that has declared it as its target.
async fn device_and_galaxy(server: &Server) -> (Peer, Peer) {
    let device = server.raw_device("d").await;
    let mut galaxy = server.peer().await;
    galaxy.register_constellation("g@d", json!("d")).await;
    (device, galaxy)
}

#[tokio::test]
async fn a_python_device_does_a_task_for_galaxy() {
    let server = Server::start().await;
    let (mut device, mut galaxy) = device_and_galaxy(&server).await;
    let request = plan_of(&["pwd", "pwd"]);
    let task = json!({"session_id": "S", "task_name": "my/task name", "target_id": "d",
        "request": request, "request_id": "Q"});
    galaxy.say("task", task).await;
    galaxy.expect_ack("S").await;

    let mut results = Vec::new();
    for _ in 0..2 {
        let command = device.expect("command").await;
        let action = &command["actions"][0];
        assert_eq!(command["actions"].as_array().unwrap().len(), 1);
        assert_eq!(action["tool_name"], "execute_command");
        assert_eq!(action["tool_type"], "action");
        assert_eq!(action["parameters"], json!({"command": "pwd", "timeout": 300}));
        for (key, value) in [
            ("status", "continue"),
            ("agent_name", "LinuxAgent"),
            ("process_name", ""),
            ("root_name", ""),
            ("session_id", "S"),
            ("task_name", "my_task_name"),
        ] {
            assert_eq!(command[key], value, "{key} of {command}");
        }
        device.answer_well(&command).await;
        results.push(vec![good_result(&action["call_id"])]);
    }
    assert_ne!(results[0][0]["call_id"], results[1][0]["call_id"]);

    let end = galaxy.expect_end("S", "completed").await;
    let told = device.expect_end("S", "completed").await;
    assert_eq!(end["response_id"], told["response_id"]);
    for end in [end, told] {
        // Python reads what is missing as null.
        let expected = json!([{"request": request, "result": results}]);
        assert_eq!(without_nulls(&end["result"]), without_nulls(&expected));
    }
    device.beat().await;
    galaxy.beat().await;
    galaxy.close().await;
    device.close().await;
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key.clone(), without_nulls(value)))
            .collect(),
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

#[tokio::test]
async fn what_a_result_holds_passes_through_as_it_is() {
    let server = Server::start().await;
    let (mut device, mut galaxy) = device_and_galaxy(&server).await;
    galaxy.submit("d", &plan("pwd")).await;
    galaxy.expect("heartbeat").await;
    let command = device.expect("command").await;
    let odd = r#"{"z":1,"a":123456789012345678901234567890,"f":1.10,"e":1E400,"z":[],"s":"\u0000\ud83d\ude00é"}"#;
    let marker = json!({"status": "success", "result": "MARKER", "call_id": null});
    let fields = json!({"session_id": command["session_id"], "action_results": [marker],
        "prev_response_id": command["response_id"]});
    let text = device.message("command_results", &fields).replace("\"MARKER\"", odd);
    device.send(text).await;
    let end = galaxy.next_text().await.unwrap();
    assert!(end.contains("\"type\":\"task_end\"") && end.contains(odd), "{end}");
}

#[tokio::test]
async fn who_was_refused_can_come_back_and_a_name_is_free_at_once() {
    let server = Server::start().await;
    let mut device = server.raw_device("d").await;
    let mut twin = server.peer().await;
    twin.say_device("d").await;
    device.alive_while(twin.expect_error()).await;
    device.close().await;
    // The server has seen the close before it answers anybody who comes after it.
    within("the name to be free", async {
        loop {
            let mut again = server.peer().await;
            again.say_device("d").await;
            if again.next().await.unwrap()["type"] == "heartbeat" {
                return again.beat().await;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_device_that_leaves_fails_its_tasks() {
    let server = Server::start().await;
    let (mut device, mut galaxy) = device_and_galaxy(&server).await;
    let mut sessions = Vec::new();
    for _ in 0..2 {
        let session = galaxy.submit("d", &plan("pwd")).await;
        galaxy.expect_ack(&session).await;
        sessions.push(session);
    }
    device.expect("command").await;
    device.close().await;
    let mut ended = Vec::new();
    for _ in &sessions {
        let end = galaxy.expect("task_end").await;
        let error = "Task was cancelled because target device disconnected ('d')";
        assert_eq!((&end["status"], &end["error"]), (&json!("failed"), &json!(error)));
        ended.push(end["session_id"].as_str().unwrap().to_owned());
    }
    ended.sort_unstable();
    assert_eq!(ended, sessions);
    galaxy.beat().await;
}

#[tokio::test]
async fn a_galaxy_that_leaves_frees_its_device_once_that_is_done() {
    let server = Server::start().await;
    let (mut device, mut galaxy) = device_and_galaxy(&server).await;
    let mut next = server.raw_constellation("next").await;
    let session = galaxy.submit("d", &plan("pwd")).await;
    galaxy.expect_ack(&session).await;
    let command = device.expect("command").await;
    let waiting = next.submit("d", &plan("pwd")).await;
    next.expect_ack(&waiting).await;
    galaxy.close().await;

    let end = device.expect_end(&session, "failed").await;
    assert_eq!(end["error"], "Task was cancelled due to client disconnection");
    // A Python device finishes its command first, and nobody else's comes in between.
    device.beat().await;
    device.answer_well(&command).await;
    let late = device.expect("error").await;
    assert_eq!(late["session_id"], json!(session), "{late}");
    let command = device.expect("command").await;
    assert_eq!(command["session_id"], json!(waiting));
    device.answer_well(&command).await;
    next.expect_end(&waiting, "completed").await;
}

#[tokio::test]
async fn a_server_that_stops_ends_every_task_and_then_says_goodbye() {
    for _ in 0..8 {
        let server = Server::start_with(&["--shutdown-grace", "0.1"]).await;
        let (mut device, mut galaxy) = device_and_galaxy(&server).await;
        let mut sessions = Vec::new();
        for _ in 0..2 {
            let session = galaxy.submit("d", &plan("pwd")).await;
            galaxy.expect_ack(&session).await;
            sessions.push(session);
        }
        device.expect("command").await;
        server.process.signal(rustix::process::Signal::TERM);
        for peer in [&mut galaxy, &mut device] {
            // The one that waits ends at once, the one that runs after its grace.
            for session in sessions.iter().rev() {
                let end = peer.expect_end(session, "failed").await;
                assert!(end["error"].as_str().unwrap().contains("shutting down"), "{end}");
            }
            assert_eq!(peer.expect_close().await.0, 1001);
        }
    }
}

/// Servers that give up on a device soon, and what they say then.
const IMPATIENT: [([&str; 2], &str); 2] = [
    (["--command-timeout", "0.3"], "timed out"),
    (["--session-timeout", "0.3"], "did not end within"),
];

/// A device takes a command and never answers it; its task fails all the same. Meanwhile it says
/// something else, or nothing at all.
async fn a_command_is_never_answered(limit: [&str; 2], error: &str, is_silent: bool) {
    let server = Server::start_with(&[&limit[..], &["--stop-grace", "0.3"]].concat()).await;
    let (mut device, mut galaxy) = device_and_galaxy(&server).await;
    let living = async {
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if !is_silent {
                device.say("heartbeat", json!({})).await;
            }
        }
    };
    let working = async {
        // The second one gets the place of the first once its grace is over.
        for _ in 0..2 {
            let session = galaxy.submit("d", &plan("pwd")).await;
            galaxy.expect_ack(&session).await;
            let end = galaxy.expect_end(&session, "failed").await;
            assert!(end["error"].as_str().unwrap().contains(error), "{limit:?}: {end}");
            let result = &end["result"][0]["result"][0][0];
            assert!(result.is_null() || result["error"].as_str().unwrap().contains("unknown"));
        }
    };
    tokio::select! {
        () = working => {}
        () = living => {}
    }
}

#[tokio::test]
async fn a_command_that_is_never_answered_fails_its_task() {
    for (limit, error) in IMPATIENT {
        a_command_is_never_answered(limit, error, false).await;
    }
}

#[tokio::test]
async fn a_device_that_says_nothing_at_all_fails_its_task() {
    for (limit, error) in IMPATIENT {
        a_command_is_never_answered(limit, error, true).await;
    }
}

#[tokio::test]
async fn results_that_nobody_waits_for_are_told_so_and_change_nothing() {
    let server = Server::start().await;
    let (mut device, mut galaxy) = device_and_galaxy(&server).await;
    let mut other = server.raw_device("e").await;
    let session = galaxy.submit("d", &plan("pwd")).await;
    galaxy.expect_ack(&session).await;
    let command = device.expect("command").await;
    let real = (&command["session_id"], &command["response_id"]);
    for (is_executor, (session_id, response_id)) in [
        (true, (&json!("nope"), &json!("nope"))),
        (true, (&json!("nope"), real.1)),
        (true, (real.0, &json!("nope"))),
        (true, (real.0, &Value::Null)),
        (true, (&Value::Null, real.1)),
        (false, real),
    ] {
        let sender = if is_executor { &mut device } else { &mut other };
        let fields = json!({"session_id": session_id, "prev_response_id": response_id,
            "action_results": [{"status": "success", "result": "forged"}]});
        sender.say("command_results", fields).await;
        let told = sender.expect("error").await;
        assert_eq!(&told["session_id"], session_id, "{told}");
    }
    let called = &command["actions"][0]["call_id"];
    device.answer(&command, json!([good_result(called)])).await;
    let end = galaxy.expect_end(&session, "completed").await;
    assert_eq!(end["result"][0]["result"][0][0]["result"]["stdout"], "ok");
    device.expect("task_end").await;
    device.answer_well(&command).await;
    assert_eq!(device.expect("error").await["session_id"], json!(session), "a second answer");
    galaxy.beat().await;
}

#[tokio::test]
async fn a_failed_command_fails_its_plan_and_says_what_it_was() {
    let server = Server::start().await;
    let (mut device, mut galaxy) = device_and_galaxy(&server).await;
    let failure = json!([{"status": "failure", "error": "e1", "result": "bad"}]);
    let skipped = json!([{"status": "skipped", "error": "Skipped due to previous failure (early_exit=True)."}]);
    for (results, error) in [
        (failure.clone(), "Step 1 failed: execute_command: e1"),
        (
            skipped,
            "Step 1 failed: execute_command: Skipped due to previous failure (early_exit=True).",
        ),
        (json!([]), "Step 1 failed: execute_command: no result"),
        (Value::Null, "Step 1 failed: execute_command: no result"),
    ] {
        let session = galaxy.submit("d", &plan_of(&["a", "b"])).await;
        galaxy.expect_ack(&session).await;
        let command = device.expect("command").await;
        device.answer(&command, results).await;
        let end = galaxy.expect_end(&session, "failed").await;
        assert_eq!(end["error"], error);
        let steps = end["result"][0]["result"].as_array().unwrap();
        assert_eq!(steps.len(), 1, "as far as it came: {end}");
        device.expect_end(&session, "failed").await;
    }

    let mut keep_going: Value = serde_json::from_str(&plan_of(&["a", "b"])).unwrap();
    keep_going["keep_going"] = json!(true);
    let session = galaxy.submit("d", &keep_going.to_string()).await;
    galaxy.expect_ack(&session).await;
    let first = device.expect("command").await;
    device.answer(&first, failure).await;
    let second = device.expect("command").await;
    device.answer_well(&second).await;
    let end = galaxy.expect_end(&session, "completed").await;
    let statuses = [0, 1].map(|n| &end["result"][0]["result"][n][0]["status"]);
    assert_eq!(statuses, ["failure", "success"]);
}

#[tokio::test]
async fn two_tasks_on_one_device_run_one_after_the_other() {
    let server = Server::start().await;
    let (mut device, mut galaxy) = device_and_galaxy(&server).await;
    let mut other = server.raw_constellation("other").await;
    let first = galaxy.submit("d", &plan_of(&["a", "b"])).await;
    galaxy.expect_ack(&first).await;
    let second = other.submit("d", &plan_of(&["a", "b"])).await;
    other.expect_ack(&second).await;
    for (session, requester) in [(&first, &mut galaxy), (&second, &mut other)] {
        for _ in 0..2 {
            let command = device.expect("command").await;
            assert_eq!(command["session_id"], json!(session));
            device.beat().await;
            device.answer_well(&command).await;
        }
        requester.expect_end(session, "completed").await;
        device.expect_end(session, "completed").await;
    }
}

/// A real device that is connected to a Python server.
async fn our_device(python: &PythonServer, home: &Home, args: &[&str]) -> (Process, Peer, Value) {
    let all = [&["device", "--id", "d", "--exec", "shell"], args].concat();
    let device = Process::start(home.command(&all).env("FLIGHTDECK_SERVER", python.url()));
    let (link, register) = python.accept().await;
    (device, link, register)
}

/// What a Python server sends for a device to do.
fn command(actions: &Value) -> Value {
    json!({"agent_name": "LinuxAgent", "process_name": "", "root_name": "", "actions": actions,
        "session_id": "S", "task_name": "t", "response_id": unique("R")})
}

#[tokio::test]
async fn our_device_registers_with_a_python_server_and_lists_its_tools() {
    let (python, home) = (PythonServer::start().await, Home::new());
    let (_device, mut link, register) = our_device(&python, &home, &[]).await;
    assert_eq!((&register["client_type"], &register["client_id"]), (&json!("device"), &json!("d")));
    assert_eq!(
        (&register["status"], &register["metadata"]["platform"]),
        (&json!("ok"), &json!("linux"))
    );
    let facts = &register["metadata"]["system_info"];
    for (key, is_right) in [
        ("device_id", facts["device_id"] == "d"),
        ("platform", facts["platform"] == "linux"),
        ("cpu_count", facts["cpu_count"].as_u64() > Some(0)),
        ("memory_total_gb", facts["memory_total_gb"].as_f64() > Some(0.0)),
        ("hostname", facts["hostname"].is_string()),
        ("supported_features", facts["supported_features"].is_array()),
        ("schema_version", facts["schema_version"] == "1.0"),
        ("custom_metadata", facts["custom_metadata"].is_object()),
    ] {
        assert!(is_right, "{key} in {facts}");
    }

    let list = json!([{"tool_name": "list_tools", "parameters": {"tool_type": "action"},
        "tool_type": "action", "call_id": "C"}]);
    let asked = command(&list);
    link.say_as_server("command", "continue", asked.clone()).await;
    let answer = link.expect("command_results").await;
    assert_eq!(answer["prev_response_id"], asked["response_id"]);
    assert_eq!((&answer["session_id"], &answer["status"]), (&json!("S"), &json!("continue")));
    let result = &answer["action_results"][0];
    assert_eq!((&result["status"], &result["call_id"]), (&json!("success"), &json!("C")));
    let tools = result["result"].as_array().unwrap();
    let shell = tools.iter().find(|tool| tool["tool_name"] == "execute_command").unwrap();
    assert_eq!(shell["tool_key"], "action::execute_command");
    assert_eq!(
        (&shell["tool_type"], &shell["namespace"]),
        (&json!("action"), &json!("BashExecutor"))
    );
    assert_eq!(shell["input_schema"]["type"], "object");
}

#[tokio::test]
async fn our_device_answers_every_command_of_a_python_server() {
    let (python, home) = (PythonServer::start().await, Home::new());
    let (_device, mut link, _) = our_device(&python, &home, &[]).await;
    let action = |tool: &str, parameters: Value, call_id: &str| json!({"tool_name": tool, "parameters": parameters, "tool_type": "action", "call_id": call_id});
    let run = |line: &str, call_id: &str| {
        action("execute_command", json!({"command": line, "api_key": "mcpkey"}), call_id)
    };
    for (actions, expected) in [
        (json!([run("echo a", "1"), run("exit 3", "2")]), json!(["success", "success"])),
        (
            json!([action("teleport", json!({}), "1"), run("pwd", "2")]),
            json!(["failure", "skipped"]),
        ),
        (json!([action("execute_command", json!({}), "1")]), json!(["failure"])),
        (json!([action("execute_command", Value::Null, "1")]), json!(["failure"])),
        (json!([action("", Value::Null, "1"), run("pwd", "2")]), json!(["success", "success"])),
        (json!([]), json!([])),
        (Value::Null, json!([])),
    ] {
        let asked = command(&actions);
        link.say_as_server("command", "continue", asked.clone()).await;
        let answer = link.expect("command_results").await;
        assert_eq!(answer["prev_response_id"], asked["response_id"]);
        let results = answer["action_results"].as_array().unwrap();
        let said = |key: &str| results.iter().map(|result| result[key].clone()).collect::<Vec<_>>();
        assert_eq!(json!(said("status")), expected, "{actions}");
        let asked_calls = actions.as_array().into_iter().flatten().map(|a| a["call_id"].clone());
        assert_eq!(said("call_id"), asked_calls.collect::<Vec<_>>());
        for result in results.iter().filter(|result| result["status"] == "failure") {
            assert!(!result["error"].as_str().unwrap().is_empty(), "{result}");
        }
        if actions[1]["parameters"]["command"] == "exit 3" {
            let ran = |code, stdout| json!({"success": code == 0, "exit_code": code, "stdout": stdout, "stderr": ""});
            assert_eq!(said("result"), [ran(0, "a\n"), ran(3, "")]);
            assert_eq!(said("namespace"), ["BashExecutor", "BashExecutor"]);
        }
    }
    // What it cannot read it reports, and stays.
    link.send("{not json").await;
    let report = link.expect("error").await;
    assert_eq!((&report["status"], &report["client_id"]), (&json!("error"), &json!("d")));
    link.say_as_server("command", "completed", command(&json!([run("echo last", "1")]))).await;
    assert_eq!(link.expect("command_results").await["status"], "completed");
}

#[tokio::test]
async fn our_device_takes_the_task_that_a_python_server_pushes() {
    let (python, home) = (PythonServer::start().await, Home::new());
    let (mut device, mut link, _) = our_device(&python, &home, &[]).await;
    let pushed =
        json!({"user_request": "run 2", "task_name": "selftask", "session_id": "dispatch"});
    for round in 1..3 {
        link.say_as_server("task", "continue", pushed.clone()).await;
        let task = link.expect("task").await;
        assert_eq!((&task["request"], &task["task_name"]), (&json!("run 2"), &json!("selftask")));
        assert_eq!((&task["client_id"], &task["client_type"]), (&json!("d"), &json!("device")));
        assert!(task["request_id"].is_string());
        link.say_as_server("heartbeat", "ok", json!({"session_id": "own"})).await;

        link.say_as_server("task", "continue", pushed.clone()).await;
        let refused = link.expect("error").await;
        assert!(refused["error"].as_str().unwrap().contains("running already"), "{refused}");

        let run = json!([{"tool_name": "execute_command", "parameters": {"command": "echo hi"},
            "tool_type": "action", "call_id": "C"}]);
        link.say_as_server("command", "continue", command(&run)).await;
        link.expect("command_results").await;
        let end = json!({"session_id": "own", "result": [{"request": "run 2", "result": []}]});
        link.say_as_server("task_end", "completed", end).await;
        device.says_times("task completed", round).await;
    }
}

#[tokio::test]
async fn our_device_comes_back_to_a_python_server_that_hung_up() {
    let (python, home) = (PythonServer::start().await, Home::new());
    let (mut device, link, _) = our_device(&python, &home, &[]).await;
    device.says("connected to").await;
    // As Python does when it ends: without a close frame.
    drop(link);
    let (mut link, _) = python.accept().await;
    device.says_times("connected to", 2).await;
    link.say_as_server("device_info_request", "ok", json!({"response_id": "I"})).await;
    let facts = link.expect("device_info_response").await;
    assert_eq!(facts["metadata"]["device_id"], "d");
}

#[tokio::test]
async fn exec_says_that_a_python_server_takes_no_plans() {
    let (python, home) = (PythonServer::start().await, Home::new());
    let args = ["exec", "--on", "d", "--", "uname"];
    let exec = Process::start(home.command(&args).env("FLIGHTDECK_SERVER", python.url()));
    let (_link, register) = python.accept().await;
    assert_eq!(register["client_type"], "constellation");
    let done = exec.done().await;
    assert!(done.code == 123 && done.stderr.contains("takes no plans"), "{done:?}");
    assert!(done.stderr.contains("flightdeck run"), "{done:?}");
}

#[tokio::test]
async fn run_works_with_a_python_server() {
    let (python, home) = (PythonServer::start().await, Home::new());
    // What it answers: an end, or, for a refused task, an ERROR that names no session.
    let result = json!([{"request": "tidy up", "result": "tidy"}]);
    for (kind, status, fields, code, stdout, stderr) in [
        ("task_end", "completed", json!({"result": result}), 0, "tidy\n", "completed"),
        ("task_end", "failed", json!({"result": [], "error": "boom"}), 1, "", "boom"),
        (
            "error",
            "error",
            json!({"error": "Target device 'd' is not connected"}),
            4,
            "",
            "not connected",
        ),
    ] {
        let args = ["run", "--on", "d", "--task-name", "n", "tidy up"];
        let run = Process::start(home.command(&args).env("FLIGHTDECK_SERVER", python.url()));
        let (mut link, _) = python.accept().await;
        let task = link.expect("task").await;
        assert_eq!((&task["request"], &task["task_name"]), (&json!("tidy up"), &json!("n")));
        assert_eq!((&task["target_id"], &task["status"]), (&json!("d"), &json!("continue")));
        let mut fields = fields;
        if kind == "task_end" {
            let session = &task["session_id"];
            link.say_as_server("heartbeat", "ok", json!({"session_id": session})).await;
            fields["session_id"] = session.clone();
        }
        link.say_as_server(kind, status, fields).await;
        // It hangs up once the goodbye was said.
        let goodbye = async move { link.expect_close().await };
        let (done, (closed, _)) = tokio::join!(run.done(), goodbye);
        assert_eq!(
            (done.code, done.stdout.as_str(), closed),
            (code, stdout, 1000),
            "{}",
            done.stderr
        );
        assert!(done.stderr.contains(stderr), "{}", done.stderr);
    }
}

#[tokio::test]
async fn the_outcome_is_shown_at_once_also_when_the_server_never_says_goodbye() {
    let (python, home) = (PythonServer::start().await, Home::new());
    let args = ["run", "--on", "d", "tidy up"];
    let mut run = Process::start(home.command(&args).env("FLIGHTDECK_SERVER", python.url()));
    let (mut link, _) = python.accept().await;
    let task = link.expect("task").await;
    let end = json!({"session_id": task["session_id"], "result": []});
    link.say_as_server("task_end", "completed", end).await;
    let ended = Instant::now();
    run.says("completed").await;
    assert!(ended.elapsed() < AT_ONCE, "{:?}", ended.elapsed());
}
