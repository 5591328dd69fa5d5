//! A server that is killed with -9 while people wait for their commands, and comes back.

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::client::{Api, id};
use crate::common::{Done, Process, Server, plan, plan_of, until};
use crate::gate::Gate;

/// A device on which all commands run at once, and which is back soon.
const DEVICE: [&str; 6] =
    ["--exec", "shell", "--parallel-commands", "128", "--reconnect-first-wait", "0.1"];

/// So does its server.
const SERVER: [&str; 4] = ["--sessions-per-device", "128", "--queue-per-device", "256"];

/// What stands on stderr, one line each.
fn said(done: &Done) -> Vec<&str> {
    done.stderr.lines().collect()
}

/// Whether these two lines are what a lost server and its return cost.
fn is_loss(lost: &str, back: &str) -> bool {
    lost.starts_with("Lost the server (")
        && lost.ends_with("); coming back, nothing is lost by it.")
        && back == "The server is back."
}

async fn kill_and_start(mut server: Server) -> Server {
    server.process.kill().await;
    server.start_again_with(&SERVER).await
}

#[tokio::test]
async fn a_killed_server_costs_run_and_exec_two_lines_and_nothing_else() {
    let (server, gate) = (Server::start_with(&SERVER).await, Gate::new());
    let _device = server.device("box", &DEVICE).await;
    let start = |args: &[&str]| server.start_command(args);
    let plans = [plan(&gate.command(0)), plan(&gate.command(1))];
    let lines = [gate.command(2), gate.command(3)];
    let run = start(&["run", "--on", "box", &plans[0]]);
    let mut run_json = start(&["run", "--json", "--on", "box", &plans[1]]);
    let exec = start(&["exec", "--on", "box", "--", &lines[0]]);
    let mut exec_json = start(&["exec", "--json", "--on", "box", "--", &lines[1]]);
    // Programs know what their task is called before it is over.
    run_json.says(r#""event":"accepted""#).await;
    exec_json.says(r#""event":"accepted""#).await;
    gate.has_begun(4).await;

    let _server = kill_and_start(server).await;
    gate.open();
    let (run, exec) = (run.done().await, exec.done().await);
    assert_eq!((run.code, exec.code, exec.stdout.as_str()), (0, 0, "2\n"), "{run:?} {exec:?}");
    assert!(matches!(said(&exec)[..], [lost, back] if is_loss(lost, back)), "{exec:?}");
    // A step that ended while it was away is not told again.
    let is_right = match said(&run)[..] {
        [lost, back, "completed"] => is_loss(lost, back),
        [lost, back, step, "completed"] => is_loss(lost, back) && step.starts_with("✓ 1 "),
        _ => false,
    };
    assert!(is_right && run.stdout.contains(r#""stdout": "0\n""#), "{run:?}");

    for process in [run_json, exec_json] {
        let done = process.done().await;
        let event = |line: &str| serde_json::from_str::<Value>(line).expect(line);
        let events: Vec<_> = said(&done).into_iter().map(event).collect();
        let names: Vec<_> = events.iter().map(|event| event["event"].clone()).collect();
        let lost = names.iter().filter(|name| **name == "disconnected").count();
        let back = names.iter().filter(|name| **name == "reconnected").count();
        assert_eq!((done.code, lost, back), (0, 1, 1), "{done:?}");
        assert!(events[0]["task"].is_string(), "{done:?}");
        let ended = event(&done.stdout);
        assert_eq!((&ended["task"], &ended["status"]), (&events[0]["task"], &json!("completed")));
    }
    gate.assert_each_once(0..4);
}

/// With the times that everybody has: a step of half a minute, and a server that is away for some of it.
#[tokio::test]
#[ignore = "it takes half a minute"]
async fn a_run_of_half_a_minute_survives_the_death_of_its_server() {
    let (server, gate) = (Server::start().await, Gate::new());
    let _device = server.device("box", &["--exec", "shell"]).await;
    let request = plan(&format!("{}; sleep 30; echo slept", gate.quick_command(0)));
    let run = server.start_command(&["run", "--on", "box", &request]);
    gate.has_begun(1).await;
    tokio::time::sleep(std::time::Duration::from_secs(10)).await;
    let _server = kill_and_start(server).await;
    let run = run.done().await;
    assert!(run.code == 0 && run.stdout.contains("slept"), "{run:?}");
    gate.assert_each_once(0..1);
}

/// Of so many `run` and `exec` that are cut in their middle all learn their outcome.
async fn all_learn_their_outcome(requesters: usize) {
    let (server, gate) = (Server::start_with(&SERVER).await, Gate::new());
    let mut device = server.device("box", &DEVICE).await;
    let start = |n: usize| match n % 2 {
        0 => server.start_command(&["exec", "--on", "box", "--", &gate.command(n)]),
        _ => server.start_command(&["run", "--on", "box", &plan(&gate.command(n))]),
    };
    let requesters: Vec<Process> = (0..requesters).map(start).collect();
    gate.has_begun(requesters.len()).await;
    let server = kill_and_start(server).await;
    gate.open();
    let count = requesters.len();
    for (n, requester) in requesters.into_iter().enumerate() {
        let done = requester.done().await;
        assert!(done.code == 0 && done.stdout.contains(&n.to_string()), "{n}: {done:?}");
    }
    gate.assert_each_once(0..count);
    device.says_times("connected to", 2).await;
    drop(server);
}

#[tokio::test]
async fn all_that_were_cut_by_the_death_of_the_server_learn_their_outcome() {
    all_learn_their_outcome(12).await;
}

#[tokio::test]
#[ignore = "it starts a hundred processes"]
async fn a_hundred_that_were_cut_by_the_death_of_the_server_learn_their_outcome() {
    all_learn_their_outcome(100).await;
}

#[tokio::test]
async fn who_comes_while_the_server_dies_is_told_truly_whether_it_ran() {
    const REQUESTERS: usize = 24;
    let (server, gate) = (Server::start_with(&SERVER).await, Gate::new());
    let _device = server.device("box", &DEVICE).await;
    let start = |n| server.start_command(&["exec", "--on", "box", "--", &gate.quick_command(n)]);
    let requesters: Vec<Process> = (0..REQUESTERS).map(start).collect();
    until("some to have run", || gate.written().len() >= REQUESTERS / 4).await;
    let _server = kill_and_start(server).await;
    for (n, requester) in requesters.into_iter().enumerate() {
        let done = requester.done().await;
        let lines = gate.written().get(&n).copied().unwrap_or(0);
        // Who was not let in before has submitted nothing.
        assert!(matches!((done.code, lines), (0, 1) | (123, 0)), "{n}: {lines} lines, {done:?}");
    }
}

#[tokio::test]
async fn no_task_that_was_answered_201_is_unknown_after_the_death_of_the_server() {
    const TASKS: usize = 100;
    let (mut server, gate) = (Server::start_with(&SERVER).await, Gate::new());
    let _device = server.device("box", &DEVICE).await;
    let api = Api::of(&server);
    let mut submissions = JoinSet::new();
    for n in 0..TASKS {
        let body = json!({"device": "box", "request": plan(&gate.quick_command(n))}).to_string();
        let request = api.request("POST", "/api/v1/tasks").body(body);
        submissions.spawn(async move {
            let answer = request.send().await.ok()?;
            assert_eq!(answer.status().as_u16(), 201);
            // An answer that breaks off in its middle has told its reader nothing.
            let task: Value = answer.json().await.ok()?;
            Some((n, id(&task)))
        });
    }
    let mut accepted = Vec::new();
    while let Some(answer) = submissions.join_next().await {
        accepted.extend(answer.unwrap());
        if accepted.len() == TASKS / 2 {
            server.process.signal(Signal::KILL);
        }
    }
    server.process.ended().await;
    assert!(accepted.len() >= TASKS / 2, "{}", accepted.len());
    let server = server.start_again_with(&SERVER).await;
    let api = Api::of(&server);
    for (n, id) in &accepted {
        let task = api.end_of(id).await;
        assert_eq!(task["state"], "completed", "{task}");
        assert_eq!(gate.written()[n], 1, "{task}");
    }
    // Of the others some were taken and their answers lost. None ran twice.
    assert!(gate.written().values().all(|lines| *lines == 1), "{:?}", gate.written());
}

#[tokio::test]
async fn nobody_says_cancelled_of_what_a_server_that_is_away_may_go_on_with() {
    let (mut server, gate) = (Server::start().await, Gate::new());
    let device = ["--exec", "shell", "--parallel-commands", "1", "--reconnect-first-wait", "0.1"];
    let _device = server.device("box", &device).await;
    let command = gate.command(0);
    let mut exec = server.start_command(&["exec", "--json", "--on", "box", "--", &command]);
    gate.has_begun(1).await;
    let plan = plan_of(&[&gate.quick_command(1)]);
    let mut run = server.start_command(&["run", "--json", "--on", "box", &plan]);
    run.says(r#""event":"accepted""#).await;
    server.process.kill().await;
    for process in [&mut exec, &mut run] {
        process.says(r#""event":"disconnected""#).await;
        process.signal(Signal::INT);
    }
    let (exec, run) = (exec.done().await, run.done().await);
    assert_eq!((exec.code, run.code), (121, 4), "{exec:?} {run:?}");

    let again = server.start_again().await;
    gate.open();
    for done in [&exec, &run] {
        let told: Value = serde_json::from_str(&done.stdout).expect(&done.stdout);
        assert_eq!(
            (&told["status"], &told["known"]),
            (&json!("failed"), &json!("outcome_unknown"))
        );
        let task = told["task"].as_str().unwrap();
        let error = told["error"].as_str().unwrap();
        assert!(error.contains("could not be told of the cancel"), "{error}");
        assert!(
            error.contains(&format!("may go on (see `flightdeck task show {task}`)")),
            "{error}"
        );
        // It did go on.
        let followed = again.run(&["task", "follow", task]).await;
        assert_eq!(followed.code, 0, "{followed:?}");
    }
    let told: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(told["lost"], json!(true), "{run:?}");
    gate.assert_each_once(0..2);
}
