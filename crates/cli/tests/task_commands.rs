//! What the command line shows of tasks and devices, and what it does with one task, with real processes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::process::Stdio;

use common::process::{until_gone, until_running};
use common::{Process, Server, long_sleep, plan, plan_of, unique, within};
use serde_json::{Value, json};

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

/// Submits a task over HTTP, which needs nobody to stay. Returns its id.
async fn submit(server: &Server, name: &str, request: &str) -> String {
    let task = json!({"device": "box", "task_name": name, "request": request});
    let url = format!("http://127.0.0.1:{}/api/v1/tasks", server.port);
    let sent = common::http_client().post(url).header("X-API-Key", server.key()).json(&task).send();
    let shown: Value = within("the answer", sent).await.unwrap().json().await.unwrap();
    shown["id"].as_str().expect("an id").to_owned()
}

/// Waits until a task of this name stands so.
async fn until_state(server: &Server, name: &str, state: &str) {
    let args = ["tasks", "--name", name, "--state", state, "--json"];
    let looking = async { while server.run(&args).await.stdout.is_empty() {} };
    within(&format!("{name} to be {state}"), looking).await;
}

#[tokio::test]
async fn tasks_are_listed_with_who_where_what_and_how_they_stand() {
    let server = Server::start().await;
    let _device = server.device("box", &["--exec", "shell", "--parallel-commands", "1"]).await;
    let none = server.run(&["tasks"]).await;
    assert!(none.code == 0 && none.stderr.contains("No such task"), "{none:?}");

    let slow = long_sleep();
    let ids = [
        submit(&server, "good", &plan_of(&["echo one", "echo two"])).await,
        submit(&server, "bad", "tidy up my desk").await,
    ];
    until_state(&server, "bad", "failed").await;
    submit(&server, "slow", &plan(&slow)).await;
    until_running(&slow).await;
    submit(&server, "waiting", &plan("echo three")).await;

    let listed = server.run(&["tasks"]).await;
    let lines: Vec<&str> = listed.stdout.lines().collect();
    assert_eq!((listed.code, lines.len()), (0, 5), "{listed:?}");
    for (line, parts) in lines[1..].iter().zip([
        ["queued", "box", "HTTP, key local", "waiting: echo three"],
        ["running", "box", "HTTP, key local", &format!("slow: {slow}")],
        ["failed", "box", "HTTP, key local", "bad: tidy up my desk"],
        ["completed", "box", "HTTP, key local", "good: echo one (+1 more)"],
    ]) {
        assert!(parts.iter().all(|part| line.contains(part)), "{parts:?}: {line}");
    }

    let names = async |args: &[&str]| {
        let listed = server.run(&[&["tasks", "--json"], args].concat()).await;
        assert_eq!(listed.code, 0, "{listed:?}");
        let lines = json_lines(&listed.stdout).into_iter();
        lines.map(|task| task["task_name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&["--limit", "2"]).await, ["waiting", "slow"]);
    assert_eq!(names(&["--state", "completed", "--device", "box"]).await, ["good"]);
    assert_eq!(names(&["--requester", "HTTP, key local", "--limit", "1"]).await, ["waiting"]);
    assert_eq!(names(&["--key", "nobody's"]).await, [""; 0]);
    let wrong = server.run(&["tasks", "--limit", "0"]).await;
    assert_eq!(wrong.code, 2, "{wrong:?}");

    let shown = server.run(&["task", "show", &ids[0]]).await;
    for part in [&*ids[0], "good: echo one", "box", "completed", "echo two", "    two"] {
        assert!(shown.stdout.contains(part), "{part}: {shown:?}");
    }
    let shown: Value =
        serde_json::from_str(&server.run(&["task", "show", "--json", &ids[0]]).await.stdout)
            .unwrap();
    assert_eq!((&shown["id"], &shown["state"]), (&json!(ids[0]), &json!("completed")));

    let result = server.run(&["task", "result", &ids[0]]).await;
    let steps: Value = serde_json::from_str(&result.stdout).unwrap();
    assert_eq!((result.code, &steps[1][0]["result"]["stdout"]), (0, &json!("two\n")));
    let failed = server.run(&["task", "result", "--json", &ids[1]]).await;
    let ended = &json_lines(&failed.stdout)[0];
    assert_eq!(
        (failed.code, &ended["status"], &ended["task"]),
        (1, &json!("failed"), &json!(ids[1]))
    );
}

#[tokio::test]
async fn a_task_is_named_by_as_much_of_its_id_as_tells_it_from_others() {
    let server = Server::start().await;
    let _device = server.device("box", &["--exec", "shell"]).await;
    let id = submit(&server, "a", &plan("echo a")).await;
    let show = async |id: &str| server.run(&["task", "show", id]).await;
    for prefix in [&id[..], &id[..18], &id.to_uppercase(), &id.replace('-', "")] {
        let shown = show(prefix).await;
        assert!(shown.code == 0 && shown.stdout.contains(&id), "{prefix}: {shown:?}");
    }
    let second = submit(&server, "b", &plan("echo b")).await;
    let several = show("0").await;
    assert_eq!(several.code, 1, "{several:?}");
    assert!(several.stderr.contains("2 tasks begin with \"0\""), "{several:?}");
    assert!([&id, &second].iter().all(|id| several.stderr.contains(*id)), "{several:?}");
    for name in ["c", "d", "e", "f"] {
        submit(&server, name, &plan("echo")).await;
    }
    let many = show("0").await;
    assert!(many.stderr.contains("more than 5 tasks begin with \"0\""), "{many:?}");
    for command in ["follow", "cancel", "result"] {
        let several = server.run(&["task", command, "0"]).await;
        assert!(several.code == 1 && several.stderr.contains("more than 5 tasks"), "{several:?}");
    }
    let unknown = show("fff").await;
    assert!(unknown.code == 1 && unknown.stderr.contains("there is no task"), "{unknown:?}");
    let none = show("oops").await;
    assert!(none.code == 2 && none.stderr.contains("no id of a task"), "{none:?}");
}

#[tokio::test]
async fn a_running_task_is_followed_to_its_end_and_cancelled_by_its_id() {
    let server = Server::start().await;
    let _device = server.device("box", &["--exec", "shell"]).await;
    let slow = long_sleep();
    let id = submit(&server, "slow", &plan_of(&["echo first", &slow])).await;
    until_running(&slow).await;
    let open = server.run(&["task", "result", &id]).await;
    assert!(open.code == 1 && open.stderr.contains("not over"), "{open:?}");

    let mut following = server.start_command(&["task", "follow", &id]);
    following.says("✓ 1 echo first").await;
    let cancelled = server.run(&["task", "cancel", &id]).await;
    assert!(cancelled.code == 0 && cancelled.stderr.contains("cancelled"), "{cancelled:?}");
    until_gone(&slow).await;
    let followed = following.done().await;
    assert_eq!(followed.code, 3, "{followed:?}");
    let steps: Value = serde_json::from_str(&followed.stdout).unwrap();
    assert_eq!(steps[0][0]["result"]["stdout"], "first\n");

    assert_eq!(
        server.run(&["task", "cancel", &id]).await.code,
        0,
        "to do so again changes nothing"
    );
    let good = submit(&server, "good", &plan("echo good")).await;
    until_state(&server, "good", "completed").await;
    let late = server.run(&["task", "cancel", &good]).await;
    assert!(late.code == 1 && late.stderr.contains("had ended before: completed"), "{late:?}");
}

#[tokio::test]
async fn a_watched_list_tells_what_changes_until_it_is_stopped() {
    let server = Server::start().await;
    let _device = server.device("box", &["--exec", "shell"]).await;
    let mut command = server.command(&["tasks", "--watch", "--json"]);
    let mut watching = command.stdout(Stdio::piped()).spawn().unwrap();
    let name = unique("watched");
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(
        watching.stdout.take().unwrap(),
    ));
    submit(&server, &name, &plan("echo x")).await;
    let seen = async {
        loop {
            let line = lines.next_line().await.unwrap().unwrap();
            let task: Value = serde_json::from_str(&line).unwrap();
            if task["task_name"] == json!(name) && task["state"] == "completed" {
                break;
            }
        }
    };
    within("the end of the task", seen).await;
    let id =
        rustix::process::Pid::from_raw(i32::try_from(watching.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
    assert_eq!(within("its end", watching.wait()).await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn a_watched_list_outlives_a_restart_of_its_server() {
    let mut server = Server::start().await;
    let _device = server.device("box", &["--exec", "shell", "--reconnect-first-wait", "0.1"]).await;
    let before = submit(&server, "before", &plan("echo x")).await;
    until_state(&server, "before", "completed").await;
    let mut watching =
        server.start_command(&["tasks", "--watch", "--json", "--state", "completed"]);
    watching.prints(&before).await;
    server.process.kill().await;
    watching.says("asking again").await;
    let again = server.start_again().await;
    watching.says("The server is back.").await;
    watching.signal(rustix::process::Signal::INT);
    let done = watching.done().await;
    assert_eq!((done.code, done.stderr.lines().count()), (0, 2), "{done:?}");
    let told = json_lines(&done.stdout);
    assert_eq!((told.len(), &told[0]["id"]), (1, &json!(before)), "nothing is told twice");
    drop(again);
}

/// The README's way with a task that is left running, word by word.
#[tokio::test]
async fn a_task_that_was_left_is_looked_at_by_the_id_that_was_printed() {
    let server = Server::start().await;
    let _device = server.device("box", &[]).await;
    for _ in 0..2 {
        assert_eq!(server.run(&["exec", "--on", "box", "--", "df", "-h"]).await.code, 0);
    }
    let id = server.run(&["exec", "--on", "box", "--detach", "--", "df", "-h"]).await.stdout;
    for (command, code, says) in [
        ("show", 0, "df -h"),
        ("follow", 0, "Filesystem"),
        ("result", 0, "Filesystem"),
        ("cancel", 1, "had ended before: completed"),
    ] {
        let done = server.run(&["task", command, id.trim()]).await;
        let said = format!("{}{}", done.stdout, done.stderr);
        assert!(done.code == code && said.contains(says), "{command}: {done:?}");
    }
    let listed = server.run(&["tasks", "--state", "completed"]).await;
    assert!(listed.stdout.contains("df -h"), "{listed:?}");
}

#[tokio::test]
async fn devices_say_what_they_are_busy_with_and_for_whom() {
    let server = Server::start().await;
    let _device = server.device("box", &["--exec", "shell"]).await;
    let slow = long_sleep();
    let id = submit(&server, "slow", &plan(&slow)).await;
    until_running(&slow).await;
    let listed = server.run(&["devices"]).await;
    let busy = format!("{slow} for HTTP, key local");
    assert!(listed.stdout.contains(&busy), "{listed:?}");
    assert_eq!(server.run(&["task", "cancel", &id]).await.code, 0);
    until_gone(&slow).await;
}

#[tokio::test]
async fn a_device_that_is_away_is_listed_with_since_when_and_what_it_has_to_do() {
    let server = Server::start().await;
    let mut device = server.device("box", &["--exec", "shell"]).await;
    let slow = long_sleep();
    let id = submit(&server, "slow", &plan(&slow)).await;
    until_running(&slow).await;
    device.kill().await;
    let away = async {
        loop {
            let listed = json_lines(&server.run(&["devices", "--json"]).await.stdout);
            if listed[0]["connected"] == json!(false) {
                break listed[0].clone();
            }
        }
    };
    let away = within("the device to be away", away).await;
    assert!(away["away_since"].is_string(), "{away}");
    assert_eq!(away["tasks"][0]["task"], json!(id), "{away}");
    let listed = server.run(&["devices"]).await;
    assert!(listed.stdout.contains("away for ") && listed.stdout.contains(&slow), "{listed:?}");
    // For new tasks it is not there for now.
    let refused = server.run(&["exec", "--on", "box", "--json", "--", "x"]).await;
    let ended = &json_lines(&refused.stdout)[0];
    assert_eq!((refused.code, &ended["refused"]), (123, &json!("retry")), "{refused:?}");
}

#[tokio::test]
async fn exec_says_which_tasks_it_has_as_soon_as_the_server_has_them() {
    let server = Server::start().await;
    let _device = server.device("box", &["--exec", "shell"]).await;
    let done = server.run(&["exec", "--on", "box", "--json", "--", "echo x"]).await;
    let events = json_lines(&done.stderr);
    assert_eq!((&events[0]["event"], &events[0]["device"]), (&json!("accepted"), &json!("box")));
    assert_eq!(events[0]["task"], json_lines(&done.stdout)[0]["task"], "{done:?}");
}

#[tokio::test]
async fn a_command_of_the_list_without_a_server_says_how_to_start_one() {
    let home = common::Home::new();
    for args in [&["tasks"][..], &["task", "show", "0"]] {
        let mut command = home.command(args);
        let done =
            Process::start(command.env("FLIGHTDECK_SERVER", "ws://127.0.0.1:1")).done().await;
        assert!(done.code == 4 && done.stderr.contains("flightdeck serve"), "{done:?}");
    }
}
