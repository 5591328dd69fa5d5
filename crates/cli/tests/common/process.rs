//! Real processes: servers, devices and commands of the built binary.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use super::{PATIENCE, Peer, until, within};

/// The binary that is tested.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_flightdeck");

/// A home folder and what else a process takes from its environment, apart from everybody's.
pub(crate) struct Home(TempDir);

impl Home {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Everything in it.
    pub(crate) fn files(&self) -> Vec<String> {
        let names = fs::read_dir(self.path()).unwrap().map(|file| file.unwrap().file_name());
        names.map(|name| name.to_string_lossy().into_owned()).collect()
    }

    /// The binary, without a word of the tester's environment.
    pub(crate) fn command<S: AsRef<std::ffi::OsStr>>(&self, args: &[S]) -> Command {
        self.program(BINARY, args)
    }

    /// The same of any program.
    pub(crate) fn program<S: AsRef<std::ffi::OsStr>>(&self, program: &str, args: &[S]) -> Command {
        let mut command = Command::new(program);
        command
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.path())
            .current_dir(self.path())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Starts the binary.
    pub(crate) fn start(&self, args: &[&str]) -> Process {
        Process::start(&mut self.command(args))
    }
}

/// How a process ended, and all it said.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A running process; killed when dropped.
pub(crate) struct Process {
    child: Child,
    stdout: Output,
    stderr: Output,
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = Output::collect(child.stdout.take().unwrap());
        let stderr = Output::collect(child.stderr.take().unwrap());
        Self { child, stdout, stderr }
    }

    /// Starts it at a terminal of its own, as a person does; all it says counts as stderr. What is written
    /// to the other end is typed.
    pub(crate) fn start_at_terminal(command: Command) -> (Self, Typing) {
        let (terminal, end) = pty_process::open().unwrap();
        let child = pty_process::Command::from(command).spawn(end).unwrap();
        let (said, typing) = terminal.into_split();
        let stdout = Output::collect(tokio::io::empty());
        (Self { child, stdout, stderr: Output::collect(said) }, Typing(typing))
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id().unwrap()
    }

    pub(crate) fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// A line on memory of its status: `VmRSS` is all it holds, `RssAnon` all but files. In bytes.
    pub(crate) fn memory(&self, line: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find(|found| found.starts_with(&format!("{line}:"))).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// How long it has kept a core busy.
    pub(crate) fn busy(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.id())).unwrap();
        // The name before it may hold anything, brackets too.
        let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
        let ticks = fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap());
        Duration::from_secs(1) * u32::try_from(ticks.sum::<u64>()).unwrap()
            / u32::try_from(rustix::param::clock_ticks_per_second()).unwrap()
    }

    /// Waits until it has said this on stderr so many times.
    pub(crate) async fn says_times(&mut self, what: &str, times: usize) {
        if tokio::time::timeout(PATIENCE, self.stderr.says(what, times)).await != Ok(true) {
            panic!("it never said {what:?} {times} times: {}", self.stderr());
        }
    }

    /// Waits until it has said this on stderr.
    pub(crate) async fn says(&mut self, what: &str) {
        self.says_times(what, 1).await;
    }

    /// Waits until it has said this on stdout.
    pub(crate) async fn prints(&mut self, what: &str) {
        if tokio::time::timeout(PATIENCE, self.stdout.says(what, 1)).await != Ok(true) {
            panic!("it never printed {what:?}: {}", self.stdout.text());
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.id()).unwrap();
        kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
    }

    /// Kills it, as `kill -9` does.
    pub(crate) async fn kill(&mut self) {
        self.signal(Signal::KILL);
        within("the end of a killed process", self.child.wait()).await.unwrap();
    }

    /// Waits until it has ended by itself.
    pub(crate) async fn ended(&mut self) {
        within("its end", self.child.wait()).await.unwrap();
    }

    /// Writes to its stdin and closes it.
    pub(crate) async fn feed(&mut self, input: &str) {
        let mut stdin = self.child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).await.unwrap();
    }

    /// Waits for its end.
    pub(crate) async fn done(mut self) -> Done {
        let ending = async {
            let status: ExitStatus = self.child.wait().await.unwrap();
            self.stdout.ended().await;
            self.stderr.ended().await;
            status
        };
        let status = match tokio::time::timeout(PATIENCE, ending).await {
            Ok(status) => status,
            Err(_) => panic!("it did not end; it said: {}{}", self.stdout.text(), self.stderr()),
        };
        let code = status.code().unwrap_or(-1);
        Done { code, stdout: self.stdout.text(), stderr: self.stderr.text() }
    }
}

/// The keyboard of a terminal.
pub(crate) struct Typing(pty_process::OwnedWritePty);

impl Typing {
    pub(crate) async fn write(&mut self, keys: &str) {
        self.0.write_all(keys.as_bytes()).await.unwrap();
    }
}

/// What a process writes to one of its outputs, as it comes.
struct Output {
    text: Arc<Mutex<Vec<u8>>>,
    /// Changes with every piece; closed at the end.
    more: watch::Receiver<()>,
}

impl Output {
    fn collect(mut from: impl AsyncRead + Unpin + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(Vec::new()));
        let (tell, more) = watch::channel(());
        let into = text.clone();
        tokio::spawn(async move {
            let mut piece = vec![0; 64 * 1024];
            while let Ok(n @ 1..) = from.read(&mut piece).await {
                into.lock().unwrap().extend_from_slice(&piece[..n]);
                tell.send_replace(());
            }
        });
        Self { text, more }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().unwrap()).into_owned()
    }

    /// Waits until it has said this so many times. `false` when it ended before.
    async fn says(&mut self, what: &str, times: usize) -> bool {
        while self.text().matches(what).count() < times {
            if self.more.changed().await.is_err() {
                return self.text().matches(what).count() >= times;
            }
        }
        true
    }

    async fn ended(&mut self) {
        while self.more.changed().await.is_ok() {}
    }
}

/// A real `flightdeck serve` on a free port, with a home of its own.
pub(crate) struct Server {
    pub(crate) process: Process,
    pub(crate) port: u16,
    home: Arc<Home>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub(crate) async fn start_with(args: &[&str]) -> Self {
        Self::start_in(Arc::new(Home::new()), 0, args).await
    }

    /// Another one where this one was: the same port, home and key.
    pub(crate) async fn start_again(&self) -> Self {
        self.start_again_with(&[]).await
    }

    pub(crate) async fn start_again_with(&self, args: &[&str]) -> Self {
        Self::start_in(self.home.clone(), self.port, args).await
    }

    /// One in a home that is prepared.
    pub(crate) async fn start_in(home: Arc<Home>, port: u16, args: &[&str]) -> Self {
        let (port, state) = (port.to_string(), state_dir(&home));
        let mut all = vec!["serve", "--port", &port, "--state-dir", &state];
        all.extend(args);
        let mut process = home.start(&all);
        process.says("Other machines").await;
        let stderr = process.stderr();
        let address = stderr.split("://127.0.0.1:").nth(1).unwrap().split('/').next().unwrap();
        Self { port: address.parse().unwrap(), process, home }
    }

    pub(crate) fn url(&self) -> String {
        format!("ws://127.0.0.1:{}/ws", self.port)
    }

    /// A file in its state folder.
    pub(crate) fn state_file(&self, name: &str) -> PathBuf {
        self.home.path().join("state").join(name)
    }

    pub(crate) fn key(&self) -> String {
        fs::read_to_string(self.home.path().join("state/key")).unwrap().trim().to_owned()
    }

    /// A command of somebody on the server's machine, who needs no key.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = self.home.command(args);
        command
            .env("FLIGHTDECK_SERVER", self.url())
            .env("FLIGHTDECK_STATE_DIR", state_dir(&self.home));
        command
    }

    /// Starts such a command.
    pub(crate) fn start_command(&self, args: &[&str]) -> Process {
        Process::start(&mut self.command(args))
    }

    /// Runs such a command to its end.
    pub(crate) async fn run(&self, args: &[&str]) -> Done {
        self.start_command(args).done().await
    }

    /// A real `flightdeck device` that is connected.
    pub(crate) async fn device(&self, id: &str, args: &[&str]) -> Process {
        self.device_at(&self.home, id, args).await
    }

    /// One with another home.
    pub(crate) async fn device_at(&self, home: &Home, id: &str, args: &[&str]) -> Process {
        let (url, key) = (self.url(), self.key());
        let mut all = vec!["device", "--id", id, "--server", &url];
        all.extend(args);
        let mut process = Process::start(home.command(&all).env("FLIGHTDECK_TOKEN", key));
        process.says("connected to").await;
        process
    }

    /// A real `flightdeck device` at a terminal, connected.
    pub(crate) async fn device_at_terminal(
        &self,
        home: &Home,
        id: &str,
        args: &[&str],
    ) -> (Process, Typing) {
        let (url, key) = (self.url(), self.key());
        let mut all = vec!["device", "--id", id, "--server", &url];
        all.extend(args);
        let mut command = home.command(&all);
        command.env("FLIGHTDECK_TOKEN", key);
        let (mut process, typing) = Process::start_at_terminal(command);
        process.says("connected").await;
        (process, typing)
    }

    /// A raw peer that has not registered.
    pub(crate) async fn peer(&self) -> Peer {
        Peer::connect(self.port, &self.key()).await.unwrap()
    }

    /// A raw device, registered.
    pub(crate) async fn raw_device(&self, id: &str) -> Peer {
        let mut peer = self.peer().await;
        peer.register_device(id).await;
        peer
    }

    /// A raw constellation, registered without a declared target.
    pub(crate) async fn raw_constellation(&self, id: &str) -> Peer {
        let mut peer = self.peer().await;
        peer.register_constellation(id, Value::Null).await;
        peer
    }

    /// How much memory it holds, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        self.process.memory("VmRSS")
    }
}

/// Where the server of a home keeps its keys.
pub(crate) fn state_dir(home: &Home) -> String {
    home.path().join("state").to_str().unwrap().to_owned()
}

/// What all processes but ours have in a file of theirs in `/proc`, with blanks between the parts.
fn processes(file: &str) -> impl Iterator<Item = String> {
    let folders = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let ids = folders.filter_map(|folder| folder.file_name().to_str()?.parse::<u32>().ok());
    let others = ids.filter(|id| *id != std::process::id());
    let contents = others.filter_map(move |id| fs::read(format!("/proc/{id}/{file}")).ok());
    contents.map(|content| String::from_utf8_lossy(&content).replace('\0', " "))
}

/// Whether anything is left of a command line; who only asks for it, with this product, does not count.
pub(crate) fn is_left(command: &str) -> bool {
    let asks = |line: &String| line.starts_with(env!("CARGO_BIN_EXE_flightdeck"));
    processes("cmdline").any(|line| line.contains(command) && !asks(&line))
}

/// Whether a process that was started in this home is left, by whatever way it came there.
pub(crate) fn is_inhabited(home: &Home) -> bool {
    processes("environ").any(|variables| variables.contains(home.path().to_str().unwrap()))
}

/// Waits until a program runs with these arguments, not only a shell that was told of it.
pub(crate) async fn until_running(command: &str) {
    let runs = || processes("cmdline").any(|line| line.starts_with(command));
    until(&format!("the start of {command:?}"), runs).await;
}

/// Waits until nothing is left of a command line.
pub(crate) async fn until_gone(command: &str) {
    until(&format!("the end of {command:?}"), || !is_left(command)).await;
}

/// How long something may take that happens at once.
pub(crate) const AT_ONCE: Duration = Duration::from_secs(1);
