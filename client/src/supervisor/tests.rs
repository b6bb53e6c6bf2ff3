//! What the supervisor does in each case, and a random world in which its promises must hold.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn node(n: usize) -> NodeId {
    NodeId::new(format!("node-{n}")).unwrap()
}

fn address(text: &str) -> HostPort {
    text.parse().unwrap()
}

/// The address that node `n` advertises.
fn advertised(n: usize) -> HostPort {
    address(&format!("10.0.0.{n}:9000"))
}

fn group(nodes: std::ops::Range<usize>) -> Vec<Endpoint> {
    nodes
        .map(|n| Endpoint {
            node: node(n),
            address: advertised(n),
        })
        .collect()
}

/// A supervisor whose seeds are given by address, and the actions that are not answered yet.
struct Scene {
    supervisor: Supervisor,
    now: Duration,
    actions: Vec<Action>,
}

impl Scene {
    fn new(seeds: &[&str], reconnect: Reconnect) -> Self {
        let seeds: Vec<_> = seeds.iter().map(|text| address(text)).collect();
        let mut supervisor = Supervisor::new("gateway", &seeds, reconnect);
        let actions = supervisor.start();
        Self {
            supervisor,
            now: Duration::ZERO,
            actions,
        }
    }

    fn event(&mut self, event: Event) {
        self.actions
            .extend(self.supervisor.handle(self.now, 7, event));
    }

    /// Takes the oldest connect action to an address.
    fn dialled(&mut self, to: &HostPort) -> (SessionId, Duration) {
        let found = self
            .actions
            .iter()
            .position(|a| matches!(a, Action::Connect { address, .. } if address == to));
        let index = found.unwrap_or_else(|| panic!("{to} is not dialled: {:?}", self.actions));
        match self.actions.remove(index) {
            Action::Connect { session, after, .. } => (session, after),
            _ => unreachable!(),
        }
    }

    fn identified(&mut self, session: SessionId, n: usize) {
        self.event(Event::Identified {
            session,
            node: node(n),
        });
    }

    /// Dials an address up to an accepted tunnel with a node.
    fn up(&mut self, to: &HostPort, n: usize) -> SessionId {
        let (session, _) = self.dialled(to);
        self.identified(session, n);
        assert_eq!(self.actions.pop(), Some(Action::Proceed { session }));
        self.event(Event::Up {
            session,
            gateway: "g1".to_owned(),
        });
        session
    }

    fn told(&mut self, session: SessionId, endpoints: Vec<Endpoint>) {
        self.event(Event::Endpoints { session, endpoints });
    }

    fn take(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }
}

#[test]
fn a_seed_is_dialled_at_once_and_again_right_after_a_loss() {
    let mut scene = Scene::new(&["a:1"], Reconnect::Forever);
    let (session, after) = scene.dialled(&address("a:1"));
    assert_eq!(after, Duration::ZERO);
    scene.identified(session, 1);
    scene.event(Event::Up {
        session,
        gateway: "g1".to_owned(),
    });
    assert_eq!(scene.supervisor.tunnels(), 1);
    scene.now = SECOND * 100;
    scene.event(Event::Lost { session });
    assert_eq!(scene.supervisor.tunnels(), 0);
    let (_, after) = scene.dialled(&address("a:1"));
    assert!(after <= FIRST);
}

#[test]
fn a_node_reached_by_a_seed_gets_no_tunnel_through_its_advertised_address() {
    let mut scene = Scene::new(&["proxy:1"], Reconnect::Forever);
    let session = scene.up(&address("proxy:1"), 1);
    scene.told(session, group(1..3));
    let (learned, _) = scene.dialled(&advertised(2));
    assert_eq!(scene.take(), []);
    scene.identified(learned, 2);
    scene.event(Event::Up {
        session: learned,
        gateway: "g1".to_owned(),
    });
    scene.take();
    // Not even when the seed's address fails for long: it is the operator's choice.
    scene.event(Event::Lost { session });
    for _ in 0..20 {
        let (attempt, _) = scene.dialled(&address("proxy:1"));
        scene.now += SECOND * 30;
        scene.event(Event::Failed {
            session: attempt,
            retry: Retry::Soon,
        });
        assert!(
            scene.actions.iter().all(
                |a| !matches!(a, Action::Connect { address, .. } if *address == advertised(1))
            )
        );
    }
}

#[test]
fn two_addresses_of_one_node_get_one_tunnel_and_relieve_each_other() {
    let mut scene = Scene::new(&["a:1", "b:1"], Reconnect::Forever);
    let first = scene.up(&address("a:1"), 1);
    let (second, _) = scene.dialled(&address("b:1"));
    scene.identified(second, 1);
    assert_eq!(
        scene.take(),
        [Action::Close {
            session: second,
            why: "duplicate"
        }]
    );
    scene.event(Event::Failed {
        session: second,
        retry: Retry::Soon,
    });
    assert_eq!(scene.take(), []);
    scene.now = SECOND * 100;
    scene.event(Event::Lost { session: first });
    let (_, after_first) = scene.dialled(&address("a:1"));
    let (again, after_second) = scene.dialled(&address("b:1"));
    assert!(after_first <= FIRST && after_second <= FIRST);
    scene.identified(again, 1);
    assert_eq!(scene.take(), [Action::Proceed { session: again }]);
}

#[test]
fn learned_nodes_wait_until_the_seeds_have_shown_where_they_lead() {
    let mut scene = Scene::new(&["a:1", "b:1"], Reconnect::Forever);
    let session = scene.up(&address("a:1"), 1);
    scene.told(session, group(1..3));
    let (learned, after) = scene.dialled(&advertised(2));
    assert_eq!(after, SEEDS_FIRST);
    let (seed, _) = scene.dialled(&address("b:1"));
    scene.identified(seed, 2);
    assert_eq!(
        scene.take(),
        [
            Action::Proceed { session: seed },
            Action::Close {
                session: learned,
                why: "unwanted"
            }
        ]
    );
}

#[test]
fn a_balancer_that_leads_elsewhere_frees_its_old_node_for_its_own_address() {
    let mut scene = Scene::new(&["lb:1"], Reconnect::Forever);
    let session = scene.up(&address("lb:1"), 1);
    scene.told(session, group(1..3));
    let second = scene.up(&advertised(2), 2);
    scene.told(second, group(1..3));
    scene.event(Event::Lost { session });
    let (again, _) = scene.dialled(&address("lb:1"));
    scene.identified(again, 2);
    assert_eq!(
        scene.actions.remove(0),
        Action::Close {
            session: again,
            why: "duplicate"
        }
    );
    scene.dialled(&advertised(1));
    assert_eq!(scene.take(), []);
    // And back to the seed when that node is lost.
    scene.event(Event::Lost { session: second });
    scene.dialled(&address("lb:1"));
}

#[test]
fn a_large_group_gets_three_tunnels_and_a_small_one_all() {
    for (nodes, tunnels) in [(2, 2), (4, 4), (5, 3), (100, 3)] {
        let mut scene = Scene::new(&["a:1"], Reconnect::Forever);
        let session = scene.up(&address("a:1"), 1);
        scene.told(session, group(1..nodes + 1));
        let dialled = scene.take().len();
        assert_eq!(dialled + 1, tunnels, "{nodes} nodes");
    }
}

#[test]
fn a_node_that_leaves_the_group_is_drained_and_one_that_moves_is_dialled_there() {
    let mut scene = Scene::new(&["a:1"], Reconnect::Forever);
    let session = scene.up(&address("a:1"), 1);
    scene.told(session, group(1..4));
    let second = scene.up(&advertised(2), 2);
    let (third, _) = scene.dialled(&advertised(3));
    let moved = Endpoint {
        node: node(3),
        address: address("10.9.9.9:1"),
    };
    scene.told(session, [group(1..2), vec![moved]].concat());
    let actions = scene.take();
    assert!(
        actions.contains(&Action::Drain {
            session: second,
            why: "unwanted"
        }),
        "{actions:?}"
    );
    assert!(
        actions.contains(&Action::Close {
            session: third,
            why: "moved"
        }),
        "{actions:?}"
    );
    assert!(
        actions.iter().any(
            |a| matches!(a, Action::Connect { address: to, .. } if *to == address("10.9.9.9:1"))
        )
    );
}

#[test]
fn an_answer_of_another_node_than_was_dialled_is_not_used() {
    let mut scene = Scene::new(&["a:1"], Reconnect::Forever);
    let session = scene.up(&address("a:1"), 1);
    scene.told(session, group(1..3));
    let (learned, _) = scene.dialled(&advertised(2));
    scene.identified(learned, 7);
    assert_eq!(
        scene.actions.remove(0),
        Action::Close {
            session: learned,
            why: "wrong-node"
        }
    );
    let (_, after) = scene.dialled(&advertised(2));
    assert!(after >= SECOND / 2, "{after:?}");
}

#[test]
fn a_drained_tunnel_goes_on_beside_the_next_one() {
    let mut scene = Scene::new(&["a:1"], Reconnect::Forever);
    let mut before = scene.up(&address("a:1"), 1);
    for round in 0..20 {
        scene.now += SECOND * 100;
        scene.event(Event::Draining { session: before });
        assert_eq!(
            scene.actions.remove(0),
            Action::Drain {
                session: before,
                why: "peer-drain"
            }
        );
        let closes = scene
            .actions
            .iter()
            .filter(|a| matches!(a, Action::Close { .. }))
            .count();
        assert_eq!(
            closes,
            usize::from(round >= MOST_DRAINING),
            "old ones have to end"
        );
        scene
            .actions
            .retain(|a| matches!(a, Action::Connect { .. }));
        before = scene.up(&address("a:1"), 1);
    }
}

#[test]
fn attempts_are_counted_when_they_are_limited() {
    let mut scene = Scene::new(&["a:1"], Reconnect::Attempts(2));
    for _ in 0..3 {
        let (session, _) = scene.dialled(&address("a:1"));
        assert_eq!(scene.take(), []);
        scene.event(Event::Failed {
            session,
            retry: Retry::Soon,
        });
    }
    assert_eq!(scene.take(), [Action::GiveUp]);
}

#[test]
fn once_means_the_first_failure_ends_it() {
    let mut scene = Scene::new(&["a:1", "b:1"], Reconnect::Never);
    let (session, _) = scene.dialled(&address("b:1"));
    scene.take();
    scene.event(Event::Failed {
        session,
        retry: Retry::Soon,
    });
    assert_eq!(scene.take(), [Action::GiveUp]);

    let mut scene = Scene::new(&["a:1"], Reconnect::Never);
    let session = scene.up(&address("a:1"), 1);
    scene.event(Event::Lost { session });
    assert_eq!(scene.take(), [Action::GiveUp]);
}

/// The world of the random test: where addresses lead, and what became of every session.
struct World {
    supervisor: Supervisor,
    seeds: Vec<usize>,
    now: Duration,
    sessions: BTreeMap<SessionId, Life>,
}

#[derive(Debug, Clone, PartialEq)]
struct Life {
    leads_to: usize,
    stage: Stage,
    /// Told to close: nothing that it reports may count.
    closed: bool,
    /// Told to drain, or drained by the node.
    draining: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Stage {
    Dialling,
    Asking,
    Hello,
    Up,
}

const NODES: usize = 3;

impl World {
    fn new(seeds: Vec<usize>) -> Self {
        let addresses: Vec<_> = (0..seeds.len())
            .map(|n| address(&format!("seed-{n}:1")))
            .collect();
        let mut supervisor = Supervisor::new("gateway", &addresses, Reconnect::Forever);
        let actions = supervisor.start();
        let mut world = Self {
            supervisor,
            seeds,
            now: Duration::ZERO,
            sessions: BTreeMap::new(),
        };
        world.carry_out(actions);
        world
    }

    fn leads_to(&self, to: &HostPort) -> usize {
        let host = to.host().to_string();
        match host.strip_prefix("seed-") {
            Some(n) => self.seeds[n.parse::<usize>().unwrap()],
            None => host.rsplit_once('.').unwrap().1.parse().unwrap(),
        }
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Connect {
                    session,
                    address,
                    after,
                } => {
                    assert!(after <= SECOND * 60, "{after:?}");
                    let leads_to = self.leads_to(&address);
                    let life = Life {
                        leads_to,
                        stage: Stage::Dialling,
                        closed: false,
                        draining: false,
                    };
                    assert_eq!(
                        self.sessions.insert(session, life),
                        None,
                        "a session is used twice"
                    );
                }
                Action::Proceed { session } => {
                    let life = self.sessions.get_mut(&session).unwrap();
                    assert_eq!((life.stage, life.closed), (Stage::Asking, false));
                    life.stage = Stage::Hello;
                }
                Action::Close { session, .. } => {
                    if let Some(life) = self.sessions.get_mut(&session) {
                        life.closed = true;
                    }
                }
                Action::Drain { session, .. } => {
                    let life = self.sessions.get_mut(&session).unwrap();
                    assert_eq!(life.stage, Stage::Up);
                    life.draining = true;
                }
                Action::GiveUp => panic!("it never gives up"),
            }
        }
    }

    fn event(&mut self, event: Event, random: u64) {
        let actions = self.supervisor.handle(self.now, random, event);
        self.carry_out(actions);
        self.check();
    }

    fn check(&self) {
        for n in 1..=NODES {
            let holders = self.sessions.values().filter(|life| {
                life.leads_to == n
                    && matches!(life.stage, Stage::Hello | Stage::Up)
                    && !life.closed
                    && !life.draining
            });
            assert!(
                holders.count() <= 1,
                "two tunnels to node {n}: {:?}",
                self.sessions
            );
        }
        let live = self
            .sessions
            .values()
            .filter(|life| !life.closed && !life.draining)
            .count();
        assert!(live <= self.seeds.len() + NODES, "{:?}", self.sessions);
        assert!(live >= 1, "nothing is tried any more");
        let draining = self
            .sessions
            .values()
            .filter(|life| life.draining && !life.closed)
            .count();
        assert!(draining <= MOST_DRAINING);
        for link in &self.supervisor.links {
            match link.state {
                State::SetAside => assert!(
                    self.supervisor
                        .links
                        .iter()
                        .any(|l| l.state.holds_node() && l.node == link.node),
                    "set aside for nobody"
                ),
                State::Ended => panic!("a link has ended"),
                state => assert!(self.sessions.contains_key(&state.session().unwrap())),
            }
        }
    }

    /// One step of one session; `bad` decides whether it goes well.
    fn step(&mut self, pick: usize, bad: u8, random: u64) {
        self.now += Duration::from_millis(random % 20_000);
        let index = pick % self.sessions.len();
        let (&session, life) = self.sessions.iter_mut().nth(index).unwrap();
        let n = life.leads_to;
        let ends = bad < 64 || life.closed;
        let event = match (life.stage, ends) {
            (Stage::Dialling, false) => {
                life.stage = Stage::Asking;
                Event::Identified {
                    session,
                    node: node(n),
                }
            }
            (Stage::Hello, false) => {
                life.stage = Stage::Up;
                Event::Up {
                    session,
                    gateway: "g1".to_owned(),
                }
            }
            (Stage::Asking, false) => return,
            (Stage::Up, false) if bad < 96 && !life.draining => {
                life.draining = true;
                Event::Draining { session }
            }
            (Stage::Up, false) => Event::Endpoints {
                session,
                endpoints: group(1..NODES + 1),
            },
            (Stage::Up, true) => {
                self.sessions.remove(&session);
                Event::Lost { session }
            }
            (_, true) => {
                self.sessions.remove(&session);
                let retry = if bad.is_multiple_of(2) {
                    Retry::Soon
                } else {
                    Retry::Later
                };
                Event::Failed { session, retry }
            }
        };
        self.event(event, random);
    }
}

proptest! {
    #[test]
    fn whatever_happens_no_node_has_two_tunnels_and_in_the_end_all_have_one(
        seeds in proptest::collection::vec(1..=NODES, 1..4),
        steps in proptest::collection::vec((any::<usize>(), any::<u8>(), any::<u64>(), 0..10_u8), 1..200),
    ) {
        let mut world = World::new(seeds);
        for (pick, bad, random, turn) in steps {
            world.step(pick, bad, random);
            // Now and then an address leads somewhere else from now on.
            if turn == 0 {
                let count = world.seeds.len();
                world.seeds[pick % count] = pick / 7 % NODES + 1;
            }
        }
        for round in 0..400 {
            world.step(round, 255, 0);
        }
        world.sessions.retain(|_, life| !life.draining && !life.closed);
        let mut reached: Vec<_> = world.sessions.values().map(|life| (life.leads_to, life.stage)).collect();
        reached.sort_by_key(|(n, _)| *n);
        let all: Vec<_> = (1..=NODES).map(|n| (n, Stage::Up)).collect();
        prop_assert_eq!(reached, all);
        prop_assert_eq!(world.supervisor.tunnels(), NODES);
    }
}
