//! The tests of the whole: with real programs.

use std::{error::Error as _, fs, path::Path};

use super::*;
use crate::group::testing::{all_gone, ids_in, reads_of_this_thread, runs};

/// Longer than any test waits: what takes as long has failed.
const LONG: Duration = Duration::from_secs(60);

fn program(program: &str, args: &[&str]) -> Spec {
    Spec {
        program: program.into(),
        args: args.iter().map(OsString::from).collect(),
        cwd: "/".into(),
        timeout: LONG,
        max_output: 64 * 1024,
        env: scrubbed_env(),
        confinement: Confinement::default(),
    }
}

fn shell(script: &str) -> Spec {
    program("sh", &["-c", script])
}

async fn ran(spec: Spec) -> Output {
    run(spec, &CancellationToken::new(), None, &Progress::default(), None).await.unwrap()
}

async fn failed(spec: Spec) -> RunError {
    run(spec, &CancellationToken::new(), None, &Progress::default(), None).await.unwrap_err()
}

/// A script that writes the process ids of itself and of a grandchild, and doesn't end.
fn endless(directory: &Path) -> (Spec, PathBuf) {
    let file = directory.join("ids");
    let mut spec = shell("sleep 1000 & printf '%s\\n%s\\n' $$ $! > ids; wait");
    spec.cwd = directory.to_owned();
    (spec, file)
}

/// A script that starts a daemon of the classic kind, which writes its number into `ids`: twice
/// forked, in a session of its own, under another name.
const DAEMON: &str = r#"perl -e '
    use POSIX; exit if fork; POSIX::setsid(); exit if fork; $0 = "renamed " x 500;
    open F, ">ids"; print F "$$\n"; close F; sleep 1000'
    until test -s ids; do :; done; "#;

fn ids(text: &str) -> Vec<u32> {
    text.lines().map(|line| line.parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn both_streams_and_the_exit_code_come_back() {
    let output = ran(shell("echo out; echo err >&2; exit 7")).await;
    assert_eq!((output.stdout.text.as_str(), output.stderr.text.as_str()), ("out\n", "err\n"));
    assert_eq!(output.exit_code, 7);
    assert!(output.elapsed < LONG);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_is_told_as_a_shell_tells_it() {
    assert_eq!(ran(shell("kill -KILL $$")).await.exit_code, 137);
    assert_eq!(ran(shell("kill -TERM $$")).await.exit_code, 143);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_not_there_is_not_started() {
    let error = failed(program("no-such-program-anywhere", &[])).await;
    assert!(matches!(&error, RunError::NotStarted(why) if why.kind() == io::ErrorKind::NotFound));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_directory_is_named() {
    let error = failed(Spec { cwd: "/no/such/place".into(), ..shell("true") }).await;
    assert_eq!(error.source().unwrap().to_string(), "there is no directory /no/such/place");
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_input_is_empty() {
    assert_eq!(ran(program("cat", &[])).await.stdout.text, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_no_terminal_to_ask_on() {
    assert_ne!(ran(shell(": < /dev/tty")).await.exit_code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_child_sees_the_given_environment_and_nothing_else() {
    let mut spec = program("/usr/bin/env", &[]);
    spec.env = vec![("ONLY".into(), "this".into())];
    assert_eq!(ran(spec).await.stdout.text, "ONLY=this\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_limit_kills_grandchildren_too_and_keeps_the_output() {
    let mut spec = shell("sleep 1000 & printf '%s\\n%s\\n' $$ $!; wait");
    spec.timeout = Duration::from_millis(300);
    let begun = Instant::now();
    let RunError::TimedOut { after, stdout, .. } = failed(spec).await else {
        panic!("it should have timed out")
    };
    assert_eq!(after, Duration::from_millis(300));
    assert!(begun.elapsed() >= after && begun.elapsed() < LONG / 2);
    assert_eq!(ids(&stdout.text).len(), 2);
    all_gone(&ids(&stdout.text));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_may_clean_up_when_it_is_asked_to_end() {
    let mut spec = shell("trap 'echo bye; exit' TERM; sleep 1000 & wait");
    spec.timeout = Duration::from_millis(300);
    let error = failed(spec).await;
    assert!(matches!(&error, RunError::TimedOut { stdout, .. } if stdout.text == "bye\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_will_not_end_is_killed() {
    let mut spec = shell("trap '' TERM; sleep 1000 & printf '%s\\n%s\\n' $$ $!; wait");
    spec.timeout = Duration::from_millis(300);
    let begun = Instant::now();
    let error = failed(spec).await;
    assert!(begun.elapsed() >= Duration::from_millis(300) + GRACE);
    assert!(matches!(&error, RunError::TimedOut { stdout, .. } if {
        all_gone(&ids(&stdout.text));
        ids(&stdout.text).len() == 2
    }));
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_kills_all_the_call_started() {
    let directory = tempfile::tempdir().unwrap();
    let (spec, file) = endless(directory.path());
    let stop = CancellationToken::new();
    let call = tokio::spawn({
        let stop = stop.clone();
        async move { run(spec, &stop, None, &Progress::default(), None).await }
    });
    let ids = ids_in(&file, 2);
    assert!(ids.iter().all(|id| runs(*id)));
    stop.cancel();
    assert!(matches!(call.await.unwrap(), Err(RunError::Stopped { .. })));
    all_gone(&ids);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_stopped_beforehand_starts_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    stop.cancel();
    let spec = Spec { cwd: directory.path().into(), ..program("touch", &["file"]) };
    assert!(matches!(
        run(spec, &stop, None, &Progress::default(), None).await,
        Err(RunError::Stopped { .. })
    ));
    assert!(!directory.path().join("file").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_call_kills_all_it_started() {
    let directory = tempfile::tempdir().unwrap();
    let (spec, file) = endless(directory.path());
    let call = tokio::spawn(async move {
        run(spec, &CancellationToken::new(), None, &Progress::default(), None).await
    });
    let ids = ids_in(&file, 2);
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    all_gone(&ids);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_much_output_keeps_its_head_and_tail() {
    let script = "echo first; head -c 100000 /dev/zero | tr '\\0' x; echo; echo last";
    let output = ran(Spec { max_output: 1000, ..shell(script) }).await;
    let total = "first\n".len() + 100_000 + "\nlast\n".len();
    let marker = format!("\n[... {} bytes cut ...]\n", total - 1000);
    let (head, tail) = output.stdout.text.split_once(&marker).unwrap();
    assert!(head.starts_with("first\nxxx") && tail.ends_with("xxx\nlast\n"));
    assert_eq!((head.len(), tail.len()), (750, 250));
}

#[tokio::test(flavor = "multi_thread")]
async fn output_of_just_the_limit_is_whole() {
    let script = "head -c 1000 /dev/zero | tr '\\0' x; printf 123 >&2";
    let output = ran(Spec { max_output: 1000, ..shell(script) }).await;
    assert_eq!((output.stdout.text, output.stderr.text.as_str()), ("x".repeat(1000), "123"));
}

#[tokio::test(flavor = "multi_thread")]
async fn huge_output_neither_blocks_the_child_nor_fills_the_memory() {
    let before = peak_memory();
    let script = "yes | head -c 50M; yes error | head -c 50M >&2";
    let output = ran(Spec { max_output: 4096, ..shell(script) }).await;
    assert_eq!(output.exit_code, 0);
    for stream in [&output.stdout.text, &output.stderr.text] {
        assert!(stream.len() < 4096 + 100);
        assert!(stream.contains(&format!("{} bytes cut", 50 * 1024 * 1024 - 4096)));
    }
    let grown = peak_memory() - before;
    assert!(grown < 32 * 1024, "the peak grew by {grown} KiB");
}

/// The most memory this process has had, in KiB.
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_writer_is_stopped_in_time() {
    let spec = Spec { timeout: Duration::from_millis(200), ..program("yes", &[]) };
    assert!(matches!(failed(spec).await, RunError::TimedOut { stdout, .. } if
        stdout.text.starts_with("y\ny\n") && stdout.text.contains("bytes cut")));
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_text_become_replacement_characters() {
    assert_eq!(ran(shell("printf 'a\\377b\\303'")).await.stdout.text, "a\u{FFFD}b\u{FFFD}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_background_process_that_holds_the_output_delays_little_and_dies() {
    let output = ran(shell("sleep 1000 & echo $!")).await;
    assert_eq!(output.exit_code, 0);
    all_gone(&ids(&output.stdout.text));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_background_process_dies_with_the_call() {
    let output = ran(shell("sleep 1000 > /dev/null 2>&1 & echo $!")).await;
    all_gone(&ids(&output.stdout.text));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_background_process_in_a_group_of_its_own_dies_with_the_call() {
    // It has its own group for sure once it has started its own child.
    let script = "timeout 1000 sh -c 'echo $$; echo $PPID; : > ready; exec sleep 1000' &
        until test -e ready; do :; done";
    let directory = tempfile::tempdir().unwrap();
    let output = ran(Spec { cwd: directory.path().into(), ..shell(script) }).await;
    assert_eq!(ids(&output.stdout.text).len(), 2);
    all_gone(&ids(&output.stdout.text));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_dies_with_the_call_that_started_it() {
    for (end, limit) in [("", LONG), ("sleep 1000", Duration::from_secs(2))] {
        let directory = tempfile::tempdir().unwrap();
        let mut spec = shell(&format!("{DAEMON} {end}"));
        (spec.cwd, spec.timeout) = (directory.path().into(), limit);
        let ran = run(spec, &CancellationToken::new(), None, &Progress::default(), None).await;
        assert_eq!(ran.is_ok(), end.is_empty());
        all_gone(&ids_in(&directory.path().join("ids"), 1));
    }
}

/// A script that starts a daemon which forks again and again, each parent ending, for some seconds
/// unless it is killed. It holds `fifo` open all the while, and says at last that it lives.
const HOPPER: &str = r#"perl -e '
    use POSIX; open F, ">fifo"; exit if fork; POSIX::setsid();
    for (1 .. 3000) { exit if fork; select undef, undef, undef, PAUSE }
    syswrite F, "it lives"; POSIX::_exit(0)'"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_forks_on_and_on_dies_with_the_call() {
    for (pause, before) in [("0.0005", ""), ("0.0001", ""), ("0.0005", "; sleep 0.3")] {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        // Read to its end, which is when nobody holds it open any more.
        let said = std::thread::spawn(move || fs::read_to_string(fifo).unwrap());
        let script = HOPPER.replace("PAUSE", pause) + before;
        ran(Spec { cwd: directory.path().into(), ..shell(&script) }).await;
        assert_eq!(said.join().unwrap(), "", "with {pause} s between two forks{before}");
    }
}

/// More often than this no call reads: its output, and little else. To look at all processes takes
/// a read for each, of which there are more.
const READS: u64 = 30;

/// How often the only thread of the runtime reads while a call with a daemon is ended. It has run
/// for longer than anybody could take its descendants for the latest processes.
async fn reads_to_the_end_of(script: &str, limit: Duration) -> u64 {
    let directory = tempfile::tempdir().unwrap();
    let mut spec = shell(&format!("{DAEMON} sleep 0.6; {script}"));
    (spec.cwd, spec.timeout) = (directory.path().into(), limit);
    let before = reads_of_this_thread();
    let _ended = run(spec, &CancellationToken::new(), None, &Progress::default(), None).await;
    let reads = reads_of_this_thread() - before;
    all_gone(&ids_in(&directory.path().join("ids"), 1));
    reads
}

#[tokio::test]
async fn the_runtimes_thread_looks_for_nobody_when_a_call_ends() {
    // What is found out once is found out now.
    ran(program("true", &[])).await;
    for (script, limit) in [("", LONG), ("sleep 1000", Duration::from_secs(1))] {
        let reads = reads_to_the_end_of(script, limit).await;
        assert!(reads < READS, "{script}: {reads}");
    }
}

#[tokio::test]
async fn the_runtimes_thread_looks_for_nobody_when_a_call_is_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let mut spec = shell(&format!("{DAEMON} sleep 1000"));
    spec.cwd = directory.path().into();
    let (stop, progress) = (CancellationToken::new(), Progress::default());
    let call = run(spec, &stop, None, &progress, None);
    let file = directory.path().join("ids");
    let daemon = async {
        while fs::read_to_string(&file).is_err() {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_millis(600)).await;
    };
    let mut call = Box::pin(call);
    tokio::select! {
        _ = &mut call => panic!("it has no end"),
        () = daemon => {}
    }
    let before = reads_of_this_thread();
    drop(call);
    let reads = reads_of_this_thread() - before;
    assert!(reads < READS, "{reads}");
    all_gone(&ids_in(&file, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_program_writes_is_told_while_it_runs() {
    let directory = tempfile::tempdir().unwrap();
    let script = "echo first >&2; until test -e heard; do :; done; printf 'not \\377'";
    let spec = Spec { cwd: directory.path().into(), ..shell(script) };
    let heard = directory.path().join("heard");
    // The program goes on only when its first line was told.
    let progress = Progress::to(move |text| {
        assert_eq!(text, "first");
        fs::write(&heard, "").unwrap();
    });
    let output = run(spec, &CancellationToken::new(), None, &progress, None).await.unwrap();
    assert_eq!(
        (output.stdout.text.as_str(), output.stderr.text.as_str()),
        ("not \u{FFFD}", "first\n")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_never_stops_writing_is_told_of_and_stopped_in_time() {
    let texts = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let kept = texts.clone();
    let progress = Progress::to(move |text| kept.lock().unwrap().push(text.len()));
    let spec = Spec { timeout: Duration::from_secs(1), ..program("yes", &[]) };
    let ran = run(spec, &CancellationToken::new(), None, &progress, None).await;
    assert!(matches!(ran, Err(RunError::TimedOut { .. })));
    let texts = texts.lock().unwrap();
    assert!((1..=8).contains(&texts.len()), "{texts:?}");
    assert!(texts.iter().all(|length| *length <= telling::MAX_TEXT));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_calls_at_once_do_not_mix() {
    let calls = (0..200).map(|number| {
        let spec = shell(&format!("echo {number}; exit {}", number % 100));
        tokio::spawn(async move { (number, ran(spec).await) })
    });
    for call in calls.collect::<Vec<_>>() {
        let (number, output) = call.await.unwrap();
        assert_eq!(output.stdout.text, format!("{number}\n"));
        assert_eq!(output.exit_code, number % 100);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it measures: run it alone, with --nocapture"]
async fn what_a_call_costs() {
    let mut times = Vec::new();
    for _ in 0..1000 {
        let begun = Instant::now();
        ran(program("true", &[])).await;
        times.push(begun.elapsed());
    }
    times.sort();
    println!("`true`: median {:?}, 99 of 100 within {:?}", times[500], times[990]);
    let begun = Instant::now();
    for _ in 0..1000 {
        std::process::Command::new("true").env_clear().status().unwrap();
    }
    println!("bare: mean {:?}", begun.elapsed() / 1000);
}

/// Runs a command line whose output and input go through a flow, with somebody at the other end who takes what comes at
/// this pace and sends this.
async fn flowing(script: &str, pace: Duration, input: &[u8]) -> (Output, Vec<u8>) {
    use aip::message::{Channel, Data, Downstream, Input, OutputTaken, Streams, Upstream};

    let (input_wanted, window) = (!input.is_empty(), Some(4096));
    let streams = Streams { output: true, input: input_wanted, spool: false, window };
    let flow = crate::flow::Flow::of(streams, None).unwrap();
    let (mut got, mut sent) = (Vec::new(), 0);
    let pump = async {
        loop {
            match flow.next() {
                Some(Upstream::Chunks(chunks)) => {
                    for chunk in chunks {
                        tokio::time::sleep(pace).await;
                        let bytes = chunk.data.to_bytes().unwrap();
                        let end = Some(chunk.offset + bytes.len() as u64);
                        let (stdout, stderr) = match chunk.stream {
                            Channel::Stdout => (end, None),
                            Channel::Stderr => (None, end),
                        };
                        got.extend(bytes);
                        let taken = OutputTaken { step: 1, stdout, stderr, again: false };
                        flow.handle(&Downstream::Taken(taken));
                    }
                }
                Some(Upstream::Taken(taken)) => {
                    if taken.stdin == sent as u64 && sent < input.len() {
                        let part = &input[sent..(sent + 1000).min(input.len())];
                        let (offset, end) = (taken.stdin, sent + part.len() == input.len());
                        sent += part.len();
                        let data = Data::of(part);
                        flow.handle(&Downstream::Input(Input { step: 1, n: 0, offset, data, end }));
                    }
                }
                None => flow.news().await,
            }
        }
    };
    let stop = CancellationToken::new();
    let spec = shell(script);
    let progress = Progress::default();
    let running = run(spec, &stop, None, &progress, Some(&flow));
    let output = flow.carry(running, &stop, pump).await.unwrap();
    (output, got)
}

#[tokio::test(flavor = "multi_thread")]
async fn all_of_an_output_flows_as_slowly_as_it_is_taken_also_after_its_child_has_ended() {
    let (output, got) = flowing("head -c 60000 /dev/zero", Duration::from_millis(30), b"").await;
    assert_eq!((output.exit_code, output.stdout.bytes, got.len()), (0, 60_000, 60_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn input_reaches_the_child_with_its_end_and_one_that_reads_none_ends_all_the_same() {
    let input = "a line\n".repeat(3000);
    let (output, got) = flowing("cat", Duration::ZERO, input.as_bytes()).await;
    assert_eq!((output.exit_code, got.as_slice()), (0, input.as_bytes()));
    let (output, got) = flowing("exec <&-; echo done", Duration::ZERO, input.as_bytes()).await;
    assert_eq!((output.exit_code, got.as_slice()), (0, b"done\n".as_slice()));
}
