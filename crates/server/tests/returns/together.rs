//! Tasks that share a device, and those that have it to themselves.

use std::time::Duration;

use serde_json::{Value, json};
use server::Config;

use crate::party::Party;
use crate::rig::{Client, Rig, command_task, send_results, submit, taken, task};

/// Longer than a step takes.
const A_WHILE: Duration = Duration::from_secs(5);

/// A device that takes so many tasks that go together.
fn device_that_takes(at_once: u32) -> Client {
    Client { at_once: Some(at_once), ..Client::device() }
}

/// Takes so many COMMANDs, and is sent no more.
async fn take(device: &mut Party, number: usize) -> Vec<Value> {
    let mut commands = Vec::new();
    for _ in 0..number {
        commands.push(device.expect("command").await);
    }
    device.expect_silence(A_WHILE).await;
    commands
}

/// Answers a COMMAND, which ends its task.
async fn finish(device: &mut Party, requester: &mut Party, command: &Value) {
    send_results(device, command, "success");
    assert_eq!(taken(device).await, "accepted");
    assert_eq!(requester.expect("task_end").await["session_id"], command["session_id"]);
}

/// The sessions of some COMMANDs, in order of their names.
fn sessions(commands: &[Value]) -> Vec<&str> {
    let mut sessions: Vec<_> =
        commands.iter().map(|command| command["session_id"].as_str().unwrap()).collect();
    sessions.sort_unstable();
    sessions
}

async fn submit_all(requester: &mut Party, tasks: impl IntoIterator<Item = Value>) {
    for task in tasks {
        submit(requester, &task).await;
    }
}

#[tokio::test(start_paused = true)]
async fn commands_share_a_device_as_far_as_its_owner_and_the_server_allow() {
    for (owner, server, expected) in [(3, 64, 3), (64, 2, 2), (0, 64, 1), (1, 64, 1)] {
        let rig = Rig::with(Config { shared_per_device: server, ..Config::default() }).await;
        let (mut d, mut q) = (device_that_takes(owner), Client::requester());
        let (mut device, _) = d.come(&rig).await;
        let (mut requester, _) = q.come(&rig).await;
        submit_all(&mut requester, ["1", "2", "3", "4"].map(command_task)).await;
        assert_eq!(take(&mut device, expected).await.len(), expected, "{owner} and {server}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_that_does_not_say_how_many_it_takes_has_one_at_a_time() {
    let rig = Rig::new().await;
    let mut device = Party::join(&rig.server, "d", "device").await;
    let (mut requester, _) = Client::requester().come(&rig).await;
    submit_all(&mut requester, ["1", "2"].map(command_task)).await;
    assert_eq!(sessions(&take(&mut device, 1).await), ["S-1"]);
}

#[tokio::test(start_paused = true)]
async fn anything_but_commands_and_files_has_the_device_to_itself_and_is_not_overtaken() {
    let rig = Rig::new().await;
    let (mut d, mut q) = (device_that_takes(8), Client::requester());
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    let tasks = [command_task("1"), command_task("2"), task("3"), command_task("4")];
    submit_all(&mut requester, tasks).await;
    let first = take(&mut device, 2).await;
    assert_eq!(sessions(&first), ["S-1", "S-2"]);
    for command in &first {
        device.expect_silence(A_WHILE).await;
        finish(&mut device, &mut requester, command).await;
        device.expect("task_end").await;
    }
    let alone = take(&mut device, 1).await;
    assert_eq!(sessions(&alone), ["S-3"]);
    finish(&mut device, &mut requester, &alone[0]).await;
    device.expect("task_end").await;
    assert_eq!(sessions(&take(&mut device, 1).await), ["S-4"]);
}

#[tokio::test(start_paused = true)]
async fn one_tool_of_another_kind_in_a_plan_is_enough() {
    let plan = |tools: &[&str]| {
        let commands: Vec<_> = tools.iter().map(|tool| json!({"tool_name": tool})).collect();
        json!({"commands": commands}).to_string()
    };
    let shared = [
        plan(&["execute_command", "read_file"]),
        plan(&["BashExecutor::execute_command", "action::Files::write_file"]),
        plan(&["data_collection::list_directory"]),
    ];
    let alone = [
        plan(&["execute_command", "screenshot"]),
        plan(&["stranger::execute_command"]),
        plan(&["Files::execute_command"]),
        plan(&["get_system_info"]),
        "tidy up".to_owned(),
    ];
    for (request, is_shared) in
        shared.iter().map(|one| (one, true)).chain(alone.iter().map(|one| (one, false)))
    {
        let rig = Rig::new().await;
        let (mut d, mut q) = (device_that_takes(8), Client::requester());
        let (mut device, _) = d.come(&rig).await;
        let (mut requester, _) = q.come(&rig).await;
        submit(&mut requester, &command_task("1")).await;
        let mut other = task("2");
        other["request"] = json!(request);
        submit(&mut requester, &other).await;
        take(&mut device, if is_shared { 2 } else { 1 }).await;
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_commands_go_on_beside_each_other_and_the_next_get_their_places() {
    let mut rig = Rig::new().await;
    let (mut d, mut q) = (device_that_takes(3), Client::requester());
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    let ids = ["1", "2", "3", "4", "5"];
    submit_all(&mut requester, ids.map(command_task)).await;
    let first = take(&mut device, 3).await;
    first.iter().for_each(|command| d.note(command, "running"));
    rig.restart().await;
    let (mut device, granted) = d.come(&rig).await;
    let told = granted["commands"].as_object().unwrap();
    assert!(told.len() == 3 && told.values().all(|word| word == "continue"), "{granted}");
    let (mut requester, _) = q.come(&rig).await;
    device.expect_silence(A_WHILE).await;
    finish(&mut device, &mut requester, &first[0]).await;
    device.expect("task_end").await;
    assert_eq!(sessions(&take(&mut device, 1).await), ["S-4"], "one at work makes room for one");
}

#[tokio::test(start_paused = true)]
async fn a_device_that_comes_back_and_takes_more_gets_more() {
    let rig = Rig::new().await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    submit_all(&mut requester, ["1", "2", "3"].map(command_task)).await;
    let first = take(&mut device, 1).await;
    d.note(&first[0], "running");
    device.switch.cut();
    device.closed().await;
    d.at_once = Some(2);
    let (mut device, _) = d.come(&rig).await;
    assert_eq!(sessions(&take(&mut device, 1).await), ["S-2"]);
}
