//! TLS between the parts of Secure Gateway: TLS 1.3 only, post-quantum hybrid key exchange
//! preferred, AES-128-GCM first, and trust by *identity*, never by host name.
//!
//! * [`client_config`] says whom to trust ([`Trust`]: a CA file or a pin of the CA's key) and what
//!   kind of process must answer ([`PeerKind`]); [`connect`] opens a connection with it.
//! * [`server_config`] says what this process shows ([`ServerCertificate`], replaceable while
//!   running) and what it asks of the other end ([`ClientAuth`]); [`accept`] takes a connection.
//!
//! Both answer the stream and a [`PeerInfo`] with what the handshake *proved*; both give up after
//! [`HANDSHAKE_TIMEOUT`]; both fail with an [`Error`] whose `reason()` is one stable word.
//!
//! [`exporter`] gives both ends of one connection the same 32 bytes, which nobody else knows.
//!
//! A tunnel is opened by [`connect_records`] and [`accept_records`], and [`RecordStream`] carries it from then on.
//!
//! [`Issuers`] verifies certificates that are shown later, inside a connection.
//!
//! [`material`] reads and makes the certificates of destinations.
//!
//! Not here: TLS of users and of resources, which has host names, and is in the relay.

mod client;
mod error;
mod exporter;
mod issued;
pub mod material;
mod provider;
mod records;
mod server;
mod trust;
mod verify;

use std::time::Duration;

pub use rustls_pki_types::CertificateDer;

pub use self::client::{
    ClientStream, ClientTls, client_config, connect, connect_records, connect_within, would_trust,
};
pub use self::error::{Error, SetupError};
pub use self::exporter::{Exporter, exporter};
pub use self::issued::{IssuedError, Issuers, LONGEST_ISSUED};
#[cfg(any(test, feature = "fuzzing"))]
pub use self::records::fuzzing;
pub use self::records::{RecordStream, RecordWise, TakeOverError, implementation};
pub use self::server::{
    ClientAuth, ServerCertificate, ServerStream, ServerTls, accept, accept_records, accept_within,
    server_config,
};
pub use self::trust::{Credentials, ParseTrustError, Trust};
pub use self::verify::{PeerMismatch, issued_by};
pub use crate::identity::PeerKind;
use crate::identity::{self, PeerIdentity};

/// How long a TLS handshake may take, from the first byte to the last.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a handshake proved about the other end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerInfo {
    /// The chain that it sent, its own certificate first. Empty if it sent none.
    pub certificates: Vec<CertificateDer<'static>>,
    /// The protocol that both agreed on.
    pub alpn: Option<Vec<u8>>,
    /// Who it is, by a certificate that chains to our CA. `None` without a certificate, and
    /// always `None` for self-signed certificates, whatever they claim.
    pub identity: Option<PeerIdentity>,
}

impl PeerInfo {
    /// SHA-256 of the public key whose possession it proved.
    #[must_use]
    pub fn key_sha256(&self) -> Option<[u8; 32]> {
        self.certificates
            .first()
            .and_then(|leaf| identity::spki_sha256(leaf).ok())
    }

    /// The client id that follows from the key whose possession it proved.
    #[must_use]
    pub fn client_id(&self) -> Option<String> {
        self.key_sha256().map(|hash| identity::client_id(&hash))
    }

    fn of(session: &rustls::CommonState, certificates_are_issued: bool) -> Self {
        let certificates: Vec<_> = session
            .peer_certificates()
            .unwrap_or_default()
            .iter()
            .map(|certificate| certificate.clone().into_owned())
            .collect();
        let leaf = certificates.first().filter(|_| certificates_are_issued);
        let identity = leaf.and_then(|leaf| PeerIdentity::from_cert(leaf).ok());
        Self {
            identity,
            alpn: session.alpn_protocol().map(<[u8]>::to_vec),
            certificates,
        }
    }
}

fn protocols(alpn: &[&[u8]]) -> Vec<Vec<u8>> {
    alpn.iter().map(|protocol| protocol.to_vec()).collect()
}

#[cfg(test)]
mod tests;
