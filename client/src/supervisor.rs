//! Decides which connections of one gateway exist: whom to dial and when, which tunnel to keep,
//! which to end. A machine of events in and actions out; it has no clock, no randomness, no socket.
//! [`crate::gateway`] carries its actions out.
//!
//! A *link* is a connection that should exist. There are two kinds:
//!
//! * a **seed** for every address that the operator gave. It is dialled as given, for ever;
//! * a **learned** link for a node that the nodes told of and that no seed leads to.
//!
//! Two links never hold a tunnel to one node: which node answers is known after the TLS handshake
//! and before anything is said, so the later one ends there. A seed is then set aside until the
//! node is lost; a learned link is forgotten, because the seed's address is the operator's choice.
//!
//! ```text
//!            Identified, node is free          Up
//! Dialling ───────────────────────▶ Claimed ───────▶ Up
//!   ▲  │ Identified, node is taken     │             │
//!   │  ▼ (seeds only)                  │             │
//!   │ SetAside                         ▼             ▼
//!   └───┴────────────── Ended, Draining (a drained session goes on aside)
//! ```
//!
//! With several tunnels to each node there is one machine per tunnel.

mod choice;
mod event;
mod pace;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use sg_model::{HostPort, NodeId};

pub use self::event::{Action, Endpoint, Event, SessionId};
pub use self::pace::Retry;
use self::pace::{FIRST, GOOD_SERVICE, Pace};
use crate::options::Reconnect;

/// Learned nodes are dialled so long after a seed's first attempt began: it may lead to one of them.
const SEEDS_FIRST: Duration = Duration::from_secs(2);
/// Sessions that may finish their streams beside the links; the oldest has to end for another.
const MOST_DRAINING: usize = 8;
/// Nodes that are kept of what one node tells.
const MOST_ENDPOINTS: usize = 256;

#[derive(Debug)]
struct Link {
    address: HostPort,
    /// A seed's last known node, or the node that a learned link is for.
    node: Option<NodeId>,
    seed: bool,
    state: State,
    pace: Pace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Dialling(SessionId),
    Claimed(SessionId),
    Up {
        session: SessionId,
        since: Duration,
    },
    /// Another link has the node.
    SetAside,
    /// Given up.
    Ended,
}

impl State {
    const fn session(self) -> Option<SessionId> {
        match self {
            Self::Dialling(session) | Self::Claimed(session) | Self::Up { session, .. } => {
                Some(session)
            }
            Self::SetAside | Self::Ended => None,
        }
    }

    const fn holds_node(self) -> bool {
        matches!(self, Self::Claimed(_) | Self::Up { .. })
    }
}

/// The machine. Call [`Supervisor::start`] once, then [`Supervisor::handle`] for every event.
#[derive(Debug)]
pub struct Supervisor {
    gateway: String,
    reconnect: Reconnect,
    links: Vec<Link>,
    next_session: u64,
    /// Sessions that finish their streams, oldest first.
    draining: VecDeque<SessionId>,
    /// What each node told last.
    told: BTreeMap<NodeId, Vec<Endpoint>>,
    now: Duration,
    random: u64,
    actions: Vec<Action>,
    given_up: bool,
}

impl Supervisor {
    /// A machine for one gateway and the addresses given for it.
    #[must_use]
    pub fn new(gateway: impl Into<String>, addresses: &[HostPort], reconnect: Reconnect) -> Self {
        let seed = |address: &HostPort| Link {
            address: address.clone(),
            node: None,
            seed: true,
            state: State::Ended,
            pace: Pace::default(),
        };
        Self {
            gateway: gateway.into(),
            reconnect,
            links: addresses.iter().map(seed).collect(),
            next_session: 0,
            draining: VecDeque::new(),
            told: BTreeMap::new(),
            now: Duration::ZERO,
            random: 0,
            actions: Vec::new(),
            given_up: false,
        }
    }

    /// Dials every seed at once.
    #[must_use]
    pub fn start(&mut self) -> Vec<Action> {
        for index in 0..self.links.len() {
            self.connect(index, Duration::ZERO);
        }
        std::mem::take(&mut self.actions)
    }

    /// Takes in an event. `now` counts from any fixed point and never runs backwards; `random` is
    /// new for every call. Events of sessions that are no longer wanted are ignored.
    #[must_use]
    pub fn handle(&mut self, now: Duration, random: u64, event: Event) -> Vec<Action> {
        self.now = self.now.max(now);
        self.random = random;
        match event {
            Event::Identified { session, node } => self.identified(session, node),
            Event::Up { session, gateway } => self.up(session, gateway),
            Event::Draining { session } => self.peer_drains(session),
            Event::Failed { session, retry } => self.failed(session, retry),
            Event::Lost { session } => self.lost(session),
            Event::Endpoints { session, endpoints } => self.endpoints(session, endpoints),
        }
        self.reconcile();
        if !self.given_up && self.links.iter().all(|link| link.state == State::Ended) {
            self.give_up();
        }
        std::mem::take(&mut self.actions)
    }

    /// Tunnels that are up and take streams.
    #[must_use]
    pub fn tunnels(&self) -> usize {
        self.links
            .iter()
            .filter(|link| matches!(link.state, State::Up { .. }))
            .count()
    }

    fn identified(&mut self, session: SessionId, node: NodeId) {
        let Some(index) = self.link_of(session) else {
            return self.close(session, "unwanted");
        };
        if self.links[index].state != State::Dialling(session) {
            return;
        }
        if !self.links[index].seed && self.links[index].node.as_ref() != Some(&node) {
            self.close(session, "wrong-node");
            return self.attempt_failed(index, Retry::Later);
        }
        let taken = self
            .links
            .iter()
            .any(|link| link.state.holds_node() && link.node.as_ref() == Some(&node));
        self.links[index].node = Some(node);
        if taken {
            self.links[index].state = State::SetAside;
            return self.close(session, "duplicate");
        }
        self.links[index].state = State::Claimed(session);
        self.actions.push(Action::Proceed { session });
    }

    fn up(&mut self, session: SessionId, gateway: String) {
        let since = self.now;
        self.gateway = gateway;
        if let Some(link) = self.link_mut(session)
            && link.state == State::Claimed(session)
        {
            link.state = State::Up { session, since };
            link.pace.up();
        }
    }

    fn peer_drains(&mut self, session: SessionId) {
        let Some(index) = self.link_of(session) else {
            return;
        };
        let State::Up { since, .. } = self.links[index].state else {
            return;
        };
        self.set_draining(session, "peer-drain");
        self.link_is_free(index, since);
    }

    fn failed(&mut self, session: SessionId, retry: Retry) {
        self.draining.retain(|other| *other != session);
        let Some(index) = self.link_of(session) else {
            return;
        };
        let held = self.links[index].state.holds_node();
        self.attempt_failed(index, retry);
        if held {
            self.recall(index);
        }
    }

    fn lost(&mut self, session: SessionId) {
        self.draining.retain(|other| *other != session);
        let Some(index) = self.link_of(session) else {
            return;
        };
        let State::Up { since, .. } = self.links[index].state else {
            return self.failed(session, Retry::Soon);
        };
        if self.reconnect == Reconnect::Never {
            return self.give_up();
        }
        self.link_is_free(index, since);
    }

    /// The tunnel of a link serves no more: connect again, and let set-aside links of the same node
    /// try as well.
    fn link_is_free(&mut self, index: usize, since: Duration) {
        let (now, random) = (self.now, self.fraction());
        let served = now.saturating_sub(since);
        let wait = self.links[index].pace.lost(now, served, random);
        if served >= GOOD_SERVICE {
            self.forgive(index);
        }
        if let Some(node) = self.links[index].node.clone() {
            self.told_by_nobody_else(&node);
        }
        self.connect(index, wait);
        self.recall(index);
    }

    /// What went wrong with the seeds beside this link before its good service is of no account.
    fn forgive(&mut self, index: usize) {
        let node = self.links[index].node.clone();
        for link in self
            .links
            .iter_mut()
            .filter(|link| link.state == State::SetAside && link.node == node)
        {
            link.pace.up();
        }
    }

    /// Forgets what a node told, unless nobody else tells anything.
    fn told_by_nobody_else(&mut self, node: &NodeId) {
        let others_are_up = self.links.iter().any(|link| {
            matches!(link.state, State::Up { .. })
                && link
                    .node
                    .as_ref()
                    .is_some_and(|other| other != node && self.told.contains_key(other))
        });
        if others_are_up {
            self.told.remove(node);
        }
    }

    fn attempt_failed(&mut self, index: usize, retry: Retry) {
        let (now, random) = (self.now, self.fraction());
        let wait = self.links[index].pace.failed(now, retry, random);
        match self.reconnect {
            Reconnect::Never => self.give_up(),
            Reconnect::Attempts(most) if self.links[index].pace.failures() > most => {
                self.links[index].state = State::Ended;
            }
            Reconnect::Attempts(_) | Reconnect::Forever => self.connect(index, wait),
        }
    }

    /// Lets the seeds that were set aside for this link's node try again.
    fn recall(&mut self, index: usize) {
        let node = self.links[index].node.clone();
        for other in 0..self.links.len() {
            if self.links[other].state == State::SetAside && self.links[other].node == node {
                let random = self.fraction();
                let wait = self.links[other].pace.resumed(self.now, random);
                self.connect(other, wait);
            }
        }
    }

    fn endpoints(&mut self, session: SessionId, mut endpoints: Vec<Endpoint>) {
        endpoints.truncate(MOST_ENDPOINTS);
        let Some(node) = self
            .link_of(session)
            .and_then(|index| self.links[index].node.clone())
        else {
            return;
        };
        // A node that tells nothing knows nothing (yet).
        if endpoints.is_empty() {
            return;
        }
        let links = &self.links;
        let holds = |node: &NodeId| {
            links
                .iter()
                .any(|link| link.state.holds_node() && link.node.as_ref() == Some(node))
        };
        self.told.retain(|teller, _| holds(teller));
        self.told.insert(node, endpoints);
    }

    /// Makes the learned links what they should be.
    fn reconcile(&mut self) {
        if self.given_up {
            return;
        }
        let homes: BTreeSet<NodeId> = self.seeds().filter_map(|seed| seed.node.clone()).collect();
        let wanted = choice::learned(&self.gateway, &self.told, &homes);
        self.forget_unwanted(&homes, &wanted);
        let first_attempts = self.seeds().any(|seed| {
            seed.node.is_none()
                && seed.pace.failures() == 0
                && matches!(seed.state, State::Dialling(_))
        });
        for (node, address) in wanted {
            let known = self
                .links
                .iter()
                .position(|link| !link.seed && link.node.as_ref() == Some(&node));
            if let Some(index) = known {
                self.move_to(index, address);
                continue;
            }
            let random = self.fraction();
            let wait = if first_attempts {
                SEEDS_FIRST
            } else {
                FIRST.mul_f64(random)
            };
            let state = State::Ended;
            self.links.push(Link {
                address,
                node: Some(node),
                seed: false,
                state,
                pace: Pace::default(),
            });
            self.connect(self.links.len() - 1, wait);
        }
    }

    fn forget_unwanted(&mut self, homes: &BTreeSet<NodeId>, wanted: &BTreeMap<NodeId, HostPort>) {
        let mut index = 0;
        while let Some(link) = self.links.get(index) {
            let node = link.node.as_ref().filter(|_| !link.seed);
            let keep = node.is_none_or(|node| {
                // Two ways to one node: the tunnel that is there stays, and only an end of it
                // leaves the node to the seed.
                let reached = homes.contains(node) && link.state.holds_node();
                (wanted.contains_key(node) && link.state != State::SetAside) || reached
            });
            if keep {
                index += 1;
                continue;
            }
            match self.links.remove(index).state {
                State::Up { session, .. } => {
                    self.set_draining(session, "unwanted");
                }
                State::Dialling(session) | State::Claimed(session) => {
                    self.close(session, "unwanted")
                }
                State::SetAside | State::Ended => {}
            }
        }
    }

    /// A node says that it is somewhere else now. A tunnel that is up stays.
    fn move_to(&mut self, index: usize, address: HostPort) {
        let link = &mut self.links[index];
        if link.address == address {
            return;
        }
        link.address = address;
        match link.state {
            State::Dialling(session) => {
                self.close(session, "moved");
                self.connect(index, FIRST);
            }
            State::Ended => self.connect(index, FIRST),
            State::Claimed(_) | State::Up { .. } | State::SetAside => {}
        }
    }

    fn connect(&mut self, index: usize, after: Duration) {
        if self.given_up {
            return;
        }
        let session = SessionId(self.next_session);
        self.next_session += 1;
        let link = &mut self.links[index];
        link.state = State::Dialling(session);
        self.actions.push(Action::Connect {
            session,
            address: link.address.clone(),
            after,
        });
    }

    /// Sets a tunnel aside to finish its streams.
    fn set_draining(&mut self, session: SessionId, why: &'static str) {
        self.actions.push(Action::Drain { session, why });
        self.draining.push_back(session);
        if self.draining.len() > MOST_DRAINING
            && let Some(oldest) = self.draining.pop_front()
        {
            self.close(oldest, "too-many-draining");
        }
    }

    fn give_up(&mut self) {
        self.given_up = true;
        for link in &mut self.links {
            link.state = State::Ended;
        }
        self.actions.push(Action::GiveUp);
    }

    fn close(&mut self, session: SessionId, why: &'static str) {
        self.actions.push(Action::Close { session, why });
    }

    fn seeds(&self) -> impl Iterator<Item = &Link> {
        self.links.iter().filter(|link| link.seed)
    }

    fn link_of(&self, session: SessionId) -> Option<usize> {
        self.links
            .iter()
            .position(|link| link.state.session() == Some(session))
    }

    fn link_mut(&mut self, session: SessionId) -> Option<&mut Link> {
        self.links
            .iter_mut()
            .find(|link| link.state.session() == Some(session))
    }

    /// A number from 0 to 1 out of this event's random bits.
    fn fraction(&mut self) -> f64 {
        self.random = choice::mix(self.random.wrapping_add(0x9e37_79b9_7f4a_7c15));
        f64::from(u32::try_from(self.random >> 32).unwrap_or(u32::MAX)) / f64::from(u32::MAX)
    }
}

#[cfg(test)]
mod tests;
