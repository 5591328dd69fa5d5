//! A cgroup for one command, where the system lets us make one: all in it are killed by one write,
//! however they fork, and also those that have taken their mark off.
//!
//! It must not know what runs in it. It is a help, never a condition: what has left it (`systemd-run
//! --scope`, containers) is found as everything is where there are no cgroups.
//!
//! A child enters before its program is started. Since Linux 6.0 that takes 10 to 50 ms, during which
//! the thread that starts it stands still, unless the hierarchy is mounted with `favordynmods`. So
//! cgroups are made only where entering is quick.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// What the name of each of our cgroups begins with; then come our namespace of process ids, our process id in it, and
/// a number.
const PREFIX: &str = "flightdeck-";

/// The first version of Linux in which entering takes long.
const SLOW_SINCE: u32 = 6;

/// A cgroup that is ours alone. Dropping it removes it, if it is empty by then; what stays is killed and removed
/// when the next device starts.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    entrance: Arc<File>,
}

impl Cgroup {
    /// A new one; `None` where there can be none.
    pub(crate) fn new() -> Option<Self> {
        Self::within(parent()?).ok()
    }

    /// Finds out, if that has not been done yet, whether there can be any, and logs it.
    pub(crate) fn find_out() {
        parent();
    }

    /// Where a process enters: it writes a 0.
    pub(super) fn entrance(&self) -> Arc<File> {
        self.entrance.clone()
    }

    /// Kills all in it. They are dying when this returns.
    pub(crate) fn kill(&self) {
        if let Err(error) = fs::write(self.path.join("cgroup.kill"), "1") {
            tracing::debug!(%error, "a cgroup was not killed");
        }
    }

    /// Removes it, which fails as long as there is anybody in it.
    pub(crate) fn is_removed(&self) -> bool {
        fs::remove_dir(&self.path).is_ok()
    }

    /// One for a test, whether or not it is entered quickly; `None` where the test may not make any.
    #[cfg(test)]
    pub(crate) fn slow() -> Option<Self> {
        let parent = find(&fs::read_to_string("/proc/self/mountinfo").unwrap()).ok()?;
        Some(Self::within(&parent).unwrap())
    }

    /// Its folder.
    #[cfg(test)]
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn within(parent: &Path) -> io::Result<Self> {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let (space, ours) = (pid_space()?, std::process::id());
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("{PREFIX}{space}-{ours}-{number}"));
        fs::create_dir(&path)?;
        let entrance = OpenOptions::new().write(true).open(path.join("cgroup.procs"));
        let entrance = entrance.inspect_err(|_| drop(fs::remove_dir(&path)))?;
        Ok(Self { path, entrance: Arc::new(entrance) })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.is_removed();
    }
}

/// Where cgroups are made, if anywhere; found out once.
fn parent() -> Option<&'static Path> {
    static PARENT: OnceLock<Option<PathBuf>> = OnceLock::new();
    PARENT.get_or_init(|| find_quick().inspect_err(log_none).ok()).as_deref()
}

fn log_none(why: &io::Error) {
    tracing::debug!(%why, "commands get no cgroups");
}

/// The cgroup that we are in, if others can be made in it which are entered quickly.
fn find_quick() -> io::Result<PathBuf> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    if !is_quick(&release, &mounts) {
        return Err(io::Error::other("entering one takes long (mount it with favordynmods)"));
    }
    find(&mounts)
}

/// The cgroup that we are in, if others can be made in it. What dead devices left in it is removed.
fn find(mounts: &str) -> io::Result<PathBuf> {
    let cgroups = fs::read_to_string("/proc/self/cgroup")?;
    let ours = place(mounts, &cgroups).ok_or(io::ErrorKind::NotFound)?;
    // Who moves a process needs to write here, too.
    OpenOptions::new().write(true).open(ours.join("cgroup.procs"))?;
    let tried = Cgroup::within(&ours)?;
    OpenOptions::new().write(true).open(tried.path.join("cgroup.kill"))?;
    if fs::read_to_string(tried.path.join("cgroup.type"))?.trim() != "domain" {
        return Err(io::Error::other("no process may enter one"));
    }
    remove_stale(&ours);
    Ok(ours)
}

/// Whether a process enters a cgroup quickly, in the words of the kernel.
fn is_quick(release: &str, mounts: &str) -> bool {
    let version = release.split('.').next().and_then(|version| version.trim().parse().ok());
    let favored = |mount: &str| mount.split([',', ' ']).any(|word| word == "favordynmods");
    version.is_some_and(|version: u32| version < SLOW_SINCE)
        || hierarchy(mounts).is_some_and(|(_, mount)| favored(mount))
}

/// The folder of the cgroup that we are in.
fn place(mounts: &str, cgroups: &str) -> Option<PathBuf> {
    let (folder, _) = hierarchy(mounts)?;
    let ours = cgroups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(Path::new(folder).join(ours))
}

/// Where the whole hierarchy of cgroups (version 2) is mounted, and the line that says so.
fn hierarchy(mounts: &str) -> Option<(&str, &str)> {
    mounts.lines().filter(|line| line.contains(" - cgroup2 ")).find_map(|line| {
        // The number, the parent's, the device, what of it is mounted, and where.
        let mut fields = line.split(' ').skip(3);
        let (what, place) = (fields.next()?, fields.next()?);
        (what == "/").then_some((place, line))
    })
}

/// Kills what is left in the cgroups of devices that are dead, and removes them: a device that was killed together
/// with its helper had nobody else to do it.
fn remove_stale(parent: &Path) {
    let Ok(space) = pid_space() else { return };
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| owner(name, &space));
        if owner.is_some_and(|owner| !Path::new("/proc").join(owner).exists()) {
            let path = entry.path();
            let _ = fs::write(path.join("cgroup.kill"), "1");
            // One in which somebody still dies stays until the next start.
            let _ = fs::remove_dir(path);
        }
    }
}

/// The process id in the name of a cgroup, if it is one of our namespace: others cannot be looked for.
fn owner<'a>(name: &'a str, space: &str) -> Option<&'a str> {
    name.strip_prefix(PREFIX)?.strip_prefix(space)?.strip_prefix('-')?.split('-').next()
}

/// The number of the namespace in which our process ids count.
fn pid_space() -> io::Result<String> {
    let link = fs::read_link("/proc/self/ns/pid")?;
    Ok(link.to_string_lossy().chars().filter(char::is_ascii_digit).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::confine::Confinement;
    use crate::group::{Group, Tie, enter, set_apart, testing};
    use crate::mark::Mark;

    /// What a system with both versions lists.
    const MOUNTS: &str = "\
        29 28 0:25 /x /mnt rw shared:4 - cgroup2 cgroup2 rw\n\
        30 24 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
        31 24 0:25 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn the_place_is_below_where_the_whole_hierarchy_is_mounted() {
        let cgroups = "4:cpu:/other\n0::/user.slice/app.slice\n";
        let expected = Path::new("/sys/fs/cgroup/user.slice/app.slice");
        assert_eq!(place(MOUNTS, cgroups).unwrap(), expected);
        assert_eq!(place(MOUNTS, "0::/\n").unwrap(), Path::new("/sys/fs/cgroup"));
        assert_eq!(place(MOUNTS, "4:cpu:/other\n"), None);
        assert_eq!(place("", cgroups), None);
    }

    #[test]
    fn entering_is_quick_in_old_kernels_and_where_it_is_favored() {
        let favored = MOUNTS.replace("nsdelegate", "nsdelegate,favordynmods");
        assert!(is_quick("5.15.0-91-generic\n", MOUNTS));
        assert!(!is_quick("6.1.0\n", MOUNTS) && !is_quick("", MOUNTS));
        assert!(is_quick("6.1.0\n", &favored));
    }

    #[test]
    fn who_is_in_a_cgroup_dies_with_it_whatever_it_has_left() {
        let Some(cgroup) = Cgroup::slow() else { return };
        let folder = tempfile::tempdir().unwrap();
        let script = "setsid prlimit --locks=1 sh -c 'echo $$ > ids; exec sleep 1000' & wait";
        let mut command = std::process::Command::new("sh");
        command.args(["-c", script]).current_dir(folder.path());
        enter(&mut command, &cgroup);
        let mark = Mark::new();
        set_apart(&mut command, Tie::DiesWithDevice, &Confinement::default(), mark);
        let mut child = command.spawn().unwrap();
        let ids = testing::ids_in(&folder.path().join("ids"), 1);
        Group::led_by(child.id()).unwrap().marked(mark).kill();
        assert!(testing::runs(ids[0]), "it bears no mark any more");
        cgroup.kill();
        child.wait().unwrap();
        testing::all_gone(&ids);
        testing::until("it is removed", || cgroup.is_removed().then_some(()));
    }

    #[test]
    fn what_a_dead_device_left_is_removed() {
        let Some(own) = Cgroup::slow() else { return };
        let parent = own.path.parent().unwrap();
        let mut dead = std::process::Command::new("true").spawn().unwrap();
        dead.wait().unwrap();
        let stale = parent.join(format!("{PREFIX}{}-{}-0", pid_space().unwrap(), dead.id()));
        fs::create_dir(&stale).unwrap();
        let mut left = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        fs::write(stale.join("cgroup.procs"), left.id().to_string()).unwrap();
        remove_stale(parent);
        assert!(!left.wait().unwrap().success(), "it is killed");
        testing::until("it is removed", || {
            remove_stale(parent);
            (!stale.exists()).then_some(())
        });
        assert!(own.path.exists());
    }

    #[test]
    fn a_cgroup_of_another_namespace_is_nobodys_to_judge() {
        assert_eq!(owner("flightdeck-4026531836-17-3", "4026531836"), Some("17"));
        for other in ["flightdeck-17-3", "flightdeck-40265318360-17-3", "flightdeck-5-17-3", "app"]
        {
            assert_eq!(owner(other, "4026531836"), None, "{other}");
        }
    }
}
