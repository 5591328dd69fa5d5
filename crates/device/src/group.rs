//! A child's own session and process group: how a child gets one (here), and how all in it are ended
//! (`group/members.rs`).
//!
//! It must not know of time limits, output, calls or the watchdog.
//!
//! A child leads a *session* rather than only a group. It then has no terminal it could stop and
//! ask a password on, and the session still finds descendants that moved to a group of their own,
//! as `timeout`, `set -m` and interactive shells make them. Descendants that call `setsid`
//! themselves (a classic daemon) have left both; on Linux they are found by their [`Mark`]. (A
//! child subreaper would be handed such strangers too, but with calls side by side nothing says
//! which call a stranger came from, and it would have to reap all of them in the place of init.)

#[cfg(test)]
#[cfg(target_os = "linux")]
pub(crate) mod testing;

#[cfg(target_os = "linux")]
mod cgroup;
#[cfg(target_os = "linux")]
mod hunt;
#[cfg(target_os = "linux")]
mod image;
mod members;
#[cfg(not(target_os = "linux"))]
mod nowhere;
#[cfg(target_os = "linux")]
mod veil;

use std::process::Command;

#[cfg(target_os = "linux")]
pub(crate) use cgroup::Cgroup;
#[cfg(target_os = "linux")]
pub(crate) use hunt::Chase;
#[cfg(target_os = "linux")]
pub(crate) use image::Image;
pub(crate) use members::{Group, left_over};
#[cfg(not(target_os = "linux"))]
pub(crate) use nowhere::{Cgroup, Chase};
#[cfg(target_os = "linux")]
pub(crate) use veil::Veil;

use crate::{confine::Confinement, mark::Mark};

#[cfg(unix)]
use rustix::process::{Pid, Signal};

/// Close-on-exec, in the flags that `/proc/self/fdinfo` shows.
#[cfg(target_os = "linux")]
const CLOSE_ON_EXEC: u32 = 0o2_000_000;

/// What becomes of a child when the device is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tie {
    /// The kernel kills it too (Linux only; elsewhere it lives on).
    DiesWithDevice,
    /// It lives on.
    Outlives,
}

/// Makes the child that `command` will start the leader of its own session and group, without
/// any descriptor but its three standard ones, confined, and marked with all its descendants.
/// Without effect where there are no sessions.
pub(crate) fn set_apart(
    command: &mut Command,
    tie: Tie,
    confinement: &Confinement,
    mark: Option<Mark>,
) {
    #[cfg(unix)]
    set_apart_from(command, tie, confinement.clone(), mark, inherited_descriptors());
    #[cfg(not(unix))]
    let _ = (command, tie, confinement, mark);
}

/// Has the child that `command` will start enter `cgroup` first of all. It isn't started if it can't.
#[cfg(all(test, target_os = "linux"))]
#[allow(unsafe_code)]
pub(crate) fn enter(command: &mut Command, cgroup: &Cgroup) {
    use std::os::unix::process::CommandExt;
    let entrance = cgroup.entrance();
    let prepare = move || {
        rustix::io::write(&*entrance, b"0")?;
        Ok(())
    };
    // SAFETY: it runs between fork and exec, where only async-signal-safe calls are sound. It makes
    // one plain system call; it takes no lock and allocates nothing, nor does its error.
    unsafe { command.pre_exec(prepare) };
}

/// Never called: there are no cgroups.
#[cfg(not(target_os = "linux"))]
pub(crate) fn enter(_: &mut Command, cgroup: &Cgroup) {
    match *cgroup {}
}

/// Like [`set_apart`], closing the given descriptors to the child.
///
/// The death signal is tied to the *thread* that starts the child, not to the process. So the
/// child must be started on a thread that lives as long as the device: a worker of the runtime,
/// never `spawn_blocking`, and never a worker that `block_in_place` may turn into a blocking one.
#[cfg(unix)]
#[allow(unsafe_code)]
fn set_apart_from(
    command: &mut Command,
    tie: Tie,
    confinement: Confinement,
    mark: Option<Mark>,
    descriptors: &'static [i32],
) {
    use std::os::unix::process::CommandExt;
    let device = rustix::process::getpid();
    let prepare = move || go_apart(device, tie, &confinement, mark, descriptors);
    // SAFETY: it runs between fork and exec, where only async-signal-safe calls are sound. It
    // makes plain system calls; it takes no lock and allocates nothing, nor do its errors.
    unsafe { command.pre_exec(prepare) };
}

/// What a child does itself before its program begins.
#[cfg(unix)]
#[allow(unsafe_code)]
fn go_apart(
    device: Pid,
    tie: Tie,
    confinement: &Confinement,
    mark: Option<Mark>,
    descriptors: &[i32],
) -> std::io::Result<()> {
    rustix::process::setsid()?;
    for descriptor in descriptors {
        // SAFETY: the number is only passed to fcntl, which refuses one that isn't open; in
        // the child nobody else uses it.
        let descriptor = unsafe { std::os::fd::BorrowedFd::borrow_raw(*descriptor) };
        let _ = rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::CLOEXEC);
    }
    #[cfg(target_os = "linux")]
    hide(confinement.veil())?;
    // Behind what changes its credentials, which takes the signal back.
    if tie == Tie::DiesWithDevice {
        die_with(device)?;
    }
    confine(confinement, mark)
}

/// Starts a program like a command that was [set apart](set_apart) and dies with the device, but without a copy of
/// the device's memory: until the program begins its process runs in the device's own, and the thread that starts it
/// stands still, as with `vfork`. A copy, with a page fault for each page that is written next, costs the device more than
/// all else that it does for a command.
///
/// The death signal is tied to the thread that calls this: see [`set_apart_from`].
///
/// What the child does `last` before its program begins consists of plain system calls; it takes no lock and allocates
/// nothing.
///
/// # Errors
/// What the system says of the program, its directory or its confinement.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
pub(crate) fn start(
    image: &Image,
    stdio: [std::os::fd::BorrowedFd<'_>; 3],
    (confinement, mark): (&Confinement, Option<Mark>),
    cgroup: Option<&Cgroup>,
    last: &dyn Fn(),
) -> std::io::Result<Pid> {
    use std::os::fd::AsRawFd;

    let (device, descriptors) = (rustix::process::getpid(), inherited_descriptors());
    let entrance = cgroup.map(Cgroup::entrance);
    let prepare = || {
        if let Some(entrance) = &entrance {
            rustix::io::write(&**entrance, b"0")?;
        }
        go_apart(device, Tie::DiesWithDevice, confinement, mark, descriptors)?;
        last();
        Ok(())
    };
    let (args, env) = (image.args(), image.env());
    let mut beginning = Beginning {
        image,
        args: &args,
        env: &env,
        stdio: stdio.map(|one| one.as_raw_fd()),
        prepare: &prepare,
        failed: 0,
    };
    let mut stack = Vec::<u128>::with_capacity(CHILD_STACK / size_of::<u128>());
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the child has a stack of its own, whose end is aligned. With CLONE_VFORK this thread stands still until
    // the child has left this memory for its program, or has ended: so nobody else uses `beginning` and the stack
    // meanwhile, and both outlive its use of them. No signal reaches the child in here: all are blocked, and before it lets
    // them in again none has a handler of ours.
    let number = unsafe {
        let (mut all, mut before) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let top = stack.as_mut_ptr().add(stack.capacity());
        let number = libc::clone(begin, top.cast(), flags, (&raw mut beginning).cast());
        let error = std::io::Error::last_os_error();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
        if number < 0 { Err(error) } else { Ok(number) }
    }?;
    let child = Pid::from_raw(number).ok_or(std::io::ErrorKind::Other)?;
    if beginning.failed == 0 {
        return Ok(child);
    }
    let _reaped = rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty());
    Err(std::io::Error::from_raw_os_error(beginning.failed))
}

/// The stack of a child until its program begins, in bytes: it calls nothing but the system.
#[cfg(target_os = "linux")]
const CHILD_STACK: usize = 32 * 1024;

/// What a child begins with, in the device's memory.
#[cfg(target_os = "linux")]
struct Beginning<'a> {
    image: &'a Image,
    args: &'a [*const libc::c_char],
    env: &'a [*const libc::c_char],
    stdio: [i32; 3],
    prepare: &'a dyn Fn() -> std::io::Result<()>,
    /// The number of the error because of which it did not begin.
    failed: i32,
}

/// Where a child of [`start`] begins, with a [`Beginning`].
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
extern "C" fn begin(beginning: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `start` hands over one that outlives this, and does not look at it meanwhile.
    let beginning = unsafe { &mut *beginning.cast::<Beginning<'_>>() };
    let error = beginning.begin();
    beginning.failed = error.raw_os_error().unwrap_or(libc::EIO);
    // SAFETY: it ends this process alone, and runs nothing of the device's.
    unsafe { libc::_exit(127) }
}

#[cfg(target_os = "linux")]
impl Beginning<'_> {
    /// Begins the program; returns only if that fails. Plain system calls: no lock, no allocation.
    #[allow(unsafe_code)]
    fn begin(&self) -> std::io::Error {
        use std::io::Error;
        // SAFETY: all pointers are to texts and lists in `self` that end with a NUL, or are null where the call allows
        // it; descriptors and signals are numbers, which the calls check.
        unsafe {
            for (descriptor, place) in self.stdio.into_iter().zip(0..) {
                if libc::dup2(descriptor, place) < 0 {
                    return Error::last_os_error();
                }
            }
            if libc::chdir(self.image.cwd.as_ptr()) != 0 {
                return Error::last_os_error();
            }
            for signal in 1..=libc::SIGRTMAX() {
                libc::signal(signal, libc::SIG_DFL);
            }
            if let Err(error) = (self.prepare)() {
                return error;
            }
            let mut none = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
            let mut error = Error::from_raw_os_error(libc::ENOENT);
            for program in &self.image.programs {
                libc::execve(program.as_ptr(), self.args.as_ptr(), self.env.as_ptr());
                let failed = Error::last_os_error();
                match failed.raw_os_error() {
                    // There may be another one further on.
                    Some(libc::ENOENT | libc::ENOTDIR) => {}
                    Some(libc::EACCES) => error = failed,
                    _ => return failed,
                }
            }
            error
        }
    }
}

/// Has the kernel kill the calling process when the thread that started it ends.
#[cfg(target_os = "linux")]
fn die_with(device: Pid) -> std::io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // The device may have died before the signal was set: then it will never come.
    if rustix::process::getppid() == Some(device) {
        Ok(())
    } else {
        Err(rustix::io::Errno::SRCH.into())
    }
}

#[cfg(all(unix, not(target_os = "linux")))]
fn die_with(_: Pid) -> std::io::Result<()> {
    Ok(())
}

/// Covers what the calling process and all that it starts shall not see, in a mount namespace of its own. Who may
/// not make one is given a user namespace as well, in which it may; what it may do to files stays the same.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn hide(veil: &Veil) -> std::io::Result<()> {
    use std::ptr::null;

    let done = |result: libc::c_int| match result {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    };
    if veil.covered().is_empty() {
        return Ok(());
    }
    // SAFETY: `unshare` takes flags only. `mount` reads texts that end with a NUL: they are constants, or outlive
    // the calls in the veil; where it takes no text it is given none.
    unsafe {
        if libc::unshare(libc::CLONE_NEWNS) != 0 {
            done(libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS))?;
        }
        let all = libc::MS_REC | libc::MS_PRIVATE;
        done(libc::mount(null(), c"/".as_ptr(), null(), all, null()))?;
        for covered in veil.covered() {
            let path = covered.path.as_ptr();
            let mounted = if covered.is_folder {
                let (kind, options) = (c"tmpfs".as_ptr(), c"size=4k,mode=555".as_ptr());
                let flags = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
                libc::mount(kind, path, kind, flags, options.cast())
            } else {
                libc::mount(c"/dev/null".as_ptr(), path, null(), libc::MS_BIND, null())
            };
            match done(mounted) {
                // What is gone meanwhile needs no cover.
                Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
                _ => {}
            }
        }
    }
    // With it a program of root's could uncover them; whoever else is no root in the new namespace either.
    match rustix::thread::remove_capability_from_bounding_set(
        rustix::thread::CapabilitySet::SYS_ADMIN,
    ) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::PERM) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Puts the limits on the calling process, for good.
#[cfg(target_os = "linux")]
fn confine(confinement: &Confinement, mark: Option<Mark>) -> std::io::Result<()> {
    // A sandbox presupposes it.
    rustix::thread::set_no_new_privs(true)?;
    if let Some(rules) = confinement.rules() {
        renounce_capabilities()?;
        enter_sandbox(rules)?;
    }
    if let Some(bytes) = confinement.max_memory() {
        limit_memory(bytes)?;
    }
    if let Some(mark) = mark {
        mark.put_on();
    }
    Ok(())
}

#[cfg(all(unix, not(target_os = "linux")))]
fn confine(_: &Confinement, _: Option<Mark>) -> std::io::Result<()> {
    Ok(())
}

/// Gives up what makes root more than another user, from the next program on: with it a process may set the
/// clock, make devices, or load code into the kernel, whatever the rules of a sandbox are.
#[cfg(target_os = "linux")]
fn renounce_capabilities() -> rustix::io::Result<()> {
    use rustix::io::Errno;
    use rustix::thread::{
        CapabilitySet, capabilities, remove_capability_from_bounding_set, set_capabilities,
    };
    for capability in CapabilitySet::all().iter() {
        match remove_capability_from_bounding_set(capability) {
            // This kernel does not have it; or this process may not, and has none to hand on.
            Ok(()) | Err(Errno::INVAL | Errno::PERM) => {}
            Err(error) => return Err(error),
        }
    }
    let mut sets = capabilities(None)?;
    sets.inheritable = CapabilitySet::empty();
    set_capabilities(None, sets)
}

#[cfg(target_os = "linux")]
fn limit_memory(bytes: u64) -> rustix::io::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    // One that the device itself was given may be lower, and stays.
    let bytes = getrlimit(Resource::Data).maximum.map_or(bytes, |most| most.min(bytes));
    setrlimit(Resource::Data, Rlimit { current: Some(bytes), maximum: Some(bytes) })
}

/// Applies Landlock rules to the calling process.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn enter_sandbox(rules: &std::os::fd::OwnedFd) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: the call takes two numbers, no memory: an open descriptor and no flags.
    let done = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0) };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// The descriptors the device itself was started with, past the standard three, and would hand
/// on. Found once: everything Rust opens later is close-on-exec.
#[cfg(target_os = "linux")]
pub(crate) fn inherited_descriptors() -> &'static [i32] {
    static FOUND: std::sync::OnceLock<Vec<i32>> = std::sync::OnceLock::new();
    FOUND.get_or_init(find_inherited_descriptors)
}

#[cfg(all(unix, not(target_os = "linux")))]
fn inherited_descriptors() -> &'static [i32] {
    &[]
}

#[cfg(target_os = "linux")]
fn find_inherited_descriptors() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc/self/fdinfo").into_iter().flatten().flatten();
    entries
        .filter(|entry| std::fs::read_to_string(entry.path()).is_ok_and(|info| passes_on(&info)))
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|descriptor| *descriptor > 2)
        .collect()
}

/// Whether a descriptor with this `fdinfo` stays open in a program started by exec.
#[cfg(target_os = "linux")]
fn passes_on(info: &str) -> bool {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & CLOSE_ON_EXEC == 0)
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        os::fd::AsRawFd,
        process::{Child, Stdio},
    };

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }

    /// Starts a shell apart that prints a process id, and returns its mark and both.
    fn start_apart(script: &str) -> (Option<Mark>, Child, u32) {
        let mut command = shell(script);
        let mark = Mark::new();
        set_apart(&mut command, Tie::DiesWithDevice, &Confinement::default(), mark);
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        (mark, child, line.trim().parse().unwrap())
    }

    #[test]
    fn a_child_that_moved_to_its_own_group_is_killed_too() {
        // timeout(1) makes a group of its own and stays in the session.
        let (_, mut child, stray) = start_apart("timeout 1000 sleep 1000 & echo $!; wait");
        let group = Group::led_by(child.id()).unwrap();
        let stray_id = Pid::from_raw(stray.cast_signed()).unwrap();
        let has_left = || group.hunt().is_for(stray_id)?.then_some(());
        testing::until("timeout has left the group", has_left);
        group.kill();
        child.wait().unwrap();
        testing::all_gone(&[child.id(), stray]);
    }

    #[test]
    fn a_daemon_that_left_the_session_without_its_environment_is_killed_too() {
        let script = "env -i setsid sh -c 'echo $$; exec sleep 1000' & wait";
        let (mark, mut child, daemon) = start_apart(script);
        let group = Group::led_by(child.id()).unwrap();
        let daemon_id = Pid::from_raw(daemon.cast_signed()).unwrap();
        assert_eq!(group.hunt().is_for(daemon_id), Some(false), "only its mark tells whose it is");
        group.marked(mark).kill();
        child.wait().unwrap();
        testing::all_gone(&[child.id(), daemon]);
    }

    #[test]
    fn a_daemon_of_somebody_else_is_left_alone() {
        let script = "setsid sh -c 'echo $$; exec sleep 1000' & wait";
        let (mark, mut child, daemon) = start_apart(script);
        let (_, mut other, _) = start_apart("echo $$; sleep 1000");
        Group::led_by(other.id()).unwrap().marked(Mark::new()).kill();
        other.wait().unwrap();
        assert!(testing::runs(daemon) && testing::runs(child.id()));
        Group::led_by(child.id()).unwrap().marked(mark).kill();
        child.wait().unwrap();
        testing::all_gone(&[daemon]);
    }

    #[test]
    fn numbers_that_mean_more_than_one_group_are_refused() {
        for number in [0, 1, u32::MAX, i32::MAX as u32 + 1] {
            assert_eq!(Group::led_by(number), None, "{number}");
        }
    }

    #[test]
    fn a_descriptor_the_device_was_started_with_is_not_handed_on() {
        // It stays open across exec, as a shell's `9>file` does. Its number is one that the
        // shell below doesn't use itself.
        let stray = rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), 200).unwrap();
        rustix::io::fcntl_setfd(&stray, rustix::io::FdFlags::empty()).unwrap();
        let found = find_inherited_descriptors();
        assert!(found.contains(&stray.as_raw_fd()), "{found:?}");

        let mut command = shell("for file in /proc/self/fd/*; do echo ${file##*/}; done");
        set_apart_from(&mut command, Tie::Outlives, Confinement::default(), None, found.leak());
        let shown = String::from_utf8(command.output().unwrap().stdout).unwrap();
        assert!(!shown.lines().any(|line| line == stray.as_raw_fd().to_string()), "{shown}");
    }
}
