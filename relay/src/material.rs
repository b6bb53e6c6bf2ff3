//! Certificates and keys of a destination, from the domain's plain bytes to what TLS is built from.

use sg_model::{Certificate, KeyPair};
use sg_runtime::identity::{self, CertificateDer};
use sg_runtime::secret::Secret;
use sg_runtime::tls::material::{MaterialError, Pair};

use crate::tls::TlsSetupError;

/// Why TLS of a destination cannot be set up. Whoever configured it is to blame, or an older control plane.
#[derive(Debug, thiserror::Error)]
pub enum MaterialProblem {
    /// A certificate or key cannot be used.
    #[error(transparent)]
    Material(#[from] MaterialError),
    /// Together they make no TLS.
    #[error(transparent)]
    Setup(#[from] TlsSetupError),
    /// The key is missing.
    #[error("{0}: there is no private key")]
    NoKey(&'static str),
}

pub(crate) fn certificates(list: &[Certificate]) -> Vec<CertificateDer<'static>> {
    list.iter()
        .map(|one| CertificateDer::from(one.der().to_vec()))
        .collect()
}

pub(crate) fn pair(pair: &KeyPair, what: &'static str) -> Result<Pair, MaterialProblem> {
    let chain = identity::certificates_to_pem(&certificates(&pair.certificates));
    let key = pair.key.as_ref().ok_or(MaterialProblem::NoKey(what))?;
    let key = Secret::new(key.expose().to_vec());
    Ok(Pair::parse(chain.as_bytes(), &key, what)?)
}
