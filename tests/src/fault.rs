//! A TCP relay that can misbehave: it stands between two parts, and a test tells it to delay, to
//! fall silent, to reset or to refuse. Bytes that it takes are never lost while it works.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// How the relay behaves now, for open and for new connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// Passes everything on, each byte this much later.
    Pass { delay: Duration },
    /// Takes bytes no more and says nothing, as a firewall that forgot the connection.
    Silent,
    /// Resets what is open and what comes.
    Reset,
    /// Closes what is open and what comes, in order.
    Close,
}

/// A relay to one address.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    behaviour: watch::Sender<Behaviour>,
    /// Ends with this value.
    _server: JoinSet<()>,
}

impl Relay {
    /// Listens on a loopback port and passes connections on to `target`.
    ///
    /// # Errors
    /// There is no port.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))
            .await
            .context("port of the relay")?;
        let address = listener.local_addr().context("address")?;
        let (behaviour, seen) = watch::channel(Behaviour::Pass {
            delay: Duration::ZERO,
        });
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                connections.spawn(connection(near, target, seen.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self {
            address,
            behaviour,
            _server: server,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Behaves like this from now on.
    pub fn set(&self, behaviour: Behaviour) {
        self.behaviour.send_replace(behaviour);
    }
}

async fn connection(near: TcpStream, target: SocketAddr, mut seen: watch::Receiver<Behaviour>) {
    let now = *seen.borrow();
    if now == Behaviour::Silent {
        // Held open until told otherwise; an error means that the relay is gone.
        drop(seen.wait_for(|now| *now != Behaviour::Silent).await);
        return;
    }
    if !matches!(now, Behaviour::Pass { .. }) {
        end(&near, now);
        return;
    }
    let Ok(mut far) = TcpStream::connect(target).await else {
        return;
    };
    let mut near = near;
    let cut = relay(&mut near, &mut far, &mut seen).await;
    end(&near, cut);
    end(&far, cut);
}

/// Makes the close that follows a reset, when one is asked for.
fn end(stream: &TcpStream, behaviour: Behaviour) {
    if behaviour == Behaviour::Reset {
        // Fails only for a socket that is closed already.
        drop(stream.set_zero_linger());
    }
}

/// Passes bytes on until both directions have ended or the relay is told to cut.
async fn relay(
    near: &mut TcpStream,
    far: &mut TcpStream,
    seen: &mut watch::Receiver<Behaviour>,
) -> Behaviour {
    let (up, down) = (seen.clone(), seen.clone());
    let (near_read, near_write) = near.split();
    let (far_read, far_write) = far.split();
    let both = async {
        tokio::join!(
            pump(near_read, far_write, up),
            pump(far_read, near_write, down)
        )
    };
    let cut = seen.wait_for(|now| matches!(now, Behaviour::Reset | Behaviour::Close));
    // Either arm ends the connection, so nothing is lost by dropping the other.
    tokio::select! {
        ((), ()) = both => Behaviour::Close,
        cut = cut => cut.map_or(Behaviour::Close, |now| *now),
    }
}

/// One direction, until its end.
async fn pump(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, mut seen: watch::Receiver<Behaviour>) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let now = seen
            .wait_for(|now| *now != Behaviour::Silent)
            .await
            .map(|now| *now);
        let Ok(Behaviour::Pass { delay }) = now else {
            return;
        };
        let count = tokio::select! {
            read = from.read(&mut buffer) => read.unwrap_or(0),
            // Nothing was read: behave anew.
            _ = seen.changed() => continue,
        };
        sleep_until(Instant::now() + delay).await;
        let sent = match count {
            0 => to.shutdown().await,
            count => to.write_all(buffer.get(..count).unwrap_or_default()).await,
        };
        if count == 0 || sent.is_err() {
            return;
        }
    }
}
