//! Losses of the link, the server, the device and its power: the device's side of each recovery scenario. A command
//! writes one line when it runs.

use aip::message::{HeldState, Instruction, Taken};
use serde_json::json;
use tokio::time::Duration;

use super::bench::{ALL, Bench, WINDOW, command, r, seconds};

const S: Duration = Duration::from_secs(1);

/// A moment in which everything that is under way without a clock happens.
const MOMENT: Duration = Duration::from_millis(10);

#[tokio::test(start_paused = true)]
async fn a_command_that_was_never_read_is_run_when_it_comes_again() {
    let mut bench = Bench::new().await;
    let mut wire = bench.connect().await;
    wire.command(&r(1), "s", json!({}));
    wire.drop_now().await;
    let mut wire = bench.accept().await;
    assert_eq!((wire.listed(), &wire.resume.newest), (vec![], &None));
    wire.confirm(&[]);
    wire.command(&r(1), "s", json!({}));
    assert_eq!(wire.error(&r(1)).await, "");
    assert_eq!(bench.lines().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_received_command_is_started_after_the_devices_death_and_one_that_ran_is_not() {
    let mut bench = Bench::new().await;
    let mut wire = bench.connect().await;
    wire.command(&r(1), "s", json!({"line": "runs", "seconds": 5}));
    wire.command(&r(2), "t", json!({"line": "waits"}));
    wire.idle(S).await;
    bench.restart().await;
    let mut wire = bench.accept().await;
    assert_eq!(wire.listed(), [(r(1), HeldState::Done), (r(2), HeldState::Received)]);
    assert_eq!(wire.resume.newest, Some(r(2)));
    wire.confirm(&[(&r(1), Instruction::Send), (&r(2), Instruction::Continue)]);
    assert_eq!(wire.error(&r(1)).await, "interrupted, outcome unknown");
    assert_eq!(wire.error(&r(2)).await, "");
    assert_eq!(bench.lines(), ["runs", "waits"]);
}

#[tokio::test(start_paused = true)]
async fn of_a_command_that_was_cut_off_the_actions_before_are_told() {
    let mut bench = Bench::new().await;
    let mut wire = bench.connect().await;
    wire.send(&command(&r(1), "s", &[json!({"line": "first"}), seconds(5), json!({})]));
    wire.idle(S).await;
    bench.restart().await;
    let mut wire = bench.accept().await;
    wire.confirm(&[(&r(1), Instruction::Send)]);
    let results = wire.results(&r(1)).await;
    let errors: Vec<_> = results.iter().map(|result| result.error.as_deref()).collect();
    let cut = Some("interrupted, outcome unknown");
    assert_eq!(errors, [None, cut, cut]);
}

#[tokio::test(start_paused = true)]
async fn results_are_sent_again_until_the_server_has_them() {
    let mut bench = Bench::new().await;
    let mut wire = bench.connect().await;
    wire.command(&r(1), "s", json!({}));
    assert_eq!(wire.error(&r(1)).await, "");
    wire.cut().await;
    // Nobody has committed them; the device is killed, too.
    for _ in 0..2 {
        let mut wire = bench.accept().await;
        assert_eq!(wire.listed(), [(r(1), HeldState::Done)]);
        wire.confirm(&[(&r(1), Instruction::Send)]);
        assert_eq!(wire.error(&r(1)).await, "");
        bench.restart().await;
    }
    let mut wire = bench.accept().await;
    wire.confirm(&[(&r(1), Instruction::Send)]);
    wire.error(&r(1)).await;
    wire.acknowledge(&r(1), Taken::Accepted);
    wire.cut().await;
    let wire = bench.accept().await;
    assert_eq!((wire.listed(), &wire.resume.newest), (vec![], &Some(r(1))));
    assert_eq!(bench.lines().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_command_that_is_over_is_not_run_again_whatever_comes() {
    let mut bench = Bench::new().await;
    let mut wire = bench.connect().await;
    wire.command(&r(1), "s", json!({}));
    wire.error(&r(1)).await;
    wire.cut().await;
    let mut wire = bench.accept().await;
    wire.confirm(&[(&r(1), Instruction::Discard)]);
    wire.command(&r(1), "s", json!({}));
    assert_eq!(wire.error(&r(1)).await, "already executed, results no longer kept");
    bench.restart().await;
    let mut wire = bench.accept().await;
    assert_eq!(wire.listed(), []);
    wire.confirm(&[]);
    wire.command(&r(1), "s", json!({}));
    assert_eq!(wire.error(&r(1)).await, "already executed, results no longer kept");
    assert_eq!(bench.lines().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_forgotten_for_good_is_older_than_the_device_remembers() {
    let mut bench = Bench::off();
    bench.journal.forgotten = 2;
    bench.start().await;
    let mut wire = bench.connect().await;
    for n in 2..=5 {
        wire.command(&r(n), "s", json!({}));
        wire.error(&r(n)).await;
        wire.acknowledge(&r(n), Taken::Accepted);
    }
    wire.cut().await;
    bench.restart().await;
    let mut wire = bench.connect().await;
    for old in [1, 2, 3] {
        wire.command(&r(old), "s", json!({}));
        assert_eq!(wire.error(&r(old)).await, "older than this device remembers, not run");
    }
    wire.command(&r(4), "s", json!({}));
    assert_eq!(wire.error(&r(4)).await, "already executed, results no longer kept");
    assert_eq!(bench.lines().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_command_goes_on_over_a_lost_connection() {
    let mut bench = Bench::new().await;
    let mut wire = bench.connect().await;
    wire.command(&r(1), "s", seconds(5));
    wire.cut().await;
    let mut wire = bench.accept().await;
    assert_eq!(wire.listed(), [(r(1), HeldState::Running)]);
    tokio::time::sleep(8 * S).await;
    // It is done by now, and nothing was sent before the confirmation.
    wire.confirm(&[(&r(1), Instruction::Continue)]);
    assert_eq!(wire.error(&r(1)).await, "");
    wire.idle(S).await;
    assert_eq!(bench.lines().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_command_that_runs_on_is_answered_on_the_connection_of_the_moment() {
    let mut bench = Bench::new().await;
    let mut wire = bench.connect().await;
    wire.command(&r(1), "s", seconds(30));
    wire.cut().await;
    let mut wire = bench.accept().await;
    wire.confirm(&[(&r(1), Instruction::Continue)]);
    assert_eq!(wire.error(&r(1)).await, "");
    // The same COMMAND once more is answered with the same results.
    wire.command(&r(1), "s", json!({}));
    assert_eq!(wire.error(&r(1)).await, "");
    assert_eq!(bench.lines().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn results_that_came_too_late_are_forgotten_as_well() {
    let mut bench = Bench::new().await;
    let mut wire = bench.connect().await;
    wire.command(&r(1), "s", json!({}));
    wire.error(&r(1)).await;
    wire.acknowledge(&r(1), Taken::Late);
    wire.cut().await;
    assert_eq!(bench.accept().await.listed(), []);
}

#[tokio::test(start_paused = true)]
async fn a_device_that_is_left_alone_stops_its_work_when_the_window_is_over() {
    let mut bench = Bench::new().await;
    let mut wire = bench.connect().await;
    wire.command(&r(1), "s", json!({"line": "runs", "seconds": 100_000}));
    wire.command(&r(2), "t", json!({"line": "waits"}));
    wire.cut().await;
    let wire = bench.accept().await;
    assert_eq!(wire.listed(), [(r(1), HeldState::Running), (r(2), HeldState::Received)]);
    // The server answers no more.
    bench.ignore(WINDOW + S).await;
    let mut wire = bench.accept().await;
    assert_eq!(wire.listed(), [1, 2].map(|n| (r(n), HeldState::Done)));
    wire.confirm(&[(&r(1), Instruction::Send), (&r(2), Instruction::Send)]);
    assert_eq!(
        wire.error(&r(1)).await,
        "stopped: no server for 120 s: stopped; its outcome is unknown"
    );
    assert_eq!(wire.error(&r(2)).await, "stopped: no server for 120 s: it did not run");
    assert_eq!(bench.lines(), ["runs"]);
}

#[tokio::test(start_paused = true)]
async fn a_device_that_is_back_in_time_does_not_stop_its_work() {
    let mut bench = Bench::new().await;
    let mut wire = bench.connect().await;
    wire.command(&r(1), "s", seconds(400));
    for _ in 0..3 {
        wire.cut().await;
        wire = bench.accept().await;
        tokio::time::sleep(8 * S).await;
        wire.confirm(&[(&r(1), Instruction::Continue)]);
        wire.idle(100 * S).await;
    }
    assert_eq!(wire.error(&r(1)).await, "");
}

#[tokio::test(start_paused = true)]
async fn after_a_loss_of_power_nothing_is_started_again() {
    let mut bench = Bench::new().await;
    let mut wire = bench.connect().await;
    wire.command(&r(1), "s", json!({"line": "done"}));
    wire.error(&r(1)).await;
    wire.command(&r(2), "s", json!({"line": "runs", "seconds": 5}));
    wire.command(&r(3), "t", json!({"line": "waits"}));
    wire.idle(S).await;
    let before = wire.resume.journal.clone();
    bench.lose_power().await;
    let mut wire = bench.accept().await;
    assert_eq!(wire.resume.journal.file(), before.file());
    assert_ne!(wire.resume.journal, before);
    let done = [1, 2, 3].map(|n| (r(n), HeldState::Done));
    assert_eq!(wire.listed(), done);
    let ids = [1, 2, 3].map(r);
    wire.confirm(&ids.each_ref().map(|id| (id, Instruction::Send)));
    assert_eq!(wire.error(&r(1)).await, "");
    assert_eq!(wire.error(&r(2)).await, "interrupted, outcome unknown");
    assert_eq!(wire.error(&r(3)).await, "interrupted, outcome unknown");
    assert_eq!(bench.lines(), ["done", "runs"]);
}

#[tokio::test(start_paused = true)]
async fn a_device_without_its_folder_is_another_one() {
    let mut bench = Bench::new().await;
    let mut wire = bench.connect().await;
    wire.command(&r(1), "s", seconds(5));
    wire.idle(S).await;
    let before = wire.resume.journal.clone();
    bench.kill().await;
    for file in std::fs::read_dir(bench.folder.path()).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    bench.start().await;
    let wire = bench.accept().await;
    assert_ne!(wire.resume.journal.file(), before.file());
    assert_eq!((wire.listed(), wire.resume.store, wire.resume.key), (vec![], None, None));
}

#[tokio::test(start_paused = true)]
async fn a_command_that_its_server_settled_is_stopped() {
    let mut bench = Bench::new().await;
    let mut wire = bench.connect().await;
    wire.command(&r(1), "s", seconds(100_000));
    wire.command(&r(2), "t", json!({"line": "next"}));
    wire.cut().await;
    let mut wire = bench.accept().await;
    wire.confirm(&[(&r(1), Instruction::Discard), (&r(2), Instruction::Continue)]);
    // Its place is free, and its results are not sent.
    assert_eq!(wire.error(&r(2)).await, "");
    wire.idle(S).await;
    wire.cut().await;
    assert_eq!(bench.accept().await.listed(), [(r(2), HeldState::Done)]);
}

#[tokio::test(start_paused = true)]
async fn a_device_whose_first_confirmation_was_lost_comes_with_the_same_file_and_a_higher_number() {
    let mut bench = Bench::new().await;
    let first = bench.accept().await;
    assert_eq!((first.resume.store.as_ref(), first.resume.n), (None, 1));
    let journal = first.resume.journal.clone();
    first.drop_now().await;
    let mut wire = bench.accept().await;
    assert_eq!((&wire.resume.journal, wire.resume.n), (&journal, 2));
    wire.confirm(&[]);
    wire.cut().await;
    // Its second confirmation is lost, and it dies: what it presented last still proves it.
    let second = bench.accept().await;
    assert_eq!(second.resume.key.as_deref(), Some("key-2"));
    second.drop_now().await;
    bench.restart().await;
    let third = bench.accept().await;
    assert_eq!(
        (third.resume.store.as_deref(), third.resume.key.as_deref()),
        (Some("S"), Some("key-2"))
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_held_moves_with_the_stores_id_and_stays_with_another_store() {
    let mut bench = Bench::new().await;
    let mut wire = bench.connect().await;
    wire.command(&r(1), "s", json!({}));
    wire.error(&r(1)).await;
    wire.command(&r(2), "s", seconds(30));
    wire.cut().await;
    let mut wire = bench.accept().await;
    wire.confirm_as(
        ALL,
        "S2",
        true,
        &[(&r(1), Instruction::Discard), (&r(2), Instruction::Continue)],
    );
    assert_eq!(wire.error(&r(2)).await, "");
    wire.cut().await;
    bench.restart().await;
    let mut wire = bench.accept().await;
    assert_eq!(wire.resume.store.as_deref(), Some("S2"));
    assert_eq!((wire.listed(), &wire.resume.newest), (vec![(r(2), HeldState::Done)], &None));
    // A server with another memory: nothing of this is told there.
    wire.confirm_as(ALL, "other", false, &[]);
    wire.cut().await;
    let wire = bench.accept().await;
    assert_eq!((wire.listed(), wire.resume.store.as_deref()), (vec![], Some("other")));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_comes_back_after_its_copy_has_nothing_run_again() {
    let mut bench = Bench::new().await;
    let mut wire = bench.connect().await;
    for n in [1, 2] {
        wire.command(&r(n), "s", json!({}));
        wire.error(&r(n)).await;
    }
    wire.cut().await;
    // A copy of the store takes over what is held, and wants only one of the results.
    let mut wire = bench.accept().await;
    let commands = [(&r(1), Instruction::Discard), (&r(2), Instruction::Send)];
    wire.confirm_as(ALL, "copy", true, &commands);
    assert_eq!(wire.error(&r(2)).await, "");
    wire.cut().await;
    for _ in 0..2 {
        bench.restart().await;
        // To the store itself these commands never arrived.
        let mut wire = bench.connect().await;
        for n in [1, 2] {
            wire.command(&r(n), "s", json!({}));
            assert_eq!(wire.error(&r(n)).await, "already executed, results no longer kept");
        }
        wire.cut().await;
        let mut wire = bench.accept().await;
        wire.confirm_as(ALL, "other", false, &[]);
        wire.cut().await;
    }
    let mut wire = bench.connect().await;
    wire.command(&r(3), "s", json!({}));
    assert_eq!(wire.error(&r(3)).await, "");
    assert_eq!(bench.lines().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_comes_back_after_its_store_has_nothing_run_again() {
    let mut bench = Bench::new().await;
    bench.connect().await.cut().await;
    let mut wire = bench.accept().await;
    wire.confirm_as(ALL, "copy", true, &[]);
    for n in [1, 2] {
        wire.command(&r(n), "s", json!({}));
        wire.error(&r(n)).await;
    }
    wire.acknowledge(&r(1), Taken::Accepted);
    wire.cut().await;
    bench.connect().await.cut().await;
    let mut wire = bench.accept().await;
    assert_eq!((wire.resume.store.as_deref(), wire.listed()), (Some("S"), vec![]));
    wire.confirm_as(ALL, "copy", true, &[]);
    wire.cut().await;
    bench.restart().await;
    let mut wire = bench.accept().await;
    wire.confirm_as(ALL, "copy", false, &[]);
    for n in [1, 2] {
        wire.command(&r(n), "s", json!({}));
        assert_eq!(wire.error(&r(n)).await, "already executed, results no longer kept");
    }
    assert_eq!(bench.lines().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_grants_nothing_sees_what_it_always_saw() {
    let mut bench = Bench::new().await;
    let mut wire = bench.accept().await;
    wire.confirm_as(&[], "", false, &[]);
    // Its ids may be anything.
    let id = "any".parse().unwrap();
    wire.command(&id, "s", seconds(100_000));
    wire.idle(S).await;
    wire.end("s");
    assert_eq!(wire.error(&id).await, "Its task has ended: stopped");
    wire.command(&id, "s", json!({}));
    assert_eq!(wire.error(&id).await, "");
    wire.command(&id, "s", json!({"line": "last", "seconds": 20}));
    wire.cut().await;
    let mut wire = bench.accept().await;
    assert_eq!((wire.listed(), &wire.resume.store), (vec![], &None));
    wire.confirm_as(&[], "", false, &[]);
    wire.idle(60 * S).await;
    assert_eq!(bench.lines(), ["x", "x", "last"]);
}

#[tokio::test(start_paused = true)]
async fn a_device_without_a_folder_survives_a_lost_connection_and_not_its_own_death() {
    let mut bench = Bench::off();
    bench.journal.folder = None;
    bench.start().await;
    let mut wire = bench.connect().await;
    wire.command(&r(1), "s", seconds(5));
    wire.cut().await;
    let mut wire = bench.accept().await;
    assert_eq!(wire.listed(), [(r(1), HeldState::Running)]);
    wire.confirm(&[(&r(1), Instruction::Continue)]);
    assert_eq!(wire.error(&r(1)).await, "");
    let journal = wire.resume.journal.clone();
    bench.restart().await;
    let wire = bench.accept().await;
    assert_eq!(wire.listed(), []);
    assert_ne!(wire.resume.journal, journal);
}

#[tokio::test(start_paused = true)]
async fn large_results_outlive_the_device_too() {
    let mut bench = Bench::new().await;
    let mut wire = bench.connect().await;
    wire.command(&r(1), "s", json!({"bytes": 300_000}));
    let sent = wire.results(&r(1)).await;
    bench.restart().await;
    let mut wire = bench.accept().await;
    wire.confirm(&[(&r(1), Instruction::Send)]);
    assert_eq!(wire.results(&r(1)).await, sent);
    let files = || std::fs::read_dir(bench.folder.path()).unwrap().count();
    let with_results = files();
    wire.acknowledge(&r(1), Taken::Accepted);
    wire.idle(MOMENT).await;
    assert_eq!(files(), with_results - 1);
}

#[tokio::test(start_paused = true)]
async fn a_device_that_leaves_answers_and_has_its_results_still_when_it_comes_back() {
    let mut bench = Bench::new().await;
    let mut wire = bench.connect().await;
    wire.command(&r(1), "s", seconds(100_000));
    wire.idle(S).await;
    bench.leave();
    assert_eq!(wire.error(&r(1)).await, "This device is stopping: stopped; its outcome is unknown");
    drop(wire);
    bench.restart().await;
    let mut wire = bench.accept().await;
    wire.confirm(&[(&r(1), Instruction::Send)]);
    assert_eq!(wire.error(&r(1)).await, "This device is stopping: stopped; its outcome is unknown");
}
