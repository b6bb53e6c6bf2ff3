//! One direction: `Lane` is what all connections share of it, `run` carries the bytes of one.
//!
//! A connection reads pieces, gives each the time at which it arrives, and delivers them at that
//! time. Pieces between the two are bounded in bytes by the shape, and in number.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::End;
use super::shape::{Sender, Shape};
use crate::bytes::Sequence;

/// Pieces of one connection and direction under way.
const PIECES: usize = 4096;

/// One direction of the link.
#[derive(Debug)]
pub(super) struct Lane {
    state: watch::Sender<LaneState>,
    sender: Mutex<Sender>,
    delivered: AtomicU64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct LaneState {
    pub(super) shape: Shape,
    stalled: bool,
}

/// What arrives.
enum Piece {
    Bytes(Vec<u8>),
    Fin,
    End(End),
}

impl Lane {
    pub(super) fn new(shape: Shape) -> Self {
        Self {
            state: watch::Sender::new(LaneState {
                shape,
                stalled: false,
            }),
            sender: Mutex::new(Sender::new()),
            delivered: AtomicU64::new(0),
        }
    }

    pub(super) fn set_shape(&self, shape: Shape) {
        self.state.send_modify(|state| state.shape = shape);
    }

    pub(super) fn set_delay(&self, delay: Duration) {
        self.state.send_modify(|state| state.shape.delay = delay);
    }

    pub(super) fn set_stalled(&self, stalled: bool) {
        self.state.send_modify(|state| state.stalled = stalled);
    }

    pub(super) fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    pub(super) fn shape(&self) -> Shape {
        self.state.borrow().shape
    }

    /// Waits while it is stalled.
    pub(super) async fn passing(&self) {
        let mut state = self.state.subscribe();
        // The sender of the states is this value, so it is there.
        drop(state.wait_for(|state| !state.stalled).await);
    }

    /// Sends; answers when the last of these bytes has left.
    fn send(&self, shape: &Shape, bytes: usize) -> Instant {
        let mut sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        sender.send(Instant::now().into_std(), shape, bytes).into()
    }
}

/// Carries one direction of one connection to its FIN, or to the end that it answers: that of
/// `cut`, which comes after so many bytes, or a reset that came from either side.
pub(super) async fn run(
    lane: &Lane,
    from: ReadHalf<'_>,
    to: WriteHalf<'_>,
    cut: Option<(u64, End)>,
    random: Sequence,
) -> Result<(), End> {
    let (pieces, arriving) = mpsc::channel(PIECES);
    let (under_way, _) = watch::channel(0_usize);
    let (sizes, jitter) = (random.clone(), random);
    let read = take(lane, from, cut, jitter, &under_way, pieces);
    let write = deliver(lane, to, sizes, &under_way, arriving);
    tokio::pin!(read, write);
    tokio::select! {
        // The rest is under way, or nobody takes it any more.
        () = &mut read => (&mut write).await,
        ended = &mut write => ended,
    }
}

async fn take(
    lane: &Lane,
    mut from: ReadHalf<'_>,
    cut: Option<(u64, End)>,
    mut random: Sequence,
    under_way: &watch::Sender<usize>,
    pieces: mpsc::Sender<(Instant, Piece)>,
) {
    let mut room = under_way.subscribe();
    let mut left = cut.map_or(u64::MAX, |(bytes, _)| bytes);
    let mut last = Instant::now();
    let mut buffer = Vec::new();
    loop {
        let shape = lane.shape();
        let most = usize::try_from(left).unwrap_or(usize::MAX);
        let piece = match cut {
            Some((_, how)) if left == 0 => Piece::End(how),
            _ => {
                // Fails only when this connection is being dropped.
                let Ok(held) = room
                    .wait_for(|held| *held < shape.window())
                    .await
                    .map(|held| *held)
                else {
                    return;
                };
                let space = shape.window() - held;
                buffer.resize(shape.piece().min(space).min(most), 0);
                match from.read(&mut buffer).await {
                    Ok(0) => Piece::Fin,
                    Ok(count) => Piece::Bytes(buffer.get(..count).unwrap_or_default().to_vec()),
                    Err(_) => Piece::End(End::Reset),
                }
            }
        };
        // Changed while it waited for bytes: they come under what holds now.
        let shape = lane.shape();
        let size = match &piece {
            Piece::Bytes(bytes) => bytes.len(),
            Piece::Fin | Piece::End(_) => 0,
        };
        left -= size as u64;
        let arrives = lane.send(&shape, size) + shape.delay + jitter(&mut random, shape.jitter);
        last = last.max(arrives);
        under_way.send_modify(|held| *held += size);
        let ends = size == 0;
        if pieces.send((last, piece)).await.is_err() || ends {
            return;
        }
    }
}

async fn deliver(
    lane: &Lane,
    mut to: WriteHalf<'_>,
    mut random: Sequence,
    under_way: &watch::Sender<usize>,
    mut arriving: mpsc::Receiver<(Instant, Piece)>,
) -> Result<(), End> {
    while let Some((at, piece)) = arriving.recv().await {
        sleep_until(at).await;
        lane.passing().await;
        match piece {
            Piece::Bytes(bytes) => {
                let slice = lane.shape().slice;
                write(lane, &mut to, &bytes, slice, &mut random)
                    .await
                    .map_err(|_| End::Reset)?;
                under_way.send_modify(|held| *held -= bytes.len());
            }
            Piece::Fin => return to.shutdown().await.map_err(|_| End::Reset),
            Piece::End(how) => return Err(how),
        }
    }
    Ok(())
}

/// Writes in slices, should the shape say so.
async fn write(
    lane: &Lane,
    to: &mut WriteHalf<'_>,
    bytes: &[u8],
    slice: Option<usize>,
    random: &mut Sequence,
) -> std::io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let size = match slice {
            None => rest.len(),
            Some(most) => rest.len().min(1 + below(random, most.max(1))),
        };
        let (now, later) = rest.split_at(size);
        to.write_all(now).await?;
        lane.delivered.fetch_add(size as u64, Ordering::Relaxed);
        rest = later;
        if slice.is_some() {
            // The reader gets a turn, so that the next slice is seldom joined to this one.
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

/// A number below `end`, which is not 0.
pub(super) fn below(random: &mut Sequence, end: usize) -> usize {
    let mut word = [0; 8];
    random.fill(&mut word);
    let number = u64::from_le_bytes(word) >> 16;
    usize::try_from(number % end as u64).unwrap_or(0)
}

/// Up to `most`.
pub(super) fn jitter(random: &mut Sequence, most: Duration) -> Duration {
    let microseconds = usize::try_from(most.as_micros()).unwrap_or(usize::MAX - 1);
    match microseconds {
        0 => Duration::ZERO,
        some => Duration::from_micros(below(random, some + 1) as u64),
    }
}
