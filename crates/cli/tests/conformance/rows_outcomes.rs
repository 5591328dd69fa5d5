//! How a task ends, by itself or at a limit, and whose turn it is on a device.

use serde_json::{Value, json};

use crate::common::plan_of;
use crate::row::*;

pub(crate) fn group() -> Group {
    let rows = [ends(), limits(), turns()];
    Group { title: "Outcomes and turns", rows: rows.into_iter().flatten().collect() }
}

/// A plan of two commands, the second one of which fails or does not come to it.
fn two_commands(keep_going: bool) -> String {
    let mut plan: Value = serde_json::from_str(&plan_of(&["a", "b"])).unwrap();
    plan["keep_going"] = json!(keep_going);
    plan.to_string()
}

fn ends() -> Vec<Row> {
    let bad = |command: &str| json!({"status": "failure", "error": "e1", "result": "bad", "call_id": format!("{command}_call")});
    let begun = |keep_going: bool| {
        then(
            vec![device("d")],
            task_of(
                two_commands(keep_going),
                json!({"session_id": "$S", "response_id": "$R", "actions": [{"call_id": "$R_call"}]}),
            ),
        )
    };
    let outcome = |status: &str, error: Value, steps: Value| {
        let result =
            exactly(json!([{"request": two_commands(status == "completed"), "result": steps}]));
        hear(
            "g",
            "task_end",
            json!({"session_id": "$S", "status": status, "error": error, "result": result}),
        )
    };
    let unfit = |request: &str, error: &str| {
        [
            device("d"),
            galaxy("g", "$d"),
            say("g", "task", json!({"session_id": "$S", "target_id": "$d", "request": request})),
            ack("g", "$S"),
            hear(
                "g",
                "task_end",
                json!({"session_id": "$S", "status": "failed",
                "error": contains(error), "response_id": "$E",
                "result": exactly(json!([{"request": request, "result": []}]))}),
            ),
            hear(
                "d",
                "task_end",
                json!({"session_id": "$S", "status": "failed", "response_id": "$E"}),
            ),
        ]
    };
    vec![
        ours(
            "A plan whose command failed is `failed`, says where, and holds what there is",
            "UFO says `completed`; a plan with `keep_going` completes here too",
            then(
                begun(false),
                [
                    results("d", "$S", "$R", json!([bad("$R")])),
                    outcome(
                        "failed",
                        json!("Step 1 failed: execute_command: e1"),
                        json!([[bad("$R")]]),
                    ),
                    end("d", "$S", "failed"),
                ],
            ),
        )
        .golden(&["task_command_failure_results"]),
        same(
            "A plan with `keep_going` runs on after a failure and completes",
            then(
                begun(true),
                [
                    results("d", "$S", "$R", json!([bad("$R")])),
                    command("d", "$S", "$R2"),
                    works("d", "$S", "$R2"),
                    outcome("completed", Value::Null, json!([[bad("$R")], [good("$R2")]])),
                    end("d", "$S", "completed"),
                ],
            ),
        )
        .golden(&["task_command_failure_results"]),
        ours(
            "A task that fails late holds the results of all its steps, and an `error` text",
            "UFO sends the results without a word about what failed",
            then(
                begun(false),
                [
                    works("d", "$S", "$R"),
                    command("d", "$S", "$R2"),
                    results("d", "$S", "$R2", json!([bad("$R2")])),
                    outcome(
                        "failed",
                        json!("Step 2 failed: execute_command: e1"),
                        json!([[good("$R")], [bad("$R2")]]),
                    ),
                    end("d", "$S", "failed"),
                ],
            ),
        )
        .golden(&["task_fail"]),
        ours(
            "A task that fails before its first step has an `error` and an empty list of steps",
            "UFO sends `{\"failure\": \"session ended with an error\"}` as the result",
            unfit(r#"{"commands":[]}"#, "no commands"),
        )
        .golden(&["task_fail_empty"]),
        ours(
            "A task that the agent cannot do fails at once and says why, with the usual result",
            "UFO's result is then an empty list, without the request",
            unfit("tidy up", "model"),
        )
        .golden(&["task_raise"]),
    ]
}

fn limits() -> Vec<Row> {
    let timed_out = |error: &str| {
        then(
            a_running_task(),
            [
                failed("g", "$S", contains(error)),
                failed("d", "$S", contains(error)),
                works("d", "$S", "$R"),
                hear_error_about("d", "$S", some_text()),
                silence("g"),
            ],
        )
    };
    vec![
        ours(
            "A command without an answer in time fails its task, and the device is told to stop",
            "UFO's server waits 6000 s",
            timed_out("timed out"),
        )
        .flags(&["--command-timeout", "1"]),
        ours(
            "A task that does not end in time is `failed`",
            "UFO says `completed`",
            timed_out("did not end within"),
        )
        .flags(&["--session-timeout", "1"]),
        ours(
            "A task that runs out of steps is `failed`",
            "UFO says `completed`",
            [
                device("d"),
                galaxy("g", "$d"),
                say(
                    "g",
                    "task",
                    json!({"session_id": "$S", "target_id": "$d", "request": plan_of(&["a", "b"])}),
                ),
                ack("g", "$S"),
                command("d", "$S", "$R"),
                works("d", "$S", "$R"),
                failed("g", "$S", contains("1 steps")),
                end("d", "$S", "failed"),
            ],
        )
        .flags(&["--max-steps", "1"]),
    ]
}

/// A task of `$d` that gets its turn: its COMMAND comes, is answered, and it ends.
fn turn_of(link: Link, session: &str) -> [Step; 5] {
    let id = session.replace('S', "R");
    [
        command("d", session, &id),
        silence("d"),
        works("d", session, &id),
        end(link, session, "completed"),
        end("d", session, "completed"),
    ]
}

/// A task that is acknowledged.
fn accepted(link: Link, session: &str) -> [Step; 2] {
    [task(link, session, "$d"), ack(link, session)]
}

/// A line of progress for `g`.
fn progress(session: &str, status: &str) -> Step {
    let step = json!({"flightdeck": {"step": {"status": status}}});
    let fields = json!({"status": "continue", "session_id": session, "messages": [some_text()], "result": step});
    hear("g", "heartbeat", fields)
}

fn turns() -> Vec<Row> {
    vec![
        ours(
            "Two tasks on one device run one after the other",
            "a desktop has one pair of hands; UFO lets them work at the same time",
            [
                vec![device("d"), galaxy("g", "$d")],
                accepted("g", "$S1").to_vec(),
                accepted("g", "$S2").to_vec(),
                turn_of("g", "$S1").to_vec(),
                turn_of("g", "$S2").to_vec(),
            ]
            .concat(),
        )
        .golden(&["task_two_at_once_same_device"]),
        same(
            "With `sessions_per_device = 2` they run at the same time",
            [
                vec![device("d"), galaxy("g", "$d")],
                accepted("g", "$S1").to_vec(),
                vec![command("d", "$S1", "$R1")],
                accepted("g", "$S2").to_vec(),
                vec![
                    command("d", "$S2", "$R2"),
                    works("d", "$S2", "$R2"),
                    end("g", "$S2", "completed"),
                    end("d", "$S2", "completed"),
                    works("d", "$S1", "$R1"),
                    end("g", "$S1", "completed"),
                    end("d", "$S1", "completed"),
                ],
            ]
            .concat(),
        )
        .flags(&["--sessions-per-device", "2"])
        .golden(&["task_two_at_once_same_device"]),
        ours(
            "Waiting tasks run in turn: keys, within a key its clients, within a client in order",
            "one busy requester does not starve another",
            [
                vec![device("d"), constellation("g"), constellation("h")],
                ["$S1", "$S2", "$S3"].iter().flat_map(|session| accepted("g", session)).collect(),
                ["$S4", "$S5"].iter().flat_map(|session| accepted("h", session)).collect(),
                [("g", "$S1"), ("g", "$S2"), ("h", "$S4"), ("g", "$S3"), ("h", "$S5")]
                    .into_iter()
                    .flat_map(|(link, session)| turn_of(link, session))
                    .collect(),
            ]
            .concat(),
        ),
        ours(
            "Who asked for progress is told that its task waits, and sees each step",
            "a requester without the extension hears nothing until the end, as from UFO",
            [
                vec![device("d"), constellation("h")],
                accepted("h", "$S1").to_vec(),
                vec![
                    command("d", "$S1", "$R1"),
                    Step::Join(
                        "g",
                        json!({"client_type": "constellation",
                            "metadata": {"flightdeck": {"version": 1, "features": ["progress"]}}}),
                    ),
                ],
                accepted("g", "$S2").to_vec(),
                vec![progress("$S2", "queued")],
                vec![
                    works("d", "$S1", "$R1"),
                    end("h", "$S1", "completed"),
                    end("d", "$S1", "completed"),
                    progress("$S2", "running"),
                    command("d", "$S2", "$R2"),
                    works("d", "$S2", "$R2"),
                    progress("$S2", "success"),
                    end("g", "$S2", "completed"),
                    end("d", "$S2", "completed"),
                ],
            ]
            .concat(),
        ),
        ours(
            "A device's queue is bounded (100); beyond it a task is refused at once",
            "what cannot be done soon is said soon",
            [
                vec![device("d"), galaxy("g", "$d")],
                accepted("g", "$S1").to_vec(),
                accepted("g", "$S2").to_vec(),
                vec![
                    task("g", "$S3", "$d"),
                    hear_error_about("g", "$S3", contains("waiting")),
                    failed("g", "$S3", contains("waiting")),
                    silence("g"),
                ],
                turn_of("g", "$S1").to_vec(),
                turn_of("g", "$S2").to_vec(),
            ]
            .concat(),
        )
        .flags(&["--queue-per-device", "1"]),
    ]
}
