//! The internal certificate authority: issues certificates whose one URI names kind and id.
//!
//! It signs only what the caller decided. Of a node's request it reads the public key and nothing
//! else, so nobody can ask for a name. Its key is kept sealed in the store, see [`crate::bootstrap`].

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, PublicKeyData, SanType,
    SerialNumber, SubjectPublicKeyInfo,
};
use sg_runtime::crypto;
use sg_runtime::identity::{self, CertificateDer, KeyPair, NotAKey, PeerIdentity};
use sg_runtime::secret::Secret;
use sg_runtime::tls::Credentials;
use sg_runtime::tls::material::{self, Pair};

const DAY: Duration = Duration::from_secs(24 * 3600);
const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Longest certificate signing request that is looked at, in bytes.
pub const MAX_CSR: usize = 16 * 1024;

/// How long the certificates of processes hold. All of them are renewed from a third of that on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lives {
    /// A control plane's own.
    pub control_plane: Duration,
    /// A node's.
    pub node: Duration,
    /// A client's: twice the time that everything goes on without a control plane.
    pub client: Duration,
}

impl Default for Lives {
    fn default() -> Self {
        Self {
            control_plane: 90 * DAY,
            node: 365 * DAY,
            client: 14 * DAY,
        }
    }
}

/// Life of a certificate for users of a destination: what browsers accept at most.
const SERVER_LIFE: Duration = Duration::from_secs(397 * 24 * 3600);
/// Life of a certificate that is accepted by itself, and so cannot be renewed unnoticed.
const STRANGER_LIFE: Duration = Duration::from_secs(5 * 365 * 24 * 3600);
/// Root certificate and key, and the authority that it has followed while that is trusted too.
pub struct Authority {
    certificate: CertificateDer<'static>,
    key: KeyPair,
    spki_sha256: [u8; 32],
    lives: Lives,
    previous: Option<Previous>,
    revision: u64,
}

/// The authority before the present one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Previous {
    /// Its certificate.
    pub certificate: CertificateDer<'static>,
    /// The present one's name and key, issued by the previous one. Who trusts only that accepts with it what the present one
    /// issues.
    pub cross: CertificateDer<'static>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("spki_sha256", &crypto::hex(&self.spki_sha256))
            .finish()
    }
}

/// Why no certificate was issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The request cannot be used; whoever sent it is to blame.
    #[error("the certificate signing request cannot be used: {0}")]
    Request(String),
    /// The stored authority cannot be used.
    #[error("the certificate authority cannot be used: {0}")]
    Authority(String),
}

impl From<material::IssueError> for IssueError {
    fn from(error: material::IssueError) -> Self {
        match error {
            material::IssueError::Authority(why) => Self::Authority(why),
            error => Self::Request(error.to_string()),
        }
    }
}

impl From<NotAKey> for IssueError {
    fn from(error: NotAKey) -> Self {
        Self::Authority(error.to_string())
    }
}

impl Authority {
    /// A new authority, valid for ten years.
    ///
    /// # Errors
    /// [`IssueError::Authority`] if the certificate cannot be made.
    pub fn generate() -> Result<Self, IssueError> {
        let key = KeyPair::generate();
        let certificate = root(&key).self_signed(key.signing()).map_err(broken)?;
        Ok(Self {
            certificate: certificate.der().clone(),
            spki_sha256: key.spki_sha256(),
            key,
            lives: Lives::default(),
            previous: None,
            revision: 0,
        })
    }

    /// A new authority that takes this one's place, and is vouched for by it.
    ///
    /// # Errors
    /// [`IssueError::Authority`] if a certificate cannot be made.
    pub fn successor(&self) -> Result<Self, IssueError> {
        let mut new = Self::generate()?.with_lives(self.lives);
        let mut params = root(&new.key);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.use_authority_key_identifier_extension = true;
        let cross = self.sign(&params, new.key.signing())?;
        new.previous = Some(Previous {
            certificate: self.certificate.clone(),
            cross,
        });
        Ok(new)
    }

    /// The same, after the one before it.
    #[must_use]
    pub fn after(mut self, previous: Option<Previous>) -> Self {
        self.previous = previous;
        self
    }

    /// The authority before it, as long as that is trusted.
    pub const fn previous(&self) -> Option<&Previous> {
        self.previous.as_ref()
    }

    /// Every root whose certificates are accepted, its own first.
    pub fn trusted(&self) -> Vec<CertificateDer<'static>> {
        let previous = self.previous.as_ref().map(|p| p.certificate.clone());
        std::iter::once(self.certificate.clone())
            .chain(previous)
            .collect()
    }

    /// The same as PEM.
    pub fn trusted_pem(&self) -> String {
        identity::certificates_to_pem(&self.trusted())
    }

    /// What stands behind each certificate that it issues: its root, so that pins find it; and while there is one before it,
    /// the way to that.
    fn tail(&self) -> Vec<CertificateDer<'static>> {
        let mut tail = vec![self.certificate.clone()];
        if let Some(previous) = &self.previous {
            tail.push(previous.cross.clone());
            tail.push(previous.certificate.clone());
        }
        tail
    }

    fn with_tail(&self, leaf: CertificateDer<'static>) -> Vec<CertificateDer<'static>> {
        std::iter::once(leaf).chain(self.tail()).collect()
    }

    /// An authority out of what was stored.
    ///
    /// # Errors
    /// [`IssueError::Authority`] when certificate and key cannot be used together.
    pub fn from_parts(certificate: Vec<u8>, key_pem: &str) -> Result<Self, IssueError> {
        let key = KeyPair::from_pem(key_pem)?;
        let certificate = CertificateDer::from(certificate);
        let spki_sha256 = identity::spki_sha256(&certificate)
            .map_err(|error| IssueError::Authority(error.to_string()))?;
        if spki_sha256 != key.spki_sha256() {
            return Err(IssueError::Authority(
                "certificate and key do not match".to_owned(),
            ));
        }
        Ok(Self {
            certificate,
            key,
            spki_sha256,
            lives: Lives::default(),
            previous: None,
            revision: 0,
        })
    }

    /// The same, as the store has it at this revision.
    #[must_use]
    pub const fn at_revision(mut self, revision: u64) -> Self {
        self.revision = revision;
        self
    }

    /// The revision at which the store had it so.
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// The same, with other lives of what it issues.
    #[must_use]
    pub const fn with_lives(mut self, lives: Lives) -> Self {
        self.lives = lives;
        self
    }

    /// How long what it issues holds.
    pub const fn lives(&self) -> Lives {
        self.lives
    }

    /// The root certificate.
    pub const fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The private key as PEM, to be sealed.
    pub fn key_pem(&self) -> Secret<String> {
        self.key.to_pem()
    }

    /// SHA-256 of the root's public key: what join tokens and pins carry.
    pub const fn spki_sha256(&self) -> &[u8; 32] {
        &self.spki_sha256
    }

    /// Credentials for a control plane that is reached under `names` (DNS names and addresses).
    ///
    /// # Errors
    /// [`IssueError::Request`] if one of the names cannot stand in a certificate.
    pub fn control_plane(
        &self,
        identity: &PeerIdentity,
        names: &[String],
    ) -> Result<Credentials, IssueError> {
        let key = KeyPair::generate();
        let mut params = leaf(identity, self.lives.control_plane)?;
        for name in names {
            params.subject_alt_names.push(alternative_name(name)?);
        }
        let certificate = self.sign(&params, key.signing())?;
        Ok(Credentials::new(self.with_tail(certificate), key))
    }

    /// A chain (leaf, root, and what leads to the authority before) for the key in a node's request.
    ///
    /// # Errors
    /// [`IssueError::Request`] if the request is malformed or not signed by its own key.
    pub fn node(
        &self,
        identity: &PeerIdentity,
        csr_der: &[u8],
    ) -> Result<Vec<CertificateDer<'static>>, IssueError> {
        let request = parse_request(csr_der)?;
        let certificate = self.sign(&leaf(identity, self.lives.node)?, &request.public_key)?;
        Ok(self.with_tail(certificate))
    }

    /// A client's certificate for this key (SubjectPublicKeyInfo, DER), and behind it what leads to the authority before. It
    /// is of no use to a server.
    ///
    /// # Errors
    /// [`IssueError::Request`] if that is no key of ours, which are P-256.
    pub fn client(
        &self,
        identity: &PeerIdentity,
        public_key_der: &[u8],
    ) -> Result<Vec<CertificateDer<'static>>, IssueError> {
        let key = SubjectPublicKeyInfo::from_der(public_key_der).map_err(unusable)?;
        if *key.algorithm() != rcgen::PKCS_ECDSA_P256_SHA256 {
            return Err(IssueError::Request("the key is not P-256".to_owned()));
        }
        let mut params = leaf(identity, self.lives.client)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = self.sign(&params, &key)?;
        let cross = self.previous.as_ref().map(|p| p.cross.clone());
        Ok(std::iter::once(leaf).chain(cross).collect())
    }

    /// A certificate, with its key, for whoever is called by one of `names` (DNS names and addresses, at least one). It
    /// names no process: what checks kinds does not take it for one.
    ///
    /// # Errors
    /// [`IssueError::Request`] if one of the names cannot stand in a certificate.
    pub fn server(&self, names: &BTreeSet<String>) -> Result<Pair, IssueError> {
        let names: Vec<String> = names.iter().cloned().collect();
        Ok(Pair::issue(
            &self.certificate,
            &self.key,
            &names,
            SERVER_LIFE,
        )?)
    }

    /// A certificate, with its key, that only itself vouches for: for a party that is accepted by this very certificate.
    ///
    /// # Errors
    /// [`IssueError::Request`] if the name cannot stand in a certificate.
    pub fn stranger(common_name: &str) -> Result<Pair, IssueError> {
        Ok(Pair::self_signed(common_name, STRANGER_LIFE)?)
    }

    fn sign(
        &self,
        params: &CertificateParams,
        key: &impl PublicKeyData,
    ) -> Result<CertificateDer<'static>, IssueError> {
        let issuer =
            Issuer::from_ca_cert_der(&self.certificate, self.key.signing()).map_err(broken)?;
        let certificate = params.signed_by(key, &issuer).map_err(broken)?;
        Ok(certificate.der().clone())
    }
}

/// SHA-256 of the public key in a request, whose signature is verified.
///
/// # Errors
/// [`IssueError::Request`].
pub fn request_key_sha256(csr_der: &[u8]) -> Result<[u8; 32], IssueError> {
    Ok(crypto::sha256(
        &parse_request(csr_der)?.public_key.subject_public_key_info(),
    ))
}

fn parse_request(csr_der: &[u8]) -> Result<CertificateSigningRequestParams, IssueError> {
    if csr_der.len() > MAX_CSR {
        return Err(IssueError::Request(format!(
            "it is longer than {MAX_CSR} bytes"
        )));
    }
    CertificateSigningRequestParams::from_der(&csr_der.to_vec().into()).map_err(unusable)
}

fn alternative_name(name: &str) -> Result<SanType, IssueError> {
    Ok(match name.parse::<IpAddr>() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) => SanType::DnsName(name.try_into().map_err(unusable)?),
    })
}

/// What a root says, which is named after its key: no two have the same name.
fn root(key: &KeyPair) -> CertificateParams {
    let digits = crypto::hex(key.spki_sha256().first_chunk::<4>().unwrap_or(&[0; 4]));
    let mut params = params(&format!("Secure Gateway CA {digits}"), ROOT_LIFE);
    // One below it: the key of its successor.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn leaf(identity: &PeerIdentity, life: Duration) -> Result<CertificateParams, IssueError> {
    let mut params = params(&identity.id, life);
    let uri = identity.to_string();
    params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().map_err(unusable)?)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn params(common_name: &str, life: Duration) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.not_before = now.checked_sub(identity::EARLY).unwrap_or(now).into();
    params.not_after = now.checked_add(life).unwrap_or(now + DAY).into();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    // Not from the key, which a renewed certificate shares with the one before it.
    params.serial_number = Some(SerialNumber::from_slice(&serial()));
    params
}

/// Sixteen random bytes that are a positive number.
fn serial() -> [u8; 16] {
    let mut bytes: [u8; 16] = crypto::random_bytes();
    bytes[0] = bytes[0] & 0x7f | 0x40;
    bytes
}

fn unusable(error: rcgen::Error) -> IssueError {
    IssueError::Request(error.to_string())
}

fn broken(error: rcgen::Error) -> IssueError {
    IssueError::Authority(error.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use sg_runtime::identity::PeerKind;

    use super::*;

    #[test]
    fn a_node_gets_the_name_we_chose_for_the_key_it_has() {
        let authority = Authority::generate().unwrap();
        let key = KeyPair::generate();
        let identity = PeerIdentity::new(PeerKind::Node, "N1").unwrap();
        let csr = identity::csr_der(&key);
        assert_eq!(request_key_sha256(&csr).unwrap(), key.spki_sha256());
        let chain = authority.node(&identity, &csr).unwrap();
        assert_eq!(PeerIdentity::from_cert(&chain[0]).unwrap(), identity);
        assert_eq!(identity::spki_sha256(&chain[0]).unwrap(), key.spki_sha256());
        assert_eq!(&chain[1], authority.certificate());
        assert!(authority.node(&identity, &csr[1..]).is_err());
        assert!(authority.node(&identity, &vec![0; MAX_CSR + 1]).is_err());
    }

    /// Row 33: a request that asks for names, for the rights of an authority and for another id gets none of it.
    #[test]
    fn threat_33_a_request_names_nothing_and_gives_its_public_key_only() {
        let authority = Authority::generate().unwrap();
        let key = KeyPair::generate();
        let mut greedy = CertificateParams::new(vec!["victim.example".to_owned()]).unwrap();
        greedy.subject_alt_names.extend([
            SanType::URI(
                "spiffe://secure-gateway/control-plane/C1"
                    .try_into()
                    .unwrap(),
            ),
            SanType::IpAddress("127.0.0.1".parse().unwrap()),
        ]);
        greedy.distinguished_name.push(DnType::CommonName, "C1");
        greedy.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // A request cannot carry CA:TRUE by rcgen's own means, so it does by hand: basicConstraints, critical.
        let mut ca = rcgen::CustomExtension::from_oid_content(
            &[2, 5, 29, 19],
            vec![0x30, 0x03, 0x01, 0x01, 0xff],
        );
        ca.set_criticality(true);
        let plain = greedy.serialize_request(key.signing()).unwrap();
        let identity = PeerIdentity::new(PeerKind::Node, "N1").unwrap();
        let mut requests = vec![plain.der().to_vec()];
        greedy.custom_extensions = vec![ca];
        requests.extend(
            greedy
                .serialize_request(key.signing())
                .map(|r| r.der().to_vec()),
        );
        for csr in requests {
            // Refused as a whole, or nothing of it is taken over.
            let Ok(chain) = authority.node(&identity, &csr) else {
                continue;
            };
            let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
            assert_eq!(PeerIdentity::from_cert(&chain[0]).unwrap(), identity);
            let names = leaf.subject_alternative_name().unwrap().unwrap();
            assert_eq!(names.value.general_names.len(), 1);
            assert!(!leaf.is_ca());
            assert_eq!(leaf.subject().to_string(), "CN=N1");
            let usage = leaf.key_usage().unwrap().unwrap().value;
            assert!(usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign());
            assert_eq!(identity::spki_sha256(&chain[0]).unwrap(), key.spki_sha256());
        }
        assert!(authority.node(&identity, plain.der()).is_ok());
    }

    #[test]
    fn a_client_gets_a_certificate_that_serves_nobody_and_no_two_are_the_same() {
        let authority = Authority::generate().unwrap();
        let key = KeyPair::generate();
        let identity = PeerIdentity::new(PeerKind::Client, "g1.0.c1").unwrap();
        let public = identity::public_key_der(&identity::self_signed(&key, "x")).unwrap();
        let [first, second] =
            [(); 2].map(|()| authority.client(&identity, &public).unwrap().remove(0));
        assert_eq!(identity::spki_sha256(&first).unwrap(), key.spki_sha256());
        let parse = |der| x509_parser::parse_x509_certificate(der).unwrap().1;
        assert_ne!(parse(&first).raw_serial(), parse(&second).raw_serial());
        let (first, second) = (parse(&first), parse(&second));
        for one in [first, second] {
            let purposes = one.extended_key_usage().unwrap().unwrap().value;
            assert!(purposes.client_auth && !purposes.server_auth);
            assert!(!one.is_ca());
        }
        assert!(authority.client(&identity, &public[1..]).is_err());
        assert!(authority.client(&identity, &[]).is_err());
    }

    /// Whoever trusts the old one by file or pin, or the new one, or both, accepts what the new one issues.
    #[test]
    fn a_successor_is_accepted_by_who_knows_only_the_one_before() {
        crypto::install();
        let old = Authority::generate().unwrap();
        let new = old.successor().unwrap();
        assert_eq!(
            new.trusted(),
            [new.certificate().clone(), old.certificate().clone()]
        );
        let key = KeyPair::generate();
        let identity = PeerIdentity::new(PeerKind::Client, "g1.0.c1").unwrap();
        let public = identity::public_key_der(&identity::self_signed(&key, "x")).unwrap();
        let chain = new.client(&identity, &public).unwrap();
        let verify = |root: &Authority, chain: &[CertificateDer<'static>]| {
            let issuers = sg_runtime::tls::Issuers::new(&[root.certificate().clone()]).unwrap();
            let kind = PeerKind::Client;
            issuers.verify(chain, kind, &key.spki_sha256(), SystemTime::now())
        };
        assert!(verify(&old, &chain).is_ok() && verify(&new, &chain).is_ok());
        assert!(verify(&old, &chain[..1]).is_err() && verify(&new, &chain[..1]).is_ok());
        // Afterwards nothing leads to the old one any more.
        let finished = new.after(None);
        let chain = finished.client(&identity, &public).unwrap();
        assert!(verify(&old, &chain).is_err() && verify(&finished, &chain).is_ok());
        let before = old.client(&identity, &public).unwrap();
        assert!(verify(&finished, &before).is_err());
    }

    #[test]
    fn it_survives_being_stored() {
        let authority = Authority::generate().unwrap();
        let pem = authority.key_pem();
        let again = Authority::from_parts(authority.certificate().to_vec(), pem.expose()).unwrap();
        assert_eq!(again.spki_sha256(), authority.spki_sha256());
        let other = Authority::generate().unwrap().key_pem();
        assert!(Authority::from_parts(authority.certificate().to_vec(), other.expose()).is_err());
    }
}
