//! All tunnels of this node by gateway, and the choice of the one that carries the next stream.
//!
//! Round robin is exact: the tunnels of a gateway stand in a ring in the order they came; each choice takes
//! the next one after the last that is healthy. A tunnel that is closed, drains, is detached, or owes an answer to a
//! ping for too long (suspect) is passed over. A detached tunnel is neither counted nor listed until it is resumed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sg_model::{GatewayId, Name, Policy};
use sg_tunnel_io::Config;
use sg_tunnel_io::code::close;
use sg_tunnel_io::resume::TunnelId;
use tokio::sync::watch;
use tokio::time::{Instant, interval};

use super::Session;
use super::settings::Settings;
use crate::metrics::{NodeMetrics, Resume};

/// Tunnels that may be detached at a time: each holds on to its streams, their sockets and what was not acknowledged.
const MOST_DETACHED: usize = 10_000;
/// How long a gateway without tunnels is remembered as one that had some.
const LATELY: Duration = Duration::from_secs(30);
/// How often whoever waits for a tunnel looks at the suspect ones again.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// All tunnels.
#[derive(Debug)]
pub(crate) struct Registry {
    inner: Mutex<Inner>,
    /// Counts what comes and goes, for whoever waits or reports.
    changes: watch::Sender<u64>,
    metrics: NodeMetrics,
    /// Those of its tunnels.
    pub(super) settings: Settings,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    gateways: HashMap<GatewayId, Ring>,
    by_id: HashMap<TunnelId, Arc<Session>>,
    /// Numbers of the tunnels that are detached.
    detached: HashSet<u64>,
    /// Gateways that are configured, with their names; only these have series.
    names: HashMap<GatewayId, Name>,
}

#[derive(Debug, Default)]
struct Ring {
    tunnels: BTreeMap<u64, Arc<Session>>,
    /// The number that was chosen last.
    last: u64,
    /// When the last tunnel went.
    emptied: Option<Instant>,
}

/// Which tunnels may be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Health {
    /// Those that answer.
    Good,
    /// Also suspect ones.
    Any,
}

/// A tunnel chosen for one stream, which counts as the tunnel's until this is dropped.
#[derive(Debug)]
pub(crate) struct Choice(Arc<Session>);

/// A registered tunnel; dropping it takes the tunnel off.
#[derive(Debug)]
pub(crate) struct Registration {
    registry: Arc<Registry>,
    session: Arc<Session>,
}

impl Registry {
    /// New tunnels get `config`, but for their gateway's resume time; they all share its memory budget.
    pub(crate) fn new(metrics: NodeMetrics, config: Config) -> Self {
        Self {
            inner: Mutex::default(),
            changes: watch::Sender::new(0),
            metrics,
            settings: Settings::new(config),
        }
    }

    /// A number for a new tunnel; greater ones came later.
    pub(crate) fn next_number(&self) -> u64 {
        let mut inner = self.lock();
        inner.next += 1;
        inner.next
    }

    /// Adds a tunnel and closes those it takes the place of: the same connection of the same client process,
    /// and whatever an earlier process of that client left.
    pub(crate) fn register(self: &Arc<Self>, session: Arc<Session>) -> Registration {
        let mut inner = self.lock();
        let ring = inner.gateways.entry(session.gateway.clone()).or_default();
        let replaced: Vec<_> = ring
            .tunnels
            .values()
            .filter(|old| session.replaces(old))
            .cloned()
            .collect();
        ring.tunnels.retain(|_, old| !session.replaces(old));
        ring.tunnels.insert(session.number, Arc::clone(&session));
        let id = session.resumption.id;
        inner.by_id.insert(id, Arc::clone(&session));
        for old in &replaced {
            inner.forget(old);
        }
        self.count(&inner, &session.gateway);
        drop(inner);
        for old in replaced {
            let detached = old.tunnel.is_detached();
            tracing::info!(client = %old.client_id, address = %old.address(), detached, "tunnel replaced by a newer one of the same client");
            if detached {
                self.count_resume(&old.gateway, Resume::Replaced);
            }
            old.tunnel
                .close(close::REPLACED, "a newer connection takes over");
        }
        self.changed();
        Registration {
            registry: Arc::clone(self),
            session,
        }
    }

    /// Chooses a tunnel for one stream, none of `tried`.
    pub(crate) fn choose(
        &self,
        gateway: &GatewayId,
        policy: Policy,
        health: Health,
        tried: &[u64],
    ) -> Option<Choice> {
        let mut inner = self.lock();
        let ring = inner.gateways.get_mut(gateway)?;
        let after = ring.last + 1;
        let in_turn = ring
            .tunnels
            .range(after..)
            .chain(ring.tunnels.range(..after));
        let mut usable = in_turn
            .map(|(_, session)| session)
            .filter(|session| session.usable(health) && !tried.contains(&session.number));
        let chosen = match policy {
            Policy::RoundRobin => usable.next(),
            // The first of several with the fewest: they take turns, too.
            Policy::LeastLoaded => usable.min_by_key(|session| session.active()),
        }?;
        let chosen = Choice::new(Arc::clone(chosen));
        ring.last = chosen.0.number;
        Some(chosen)
    }

    /// Whether a healthy tunnel other than this one, and none of `tried`, is there.
    pub(crate) fn has_other(&self, gateway: &GatewayId, than: u64, tried: &[u64]) -> bool {
        self.lock().gateways.get(gateway).is_some_and(|ring| {
            ring.tunnels.values().any(|session| {
                session.number != than
                    && session.usable(Health::Good)
                    && !tried.contains(&session.number)
            })
        })
    }

    /// Whether the gateway has a tunnel, or had one within the last 30 s.
    pub(crate) fn had_tunnel_lately(&self, gateway: &GatewayId) -> bool {
        self.lock().gateways.get(gateway).is_some_and(|ring| {
            !ring.tunnels.is_empty() || ring.emptied.is_some_and(|since| since.elapsed() < LATELY)
        })
    }

    /// Waits until there is a healthy tunnel, none of `tried`. Cancel safe.
    pub(crate) async fn available(&self, gateway: &GatewayId, tried: &[u64]) {
        let mut changes = self.changes.subscribe();
        let mut look_again = interval(LOOK_AGAIN);
        // Tunnels are numbered from 1.
        while !self.has_other(gateway, 0, tried) {
            tokio::select! {
                _ = changes.changed() => {}
                _ = look_again.tick() => {}
            }
        }
    }

    /// The tunnel of a gateway that has this id.
    pub(super) fn find(&self, gateway: &GatewayId, id: &TunnelId) -> Option<Arc<Session>> {
        let found = self.lock().by_id.get(id).cloned();
        found.filter(|session| session.gateway == *gateway)
    }

    /// A tunnel has lost its connection: it is neither counted nor listed from now on. Answers whether it may wait for its
    /// client; if not, too many do already.
    #[must_use]
    pub(super) fn note_detached(&self, session: &Session) -> bool {
        let mut inner = self.lock();
        let room = inner.detached.len() < MOST_DETACHED;
        // One that is registered no more has been replaced, and is about to end.
        if inner.by_id.contains_key(&session.resumption.id) {
            inner.detached.insert(session.number);
            self.count(&inner, &session.gateway);
        }
        drop(inner);
        self.changed();
        room
    }

    /// A tunnel has a connection again.
    pub(super) fn note_attached(&self, session: &Session) {
        let mut inner = self.lock();
        inner.detached.remove(&session.number);
        self.count(&inner, &session.gateway);
        drop(inner);
        self.changed();
    }

    /// Counts what became of a detached tunnel, or of an offer to resume one.
    pub(super) fn count_resume(&self, gateway: &GatewayId, result: Resume) {
        if let Some(name) = self.lock().names.get(gateway) {
            self.metrics.tunnel_resume(name.as_str(), result);
        }
    }

    /// Starts the drain of all tunnels. One that is detached ends: its client could not come back.
    pub(crate) fn drain(&self) {
        for session in self.all() {
            session.drain();
        }
    }

    /// The tunnels that have a connection, in the order they came.
    pub(crate) fn present(&self) -> Vec<Arc<Session>> {
        let mut all = self.all();
        all.retain(|session| !session.tunnel.is_detached());
        all
    }

    /// All tunnels, detached ones included, in the order they came.
    pub(crate) fn all(&self) -> Vec<Arc<Session>> {
        let inner = self.lock();
        let tunnels = inner.gateways.values().flat_map(|r| r.tunnels.values());
        let mut all: Vec<_> = tunnels.cloned().collect();
        drop(inner);
        all.sort_unstable_by_key(|session| session.number);
        all
    }

    /// Changes whenever a tunnel comes or goes, or something about one is to be reported.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Something about a tunnel is to be reported.
    pub(crate) fn changed(&self) {
        self.changes
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Treats these gateways as ones that had a tunnel lately: this node served them before it was restarted, and
    /// their clients are on their way back.
    pub(crate) fn expect(&self, gateways: impl IntoIterator<Item = GatewayId>) {
        let mut inner = self.lock();
        for gateway in gateways {
            inner.gateways.entry(gateway).or_default().emptied = Some(Instant::now());
        }
    }

    /// Says which gateways are configured: what is kept and shown about others goes.
    pub(crate) fn set_gateways(&self, names: HashMap<GatewayId, Name>) {
        let mut inner = self.lock();
        inner
            .gateways
            .retain(|id, ring| names.contains_key(id) || !ring.tunnels.is_empty());
        let before = std::mem::replace(&mut inner.names, names);
        for (id, name) in &before {
            if inner.names.get(id) != Some(name) {
                self.metrics.forget_gateway(name.as_str());
            }
        }
        for (id, name) in &inner.names {
            if before.get(id) != Some(name) {
                self.count(&inner, id);
            }
        }
    }

    fn unregister(&self, session: &Session) {
        let mut inner = self.lock();
        inner.forget(session);
        if let Some(ring) = inner.gateways.get_mut(&session.gateway) {
            ring.tunnels.remove(&session.number);
            if ring.tunnels.is_empty() {
                ring.emptied = Some(Instant::now());
                if !inner.names.contains_key(&session.gateway) {
                    inner.gateways.remove(&session.gateway);
                }
            }
        }
        self.count(&inner, &session.gateway);
        drop(inner);
        self.changed();
    }

    fn count(&self, inner: &Inner, gateway: &GatewayId) {
        self.metrics.set_detached(inner.detached.len());
        if let Some(name) = inner.names.get(gateway) {
            let count = inner.gateways.get(gateway).map_or(0, |ring| {
                let numbers = ring.tunnels.keys();
                numbers.filter(|n| !inner.detached.contains(n)).count()
            });
            self.metrics.set_tunnels(name.as_str(), count);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn forget(&mut self, session: &Session) {
        self.by_id.remove(&session.resumption.id);
        self.detached.remove(&session.number);
    }
}

impl Choice {
    fn new(session: Arc<Session>) -> Self {
        session.begin_stream();
        Self(session)
    }

    /// The tunnel.
    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.0
    }
}

impl Drop for Choice {
    fn drop(&mut self) {
        self.0.end_stream();
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.unregister(&self.session);
    }
}

#[cfg(test)]
mod tests {
    use sg_runtime::metrics::Metrics;

    use super::*;
    use crate::tunnels::session::testing::{Peer, session};

    struct Fixture {
        metrics: Metrics,
        registry: Arc<Registry>,
        gateway: GatewayId,
        kept: Vec<(Registration, Peer)>,
    }

    impl Fixture {
        fn new() -> Self {
            let metrics = Metrics::new("test", "0");
            let registry = Arc::new(Registry::new(
                NodeMetrics::register(&metrics),
                Config::default(),
            ));
            let gateway = GatewayId::new("g1").unwrap();
            registry.set_gateways(HashMap::from([(
                gateway.clone(),
                Name::new("dev").unwrap(),
            )]));
            Self {
                metrics,
                registry,
                gateway,
                kept: Vec::new(),
            }
        }

        fn add(&mut self, client: &str, boot: u8, connection: u32) -> Arc<Session> {
            let number = self.registry.next_number();
            let (session, peer) = session(number, &self.gateway, client, boot, connection);
            let session = Arc::new(session);
            self.kept
                .push((self.registry.register(Arc::clone(&session)), peer));
            session
        }

        fn choose(&self, policy: Policy, tried: &[u64]) -> Option<Choice> {
            self.registry
                .choose(&self.gateway, policy, Health::Good, tried)
        }

        fn tunnels_series(&self) -> Option<String> {
            let text = self.metrics.encode();
            let value = text
                .lines()
                .find_map(|l| l.strip_prefix("sg_tunnels{gateway=\"dev\"} "));
            value.map(str::to_owned)
        }
    }

    #[tokio::test]
    async fn thirty_choices_over_three_tunnels_are_ten_each() {
        let mut f = Fixture::new();
        let sessions = ["c1", "c2", "c3"].map(|client| f.add(client, 1, 0));
        let mut counts = HashMap::<u64, u32>::new();
        for _ in 0..30 {
            let choice = f.choose(Policy::RoundRobin, &[]).unwrap();
            *counts.entry(choice.session().number).or_default() += 1;
        }
        for session in &sessions {
            assert_eq!(counts[&session.number], 10);
            assert_eq!(session.active(), 0);
        }
    }

    #[tokio::test]
    async fn tried_and_closed_tunnels_are_passed_over() {
        let mut f = Fixture::new();
        let (one, two) = (f.add("c1", 1, 0), f.add("c2", 1, 0));
        let choice = f.choose(Policy::RoundRobin, &[one.number]).unwrap();
        assert_eq!(choice.session().number, two.number);
        assert!(
            f.choose(Policy::RoundRobin, &[one.number, two.number])
                .is_none()
        );
        two.tunnel.close(close::NONE, "");
        for _ in 0..3 {
            assert_eq!(
                f.choose(Policy::RoundRobin, &[]).unwrap().session().number,
                one.number
            );
        }
    }

    #[tokio::test]
    async fn the_least_loaded_is_the_one_with_the_fewest_streams() {
        let mut f = Fixture::new();
        let sessions = ["c1", "c2", "c3"].map(|client| f.add(client, 1, 0));
        let mut held: Vec<_> = (0..9)
            .map(|_| f.choose(Policy::LeastLoaded, &[]).unwrap())
            .collect();
        assert!(sessions.iter().all(|s| s.active() == 3));
        let freed = held.remove(4).session().number;
        let next = f.choose(Policy::LeastLoaded, &[]).unwrap();
        assert_eq!(next.session().number, freed);
        assert_eq!(
            f.choose(Policy::RoundRobin, &[])
                .unwrap()
                .session()
                .active(),
            4
        );
    }

    #[tokio::test]
    async fn a_newer_connection_or_process_of_a_client_replaces_the_older() {
        let mut f = Fixture::new();
        let first = f.add("c1", 1, 0);
        let second = f.add("c1", 1, 1);
        let other = f.add("c2", 1, 0);
        assert_eq!(
            f.registry.all().len(),
            3,
            "several connections of one process stay"
        );
        let again = f.add("c1", 1, 0);
        let numbers = |f: &Fixture| {
            f.registry
                .all()
                .iter()
                .map(|s| s.number)
                .collect::<Vec<_>>()
        };
        assert_eq!(numbers(&f), [second.number, other.number, again.number]);
        assert!(first.tunnel.is_closed() || !first.usable(Health::Any));
        let restarted = f.add("c1", 2, 0);
        assert_eq!(numbers(&f), [other.number, restarted.number]);
        assert_eq!(f.tunnels_series().as_deref(), Some("2"));
        f.kept.clear();
        assert_eq!(f.tunnels_series().as_deref(), Some("0"));
    }

    #[tokio::test]
    async fn a_tunnel_that_drains_is_left_to_finish_unless_its_process_is_gone() {
        let mut f = Fixture::new();
        let old = f.add("c1", 1, 0);
        old.tunnel.goaway();
        let new = f.add("c1", 1, 0);
        assert!(!old.tunnel.is_closed());
        assert_eq!(f.registry.all().len(), 2);
        for _ in 0..3 {
            let choice = f.choose(Policy::RoundRobin, &[]).unwrap();
            assert_eq!(choice.session().number, new.number);
        }
        let restarted = f.add("c1", 2, 0);
        let left: Vec<_> = f.registry.all().iter().map(|s| s.number).collect();
        assert_eq!(left, [restarted.number]);
    }

    #[tokio::test]
    async fn whoever_waits_is_told_of_a_tunnel_and_lately_is_remembered() {
        let mut f = Fixture::new();
        assert!(!f.registry.had_tunnel_lately(&f.gateway));
        let registry = Arc::clone(&f.registry);
        let gateway = f.gateway.clone();
        let waits = registry.available(&gateway, &[]);
        let adds = async {
            tokio::task::yield_now().await;
            f.add("c1", 1, 0)
        };
        let both = async { tokio::join!(waits, adds) };
        tokio::time::timeout(Duration::from_secs(5), both)
            .await
            .unwrap();
        f.kept.clear();
        assert!(f.registry.had_tunnel_lately(&f.gateway));
        f.registry.set_gateways(HashMap::new());
        assert!(!f.registry.had_tunnel_lately(&f.gateway));
        f.registry.expect([f.gateway.clone()]);
        assert!(f.registry.had_tunnel_lately(&f.gateway));
        f.registry.set_gateways(HashMap::new());
        assert_eq!(f.tunnels_series(), None);
    }
}
