//! Who is who: keys, numbers and files, and what a stranger gets.

use serde_json::json;
use server::Config;

use crate::party::Party;
use crate::rig::{
    Client, Mood, Rig, accepted, acknowledge, complete, send_results, settle, submit, task,
    task_that,
};

#[tokio::test(start_paused = true)]
async fn an_older_register_changes_nothing() {
    let rig = Rig::new().await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (device, _) = d.come(&rig).await;
    let mut late = d.clone();
    device.switch.cut();
    settle().await;
    d.n += 1;
    let (mut device, _) = d.come(&rig).await;
    let (mut peer, refused) = late.try_come(&rig).await;
    assert_eq!(refused["result"]["flightdeck"]["resume"], json!({"n": d.n}));
    assert_eq!(peer.closed().await.code.0, 4001);
    let (mut requester, _) = q.come(&rig).await;
    submit(&mut requester, &task("1")).await;
    let command = device.expect("command").await;
    send_results(&mut device, &command, "success");
    complete(&mut requester).await;
}

#[tokio::test(start_paused = true)]
async fn an_outdated_key_makes_no_new_identity() {
    let rig = Rig::new().await;
    let mut d = Client::device();
    let (device, _) = d.come(&rig).await;
    let mut outdated = d.clone();
    device.switch.cut();
    for _ in 0..2 {
        settle().await;
        let (device, granted) = d.come(&rig).await;
        assert_eq!(granted["resumed"], true);
        device.switch.cut();
    }
    settle().await;
    outdated.n = 10;
    let (mut peer, refused) = outdated.try_come(&rig).await;
    assert_eq!(refused["result"]["flightdeck"]["resume"], json!({"key": "unknown"}));
    assert_eq!(peer.closed().await.code.0, 1000);
    let (_device, granted) = d.come(&rig).await;
    assert_eq!(granted["resumed"], true);
}

#[tokio::test(start_paused = true)]
async fn a_first_confirmation_that_was_lost_costs_no_identity() {
    let rig = Rig::new().await;
    let mut d = Client::device();
    let (device, _) = d.try_come(&rig).await;
    device.switch.cut();
    settle().await;
    let (_device, granted) = d.come(&rig).await;
    assert_eq!(granted["resumed"], true);
}

#[tokio::test(start_paused = true)]
async fn a_confirmation_that_was_lost_leaves_the_key_before_it_valid() {
    let rig = Rig::new().await;
    let mut d = Client::device();
    let (device, _) = d.come(&rig).await;
    device.switch.cut();
    settle().await;
    for _ in 0..3 {
        let (device, answer) = d.try_come(&rig).await;
        assert_eq!(answer["result"]["flightdeck"]["resumed"], true, "{answer}");
        device.switch.cut();
        settle().await;
    }
    let (_device, granted) = d.come(&rig).await;
    assert_eq!(granted["resumed"], true);
}

#[tokio::test(start_paused = true)]
async fn a_key_takes_over_a_connection_that_is_alive() {
    let rig = Rig::new().await;
    let mut d = Client::device();
    let (mut old, _) = d.come(&rig).await;
    let (_new, granted) = d.come(&rig).await;
    assert_eq!(granted["resumed"], true);
    assert_eq!(old.closed().await.code.0, 4001);
    assert_eq!(rig.server.snapshot().clients, 1);
}

#[tokio::test(start_paused = true)]
async fn another_store_is_named_and_its_keys_are_not_asked_for() {
    let rig = Rig::new().await;
    let mut d = Client::device();
    d.store = Some(json!("elsewhere"));
    d.key = Some(json!("theirs"));
    let (_peer, refused) = d.try_come(&rig).await;
    let named = &refused["result"]["flightdeck"]["resume"]["store"];
    assert!(named.as_str().is_some_and(|id| !id.is_empty()), "{refused}");
    (d.store, d.key) = (None, None);
    let (_device, granted) = d.come(&rig).await;
    assert_eq!(&granted["store"], named);
    assert_eq!(granted["resumed"], false);
}

#[tokio::test(start_paused = true)]
async fn a_stranger_with_the_same_key_gets_the_seat_but_nothing_that_was_sent() {
    let rig = Rig::new().await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    submit(&mut requester, &task("1")).await;
    let command = device.expect("command").await;
    d.note(&command, "running");
    device.switch.cut();
    settle().await;
    let stranger = Party::join(&rig.server, "d", "device").await;
    let end = requester.expect("task_end").await;
    assert!(end["error"].as_str().unwrap().ends_with("the outcome is unknown"), "{end}");
    stranger.leave().await;
    settle().await;
    let (mut device, granted) = d.come(&rig).await;
    assert_eq!(granted["resumed"], true);
    assert_eq!(granted["commands"][command["response_id"].as_str().unwrap()], "discard");
    submit(&mut requester, &task("2")).await;
    device.expect("command").await;
}

#[tokio::test(start_paused = true)]
async fn what_a_client_left_that_is_forgotten_is_nobodys() {
    let mut rig = Rig::new().await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (mut device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    let id = submit(&mut requester, &task("1")).await;
    let command = device.expect("command").await;
    send_results(&mut device, &command, "success");
    complete(&mut requester).await;
    requester.leave().await;
    rig.restart().await;
    let mut other = Client { file: "another".to_owned(), ..Client::requester() };
    let (mut stranger, granted) = other.come(&rig).await;
    assert_eq!(granted["resumed"], false);
    stranger.say(json!({"type": "task", "session_id": "S-1", "target_id": "d", "request_id": "1",
        "metadata": {"flightdeck": {"task": id}}}));
    let answer = stranger.expect("error").await;
    assert_eq!(answer["result"]["flightdeck"]["refused"], "lost");
}

#[tokio::test(start_paused = true)]
async fn of_two_identities_with_one_file_the_newer_one_is_its_clients() {
    let mut rig = Rig::new().await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (_device, _) = d.come(&rig).await;
    let (requester, _) = q.try_come(&rig).await;
    // It leaves for good, and that cannot be stored.
    rig.disk.set(Mood::Full);
    requester.leave().await;
    settle().await;
    rig.disk.set(Mood::Works);
    let (mut requester, _) = q.try_come(&rig).await;
    let id = submit(&mut requester, &task_that("1", &json!("continue"))).await;
    rig.restart().await;
    let (mut requester, answer) = q.try_come(&rig).await;
    assert_eq!(answer["result"]["flightdeck"]["resumed"], true);
    requester.say(json!({"type": "task", "session_id": "S-1", "target_id": "d", "request_id": "1",
        "metadata": {"flightdeck": {"task": id}}}));
    assert_eq!(accepted(&mut requester).await, id);
}

#[tokio::test(start_paused = true)]
async fn what_passed_to_another_device_is_that_devices_also_after_a_restart() {
    let mut rig = Rig::new().await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (device, _) = d.come(&rig).await;
    let (mut requester, _) = q.come(&rig).await;
    for n in ["1", "2"] {
        submit(&mut requester, &task_that(n, &json!("continue"))).await;
    }
    device.switch.cut();
    settle().await;
    let mut other = Client { file: "fresh".to_owned(), ..Client::device() };
    let (mut device, _) = other.come(&rig).await;
    assert_eq!(requester.expect("task_end").await["session_id"], "S-1");
    assert_eq!(device.expect("task_end").await["session_id"], "S-1");
    let second = device.expect("command").await;
    other.note(&second, "running");
    submit(&mut requester, &task_that("3", &json!("continue"))).await;
    rig.restart().await;
    let (mut device, granted) = other.come(&rig).await;
    assert_eq!(granted["commands"][second["response_id"].as_str().unwrap()], "continue");
    send_results(&mut device, &second, "success");
    assert_eq!(device.expect("heartbeat").await["result"]["flightdeck"]["result"], "accepted");
    assert_eq!(device.expect("task_end").await["session_id"], "S-2");
    let third = device.expect("command").await;
    assert_eq!(third["session_id"], "S-3");
    send_results(&mut device, &third, "success");
    settle().await;
    rig.assert_quiet();
}

#[tokio::test(start_paused = true)]
async fn keys_are_in_no_confirmation_of_those_who_did_not_ask() {
    let rig = Rig::new().await;
    let (_peer, answer) = crate::peer::Peer::come(&rig.server, "d", "device").await;
    assert_eq!(answer["result"], json!(null));
    let mut client = Client::new("e", "device", &["progress"]);
    let (_peer, answer) = client.try_come(&rig).await;
    let granted = &answer["result"]["flightdeck"];
    assert_eq!(granted["features"], json!(["progress"]));
    assert!(granted["resume_key"].is_null() && granted["store"].is_null(), "{granted}");
}

#[tokio::test(start_paused = true)]
async fn a_register_of_the_wrong_shape_is_refused_and_is_no_legacy_peers() {
    let rig = Rig::new().await;
    let mut client = Client::device();
    let mut metadata = client.metadata();
    metadata["flightdeck"]["resume"]["n"] = json!("seven");
    let (peer, refused) = crate::peer::Peer::come_with(&rig.server, "d", "device", metadata).await;
    let text = refused["error"].as_str().unwrap();
    assert!(text.starts_with("Invalid message: metadata.flightdeck.resume.n: "), "{refused}");
    assert_eq!(Party::from(peer).closed().await.code.0, 1008);
    assert_eq!(rig.server.snapshot().identities, 0);
}

#[tokio::test(start_paused = true)]
async fn who_is_one_too_many_of_its_key_is_told_to_try_again_later() {
    let rig = Rig::with(Config { identities_per_key: 1, ..Config::default() }).await;
    let (mut d, mut q) = (Client::device(), Client::requester());
    let (_device, _) = d.come(&rig).await;
    let (mut peer, refused) = q.try_come(&rig).await;
    assert!(refused["error"].as_str().unwrap().starts_with("This key has 1 clients"), "{refused}");
    assert_eq!(refused["result"]["flightdeck"], json!({"refused": "retry"}));
    assert_eq!(peer.closed().await.code.0, 1013);
}

/// Takes an outcome, whatever it is.
async fn ended(requester: &mut Party) -> serde_json::Value {
    let end = requester.expect("task_end").await;
    acknowledge(requester, &end);
    end
}

/// Two devices with one id, whose server was killed: the first left three tasks, of which the first is lost. The other
/// one got the second, and one of its own. The tasks are those that are open.
struct Twins {
    rig: Rig,
    first: Client,
    other: Client,
    requester: Client,
    tasks: [String; 3],
    command: serde_json::Value,
}

impl Twins {
    async fn new() -> Self {
        let mut rig = Rig::new().await;
        let (mut first, mut requester) = (Client::device(), Client::requester());
        let (device, _) = first.come(&rig).await;
        let (mut submits, _) = requester.come(&rig).await;
        let going_on = |n| task_that(n, &json!("continue"));
        let lost = submit(&mut submits, &going_on("1")).await;
        let second = submit(&mut submits, &going_on("2")).await;
        let third = submit(&mut submits, &going_on("3")).await;
        device.switch.cut();
        settle().await;
        let mut other = Client { file: "another".to_owned(), ..Client::device() };
        let (mut stranger, granted) = other.come(&rig).await;
        assert_eq!(granted["resumed"], false);
        let end = ended(&mut submits).await;
        assert_eq!(end["response_id"].as_str(), Some(&*lost), "it went to another journal");
        stranger.expect("task_end").await;
        let command = stranger.expect("command").await;
        assert_eq!(command["session_id"], "S-2");
        let fourth = submit(&mut submits, &going_on("4")).await;
        settle().await;
        rig.restart().await;
        Self { rig, first, other, requester, tasks: [second, third, fourth], command }
    }
}

/// Does the next task, which must be this one.
async fn does(device: &mut Party, requester: &mut Party, session: &str, id: &str) {
    let command = loop {
        let heard = device.hear().await;
        if heard["type"] == "command" {
            break heard;
        }
    };
    assert_eq!(command["session_id"], session);
    send_results(device, &command, "success");
    assert_eq!(complete(requester).await["response_id"].as_str(), Some(id));
}

#[tokio::test(start_paused = true)]
async fn a_device_that_gets_back_what_a_stranger_had_loses_nothing_of_its_own() {
    let Twins { rig, mut first, mut requester, tasks, .. } = Twins::new().await;
    let (mut device, granted) = first.come(&rig).await;
    assert_eq!(granted["resumed"], true);
    let (mut requester, _) = requester.come(&rig).await;
    let end = ended(&mut requester).await;
    assert_eq!(end["response_id"].as_str(), Some(&*tasks[0]), "it went to another journal");
    assert!(end["error"].as_str().unwrap().ends_with("the outcome is unknown"), "{end}");
    does(&mut device, &mut requester, "S-3", &tasks[1]).await;
    does(&mut device, &mut requester, "S-4", &tasks[2]).await;
    settle().await;
    rig.assert_quiet();
}

#[tokio::test(start_paused = true)]
async fn whoever_of_two_with_one_id_comes_first_after_a_restart_goes_on_with_what_there_is() {
    let Twins { rig, mut other, mut requester, tasks, command, .. } = Twins::new().await;
    other.note(&command, "done");
    let (mut device, granted) = other.come(&rig).await;
    assert_eq!(granted["commands"][command["response_id"].as_str().unwrap()], "send");
    let (mut requester, _) = requester.come(&rig).await;
    send_results(&mut device, &command, "success");
    assert_eq!(complete(&mut requester).await["response_id"].as_str(), Some(&*tasks[0]));
    does(&mut device, &mut requester, "S-3", &tasks[1]).await;
    does(&mut device, &mut requester, "S-4", &tasks[2]).await;
    settle().await;
    rig.assert_quiet();
}
