//! The emulated link as a tool: it carries connections until it is interrupted, so that any two
//! programs can be put on a slow line by hand.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use sg_runtime::duration::HumanDuration;
use sg_tests::link::{Cut, Direction, End, Link, LinkSetup, Shape, When, parse_rate};

use crate::report::tell;

/// What the link does.
#[derive(Debug, Args)]
pub(crate) struct LinkArguments {
    /// Where it listens; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT")]
    listen: SocketAddr,

    /// Where it leads
    #[arg(long, value_name = "HOST:PORT")]
    to: SocketAddr,

    /// Rate of each direction, as in 200mbit; as fast as the machine without it
    #[arg(long, value_parser = rate)]
    rate: Option<u64>,

    /// Rate towards the target, instead of --rate
    #[arg(long, value_parser = rate)]
    rate_up: Option<u64>,

    /// Time of one way, as in 10ms
    #[arg(long, default_value = "0ms")]
    delay: HumanDuration,

    /// Up to this much more, differently for each piece
    #[arg(long, default_value = "0ms")]
    jitter: HumanDuration,

    /// Bytes of a connection that may wait to be sent
    #[arg(long, default_value_t = 64 * 1024)]
    queue: usize,

    /// Write at most so many bytes at a time
    #[arg(long)]
    slice: Option<usize>,

    /// End each connection after so many bytes towards the target
    #[arg(long, conflicts_with = "cut_after")]
    cut_at: Option<u64>,

    /// End each connection after this time
    #[arg(long)]
    cut_after: Option<HumanDuration>,

    /// How connections are ended
    #[arg(long, value_enum, default_value_t = How::Reset)]
    cut_by: How,

    /// Decides jitter and slices
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum How {
    Reset,
    Fin,
    Silence,
}

fn rate(text: &str) -> Result<u64, String> {
    parse_rate(text).map_err(|error| format!("{error:#}"))
}

/// Runs until interrupted.
pub(crate) async fn run(arguments: &LinkArguments) -> Result<()> {
    let down = Shape {
        rate: arguments.rate,
        delay: arguments.delay.get(),
        jitter: arguments.jitter.get(),
        queue: arguments.queue,
        slice: arguments.slice,
    };
    let up = Shape {
        rate: arguments.rate_up.or(arguments.rate),
        ..down
    };
    let when = match (arguments.cut_at, arguments.cut_after) {
        (Some(bytes), _) => Some(When::Bytes(Direction::Up, bytes)),
        (None, Some(time)) => Some(When::After(time.get())),
        (None, None) => None,
    };
    let how = match arguments.cut_by {
        How::Reset => End::Reset,
        How::Fin => End::Fin,
        How::Silence => End::Silence,
    };
    let link = Link::with(LinkSetup {
        listen: arguments.listen,
        target: arguments.to,
        up,
        down,
        seed: arguments.seed,
        cut_each: when.map(|when| Cut { when, how }),
    })
    .await?;
    tell(&format!("{} leads to {}", link.address(), arguments.to));
    tokio::signal::ctrl_c()
        .await
        .context("waiting for Ctrl-C")?;
    tell(&format!(
        "{} connections, {} bytes up, {} bytes down",
        link.accepted_connections(),
        link.delivered(Direction::Up),
        link.delivered(Direction::Down)
    ));
    Ok(())
}
