//! Headers of the PROXY protocol, version 2, read with nothing of the product.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

/// A PROXY protocol header of version 2, as the resource reads it.
#[derive(Debug)]
pub struct Header {
    /// The user.
    pub from: SocketAddr,
    /// What the user connected to.
    pub to: SocketAddr,
    /// Everything else, by its type.
    pub texts: BTreeMap<u8, Vec<u8>>,
}

/// Reads one of IPv4, and not a byte more.
///
/// # Errors
/// There is none.
pub async fn read(stream: &mut TcpStream) -> Result<Header> {
    let mut begin = [0; 16];
    stream.read_exact(&mut begin).await?;
    let signature = b"\r\n\r\n\0\r\nQUIT\n";
    ensure!(begin.starts_with(signature), "{begin:?}");
    let [.., command, family, high, low] = begin;
    ensure!((command, family) == (0x21, 0x11), "{command:x} {family:x}");
    let mut rest = vec![0; usize::from(u16::from_be_bytes([high, low]))];
    stream.read_exact(&mut rest).await?;
    let (addresses, texts) = rest.split_at_checked(12).context("addresses")?;
    let number = |at: usize| -> Result<u8> { addresses.get(at).copied().context("address") };
    let address = |ip: usize, port: usize| -> Result<SocketAddr> {
        let ip = Ipv4Addr::new(
            number(ip)?,
            number(ip + 1)?,
            number(ip + 2)?,
            number(ip + 3)?,
        );
        let port = u16::from_be_bytes([number(port)?, number(port + 1)?]);
        Ok((ip, port).into())
    };
    Ok(Header {
        from: address(0, 8)?,
        to: address(4, 10)?,
        texts: values(texts)?,
    })
}

/// What is written as type, length, value.
///
/// # Errors
/// Something is left.
pub fn values(mut rest: &[u8]) -> Result<BTreeMap<u8, Vec<u8>>> {
    let mut all = BTreeMap::new();
    while let Some((&[kind, high, low], tail)) = rest.split_first_chunk::<3>() {
        let length = usize::from(u16::from_be_bytes([high, low]));
        let (value, tail) = tail.split_at_checked(length).context("length")?;
        all.insert(kind, value.to_vec());
        rest = tail;
    }
    ensure!(rest.is_empty(), "{rest:?} is left");
    Ok(all)
}
