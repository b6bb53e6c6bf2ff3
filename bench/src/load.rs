//! The users: they connect, say what they want of the resource, and check what they get.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use crate::resource::{BLOCK, COUNT, ECHO, SEND, pattern};

/// The longest that anything may take beyond its planned time.
pub(crate) const GRACE: Duration = Duration::from_secs(20);

/// Size of a request and of its answer.
pub(crate) const REQUEST: usize = 64;

/// A connection in a mode of the resource.
pub(crate) async fn connect(address: SocketAddr, mode: u8) -> Result<TcpStream> {
    let mut stream = timeout(GRACE, TcpStream::connect(address))
        .await
        .context("connecting")?
        .context("connecting")?;
    stream.set_nodelay(true)?;
    stream.write_all(&[mode]).await.context("first byte")?;
    Ok(stream)
}

/// Sends as fast as it can until `end`; answers the bytes, as counted at the other end.
pub(crate) async fn upload(address: SocketAddr, end: Instant) -> Result<u64> {
    let mut stream = connect(address, COUNT).await?;
    let block = pattern();
    let mut sent = 0;
    let counted = timeout_at(end + GRACE, async {
        while Instant::now() < end {
            stream.write_all(&block).await.context("sending")?;
            sent += block.len() as u64;
        }
        stream.shutdown().await.context("ending")?;
        stream.read_u64().await.context("reading the count")
    });
    let counted = counted.await.context("the upload stalled")??;
    ensure!(
        counted == sent,
        "{sent} bytes were sent and {counted} arrived"
    );
    Ok(sent)
}

/// Receives as fast as it can until `end`; answers the bytes, as counted at the other end. Some of
/// each read is compared with what was sent.
pub(crate) async fn download(address: SocketAddr, end: Instant) -> Result<u64> {
    let mut stream = connect(address, SEND).await?;
    let block = pattern();
    let received = timeout_at(end + GRACE, receive(&mut stream, end, &block));
    received.await.context("the download stalled")?
}

async fn receive(stream: &mut TcpStream, end: Instant, block: &[u8]) -> Result<u64> {
    let mut buffer = vec![0; BLOCK * 2];
    let mut total = 0_usize;
    let mut ended = false;
    // The last eight bytes are the count, so as many are held back.
    let mut last = Vec::new();
    loop {
        if !ended && Instant::now() >= end {
            // Not a FIN: not every peer goes on sending after one.
            stream.write_all(b"x").await.context("ending")?;
            ended = true;
        }
        let count = stream.read(&mut buffer).await.context("receiving")?;
        if count == 0 {
            break;
        }
        let bytes = buffer.get(..count).context("a read fits its buffer")?;
        if !ended {
            let at = total % BLOCK;
            let seen = bytes.len().min(64).min(BLOCK - at);
            ensure!(
                bytes.get(..seen) == block.get(at..at + seen),
                "a byte differs after {total}"
            );
        }
        total += count;
        last.extend_from_slice(bytes.get(count.saturating_sub(8)..).unwrap_or_default());
        last.drain(..last.len().saturating_sub(8));
    }
    let counted = last
        .as_slice()
        .try_into()
        .map(u64::from_be_bytes)
        .context("no count")?;
    let received = total as u64 - 8;
    ensure!(
        counted == received,
        "{counted} bytes were sent and {received} arrived"
    );
    Ok(received)
}

/// A connection over which requests are answered.
pub(crate) async fn open_for_requests(address: SocketAddr) -> Result<TcpStream> {
    let mut stream = connect(address, ECHO).await?;
    // The first waits for the connection to the resource.
    still_answers(&mut stream).await?;
    Ok(stream)
}

/// Asks and is answered, one request at a time, until `end`; answers the microseconds of each.
pub(crate) async fn ping_pong(mut stream: TcpStream, end: Instant) -> Result<Vec<u32>> {
    let mut times = Vec::new();
    let asking = async {
        let mut request = [0_u8; REQUEST];
        let mut number = 0_u64;
        let mut start = Instant::now();
        while start < end {
            number += 1;
            for (to, from) in request.iter_mut().zip(number.to_le_bytes()) {
                *to = from;
            }
            exchange(&mut stream, &request).await?;
            let answered = Instant::now();
            let time = answered.duration_since(start).as_micros();
            times.push(u32::try_from(time).unwrap_or(u32::MAX));
            start = answered;
        }
        anyhow::Ok(())
    };
    // One limit for all: a timer for each request would be work that nobody asked for.
    timeout_at(end + GRACE, asking)
        .await
        .context("a request was not answered")??;
    Ok(times)
}

async fn exchange(stream: &mut TcpStream, request: &[u8; REQUEST]) -> Result<()> {
    stream.write_all(request).await.context("asking")?;
    // With room for more, so that a read which takes all says that nothing is left, and no second call has to.
    let mut answer = [0_u8; REQUEST * 2];
    let mut filled = 0;
    while filled < REQUEST {
        let room = answer.get_mut(filled..).unwrap_or_default();
        let count = stream.read(room).await.context("being answered")?;
        ensure!(count > 0, "an end instead of an answer");
        filled += count;
    }
    ensure!(
        answer.get(..filled) == Some(request.as_slice()),
        "the answer is not what was asked for"
    );
    Ok(())
}

/// One whole connection: opened, one byte there and back, closed in order.
pub(crate) async fn open_and_close(address: SocketAddr) -> Result<()> {
    let mut stream = connect(address, ECHO).await?;
    stream.write_all(b"x").await?;
    // With room for more: see `exchange`.
    let mut answer = [0; 16];
    let count = stream.read(&mut answer).await.context("the echo")?;
    ensure!(answer.get(..count) == Some(b"x".as_slice()), "the echo");
    stream.shutdown().await?;
    ensure!(
        stream.read(&mut answer).await.context("the end")? == 0,
        "bytes after the end"
    );
    Ok(())
}

/// A connection that has been used once and stays.
pub(crate) async fn open_and_hold(address: SocketAddr) -> Result<TcpStream> {
    let mut stream = connect(address, ECHO).await?;
    still_answers(&mut stream).await?;
    Ok(stream)
}

/// Whether a held connection still works.
pub(crate) async fn still_answers(stream: &mut TcpStream) -> Result<()> {
    let request = [7; REQUEST];
    timeout(GRACE, exchange(stream, &request))
        .await
        .context("no answer")?
}
