//! Headers from balancers. [`Parser`] takes bytes as they come and never more than belong to the header; [`receive`]
//! feeds it from a connection.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::crc32c::checksum;
use super::{SIGNATURE, v2};

/// How long a balancer may take for its header.
pub const HEADER_LIMIT: Duration = Duration::from_secs(5);

/// Longest line of version 1, with its end.
const LONGEST_V1: usize = 107;
/// The part of version 2 that says how long the rest is.
const FIXED_V2: usize = 16;
/// Longest rest of version 2. Balancers send some hundred bytes; a client certificate may be among them.
const LONGEST_V2: usize = 16 * 1024;
const V1_BEGINS: &[u8] = b"PROXY ";

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conveyed {
    /// Who connects, and to what.
    Addresses {
        /// The user.
        source: SocketAddr,
        /// What the user has connected to.
        destination: SocketAddr,
    },
    /// That nobody does but the balancer itself (`LOCAL`), or that it does not know (`UNKNOWN`). The addresses of the
    /// connection count.
    Nothing,
}

/// Why a connection has no header that can be used.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// Something else began, or nothing did.
    #[error("no PROXY header: {0}")]
    Missing(&'static str),
    /// The connection ended before a byte came. Balancers look in this way whether a port is open.
    #[error("the connection ended before a byte came")]
    Probe,
    /// It began as a header and is none.
    #[error("the PROXY header cannot be used: {0}")]
    Bad(&'static str),
    /// It began and did not end in time.
    #[error("the PROXY header was not complete in time")]
    Timeout,
    /// The connection failed.
    #[error("the connection failed before its PROXY header was complete: {0}")]
    Io(#[source] io::Error),
}

impl HeaderError {
    /// One stable word for the log.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Missing(_) | Self::Probe => "proxy-header-missing",
            Self::Bad(_) => "proxy-header-bad",
            Self::Timeout => "proxy-header-timeout",
            Self::Io(_) => "tcp-reset",
        }
    }
}

/// Reads the header, and nothing that comes after it, within `limit`.
///
/// # Errors
/// [`HeaderError`]. The connection is of no use then.
pub async fn receive(tcp: &mut TcpStream, limit: Duration) -> Result<Conveyed, HeaderError> {
    let mut parser = Parser::default();
    match timeout(limit, feed(tcp, &mut parser)).await {
        Ok(read) => read,
        Err(_) if parser.taken.is_empty() => Err(HeaderError::Missing("nothing came in time")),
        Err(_) => Err(HeaderError::Timeout),
    }
}

async fn feed(tcp: &mut TcpStream, parser: &mut Parser) -> Result<Conveyed, HeaderError> {
    let mut buffer = [0; 512];
    loop {
        // What is not taken stays in the socket. All that is looked at is taken unless the header ends in it, so this
        // does not turn round and round over the same bytes.
        let seen = tcp.peek(&mut buffer).await.map_err(HeaderError::Io)?;
        if seen == 0 {
            return Err(if parser.taken.is_empty() {
                HeaderError::Probe
            } else {
                HeaderError::Bad("the connection ended in it")
            });
        }
        let seen = buffer.get(..seen).unwrap_or_default();
        let (taken, conveyed) = parser.take(seen)?;
        let header = buffer.get_mut(..taken).unwrap_or_default();
        tcp.read_exact(header).await.map_err(HeaderError::Io)?;
        if let Some(conveyed) = conveyed {
            return Ok(conveyed);
        }
    }
}

/// A header as far as it has come.
#[derive(Debug, Default)]
struct Parser {
    taken: Vec<u8>,
}

impl Parser {
    /// Takes of `bytes` what belongs to the header: how many, and what it says if it is complete with them. As long as
    /// it is not complete, all are taken.
    fn take(&mut self, bytes: &[u8]) -> Result<(usize, Option<Conveyed>), HeaderError> {
        for (number, byte) in bytes.iter().enumerate() {
            self.taken.push(*byte);
            if let Some(conveyed) = self.look()? {
                return Ok((number + 1, Some(conveyed)));
            }
        }
        Ok((bytes.len(), None))
    }

    /// Whether the header is complete now.
    fn look(&self) -> Result<Option<Conveyed>, HeaderError> {
        let taken = self.taken.as_slice();
        if SIGNATURE.starts_with(taken) || V1_BEGINS.starts_with(taken) {
            return Ok(None);
        }
        if taken.starts_with(SIGNATURE) {
            return version_2(taken);
        }
        if taken.starts_with(V1_BEGINS) {
            return version_1(taken);
        }
        Err(HeaderError::Missing("something else came first"))
    }
}

fn version_1(taken: &[u8]) -> Result<Option<Conveyed>, HeaderError> {
    let bad = |why| Err(HeaderError::Bad(why));
    let Some(line) = taken.strip_suffix(b"\n") else {
        return if taken.len() < LONGEST_V1 {
            Ok(None)
        } else {
            bad("the line is too long")
        };
    };
    let Some(line) = line.strip_suffix(b"\r") else {
        return bad("the line does not end as it should");
    };
    let Ok(line) = std::str::from_utf8(line) else {
        return bad("the line is no text");
    };
    let mut words = line.split(' ').skip(1);
    let family = words.next();
    if family == Some("UNKNOWN") {
        // Whatever else the line has is to be ignored.
        return Ok(Some(Conveyed::Nothing));
    }
    let words: Vec<&str> = words.collect();
    let &[source, destination, from, to] = words.as_slice() else {
        return bad("the line has not the words that it should");
    };
    let addresses = match family {
        Some("TCP4") => addresses::<Ipv4Addr>(source, destination),
        Some("TCP6") => addresses::<Ipv6Addr>(source, destination),
        _ => return bad("the family is none that is known"),
    };
    match (addresses, port(from), port(to)) {
        (Some((source, destination)), Some(from), Some(to)) => {
            Ok(Some(conveyed((source, from), (destination, to))))
        }
        _ => bad("an address or a port is none"),
    }
}

fn addresses<T: FromStr + Into<IpAddr>>(
    source: &str,
    destination: &str,
) -> Option<(IpAddr, IpAddr)> {
    let read = |text: &str| text.parse::<T>().ok().map(Into::into);
    read(source).zip(read(destination))
}

/// A number without signs and idle zeros.
fn port(text: &str) -> Option<u16> {
    let number: u16 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

fn conveyed(source: (IpAddr, u16), destination: (IpAddr, u16)) -> Conveyed {
    let join = |(ip, port): (IpAddr, u16)| SocketAddr::new(ip.to_canonical(), port);
    Conveyed::Addresses {
        source: join(source),
        destination: join(destination),
    }
}

fn version_2(taken: &[u8]) -> Result<Option<Conveyed>, HeaderError> {
    let bad = |why| Err(HeaderError::Bad(why));
    let Some((fixed, rest)) = taken.split_first_chunk::<FIXED_V2>() else {
        return Ok(None);
    };
    let [.., command, family, high, low] = *fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if command != v2::LOCAL && command != v2::PROXY {
        return bad("the version or the command is none that is known");
    }
    if length > LONGEST_V2 {
        return bad("it is too long");
    }
    if rest.len() < length {
        return Ok(None);
    }
    // LOCAL says nothing, whatever follows.
    if command == v2::LOCAL {
        return Ok(Some(Conveyed::Nothing));
    }
    let (conveyed, details) = match family {
        v2::UNSPECIFIED => return Ok(Some(Conveyed::Nothing)),
        v2::UNIX_STREAM => (Some(Conveyed::Nothing), rest.get(216..)),
        v2::TCP_4 => (addresses_2::<4, Ipv4Addr>(rest), rest.get(12..)),
        v2::TCP_6 => (addresses_2::<16, Ipv6Addr>(rest), rest.get(36..)),
        _ => return bad("the family or the transport is none that is known"),
    };
    let (Some(conveyed), Some(details)) = (conveyed, details) else {
        return bad("it is too short for its addresses");
    };
    check_details(taken, details)?;
    Ok(Some(conveyed))
}

fn addresses_2<const N: usize, T: From<[u8; N]> + Into<IpAddr>>(rest: &[u8]) -> Option<Conveyed> {
    let (source, rest) = rest.split_first_chunk::<N>()?;
    let (destination, rest) = rest.split_first_chunk::<N>()?;
    let (from, rest) = rest.split_first_chunk::<2>()?;
    let (to, _) = rest.split_first_chunk::<2>()?;
    let ip = |octets: &[u8; N]| T::from(*octets).into();
    Some(conveyed(
        (ip(source), u16::from_be_bytes(*from)),
        (ip(destination), u16::from_be_bytes(*to)),
    ))
}

/// Goes through the details, which say nothing that is needed here, for their form and the checksum among them.
fn check_details(header: &[u8], details: &[u8]) -> Result<(), HeaderError> {
    let mut left = details;
    while !left.is_empty() {
        let Some((&[kind, high, low], rest)) = left.split_first_chunk::<3>() else {
            return Err(HeaderError::Bad("a detail is cut off"));
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let Some((value, rest)) = rest.split_at_checked(length) else {
            return Err(HeaderError::Bad("a detail is cut off"));
        };
        if kind == v2::CRC32C {
            let before = header.len() - rest.len() - value.len();
            let (before, _) = header.split_at_checked(before).unwrap_or_default();
            let good =
                value.len() == 4 && checksum(&[before, &[0; 4], rest]).to_be_bytes() == value;
            if !good {
                return Err(HeaderError::Bad("the checksum is wrong"));
            }
        }
        left = rest;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
