//! A handshake over a socket: whatever the session has to say is written, what comes is read, until both ends
//! are done or one of them gives up. A peer that is refused gets the alert that says so.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use super::engine::Engine;
use super::{HANDSHAKE_LIMIT, TlsError};

/// Bytes of a handshake that are not yet whole messages. Chains of certificates are the longest.
const MOST_INCOMING: usize = 128 * 1024;
/// Room for one read.
const READ: usize = 8 * 1024;
/// How long a refused peer may take to read the alert.
const FAREWELL: Duration = Duration::from_millis(500);

/// Runs a step of a handshake until the deadline, at most [`HANDSHAKE_LIMIT`].
pub(super) async fn within<T, E: From<TlsError>>(
    deadline: Instant,
    step: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let deadline = deadline.min(Instant::now() + HANDSHAKE_LIMIT);
    timeout_at(deadline, step)
        .await
        .unwrap_or_else(|_| Err(TlsError::Timeout.into()))
}

/// Runs the handshake to its end. `check` sees the first bytes that the peer sends.
pub(super) async fn run(
    tcp: &mut TcpStream,
    engine: &mut Engine,
    check: impl Fn(&[u8]) -> Result<(), TlsError>,
) -> Result<(), TlsError> {
    let mut first = true;
    loop {
        let result = engine.process_incoming();
        let written = flush(tcp, engine).await;
        // First, because it is the cause.
        result?;
        written?;
        if !engine.state().is_handshaking() {
            engine.incoming.shrink_to_fit();
            return Ok(());
        }
        if engine.has_ended() {
            return Err(TlsError::Closed);
        }
        if engine.incoming.len() > MOST_INCOMING {
            return Err(TlsError::Failed("the handshake is too long".to_owned()));
        }
        read(tcp, &mut engine.incoming).await?;
        if std::mem::take(&mut first) {
            check(&engine.incoming)?;
        }
    }
}

/// Reads something; the end of the connection is an error.
pub(super) async fn read(tcp: &mut TcpStream, into: &mut Vec<u8>) -> Result<(), TlsError> {
    into.reserve(READ);
    match tcp.read_buf(into).await {
        Ok(0) => Err(TlsError::Closed),
        Ok(_) => Ok(()),
        Err(error) => Err(TlsError::of_io(&error)),
    }
}

/// Writes all that the session has to say.
pub(super) async fn flush(tcp: &mut TcpStream, engine: &mut Engine) -> Result<(), TlsError> {
    while !engine.outgoing().is_empty() {
        let count = tcp
            .write(engine.outgoing())
            .await
            .map_err(|error| TlsError::of_io(&error))?;
        engine.sent(count);
    }
    Ok(())
}

/// After a handshake that failed for a reason of ours: writes what is still to be said and ends the connection, so that the peer
/// gets to read the alert. A reset, which a close with unread bytes would be, could overtake it.
pub(super) async fn farewell(tcp: &mut TcpStream, last_words: &[u8]) {
    let goodbye = async {
        tcp.write_all(last_words).await?;
        tcp.shutdown().await?;
        let mut left = MOST_INCOMING;
        let mut buffer = [0; 1024];
        while left > 0 {
            match tcp.read(&mut buffer).await? {
                0 => break,
                count => left = left.saturating_sub(count),
            }
        }
        std::io::Result::Ok(())
    };
    if let Ok(Err(error)) = timeout(FAREWELL, goodbye).await {
        tracing::trace!(%error, "the peer did not wait for the alert");
    }
}
