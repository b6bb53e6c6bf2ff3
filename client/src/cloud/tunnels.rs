//! The tunnels of one gateway that can take a user's stream: each in turn.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sg_relay::ByteCounters;
use sg_tunnel_io::Tunnel;
use tokio::sync::Notify;

/// The tunnels. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Tunnels(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    ring: Mutex<Ring>,
    /// A tunnel came, or came back.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Ring {
    next: u64,
    /// Whose turn was last.
    last: u64,
    tunnels: BTreeMap<u64, Arc<Way>>,
}

/// A tunnel, and who is at its other end.
#[derive(Debug)]
pub struct Way {
    /// Greater ones came later.
    pub number: u64,
    /// The tunnel.
    pub tunnel: Tunnel,
    /// The node.
    pub node: Arc<str>,
    /// Bytes of all its streams.
    pub bytes: Arc<ByteCounters>,
}

/// A tunnel that is among them; dropping it takes it off.
#[derive(Debug)]
pub struct Entered {
    number: u64,
    all: Tunnels,
}

/// Which tunnels are good enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Those that answer.
    Good,
    /// Those that may not, too.
    Any,
}

impl Tunnels {
    /// Adds a tunnel.
    #[must_use]
    pub fn enter(&self, tunnel: Tunnel, node: Arc<str>, bytes: Arc<ByteCounters>) -> Entered {
        let mut ring = self.lock();
        ring.next += 1;
        let number = ring.next;
        let way = Way {
            number,
            tunnel,
            node,
            bytes,
        };
        ring.tunnels.insert(number, Arc::new(way));
        drop(ring);
        self.changed();
        Entered {
            number,
            all: self.clone(),
        }
    }

    /// The next one in turn that can take a stream, and is none of `tried`.
    #[must_use]
    pub fn choose(&self, health: Health, tried: &[u64]) -> Option<Arc<Way>> {
        let mut ring = self.lock();
        let chosen = ring.next_in_turn(health, tried)?;
        ring.last = chosen.number;
        Some(chosen)
    }

    /// Whether a healthy one is there that is none of `tried`.
    #[must_use]
    pub fn has_other(&self, tried: &[u64]) -> bool {
        self.lock().next_in_turn(Health::Good, tried).is_some()
    }

    /// Says that a tunnel may be usable again.
    pub fn changed(&self) {
        self.0.changed.notify_waiters();
    }

    /// Waits until one of them, and none of `tried`, is usable.
    pub async fn available(&self, tried: &[u64]) {
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.lock().next_in_turn(Health::Any, tried).is_some() {
                return;
            }
            changed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.0.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    fn next_in_turn(&self, health: Health, tried: &[u64]) -> Option<Arc<Way>> {
        let after = self.last + 1;
        let usable = |way: &&Arc<Way>| {
            let tunnel = &way.tunnel;
            !tried.contains(&way.number)
                && !tunnel.is_closed()
                && !tunnel.is_draining()
                && !tunnel.is_detached()
                && (health == Health::Any || !tunnel.is_suspect())
        };
        let in_turn = self
            .tunnels
            .range(after..)
            .chain(self.tunnels.range(..after));
        in_turn.map(|(_, way)| way).find(usable).cloned()
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.all.lock().tunnels.remove(&self.number);
    }
}
