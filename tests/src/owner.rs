//! Which process has the other end of a connection, by the system's own tables. It tells which
//! client carries a stream without asking the product.

use std::net::SocketAddr;

/// Of `candidates`, the process that has a TCP socket bound to this IPv4 loopback address.
#[must_use]
pub fn of(local: SocketAddr, candidates: &[u32]) -> Option<u32> {
    let SocketAddr::V4(local) = local else {
        return None;
    };
    let octets = u32::from_le_bytes(local.ip().octets());
    let wanted = format!("{octets:08X}:{:04X}", local.port());
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let inode = table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (*fields.get(1)? == wanted).then_some(*fields.get(9)?)
    })?;
    let link = format!("socket:[{inode}]");
    candidates.iter().copied().find(|pid| holds(*pid, &link))
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
