//! Who leaves, and what becomes of the tasks.

use serde_json::json;

use crate::row::*;

pub(crate) fn group() -> Group {
    let rows = [devices(), constellations(), servers()].into_iter().flatten().collect();
    Group { title: "Leaving", rows }
}

const DEVICE_GONE: &str = "Task was cancelled because target device disconnected ('$d')";
/// What UFO says of it too.
const DISCONNECTED: &str = "Task was cancelled because target device disconnected";
const CLIENT_GONE: &str = "Task was cancelled due to client disconnection";

fn devices() -> Vec<Row> {
    vec![
        ours(
            "A device that leaves fails its task at once, and its requester is told",
            "as UFO does it; the text also names the device, and the result holds what is known",
            then(
                a_running_task(),
                [
                    hang_up("d"),
                    hear(
                        "g",
                        "task_end",
                        json!({"session_id": "$S", "status": "failed",
                        "error": DEVICE_GONE, "result": [{"result": [[
                            {"status": "failure", "error": contains("unknown")}]]}]}),
                    ),
                    silence("g"),
                ],
            ),
        )
        .golden(&["device_close_mid_task"]),
        same(
            "A link that breaks without a close is a device that left",
            then(
                a_running_task(),
                [Step::Cut("d"), failed("g", "$S", contains(DISCONNECTED)), silence("g")],
            ),
        ),
        ours(
            "Tasks that wait for a device fail with it",
            "UFO has no queue",
            then(
                a_running_task(),
                [
                    constellation("h"),
                    task("h", "$S2", "$d"),
                    ack("h", "$S2"),
                    hang_up("d"),
                    failed("g", "$S", DEVICE_GONE),
                    failed("h", "$S2", DEVICE_GONE),
                ],
            ),
        ),
        ours(
            "A device's own task ends with it",
            "UFO forgets it",
            [
                device("d"),
                task("d", "$S", "$d"),
                ack("d", "$S"),
                command("d", "$S", "$R"),
                hang_up("d"),
                device("d"),
                // Its turn comes when nothing is left of the first one.
                task("d", "$S2", "$d"),
                ack("d", "$S2"),
                command("d", "$S2", "$R2"),
                works("d", "$S2", "$R2"),
                end("d", "$S2", "completed"),
                task("d", "$S", "$d"),
                ack("d", "$S"),
                command("d", "$S", "$R3"),
                works("d", "$S", "$R3"),
                end("d", "$S", "completed"),
            ],
        ),
        same(
            "A device that comes back works on, and its old commands are settled",
            then(
                a_running_task(),
                [
                    hang_up("d"),
                    failed("g", "$S", contains(DISCONNECTED)),
                    device("d"),
                    task("g", "$S2", "$d"),
                    ack("g", "$S2"),
                    command("d", "$S2", "$R2"),
                    works("d", "$S2", "$R2"),
                    end("g", "$S2", "completed"),
                    end("d", "$S2", "completed"),
                ],
            ),
        ),
        ours(
            "From whom no byte comes for the liveness timeout (90 s), the link is closed with 4004",
            "a dead connection shall not keep its id, nor its tasks",
            [device("d"), Step::FallSilent("d"), closed("d", 4004, "no sign of life")],
        )
        .flags(&["--liveness-timeout", "1", "--ping-interval", "0.4"]),
    ]
}

fn constellations() -> Vec<Row> {
    vec![
        ours(
            "A constellation that leaves cancels its tasks, and the device is told",
            "UFO tells the device nothing",
            then(
                a_running_task(),
                [
                    hang_up("g"),
                    failed("d", "$S", CLIENT_GONE),
                    // A Python device finishes its command first.
                    works("d", "$S", "$R"),
                    hear_error_about("d", "$S", some_text()),
                    silence("d"),
                ],
            ),
        )
        .golden(&["constellation_close_mid_task"]),
        ours(
            "After a cancel, the next task waits until the device is done with the command",
            "two tasks must not drive one pair of hands",
            then(
                a_running_task(),
                [
                    constellation("h"),
                    task("h", "$S2", "$d"),
                    ack("h", "$S2"),
                    hang_up("g"),
                    failed("d", "$S", CLIENT_GONE),
                    silence("d"),
                    works("d", "$S", "$R"),
                    in_either_order([
                        hear_error_about("d", "$S", some_text()),
                        command("d", "$S2", "$R2"),
                    ]),
                    works("d", "$S2", "$R2"),
                    end("h", "$S2", "completed"),
                    end("d", "$S2", "completed"),
                ],
            ),
        ),
        ours(
            "After a cancel, the grace (60 s) frees the device at the latest",
            "a device that never answers does not block the others",
            then(
                a_running_task(),
                [
                    hang_up("g"),
                    failed("d", "$S", CLIENT_GONE),
                    constellation("h"),
                    task("h", "$S2", "$d"),
                    ack("h", "$S2"),
                    command("d", "$S2", "$R2"),
                    works("d", "$S", "$R"),
                    hear_error_about("d", "$S", some_text()),
                    works("d", "$S2", "$R2"),
                    end("h", "$S2", "completed"),
                    end("d", "$S2", "completed"),
                ],
            ),
        )
        .flags(&["--stop-grace", "0.3"]),
        same(
            "A constellation that leaves leaves the others' tasks alone",
            then(
                a_running_task(),
                [
                    constellation("h"),
                    task("h", "$S2", "$d"),
                    ack("h", "$S2"),
                    hang_up("h"),
                    failed("d", "$S2", CLIENT_GONE),
                ]
                .into_iter()
                .chain(it_completes()),
            ),
        ),
    ]
}

fn servers() -> Vec<Row> {
    vec![
        ours(
            "A server that stops ends every task, tells it, and closes with 1001",
            "UFO's links break off",
            then(
                a_running_task(),
                [
                    Step::StopServer,
                    failed("g", "$S", contains("shutting down")),
                    failed("d", "$S", contains("shutting down")),
                    closed("g", 1001, ""),
                    closed("d", 1001, ""),
                ],
            ),
        )
        .flags(&["--shutdown-grace", "0.1"]),
        ours(
            "A server that stops lets a running command finish, within the grace (10 s)",
            "UFO's links break off",
            then(
                a_running_task(),
                [Step::StopServer]
                    .into_iter()
                    .chain(it_completes())
                    .chain([closed("g", 1001, ""), closed("d", 1001, "")]),
            ),
        )
        .flags(&["--shutdown-grace", "60"]),
    ]
}
