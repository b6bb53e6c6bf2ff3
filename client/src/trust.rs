//! Whose nodes this client trusts: what `--ca` says, until a node that is trusted tells that the authority is replaced.
//!
//! A node is not simply believed. It sends its own chain along: an authority that is new to this client is taken over only if it has itself
//! issued the first certificate of that, and the whole of it holds under the authorities trusted so far. So the old
//! authority has vouched for the new one, and a node that lies can at most leave one out.
//!
//! What was learned is kept in the data directory for the very `--ca` that it was learned under, and given up with it.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use sg_runtime::identity::{Life, certificates_from_pem, certificates_to_pem, spki_sha256};
use sg_runtime::tls::{
    CertificateDer, ClientTls, Credentials, PeerKind, SetupError, Trust, client_config, issued_by,
    would_trust,
};
use sg_runtime::{crypto, files};

use crate::session::establish::ALPN;

const FILE: &str = "trust.pem";
/// Authorities that a node may name.
const MOST: usize = 4;
/// Certificates that may vouch for them.
const LONGEST_CHAIN: usize = 8;

/// Whom this client trusts now. All gateways share it.
#[derive(Debug)]
pub struct NodeTrust {
    credentials: Credentials,
    /// What `--ca` was, so that what was learned is not used for another one.
    configured: String,
    file: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    tls: ClientTls,
    trust: Trust,
    /// Hashes of the trusted keys.
    keys: Vec<[u8; 32]>,
    /// When the newest of the trusted authorities began, as far as their certificates are here.
    newest: Option<SystemTime>,
    /// What a node told last, and what became of it: every tunnel is told the same.
    told: Vec<CertificateDer<'static>>,
}

/// What became of the authorities that a node named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// They are the ones that are trusted already.
    Same,
    /// They are trusted from now on.
    Changed,
    /// The node is behind: it names an authority that was replaced, or one that is not trusted any more beside the present one.
    Older,
    /// None of them is trusted, or can be.
    Refused,
}

impl NodeTrust {
    /// Trusts what was configured, or what was learned under that.
    ///
    /// # Errors
    /// [`SetupError`], about what was configured.
    pub fn new(
        configured: &Trust,
        directory: Option<&Path>,
        credentials: Credentials,
    ) -> Result<Self, SetupError> {
        let (fingerprint, roots) = match configured {
            Trust::Ca(path) => {
                let roots = sg_runtime::identity::read_certificates(path)?;
                (fingerprint(&roots), Some(roots))
            }
            Trust::Roots(roots) => (fingerprint(roots), Some(roots.clone())),
            Trust::Pin(pin) => (format!("sha256:{}", crypto::hex(pin)), None),
        };
        let file = directory.map(|directory| directory.join(FILE));
        let learned = file.as_deref().and_then(|file| read(file, &fingerprint));
        let roots = learned.or(roots);
        let trust = roots
            .clone()
            .map_or_else(|| configured.clone(), Trust::Roots);
        let keys = match (&roots, configured) {
            (None, Trust::Pin(pin)) => vec![*pin],
            (roots, _) => keys(roots.as_deref().unwrap_or_default()),
        };
        let tls = client_config(&trust, PeerKind::Node, Some(&credentials), &[ALPN])?;
        Ok(Self {
            credentials,
            configured: fingerprint,
            file,
            state: Mutex::new(State {
                tls,
                trust,
                keys,
                newest: newest(roots.as_deref().unwrap_or_default()),
                told: Vec::new(),
            }),
        })
    }

    /// How to connect to nodes now.
    #[must_use]
    pub fn tls(&self) -> ClientTls {
        self.state().tls.clone()
    }

    /// A node names the authorities, and shows a chain that vouches for those that are new.
    pub fn told(&self, roots: &[CertificateDer<'static>], chain: &[CertificateDer<'_>]) -> Told {
        let mut state = self.state();
        if roots.is_empty() || roots.len() > MOST || chain.len() > LONGEST_CHAIN {
            return Told::Refused;
        }
        if state.told == roots {
            return Told::Same;
        }
        let known = |root: &CertificateDer<'_>| {
            spki_sha256(root).is_ok_and(|hash| state.keys.contains(&hash))
        };
        let vouched = |root: &CertificateDer<'static>| {
            chain
                .first()
                .is_some_and(|leaf| issued_by(leaf, root, PeerKind::Node))
                && would_trust(&state.trust, PeerKind::Node, chain).is_ok_and(|holds| holds)
        };
        let accepted: Vec<_> = roots
            .iter()
            .filter(|root| known(root) || vouched(root))
            .cloned()
            .collect();
        let issuing = roots.first().filter(|root| known(root));
        // A list with one that is not vouched for is no list of our control plane's, or one of yesterday.
        if accepted.len() != roots.len() {
            return match issuing {
                Some(_) => Told::Older,
                None => Told::Refused,
            };
        }
        // An authority is never replaced by an older one.
        if roots.first().map(begins) < state.newest {
            return Told::Older;
        }
        let mut new = keys(&accepted);
        new.sort_unstable();
        let mut old = state.keys.clone();
        old.sort_unstable();
        if new == old {
            state.told = accepted;
            return Told::Same;
        }
        let trust = Trust::Roots(accepted.clone());
        let tls = client_config(&trust, PeerKind::Node, Some(&self.credentials), &[ALPN]);
        let Ok(tls) = tls else {
            return Told::Refused;
        };
        (state.tls, state.trust, state.keys) = (tls, trust, new);
        state.newest = newest(&accepted);
        state.told.clone_from(&accepted);
        drop(state);
        self.keep(&accepted);
        Told::Changed
    }

    fn keep(&self, roots: &[CertificateDer<'static>]) {
        let Some(file) = &self.file else {
            return;
        };
        let text = format!(
            "{}{}",
            heading(&self.configured),
            certificates_to_pem(roots)
        );
        if let Err(error) = files::write_atomic(file, text.as_bytes(), files::PRIVATE) {
            tracing::warn!(%error, path = %file.display(), "the authorities are known in this run only");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn heading(configured: &str) -> String {
    format!("# learned under --ca {configured}\n")
}

fn read(file: &Path, configured: &str) -> Option<Vec<CertificateDer<'static>>> {
    let text = std::fs::read_to_string(file).ok()?;
    let pem = text.strip_prefix(&heading(configured))?;
    certificates_from_pem(pem.as_bytes())
}

fn keys(roots: &[CertificateDer<'static>]) -> Vec<[u8; 32]> {
    roots
        .iter()
        .filter_map(|root| spki_sha256(root).ok())
        .collect()
}

fn begins(root: &CertificateDer<'static>) -> SystemTime {
    Life::of(root).map_or(SystemTime::UNIX_EPOCH, |life| life.issued)
}

fn newest(roots: &[CertificateDer<'static>]) -> Option<SystemTime> {
    roots.iter().map(begins).max()
}

/// Names a set of certificates.
fn fingerprint(roots: &[CertificateDer<'static>]) -> String {
    let pem = certificates_to_pem(roots);
    format!("file:{}", crypto::hex(&crypto::sha256(pem.as_bytes())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, SanType};
    use sg_runtime::identity::{KeyPair, self_signed};

    use super::*;

    struct Ca {
        issuer: Issuer<'static, rcgen::KeyPair>,
        root: CertificateDer<'static>,
        params: CertificateParams,
    }

    impl Ca {
        fn new(name: &str) -> Self {
            crypto::install();
            let age = match name {
                "old" => 20_000,
                _ => 10_000,
            };
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.distinguished_name.push(DnType::CommonName, name);
            params.not_before = (SystemTime::now() - Duration::from_secs(age)).into();
            let root = params.self_signed(&key).unwrap().der().clone();
            Self {
                issuer: Issuer::new(params.clone(), key),
                root,
                params,
            }
        }

        /// The key of another authority, vouched for by this one.
        fn cross(&self, other: &Self) -> CertificateDer<'static> {
            let key = other.issuer.key();
            let cross = other.params.signed_by(key, &self.issuer).unwrap();
            cross.der().clone()
        }

        fn node(&self) -> CertificateDer<'static> {
            let mut params = CertificateParams::default();
            let uri = "spiffe://secure-gateway/node/n1".try_into().unwrap();
            params.subject_alt_names = vec![SanType::URI(uri)];
            params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
            let key = KeyPair::generate();
            let leaf = params.signed_by(key.signing(), &self.issuer).unwrap();
            leaf.der().clone()
        }
    }

    fn credentials() -> Credentials {
        let key = KeyPair::generate();
        Credentials::new(vec![self_signed(&key, "c")], key)
    }

    #[test]
    fn an_authority_follows_another_that_has_vouched_for_it() {
        let (old, new, foreign) = (Ca::new("old"), Ca::new("new"), Ca::new("foreign"));
        let directory = tempfile::tempdir().unwrap();
        let pin = Trust::Pin(spki_sha256(&old.root).unwrap());
        let open = || NodeTrust::new(&pin, Some(directory.path()), credentials()).unwrap();
        let trust = open();
        let roots = |all: &[&Ca]| all.iter().map(|ca| ca.root.clone()).collect::<Vec<_>>();
        let plain = [old.node(), old.root.clone()];
        assert_eq!(trust.told(&roots(&[&old]), &plain), Told::Same);
        // What nobody vouches for is not believed, nor beside what is; nor is a foreign chain.
        let unvouched = [foreign.node(), foreign.root.clone(), old.root.clone()];
        let forged = [foreign.node(), new.cross(&foreign), old.root.clone()];
        for chain in [&plain[..], &unvouched, &forged, &[]] {
            for told in [roots(&[&foreign]), roots(&[&foreign, &old]), roots(&[])] {
                assert_eq!(trust.told(&told, chain), Told::Refused);
            }
        }
        let both = [
            new.node(),
            new.root.clone(),
            old.cross(&new),
            old.root.clone(),
        ];
        // A chain that vouches for one does not vouch for another.
        assert_eq!(trust.told(&roots(&[&new, &foreign]), &both), Told::Refused);
        assert_eq!(trust.told(&roots(&[&new, &old]), &both), Told::Changed);
        assert_eq!(trust.told(&roots(&[&new, &old]), &both), Told::Same);
        assert_eq!(open().state().keys.len(), 2, "it is kept");
        assert_eq!(trust.told(&roots(&[&old]), &plain), Told::Older);
        let alone = [new.node(), new.root.clone()];
        assert_eq!(trust.told(&roots(&[&new]), &alone), Told::Changed);
        // And there is no way back, whatever a node says that has missed it.
        assert_eq!(trust.told(&roots(&[&new, &old]), &both), Told::Older);
        assert_eq!(trust.told(&roots(&[&old]), &both), Told::Refused);
        assert_eq!(open().state().keys, keys(&roots(&[&new])));
        // Another --ca begins anew.
        let other = Trust::Roots(roots(&[&foreign]));
        let other = NodeTrust::new(&other, Some(directory.path()), credentials()).unwrap();
        assert_eq!(other.state().keys, keys(&roots(&[&foreign])));
    }
}
