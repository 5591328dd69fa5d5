//! What tells the descendants of one child from all other processes, wherever they have gone.
//!
//! A descendant may leave its group and its session (`setsid`, a classic daemon), change its name
//! and throw its environment away. What it keeps are its *limits*: Linux hands them on at fork and
//! exec alike. One of them, the number of file locks (`RLIMIT_LOCKS`), has not limited anything
//! since Linux 2.4, so its value is free to say whose descendant a process is.
//!
//! It must not know what becomes of a process that bears a mark.
//!
//! Known limit: a program that sets this very limit on purpose takes the mark off.

use std::fmt;
use std::str::FromStr;

/// The largest value that no kernel takes for "unlimited".
#[cfg(target_os = "linux")]
const HIGHEST: u64 = isize::MAX.cast_unsigned() as u64;

/// Fewer values than this are too few to be told apart.
#[cfg(target_os = "linux")]
const FEWEST: u64 = 1 << 24;

/// The mark of one child and its descendants. Its text is its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    value: u64,
    /// No process that was started before this bears it, in the kernel's ticks since boot.
    #[cfg(target_os = "linux")]
    made: u64,
}

impl Mark {
    /// A mark that nobody bears yet; `None` where there are no such marks.
    #[cfg(target_os = "linux")]
    pub(crate) fn new() -> Option<Self> {
        use rustix::process::{Resource, getrlimit};
        // A limit can only be lowered.
        let most = getrlimit(Resource::Locks).maximum.unwrap_or(HIGHEST).min(HIGHEST);
        let value = uuid::Uuid::new_v4().as_u64_pair().0.checked_rem(most)?;
        (most >= FEWEST).then(|| Self { value, made: ticks_since_boot() })
    }

    /// A mark that nobody bears yet; `None` where there are no such marks.
    #[cfg(not(target_os = "linux"))]
    pub(crate) fn new() -> Option<Self> {
        None
    }
}

#[cfg(target_os = "linux")]
impl Mark {
    /// Marks the calling process and all that it starts from now on. Only plain system calls: it
    /// is called between fork and exec. Without effect where the system refuses it.
    pub(crate) fn put_on(self) {
        use rustix::process::{Resource, Rlimit, setrlimit};
        let limit = Rlimit { current: Some(self.value), maximum: Some(self.value) };
        let _ = setrlimit(Resource::Locks, limit);
    }

    /// Whether the process `id`, which was started at `started` (in ticks since boot), bears it;
    /// `None` if it has ended.
    pub(crate) fn is_on(self, id: i32, started: u64) -> Option<bool> {
        if started < self.made {
            return Some(false);
        }
        crate::listing::of(id, "limits").map(|limits| self.is_among(&limits))
    }

    fn is_among(self, limits: &[u8]) -> bool {
        let line = limits
            .split(|byte| *byte == b'\n')
            .find_map(|line| str::from_utf8(line).ok()?.strip_prefix("Max file locks"));
        let shown = line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok());
        shown == Some(self.value)
    }
}

/// Now, as the kernel tells when a process was started.
#[cfg(target_os = "linux")]
fn ticks_since_boot() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let a_second = rustix::param::clock_ticks_per_second();
    let nanoseconds = now.tv_nsec.cast_unsigned() as u64;
    now.tv_sec.cast_unsigned() * a_second + nanoseconds / (1_000_000_000 / a_second.max(1))
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}

impl FromStr for Mark {
    type Err = std::num::ParseIntError;

    /// Reads the text of a mark that may have been made at any time.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self {
            value: text.parse()?,
            #[cfg(target_os = "linux")]
            made: 0,
        })
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    #[test]
    fn marks_differ_and_are_read_as_they_are_written() {
        let (one, other) = (Mark::new().unwrap(), Mark::new().unwrap());
        assert_ne!(one.value, other.value);
        assert_eq!(one.to_string().parse::<Mark>().unwrap().value, one.value);
    }

    #[test]
    fn who_bears_no_mark_is_not_taken_for_one_who_does() {
        let mark = Mark::new().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(mark.is_on(own, u64::MAX), Some(false));
        assert_eq!(mark.is_on(i32::MAX, u64::MAX), None, "there is no such process");
    }

    #[test]
    fn the_clock_is_the_one_by_which_the_kernel_dates_processes() {
        let before = ticks_since_boot();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let fields = status.rsplit_once(')').unwrap().1;
        let started: u64 = fields.split_whitespace().nth(19).unwrap().parse().unwrap();
        assert!((before..=ticks_since_boot()).contains(&started), "{before} {started}");
    }
}
