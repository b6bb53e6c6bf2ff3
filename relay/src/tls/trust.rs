//! Uploaded certificates, sorted into what they can be good for, and the system's roots.

use std::sync::{Arc, OnceLock};

use rustls::RootCertStore;
use sg_runtime::identity::CertificateDer;
use sg_runtime::tls::material::Facts;

use super::TlsSetupError;

/// Whom to trust.
pub(super) struct Trusted {
    /// Accepted as the peer's own certificate.
    pub(super) pinned: Vec<CertificateDer<'static>>,
    /// Issuers that chains may end at.
    pub(super) roots: Arc<RootCertStore>,
}

impl Trusted {
    /// Uploaded certificates: each may be the peer's own, and those that may issue others may have issued it.
    pub(super) fn uploaded(
        certificates: &[CertificateDer<'static>],
    ) -> Result<Self, TlsSetupError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates {
            let unusable = |error: String| TlsSetupError::Root(error);
            let facts = Facts::of(certificate).map_err(|error| unusable(error.to_string()))?;
            if facts.may_issue {
                roots
                    .add(certificate.clone())
                    .map_err(|error| unusable(format!("{}: {error}", facts.subject)))?;
            }
        }
        Ok(Self {
            pinned: certificates.to_vec(),
            roots: Arc::new(roots),
        })
    }

    /// The roots of this system, which are read once per process.
    pub(super) fn system() -> Result<Self, TlsSetupError> {
        static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
        let roots = ROOTS.get_or_init(|| {
            let found = rustls_native_certs::load_native_certs();
            for error in &found.errors {
                tracing::warn!(%error, "a CA certificate of this system cannot be read");
            }
            let mut roots = RootCertStore::empty();
            let (added, ignored) = roots.add_parsable_certificates(found.certs);
            tracing::debug!(added, ignored, "CA certificates of this system");
            Arc::new(roots)
        });
        if roots.is_empty() {
            return Err(TlsSetupError::NoSystemRoots);
        }
        Ok(Self {
            pinned: Vec::new(),
            roots: Arc::clone(roots),
        })
    }
}
