//! The resource that all load goes to: it lives in this process, and the first byte of a connection
//! says what it does with it. It has a thread of its own.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::task::JoinSet;

use crate::own_thread::OwnThread;

/// Sends back what comes.
pub(crate) const ECHO: u8 = b'e';
/// Counts what comes until its end, and answers the count.
pub(crate) const COUNT: u8 = b'u';
/// Sends the pattern until the other side says a byte, then how many bytes it was.
pub(crate) const SEND: u8 = b'd';

/// Sends back what comes, in bulk.
pub(crate) const ECHO_BULK: u8 = b'b';
/// Reads nothing, ever.
pub(crate) const STALL: u8 = b's';

/// Bytes written and read at a time in bulk.
pub(crate) const BLOCK: usize = 64 * 1024;

/// Receive buffer of the sockets for datagrams in this process, in bytes; the system may give less.
pub(crate) const UDP_BUFFER: usize = 4 * 1024 * 1024;

/// The bulk data: blocks all alike, with each word different within one.
pub(crate) fn pattern() -> Vec<u8> {
    (0..BLOCK as u64 / 8)
        .flat_map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .collect()
}

/// Listens until dropped.
pub(crate) struct Resource {
    address: SocketAddr,
    _server: JoinSet<()>,
    _thread: OwnThread,
}

impl Resource {
    pub(crate) fn start() -> Result<Self> {
        let thread = OwnThread::start("resource")?;
        let handle = thread.handle().clone();
        let _inside = handle.enter();
        let socket = TcpSocket::new_v4().context("socket")?;
        // Connections have it from the socket that listens.
        socket.set_nodelay(true).context("nodelay")?;
        socket
            .bind(SocketAddr::from(([127, 0, 0, 1], 0)))
            .context("bind")?;
        let listener = socket.listen(4096).context("listen")?;
        let address = listener.local_addr().context("address")?;
        let mut server = JoinSet::new();
        server.spawn_on(accept(listener), &handle);
        Ok(Self {
            address,
            _server: server,
            _thread: thread,
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn accept(listener: TcpListener) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        // A connection that fails shows at the load's end of it.
        connections.spawn(async move { drop(serve(stream).await) });
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    match stream.read_u8().await? {
        // Small, since thousands may be idle at once.
        ECHO => echo(stream, 256).await,
        ECHO_BULK => echo(stream, BLOCK).await,
        STALL => std::future::pending().await,
        COUNT => count(stream).await,
        SEND => send(stream).await,
        _ => Ok(()),
    }
}

async fn echo(mut stream: TcpStream, size: usize) -> std::io::Result<()> {
    let mut buffer = vec![0; size];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return stream.shutdown().await;
        }
        stream
            .write_all(buffer.get(..count).unwrap_or_default())
            .await?;
    }
}

async fn count(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; BLOCK * 2];
    let mut total = 0;
    loop {
        match stream.read(&mut buffer).await? {
            0 => break,
            count => total += count as u64,
        }
    }
    stream.write_u64(total).await?;
    stream.shutdown().await
}

async fn send(stream: TcpStream) -> std::io::Result<()> {
    let block = pattern();
    let (mut from, mut to) = stream.into_split();
    let mut total = 0_u64;
    let mut byte = [0];
    // Its end counts too.
    let stop = from.read(&mut byte);
    tokio::pin!(stop);
    loop {
        tokio::select! {
            biased;
            // Nothing is lost when a write is done first.
            ended = &mut stop => {
                ended?;
                break;
            }
            // Writes are not cancelled: `write` that is dropped has written nothing.
            written = to.write(block.get(usize::try_from(total % BLOCK as u64).unwrap_or(0)..).unwrap_or_default()) => {
                total += written? as u64;
            }
        }
    }
    to.write_u64(total).await?;
    to.shutdown().await
}

/// Sends datagrams back, until dropped.
pub(crate) struct UdpResource {
    address: SocketAddr,
    _server: JoinSet<()>,
    _thread: OwnThread,
}

impl UdpResource {
    pub(crate) fn start() -> Result<Self> {
        let thread = OwnThread::start("udp-resource")?;
        let handle = thread.handle().clone();
        let _inside = handle.enter();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").context("bind")?;
        socket.set_nonblocking(true)?;
        let socket = UdpSocket::from_std(socket)?;
        // What the load tool cannot take is no loss of whoever is measured.
        SockRef::from(&socket).set_recv_buffer_size(UDP_BUFFER)?;
        let address = socket.local_addr().context("address")?;
        let mut server = JoinSet::new();
        let answering = async move {
            let mut buffer = vec![0; 65_536];
            loop {
                // An error is about a datagram sent before, whose sender is gone.
                if let Ok((count, from)) = socket.recv_from(&mut buffer).await {
                    let answer = buffer.get(..count).unwrap_or_default();
                    drop(socket.send_to(answer, from).await);
                }
            }
        };
        server.spawn_on(answering, &handle);
        Ok(Self {
            address,
            _server: server,
            _thread: thread,
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}
