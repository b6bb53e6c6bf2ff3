//! Opens the streams of one user's connection: decides, chooses a tunnel, tries the next one when it cannot.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use sg_model::{AclVersion, CanonicalPath, Destination, DestinationId, Gateway};
use sg_proto::tunnel::StreamAnswer;
use sg_relay::compress::Grant;
use sg_relay::{Opened, Opener, Wish};
use sg_tunnel_io::{OpenError, TunnelStream, code};
use tokio::time::{Instant, timeout, timeout_at};

use super::{Asked, Refusal, Story, metadata, permit};
use crate::balancers::Ends;
use crate::node::{Node, OpeningPlace};
use crate::tunnels::{Choice, Health, Session};

/// What the node waits beyond the connect timeout that the client keeps.
const ANSWER_GRACE: Duration = Duration::from_secs(5);
/// How often an unanswered open looks whether its tunnel is suspect.
const SUSPECT_CHECK: Duration = Duration::from_millis(100);

/// How waiting for a tunnel went.
enum Wait {
    /// There is one.
    Over,
    /// There is none.
    InVain,
    /// Too many wait already.
    NoRoom,
}

/// Opens the streams of one user's connection.
pub(super) struct UserOpener {
    pub(super) node: Arc<Node>,
    pub(super) destination: DestinationId,
    pub(super) user: SocketAddr,
    pub(super) local: Option<SocketAddr>,
    pub(super) story: Arc<Story>,
    /// Counted until its first stream is open.
    pub(super) opening: Mutex<Option<OpeningPlace>>,
}

impl Opener for UserOpener {
    async fn open(&self, wish: Wish) -> Result<Opened, Refusal> {
        let config = self.node.config();
        let destination = config
            .destination(&self.destination)
            .ok_or(code::word(code::NO_DESTINATION))?;
        let gateway = config
            .gateway(&destination.gateway)
            .ok_or(code::word(code::NO_DESTINATION))?;
        let connection = Connection {
            node: &self.node,
            gateway,
            destination,
            ends: Ends {
                user: self.user,
                local: self.local,
            },
            story: &self.story,
        };
        let acl = permit(
            &self.node,
            gateway,
            destination,
            &self.story.registered,
            self.user,
            None,
        )?;
        // Offered only if there is room for one more.
        let compression = Grant::take(destination.compression);
        let asked = Asked {
            wish,
            compression: compression
                .as_ref()
                .map(Grant::compression)
                .unwrap_or_default(),
        };
        let (stream, choice) = connection.open_somewhere(acl, &asked).await?;
        let session = choice.session();
        self.story
            .account()
            .opened(Arc::clone(&session.client_id), &session.bytes);
        self.story.carried_by(choice);
        let opening = self.opening.lock().map(|mut place| place.take());
        drop(opening);
        let answer = StreamAnswer::decode(stream.answer().clone()).unwrap_or_default();
        Ok(Opened {
            compression: compression
                .filter(|grant| answer.compression == grant.compression().as_str()),
            alpn: (!answer.alpn.is_empty()).then_some(answer.alpn),
            stream,
        })
    }

    fn permit_path(&self, path: &CanonicalPath) -> Result<(), Refusal> {
        let config = self.node.config();
        let destination = config.destination(&self.destination);
        let gateway = destination.and_then(|d| config.gateway(&d.gateway));
        let Some((destination, gateway)) = destination.zip(gateway) else {
            return Err(code::word(code::NO_DESTINATION));
        };
        permit(
            &self.node,
            gateway,
            destination,
            &self.story.registered,
            self.user,
            Some(path),
        )
        .map(drop)
    }
}

struct Connection<'a> {
    node: &'a Node,
    gateway: &'a Gateway,
    destination: &'a Destination,
    ends: Ends,
    story: &'a Story,
}

impl Connection<'_> {
    /// Tries tunnels of the gateway until one has opened the stream, or the resource refused.
    async fn open_somewhere(
        &self,
        acl: AclVersion,
        asked: &Asked,
    ) -> Result<(TunnelStream, Choice), Refusal> {
        let metadata = metadata(self.destination, self.ends, acl, asked);
        let mut tried = Vec::new();
        let mut held = false;
        let mut last: Option<Refusal> = None;
        loop {
            let mut chosen = self.choose(Health::Good, &tried);
            if chosen.is_none() && !held {
                held = true;
                match Box::pin(self.hold(&tried)).await {
                    Wait::Over => continue,
                    Wait::InVain => {}
                    Wait::NoRoom => last = last.or(Some("hold-full")),
                }
            }
            if chosen.is_none() {
                // A tunnel that is slow to answer is better than none.
                chosen = self.choose(Health::Any, &tried);
            }
            let Some(choice) = chosen else {
                return Err(last.unwrap_or("no-client"));
            };
            self.story
                .account()
                .set_client(Arc::clone(&choice.session().client_id));
            match self.open_on(choice.session(), &metadata, &tried).await {
                Ok(stream) => return Ok((stream, choice)),
                Err(error) if error.retry_elsewhere() => {
                    tracing::debug!(client = %choice.session().client_id, %error, "stream not opened, trying another tunnel");
                    last = Some(match error {
                        OpenError::Closed(_) => "tunnel-lost",
                        _ => code::word(error.code()),
                    });
                    tried.push(choice.session().number);
                }
                Err(error) => return Err(code::word(error.code())),
            }
        }
    }

    fn choose(&self, health: Health, tried: &[u64]) -> Option<Choice> {
        let gateway = &self.gateway.id;
        self.node
            .registry
            .choose(gateway, self.gateway.policy, health, tried)
    }

    /// Opens the stream on one tunnel, within the connect timeout and a grace, and gives it up for another
    /// tunnel when this one returns nothing.
    async fn open_on(
        &self,
        session: &Session,
        metadata: &Bytes,
        tried: &[u64],
    ) -> Result<TunnelStream, OpenError> {
        let deadline = Instant::now() + self.destination.connect_timeout + ANSWER_GRACE;
        // Dropped when it is given up: that resets the stream, so that a late answer opens nothing.
        let open = session.tunnel.open(metadata.clone());
        tokio::pin!(open);
        loop {
            let check = deadline.min(Instant::now() + SUSPECT_CHECK);
            if let Ok(opened) = timeout_at(check, &mut open).await {
                return opened;
            }
            if check == deadline {
                let code = code::CONNECT_TIMEOUT;
                return Err(OpenError::Reset { code });
            }
            let registry = &self.node.registry;
            if (session.tunnel.is_suspect() || session.tunnel.is_detached())
                && registry.has_other(&self.gateway.id, session.number, tried)
            {
                let code = code::REFUSED_RETRY;
                return Err(OpenError::Reset { code });
            }
        }
    }

    /// Waits, unread, for a tunnel to come (back), if the gateway had one lately and there is room to wait.
    async fn hold(&self, tried: &[u64]) -> Wait {
        let registry = &self.node.registry;
        if !registry.had_tunnel_lately(&self.gateway.id) {
            return Wait::InVain;
        }
        let Some(held) = self.node.hold.enter() else {
            if let Some(unlogged) = self.node.full_lines.may_log(Instant::now()) {
                tracing::warn!(gateway = %self.gateway.name, unlogged, "too many connections wait for a client");
            }
            return Wait::NoRoom;
        };
        let available = registry.available(&self.gateway.id, tried);
        match timeout(held.limit(), available).await {
            Ok(()) => Wait::Over,
            Err(_) => Wait::InVain,
        }
    }
}
