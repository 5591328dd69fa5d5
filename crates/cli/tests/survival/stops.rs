//! A server that is told to stop while people wait for their commands, and started again: a rolling restart.

use rustix::process::Signal;

use crate::common::{Server, plan_of};
use crate::gate::Gate;

/// It does not wait for commands, which go on at their device.
const SERVER: [&str; 2] = ["--shutdown-grace", "0.2"];

#[tokio::test]
async fn a_stop_suspends_what_people_wait_for_and_the_queue_goes_on_after_it() {
    let (mut server, gate) = (Server::start_with(&SERVER).await, Gate::new());
    let device = ["--exec", "shell", "--parallel-commands", "1", "--reconnect-first-wait", "0.1"];
    let mut device = server.device("box", &device).await;
    let steps = plan_of(&[&gate.command(0), &gate.quick_command(1)]);
    let run = server.start_command(&["run", "--on", "box", &steps]);
    gate.has_begun(1).await;
    let mut queued = server.start_command(&["exec", "--json", "--on", "box", "--", "echo queued"]);
    queued.says(r#""event":"accepted""#).await;

    server.process.signal(Signal::TERM);
    server.process.ended().await;
    assert!(!server.process.stderr().contains("could not be stored"));
    let again = server.start_again_with(&SERVER).await;
    device.says_times("connected to", 2).await;
    assert_eq!(gate.written().len(), 1, "it waits at the gate");
    gate.open();
    let (run, queued) = (run.done().await, queued.done().await);
    assert!(run.code == 0 && queued.code == 0, "{run:?} {queued:?}");
    assert!(queued.stdout.contains(r#""stdout":"queued\n""#), "{queued:?}");
    let loss = |text: &str| {
        (text.matches("Lost the server").count(), text.matches("The server is back").count())
    };
    assert_eq!(loss(&run.stderr), (1, 1), "{run:?}");
    gate.assert_each_once(0..2);
    drop(again);
}
