//! The first exchange on a tunnel's connection, before the multiplexer: a length of four bytes (big endian)
//! and one protobuf message, each way.

use std::io;

use prost::Message;
use sg_proto::tunnel::{ClientHello, ServerHello};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Longest first message of a client, in bytes.
const LONGEST: usize = 16 * 1024;

/// Why there is no hello to answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum HelloError {
    /// The connection failed or ended.
    #[error("the connection ended before the hello")]
    Io(#[from] io::Error),
    /// The length is out of range.
    #[error("a hello has 1 to {LONGEST} bytes")]
    Length,
    /// It is no message that this version knows.
    #[error("the hello cannot be decoded")]
    Malformed,
}

/// Reads the client's hello. Reads not a byte beyond it.
pub(super) async fn read<T>(io: &mut T) -> Result<ClientHello, HelloError>
where
    T: AsyncRead + Unpin,
{
    let length = io.read_u32().await? as usize;
    if !(1..=LONGEST).contains(&length) {
        return Err(HelloError::Length);
    }
    let mut message = vec![0; length];
    io.read_exact(&mut message).await?;
    ClientHello::decode(message.as_slice()).map_err(|_| HelloError::Malformed)
}

/// Writes the node's hello.
pub(super) async fn write<T>(io: &mut T, hello: &ServerHello) -> io::Result<()>
where
    T: AsyncWrite + Unpin,
{
    let message = hello.encode_to_vec();
    let length = u32::try_from(message.len()).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(4 + message.len());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&message);
    io.write_all(&bytes).await?;
    io.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_hello_is_read_and_nothing_after_it() {
        let hello = ClientHello {
            version: 1,
            gateway: "dev".to_owned(),
            ..ClientHello::default()
        };
        let body = hello.encode_to_vec();
        let mut bytes = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend_from_slice(&body);
        bytes.extend_from_slice(b"mux");
        let mut input = bytes.as_slice();
        assert_eq!(read(&mut input).await.unwrap(), hello);
        assert_eq!(input, b"mux");
    }

    #[tokio::test]
    async fn what_is_no_hello_is_refused_without_reading_it_all() {
        let mut long: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
        assert!(matches!(read(&mut long).await, Err(HelloError::Length)));
        assert_eq!(long, b"/ HTTP/1.1\r\n\r\n");
        let mut malformed: &[u8] = &[0, 0, 0, 2, 0xff, 0xff];
        assert!(matches!(
            read(&mut malformed).await,
            Err(HelloError::Malformed)
        ));
        let mut short: &[u8] = &[0, 0, 0, 9, 1];
        assert!(matches!(read(&mut short).await, Err(HelloError::Io(_))));
        let mut empty: &[u8] = &[0, 0, 0, 0];
        assert!(matches!(read(&mut empty).await, Err(HelloError::Length)));
    }
}
