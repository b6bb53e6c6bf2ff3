//! The talk with a SOCKS proxy, from the first byte to the one after which the connection is the resource's.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use sg_runtime::secret::Secret;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::{Socks, SocksError, SocksVersion};

/// What the proxy is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target<'a> {
    /// An address.
    Address(SocketAddr),
    /// A name, for the proxy to resolve, and a port.
    Name(&'a str, u16),
}

/// Where the talk is, for whoever limits its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Stage {
    /// The proxy has not been asked yet; silence is its own.
    #[default]
    Greeting,
    /// The proxy is connecting; silence may be the resource's.
    Asked,
}

const CONNECT: u8 = 1;

/// Asks the proxy for a connection to `target` and waits until it has one. `stage` tells how far this is, also when
/// the future is dropped.
pub(crate) async fn handshake<T>(
    io: &mut T,
    socks: &Socks,
    target: Target<'_>,
    stage: &mut Stage,
) -> Result<(), SocksError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    match socks.version {
        SocksVersion::V4 | SocksVersion::V4a => version_4(io, socks, target, stage).await,
        SocksVersion::V5 => version_5(io, socks, target, stage).await,
    }
}

async fn version_4<T>(
    io: &mut T,
    socks: &Socks,
    target: Target<'_>,
    stage: &mut Stage,
) -> Result<(), SocksError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    // An address that cannot be one says that a name follows.
    const NAME_FOLLOWS: Ipv4Addr = Ipv4Addr::new(0, 0, 0, 1);
    let (address, name, port) = match target {
        Target::Address(SocketAddr::V4(address)) => (*address.ip(), None, address.port()),
        Target::Address(SocketAddr::V6(_)) => {
            return Err(SocksError::Protocol(
                "SOCKS 4 and 4a carry IPv4 only, use 5",
            ));
        }
        Target::Name(..) if socks.version == SocksVersion::V4 => {
            return Err(SocksError::Protocol(
                "SOCKS 4 carries no names, use 4a or 5",
            ));
        }
        Target::Name(name, port) => (NAME_FOLLOWS, Some(name), port),
    };
    let mut request = vec![4, CONNECT];
    request.extend_from_slice(&port.to_be_bytes());
    request.extend_from_slice(&address.octets());
    for text in [Some(socks.user.as_str()), name].into_iter().flatten() {
        if text.contains('\0') {
            return Err(SocksError::Protocol("a text for SOCKS 4 has a zero byte"));
        }
        request.extend_from_slice(text.as_bytes());
        request.push(0);
    }
    send(io, &request).await?;
    *stage = Stage::Asked;
    let answer: [u8; 8] = receive(io).await?;
    match answer {
        // Some answer with their version where a zero belongs.
        [0 | 4, 90, ..] => Ok(()),
        [0 | 4, 91, ..] => Err(SocksError::Refused(
            "rejected or failed, it does not say why",
        )),
        [0 | 4, 92 | 93, ..] => Err(SocksError::Auth("it wants proof of the user by identd")),
        _ => Err(SocksError::Protocol("the answer is not one of SOCKS 4")),
    }
}

async fn version_5<T>(
    io: &mut T,
    socks: &Socks,
    target: Target<'_>,
    stage: &mut Stage,
) -> Result<(), SocksError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    const NO_PROOF: u8 = 0;
    const PASSWORD: u8 = 2;
    const NONE: u8 = 0xff;
    let known = !socks.user.is_empty();
    let greeting: &[u8] = if known {
        &[5, 2, NO_PROOF, PASSWORD]
    } else {
        &[5, 1, NO_PROOF]
    };
    send(io, greeting).await?;
    match receive(io).await? {
        [5, NO_PROOF] => {}
        [5, PASSWORD] if known => authenticate(io, socks).await?,
        [5, NONE] if known => {
            return Err(SocksError::Auth("it does not take user and password"));
        }
        [5, NONE] => return Err(SocksError::Auth("it wants a user and a password")),
        [5, _] => return Err(SocksError::Protocol("it chose what was not offered")),
        _ => return Err(SocksError::Protocol("the answer is not one of SOCKS 5")),
    }
    let mut request = vec![5, CONNECT, 0];
    let port = match target {
        Target::Address(address) => {
            match address.ip() {
                IpAddr::V4(v4) => {
                    request.push(1);
                    request.extend_from_slice(&v4.octets());
                }
                IpAddr::V6(v6) => {
                    request.push(4);
                    request.extend_from_slice(&v6.octets());
                }
            }
            address.port()
        }
        Target::Name(name, port) => {
            request.push(3);
            counted(&mut request, name.as_bytes())?;
            port
        }
    };
    request.extend_from_slice(&port.to_be_bytes());
    send(io, &request).await?;
    *stage = Stage::Asked;
    let [version, reply, _, kind] = receive(io).await?;
    if version != 5 {
        return Err(SocksError::Protocol("the answer is not one of SOCKS 5"));
    }
    if reply != 0 {
        return Err(refusal(reply));
    }
    // The address that it connects from, of no use here, and the port.
    match kind {
        1 => receive::<6, T>(io).await.map(drop),
        4 => receive::<18, T>(io).await.map(drop),
        3 => {
            let [length] = receive(io).await?;
            let mut rest = vec![0; usize::from(length) + 2];
            io.read_exact(&mut rest).await.map(drop).map_err(lost)
        }
        _ => Err(SocksError::Protocol(
            "the answer has an address of no known kind",
        )),
    }
}

async fn authenticate<T>(io: &mut T, socks: &Socks) -> Result<(), SocksError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut proof = Vec::with_capacity(3 + 2 * usize::from(u8::MAX));
    proof.push(1);
    counted(&mut proof, socks.user.as_bytes())?;
    let password = socks
        .password
        .as_ref()
        .map(|secret| secret.expose().as_slice());
    counted(&mut proof, password.unwrap_or_default())?;
    let proof = Secret::new(proof);
    send(io, proof.expose()).await?;
    match receive(io).await? {
        // Some answer with the version of SOCKS where that of the proof belongs.
        [1 | 5, 0] => Ok(()),
        [1 | 5, _] => Err(SocksError::Auth("user or password is wrong")),
        _ => Err(SocksError::Protocol(
            "the answer to the password is not one of SOCKS 5",
        )),
    }
}

/// What a reply other than success means.
fn refusal(reply: u8) -> SocksError {
    match reply {
        1 => SocksError::Refused("general failure, it does not say why"),
        2 => SocksError::Refused("its rules do not allow it"),
        // Of its network, of the host, of the packets.
        3 | 4 | 6 => SocksError::ResourceUnreachable,
        5 => SocksError::ResourceRefused,
        7 => SocksError::Protocol("it does not know how to connect"),
        8 => SocksError::Protocol("it does not know this kind of address"),
        _ => SocksError::Refused("for a reason that has no name"),
    }
}

fn counted(out: &mut Vec<u8>, text: &[u8]) -> Result<(), SocksError> {
    let length = u8::try_from(text.len())
        .map_err(|_| SocksError::Protocol("a text is too long for SOCKS 5"))?;
    out.push(length);
    out.extend_from_slice(text);
    Ok(())
}

async fn send<T: AsyncWrite + Unpin>(io: &mut T, bytes: &[u8]) -> Result<(), SocksError> {
    io.write_all(bytes).await.map_err(lost)?;
    io.flush().await.map_err(lost)
}

async fn receive<const N: usize, T: AsyncRead + Unpin>(io: &mut T) -> Result<[u8; N], SocksError> {
    let mut answer = [0; N];
    io.read_exact(&mut answer).await.map_err(lost)?;
    Ok(answer)
}

/// A proxy that has rules about who may ask at all closes without a word.
fn lost(error: io::Error) -> SocksError {
    tracing::debug!(%error, "the SOCKS proxy is gone");
    SocksError::Refused("it closed the connection without an answer")
}

#[cfg(test)]
mod tests;
