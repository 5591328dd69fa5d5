//! A TASK: who may have which one run, its ACK, its name, its session.

use serde_json::{Value, json};

use crate::common::{plan, plan_of};
use crate::row::*;

pub(crate) fn group() -> Group {
    let rows = [runs(), names(), refusals(), told_and_ended(), sessions()];
    Group { title: "Asking for a task", rows: rows.into_iter().flatten().collect() }
}

/// A TASK for `$d`, but for what is said otherwise.
fn task_with(link: Link, mut fields: Value) -> Step {
    let given = fields.as_object_mut().unwrap();
    given.entry("target_id").or_insert(json!("$d"));
    given.entry("request").or_insert(json!(plan("pwd")));
    say(link, "task", fields)
}

fn runs() -> Vec<Row> {
    let request = plan_of(&["uname -s", "pwd"]);
    let results = json!([[good("$R1")], [good("$R2")]]);
    let outcome = json!({"session_id": "$S", "status": "completed", "response_id": "$E",
        "error": null, "timestamp": some_text(),
        "result": exactly(json!([{"request": request, "result": results}]))});
    vec![
        same(
            "A task is acknowledged, runs command by command, and both sides get its TASK_END",
            [
                device("d"),
                galaxy("g", "$d"),
                say("g", "device_info_request", json!({"target_id": "$d", "request_id": "$Q1"})),
                hear("g", "device_info_response", json!({"response_id": "$Q1"})),
                task_with(
                    "g",
                    json!({"session_id": "$S", "request": request, "request_id": "$Q2"}),
                ),
                ack("g", "$S"),
                command("d", "$S", "$R1"),
                works("d", "$S", "$R1"),
                command("d", "$S", "$R2"),
                works("d", "$S", "$R2"),
                hear("g", "task_end", outcome.clone()),
                hear("d", "task_end", outcome),
            ],
        )
        .golden(&["task_happy_raw", "real_task_happy", "real_device_mcp_task"]),
        same(
            "A device has a task of its own, and gets one TASK_END for it",
            [
                device("d"),
                say(
                    "d",
                    "task",
                    json!({"request": plan("pwd"), "task_name": "self", "request_id": "$Q",
                        "metadata": {"platform": "linux"}}),
                ),
                ack("d", "$S"),
                command("d", "$S", "$R"),
                works("d", "$S", "$R"),
                end("d", "$S", "completed"),
                silence("d"),
            ],
        )
        .golden(&["real_device_self_task_dispatch"]),
        same(
            "A device may name itself as the target of its task",
            [
                device("d"),
                task("d", "$S", "$d"),
                ack("d", "$S"),
                command("d", "$S", "$R"),
                works("d", "$S", "$R"),
                end("d", "$S", "completed"),
            ],
        ),
        same(
            "The ACK comes before anything else of its session, also when the task ends at once",
            [
                device("d"),
                galaxy("g", "$d"),
                task_with("g", json!({"session_id": "$S", "request": r#"{"commands":[]}"#})),
                ack("g", "$S"),
                end("g", "$S", "failed"),
                end("d", "$S", "failed"),
            ],
        ),
    ]
}

/// Tasks with these names, whose COMMANDs have those.
fn named(names: Vec<(&str, Value)>) -> Vec<Step> {
    let tasks = names.into_iter().enumerate().flat_map(|(n, (name, shown))| {
        let (session, id) = (format!("$S{n}"), format!("$R{n}"));
        let command = json!({"session_id": session, "task_name": shown, "response_id": id,
            "actions": [{"call_id": format!("{id}_call")}]});
        [
            task_with("g", json!({"session_id": session, "task_name": name})),
            ack("g", &session),
            hear("d", "command", command),
            works("d", &session, &id),
            end("g", &session, "completed"),
            end("d", &session, "completed"),
        ]
    });
    then(vec![device("d"), galaxy("g", "$d")], tasks)
}

fn names() -> Vec<Row> {
    let sanitized = vec![
        ("tidy-up_1.2", json!("tidy-up_1.2")),
        ("my/task name", json!("my_task_name")),
        ("../../etc/passwd", json!("_.._etc_passwd")),
        (".hidden", json!("hidden")),
        ("späte Größe", json!("sp_te_Gr__e")),
        ("...", uuid()),
        ("", uuid()),
    ];
    let long = "n".repeat(200);
    vec![
        same(
            "A task without a session and a name gets a fresh one of each",
            [
                device("d"),
                galaxy("g", "$d"),
                task_with("g", json!({})),
                ack("g", "$S"),
                hear(
                    "d",
                    "command",
                    json!({"session_id": "$S", "task_name": "$name",
                    "response_id": "$R", "actions": [{"call_id": "$R_call"}]}),
                ),
                works("d", "$S", "$R"),
                end("g", "$S", "completed"),
                end("d", "$S", "completed"),
                task_with("g", json!({})),
                ack("g", "$S2"),
                hear(
                    "d",
                    "command",
                    json!({"session_id": "$S2", "task_name": uuid(),
                    "response_id": "$R2", "actions": [{"call_id": "$R2_call"}]}),
                ),
                works("d", "$S2", "$R2"),
                end("g", "$S2", "completed"),
                end("d", "$S2", "completed"),
            ],
        )
        .golden(&["task_no_session_no_name"]),
        same(
            "A `task_name` is made safe: others than `[A-Za-z0-9._-]` become `_`, leading dots go",
            named(sanitized),
        )
        .golden(&["task_happy_raw"]),
        ours(
            "A `task_name` has at most 128 characters",
            "it may become the name of a file",
            named(vec![(&long, json!("n".repeat(128)))]),
        ),
    ]
}

/// Why a TASK is refused: whose it is, what it says, and the text.
fn faults() -> Vec<(Link, Value, &'static str)> {
    let ok = plan("pwd");
    vec![
        ("g", json!({"request": ok}), "Constellation task requests require target_id"),
        (
            "g",
            json!({"target_id": "$nobody", "request": ok}),
            "Target device '$nobody' is not connected",
        ),
        (
            "g",
            json!({"target_id": "$h", "request": ok}),
            "Constellation tasks may only target device clients",
        ),
        (
            "h",
            json!({"target_id": "$e", "request": ok}),
            "Not authorized to run tasks on this device",
        ),
        (
            "h",
            json!({"target_id": "$nobody", "request": ok}),
            "Not authorized to run tasks on this device",
        ),
        (
            "d",
            json!({"target_id": "$e", "request": ok}),
            "Device clients may not target other devices",
        ),
        ("g", json!({"target_id": "$d"}), "Empty task content"),
        ("g", json!({"target_id": "$d", "request": ""}), "Empty task content"),
        ("d", json!({}), "Empty task content"),
        (
            "g",
            json!({"target_id": "$d", "request": ok, "client_id": "$h"}),
            "client_id does not match the registered connection",
        ),
        (
            "g",
            json!({"target_id": "$d", "request": ok, "client_type": "device"}),
            "client_type does not match the registered connection",
        ),
    ]
}

/// Devices `d` and `e`, a free constellation `g`, and `h`, which declared `d`.
fn everybody() -> Vec<Step> {
    vec![device("d"), device("e"), constellation("g"), galaxy("h", "$d")]
}

/// The faults with this text, each told in an ERROR and nothing else: no session was named.
fn refused(error: &str) -> Vec<Step> {
    let faults = faults().into_iter().filter(|(.., text)| *text == error);
    let told = faults.flat_map(|(link, fields, text)| {
        [say(link, "task", fields), hear_error(link, text), silence(link)]
    });
    then(everybody(), told.chain([silence("d"), silence("e")]))
}

fn refusals() -> Vec<Row> {
    const NONE: &str = "Constellation task requests require target_id";
    const GONE: &str = "Target device '$nobody' is not connected";
    const ROLE: &str = "Constellation tasks may only target device clients";
    const PEER: &str = "Device clients may not target other devices";
    const SCOPE: &str = "Not authorized to run tasks on this device";
    const EMPTY: &str = "Empty task content";
    vec![
        same("A constellation's task needs a target", refused(NONE))
            .golden(&["task_without_target_id"]),
        same("A task's target must be connected", refused(GONE))
            .golden(&["task_unconnected_target"]),
        same("A task's target must be a device", refused(ROLE))
            .golden(&["task_target_is_constellation"]),
        same("A device has tasks for itself only", refused(PEER))
            .golden(&["task_device_targets_peer"]),
        ours(
            "A constellation that declared a target has tasks for that one only",
            "what it declared is what it may; UFO does not hold it to that",
            refused(SCOPE),
        ),
        ours("A task needs content", "UFO starts a session on nothing", refused(EMPTY)),
    ]
}

/// A TASK of `g` with a request that is no text.
fn unreadable(session: &str) -> Step {
    say_text(
        "g",
        format!(
            r#"{{"type":"task","status":"continue","client_type":"constellation","client_id":"$g","target_id":"$d","session_id":"{session}","request":7}}"#
        ),
    )
}

fn told_and_ended() -> Vec<Row> {
    let ended = faults().into_iter().enumerate().flat_map(|(n, (link, mut fields, text))| {
        let session = format!("$S{n}");
        fields["session_id"] = json!(session);
        [
            say(link, "task", fields),
            hear_error_about(link, &session, text),
            failed(link, &session, text),
            silence(link),
        ]
    });
    vec![
        ours(
            "A refused task that named its session gets the ERROR and a TASK_END `failed`",
            "Galaxy listens for the TASK_END alone, and would wait 1000 s for it",
            then(everybody(), ended.chain([silence("d"), silence("e")])),
        ),
        ours(
            "A TASK that cannot be read gets both too, if it named its session",
            "Galaxy listens for the TASK_END alone, and would wait 1000 s for it",
            then(
                everybody(),
                [
                    unreadable("$S"),
                    hear_error_about("g", "$S", contains("request")),
                    failed("g", "$S", contains("request")),
                    silence("g"),
                    silence("d"),
                ],
            ),
        ),
        ours(
            "A `session_id` that is no id is told by its field, in both, as it came",
            "an id has at most 256 characters and no control characters; Galaxy's are as long as the task's name",
            then(
                vec![device("d"), galaxy("g", "$d")],
                ["s".repeat(257), "s\n\u{7f}é".to_owned()]
                    .iter()
                    .flat_map(|session| {
                        [
                            task_with("g", json!({"session_id": session})),
                            hear_error_about("g", session, contains("session_id")),
                            failed("g", session, contains("session_id")),
                        ]
                    })
                    .chain([
                        // Longer than anybody could mean.
                        task_with("g", json!({"session_id": "s".repeat(5000)})),
                        hear_error("g", contains("session_id")),
                        silence("d"),
                        silence("g"),
                    ]),
            ),
        ),
    ]
}

fn sessions() -> Vec<Row> {
    let unfinished = || then(a_running_task(), [constellation("thief")]);
    vec![
        same(
            "A session of another client cannot be taken, and goes on untouched",
            then(
                unfinished(),
                [
                    task("thief", "$S", "$d"),
                    hear_error("thief", "session_id '$S' is owned by another client"),
                    silence("thief"),
                    silence("d"),
                ]
                .into_iter()
                .chain(it_completes()),
            ),
        )
        .golden(&["task_session_of_another_client"]),
        ours(
            "A session that still runs is not started again",
            "two runs under one id could not be told apart",
            then(
                a_running_task(),
                [
                    task("g", "$S", "$d"),
                    hear_error("g", "session_id '$S' is already running"),
                    silence("g"),
                    silence("d"),
                ]
                .into_iter()
                .chain(it_completes()),
            ),
        ),
        ours(
            "Whatever is wrong with a task that reuses a running session: only the ERROR goes out",
            "a TASK_END would look like the end of the one that runs",
            then(
                unfinished(),
                [
                    task_with("g", json!({"session_id": "$S", "request": ""})),
                    hear_error("g", "Empty task content"),
                    silence("g"),
                    unreadable("$S"),
                    hear_error("g", contains("request")),
                    silence("g"),
                    task_with("thief", json!({"session_id": "$S", "target_id": "$nobody"})),
                    hear_error("thief", "Target device '$nobody' is not connected"),
                    silence("thief"),
                    task_with("d", json!({"session_id": "$S", "target_id": "$thief"})),
                    hear_error("d", "Device clients may not target other devices"),
                    silence("d"),
                ]
                .into_iter()
                .chain(it_completes()),
            ),
        ),
        same(
            "A session that ended may be used again, by anybody",
            then(
                a_running_task(),
                it_completes().into_iter().chain([
                    task("g", "$S", "$d"),
                    ack("g", "$S"),
                    command("d", "$S", "$R2"),
                    works("d", "$S", "$R2"),
                    end("g", "$S", "completed"),
                    end("d", "$S", "completed"),
                    constellation("h"),
                    task("h", "$S", "$d"),
                    ack("h", "$S"),
                    command("d", "$S", "$R3"),
                    works("d", "$S", "$R3"),
                    end("h", "$S", "completed"),
                    end("d", "$S", "completed"),
                ]),
            ),
        ),
    ]
}
