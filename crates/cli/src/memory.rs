//! How much memory this program may use: what the machine has, or less if its control group or its address space is
//! limited.

use std::path::{Path, PathBuf};

/// Where Linux shows control groups.
const CGROUPS: &str = "/sys/fs/cgroup";

/// What is assumed where nothing can be found out, in bytes.
const ASSUMED: usize = 4 * 1024 * 1024 * 1024;

/// The memory that this program may use, in bytes.
pub(crate) fn usable() -> usize {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| total(&text));
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = limit(Path::new(CGROUPS), &own);
    machine.into_iter().chain(group).chain(address_space()).min().unwrap_or(ASSUMED)
}

/// The limit of the address space, as `ulimit -v` sets it.
fn address_space() -> Option<usize> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::As);
    usize::try_from(limit.current?).ok()
}

/// The machine's memory, from the text of `/proc/meminfo`.
fn total(meminfo: &str) -> Option<usize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib.saturating_mul(1024))
}

/// The least limit of our control group and those that it is in, of both versions of control groups. `own` is
/// the text of `/proc/self/cgroup`.
fn limit(root: &Path, own: &str) -> Option<usize> {
    own.lines().filter_map(|line| limit_of(root, line)).min()
}

/// The least limit that one line of `/proc/self/cgroup` leads to: `hierarchy:controllers:path`.
fn limit_of(root: &Path, line: &str) -> Option<usize> {
    let (_, rest) = line.split_once(':')?;
    let (controllers, path) = rest.split_once(':')?;
    let (root, file) = match controllers {
        "" => (root.to_path_buf(), "memory.max"),
        some if some.split(',').any(|name| name == "memory") => {
            (root.join("memory"), "memory.limit_in_bytes")
        }
        _ => return None,
    };
    // In a container the path may be as its host sees it; what is there then is the root.
    let own = root.join(path.trim_start_matches('/'));
    let groups = own.ancestors().take_while(|group| group.starts_with(&root)).map(PathBuf::from);
    groups.filter_map(|group| read(&group.join(file))).min()
}

/// A limit; a group without one has the word `max`, or a number beyond any memory.
fn read(file: &Path) -> Option<usize> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_memory_is_found() {
        let text = "MemTotal:       24683072 kB\nMemFree:        15010932 kB\n";
        assert_eq!(total(text), Some(24_683_072 * 1024));
        assert_eq!(total("nothing"), None);
    }

    #[test]
    fn the_least_limit_of_our_groups_counts_in_both_versions() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let write = |file: &str, text: &str| {
            let file = root.join(file);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        };
        write("system.slice/memory.max", "700\n");
        write("system.slice/flightdeck.service/memory.max", "max\n");
        write("memory/docker/memory.limit_in_bytes", "600\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(limit(root, "0::/system.slice/flightdeck.service\n"), Some(700));
        assert_eq!(limit(root, "5:cpu,cpuacct:/\n4:memory:/docker\n0::/\n"), Some(600));
        assert_eq!(limit(root, "4:memory:/seen/by/the/host\n"), Some(9_223_372_036_854_771_712));
        assert_eq!(limit(root, "0::/\n"), None);
    }
}
