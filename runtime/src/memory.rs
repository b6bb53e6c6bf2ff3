//! How much memory this process may count on: what the machine has, or what its control group allows if that is less.

use std::fs;

/// Taken where nothing can be found out.
const UNKNOWN: u64 = 4 * 1024 * 1024 * 1024;

/// Bytes of memory for this process.
#[must_use]
pub fn available() -> u64 {
    let machine = fs::read_to_string("/proc/meminfo").ok();
    let machine = machine.as_deref().and_then(total_of);
    let group = fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let group = group.and_then(|text| text.trim().parse().ok());
    match (machine, group) {
        (Some(machine), Some(group)) => u64::min(machine, group),
        (one, other) => one.or(other).unwrap_or(UNKNOWN),
    }
}

/// `MemTotal` of the text of `/proc/meminfo`, in bytes.
fn total_of(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_total_is_read_in_bytes() {
        let text = "MemTotal:       24576000 kB\nMemFree:  1 kB\n";
        assert_eq!(total_of(text), Some(24_576_000 * 1024));
        assert_eq!(total_of("MemFree: 1 kB\n"), None);
        assert_eq!(total_of("MemTotal: much kB\n"), None);
        assert!(available() > 64 * 1024 * 1024);
    }
}
