//! COMMAND and COMMAND_RESULTS.

use serde_json::{Value, json};

use crate::common::plan_of;
use crate::row::*;

const TOLD: &str = "UFO drops them in silence";

pub(crate) fn group() -> Group {
    let rows = [commands(), payloads(), strays(), missing()];
    Group { title: "Commands and their results", rows: rows.into_iter().flatten().collect() }
}

/// A plan of one command.
fn plan_with(command: &Value) -> String {
    json!({"commands": [command]}).to_string()
}

fn commands() -> Vec<Row> {
    let agent = |platform: &str, name: &str| {
        then(
            vec![device_on("d", platform)],
            task_of(
                plan_of(&["pwd"]),
                json!({"agent_name": name, "session_id": "$S", "response_id": some_text()}),
            ),
        )
    };
    let leave = || {
        let error = contains("target device disconnected");
        [hang_up("d"), failed("g", "$S", error), hang_up("g")]
    };
    vec![
        same(
            "A COMMAND has all that a Python device needs",
            then(
                vec![device("d")],
                task_of(
                    plan_of(&["uname -r"]),
                    json!({"status": "continue", "agent_name": "LinuxAgent", "process_name": "",
                        "root_name": "", "session_id": "$S", "task_name": some_text(),
                        "response_id": "$R", "timestamp": some_text(), "error": null,
                        "actions": [{"tool_name": "execute_command", "tool_type": "action",
                            "parameters": {"command": "uname -r", "timeout": 300},
                            "call_id": "$R_call"}]}),
                )
                .into_iter()
                .chain(it_completes()),
            ),
        )
        .golden(&["task_happy_raw"]),
        same(
            "The `agent_name` is `LinuxAgent`, `HostAgent` or `MobileAgent`, by the device's platform",
            [("linux", "LinuxAgent"), ("windows", "HostAgent"), ("mobile", "MobileAgent")]
                .into_iter()
                .flat_map(|(platform, name)| then(agent(platform, name), leave())),
        ),
        same(
            "A device that names no platform counts as Windows",
            then(
                vec![device_with("d", json!({}))],
                task_of(plan_of(&["dir"]), json!({"agent_name": "HostAgent"}))
                    .into_iter()
                    .chain(leave()),
            ),
        ),
        same(
            "Tools are listed by a COMMAND too",
            then(
                vec![device("d")],
                task_of(
                    plan_with(
                        &json!({"tool_name": "list_tools", "parameters": {"tool_type": "action"}}),
                    ),
                    json!({"session_id": "$S", "response_id": "$R",
                        "actions": [{"tool_name": "list_tools", "tool_type": "action",
                            "parameters": exactly(json!({"tool_type": "action"})),
                            "call_id": "$R_call"}]}),
                )
                .into_iter()
                .chain([
                    results(
                        "d",
                        "$S",
                        "$R",
                        json!([{"status": "success", "call_id": "$R_call",
                        "result": [{"tool_key": "action::x", "tool_name": "x", "namespace": "n",
                            "tool_type": "action"}]}]),
                    ),
                    hear(
                        "g",
                        "task_end",
                        json!({"session_id": "$S", "status": "completed",
                        "result": [{"result": [[{"result": [{"tool_key": "action::x"}]}]]}]}),
                    ),
                    end("d", "$S", "completed"),
                ]),
            ),
        ),
        ours(
            "A Flightdeck device gets the TASK_END without the result, which it knows",
            "20 MB need not travel back",
            then(
                vec![device_with("d", json!({"platform": "linux", "flightdeck": {"version": 1}}))],
                task_of(
                    plan_of(&["pwd"]),
                    json!({"session_id": "$S", "response_id": "$R",
                    "actions": [{"call_id": "$R_call"}]}),
                )
                .into_iter()
                .chain([
                    works("d", "$S", "$R"),
                    hear("g", "task_end", json!({"status": "completed", "result": [{}]})),
                    hear(
                        "d",
                        "task_end",
                        json!({"status": "completed", "session_id": "$S", "result": null}),
                    ),
                ]),
            ),
        ),
    ]
}

/// COMMAND_RESULTS of `$R` with this result.
fn results_of(result: &str) -> Step {
    say_text(
        "d",
        format!(
            r#"{{"type":"command_results","status":"continue","client_id":"$d","session_id":"$S","prev_response_id":"$R","action_results":[{{"status":"success","result":{result}}}]}}"#
        ),
    )
}

/// COMMAND_RESULTS that are nested so many levels.
fn nested(levels: usize) -> String {
    // The message, its list and the Result are three.
    "[".repeat(levels - 3) + &"]".repeat(levels - 3)
}

fn payloads() -> Vec<Row> {
    let request = format!(r#"{{"commands":[{{"tool_name":"t","parameters":{ODD}}}]}}"#);
    vec![
        ours(
            "A result passes through byte for byte: big numbers, the order of keys, escapes",
            "UFO reads and writes it anew",
            then(
                a_running_task(),
                [
                    results_of(ODD),
                    hear_text("g", format!("\"result\":{ODD}")),
                    hear_text("d", format!("\"result\":{ODD}")),
                ],
            ),
        ),
        ours(
            "A command's parameters pass through byte for byte",
            "UFO reads and writes them anew",
            [
                device("d"),
                galaxy("g", "$d"),
                say(
                    "g",
                    "task",
                    json!({"session_id": "$S", "target_id": "$d", "request": request}),
                ),
                ack("g", "$S"),
                hear_text("d", format!("\"parameters\":{ODD}")),
            ],
        ),
        ours(
            "Results that are nested 200 levels deep pass unchanged",
            "the limit is for messages that come in",
            then(
                a_running_task(),
                [
                    results_of(&nested(200)),
                    hear_text("g", nested(200)),
                    hear_text("d", nested(200)),
                ],
            ),
        ),
        ours(
            "Results that cannot be read fail their command, and the device is told",
            "nobody waits for better ones; UFO's server waits 6000 s",
            then(
                a_running_task(),
                [
                    results_of(&nested(201)),
                    in_either_order([
                        hear_error_about("d", "$S", contains("200 levels")),
                        end("d", "$S", "failed"),
                    ]),
                    failed("g", "$S", contains("could not be read")),
                ],
            ),
        ),
    ]
}

/// Results that answer nothing: told, and without effect.
fn stray(link: Link, session: Value, command: Value) -> [Step; 2] {
    let forged = json!([{"status": "success", "result": "forged"}]);
    let fields =
        json!({"session_id": session, "prev_response_id": command, "action_results": forged});
    let told = json!({"status": "error", "error": some_text(), "session_id": session});
    [say(link, "command_results", fields), hear(link, "error", told)]
}

fn strays() -> Vec<Row> {
    let it_goes_on = vec![
        silence("g"),
        works("d", "$S", "$R"),
        hear(
            "g",
            "task_end",
            json!({"session_id": "$S", "status": "completed",
            "result": [{"result": [exactly(json!([good("$R")]))]}]}),
        ),
        end("d", "$S", "completed"),
    ];
    vec![
        ours(
            "Results of an unknown session or command are dropped, and the device is told",
            TOLD,
            [
                vec![device("d")],
                stray("d", json!("$none"), json!("$p")).to_vec(),
                vec![
                    say("d", "command_results", json!({"status": "ok"})),
                    hear_error("d", some_text()),
                ],
                vec![hang_up("d")],
                a_running_task(),
                stray("d", json!("$none"), json!("$R")).to_vec(),
                stray("d", json!("$S"), json!("$p")).to_vec(),
                stray("d", json!("$S"), Value::Null).to_vec(),
                stray("d", Value::Null, json!("$R")).to_vec(),
                it_goes_on.clone(),
            ]
            .concat(),
        )
        .golden(&["command_results_unknown_session"]),
        ours(
            "Results from anybody but the device that has the command are dropped, and told",
            TOLD,
            [
                a_running_task(),
                vec![device("e")],
                stray("e", json!("$S"), json!("$R")).to_vec(),
                stray("g", json!("$S"), json!("$R")).to_vec(),
                it_goes_on,
            ]
            .concat(),
        ),
        ours(
            "The first results of a command count, later ones are dropped and told",
            TOLD,
            then(
                a_running_task(),
                it_completes().into_iter().chain([
                    works("d", "$S", "$R"),
                    hear_error_about("d", "$S", some_text()),
                    silence("g"),
                ]),
            ),
        ),
    ]
}

fn missing() -> Vec<Row> {
    vec![
        ours(
            "Results are matched by `call_id`, in whatever order they come",
            "a result belongs to the action that it names",
            then(
                a_running_task(),
                [
                    results("d", "$S", "$R", json!([
                        {"status": "failure", "error": "not mine", "call_id": "$other"}, good("$R")])),
                    hear("g", "task_end", json!({"session_id": "$S", "status": "completed",
                        "result": [{"result": [exactly(json!([good("$R")]))]}]})),
                    end("d", "$S", "completed"),
                ],
            ),
        ),
        ours(
            "A missing result is a `failure` \"no result\"",
            "a task must not look done when nothing is known",
            then(
                vec![device("d"), galaxy("g", "$d")],
                [json!([]), Value::Null, json!([{"status": "success", "call_id": "$other"}])]
                    .into_iter()
                    .enumerate()
                    .flat_map(|(n, few)| {
                        let (session, command_id) = (format!("$S{n}"), format!("$R{n}"));
                        [
                            task("g", &session, "$d"),
                            ack("g", &session),
                            command("d", &session, &command_id),
                            results("d", &session, &command_id, few),
                            hear("g", "task_end", json!({"session_id": session, "status": "failed",
                                "error": contains("no result"),
                                "result": [{"result": [[{"status": "failure",
                                    "error": "no result", "call_id": format!("{command_id}_call")}]]}]})),
                            end("d", &session, "failed"),
                        ]
                    }),
            ),
        ),
    ]
}
