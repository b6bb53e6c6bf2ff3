//! The cryptography of users' and resources' connections: TLS 1.2 and 1.3, aws-lc-rs. Nobody here knows what
//! the programs at the other end can do, so the order is that of the widest agreement.

use std::sync::{Arc, LazyLock};

use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};

pub(super) static VERSIONS: &[&rustls::SupportedProtocolVersion] =
    &[&rustls::version::TLS13, &rustls::version::TLS12];

/// Users choose from what the provider has.
static ACCEPTING: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(base()));

/// For resources the classical exchange comes first: with the hybrid one the first message no longer fits into
/// one packet, which old machines and what stands before them do not all survive. A resource that prefers the
/// hybrid one still gets it.
static DIALLING: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    let mut provider = base();
    provider.kx_groups = vec![
        kx_group::X25519,
        kx_group::SECP256R1,
        kx_group::SECP384R1,
        kx_group::X25519MLKEM768,
    ];
    Arc::new(provider)
});

/// AES-128 first: 128 bits are enough, and a connection is bound by the cipher.
fn base() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != cipher_suite::TLS13_AES_128_GCM_SHA256.suite());
    provider
}

pub(super) fn accepting() -> Arc<CryptoProvider> {
    Arc::clone(&ACCEPTING)
}

pub(super) fn dialling() -> Arc<CryptoProvider> {
    Arc::clone(&DIALLING)
}

pub(super) fn algorithms() -> WebPkiSupportedAlgorithms {
    ACCEPTING.signature_verification_algorithms
}
