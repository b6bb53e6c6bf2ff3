//! The ports of UDP destinations that this process has itself, so that no flow leads back into one: a datagram that
//! goes round and round would never leave the tunnels again.
//!
//! Kept for the process as a whole: one gateway's flow may lead to another gateway's port.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

static OWN: LazyLock<Mutex<HashSet<SocketAddr>>> = LazyLock::new(Mutex::default);

/// One of them; dropping it takes it off.
#[derive(Debug)]
pub(super) struct OwnPort(SocketAddr);

impl OwnPort {
    /// Adds a socket's address. Bound exclusively, it is nobody else's.
    pub(super) fn enter(bound: SocketAddr) -> Self {
        own().insert(bound);
        Self(bound)
    }
}

impl Drop for OwnPort {
    fn drop(&mut self) {
        own().remove(&self.0);
    }
}

/// Whether a socket that is connected to `to`, and sends from `from`, sends to this process.
pub(super) fn leads_here(from: SocketAddr, to: SocketAddr) -> bool {
    let address = to.ip().to_canonical();
    // The system sends to this machine from the very address that it sends to.
    let is_here = address.is_loopback() || from.ip().to_canonical() == address;
    own()
        .iter()
        .filter(|own| own.port() == to.port())
        .any(|own| {
            let bound = own.ip().to_canonical();
            // A socket on all addresses of IPv6 takes those of IPv4, too.
            let takes_all =
                bound.is_unspecified() && (bound.is_ipv6() || bound.is_ipv4() == address.is_ipv4());
            bound == address || (takes_all && is_here)
        })
}

fn own() -> MutexGuard<'static, HashSet<SocketAddr>> {
    OWN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn leads(from: &str, to: &str) -> bool {
        leads_here(from.parse().unwrap(), to.parse().unwrap())
    }

    #[test]
    fn what_leads_back_is_known_by_address_and_port() {
        // Ports that no test binds.
        let all = OwnPort::enter("0.0.0.0:1".parse().unwrap());
        let one = OwnPort::enter("10.0.0.1:2".parse().unwrap());
        let both = OwnPort::enter("[::]:3".parse().unwrap());
        assert!(leads("127.0.0.1:9", "127.0.0.7:1"));
        assert!(leads("192.0.2.1:9", "192.0.2.1:1"));
        assert!(!leads("192.0.2.1:9", "192.0.2.2:1"));
        assert!(!leads("[::1]:9", "[::1]:1"));
        assert!(leads("10.0.0.1:9", "10.0.0.1:2"));
        assert!(!leads("10.0.0.2:9", "10.0.0.2:2"));
        assert!(leads("[::1]:9", "[::1]:3") && leads("127.0.0.1:9", "127.0.0.1:3"));
        drop((all, one, both));
        assert!(!leads("10.0.0.1:9", "10.0.0.1:2"));
    }
}
