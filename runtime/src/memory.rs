//! How much memory this process may use, as far as the system tells: what a budget that nobody has
//! chosen is a part of. It measures nothing and limits nothing.

use std::fs;
use std::path::Path;

/// Memory of the machine, or of the control group that this process is in if that has less, in bytes.
/// `None` where neither can be read (other systems than Linux).
#[must_use]
pub fn total() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| machine_total(&text));
    let group = fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|text| group_limit(&text, Path::new("/sys/fs/cgroup")));
    machine.into_iter().chain(group).min()
}

fn machine_total(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The least limit on the way from the process' own group to the root.
fn group_limit(cgroup: &str, root: &Path) -> Option<u64> {
    let own = cgroup.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let own = root.join(own.trim_start_matches('/'));
    own.ancestors()
        .take_while(|dir| dir.starts_with(root))
        .filter_map(|dir| fs::read_to_string(dir.join("memory.max")).ok())
        .filter_map(|text| text.trim().parse().ok())
        .min()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_smallest_limit_on_the_way_up_counts() {
        assert_eq!(
            machine_total("MemFree: 1 kB\nMemTotal:       2048 kB\n"),
            Some(2 << 20)
        );
        assert_eq!(machine_total("MemTotal: many"), None);
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        fs::write(root.path().join("a/memory.max"), "4096\n").unwrap();
        fs::write(inner.join("memory.max"), "max\n").unwrap();
        assert_eq!(group_limit("0::/a/b\n", root.path()), Some(4096));
        assert_eq!(group_limit("0::/\n", root.path()), None);
        assert_eq!(group_limit("1:cpu:/a\n", root.path()), None);
        assert!(total().is_none_or(|bytes| bytes > 1 << 20));
    }
}
