//! What passes between a command and its requester while it runs: output, input, and how far each end has taken them.

use std::time::Duration;

use serde_json::{Value, json};

use super::party::Party;
use super::rig::{Client, Rig, complete, send_results, settle, submit, taken, task};

fn device() -> Client {
    Client::new("d", "device", &["ack", "cancel", "resume", "output", "input"])
}

fn requester() -> Client {
    let features = ["ack", "request_id", "cancel", "detach", "output", "input"];
    Client::new("q", "constellation", &features)
}

/// A task that asks for streams.
fn streaming(streams: &Value) -> Value {
    let mut task = task("one");
    task["metadata"] = json!({"flightdeck": {"streams": streams, "on_disconnect": "continue"}});
    task
}

fn up(device: &mut Party, command: &Value, part: &Value) {
    device.say(json!({
        "type": "heartbeat", "status": "continue",
        "session_id": command["session_id"], "prev_response_id": command["response_id"],
        "metadata": {"flightdeck": part},
    }));
}

fn chunk(offset: u64, text: &str) -> Value {
    json!({"chunks": [{"call_id": "c", "stream": "stdout", "n": 0, "offset": offset, "held": 0, "text": text}]})
}

fn down(requester: &mut Party, task: &str, part: &Value) {
    requester.say(json!({
        "type": "heartbeat", "status": "continue", "session_id": "S-one",
        "prev_response_id": task, "metadata": {"flightdeck": part},
    }));
}

/// A command that runs with these streams, and its two ends.
struct Stage {
    rig: Rig,
    device: Client,
    requester: Client,
    at_device: Party,
    at_requester: Party,
    command: Value,
    task: String,
}

impl Stage {
    async fn new(streams: Value) -> Self {
        let rig = Rig::new().await;
        let (mut device, mut requester) = (device(), requester());
        let (mut at_device, _) = device.come(&rig).await;
        let (mut at_requester, _) = requester.come(&rig).await;
        let task = submit(&mut at_requester, &streaming(&streams)).await;
        let command = at_device.expect("command").await;
        device.note(&command, "running");
        Self { rig, device, requester, at_device, at_requester, command, task }
    }

    fn writes(&mut self, offset: u64, text: &str) {
        up(&mut self.at_device, &self.command, &chunk(offset, text));
    }

    fn takes(&mut self, offset: u64, again: bool) {
        let part = json!({"taken": {"step": 1, "stdout": offset, "stderr": 0, "again": again}});
        down(&mut self.at_requester, &self.task, &part);
    }

    /// What the requester hears of the streams.
    async fn heard(&mut self) -> Value {
        let message = self.at_requester.expect("heartbeat").await;
        assert_eq!(
            (&message["status"], &message["session_id"]),
            (&json!("continue"), &json!("S-one"))
        );
        let part = message["result"]["flightdeck"].clone();
        assert_eq!((&part["task"], &part["step"]), (&json!(self.task), &json!(1)), "{message}");
        part
    }

    /// What the device hears of them.
    async fn told(&mut self) -> Value {
        let message = self.at_device.expect("heartbeat").await;
        assert_eq!(message["response_id"], self.command["response_id"], "{message}");
        message["result"]["flightdeck"].clone()
    }
}

#[tokio::test(start_paused = true)]
async fn output_and_what_was_taken_of_it_pass_both_ways() {
    let mut stage = Stage::new(json!({"output": true, "window": 8192})).await;
    assert_eq!(
        stage.command["result"]["flightdeck"]["streams"],
        json!({"output": true, "window": 8192})
    );
    stage.writes(0, "line\n\u{1b}");
    let heard = stage.heard().await;
    assert_eq!(heard["chunks"], chunk(0, "line\n\u{1b}")["chunks"]);
    stage.takes(6, false);
    assert_eq!(stage.told().await["taken"]["stdout"], 6);
    // Results come behind it, as always.
    send_results(&mut stage.at_device, &stage.command, "success");
    complete(&mut stage.at_requester).await;
    assert_eq!(taken(&mut stage.at_device).await, "accepted");
}

#[tokio::test(start_paused = true)]
async fn a_task_gets_the_streams_that_both_ends_can_have() {
    let rig = Rig::new().await;
    let (mut legacy, _) = Client::device().come(&rig).await;
    let (mut at, _) = requester().come(&rig).await;
    at.say(streaming(&json!({"output": true})));
    let ack = at.expect("heartbeat").await;
    assert_eq!(ack["result"]["flightdeck"]["streams"], Value::Null, "{ack}");
    let command = legacy.expect("command").await;
    assert_eq!(command["result"], Value::Null, "{command}");
    let mut second = streaming(&json!({"output": true, "input": true}));
    second["request_id"] = json!("two");
    at.say(second);
    let refused = at.expect("error").await;
    assert_eq!(refused["error"], "Device 'd' takes no input");
    assert_eq!(refused["result"]["flightdeck"]["refused"], "final");
}

#[tokio::test(start_paused = true)]
async fn more_than_a_window_closes_its_sender_and_nobody_else() {
    let mut stage = Stage::new(json!({"output": true, "input": true, "window": 4096})).await;
    stage.writes(0, &"x".repeat(4000));
    stage.heard().await;
    stage.writes(4000, &"x".repeat(97));
    assert_eq!(stage.at_device.closed().await.code.0, 1008);
    let (at_device, _) = stage.device.come(&stage.rig).await;
    stage.at_device = at_device;
    // Before the command reads, what is sent is not for it.
    let input = |offset: u64, text: String| json!({"input": {"step": 1, "n": 0, "offset": offset, "text": text}});
    down(&mut stage.at_requester, &stage.task, &input(0, "early".to_owned()));
    stage.at_device.expect_silence(Duration::from_secs(1)).await;
    up(&mut stage.at_device, &stage.command, &json!({"taken": {"stdin": 0}}));
    assert_eq!(stage.heard().await["taken"], json!({"stdin": 0}));
    down(&mut stage.at_requester, &stage.task, &input(0, "x".repeat(4096)));
    assert_eq!(stage.told().await["input"]["offset"], 0);
    down(&mut stage.at_requester, &stage.task, &input(4096, "x".to_owned()));
    assert_eq!(stage.at_requester.closed().await.code.0, 1008);
}

#[tokio::test(start_paused = true)]
async fn nobody_but_its_requester_says_anything_of_a_tasks_streams() {
    let mut stage = Stage::new(json!({"output": true})).await;
    stage.writes(0, "x");
    stage.heard().await;
    let mut other = Client { id: "other", file: "other".to_owned(), ..requester() };
    let (mut at_other, _) = other.come(&stage.rig).await;
    let part = json!({"taken": {"step": 1, "stdout": 1, "stderr": 0}});
    down(&mut at_other, &stage.task, &part);
    down(&mut stage.at_requester, &stage.task, &json!({"taken": {"step": 2, "stdout": 1}}));
    settle().await;
    stage.takes(1, false);
    assert_eq!(stage.told().await["taken"], json!({"step": 1, "stdout": 1, "stderr": 0}));
    stage.at_device.expect_silence(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_written_while_its_requester_was_away_is_asked_for_when_it_is_back() {
    let mut stage = Stage::new(json!({"output": true})).await;
    stage.at_requester = {
        let gone =
            std::mem::replace(&mut stage.at_requester, stage.requester.come(&stage.rig).await.0);
        drop(gone);
        stage.requester.come(&stage.rig).await.0
    };
    stage.writes(0, "here");
    assert_eq!(stage.heard().await["chunks"][0]["text"], "here");
    let Stage { at_requester, .. } = stage;
    at_requester.leave().await;
    up(&mut stage.at_device, &stage.command, &chunk(4, "away"));
    stage.at_device.expect_silence(Duration::from_secs(5)).await;
    let (mut at_requester, _) = stage.requester.come(&stage.rig).await;
    let again = stage.at_device.expect("heartbeat").await;
    assert_eq!(again["result"]["flightdeck"]["taken"]["again"], true, "{again}");
    up(&mut stage.at_device, &stage.command, &chunk(4, "away"));
    let heard = at_requester.expect("heartbeat").await;
    assert_eq!(heard["result"]["flightdeck"]["chunks"][0]["text"], "away");
}

#[tokio::test(start_paused = true)]
async fn the_server_takes_the_place_of_a_requester_that_stays_away() {
    let mut stage = Stage::new(json!({"output": true, "window": 4096})).await;
    let Stage { at_requester, .. } = stage;
    at_requester.leave().await;
    up(&mut stage.at_device, &stage.command, &chunk(0, &"x".repeat(4096)));
    stage.at_device.expect_silence(Duration::from_secs(9)).await;
    let again = stage.at_device.expect("heartbeat").await;
    assert_eq!(again["result"]["flightdeck"]["taken"]["again"], true, "{again}");
    for offset in [0, 4096, 8192] {
        up(&mut stage.at_device, &stage.command, &chunk(offset, &"x".repeat(4096)));
        let told = stage.at_device.expect("heartbeat").await;
        assert_eq!(told["result"]["flightdeck"]["taken"]["stdout"], offset + 4096, "{told}");
    }
    // Its requester is back, and goes on where the device still has something.
    let (mut at_requester, _) = stage.requester.come(&stage.rig).await;
    let part = json!({"taken": {"step": 1, "stdout": 0, "stderr": 0, "again": true}});
    down(&mut at_requester, &stage.task, &part);
    assert_eq!(stage.at_device.expect("heartbeat").await["result"]["flightdeck"], part);
    up(&mut stage.at_device, &stage.command, &chunk(12288, "new"));
    let heard = at_requester.expect("heartbeat").await;
    assert_eq!(heard["result"]["flightdeck"]["chunks"][0]["offset"], 12288);
}

#[tokio::test(start_paused = true)]
async fn streams_outlive_the_server() {
    let mut stage = Stage::new(json!({"output": true, "window": 4096})).await;
    stage.writes(0, &"x".repeat(4000));
    stage.heard().await;
    stage.takes(4000, false);
    stage.told().await;
    stage.rig.restart().await;
    let (at_device, _) = stage.device.come(&stage.rig).await;
    stage.at_device = at_device;
    let (at_requester, _) = stage.requester.come(&stage.rig).await;
    stage.at_requester = at_requester;
    stage.writes(4000, &"y".repeat(4096));
    assert_eq!(stage.heard().await["chunks"][0]["offset"], 4000);
    stage.takes(8096, false);
    assert_eq!(stage.told().await["taken"]["stdout"], 8096);
}
