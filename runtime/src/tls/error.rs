//! Why a TLS connection did not come about, told apart by who can do something about it.
//! The texts contain their causes, so that one line of a log is enough.

use std::io;

use rustls::{AlertDescription, CertificateError, InvalidMessage};

use super::verify::PeerMismatch;
use crate::identity::KeyFileError;

/// A handshake that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The other end did not finish in time.
    #[error("the TLS handshake did not finish in time")]
    Timeout,
    /// What came first is no TLS: plain HTTP, another protocol, a port scanner.
    #[error("the other end does not speak TLS")]
    NotTls,
    /// The other end closed the connection in the middle.
    #[error("the other end closed the connection during the TLS handshake")]
    Closed,
    /// The other end had to show a certificate and did not.
    #[error("the other end showed no certificate")]
    NoCertificate,
    /// The other end's certificate does not verify.
    #[error("the certificate of the other end is not valid: {0}")]
    BadCertificate(rustls::Error),
    /// The certificate verifies, but belongs to somebody else.
    #[error("the other end is not the one that is trusted: {0}")]
    WrongPeer(PeerMismatch),
    /// The other end refused, and said why in TLS' own words.
    #[error("the other end refused the TLS handshake: {0}")]
    Alert(&'static str),
    /// The two ends have no version, cipher or application protocol in common.
    #[error("no TLS version, cipher or protocol in common: {0}")]
    Incompatible(rustls::Error),
    /// The other end broke the rules of TLS.
    #[error("the TLS handshake went wrong: {0}")]
    Protocol(rustls::Error),
    /// The connection failed underneath.
    #[error("the connection failed during the TLS handshake: {0}")]
    Io(io::Error),
}

impl Error {
    /// One stable word for logs and counters.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Timeout => "tls-timeout",
            Self::NotTls => "not-tls",
            Self::Closed => "tls-closed",
            Self::NoCertificate => "no-certificate",
            Self::BadCertificate(_) => "bad-certificate",
            Self::WrongPeer(_) => "wrong-peer",
            Self::Alert(_) => "tls-alert",
            Self::Incompatible(_) => "tls-incompatible",
            Self::Protocol(_) => "tls-protocol",
            Self::Io(_) => "io",
        }
    }

    /// True if the same attempt may succeed later with nobody changing anything.
    #[must_use]
    pub const fn retryable(&self) -> bool {
        matches!(self, Self::Timeout | Self::Closed | Self::Io(_))
    }

    /// Sorts what a handshake (or a read soon after it: with TLS 1.3 a server's refusal of a client
    /// certificate arrives only there) failed with.
    #[must_use]
    pub fn from_io(error: io::Error) -> Self {
        let inner = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match inner {
            Some(inner) => Self::from_rustls(inner.clone()),
            None if error.kind() == io::ErrorKind::UnexpectedEof => Self::Closed,
            None => Self::Io(error),
        }
    }

    pub(super) fn from_rustls(error: rustls::Error) -> Self {
        use rustls::Error as E;
        match error {
            // What cannot even be a record is another protocol; what fails further in is bad TLS.
            E::PeerSentOversizedRecord
            | E::InvalidMessage(
                InvalidMessage::InvalidContentType
                | InvalidMessage::UnknownProtocolVersion
                | InvalidMessage::InvalidEmptyPayload
                | InvalidMessage::MessageTooLarge,
            ) => Self::NotTls,
            E::NoCertificatesPresented => Self::NoCertificate,
            E::InvalidCertificate(CertificateError::Other(ref other)) => {
                match other.0.downcast_ref::<PeerMismatch>() {
                    Some(mismatch) => Self::WrongPeer(mismatch.clone()),
                    None => Self::BadCertificate(error),
                }
            }
            E::InvalidCertificate(_) => Self::BadCertificate(error),
            E::AlertReceived(alert) => Self::Alert(alert_word(alert)),
            E::PeerIncompatible(_) | E::NoApplicationProtocol => Self::Incompatible(error),
            _ => Self::Protocol(error),
        }
    }
}

fn alert_word(alert: AlertDescription) -> &'static str {
    alert.as_str().unwrap_or("unknown alert")
}

/// A TLS configuration that cannot be built. Whoever gave files or credentials is to blame.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] KeyFileError),
    /// There is no CA certificate to trust.
    #[error("there is no CA certificate to trust")]
    NoRoot,
    /// A CA certificate cannot be used.
    #[error("a CA certificate cannot be used: {0}")]
    Root(rustls::Error),
    /// Certificate and key do not belong together, or cannot be used.
    #[error("the certificate and its key cannot be used: {0}")]
    Credentials(rustls::Error),
}
