//! The helper process, and the pipe through which it is told what is guarded.
//!
//! Whoever tells it something never waits: a line goes into the pipe at once, or is left to a thread
//! of its own, the *mender*. The mender tries again for a while, then ends the helper and starts
//! another one, which is told everything anew. It holds no lock while it pauses, starts or reaps.
//!
//! It must not know what the helper does with what it is told.

#[cfg(target_os = "linux")]
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

#[cfg(target_os = "linux")]
use rustix::process::Pid;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::MAX_GUARDED;
use super::list::Line;
use crate::mark::Mark;

/// How many times the mender tries again while the helper doesn't read.
pub(super) const WRITE_TRIES: usize = 100;

/// How long the mender waits between two tries.
const WRITE_PAUSE: Duration = Duration::from_millis(1);

/// How long a command waits for the mender at most.
const SETTLE_TIME: Duration = Duration::from_secs(1);

/// The least time from one start of the helper to the next.
pub(super) const RESTART_PAUSE: Duration = Duration::from_secs(5);

/// The helper process and the pipe to it.
#[derive(Debug)]
pub(super) struct Helper {
    program: PathBuf,
    args: Vec<String>,
    state: Mutex<State>,
    /// Told whenever a mender is done.
    mended: Notify,
}

#[derive(Debug)]
pub(super) struct State {
    /// None once the helper is known to be dead, and where there is none.
    pub(super) running: Option<(ChildStdin, Child)>,
    pub(super) started: Instant,
    /// The line for each group that is guarded; the same bound as the helper's own.
    guarded: BTreeMap<u32, Line>,
    /// The groups of which the helper is still to be told how they are now.
    due: BTreeSet<u32>,
    /// Whether a mender is at work: it tells all that is due until it is done.
    is_mending: bool,
}

/// What became of telling the helper.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    /// It took all that was due.
    All,
    /// Its pipe is full.
    Later,
    /// It is dead, or there is none.
    Nobody,
}

impl Helper {
    pub(super) fn start(program: &Path, args: &[&str]) -> io::Result<Self> {
        let args: Vec<_> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let state = State {
            running: spawn(program, &args)?,
            started: Instant::now(),
            guarded: BTreeMap::new(),
            due: BTreeSet::new(),
            is_mending: false,
        };
        let (program, mended) = (program.to_owned(), Notify::new());
        Ok(Self { program, args, state: Mutex::new(state), mended })
    }

    pub(super) fn guard(self: &Arc<Self>, group: u32, mark: Option<Mark>) {
        let mut state = self.state();
        if state.has_room() {
            state.guarded.insert(group, Line::guards(group, mark));
            self.tell(state, group);
        }
    }

    /// Starts a child that tells the helper of itself. Nothing else is told meanwhile, and no other helper begins.
    #[cfg(target_os = "linux")]
    pub(super) fn guard_start(
        self: &Arc<Self>,
        mark: Option<Mark>,
        start: impl FnOnce(&dyn Fn()) -> io::Result<Pid>,
    ) -> io::Result<Pid> {
        let mut state = self.state();
        let pipe = state.running.as_ref().filter(|_| state.has_room()).map(|(pipe, _)| pipe);
        let told = Cell::new(None);
        let started = start(&|| {
            let group = rustix::process::getpid().as_raw_pid().cast_unsigned();
            let line = Line::guards(group, mark);
            let is_told = pipe.is_some_and(|pipe| rustix::io::write(pipe, line.bytes()).is_ok());
            told.set(is_told.then_some(group));
        });
        match started {
            Ok(child) => {
                let group = child.as_raw_pid().cast_unsigned();
                if state.has_room() {
                    state.guarded.insert(group, Line::guards(group, mark));
                    if told.get().is_none() {
                        self.tell(state, group);
                    }
                }
                Ok(child)
            }
            Err(error) => {
                if let Some(group) = told.get() {
                    self.tell(state, group);
                }
                Err(error)
            }
        }
    }

    pub(super) fn let_go(self: &Arc<Self>, group: u32) {
        let mut state = self.state();
        state.guarded.remove(&group);
        self.tell(state, group);
    }

    /// Tells how a group is now, or leaves that to a mender.
    fn tell(self: &Arc<Self>, mut state: MutexGuard<'_, State>, group: u32) {
        state.due.insert(group);
        if !state.is_mending && state.tell() != Told::All {
            self.mend_by_thread(state);
        }
    }

    /// Whether a mender is at work; one is sent for if the helper is dead.
    fn is_being_replaced(self: &Arc<Self>) -> bool {
        let state = self.state();
        if state.is_mending || !state.is_dead() {
            return state.is_mending;
        }
        self.mend_by_thread(state);
        self.state().is_mending
    }

    /// Has a mender see to the helper, unless it is too soon for another one.
    fn mend_by_thread(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        if state.is_beyond_mending() {
            return;
        }
        state.is_mending = true;
        drop(state);
        let helper = Arc::clone(self);
        if let Err(error) = thread::Builder::new().spawn(move || helper.mend()) {
            tracing::warn!(%error, "the watchdog cannot be started again");
            self.end_mending(self.state());
        }
    }

    /// Waits until there is a helper, for [`SETTLE_TIME`] at most, if one that has died or hangs can be replaced.
    pub(super) async fn be_there(self: &Arc<Self>) {
        // Created before it is asked for: no mender's end is missed in between.
        let mended = self.mended.notified();
        if self.is_being_replaced() {
            // A mender that takes longer has a helper that does not even die.
            let _ = timeout(SETTLE_TIME, mended).await;
        }
    }

    /// What a mender does: has all that is due told, by this helper or by the next one.
    fn mend(&self) {
        while !self.has_told_all() {
            self.end_running();
            if !self.has_replaced() {
                return self.end_mending(self.state());
            }
        }
    }

    /// Tells all that is due, which ends the mending; false if the helper is dead or hangs.
    fn has_told_all(&self) -> bool {
        for _ in 0..WRITE_TRIES {
            let mut state = self.state();
            // There may be nothing to tell.
            let told = if state.is_dead() { Told::Nobody } else { state.tell() };
            match told {
                Told::All => {
                    self.end_mending(state);
                    return true;
                }
                Told::Later => drop(state),
                Told::Nobody => return false,
            }
            thread::sleep(WRITE_PAUSE);
        }
        false
    }

    /// Ends a helper that doesn't take what it is told: better none than one that would, one day,
    /// kill by an outdated list.
    fn end_running(&self) {
        let running = self.state().running.take();
        // Killed before the pipe closes: it must not act on the end of its input.
        if let Some((_pipe, mut process)) = running
            && process.kill().is_ok()
        {
            let _reaped = process.wait();
        }
    }

    /// Starts another helper, which is to be told all; false if the last one was started just before,
    /// or there cannot be one.
    fn has_replaced(&self) -> bool {
        if self.state().is_beyond_mending() {
            return false;
        }
        let spawned = spawn(&self.program, &self.args);
        let mut state = self.state();
        state.started = Instant::now();
        let is_told = spawned.map(|running| state.tell_anew(running));
        let is_there = state.running.is_some();
        // The log may hold up who writes to it.
        drop(state);
        match is_told {
            Ok(true) => tracing::warn!("the watchdog had ended; it was started again"),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "the watchdog cannot be started again"),
        }
        is_there
    }

    fn end_mending(&self, mut state: MutexGuard<'_, State>) {
        state.is_mending = false;
        drop(state);
        self.mended.notify_waiters();
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Writes all that is due, as far as the pipe takes it at once.
    fn tell(&mut self) -> Told {
        let Some((pipe, _)) = &mut self.running else {
            // The next one is told everything.
            self.due.clear();
            return Told::Nobody;
        };
        while let Some(group) = self.due.first() {
            let line = self.guarded.get(group).copied().unwrap_or_else(|| Line::lets_go(*group));
            // So short a line goes in whole or not at all.
            match pipe.write_all(line.bytes()) {
                Ok(()) => self.due.pop_first(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Told::Later,
                Err(_) => return Told::Nobody,
            };
        }
        Told::All
    }

    /// Takes a helper that knows nothing yet, and tells it what the pipe takes at once; false if it is
    /// dead already, or there is none.
    fn tell_anew(&mut self, running: Option<(ChildStdin, Child)>) -> bool {
        self.running = running;
        self.due = self.guarded.keys().copied().collect();
        self.tell() != Told::Nobody
    }

    /// Whether another group may be guarded.
    fn has_room(&self) -> bool {
        self.guarded.len() < MAX_GUARDED
    }

    /// Whether the helper reads no more.
    #[cfg(unix)]
    fn is_dead(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let Some((pipe, _)) = &self.running else { return false };
        let mut pipe = [PollFd::new(pipe, PollFlags::empty())];
        let polled = poll(&mut pipe, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        polled.is_ok() && pipe.iter().any(|pipe| pipe.revents().contains(PollFlags::ERR))
    }

    /// There is no helper.
    #[cfg(not(unix))]
    const fn is_dead(&self) -> bool {
        false
    }

    /// Whether it is too soon to start another helper.
    fn is_beyond_mending(&self) -> bool {
        self.running.is_none() && self.started.elapsed() < RESTART_PAUSE
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if let Some((pipe, mut process)) = self.state().running.take() {
            drop(pipe);
            // It ends by itself now, and a thread reaps it; without the thread it would only stay
            // listed as dead until the device ends.
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
