//! One session: an attempt to connect to a node and, if it succeeds, the tunnel until its end.
//!
//! A session does what it is ordered to and reports what happens; whether it should exist is decided
//! by the [`crate::supervisor`]. It ends by itself only when its tunnel does. A connection that is lost under the tunnel
//! is the session's own affair (`resume`), as long as the tunnel may be resumed.

pub mod carried;
pub mod establish;
mod exchange;
mod resume;
mod serving;

use std::sync::Arc;
use std::time::Duration;

use sg_model::{Acl, HostPort, NodeId};
use sg_proto::tunnel::{self as wire, Accepted};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use self::establish::{ConnectError, NodeStream};
use self::serving::{Served, Serving};
use crate::acl::Offer;
use crate::gateway::GatewayContext;
use crate::supervisor::{Endpoint, Retry, SessionId};

/// What a session is ordered to do. Later orders are stronger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Order {
    /// Connect, and wait before the hello.
    Hold,
    /// Say hello and serve.
    Proceed,
    /// Take no new streams; end when the present ones have.
    Drain,
    /// End now.
    Close,
}

/// What a session reports while it lasts.
#[derive(Debug)]
pub enum Report {
    /// The handshake proved who answers; the session waits for [`Order::Proceed`].
    Identified(NodeId),
    /// The node accepted the hello.
    Up {
        /// The gateway's id.
        gateway: String,
        /// The node's name, for people.
        node_name: String,
    },
    /// The node takes no new streams.
    Draining,
    /// The connection is lost; the session is on its way back to its node, and takes no streams until it is there.
    Detached,
    /// The tunnel goes on over a new connection.
    Resumed {
        /// How long it was detached.
        after: Duration,
    },
    /// The nodes of the group.
    Endpoints(Vec<Endpoint>),
}

/// How a session ended.
#[derive(Debug)]
pub enum SessionEnd {
    /// It was never up.
    Failed {
        /// Whether another attempt can succeed soon.
        retry: Retry,
        /// One word.
        reason: &'static str,
        /// A sentence.
        text: String,
    },
    /// It was up.
    Lost {
        /// One word.
        reason: &'static str,
        /// A sentence.
        text: String,
    },
}

/// What a session is to do.
#[derive(Debug)]
pub struct Session {
    /// Its number.
    pub id: SessionId,
    /// Which of several tunnels to each node it belongs to.
    pub connection: u32,
    /// Whom to dial.
    pub address: HostPort,
    /// How long to wait first.
    pub after: Duration,
    /// The gateway that it is for.
    pub gateway: Arc<GatewayContext>,
    /// Orders from whoever owns it; ends the session when dropped.
    pub orders: watch::Receiver<Order>,
    /// Where reports go.
    pub reports: mpsc::Sender<(u32, SessionId, Report)>,
}

impl Session {
    /// Runs the session to its end.
    pub async fn run(self) -> SessionEnd {
        let connected = tokio::select! {
            biased;
            () = ordered(self.orders.clone(), |order| order >= Order::Drain) => Err(ConnectError::Unwanted),
            connected = self.connect() => connected,
        };
        match connected {
            Ok((stream, node, accepted)) => self.serve(stream, node, accepted).await,
            Err(error) => failed(&error),
        }
    }

    async fn connect(&self) -> Result<(NodeStream, NodeId, Accepted), ConnectError> {
        sleep(self.after).await;
        let shared = &self.gateway.shared;
        let (mut stream, node) =
            establish::connect(&self.address, &shared.trust.tls(), shared.proxy.as_ref()).await?;
        self.report(Report::Identified(node.clone())).await;
        // The owner answers every report, and its end is an order to close.
        ordered(self.orders.clone(), |order| order >= Order::Proceed).await;
        let hello = self.gateway.hello(self.connection);
        match establish::hello(&mut stream, &node, &hello).await {
            Ok(accepted) => return Ok((stream, node, accepted)),
            Err(error) if self.gateway.turns_to_token(&hello, &error) => {}
            Err(error) => return Err(self.gateway.renews_token(&hello, error).await),
        }
        // The same attempt, for it is the same client that wants in: with its token.
        let (mut stream, again) =
            establish::connect(&self.address, &shared.trust.tls(), shared.proxy.as_ref()).await?;
        if again != node {
            return Err(ConnectError::Identity);
        }
        let hello = self.gateway.hello(self.connection);
        match establish::hello(&mut stream, &node, &hello).await {
            Ok(accepted) => Ok((stream, node, accepted)),
            Err(error) => Err(self.gateway.renews_token(&hello, error).await),
        }
    }

    /// Serves tunnel after tunnel: when a node no longer knows the one that the client comes back to, it offers another on
    /// the same connection.
    async fn serve(self, stream: NodeStream, node: NodeId, accepted: Accepted) -> SessionEnd {
        let mut next = (stream, accepted);
        loop {
            let (stream, accepted) = next;
            let served = match Serving::begin(&self, &node, stream, accepted).await {
                Ok(served) => served,
                Err(error) => return failed(&error),
            };
            next = match served {
                Served::Ended(end) => return end,
                Served::Anew(anew) => *anew,
            };
        }
    }

    /// Takes over a list that the node sent.
    fn offer(&self, acl: &wire::Acl) {
        let acl = match Acl::try_from(acl) {
            Ok(acl) => acl,
            Err(error) => {
                tracing::error!(gateway = %self.gateway.gateway, address = %self.address, %error,
                    "the node sent an access control list that this version cannot understand; everything is denied. Update this client");
                Acl::deny_all(acl.version())
            }
        };
        let version = acl.version;
        match self.gateway.acl.offer(acl) {
            Offer::Applied => {
                let summary = self.gateway.acl.policy().summary();
                tracing::info!(gateway = %self.gateway.gateway, epoch = version.epoch,
                    generation = version.generation, summary, "access control list in force");
            }
            Offer::Same => {}
            Offer::Older => tracing::debug!(gateway = %self.gateway.gateway, ?version,
                "the node has an older access control list; the present one stays"),
            Offer::Conflict => tracing::error!(gateway = %self.gateway.gateway, ?version,
                "two nodes have different access control lists of one version; the first one stays"),
        }
    }

    async fn report(&self, report: Report) {
        if self
            .reports
            .send((self.connection, self.id, report))
            .await
            .is_err()
        {
            // The owner is gone, and so is its end of the orders: this session is about to end.
            tracing::debug!(address = %self.address, "nobody takes the report of a session");
        }
    }
}

fn failed(error: &ConnectError) -> SessionEnd {
    SessionEnd::Failed {
        retry: error.retry(),
        reason: error.reason(),
        text: error.text(),
    }
}

/// Waits for an order of at least some strength; the end of whoever gives orders is the strongest.
async fn ordered(mut orders: watch::Receiver<Order>, enough: impl FnMut(Order) -> bool) {
    let mut enough = enough;
    if orders.wait_for(|order| enough(*order)).await.is_err() {
        tracing::trace!("the owner of a session is gone");
    }
}

fn read_endpoints(endpoints: &wire::Endpoints) -> Vec<Endpoint> {
    let read = |endpoint: &wire::Endpoint| {
        let node = NodeId::new(endpoint.node_id.as_str()).ok()?;
        let address = endpoint.address.parse().ok()?;
        Some(Endpoint { node, address })
    };
    endpoints.endpoints.iter().filter_map(read).collect()
}
