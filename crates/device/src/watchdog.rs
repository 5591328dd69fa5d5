//! Sees to it that children never outlive the device, even if the device gets SIGKILL.
//!
//! The kernel's death signal reaches a dead device's direct children only, not theirs. So each
//! device has one helper process that reads from a pipe which process groups are being worked
//! for. When the pipe ends, the device is gone, however that came about: the helper then kills
//! every group that is still on its list.
//!
//! It must not know what the groups run, nor keep anything from being started: a helper that
//! fails takes only this last net away. It runs as the device's user, so what the device starts may
//! kill it. That is noticed when the next group is guarded or let go, and another one is started.
//!
//! Known limit: a group is guarded just after its leader was started. If the device is killed in
//! between, the leader dies with it (on Linux), but what the leader has started by then doesn't.
//!
//! Line protocol, device to helper: `+NUMBER\n` guards a process group, `+NUMBER MARK\n` also all
//! processes that bear that mark, `-NUMBER\n` lets it go.
//! Where there are no process groups (Windows), nothing is started and nothing is guarded.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, ErrorKind, Read, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin},
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use crate::{group::Group, mark::Mark};

/// How many groups the helper keeps at most; those past it aren't guarded.
pub const MAX_GUARDED: usize = 4096;

/// The longest line the helper takes, in bytes, with its end.
const MAX_LINE: u64 = 40;

/// How many times a line is tried again while the helper doesn't read.
const WRITE_TRIES: usize = 100;

/// How long to wait between two tries.
const WRITE_PAUSE: Duration = Duration::from_millis(1);

/// The least time from one start of the helper to the next.
const RESTART_PAUSE: Duration = Duration::from_secs(5);

/// The device's end of the helper. Once it and all its [`Guarded`] are dropped, the helper kills
/// what is left on its list and ends.
#[derive(Debug)]
pub struct Watchdog {
    helper: Arc<Helper>,
}

impl Watchdog {
    /// Starts the helper: a program that does nothing but [`watch`] its standard input, usually
    /// the device's own with a hidden subcommand.
    ///
    /// It runs in a session of its own, so that Ctrl-C at the device's terminal isn't its end
    /// first, and has no descriptor of the device but the pipe.
    ///
    /// # Errors
    /// If the program can't be started.
    pub fn start(program: &Path, args: &[&str]) -> io::Result<Self> {
        Ok(Self { helper: Arc::new(Helper::start(program, args)?) })
    }

    /// Guards the process group led by process `group`, and whoever bears `mark`, until the answer
    /// is dropped.
    ///
    /// It never fails, and waits at most a tenth of a second for a helper that hangs, every few
    /// seconds: such a helper is replaced.
    pub(crate) fn guard(&self, group: u32, mark: Option<Mark>) -> Guarded {
        let mark = mark.map(|mark| format!(" {mark}")).unwrap_or_default();
        self.helper.guard(group, format!("+{group}{mark}\n"));
        Guarded { helper: Arc::clone(&self.helper), group }
    }

    /// Whether the helper still took the last line.
    #[cfg(test)]
    fn is_alive(&self) -> bool {
        self.helper.state().running.is_some()
    }
}

/// A process group that is killed if the device dies. Dropping it lets the group go.
#[derive(Debug)]
#[must_use = "the group is guarded only until this is dropped"]
pub struct Guarded {
    helper: Arc<Helper>,
    group: u32,
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.helper.let_go(self.group);
    }
}

/// Keeps the list of guarded groups until `input` ends, then kills all that are on it. This is
/// all the helper process does.
pub fn watch(input: impl Read) {
    let groups = guarded_at_the_end(input);
    let groups = groups.into_iter();
    groups.filter_map(|(id, mark)| Some(Group::led_by(id)?.marked(mark))).for_each(Group::kill);
}

/// The helper process and the pipe to it.
#[derive(Debug)]
struct Helper {
    program: PathBuf,
    args: Vec<String>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// None once the helper is known to be dead, and where there is none.
    running: Option<(ChildStdin, Child)>,
    started: Instant,
    /// What it was told of each group that is guarded, for the next helper; the same bound as its own.
    guarded: BTreeMap<u32, String>,
}

impl Helper {
    fn start(program: &Path, args: &[&str]) -> io::Result<Self> {
        let args: Vec<_> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let running = spawn(program, &args)?;
        let state = State { running, started: Instant::now(), guarded: BTreeMap::new() };
        Ok(Self { program: program.to_owned(), args, state: Mutex::new(state) })
    }

    fn guard(&self, group: u32, line: String) {
        let mut state = self.state();
        self.tell(&mut state, &line);
        if state.guarded.len() < MAX_GUARDED {
            state.guarded.insert(group, line);
        }
    }

    fn let_go(&self, group: u32) {
        let mut state = self.state();
        state.guarded.remove(&group);
        self.tell(&mut state, &format!("-{group}\n"));
    }

    /// Writes one line. A helper that doesn't take it is replaced by one that knows all the rest.
    fn tell(&self, state: &mut State, line: &str) {
        if state.write(line) || state.started.elapsed() < RESTART_PAUSE {
            return;
        }
        state.started = Instant::now();
        match spawn(&self.program, &self.args) {
            Ok(None) => return,
            Ok(running) => state.running = running,
            Err(error) => tracing::warn!(%error, "the watchdog cannot be started again"),
        }
        let known: Vec<_> = state.guarded.values().cloned().chain([line.to_owned()]).collect();
        if known.iter().all(|line| state.write(line)) {
            tracing::warn!("the watchdog had ended; it was started again");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether the helper took the line. One that doesn't is given up and killed: better none than
    /// one that would, one day, kill by an outdated list.
    fn write(&mut self, line: &str) -> bool {
        let Some((pipe, process)) = &mut self.running else { return false };
        if write_line(pipe, line).is_ok() {
            return true;
        }
        // Killed before the pipe closes: it must not act on the end of its input.
        if process.kill().is_ok() {
            let _reaped = process.wait();
        }
        self.running = None;
        false
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if let Some((pipe, mut process)) = self.state().running.take() {
            drop(pipe);
            // It ends by itself now. Nobody waits for it but a thread that reaps it; without
            // the thread it would only stay listed as dead until the device ends.
            let _ = thread::Builder::new().spawn(move || process.wait());
        }
    }
}

/// Starts a helper; `None` where there is nothing to guard.
#[cfg(unix)]
fn spawn(program: &Path, args: &[String]) -> io::Result<Option<(ChildStdin, Child)>> {
    use std::process::{Command, Stdio};

    use crate::confine::Confinement;
    use crate::group::{Tie, set_apart};

    let mut command = Command::new(program);
    // What a process was started with can be read as long as it lives: so no keys here.
    command.args(args).env_clear().envs(crate::process::scrubbed_env());
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    set_apart(&mut command, Tie::Outlives, &Confinement::default(), None);
    let mut process = command.spawn()?;
    let Some(pipe) = process.stdin.take() else { return Ok(None) };
    rustix::io::ioctl_fionbio(&pipe, true)?;
    Ok(Some((pipe, process)))
}

#[cfg(not(unix))]
fn spawn(_: &Path, _: &[String]) -> io::Result<Option<(ChildStdin, Child)>> {
    Ok(None)
}

/// Writes a line to a pipe that doesn't block. So short a line goes in whole or not at all.
fn write_line(pipe: &mut impl Write, line: &str) -> io::Result<()> {
    for _ in 0..WRITE_TRIES {
        match pipe.write_all(line.as_bytes()) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(WRITE_PAUSE),
            done => return done,
        }
    }
    Err(ErrorKind::WouldBlock.into())
}

/// The groups that are guarded in the end, each with the mark of its descendants.
type Groups = BTreeMap<u32, Option<Mark>>;

fn guarded_at_the_end(input: impl Read) -> Groups {
    let mut input = BufReader::new(input);
    let mut groups = Groups::new();
    let mut line = Vec::new();
    // An error to read is an end as well: nothing will ever be heard of the device again.
    while matches!(input.by_ref().take(MAX_LINE).read_until(b'\n', &mut line), Ok(1..)) {
        take_line(&line, &mut groups);
        line.clear();
    }
    groups
}

/// Takes one line into account, and passes over what isn't one: the beginning of a number would
/// be another group's.
fn take_line(line: &[u8], groups: &mut Groups) {
    let Some(line) = str::from_utf8(line).ok().and_then(|line| line.strip_suffix('\n')) else {
        return;
    };
    if let Some((group, mark)) = line.strip_prefix('+').and_then(guarded)
        && groups.len() < MAX_GUARDED
    {
        groups.insert(group, mark);
    } else if let Some(group) = line.strip_prefix('-').and_then(number) {
        groups.remove(&group);
    }
}

/// Reads `NUMBER` or `NUMBER MARK`.
fn guarded(text: &str) -> Option<(u32, Option<Mark>)> {
    match text.split_once(' ') {
        Some((group, mark)) => Some((number(group)?, Some(number(mark)?))),
        None => Some((number(text)?, None)),
    }
}

fn number<T: FromStr>(text: &str) -> Option<T> {
    // `parse` alone would let "+5" pass.
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::{
        env, fs,
        os::unix::process::ExitStatusExt,
        process::{Command, Stdio},
    };

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        confine::Confinement,
        group::{
            Tie, set_apart,
            testing::{all_gone, ids_in, runs, until},
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
            awaits_line: false,
            confinement: Confinement::default(),
        };
        let (stop, progress) = (CancellationToken::new(), Progress::default());
        // The call is polled first, and waits for the first time when it is guarded.
        let (ended, ()) = tokio::join!(biased; run(spec, &stop, Some(&watchdog), &progress), async {
            fs::write(Path::new(&stage).join("guarded"), "").unwrap();
        });
        ended.unwrap();
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
        until("the call is guarded", || stage.path().join("guarded").exists().then_some(()));
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
            // As if it had been started long ago.
            let mut state = watchdog.helper.state();
            state.started = state.started.checked_sub(RESTART_PAUSE).unwrap();
            drop(state);
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
}
