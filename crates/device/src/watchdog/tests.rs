//! The tests of the whole: with real helpers, and real groups to guard.

use std::{
    env, fs,
    io::Write,
    os::unix::process::ExitStatusExt,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::helper::{RESTART_PAUSE, WRITE_TRIES};
use super::list::{Groups, MAX_LINE, guarded_at_the_end};
use super::*;
use crate::{
    confine::Confinement,
    group::{
        Tie, set_apart,
        testing::{all_gone, ids_in, runs, until, waits_of_this_thread},
    },
    process::{Spec, run, scrubbed_env},
    progress::Progress,
};

/// Tells the test below in which directory to play the device; without it, it does nothing.
const STAGE: &str = "WATCHDOG_TEST_STAGE";

/// A shell and its child, in the shell's own session, both without end.
const ENDLESS: &str = "sleep 1000 & printf '%s\\n%s\\n' $$ $! > ids; wait";

/// A shell and a daemon of its own session, both without end.
const WITH_DAEMON: &str = "setsid sh -c '
    printf \"%s\\n%s\\n\" $PPID $$ > ids; exec sleep 1000' & wait";

fn start_endless(directory: &Path) -> (Child, Vec<u32>) {
    let mut command = Command::new("sh");
    command.args(["-c", ENDLESS]).current_dir(directory).stdin(Stdio::null());
    set_apart(&mut command, Tie::DiesWithDevice, &Confinement::default(), None);
    (command.spawn().unwrap(), ids_in(&directory.join("ids"), 2))
}

/// Starts this test binary as a helper or a device: to run one of the tests below.
fn role(name: &str) -> Vec<String> {
    let module = module_path!().split_once("::").unwrap().1;
    ["--ignored", "--exact", &format!("{module}::{name}")].map(String::from).to_vec()
}

fn start_watchdog() -> Watchdog {
    let args = role("plays_the_helper");
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    Watchdog::start(&env::current_exe().unwrap(), &args).unwrap()
}

#[test]
#[ignore = "it's a helper process, which other tests start"]
fn plays_the_helper() {
    watch(io::stdin());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it's a device process, which another test starts and kills"]
async fn plays_the_device() {
    let Some(stage) = env::var_os(STAGE) else { return };
    let watchdog = start_watchdog();
    let spec = Spec {
        program: "sh".into(),
        args: vec!["-c".into(), WITH_DAEMON.into()],
        cwd: stage.clone().into(),
        timeout: Duration::from_secs(60),
        max_output: 100,
        env: scrubbed_env(),
        confinement: Confinement::default(),
    };
    let (stop, progress) = (CancellationToken::new(), Progress::default());
    run(spec, &stop, Some(&watchdog), &progress, None).await.unwrap();
}

#[test]
fn nothing_survives_a_device_that_is_killed() {
    let stage = tempfile::tempdir().unwrap();
    let mut device = Command::new(env::current_exe().unwrap())
        .args(role("plays_the_device"))
        .env(STAGE, stage.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let ids = ids_in(&stage.path().join("ids"), 2);
    device.kill().unwrap();
    device.wait().unwrap();
    all_gone(&ids);
}

#[test]
fn the_end_of_the_input_kills_what_is_still_guarded() {
    let directory = tempfile::tempdir().unwrap();
    let (mut child, ids) = start_endless(directory.path());
    let (reader, mut writer) = io::pipe().unwrap();
    let watching = thread::spawn(move || watch(reader));
    writeln!(writer, "+{}", child.id()).unwrap();
    drop(writer);
    watching.join().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    all_gone(&ids);
}

#[test]
fn what_was_let_go_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let (mut child, ids) = start_endless(directory.path());
    watch(format!("+{0}\n-{0}\n", child.id()).as_bytes());
    assert!(ids.iter().all(|id| runs(*id)));
    Group::led_by(child.id()).unwrap().kill();
    child.wait().unwrap();
}

#[test]
fn a_dropped_watchdog_keeps_guarding_what_runs() {
    let directory = tempfile::tempdir().unwrap();
    let (mut child, ids) = start_endless(directory.path());
    let watchdog = start_watchdog();
    let helper = helper_id(&watchdog);
    let guarded = watchdog.guard(child.id(), None);
    drop(watchdog);
    drop(guarded);
    all_gone(&[helper]);
    assert!(ids.iter().all(|id| runs(*id)), "it was let go before the pipe closed");
    Group::led_by(child.id()).unwrap().kill();
    child.wait().unwrap();
}

#[test]
fn the_helper_has_a_session_of_its_own_and_no_secrets() {
    let watchdog = start_watchdog();
    let id = rustix::process::Pid::from_raw(helper_id(&watchdog).cast_signed()).unwrap();
    assert_eq!(rustix::process::getsid(Some(id)), Ok(id));
    let environment = fs::read(format!("/proc/{}/environ", helper_id(&watchdog))).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains("CARGO"));
}

fn helper_id(watchdog: &Watchdog) -> u32 {
    watchdog.helper.state().running.as_ref().unwrap().1.id()
}

/// As if its helper had been started long ago.
fn start_long_ago(watchdog: &Watchdog) {
    let mut state = watchdog.helper.state();
    state.started = state.started.checked_sub(RESTART_PAUSE).unwrap();
}

#[test]
fn a_helper_that_has_died_is_no_obstacle() {
    let watchdog = Watchdog::start(Path::new("true"), &[]).unwrap();
    until("its death is noticed", || {
        drop(watchdog.guard(u32::MAX, None));
        (!watchdog.is_alive()).then_some(())
    });
    drop(watchdog.guard(u32::MAX, None));
}

#[test]
fn a_helper_that_was_killed_is_replaced_by_one_that_knows_what_is_guarded() {
    let directory = tempfile::tempdir().unwrap();
    let (mut child, ids) = start_endless(directory.path());
    let watchdog = start_watchdog();
    let _guarded = watchdog.guard(child.id(), None);
    let first = helper_id(&watchdog);
    let id = rustix::process::Pid::from_raw(first.cast_signed()).unwrap();
    rustix::process::kill_process(id, rustix::process::Signal::KILL).unwrap();
    until("another is there", || {
        start_long_ago(&watchdog);
        drop(watchdog.guard(u32::MAX, None));
        (watchdog.is_alive() && helper_id(&watchdog) != first).then_some(())
    });
    // The device ends.
    let (pipe, mut helper) = watchdog.helper.state().running.take().unwrap();
    drop(pipe);
    helper.wait().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    all_gone(&ids);
    all_gone(&[first]);
}

#[tokio::test]
async fn before_a_command_begins_a_dead_helper_is_replaced() {
    let watchdog = start_watchdog();
    let first = helper_id(&watchdog);
    let id = rustix::process::Pid::from_raw(first.cast_signed()).unwrap();
    rustix::process::kill_process(id, rustix::process::Signal::KILL).unwrap();
    all_gone(&[first]);
    start_long_ago(&watchdog);
    watchdog.be_there().await;
    assert!(watchdog.is_alive() && helper_id(&watchdog) != first);
}

#[test]
fn a_helper_that_does_not_read_is_killed_rather_than_waited_for() {
    let watchdog = Watchdog::start(Path::new("sleep"), &["1000"]).unwrap();
    let helper = helper_id(&watchdog);
    let begun = Instant::now();
    while watchdog.is_alive() {
        drop(watchdog.guard(u32::MAX, None));
    }
    assert!(begun.elapsed() < Duration::from_secs(10));
    all_gone(&[helper]);
}

#[test]
fn a_helper_that_does_not_read_holds_nobody_up() {
    let watchdog = Watchdog::start(Path::new("sleep"), &["1000"]).unwrap();
    let before = waits_of_this_thread();
    // More than its pipe takes.
    for _ in 0..10_000 {
        drop(watchdog.guard(u32::MAX, None));
    }
    let waits = waits_of_this_thread() - before;
    assert!(waits < WRITE_TRIES as u64 / 2, "{waits}");
}

#[test]
fn a_helper_that_cannot_be_started_is_an_error() {
    assert!(Watchdog::start(Path::new("/no/such/helper"), &[]).is_err());
}

#[test]
fn only_whole_lines_count() {
    let long = format!("+{}7\n", "0".repeat(2 * MAX_LINE as usize));
    let marks = "+14 5\n+15 \n+16 +5\n+ 17\n+18 5 5\n";
    let input = format!("+12\n+13\n\n7\n+\n++8\n+-9\n{marks}-13\n{long}+20\n+2");
    let mark = "5".parse().ok();
    let expected = Groups::from([(12, None), (14, mark), (20, None)]);
    assert_eq!(guarded_at_the_end(input.as_bytes()), expected);
}

#[test]
fn the_list_is_bounded_and_takes_more_once_others_left() {
    let many: String = (100..100 + MAX_GUARDED + 5).map(|id| format!("+{id}\n")).collect();
    let groups = guarded_at_the_end(format!("{many}-100\n+7\n+8\n").as_bytes());
    assert_eq!(groups.len(), MAX_GUARDED);
    let has = |id| groups.contains_key(&id);
    assert!(has(7) && !has(8) && !has(100));
}
