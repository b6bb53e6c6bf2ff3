//! Ports that no other test uses: a block for each, held by a file lock, so that a killed process
//! can be started again on the very port it had.

use std::fs::{File, OpenOptions, TryLockError};
use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Context as _, Result, bail};

/// Below the range from which the system takes ports for outgoing connections.
const FIRST: u16 = 20_000;
const BLOCK: u16 = 64;
const BLOCKS: u16 = 180;
/// The first ports of a block are for servers, the rest is the range for destinations.
const SERVERS: u16 = 24;

/// A block of ports, ours until dropped.
#[derive(Debug)]
pub struct Ports {
    first: u16,
    next: u16,
    /// Held for its lock.
    _lock: File,
}

impl Ports {
    /// Takes a block that neither another test nor a foreign program uses.
    ///
    /// # Errors
    /// None is left, or the folder of the lock files cannot be written.
    pub fn take() -> Result<Self> {
        // One for each user, since the files of another cannot be locked.
        let user = rustix::process::getuid().as_raw();
        let folder = std::env::temp_dir().join(format!("sg-test-ports-{user}"));
        std::fs::create_dir_all(&folder).context("folder of the port locks")?;
        // Tests of one run start at different blocks, so that they seldom meet.
        let start = u16::try_from(std::process::id() % u32::from(BLOCKS)).unwrap_or(0);
        for turn in 0..BLOCKS {
            let number = (start + turn) % BLOCKS;
            let path = folder.join(number.to_string());
            let lock = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
                .with_context(|| format!("lock file {}", path.display()))?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(error)) => return Err(error).context("port lock"),
            }
            let first = FIRST + number * BLOCK;
            if (first..first + BLOCK).all(is_free) {
                return Ok(Self {
                    first,
                    next: first,
                    _lock: lock,
                });
            }
        }
        bail!(
            "no block of {BLOCK} free ports between {FIRST} and {}",
            FIRST + BLOCKS * BLOCK
        )
    }

    /// A port for a server, not handed out before.
    ///
    /// # Panics
    /// More servers were asked for than a block has ports.
    pub fn server(&mut self) -> u16 {
        let port = self.next;
        assert!(
            port < self.first + SERVERS,
            "a test has at most {SERVERS} server ports"
        );
        self.next += 1;
        port
    }

    /// First and last port for destinations.
    #[must_use]
    pub fn destinations(&self) -> (u16, u16) {
        (self.first + SERVERS, self.first + BLOCK - 1)
    }
}

/// Bound on all addresses, because tests use several of 127.0.0.0/8.
fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
}
