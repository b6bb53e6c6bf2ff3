//! The node's side of configuration and status: a link to every known control plane, one of which is the
//! source of configuration.
//!
//! When the source is lost, another link takes over at once, with what the node has. All get the status.
//! Nothing here is on the path of a user's byte or of a client's connection: if no control plane is there, the
//! node goes on with what it has.

mod certificates;
pub(crate) mod channel;
mod configuration;
mod desired;
mod edits;
mod link;
mod own;
mod resync;
mod status;
mod up;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sg_model::{HostPort, NodeConfig};
use sg_proto::node::{Hello, NodeMessage, Subscribe, Welcome, control_message, node_message};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::certificates::Question;
use crate::edits::Edit;
use crate::node::Node;
use crate::reconcile::Applied;
use certificates::Asked;
use configuration::Pending;
use desired::Desired;
use edits::Edits;
use link::{Dialer, LinkEvent, LinkId};
pub(crate) use own::Own;
use resync::Resync;
use up::Up;

/// Links at a time.
const MOST_LINKS: usize = 4;
/// Events of all links that may wait; more make the links wait.
const EVENTS: usize = 64;
/// Least time between two statuses, and most.
const STATUS_LEAST: Duration = Duration::from_millis(200);
/// Least time before a status that says that a configuration is applied: somebody may wait for it.
const STATUS_APPLIED: Duration = Duration::from_millis(20);
const STATUS_MOST: Duration = Duration::from_secs(2);
/// How often streams and bytes are looked at for news.
const LOOK: Duration = Duration::from_millis(250);

/// What the control task starts with.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) node: Arc<Node>,
    /// The node's certificate, which control planes are shown too.
    pub(crate) own: Own,
    pub(crate) hello: Hello,
    /// Control planes named by the operator.
    pub(crate) configured: Vec<HostPort>,
    /// Where the others are remembered.
    pub(crate) known_file: PathBuf,
    /// Written here only.
    pub(crate) desired: watch::Sender<Arc<NodeConfig>>,
    pub(crate) applied: watch::Receiver<Arc<Applied>>,
    /// Clients that want certificates.
    pub(crate) questions: mpsc::Receiver<Question>,
    /// Clients that want to change their lists.
    pub(crate) edits: mpsc::Receiver<Edit>,
}

/// Control planes remembered from an earlier run.
pub(crate) fn known(file: &std::path::Path) -> Vec<HostPort> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let addresses = text.lines().filter_map(|line| line.parse().ok());
    addresses.take(MOST_LINKS).collect()
}

impl Control {
    /// Runs until `stop` is cancelled.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let (events, mut queue) = mpsc::channel(EVENTS);
        let mut applied = self.applied.clone();
        let mut tunnels = self.node.registry.changes();
        let draining = self.node.shutdown.draining();
        let learned = known(&self.known_file);
        let desired = Desired::new(Arc::clone(&self.desired.borrow()));
        let (_, none) = mpsc::channel(1);
        let mut questions = std::mem::replace(&mut self.questions, none);
        let (_, none) = mpsc::channel(1);
        let mut edits = std::mem::replace(&mut self.edits, none);
        let mut hub = Hub {
            desired,
            control: self,
            events,
            links: HashMap::new(),
            tasks: JoinSet::new(),
            next_link: 0,
            aliases: HashMap::new(),
            learned,
            source: None,
            pending: None,
            resync: Resync::new(),
            news: News::Some,
            last_status: Instant::now(),
            activity: (0, 0),
            asked: Asked::default(),
            edits: Edits::default(),
        };
        hub.refresh_links();
        let mut look = interval(LOOK);
        let mut drain_told = false;
        loop {
            let next_status = hub.next_status();
            let next_resync = until(hub.resync.due());
            // Every arm can be cancelled without loss.
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some((link, event)) = queue.recv() => hub.handle(link, event).await,
                Ok(()) = applied.changed() => {
                    hub.acknowledge_applied();
                    hub.news = News::Applied;
                }
                Ok(()) = tunnels.changed() => hub.note(News::Some),
                Some(question) = questions.recv() => hub.ask(question),
                Some(edit) = edits.recv() => hub.edit(edit),
                Some(ended) = hub.tasks.join_next_with_id() => hub.link_ended(ended),
                () = draining.cancelled(), if !drain_told => {
                    drain_told = true;
                    hub.note(News::Some);
                }
                _ = look.tick() => {
                    hub.asked.sweep();
                    hub.edits.sweep();
                    hub.renew();
                    hub.tell_owed();
                    let activity = status::activity(&hub.control.node);
                    if std::mem::replace(&mut hub.activity, activity) != activity {
                        hub.note(News::Some);
                    }
                }
                () = next_resync => hub.ask_for_everything(),
                () = sleep_until(next_status) => hub.send_status(),
            }
        }
    }
}

struct Hub {
    control: Control,
    desired: Desired,
    events: mpsc::Sender<(LinkId, LinkEvent)>,
    links: HashMap<LinkId, Link>,
    tasks: JoinSet<()>,
    next_link: LinkId,
    /// Addresses that turned out to lead to a control plane that has a link already.
    aliases: HashMap<HostPort, String>,
    /// Addresses that control planes told of.
    learned: Vec<HostPort>,
    source: Option<LinkId>,
    pending: Option<Pending>,
    resync: Resync,
    news: News,
    last_status: Instant,
    activity: (usize, u64),
    asked: Asked,
    edits: Edits,
}

/// What there is to report since the last status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum News {
    None,
    Some,
    Applied,
}

struct Link {
    address: HostPort,
    task: AbortHandle,
    up: Option<Up>,
}

impl Hub {
    async fn handle(&mut self, id: LinkId, event: LinkEvent) {
        if !self.links.contains_key(&id) {
            return;
        }
        match event {
            LinkEvent::Up(welcome, outgoing) => self.up(id, welcome, outgoing).await,
            LinkEvent::Down => self.down(id),
            LinkEvent::Message(message) => match message {
                control_message::Message::Snapshot(part) => self.snapshot(id, part),
                control_message::Message::Delta(delta) => self.delta(id, delta),
                control_message::Message::Certificate(said) => self.certificate(id, said),
                control_message::Message::Trust(trust) => self.trust(trust),
                control_message::Message::AclEditAnswer(said) => self.edit_answered(id, said),
                control_message::Message::Heartbeat(beat) => self.learn(beat.control_planes).await,
                control_message::Message::Welcome(welcome) => {
                    self.learn(welcome.control_planes).await;
                }
            },
        }
    }

    async fn up(&mut self, id: LinkId, welcome: Welcome, outgoing: mpsc::Sender<NodeMessage>) {
        let twin = self.links.iter().any(|(other, link)| {
            *other != id
                && link
                    .up
                    .as_ref()
                    .is_some_and(|up| up.control_plane == welcome.control_plane_id)
        });
        if twin && let Some(link) = self.links.remove(&id) {
            tracing::debug!(address = %link.address, id = welcome.control_plane_id, "another address of a control plane that is connected");
            link.task.abort();
            self.aliases.insert(link.address, welcome.control_plane_id);
            return;
        }
        if let Some(link) = self.links.get_mut(&id) {
            link.up = Some(Up::new(welcome.control_plane_id, outgoing));
        }
        self.learn(welcome.control_planes).await;
        if self.source.is_none() {
            self.subscribe(id);
        }
        self.status_to(&[id]);
        self.send_edits();
    }

    fn down(&mut self, id: LinkId) {
        self.asked.forget(id);
        self.resync.lost(id);
        self.edits.lost(id);
        if let Some(link) = self.links.get_mut(&id) {
            link.up = None;
        }
        if self.source == Some(id) {
            self.source = None;
            self.pending = None;
            self.desired.forget_parts();
            let mut up = self.links.iter().filter(|(_, link)| link.up.is_some());
            if let Some(next) = up.next().map(|(id, _)| *id) {
                self.subscribe(next);
            } else {
                self.control.node.metrics.control_plane_connected.set(0);
                tracing::warn!("no control plane is connected; serving what is there");
            }
        }
        self.refresh_links();
        self.send_edits();
    }

    /// Makes a link the source of configuration.
    fn subscribe(&mut self, id: LinkId) {
        let config = self.desired.config();
        let subscribe = Subscribe {
            epoch: config.epoch(),
            revision: config.revision(),
            digest: config.digest(),
        };
        self.source = Some(id);
        self.control.node.metrics.control_plane_connected.set(1);
        self.send(id, node_message::Message::Subscribe(subscribe));
    }

    /// Sends what must not be lost. A link whose queue is full is stuck: it is connected anew.
    fn send(&mut self, id: LinkId, message: node_message::Message) {
        let Some(link) = self.links.get(&id) else {
            return;
        };
        let message = NodeMessage {
            message: Some(message),
        };
        let sent = link
            .up
            .as_ref()
            .is_some_and(|up| up.outgoing.try_send(message).is_ok());
        if !sent {
            tracing::warn!(control_plane = %link.address, "control plane takes nothing; connecting anew");
            self.restart(id);
        }
    }

    fn note(&mut self, news: News) {
        self.news = self.news.max(news);
    }

    fn next_status(&self) -> Instant {
        self.last_status
            + match self.news {
                News::None => STATUS_MOST,
                News::Some => STATUS_LEAST,
                News::Applied => STATUS_APPLIED,
            }
    }

    fn send_status(&mut self) {
        let up: Vec<_> = self.links.keys().copied().collect();
        self.status_to(&up);
        self.news = News::None;
        self.last_status = Instant::now();
    }

    /// Tells how destinations fare, and then the rest. A status may be lost: the next one says the same and more.
    fn status_to(&mut self, ids: &[LinkId]) {
        let applied = Arc::clone(&self.control.applied.borrow());
        let issuer = self.control.own.issuer();
        let mut status = None;
        for id in ids {
            let Some(up) = self.links.get_mut(id).and_then(|link| link.up.as_mut()) else {
                continue;
            };
            if !up.tell_states(&applied) {
                continue;
            }
            let status = status
                .get_or_insert_with(|| status::build(&self.control.node, &applied, issuer))
                .clone();
            up.tell(node_message::Message::Status(status));
        }
    }

    /// Goes on where there was no room.
    fn tell_owed(&mut self) {
        let owed = self
            .links
            .iter()
            .filter(|(_, link)| link.up.as_ref().is_some_and(Up::owes));
        let owed: Vec<_> = owed.map(|(id, _)| *id).collect();
        self.status_to(&owed);
    }

    /// Takes note of all control planes that there are.
    async fn learn(&mut self, addresses: Vec<String>) {
        let mut learned: Vec<HostPort> = addresses.iter().filter_map(|a| a.parse().ok()).collect();
        learned.sort();
        learned.dedup();
        learned.truncate(MOST_LINKS);
        if learned.is_empty() || learned == self.learned {
            return;
        }
        let text: String = learned
            .iter()
            .map(|address| format!("{address}\n"))
            .collect();
        self.learned = learned;
        let file = self.control.known_file.clone();
        let written = tokio::task::spawn_blocking(move || {
            sg_runtime::files::write_atomic(&file, text.as_bytes(), sg_runtime::files::PRIVATE)
        });
        if !matches!(written.await, Ok(Ok(()))) {
            tracing::warn!("the addresses of the control planes could not be written down");
        }
        self.refresh_links();
    }

    /// Starts the links that are missing and ends those to addresses that nobody names any more.
    fn refresh_links(&mut self) {
        let connected: HashSet<_> = self
            .links
            .values()
            .filter_map(|link| link.up.as_ref())
            .map(|up| up.control_plane.clone())
            .collect();
        self.aliases.retain(|_, of| connected.contains(of));
        let mut wanted = self.control.configured.clone();
        wanted.extend(self.learned.iter().cloned());
        wanted.retain(|address| !self.aliases.contains_key(address));
        let named: HashSet<_> = wanted.iter().cloned().collect();
        self.links.retain(|_, link| {
            let keep = link.up.is_some() || named.contains(&link.address);
            if !keep {
                link.task.abort();
            }
            keep
        });
        for address in wanted {
            let there = self.links.values().any(|link| link.address == address);
            if !there && self.links.len() < MOST_LINKS * 2 {
                self.start_link(address);
            }
        }
    }

    fn start_link(&mut self, address: HostPort) {
        self.next_link += 1;
        let id = self.next_link;
        let dialer = Dialer {
            tls: self.control.own.links(),
            hello: self.control.hello.clone(),
        };
        let run = link::run(id, address.clone(), dialer, self.events.clone());
        let task = self.tasks.spawn(run);
        self.links.insert(
            id,
            Link {
                address,
                task,
                up: None,
            },
        );
    }

    fn restart(&mut self, id: LinkId) {
        self.down(id);
        if let Some(link) = self.links.remove(&id) {
            link.task.abort();
            self.start_link(link.address);
        }
    }

    /// A link's task ends only when it is aborted; a panic must not cost the node its control plane.
    fn link_ended(&mut self, ended: Result<(tokio::task::Id, ()), tokio::task::JoinError>) {
        let task = match &ended {
            Ok((task, ())) => *task,
            Err(error) => error.id(),
        };
        let link = self.links.iter().find(|(_, l)| l.task.id() == task);
        if let Some(id) = link.map(|(id, _)| *id) {
            tracing::error!(
                "the task of a control plane's link ended by itself; starting it again"
            );
            self.restart(id);
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
