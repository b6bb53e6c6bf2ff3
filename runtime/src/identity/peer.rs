//! Who a certificate says its holder is: one URI of a fixed form. Nothing is verified here.

use std::fmt;
use std::str::FromStr;

use x509_parser::extensions::GeneralName;

use super::{CertificateDer, CertificateError, parse};

/// What stands before the kind in an identity's URI.
pub const URI_PREFIX: &str = "spiffe://secure-gateway/";
const LONGEST_ID: usize = 128;

/// What kind of process a certificate belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PeerKind {
    /// A control plane.
    ControlPlane,
    /// A data-plane node.
    Node,
    /// A client, with an issued certificate.
    Client,
}

impl PeerKind {
    /// The word in the URI.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ControlPlane => "control-plane",
            Self::Node => "node",
            Self::Client => "client",
        }
    }
}

impl fmt::Display for PeerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Kind and id out of a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PeerIdentity {
    /// What the holder is.
    pub kind: PeerKind,
    /// Which one: 1 to 128 of `A-Z a-z 0-9 . _ -`.
    pub id: String,
}

impl PeerIdentity {
    /// Puts an identity together.
    ///
    /// # Errors
    /// [`CertificateError::Identity`] when the id is empty, too long, or has other characters.
    pub fn new(kind: PeerKind, id: impl Into<String>) -> Result<Self, CertificateError> {
        let id = id.into();
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if id.is_empty() || id.len() > LONGEST_ID || !id.bytes().all(allowed) {
            return Err(CertificateError::Identity);
        }
        Ok(Self { kind, id })
    }

    /// Reads the identity of a certificate. It does *not* verify the certificate.
    ///
    /// # Errors
    /// [`CertificateError::Malformed`], or [`CertificateError::Identity`] unless there is exactly
    /// one identity URI.
    pub fn from_cert(certificate: &CertificateDer<'_>) -> Result<Self, CertificateError> {
        let certificate = parse(certificate)?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|_| CertificateError::Malformed)?
            .ok_or(CertificateError::Identity)?;
        let mut uris = names
            .value
            .general_names
            .iter()
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            });
        match (uris.next(), uris.next()) {
            (Some(uri), None) => uri.parse(),
            _ => Err(CertificateError::Identity),
        }
    }
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{URI_PREFIX}{}/{}", self.kind, self.id)
    }
}

impl FromStr for PeerIdentity {
    type Err = CertificateError;

    fn from_str(uri: &str) -> Result<Self, CertificateError> {
        let path = uri
            .strip_prefix(URI_PREFIX)
            .ok_or(CertificateError::Identity)?;
        let (kind, id) = path.split_once('/').ok_or(CertificateError::Identity)?;
        let kind = match kind {
            "control-plane" => PeerKind::ControlPlane,
            "node" => PeerKind::Node,
            "client" => PeerKind::Client,
            _ => return Err(CertificateError::Identity),
        };
        Self::new(kind, id)
    }
}
