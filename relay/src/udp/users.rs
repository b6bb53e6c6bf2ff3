//! The flows of one destination, by user.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sg_runtime::places::block;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::pace::Pace;
use super::serve::{BegunFlow, FlowOpener, NoFlow};
use super::{Direction, Fate, Peer, UserFlow, UserSocket};
use crate::{EndReason, StreamAccount};

/// Flows at a time of one address, so that one host does not take all of a destination's.
const MOST_OF_ONE_ADDRESS: u32 = 1000;
/// How long a user who was refused is not tried again.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);
/// How long flows may take to end when their port closes.
const END_LIMIT: Duration = Duration::from_millis(500);

/// The flows of one destination.
pub(super) struct Users<O> {
    opener: O,
    socket: Arc<UserSocket>,
    entries: HashMap<Peer, Entry>,
    /// Flows by where their user is: one address, or the network of an IPv6 host.
    addresses: HashMap<IpAddr, u32>,
    /// Refused users, in the order in which they may try again.
    refused: VecDeque<(Instant, Peer)>,
    tasks: JoinSet<Over>,
    pace: Pace,
    next: u64,
}

enum Entry {
    Flow {
        number: u64,
        flow: Arc<UserFlow>,
    },
    /// What the user sends is dropped for a while.
    Refused,
}

/// A flow's task has ended.
struct Over {
    peer: Peer,
    number: u64,
    /// The far side refused it, or nobody listens at the resource.
    refused: bool,
}

impl<O: FlowOpener> Users<O> {
    pub(super) fn new(opener: O, socket: Arc<UserSocket>) -> Self {
        Self {
            opener,
            socket,
            entries: HashMap::new(),
            addresses: HashMap::new(),
            refused: VecDeque::new(),
            tasks: JoinSet::new(),
            pace: Pace::new(Instant::now()),
            next: 0,
        }
    }

    /// Takes one datagram of a user: into its flow, or into a new one.
    pub(super) fn take(&mut self, now: Instant, datagram: &Bytes, peer: Peer) {
        self.forgive(now);
        match self.entries.get(&peer) {
            Some(Entry::Flow { flow, .. }) if flow.push(now, datagram) => return,
            Some(Entry::Refused) => return self.dropped(Fate::NoFlow),
            Some(Entry::Flow { .. }) | None => {}
        }
        match self.open(now, peer) {
            Ok(flow) => {
                if !flow.push(now, datagram) {
                    self.dropped(Fate::NoFlow);
                }
            }
            Err(NoFlow { fate, pause }) => {
                if pause {
                    self.pace.failed();
                    self.refuse(now, peer);
                }
                self.dropped(fate);
            }
        }
    }

    /// Waits until a flow has ended, and takes it off; for ever if there is none. Cancel safe.
    pub(super) async fn ended(&mut self) {
        match self.tasks.join_next().await {
            Some(Ok(over)) => self.take_off(&over),
            Some(Err(error)) => {
                tracing::error!(%error, "the task of a flow failed");
                self.take_off_dead();
            }
            None => std::future::pending().await,
        }
    }

    /// Ends all flows with a code.
    pub(super) async fn end_all(mut self, code: u32) {
        let end = |entry: &Entry| {
            if let Entry::Flow { flow, .. } = entry {
                flow.end(code);
            }
        };
        self.entries.values().for_each(end);
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(END_LIMIT, all).await.is_err() {
            let address = self.socket.local_addr();
            tracing::warn!(%address, "flows take long to end");
            self.tasks.shutdown().await;
        }
    }

    fn open(&mut self, now: Instant, peer: Peer) -> Result<Arc<UserFlow>, NoFlow> {
        let limit = NoFlow {
            fate: Fate::Limit,
            pause: false,
        };
        let of_address = self.addresses.get(&block(peer.user.ip())).copied();
        if of_address.is_some_and(|count| count >= MOST_OF_ONE_ADDRESS) || !self.pace.take(now) {
            return Err(limit);
        }
        let begun = self.opener.begin(&peer)?;
        let BegunFlow {
            flow,
            account,
            end,
            idle,
            held,
        } = begun;
        let meter = Arc::clone(account.meter());
        let flow = Arc::new(UserFlow::new(flow, peer, meter, account.counters(), end));
        self.next += 1;
        let number = self.next;
        self.put(peer, number, Arc::clone(&flow));
        let (served, socket) = (Arc::clone(&flow), Arc::clone(&self.socket));
        self.tasks.spawn(async move {
            let over = serve(&served, &socket, (account, idle), (peer, number)).await;
            drop(held);
            over
        });
        Ok(flow)
    }

    fn put(&mut self, peer: Peer, number: u64, flow: Arc<UserFlow>) {
        let before = self.entries.insert(peer, Entry::Flow { number, flow });
        // One that is over and whose task has not been noticed yet is counted already.
        if !matches!(before, Some(Entry::Flow { .. })) {
            *self.addresses.entry(block(peer.user.ip())).or_default() += 1;
        }
    }

    fn take_off(&mut self, over: &Over) {
        if over.refused {
            self.pace.failed();
        }
        let is_this =
            |entry: &Entry| matches!(entry, Entry::Flow { number, .. } if *number == over.number);
        if !self.entries.get(&over.peer).is_some_and(is_this) {
            return;
        }
        self.entries.remove(&over.peer);
        self.uncount(over.peer.user.ip());
        if over.refused {
            self.refuse(Instant::now(), over.peer);
        }
    }

    fn take_off_dead(&mut self) {
        let dead = |(peer, entry): (&Peer, &Entry)| match entry {
            Entry::Flow { flow, .. } if flow.is_over() => Some(*peer),
            _ => None,
        };
        let dead: Vec<_> = self.entries.iter().filter_map(dead).collect();
        for peer in dead {
            self.entries.remove(&peer);
            self.uncount(peer.user.ip());
        }
    }

    fn uncount(&mut self, address: IpAddr) {
        let place = block(address);
        if let Some(count) = self.addresses.get_mut(&place) {
            *count -= 1;
            if *count == 0 {
                self.addresses.remove(&place);
            }
        }
    }

    fn refuse(&mut self, now: Instant, peer: Peer) {
        if let Some(Entry::Flow { .. }) = self.entries.insert(peer, Entry::Refused) {
            self.uncount(peer.user.ip());
        }
        self.refused.push_back((now + REFUSED_PAUSE, peer));
    }

    /// Lets those try again whose pause is over.
    fn forgive(&mut self, now: Instant) {
        while let Some((until, peer)) = self.refused.front() {
            if *until > now {
                return;
            }
            if let Some(Entry::Refused) = self.entries.get(peer) {
                self.entries.remove(peer);
            }
            self.refused.pop_front();
        }
    }

    fn dropped(&self, fate: Fate) {
        if let Some(meter) = self.opener.meter() {
            meter.datagram(Direction::ToResource, fate);
        }
    }
}

/// Serves one flow to its end.
async fn serve(
    flow: &UserFlow,
    socket: &UserSocket,
    (mut account, idle): (StreamAccount, Duration),
    (peer, number): (Peer, u64),
) -> Over {
    let reason = flow.run(socket, idle, || account.accepted()).await;
    account.set_reason(reason.as_str());
    tracing::debug!(user = %peer.user, reason = reason.as_str(), "flow over");
    Over {
        peer,
        number,
        refused: matches!(reason, EndReason::StreamReset(_)) && !flow.is_answered(),
    }
}
