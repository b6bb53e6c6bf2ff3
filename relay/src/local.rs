//! The local end of a relayed connection: a TCP connection to a user or a resource, as it is or with TLS over it.
//!
//! [`crate::join`] relays its bytes as they are; [`crate::LocalIo`] is for whoever must read and write them.
//! Dropping it resets the connection.

use bytes::Bytes;
use tokio::net::TcpStream;

use crate::socket::ResetOnDrop;
use crate::tls::TlsStream;

/// A TCP connection, and what was read of it already.
#[derive(Debug)]
pub struct RawEnd {
    pub(crate) tcp: ResetOnDrop,
    pub(crate) front: Bytes,
}

impl RawEnd {
    /// A connection whose first bytes were read: they come first again.
    #[must_use]
    pub fn with_front(tcp: ResetOnDrop, front: Bytes) -> Self {
        Self { tcp, front }
    }

    /// The connection: for its addresses and its error, not for its bytes.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        self.tcp.tcp()
    }
}

impl From<ResetOnDrop> for RawEnd {
    fn from(tcp: ResetOnDrop) -> Self {
        Self {
            tcp,
            front: Bytes::new(),
        }
    }
}

impl From<TcpStream> for RawEnd {
    fn from(tcp: TcpStream) -> Self {
        ResetOnDrop::new(tcp).into()
    }
}

/// The local end of a relayed connection.
#[derive(Debug)]
pub enum Local {
    /// As it is.
    Tcp(RawEnd),
    /// With TLS.
    Tls(TlsStream),
}

impl Local {
    /// The connection: for its addresses and its error, not for its bytes.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Tcp(raw) => raw.tcp(),
            Self::Tls(tls) => tls.tcp(),
        }
    }
}

impl<T: Into<RawEnd>> From<T> for Local {
    fn from(io: T) -> Self {
        Self::Tcp(io.into())
    }
}

impl From<TlsStream> for Local {
    fn from(tls: TlsStream) -> Self {
        Self::Tls(tls)
    }
}
