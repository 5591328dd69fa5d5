//! `run` and `exec` with a server that keeps their outcomes: what they say and how they exit when a connection is lost,
//! when they are cancelled, and when they leave on purpose. The server is a script.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::process::Done;
use common::{Home, Peer, Process, PythonServer, within};
use rustix::process::Signal;
use serde_json::{Value, json};

/// A server that keeps outcomes, and somebody with a home.
struct Script {
    server: PythonServer,
    home: Home,
}

impl Script {
    async fn start() -> Self {
        Self { server: PythonServer::start().await, home: Home::new() }
    }

    fn run(&self, args: &[&str]) -> Process {
        Process::start(self.home.command(args).env("FLIGHTDECK_SERVER", self.server.url()))
    }

    /// The next connection, confirmed; `resumed` if its client is known.
    async fn accept(&self, resumed: bool) -> Peer {
        let granted = json!({"version": 1, "server": "a script", "connection": "c",
            "features": ["progress", "ack", "request_id", "cancel", "detach"],
            "store": "S1", "resumed": resumed, "resume_key": "a-key"});
        let (peer, register) =
            self.server.accept_granting(json!({"result": {"flightdeck": granted}})).await;
        let asked = &register["metadata"]["flightdeck"];
        assert_eq!(asked["resume"]["store"], if resumed { json!("S1") } else { Value::Null });
        peer
    }

    /// A command whose task is accepted.
    async fn accepted(&self, args: &[&str]) -> (Process, Peer, Value) {
        let process = self.run(args);
        let mut link = self.accept(false).await;
        let task = link.expect("task").await;
        accept(&mut link, &task).await;
        (process, link, task)
    }
}

async fn accept(link: &mut Peer, task: &Value) {
    let accepted = json!({"task": "T1", "request_id": task["request_id"]});
    let fields = json!({"session_id": task["session_id"], "result": {"flightdeck": accepted}});
    link.say_as_server("heartbeat", "ok", fields).await;
}

/// Ends a task, and takes the acknowledgement.
async fn end(link: &mut Peer, task: &Value, status: &str, fields: Value) {
    let mut said = json!({"session_id": task["session_id"], "response_id": "T1"});
    said.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    link.say_as_server("task_end", status, said).await;
    let taken = link.expect("task_end").await;
    assert_eq!((&taken["status"], &taken["prev_response_id"]), (&json!("ok"), &json!("T1")));
}

/// What a command that printed this returned.
fn printed(stdout: &str) -> Value {
    let result = json!({"exit_code": 0, "stdout": stdout, "stderr": ""});
    json!({"result": [{"request": "r", "result": [[{"status": "success", "result": result}]]}]})
}

fn ended(done: &Done) -> Value {
    serde_json::from_str(&done.stdout).expect(&done.stdout)
}

/// The next message, heartbeats aside, which asks for the cancel of the task.
/// A cancel of the task that we called this, if we have.
async fn expect_cancel(link: &mut Peer, task: impl Into<Value>) {
    let cancel = link.expect("task_end").await;
    assert_eq!((&cancel["status"], &cancel["prev_response_id"]), (&json!("failed"), &task.into()));
    assert_eq!(cancel["metadata"], json!({"flightdeck": {"cancel": "request"}}));
}

#[tokio::test]
async fn a_lost_connection_costs_one_line_and_another_when_it_is_back() {
    let script = Script::start().await;
    for args in [&["run", "--on", "box", "tidy up"][..], &["exec", "--on", "box", "--", "x"]] {
        let (mut process, link, task) = script.accepted(args).await;
        let settings = &task["metadata"]["flightdeck"];
        assert_eq!(settings["on_disconnect"], json!({"cancel_after_s": 60}));
        drop(link);
        process.says("Lost the server").await;
        let mut link = script.accept(true).await;
        process.says("The server is back").await;
        let asked = link.expect("task").await;
        assert_eq!((&asked["request_id"], &asked["request"]), (&task["request_id"], &Value::Null));
        assert_eq!(asked["metadata"], json!({"flightdeck": {"task": "T1"}}));
        accept(&mut link, &task).await;
        end(&mut link, &task, "completed", printed("done\n")).await;
        let done = process.done().await;
        assert!(done.code == 0 && done.stdout.contains("done"), "{done:?}");
        for line in ["Lost the server", "The server is back"] {
            assert_eq!(done.stderr.matches(line).count(), 1, "{done:?}");
        }
        assert_eq!(link.expect_close().await.0, 1000);
    }
}

#[tokio::test]
async fn ctrl_c_cancels_and_waits_for_what_the_device_says() {
    let script = Script::start().await;
    for (args, code) in [
        (&["run", "--json", "--on", "box", "tidy up"][..], 3),
        (&["exec", "--json", "--on", "box", "--", "x"], 120),
    ] {
        for (said, known) in [("stopped", "stopped"), ("not_confirmed", "not_confirmed")] {
            let (mut process, mut link, task) = script.accepted(args).await;
            process.says(r#""task":"T1""#).await;
            process.signal(Signal::INT);
            expect_cancel(&mut link, "T1").await;
            let error = format!("Task was cancelled by 'x': {said}");
            end(&mut link, &task, "failed", json!({"error": error})).await;
            let done = process.done().await;
            let ended = ended(&done);
            assert_eq!(done.code, code, "{done:?}");
            assert_eq!((&ended["status"], &ended["known"]), (&json!("cancelled"), &json!(known)));
            assert_eq!(ended["task"], "T1");
        }
        // A second one leaves at once, and nobody can say that the task is cancelled.
        let (mut process, mut link, _) = script.accepted(args).await;
        process.says("accepted").await;
        process.signal(Signal::INT);
        expect_cancel(&mut link, "T1").await;
        process.signal(Signal::INT);
        let (done, _) = tokio::join!(process.done(), link.expect_close());
        assert_eq!(done.code, if code == 120 { 121 } else { 4 }, "{done:?}");
        assert!(done.stderr.contains("its outcome is unknown"), "{done:?}");
        if code == 3 {
            let ended = ended(&done);
            assert_eq!(
                (&ended["known"], &ended["lost"]),
                (&json!("outcome_unknown"), &json!(true))
            );
        }
    }
}

#[tokio::test]
async fn ctrl_c_before_a_task_is_accepted_cancels_it_also_with_detach() {
    let script = Script::start().await;
    for (args, code) in [
        (&["run", "--detach", "--on", "box", "tidy up"][..], 3),
        (&["exec", "--detach", "--on", "box", "--", "x"], 120),
    ] {
        let process = script.run(args);
        let mut link = script.accept(false).await;
        let task = link.expect("task").await;
        process.signal(Signal::INT);
        expect_cancel(&mut link, Value::Null).await;
        accept(&mut link, &task).await;
        end(&mut link, &task, "failed", json!({"error": "Task was cancelled by 'x'"})).await;
        let done = process.done().await;
        assert_eq!((done.code, done.stdout.as_str()), (code, ""), "{done:?}");
    }
}

#[tokio::test]
async fn a_task_that_is_left_on_purpose_goes_on_and_its_id_is_printed() {
    let script = Script::start().await;
    for (args, expected) in [
        (&["run", "--detach", "--on", "box", "tidy up"][..], "T1\n"),
        (&["exec", "--detach", "--on", "box", "--", "x"], "T1\n"),
        (
            &["run", "--detach", "--json", "--on", "box", "y"],
            "{\"event\":\"accepted\",\"task\":\"T1\"}\n",
        ),
    ] {
        let (process, mut link, task) = script.accepted(args).await;
        assert_eq!(task["metadata"]["flightdeck"]["on_disconnect"], "continue");
        let (done, closed) = tokio::join!(process.done(), link.expect_close());
        assert_eq!((done.code, done.stdout.as_str(), closed.0), (0, expected, 1000), "{done:?}");
    }
    // A server that cannot do it is not sent the task.
    let process = script.run(&["run", "--detach", "--on", "box", "tidy up"]);
    let (mut link, _) = script.server.accept().await;
    let done = within("its end", process.done()).await;
    assert!(done.code == 4 && done.stderr.contains("--detach"), "{done:?}");
    drop(link.next().await);
}

#[tokio::test]
async fn what_is_known_is_said_by_the_code_and_for_programs() {
    let script = Script::start().await;
    let exec = ["exec", "--json", "--on", "box", "--", "x"];
    let result = |error: &str| json!([{"result": [[{"status": "failure", "error": error}]]}]);
    let gone = "Task was cancelled because target device disconnected ('box')";
    for (error, result, code, known) in [
        (gone, result("The device left; its outcome is unknown"), 121, "outcome_unknown"),
        (gone, result("The device left; it was never sent"), 122, "never_sent"),
        ("Task was cancelled by 'me': could_not_stop", json!([]), 120, "could_not_stop"),
    ] {
        let (process, mut link, task) = script.accepted(&exec).await;
        end(&mut link, &task, "failed", json!({"error": error, "result": result})).await;
        let done = process.done().await;
        assert_eq!((done.code, &ended(&done)["known"]), (code, &json!(known)), "{done:?}");
    }
    let run = ["run", "--json", "--on", "box", "tidy up"];
    for (args, refused, code) in [
        (&exec[..], "retry", 123),
        (&exec, "final", 123),
        (&exec, "lost", 121),
        (&run, "retry", 4),
        (&run, "final", 4),
        (&run, "lost", 4),
    ] {
        let process = script.run(args);
        let mut link = script.accept(false).await;
        let task = link.expect("task").await;
        let refusal = json!({"request_id": task["request_id"], "refused": refused});
        let fields = json!({"session_id": task["session_id"], "error": "no",
            "result": {"flightdeck": refusal}});
        link.say_as_server("error", "error", fields).await;
        let done = process.done().await;
        let (is_lost, ended) = (refused == "lost", ended(&done));
        assert_eq!(done.code, code, "{refused}: {done:?}");
        assert_eq!(ended["refused"], if is_lost { Value::Null } else { json!(refused) });
    }
}
