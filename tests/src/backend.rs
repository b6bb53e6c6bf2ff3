//! Resources that a test plays itself, so that it sees both ends of a stream.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::{PATIENCE, within};

/// Sends everything back, for each connection until it ends.
#[derive(Debug)]
pub struct Echo {
    address: SocketAddr,
    /// Ends with this value.
    _server: JoinSet<()>,
}

impl Echo {
    /// Listens on a loopback port.
    ///
    /// # Errors
    /// There is none.
    pub async fn start() -> Result<Self> {
        Self::on(listen()?)
    }

    /// Listens on this address.
    ///
    /// # Errors
    /// It cannot be bound.
    pub async fn start_at(address: &str) -> Result<Self> {
        Self::on(TcpListener::bind(address).await.context("bind")?)
    }

    fn on(listener: TcpListener) -> Result<Self> {
        let address = listener.local_addr().context("address")?;
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(echo(stream));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self {
            address,
            _server: server,
        })
    }

    /// HOST:PORT.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }
}

/// One connection of [`Echo`]; ends when the other side does, in order or not.
async fn echo(mut stream: TcpStream) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(count) = stream.read(&mut buffer).await {
        let sent = stream
            .write_all(buffer.get(..count).unwrap_or_default())
            .await;
        if count == 0 || sent.is_err() {
            return;
        }
    }
}

/// A resource whose connections the test takes by hand.
#[derive(Debug)]
pub struct Manual {
    listener: TcpListener,
}

impl Manual {
    /// Listens on a loopback port.
    ///
    /// # Errors
    /// There is none.
    pub fn start() -> Result<Self> {
        Ok(Self {
            listener: listen()?,
        })
    }

    /// HOST:PORT.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn address(&self) -> Result<String> {
        Ok(self.listener.local_addr().context("address")?.to_string())
    }

    /// The next connection and where it comes from.
    ///
    /// # Errors
    /// None comes in time.
    pub async fn accept(&self) -> Result<(TcpStream, SocketAddr)> {
        within(
            PATIENCE,
            "the resource is connected to",
            self.listener.accept(),
        )
        .await?
        .context("accepting")
    }
}

/// A resource that answers nothing, not even to a SYN: its queue is full and nobody takes from it.
#[derive(Debug)]
pub struct Silent {
    listener: TcpListener,
    _queued: Vec<TcpStream>,
}

impl Silent {
    /// Listens and fills its own queue.
    ///
    /// # Errors
    /// There is no port.
    pub async fn start() -> Result<Self> {
        let socket = TcpSocket::new_v4().context("socket")?;
        socket
            .bind(SocketAddr::from(([127, 0, 0, 1], 0)))
            .context("bind")?;
        let listener = socket.listen(1).context("listen")?;
        let address = listener.local_addr().context("address")?;
        let mut queued = Vec::new();
        // The system rounds the queue's length up in its own way: fill until it answers no more.
        let full = std::time::Duration::from_millis(300);
        while let Ok(stream) = tokio::time::timeout(full, TcpStream::connect(address)).await {
            queued.push(stream.context("filling the queue")?);
        }
        Ok(Self {
            listener,
            _queued: queued,
        })
    }

    /// HOST:PORT.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn address(&self) -> Result<String> {
        Ok(self.listener.local_addr().context("address")?.to_string())
    }
}

fn listen() -> Result<TcpListener> {
    let socket = TcpSocket::new_v4().context("socket")?;
    socket
        .bind(SocketAddr::from(([127, 0, 0, 1], 0)))
        .context("bind")?;
    socket.listen(4096).context("listen")
}
