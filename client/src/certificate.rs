//! The certificate that one gateway has issued to this client in exchange for its security token: kept in the data
//! directory, shown instead of the token, renewed while a tunnel is open.
//!
//! It proves nothing without the client's key, so it is no secret; it is kept for its owner alone all the same. What is wrong
//! with it is found out by the node; then the token is shown again, if there is one.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use sg_runtime::files;
use sg_runtime::identity::{
    self, CertificateDer, Life, PeerIdentity, PeerKind, certificates_to_pem, spki_sha256,
};
use sg_runtime::tls::Issuers;
use tokio::time::{Instant, sleep_until};

/// Before the first question on a new tunnel, and before the next one after an answer that may change soon.
const SOON: Duration = Duration::from_millis(500);
/// Longest pause after questions that were not answered, or refused.
const LONGEST: Duration = Duration::from_secs(3600);
/// Clients that are to get certificates of another authority ask for them within this time.
const SPREAD: Duration = Duration::from_secs(30);
/// Certificates that are kept.
const LONGEST_CHAIN: usize = 4;
/// A clock that was set is noticed after this.
const RECHECK: Duration = Duration::from_secs(600);

/// What the gateway has issued, and when to ask for more.
#[derive(Debug)]
pub struct Certificate {
    /// Hash of the client's key.
    key_sha256: [u8; 32],
    /// Where it is kept; `None`: nowhere, and then none is asked for.
    file: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    held: Option<Held>,
    /// A node did not want it.
    set_aside: bool,
    /// Not asked for before this.
    next: Instant,
    /// Of questions that brought nothing.
    pause: Duration,
}

#[derive(Debug, Clone)]
struct Held {
    /// Own certificate first, then what leads to an authority.
    chain: Vec<CertificateDer<'static>>,
    life: Life,
    renew: SystemTime,
}

/// A certificate that a node has sent and that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// It is none, or for somebody else.
    #[error("it is no certificate for this client's key")]
    Foreign,
    /// It cannot be written down.
    #[error("it cannot be written to {}: {source}", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl Certificate {
    /// The certificate of `gateway` (id or name, as given) in the data directory, if there is one.
    #[must_use]
    pub fn load(directory: Option<&Path>, gateway: &str, key_sha256: [u8; 32]) -> Self {
        let file = directory
            .filter(|_| is_file_name(gateway))
            .map(|directory| directory.join(format!("certificate-{gateway}.pem")));
        let mut held = None;
        if let Some(path) = file.as_ref().filter(|path| path.exists()) {
            let read = identity::read_certificates(path).ok();
            held = read.and_then(|chain| Held::of(&chain, &key_sha256));
            if held.is_none() {
                tracing::warn!(path = %path.display(), "the certificate in this file is not one of this client's key; it is not used");
            }
        }
        Self {
            key_sha256,
            file,
            state: Mutex::new(State {
                held,
                set_aside: false,
                next: Instant::now(),
                pause: Duration::ZERO,
            }),
        }
    }

    /// What is shown to a node: nothing when it has expired, or when a node did not want it.
    #[must_use]
    pub fn shown(&self) -> Option<Vec<Vec<u8>>> {
        let state = self.state();
        let held = state.held.as_ref().filter(|_| !state.set_aside)?;
        held.life
            .holds(SystemTime::now())
            .then(|| held.chain.iter().map(|der| der.to_vec()).collect())
    }

    /// A node did not want it: it is not shown until there is another one.
    pub fn set_aside(&self) {
        let mut state = self.state();
        state.set_aside = true;
        state.next = state.next.min(Instant::now() + SOON);
    }

    /// Waits until it is time to ask for a certificate. Can be cancelled without loss.
    pub async fn due(&self) {
        if self.file.is_none() {
            std::future::pending::<()>().await;
        }
        loop {
            let now = Instant::now();
            let at = self.due_at(now);
            if at <= now {
                return;
            }
            // Its date is that of the wall clock, which may be set.
            sleep_until(at.min(now + RECHECK)).await;
        }
    }

    fn due_at(&self, now: Instant) -> Instant {
        let state = self.state();
        let renew = state.held.as_ref().filter(|_| !state.set_aside);
        let wait = renew.and_then(|held| held.renew.duration_since(SystemTime::now()).ok());
        state.next.max(now + wait.unwrap_or_default())
    }

    /// Takes the turn to ask, of all tunnels of the gateway: whoever gets it asks now.
    pub fn take_turn(&self) -> bool {
        let now = Instant::now();
        if self.due_at(now) > now {
            return false;
        }
        let mut state = self.state();
        state.pause = (state.pause * 2).clamp(SOON * 4, LONGEST);
        // Somewhat later for each client, so that they do not all come back at once.
        let pause = state.pause.mul_f64(rand::random_range(1.0..1.5));
        state.next = Instant::now() + pause;
        true
    }

    /// A node has sent one: it is kept, and shown from now on.
    ///
    /// # Errors
    /// [`Unusable`]. One that cannot be written down is shown all the same.
    pub fn keep(&self, ders: &[Vec<u8>]) -> Result<(), Unusable> {
        let chain: Vec<_> = ders
            .iter()
            .take(LONGEST_CHAIN)
            .map(|der| CertificateDer::from(der.clone()))
            .collect();
        let held = Held::of(&chain, &self.key_sha256).ok_or(Unusable::Foreign)?;
        {
            let mut state = self.state();
            state.held = Some(held);
            state.set_aside = false;
            state.pause = Duration::ZERO;
            state.next = Instant::now() + SOON;
        }
        let Some(path) = &self.file else {
            return Ok(());
        };
        let pem = certificates_to_pem(&chain);
        files::write_atomic(path, pem.as_bytes(), files::PRIVATE).map_err(|source| {
            Unusable::Write {
                path: path.clone(),
                source,
            }
        })
    }

    /// A node has sent none. `for_long`: asking again soon cannot help. Answers whether it is late: more than half of the
    /// life of the present one is over.
    pub fn refused(&self, for_long: bool) -> bool {
        let mut state = self.state();
        if for_long {
            state.pause = LONGEST;
            state.next = Instant::now() + LONGEST.mul_f64(rand::random_range(1.0..1.5));
        }
        let late = |held: &Held| held.life.is_half_over(SystemTime::now());
        state.held.as_ref().is_some_and(late)
    }

    /// The authority that issues is this one now. A certificate of another one is replaced soon: at a moment of each client's
    /// own, for all of them hear of it at once.
    pub fn issuer_is(&self, root: &CertificateDer<'static>) {
        let mut state = self.state();
        let Some(held) = &mut state.held else {
            return;
        };
        let spread = SPREAD.min(held.life.length() / 10);
        let own = Issuers::new(std::slice::from_ref(root)).is_ok_and(|issuer| {
            let leaf = held.chain.get(..1).unwrap_or_default();
            let (kind, now) = (PeerKind::Client, SystemTime::now());
            issuer.verify(leaf, kind, &self.key_sha256, now).is_ok()
        });
        if !own {
            let soon = SystemTime::now() + spread.mul_f64(rand::random_range(0.0..1.0));
            held.renew = held.renew.min(soon);
            state.pause = Duration::ZERO;
            state.next = state.next.min(Instant::now() + SOON);
        }
    }

    /// A new tunnel: whatever was refused on others may be granted on this one, and questions may be lost with a tunnel.
    pub fn new_tunnel(&self) {
        let mut state = self.state();
        state.pause = Duration::ZERO;
        state.next = state.next.min(Instant::now() + SOON);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn of(chain: &[CertificateDer<'static>], key_sha256: &[u8; 32]) -> Option<Self> {
        let leaf = chain.first()?;
        let identity = PeerIdentity::from_cert(leaf).ok()?;
        let own = spki_sha256(leaf).is_ok_and(|hash| hash == *key_sha256);
        if identity.kind != PeerKind::Client || !own {
            return None;
        }
        let life = Life::of(leaf).ok()?;
        Some(Self {
            chain: chain.to_vec(),
            renew: life.draw_renewal(),
            life,
        })
    }
}

/// Ids and names of gateways are; whatever else somebody wrote for one is not looked for on the disk.
fn is_file_name(gateway: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=64).contains(&gateway.len()) && gateway.bytes().all(good)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rcgen::{CertificateParams, SanType};
    use sg_runtime::identity::KeyPair;

    use super::*;

    fn issued(key: &KeyPair, kind: &str, from: SystemTime, until: SystemTime) -> Vec<Vec<u8>> {
        let mut params = CertificateParams::default();
        params.not_before = (from - identity::EARLY).into();
        params.not_after = until.into();
        let uri = format!("spiffe://secure-gateway/{kind}/g1.0.c1");
        params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().unwrap())];
        vec![params.self_signed(key.signing()).unwrap().der().to_vec()]
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_kept_is_shown_and_found_again() {
        let hour = Duration::from_secs(3600);
        let directory = tempfile::tempdir().unwrap();
        let key = KeyPair::generate();
        let load = || Certificate::load(Some(directory.path()), "plant", key.spki_sha256());
        let certificate = load();
        assert_eq!(certificate.shown(), None);
        tokio::time::timeout(hour, certificate.due()).await.unwrap();
        assert!(certificate.take_turn(), "nothing is there: it is asked for");
        assert!(!certificate.take_turn(), "by one tunnel only");
        let now = SystemTime::now();
        let der = issued(&key, "client", now, now + hour);
        certificate.keep(&der).unwrap();
        assert_eq!(certificate.shown(), Some(der.clone()));
        let now = Instant::now();
        assert!(certificate.due_at(now) > now + hour / 4);
        let again = load();
        assert_eq!(again.shown(), Some(der));
        again.set_aside();
        assert_eq!(again.shown(), None);
        let path = directory.path().join("certificate-plant.pem");
        assert!(!files::readable_by_others(&path).unwrap());
    }

    #[test]
    fn what_is_over_or_foreign_is_not_shown() {
        let directory = tempfile::tempdir().unwrap();
        let key = KeyPair::generate();
        let certificate = Certificate::load(Some(directory.path()), "g", key.spki_sha256());
        let now = SystemTime::now();
        let hour = Duration::from_secs(3600);
        let over = issued(&key, "client", now - hour, now - Duration::from_secs(5));
        certificate.keep(&over).unwrap();
        assert_eq!(certificate.shown(), None);
        let foreign = issued(&KeyPair::generate(), "client", now, now + hour);
        assert!(certificate.keep(&foreign).is_err());
        let node = issued(&key, "node", now, now + hour);
        assert!(certificate.keep(&node).is_err());
        assert!(certificate.keep(&[b"no certificate".to_vec()]).is_err());
        std::fs::write(directory.path().join("certificate-g.pem"), "damaged").unwrap();
        let read = Certificate::load(Some(directory.path()), "g", key.spki_sha256());
        assert_eq!(read.shown(), None);
    }

    #[test]
    fn names_that_lead_elsewhere_are_no_files() {
        for bad in ["", "..", "a/b", "a.b", "ä", &"x".repeat(65)] {
            assert!(!is_file_name(bad), "{bad}");
        }
        assert!(is_file_name("G01-x_y"));
    }
}
