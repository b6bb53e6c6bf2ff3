//! The PROXY protocol, versions 1 and 2: a header before the first byte of a connection, in which somebody in between
//! says who the user is.
//!
//! Written towards a resource that wants to know its users ([`Facts`], [`send`]), and read from balancers in front of
//! a port ([`receive`]), which must be trusted ones: whoever may send the header chooses the address that rules and
//! logs go by. Nothing is read beyond the header.
//!
//! Not here: who is trusted, and which destinations send it.

mod crc32c;
mod read;
mod write;

use std::net::SocketAddr;

pub use self::read::{Conveyed, HEADER_LIMIT, HeaderError, receive};
pub use self::write::{Version, send};

/// Begins every header of version 2. No text, and nothing that TLS, HTTP or a mail server would take for a beginning.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// What a resource is told of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// From where the user connects.
    pub source: SocketAddr,
    /// What the user has connected to.
    pub destination: SocketAddr,
    /// How the user speaks TLS, if so. In version 2 only.
    pub tls: Option<TlsFacts>,
}

/// What a user's TLS handshake has shown.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsFacts {
    /// Such as `TLSv1.3`.
    pub version: String,
    /// Such as `TLS13_AES_256_GCM_SHA384`.
    pub cipher: String,
    /// The name that the user asked for; empty: none.
    pub server_name: String,
    /// The application protocol that was agreed on; empty: none.
    pub alpn: Vec<u8>,
    /// The certificate that the user has shown, if any.
    pub client_certificate: Option<ClientCertificate>,
}

/// A user's certificate, in as far as a resource is told of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientCertificate {
    /// The common name in it; empty: none.
    pub common_name: String,
    /// Whether it was checked and accepted.
    pub verified: bool,
}

/// Numbers of version 2.
mod v2 {
    pub(super) const LOCAL: u8 = 0x20;
    pub(super) const PROXY: u8 = 0x21;
    pub(super) const UNSPECIFIED: u8 = 0x00;
    pub(super) const TCP_4: u8 = 0x11;
    pub(super) const TCP_6: u8 = 0x21;
    pub(super) const UNIX_STREAM: u8 = 0x31;

    pub(super) const ALPN: u8 = 0x01;
    pub(super) const AUTHORITY: u8 = 0x02;
    pub(super) const CRC32C: u8 = 0x03;
    pub(super) const SSL: u8 = 0x20;
    pub(super) const SSL_VERSION: u8 = 0x21;
    pub(super) const SSL_COMMON_NAME: u8 = 0x22;
    pub(super) const SSL_CIPHER: u8 = 0x23;

    /// The user speaks TLS.
    pub(super) const CLIENT_SSL: u8 = 0x01;
    /// The user has shown a certificate on this connection.
    pub(super) const CLIENT_CERTIFICATE: u8 = 0x02;
    /// The user has shown one in this session, on this connection or an earlier one.
    pub(super) const CLIENT_SESSION_CERTIFICATE: u8 = 0x04;
}

impl From<&sg_model::UserFacts> for Facts {
    fn from(user: &sg_model::UserFacts) -> Self {
        Self {
            source: user.address,
            destination: user.local,
            tls: user.tls.as_ref().map(|tls| TlsFacts {
                version: tls.version.clone(),
                cipher: tls.cipher.clone(),
                server_name: tls.sni.clone(),
                alpn: tls.alpn.clone(),
                client_certificate: tls.common_name.as_ref().map(|name| ClientCertificate {
                    common_name: name.clone(),
                    verified: tls.verified,
                }),
            }),
        }
    }
}
