//! What a handshake has shown, for access lines and for the PROXY protocol's details.

use rustls::{CipherSuite, CommonState, HandshakeKind, ProtocolVersion};
use sg_runtime::identity::CertificateDer;
use sg_runtime::tls::material::Facts;

/// What both ends agreed on, and who the peer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFacts {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// The cipher suite, by the name that most programs use for it.
    pub cipher: &'static str,
    /// The name that was asked for.
    pub sni: Option<String>,
    /// The application protocol.
    pub alpn: Option<Vec<u8>>,
    /// The peer's certificate, if it showed one.
    pub peer: Option<PeerCertificate>,
    /// An earlier session was taken up again.
    pub resumed: bool,
}

/// A certificate that the peer has proved to be its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// The certificate.
    pub der: CertificateDer<'static>,
    /// Its common name; empty if it has none.
    pub common_name: String,
    /// It was checked; false only where that was switched off.
    pub verified: bool,
}

impl TlsFacts {
    pub(super) fn of(session: &CommonState, sni: Option<String>, verified: bool) -> Self {
        let leaf = session.peer_certificates().and_then(<[_]>::first);
        let peer = leaf.map(|leaf| PeerCertificate {
            der: leaf.clone().into_owned(),
            common_name: Facts::of(leaf)
                .map(|facts| facts.common_name)
                .unwrap_or_default(),
            verified,
        });
        let version = match session.protocol_version() {
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "unknown",
        };
        Self {
            version,
            cipher: session
                .negotiated_cipher_suite()
                .map_or("unknown", |suite| cipher_name(suite.suite())),
            sni,
            alpn: session.alpn_protocol().map(<[u8]>::to_vec),
            peer,
            resumed: session.handshake_kind() == Some(HandshakeKind::Resumed),
        }
    }
}

fn cipher_name(suite: CipherSuite) -> &'static str {
    use CipherSuite as S;
    match suite {
        S::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        S::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        S::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        S::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 => "ECDHE-ECDSA-AES128-GCM-SHA256",
        S::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 => "ECDHE-ECDSA-AES256-GCM-SHA384",
        S::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-ECDSA-CHACHA20-POLY1305",
        S::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => "ECDHE-RSA-AES128-GCM-SHA256",
        S::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => "ECDHE-RSA-AES256-GCM-SHA384",
        S::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-RSA-CHACHA20-POLY1305",
        _ => "unknown",
    }
}
