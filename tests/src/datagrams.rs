//! Both ends of a UDP destination: a resource that answers, and a user who asks.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::{PATIENCE, within};

/// How long a user waits before sending again, as programs that use UDP do.
pub const AGAIN: Duration = Duration::from_millis(500);

/// A resource that answers each datagram with `factor` times its bytes.
#[derive(Debug)]
pub struct Resource {
    /// Where it is.
    pub address: SocketAddr,
    _server: JoinSet<()>,
}

impl Resource {
    /// One that answers what it was asked.
    ///
    /// # Errors
    /// There is no socket for it.
    pub async fn echo() -> Result<Self> {
        Self::answering("127.0.0.1:0", 1).await
    }

    /// One at this address.
    ///
    /// # Errors
    /// There is no socket for it.
    pub async fn answering(at: &str, factor: usize) -> Result<Self> {
        let socket = UdpSocket::bind(at).await.context("resource")?;
        let address = socket.local_addr()?;
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut buffer = vec![0; 65_536];
            loop {
                let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
                    continue;
                };
                let answer = buffer.get(..length).unwrap_or_default().repeat(factor);
                // An answer that cannot be sent is a datagram lost, which the tests notice.
                drop(socket.send_to(&answer, from).await);
            }
        });
        Ok(Self {
            address,
            _server: server,
        })
    }
}

/// A user's connected socket, which takes answers from the destination's own address only.
#[derive(Debug)]
pub struct User(UdpSocket);

impl User {
    /// A user of a destination.
    ///
    /// # Errors
    /// There is no socket for him.
    pub async fn of(destination: SocketAddr) -> Result<Self> {
        Self::from("127.0.0.1", destination).await
    }

    /// A user of a destination, at this address.
    ///
    /// # Errors
    /// There is no socket for him there.
    pub async fn from(address: &str, destination: SocketAddr) -> Result<Self> {
        let socket = UdpSocket::bind((address, 0)).await?;
        socket.connect(destination).await?;
        Ok(Self(socket))
    }

    /// Sends one datagram.
    ///
    /// # Errors
    /// The system does not take it, or has been told that nobody listens.
    pub async fn send(&self, datagram: &[u8]) -> Result<()> {
        self.0.send(datagram).await.context("sending").map(drop)
    }

    /// Sends one datagram if there is room for it.
    pub fn try_send(&self, datagram: &[u8]) {
        drop(self.0.try_send(datagram));
    }

    /// The next answer; `None` if none comes in this time.
    ///
    /// # Errors
    /// The system has been told that nobody listens.
    pub async fn answer(&self, limit: Duration) -> Result<Option<Vec<u8>>> {
        let mut buffer = vec![0; 65_536];
        let Ok(received) = timeout(limit, self.0.recv(&mut buffer)).await else {
            return Ok(None);
        };
        buffer.truncate(received.context("receiving")?);
        Ok(Some(buffer))
    }

    /// Asks until there is an answer, which must be the question.
    ///
    /// # Errors
    /// There is none in time.
    pub async fn ask(&self, question: &[u8]) -> Result<()> {
        let asks = async {
            loop {
                self.send(question).await?;
                while let Some(answer) = self.answer(AGAIN).await? {
                    // An answer to an earlier try of another question may still come.
                    if answer == question {
                        return Ok(());
                    }
                }
            }
        };
        within(
            PATIENCE,
            &format!("an answer of {} bytes", question.len()),
            asks,
        )
        .await?
    }
}
