//! New pairs: self-signed ones, for programs that are told to trust exactly that certificate, and server
//! certificates of a CA that we hold.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::CertificateDer;

use super::{Facts, KeyForm, Pair, PrivateKey};
use crate::identity::KeyPair;
use crate::secret::Secret;

/// Certificates begin a little earlier, for clocks that are behind.
const LEEWAY: Duration = Duration::from_secs(300);

/// Why no certificate was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IssueError {
    /// The name cannot stand in a certificate; whoever asked for it is to blame.
    #[error("\"{0}\" cannot stand in a certificate")]
    Name(String),
    /// The CA cannot be used.
    #[error("the certificate authority cannot be used: {0}")]
    Authority(String),
}

impl Pair {
    /// A new self-signed pair for both ends of TLS, with this common name and, if it is one, this host name.
    ///
    /// # Errors
    /// [`IssueError::Name`].
    pub fn self_signed(common_name: &str, life: Duration) -> Result<Self, IssueError> {
        let mut params = params(common_name, life);
        // A common name need not be a host's.
        params.subject_alt_names = san(common_name).into_iter().collect();
        params.is_ca = IsCa::ExplicitNoCa;
        let key = KeyPair::generate();
        let certificate = params
            .self_signed(key.signing())
            .map_err(|_| IssueError::Name(common_name.to_owned()))?;
        Self::made(vec![certificate.der().clone()], &key)
    }

    /// A new server pair for `names` (DNS names, also with `*.`, and addresses), issued by a CA; the CA's
    /// certificate ends the chain.
    ///
    /// # Errors
    /// [`IssueError`].
    pub fn issue(
        ca: &CertificateDer<'static>,
        ca_key: &KeyPair,
        names: &[String],
        life: Duration,
    ) -> Result<Self, IssueError> {
        let first = names
            .first()
            .ok_or_else(|| IssueError::Name(String::new()))?;
        let mut params = params(first, life);
        for name in names {
            let name = san(name).ok_or_else(|| IssueError::Name(name.clone()))?;
            params.subject_alt_names.push(name);
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let broken = |error: rcgen::Error| IssueError::Authority(error.to_string());
        let issuer = Issuer::from_ca_cert_der(ca, ca_key.signing()).map_err(broken)?;
        let key = KeyPair::generate();
        let certificate = params.signed_by(key.signing(), &issuer).map_err(broken)?;
        Self::made(vec![certificate.der().clone(), ca.clone()], &key)
    }

    fn made(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Result<Self, IssueError> {
        let facts =
            Facts::of(&chain[0]).map_err(|error| IssueError::Authority(error.to_string()))?;
        let key = PrivateKey {
            form: KeyForm::Pkcs8,
            der: Secret::new(key.private_der().secret_der().to_vec()),
        };
        Ok(Self { chain, key, facts })
    }
}

fn params(common_name: &str, life: Duration) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.not_before = now.checked_sub(LEEWAY).unwrap_or(now).into();
    params.not_after = now.checked_add(life).unwrap_or(now).into();
    params.distinguished_name = DistinguishedName::new();
    // Longer ones are not allowed there; the alternative names have it whole.
    let common_name: String = common_name.chars().take(64).collect();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params
}

fn san(name: &str) -> Option<SanType> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Some(SanType::IpAddress(address));
    }
    let labels = name.strip_prefix("*.").unwrap_or(name);
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let is_label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(allowed);
    let is_name = labels.len() <= 253 && labels.split('.').all(is_label);
    let name = is_name.then(|| name.try_into().ok()).flatten()?;
    Some(SanType::DnsName(name))
}
