//! Which process has the other end of a connection, by the system's own tables. It tells which
//! client carries a stream without asking the product.

use std::net::SocketAddr;

/// Readings of the table. It is no snapshot: while sockets come and go, one may be left out.
const READINGS: usize = 10;

/// Of `candidates`, the process that has a TCP socket bound to this IPv4 loopback address.
#[must_use]
pub fn of(local: SocketAddr, candidates: &[u32]) -> Option<u32> {
    let SocketAddr::V4(local) = local else {
        return None;
    };
    let octets = u32::from_le_bytes(local.ip().octets());
    let wanted = format!("{octets:08X}:{:04X}", local.port());
    (0..READINGS).find_map(|_| {
        let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
        table.lines().skip(1).find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let inode = *fields
                .get(9)
                .filter(|_| fields.get(1) == Some(&wanted.as_str()))?;
            let link = format!("socket:[{inode}]");
            candidates.iter().copied().find(|pid| holds(*pid, &link))
        })
    })
}

fn holds(pid: u32, link: &str) -> bool {
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    descriptors
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .any(|target| target.as_os_str() == link)
}
