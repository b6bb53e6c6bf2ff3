//! How much memory this process may use, as far as the system tells: what a budget that nobody has
//! chosen is a part of; and how much of what it has freed it keeps. It measures nothing and limits nothing.

use std::fs;
use std::hint::black_box;
use std::path::Path;

/// Half of what may stay with the process when it is free, in bytes.
const KEPT_HALF: usize = 8 * 1024 * 1024;

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

/// Lets the process keep up to 16 MiB that it has freed, for what it allocates next; with several threads that much in
/// each of the allocator's arenas, of which there is about one for each thread. Call it once, before the work begins.
///
/// The GNU allocator gives memory at the end of its heap back to the system as soon as 128 KiB of it are free. Buffers
/// of bulk data come and go there by the hundred thousand a second, and each page of 4 KiB that comes back has to be
/// asked for and cleared: measured, an eighth of all bytes, and 6 to 12 % of the CPU of one stream. When it frees a block
/// that it had from the system directly, it takes twice that block's size as the new limit; a block that nobody
/// has written to costs nothing. Other allocators are not impressed.
pub fn keep_freed() {
    drop(black_box(Vec::<u8>::with_capacity(KEPT_HALF)));
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
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn freed_memory_is_used_again_without_asking_the_system() {
        // Pages that the system had to provide, since this thread began.
        fn faults() -> u64 {
            let stat = fs::read_to_string("/proc/thread-self/stat").unwrap();
            let (_, fields) = stat.rsplit_once(')').unwrap();
            fields.split_whitespace().nth(7).unwrap().parse().unwrap()
        }
        keep_freed();
        let mut before = 0;
        for round in 0..101 {
            if round == 1 {
                before = faults();
            }
            let blocks: Vec<Vec<u8>> = (0..16).map(|_| vec![1; 64 * 1024]).collect();
            black_box(blocks);
        }
        let pages = faults() - before;
        // 1 MiB a round: without it, 25,600.
        assert!(pages < 1000, "{pages} pages in 100 rounds");
    }

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
