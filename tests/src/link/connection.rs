//! One connection of a link: both its directions, and the ways in which it ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use super::lane::run;
use super::{Cut, Direction, Door, End, State, When};
use crate::bytes::Sequence;

/// How long the target may take to answer.
const CONNECT: Duration = Duration::from_secs(10);

/// How long a side that got a FIN may go on sending before it is reset.
const LINGER: Duration = Duration::from_secs(5);

/// Receive buffer of a shaped connection: what lies in it waits outside of the link's own queue.
const RECEIVE_BUFFER: u32 = 32 * 1024;

/// Segment size of the sockets, as on Ethernet. With that of the loopback interface, 64 KiB, a small
/// receive buffer would hold less than one segment, and senders would wait for their timers.
pub(super) const SEGMENT: u32 = 1448;

/// Counts a connection while it lives.
struct Counted<'a>(&'a State);

impl<'a> Counted<'a> {
    fn new(state: &'a State) -> Self {
        state.open.fetch_add(1, Ordering::Relaxed);
        Self(state)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Carries a connection from its accepting to its end.
pub(super) async fn carry(near: TcpStream, state: Arc<State>, number: u64) {
    let _counted = Counted::new(&state);
    // A command that comes from here on is for this connection too.
    let mut commands = state.cut.subscribe();
    let door = *state.door.borrow();
    if let Door::Shut(how) = door {
        end(near, None, how).await;
        return;
    }
    let cut = {
        let mut awaiting = state.awaiting();
        awaiting.next.pop_front().or(awaiting.each)
    };
    let mut ends = Ends { near, far: None };
    let carried = carry_both(&mut ends, &state, number, cut);
    let how = tokio::select! {
        // Natural ends first: a command that comes after them changes nothing.
        biased;
        ended = carried => match ended {
            Ok(()) => return,
            Err(how) => how,
        },
        how = after(cut) => how,
        changed = commands.changed() => match changed {
            Ok(()) => commands.borrow().1,
            Err(_) => return,
        },
    };
    end(ends.near, ends.far, how).await;
}

/// The two sockets of a connection.
struct Ends {
    near: TcpStream,
    far: Option<TcpStream>,
}

/// Answers when the time of a cut has come; never for other cuts.
async fn after(cut: Option<Cut>) -> End {
    match cut {
        Some(Cut {
            when: When::After(time),
            how,
        }) => {
            sleep(time).await;
            how
        }
        _ => std::future::pending().await,
    }
}

async fn carry_both(
    ends: &mut Ends,
    state: &State,
    number: u64,
    cut: Option<Cut>,
) -> Result<(), End> {
    let [up, down] = &state.lanes;
    up.passing().await;
    down.passing().await;
    if up.shape().rate.is_some() {
        // Only the limit on what lies in the system's buffer is missed when this fails.
        drop(shrink(&ends.near));
    }
    let far = connect(state).await.map_err(|_| End::Reset)?;
    let far = ends.far.insert(far);
    let both = [&ends.near, &*far];
    both.map(|socket| socket.set_nodelay(true))
        .into_iter()
        .collect::<std::io::Result<()>>()
        .map_err(|_| End::Reset)?;
    let bytes = |direction| match cut {
        Some(Cut {
            when: When::Bytes(of, bytes),
            how,
        }) if of == direction => Some((bytes, how)),
        _ => None,
    };
    let (near_read, near_write) = ends.near.split();
    let (far_read, far_write) = far.split();
    let random = |salt| Sequence::new(state.seed.wrapping_add(2 * number + salt));
    let upward = run(up, near_read, far_write, bytes(Direction::Up), random(0));
    let downward = run(
        down,
        far_read,
        near_write,
        bytes(Direction::Down),
        random(1),
    );
    tokio::try_join!(upward, downward).map(drop)
}

/// Makes the system's receive buffer small.
fn shrink(stream: &TcpStream) -> std::io::Result<()> {
    SockRef::from(stream).set_recv_buffer_size(RECEIVE_BUFFER as usize)
}

async fn connect(state: &State) -> std::io::Result<TcpStream> {
    let socket = match state.target.is_ipv4() {
        true => TcpSocket::new_v4()?,
        false => TcpSocket::new_v6()?,
    };
    if state.lane(Direction::Down).shape().rate.is_some() {
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        SockRef::from(&socket).set_tcp_mss(SEGMENT)?;
    }
    timeout(CONNECT, socket.connect(state.target)).await?
}

/// Ends what is there of a connection, both sides alike.
async fn end(near: TcpStream, far: Option<TcpStream>, how: End) {
    let sides = [Some(near), far].into_iter().flatten();
    match how {
        End::Reset => {
            for side in sides {
                // Fails only for a socket that is closed already.
                drop(side.set_zero_linger());
            }
        }
        End::Fin => {
            let mut closing = tokio::task::JoinSet::new();
            for side in sides {
                closing.spawn(close(side));
            }
            while closing.join_next().await.is_some() {}
        }
        End::Silence => {
            let _held: Vec<TcpStream> = sides.collect();
            std::future::pending().await
        }
    }
}

/// FIN, and no reset behind it: a socket closed with bytes unread would send one.
async fn close(mut side: TcpStream) {
    if side.shutdown().await.is_err() {
        return;
    }
    let mut buffer = vec![0; 16 * 1024];
    let rest = async { while matches!(side.read(&mut buffer).await, Ok(count) if count > 0) {} };
    // A side that goes on sending gets its reset in the end.
    drop(timeout(LINGER, rest).await);
}
