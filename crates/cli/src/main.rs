//! The `flightdeck` binary: reads the command line, the environment and the settings, calls the
//! libraries, prints, and exits with a code that means something.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is the crate that prints")]

#[macro_use]
mod output;

#[cfg(not(target_env = "msvc"))]
mod allocator;
mod api;
mod args;
mod certificate;
mod commands;
mod connect;
mod ending;
mod held;
mod invitation;
mod key_file;
mod key_uses;
mod log;
mod logins;
mod mcp;
mod memory;
mod policy;
mod prompt;
mod proxy;
mod serving;
mod settings;
mod state;
mod tls;

use std::process::ExitCode;

use tokio::runtime::Builder;

use args::{Cli, Command};
use output::{RED, safe_line};

/// How a command ends, as the shell sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Code(u8);

impl Code {
    const COMPLETED: Self = Self(0);
    const FAILED: Self = Self(1);
    const USAGE: Self = Self(2);
    const CANCELLED: Self = Self(3);
    const UNREACHABLE: Self = Self(4);

    // Those of `exec`, apart from what commands use.
    const EXEC_CANCELLED: Self = Self(120);
    const EXEC_UNKNOWN: Self = Self(121);
    const EXEC_NEVER_SENT: Self = Self(122);
    const EXEC_UNREACHABLE: Self = Self(123);
    const EXEC_TIMED_OUT: Self = Self(124);
    const EXEC_OTHER: Self = Self(125);

    /// What `exec` says where other commands say this: 1 and 2 are a command's own there.
    const fn of_exec(self) -> Self {
        match self {
            Self::UNREACHABLE => Self::EXEC_UNREACHABLE,
            Self::FAILED | Self::USAGE => Self::EXEC_OTHER,
            Self::CANCELLED => Self::EXEC_CANCELLED,
            other => other,
        }
    }
}

/// An error with the exit code it stands for.
#[derive(Debug)]
struct Failure {
    code: Code,
    error: anyhow::Error,
}

impl From<anyhow::Error> for Failure {
    /// What is wrong on this side of the wire is wrong usage.
    fn from(error: anyhow::Error) -> Self {
        Self { code: Code::USAGE, error }
    }
}

impl From<settings::FileError> for Failure {
    fn from(error: settings::FileError) -> Self {
        anyhow::Error::from(error).into()
    }
}

impl Failure {
    fn unreachable(error: impl Into<anyhow::Error>) -> Self {
        Self { code: Code::UNREACHABLE, error: error.into() }
    }
}

type Ended = Result<Code, Failure>;

fn main() -> ExitCode {
    let cli = Cli::read();
    // A command that is over soon has nothing to give back, and the thread would be a good part of what it costs.
    #[cfg(not(target_env = "msvc"))]
    if matches!(cli.command, Command::Serve(_) | Command::Device(_) | Command::Demo(_)) {
        allocator::start();
    }
    let is_exec = matches!(cli.command, Command::Exec(_));
    let code = match run(cli) {
        Ok(code) => code,
        Err(failure) => {
            let text = format!("{:#}", failure.error);
            let text = text.lines().map(safe_line).collect::<Vec<_>>().join("\n");
            say!("{RED}error:{RED:#} {text}");
            if is_exec { failure.code.of_exec() } else { failure.code }
        }
    };
    log::flush();
    ExitCode::from(code.0)
}

fn run(cli: Cli) -> Ended {
    let Cli { global, command } = cli;
    log::start(&global, &command)?;
    // Most commands have a key in their memory. The device sees to more than that itself.
    if !matches!(command, Command::Device(_))
        && let Err(error) = device::confine::close_memory()
    {
        tracing::warn!(%error, "a core dump of this process would hold its key");
    }
    match command {
        Command::Demo(args) => block_on(commands::demo::run(&args)),
        Command::Serve(args) => block_on(commands::serve::run(*args, global)),
        Command::Device(args) => commands::device::run(*args, global),
        Command::Devices(args) => block_on_one_thread(commands::devices::run(args, global)),
        Command::Tasks(args) => block_on_one_thread(commands::tasks::run(args, global)),
        Command::Task(command) => block_on_one_thread(commands::task::run(command, global)),
        Command::Backup(args) => block_on_one_thread(commands::backup::run(args, global)),
        Command::Exec(args) => block_on_one_thread(commands::exec::run(args, global)),
        Command::Run(args) => block_on_one_thread(commands::run::run(args, global)),
        Command::Key(args) => commands::key::run(args, global),
        Command::Login(args) => block_on_one_thread(commands::login::run(args, global)),
        Command::Logout(args) => commands::login::log_out(&args, global),
        Command::JoinToken(args) => commands::join_token::run(args, global),
        Command::Config(args) => commands::config::run(&args, &global),
        Command::Completions(args) => {
            let mut script = Vec::new();
            clap_complete::generate(
                args.shell,
                &mut Cli::with_defaults(),
                "flightdeck",
                &mut script,
            );
            output::print(&String::from_utf8_lossy(&script))?;
            Ok(Code::COMPLETED)
        }
        Command::Watchdog => {
            device::watchdog::watch(std::io::stdin());
            Ok(Code::COMPLETED)
        }
    }
}

/// Runs a command on a thread for each core.
fn block_on(command: impl Future<Output = Ended>) -> Ended {
    // On one core a second thread would only be in the way.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    match cores {
        1 => block_on_runtime(&mut Builder::new_current_thread(), command),
        _ => block_on_runtime(&mut Builder::new_multi_thread(), command),
    }
}

/// Runs a command that waits for one connection most of the time: each thread more would cost it memory, time at its
/// start, and a switch between threads for whatever one of them tells another.
fn block_on_one_thread(command: impl Future<Output = Ended>) -> Ended {
    block_on_runtime(&mut Builder::new_current_thread(), command)
}

fn block_on_runtime(runtime: &mut Builder, command: impl Future<Output = Ended>) -> Ended {
    let runtime = runtime
        .enable_all()
        .build()
        .map_err(|error| anyhow::Error::from(error).context("cannot start the runtime"))?;
    let ended = runtime.block_on(command);
    // What is left are connections saying goodbye and threads reading large messages.
    runtime.shutdown_background();
    ended
}

/// Resolves at Ctrl-C, when the system asks the program to end, or when its terminal goes away.
async fn interrupted() {
    Interrupts::listen().next().await;
}

/// What asks the program to end. From [`Self::listen`] on nothing of it ends the program by itself.
struct Interrupts {
    #[cfg(unix)]
    signals: Vec<tokio::signal::unix::Signal>,
}

impl Interrupts {
    fn listen() -> Self {
        Self::listen_but_hangup(false)
    }

    /// The same, but where the end of a terminal means something else.
    fn listen_but_hangup(is_other: bool) -> Self {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            let hangup = (!is_other).then(SignalKind::hangup);
            let kinds =
                [SignalKind::interrupt(), SignalKind::terminate()].into_iter().chain(hangup);
            Self { signals: kinds.filter_map(|kind| signal(kind).ok()).collect() }
        }
        #[cfg(not(unix))]
        {
            let _there_is_none = is_other;
            Self {}
        }
    }

    async fn next(&mut self) {
        #[cfg(unix)]
        std::future::poll_fn(|cx| {
            let came = self.signals.iter_mut().any(|signal| signal.poll_recv(cx).is_ready());
            if came { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
        #[cfg(not(unix))]
        let _asked = tokio::signal::ctrl_c().await;
    }
}
