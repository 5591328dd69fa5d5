//! An orchestrator whose connection, server or own process dies: each task has one outcome for it. The server is a
//! script.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod files;
mod stage;

use aip::message::{Confirmed, Feature, Mismatch, OnDisconnect, Refused, TaskSettings};
use aip::{ClientMessage, ClientMessageType, ServerMessage, ServerMessageType, Status};
use constellation::{Outcome, RequestError, Task, TaskEvent};
use stage::{Link, STORE, Stage, is_cancel, task, within};

async fn next(task: &mut Task) -> TaskEvent {
    within(task.next_event()).await
}

/// The outcome, after whatever comes before it.
async fn outcome(task: Task) -> Outcome {
    within(task.outcome()).await
}

fn accepted(id: &str) -> TaskEvent {
    TaskEvent::Accepted { task: Some(id.to_owned()) }
}

/// A task that is submitted and acknowledged.
async fn running(
    client: &constellation::Constellation,
    link: &mut Link,
    id: &str,
) -> (Task, ClientMessage) {
    let mut submitted = client.submit(task()).unwrap();
    let said = link.task().await;
    link.accept(&said, id);
    assert_eq!(next(&mut submitted).await, accepted(id));
    assert_eq!(submitted.id().as_deref(), Some(id));
    (submitted, said)
}

#[tokio::test(start_paused = true)]
async fn a_task_without_ack_is_sent_again_whole_after_a_loss() {
    let mut stage = Stage::new();
    let (client, mut link) = stage.client().await;
    let mut submitted = client.submit(task()).unwrap();
    let first = link.task().await;
    link.cut();
    assert!(matches!(next(&mut submitted).await, TaskEvent::Disconnected { .. }));
    let mut link = stage.back().await;
    assert_eq!(next(&mut submitted).await, TaskEvent::Reconnected);
    assert_eq!(link.task().await, first);
    link.accept(&first, "T1");
    assert_eq!(next(&mut submitted).await, accepted("T1"));
    link.end(&first, "T1");
    assert!(outcome(submitted).await.completed);
    link.acknowledgement("T1").await;
}

#[tokio::test(start_paused = true)]
async fn a_task_with_ack_is_asked_after_and_its_outcome_acknowledged_whenever_it_comes() {
    let mut stage = Stage::new();
    let (client, mut link) = stage.client().await;
    let (submitted, said) = running(&client, &mut link, "T1").await;
    // The outcome goes down with its link.
    link.cut();
    let mut link = stage.back().await;
    link.question(&said, "T1").await;
    link.accept(&said, "T1");
    link.end(&said, "T1");
    assert!(outcome(submitted).await.completed);
    link.acknowledgement("T1").await;
    // The acknowledgement goes down with the server.
    link.cut();
    let mut link = stage.back().await;
    link.nothing_follows().await;
    link.end(&said, "T1");
    link.acknowledgement("T1").await;
}

#[tokio::test(start_paused = true)]
async fn what_is_not_ours_is_neither_taken_nor_acknowledged() {
    let mut stage = Stage::new();
    let (client, mut link) = stage.client().await;
    let (submitted, said) = running(&client, &mut link, "T1").await;
    // A stranger's task of the same session id.
    link.end_session(said.session_id.as_ref(), "T0", Some("a stranger's"));
    link.nothing_follows().await;
    link.end(&said, "T1");
    // Of two outcomes the first counts, and both are acknowledged.
    link.end_session(said.session_id.as_ref(), "T1", Some("too late"));
    link.acknowledgement("T1").await;
    link.acknowledgement("T1").await;
    assert!(outcome(submitted).await.completed);
}

#[tokio::test(start_paused = true)]
async fn a_cancel_is_said_again_until_the_outcome_is_there() {
    let mut stage = Stage::new();
    let (client, mut link) = stage.client().await;
    assert!(client.may_cancel() && client.may_detach());
    let early = client.submit(task()).unwrap();
    early.cancel().unwrap();
    let first = link.task().await;
    is_cancel(&link.next().await, None, first.request_id.as_ref());
    let (late, second) = running(&client, &mut link, "T2").await;
    late.cancel().unwrap();
    is_cancel(&link.next().await, Some("T2"), None);
    link.cut();

    let mut link = stage.back().await;
    assert_eq!(link.task().await, first);
    is_cancel(&link.next().await, None, first.request_id.as_ref());
    link.question(&second, "T2").await;
    is_cancel(&link.next().await, Some("T2"), None);
    link.accept(&first, "T1");
    link.end_session(first.session_id.as_ref(), "T1", Some("Task was cancelled by 'q'"));
    link.acknowledgement("T1").await;
    assert_eq!(outcome(early).await.error.as_deref(), Some("Task was cancelled by 'q'"));
    link.end(&second, "T2");
    link.acknowledgement("T2").await;
    late.cancel().unwrap();
    link.nothing_follows().await;
    assert!(outcome(late).await.completed, "a task that has ended is not touched");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_lost_commits_says_what_it_has_lost_and_what_was_told_stands() {
    let mut stage = Stage::new();
    let (client, mut link) = stage.client().await;
    let (told, ended) = running(&client, &mut link, "T1").await;
    link.end(&ended, "T1");
    link.acknowledgement("T1").await;
    let (known, open) = running(&client, &mut link, "T2").await;
    let (forgotten, lost) = running(&client, &mut link, "T3").await;
    let unsure = client.submit(task()).unwrap();
    let unacknowledged = link.task().await;
    link.cut();

    let (mut link, resume) = stage.arrival().await;
    assert_eq!(resume.store.as_deref(), Some(STORE));
    assert_eq!(resume.key.as_deref(), Some("a-key"));
    link.confirm("S2", true, true);
    link.question(&open, "T2").await;
    link.accept(&open, "T2");
    link.end_session(
        open.session_id.as_ref(),
        "T2",
        Some("the store lost it; its outcome is unknown"),
    );
    link.question(&lost, "T3").await;
    link.refuse(&lost, Refused::Lost, "Task T3 is not known here: its outcome is unknown");
    assert_eq!(link.task().await, unacknowledged, "it says the store that it was first sent to");
    link.refuse(
        &unacknowledged,
        Refused::Lost,
        "Request is not known here: its outcome is unknown",
    );
    link.acknowledgement("T2").await;
    assert!(outcome(told).await.completed);
    let unknown = outcome(known).await;
    assert!(!unknown.is_lost && unknown.error.unwrap().ends_with("its outcome is unknown"));
    for task in [forgotten, unsure] {
        let outcome = outcome(task).await;
        assert!(outcome.is_lost && !outcome.completed, "{outcome:?}");
    }
    link.cut();
    let (mut link, resume) = stage.arrival().await;
    assert_eq!(resume.store.as_deref(), Some("S2"));
    link.confirm("S2", false, true);
    link.nothing_follows().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_server_does_not_know_any_more_is_lost() {
    let mut stage = Stage::new();
    let (client, mut link) = stage.client().await;
    let (submitted, _) = running(&client, &mut link, "T1").await;
    link.cut();
    let (mut link, _) = stage.arrival().await;
    link.confirm(STORE, false, false);
    assert!(outcome(submitted).await.is_lost);
    link.nothing_follows().await;
    let (next, said) = running(&client, &mut link, "T2").await;
    link.end(&said, "T2");
    assert!(outcome(next).await.completed, "the client itself goes on");
}

#[tokio::test(start_paused = true)]
async fn another_server_in_its_place_is_met_anew_and_what_the_first_one_had_is_lost() {
    let mut stage = Stage::new();
    let (client, mut link) = stage.client().await;
    let (submitted, _) = running(&client, &mut link, "T1").await;
    link.cut();
    let (link, first) = stage.arrival().await;
    link.mismatch(Mismatch { store: Some("S9".to_owned()), ..Mismatch::default() });
    let (mut link, second) = stage.arrival().await;
    assert_eq!((&second.store, &second.key), (&None, &None));
    assert!(second.n > first.n);
    link.confirm("S9", false, false);
    assert!(outcome(submitted).await.is_lost);
    link.nothing_follows().await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_task_says_whether_it_may_be_submitted_again() {
    let mut stage = Stage::new();
    let (client, mut link) = stage.client().await;
    for how in [Refused::Final, Refused::Retry] {
        let submitted = client.submit(task()).unwrap();
        let said = link.task().await;
        link.refuse(&said, how, "not now");
        let outcome = outcome(submitted).await;
        assert_eq!((outcome.refused, outcome.is_lost), (Some(how), false));
        assert_eq!(outcome.error.as_deref(), Some("not now"));
    }
    // What was accepted is never a matter of the caller again.
    let (submitted, said) = running(&client, &mut link, "T1").await;
    link.refuse(&said, Refused::Retry, "the server is stopping");
    link.cut();
    let mut link = stage.back().await;
    link.question(&said, "T1").await;
    link.end(&said, "T1");
    assert!(outcome(submitted).await.completed);
}

#[tokio::test(start_paused = true)]
async fn a_task_says_what_becomes_of_it_without_us() {
    let mut stage = Stage::new();
    let (client, mut link) = stage.client().await;
    for (on_disconnect, expected) in [
        (OnDisconnect::Cancel, None),
        (OnDisconnect::Continue, Some(OnDisconnect::Continue)),
        (OnDisconnect::after(60), Some(OnDisconnect::after(60))),
    ] {
        let _submitted = client.submit(constellation::NewTask { on_disconnect, ..task() }).unwrap();
        let said = link.task().await;
        let settings = TaskSettings::of(said.metadata.as_ref()).unwrap();
        assert_eq!(settings.on_disconnect, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn many_tasks_are_said_again_a_few_at_a_time() {
    const TASKS: usize = 200;
    let mut stage = Stage::new();
    let (client, mut link) = stage.client().await;
    let tasks: Vec<_> = (0..TASKS).map(|_| client.submit(task()).unwrap()).collect();
    let mut said = Vec::new();
    for _ in 0..TASKS {
        said.push(link.task().await);
    }
    link.cut();
    let mut link = stage.back().await;
    let mut again = Vec::new();
    for _ in 0..64 {
        again.push(link.task().await);
    }
    link.nothing_follows().await;
    for (at, said) in said.iter().enumerate() {
        link.accept(said, &format!("T{at}"));
        if again.len() < TASKS {
            again.push(link.task().await);
        }
    }
    assert_eq!(again, said, "in their order");
    for (at, said) in said.iter().enumerate() {
        link.end(said, &format!("T{at}"));
    }
    for task in tasks {
        assert!(outcome(task).await.completed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_without_ack_is_not_come_back_to_and_its_tasks_are_lost() {
    let progress = Confirmed { features: vec![Feature::Progress], ..Confirmed::default() };
    for granted in [None, Some(&progress)] {
        let mut stage = Stage::new();
        let connecting =
            constellation::Constellation::connect(stage.settings.clone(), "q".parse().unwrap());
        let confirming = async {
            let (link, _) = stage.arrival().await;
            link.confirm_as(granted);
            link
        };
        let (client, mut link) = tokio::join!(connecting, confirming);
        let client = client.unwrap();
        let mut submitted = client.submit(task()).unwrap();
        let said = link.expect(ClientMessageType::Task).await;
        assert_eq!(said.metadata, None);
        let kept = constellation::NewTask { on_disconnect: OnDisconnect::Continue, ..task() };
        assert!(matches!(client.submit(kept), Err(RequestError::NotGranted(_))));
        assert!(matches!(submitted.cancel(), Err(RequestError::NotGranted(_))));
        link.say(&ServerMessage {
            session_id: said.session_id.clone(),
            ..ServerMessage::new(ServerMessageType::Heartbeat, Status::Ok)
        });
        assert_eq!(next(&mut submitted).await, TaskEvent::Accepted { task: None });
        link.cut();
        assert!(outcome(submitted).await.is_lost);
        assert!(matches!(client.submit(task()), Err(RequestError::NotConnected(_))));
        stage.nobody_comes().await;
    }
}
