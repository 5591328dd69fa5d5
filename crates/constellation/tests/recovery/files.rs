//! An orchestrator that keeps its tasks in files, and ends in between.

use std::path::Path;

use constellation::{Constellation, Keep, TaskEvent};
use link::Ambient;

use crate::stage::{Link, Stage, is_cancel, task};
use crate::{accepted, next, outcome, running};

/// Kills a client: nothing of it is said any more.
fn kill(client: Constellation, link: Link) {
    link.cut();
    drop(client);
}

async fn starts_again(stage: &mut Stage, path: &Path) -> (Constellation, Link) {
    // The lock goes with the last of the client's tasks.
    let keep = loop {
        match Keep::open(path, &Ambient::system()) {
            Ok(keep) => break keep,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    stage.client_keeping(keep, true).await
}

#[tokio::test(start_paused = true)]
async fn tasks_outlive_their_client_and_each_outcome_is_told_once() {
    let (mut stage, folder) = (Stage::new(), tempfile::tempdir().unwrap());
    let path = folder.path().join("q.json");
    let keep = Keep::open(&path, &Ambient::system()).unwrap();
    let (client, mut link) = stage.client_keeping(keep, false).await;
    assert!(client.held().is_empty());
    let (asked, running_one) = running(&client, &mut link, "T1").await;
    let (told, ended) = running(&client, &mut link, "T2").await;
    let unsent = client.submit(task()).unwrap();
    let unacknowledged = link.task().await;
    unsent.cancel().unwrap();
    link.next().await;
    // It is acknowledged, and nobody has taken it yet.
    link.end(&ended, "T2");
    link.acknowledgement("T2").await;
    // Another process finds the files as this one leaves them, whose tasks nobody takes any more.
    kill(client, link);
    let copy = folder.path().join("copy.json");
    std::fs::copy(&path, &copy).unwrap();
    std::fs::copy(path.with_extension("tasks"), copy.with_extension("tasks")).unwrap();
    let _killed = (asked, told, unsent);

    let (client, mut link) = starts_again(&mut stage, &copy).await;
    let held = client.held();
    assert!(client.held().is_empty(), "each is handed out once");
    let [mut asked, mut told, unsent] = <[_; 3]>::try_from(held).ok().unwrap();
    link.question(&running_one, "T1").await;
    assert_eq!(link.task().await, unacknowledged);
    is_cancel(&link.next().await, None, unacknowledged.request_id.as_ref());
    assert_eq!(next(&mut told).await, accepted("T2"));
    assert!(matches!(next(&mut told).await, TaskEvent::Ended(end) if end.completed));
    assert_eq!(next(&mut asked).await, accepted("T1"));
    link.end(&running_one, "T1");
    link.acknowledgement("T1").await;
    assert!(outcome(asked).await.completed);
    // An outcome whose acknowledgement the server has lost.
    link.end(&ended, "T2");
    link.acknowledgement("T2").await;
    link.accept(&unacknowledged, "T3");
    link.end_session(unacknowledged.session_id.as_ref(), "T3", Some("Task was cancelled by 'q'"));
    link.acknowledgement("T3").await;
    assert!(!outcome(unsent).await.completed);
    drop(told);
    kill(client, link);

    let (client, mut link) = starts_again(&mut stage, &copy).await;
    assert!(client.held().is_empty(), "nothing is left");
    link.nothing_follows().await;
    link.end(&ended, "T2");
    link.acknowledgement("T2").await;
}
