//! The dialling end of a flow: between the tunnel and a socket that is connected to the resource.

use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use sg_tunnel_io::{Flow, code};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::task::yield_now;

use super::{BATCH, Direction, Fate, inbox};
use crate::{DestinationMeter, EndReason, Ended, JoinOptions};

/// Moves datagrams until the flow is reset, its tunnel is lost, the resource says that nobody listens, or
/// somebody ends it; then resets the flow. Of `options` the idle time is not used: that is for the accepting end to say.
pub async fn join_flow(
    socket: UdpSocket,
    flow: Flow,
    meter: &DestinationMeter,
    options: JoinOptions,
) -> Ended {
    let mut batch = Vec::new();
    let joined = Joined {
        socket,
        flow,
        meter,
        options: &options,
    };
    let mut ended = pin!(options.end.ended());
    let mut refused = pin!(network_verdict(&joined.socket));
    let reason = poll_fn(|cx| {
        if let Poll::Ready(code) = ended.as_mut().poll(cx) {
            return Poll::Ready(EndReason::Ended(code));
        }
        if let Poll::Ready(code) = refused.as_mut().poll(cx) {
            return Poll::Ready(EndReason::Ended(code));
        }
        if let Poll::Ready(reason) = joined.poll_to_resource(cx, &mut batch) {
            return Poll::Ready(reason);
        }
        joined.poll_to_user(cx)
    })
    .await;
    if let EndReason::Ended(code) = reason {
        joined.flow.reset(code);
    }
    Ended {
        from_tcp: options.counters.from_tcp(),
        to_tcp: options.counters.to_tcp(),
        reason,
    }
}

struct Joined<'a> {
    socket: UdpSocket,
    flow: Flow,
    meter: &'a DestinationMeter,
    options: &'a JoinOptions,
}

impl Joined<'_> {
    fn poll_to_resource(&self, cx: &mut Context<'_>, batch: &mut Vec<Bytes>) -> Poll<EndReason> {
        match self.flow.poll_recv_many(cx, batch, BATCH) {
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(error.into()),
            Poll::Pending => {
                // An idle flow keeps nothing.
                batch.shrink_to_fit();
                return Poll::Pending;
            }
        }
        for datagram in batch.drain(..) {
            let fate = match self.send(&datagram) {
                Ok(()) => {
                    self.options.counters.add_to_tcp(datagram.len() as u64);
                    Fate::Passed
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Fate::SocketFull,
                Err(error) => match verdict(&error) {
                    Some(code) => return Poll::Ready(EndReason::Ended(code)),
                    None => Fate::NotSent,
                },
            };
            self.meter.datagram(Direction::ToResource, fate);
        }
        // There may be more, and the other direction is to have its turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn send(&self, datagram: &[u8]) -> io::Result<()> {
        self.socket.try_send(datagram).map(drop)
    }

    fn poll_to_user(&self, cx: &mut Context<'_>) -> Poll<EndReason> {
        for _ in 0..BATCH {
            if let Err(error) = ready!(self.socket.poll_recv_ready(cx)) {
                tracing::debug!(%error, "the socket of a flow cannot be read");
                return Poll::Ready(EndReason::Ended(code::INTERNAL));
            }
            match inbox::receive(|buffer| self.socket.try_recv(buffer).map(|n| (n, ()))) {
                Ok((datagram, ())) => {
                    let length = datagram.len() as u64;
                    if let Err(error) = self.flow.send(datagram) {
                        return Poll::Ready(error.into());
                    }
                    self.options.counters.add_from_tcp(length);
                    self.meter.datagram(Direction::ToUser, Fate::Passed);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    if let Some(code) = verdict(&error) {
                        return Poll::Ready(EndReason::Ended(code));
                    }
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Waits until the network says that datagrams do not reach the resource. The system reports that as an error
/// of the socket, which whoever waits for a datagram is not told of.
async fn network_verdict(socket: &UdpSocket) -> u32 {
    loop {
        if socket.ready(Interest::ERROR).await.is_err() {
            return code::INTERNAL;
        }
        match socket.take_error() {
            Ok(Some(error)) | Err(error) => {
                if let Some(code) = verdict(&error) {
                    return code;
                }
            }
            Ok(None) => {}
        }
        // Until the next one.
        let nothing: io::Result<()> =
            socket.try_io(Interest::ERROR, || Err(io::ErrorKind::WouldBlock.into()));
        debug_assert!(nothing.is_err(), "the operation always would block");
        yield_now().await;
    }
}

/// The code for what the network has said about the resource (ICMP); `None`: it says nothing about the
/// resource as such.
fn verdict(error: &io::Error) -> Option<u32> {
    use io::ErrorKind as K;
    match error.kind() {
        K::ConnectionRefused => Some(code::REFUSED),
        K::HostUnreachable | K::NetworkUnreachable | K::NetworkDown => Some(code::UNREACHABLE),
        _ => None,
    }
}
