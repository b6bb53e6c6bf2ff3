//! Who the user of a stream is, as far as the accepting end knows: for the resource's eyes, and for the records.

use std::net::SocketAddr;

/// A user of a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserFacts {
    /// Where it connects from.
    pub address: SocketAddr,
    /// Where it connected to.
    pub local: SocketAddr,
    /// What its handshake showed; `None`: it speaks no TLS.
    pub tls: Option<UserTlsFacts>,
}

/// What a user's TLS handshake showed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UserTlsFacts {
    /// `TLSv1.2` or `TLSv1.3`; empty: not known yet.
    pub version: String,
    /// The cipher suite, by its usual name.
    pub cipher: String,
    /// The name that was asked for; empty: none.
    pub sni: String,
    /// The application protocol; empty: none.
    pub alpn: Vec<u8>,
    /// Common name of the user's certificate; `None`: it showed none.
    pub common_name: Option<String>,
    /// The certificate is accepted.
    pub verified: bool,
}
